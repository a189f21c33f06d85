//! Counts that must be exact: references of cold walks, of agile paging, lines of scattered entries.

use crate::reproduce::claims::{EMPTY, judged};
use crate::reproduce::references::{agile, cold, leaf_lines};
use crate::reproduce::runs::exactly;
use crate::reproduce::{Band, Row};

pub(super) fn cold_walks() -> Row {
    let walks = cold();
    let wrong: Vec<String> = walks
        .iter()
        .filter(|walk| walk.counted != walk.defined)
        .map(|walk| format!("{}: {} for {}", walk.name, walk.counted, walk.defined))
        .collect();
    judged(
        Row {
            id: "1",
            claim: "Cold references (g+1)(h+1)-1, all depths and page sizes",
            source: "definition; AMD APM 2 15.25, Intel SDM 3C 30.3",
            known: "24 for 4 over 4. An encyclopedia says 25, which counts the data; one simulator's \
                header says 20, which forgets the final address.",
            setup: format!("{} cold walks of real tables by the library, x86 formats", walks.len()),
            quantity: "walks whose count is not as defined",
            band: Some(Band::new(0.0, 0.0)),
            reading: if wrong.is_empty() {
                "All as defined, three stages (124), PAE and 32-bit guests included.".into()
            } else {
                wrong.join("; ")
            },
            ..EMPTY
        },
        exactly(wrong.len() as f64),
    )
}

pub(super) fn agile_paging() -> Row {
    let counts = agile();
    let wrong =
        counts.iter().zip([4, 8, 12, 16, 20, 24]).filter(|(one, other)| **one != *other).count();
    judged(
        Row {
            id: "2",
            claim: "Agile paging reads 4, 8, 12, 16, 20 or 24 entries",
            source: "Gandhi et al., Agile Paging, ISCA 2016",
            known: "By how many guest levels are nested after the switch; 24 with the root as well.",
            setup: "walks of real tables: shadow above the switch, nested below".into(),
            quantity: "of six walks, those whose count differs",
            band: Some(Band::new(0.0, 0.0)),
            reading: format!("Counted: {counts:?}."),
            ..EMPTY
        },
        exactly(wrong as f64),
    )
}

pub(super) fn scattered() -> Row {
    let (together, apart) = (leaf_lines(1), leaf_lines(8));
    judged(
        Row {
            id: "11",
            claim: "Scattered guest memory: 8 lines of nested entries for 8 pages instead of 1",
            source: "Margaritov et al., PTEMagnet, ASPLOS 2021 (abstract): up to 9 % slower, 4 % on \
                average",
            known: "Colocated guests fragment guest physical memory, so that neighbours share no line \
                of the host's table.",
            setup: "walks of a real EPT for eight guest pages side by side and 32 KiB apart".into(),
            quantity: "cache lines of leaf entries, scattered / contiguous",
            band: Some(Band::new(8.0, 8.0)),
            reading: format!(
                "{apart} lines beside {together}. The slowdown is not simulated: where a recorded \
                 guest's pages lie is as the recording has it."
            ),
            ..EMPTY
        },
        exactly(apart as f64 / together.max(1) as f64),
    )
}
