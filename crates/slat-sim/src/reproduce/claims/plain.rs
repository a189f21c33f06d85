//! Claims without a number: what second stages, large pages and tags are said to do.

use crate::compare::{Options, Outcome, Scheme};
use crate::cost::{Cycles, Prices, propagate};
use crate::machine::Cause;
use crate::reproduce::references::long_over_ept;
use crate::reproduce::runs::{Run, Runs, exactly};
use crate::reproduce::{Band, ReproduceError, Row};

use super::{DEFINITION, EMPTY, Make, VMWARE_EPT, judged, missing};

/// Which rows there are, in order.
pub(super) const ROWS: &[(&[&str], Make)] = &[
    (&["C14a", "C14b"], |_| Ok(levels().into())),
    (&["C15"], |_| Ok(vec![one_level_less()])),
    (&["C16"], |runs| Ok(vec![large_host_pages(&runs.on("fork", "nehalem")?)])),
    (&["C17"], |runs| Ok(vec![tag(runs)?])),
    (&["C18"], |runs| {
        Ok(vec![upkeep(&runs.on("compiler", "nehalem")?, &runs.on("fork", "nehalem")?)])
    }),
    (&["C19"], |runs| Ok(vec![more_machines(runs)?])),
];

/// Twice the levels, and six times the entries.
fn levels() -> [Row; 2] {
    let nested = long_over_ept(4, 0, 4, 0);
    let row = |id, claim, source, quantity, reading| Row {
        id,
        claim,
        source,
        known: "Texts say \"twice the levels\" beside 24 references; some call a TLB miss a page \
            fault.",
        setup: "a cold walk of 4 over 4 levels on real tables".into(),
        quantity,
        band: Some(Band::new(2.0, 2.0)),
        reading,
        ..EMPTY
    };
    // Each of the guest's levels and the final address are translated: g (h + 1) + h entries.
    let host_levels = (nested - 4) / 5;
    let levels = row(
        "C14a",
        "SLAT doubles the levels of tables",
        DEFINITION,
        "levels, guest's and host's / guest's",
        format!(
            "4 + {host_levels} levels. What is said beside it is often inexact: twice the levels is not \
             twice the work (C14b), and a TLB miss is no page fault: the processor resolves it without \
             the hypervisor."
        ),
    );
    let work = row(
        "C14b",
        "SLAT doubles a page walk",
        "what is made of C14a where it is repeated; neither AMD's manual nor Intel's says it",
        "entries read, nested / native",
        format!(
            "Not comparable: no source claims it of a walk, it is a reading of C14a. The levels double, the \
             references do not. Each of the guest's 4 table addresses, and the final one, is guest-physical, \
             and {host_levels} entries translate it: 4 + (4 + 1) x {host_levels} = {nested} beside 4, six \
             times, when nothing is cached. With walk caches it is less: check 6."
        ),
    );
    [
        judged(levels, exactly((4 + host_levels) as f64 / 4.0)),
        Row { value: Some(exactly(nested as f64 / 4.0)), ..work },
    ]
}

fn one_level_less() -> Row {
    let nested = long_over_ept(4, 0, 4, 0);
    judged(
        Row {
            id: "C15",
            claim: "A 2M page removes one level",
            source: DEFINITION,
            known: "Of the dimension that it is used in.",
            setup: "cold walks with 2M pages in the guest, in the host, in both".into(),
            quantity: "levels removed from the nested dimension",
            band: Some(Band::new(1.0, 1.0)),
            reading: format!(
                "One level, and five references of 24: {} with 2M in the host, {} with 2M in the \
                 guest, {} with both.",
                long_over_ept(4, 0, 4, 1),
                long_over_ept(4, 1, 4, 0),
                long_over_ept(4, 1, 4, 1)
            ),
            ..EMPTY
        },
        exactly(((nested - long_over_ept(4, 0, 4, 1)) / 5) as f64),
    )
}

/// Guests of several kinds, equally many of each, on one processor with shadow tables and with SLAT.
fn more_machines(runs: &mut Runs<'_>) -> Result<Row, ReproduceError> {
    const GUESTS: [&str; 5] =
        ["gen:terminal", "gen:oltp", "gen:compile", "gen:jbb,huge=1", "gen:io"];
    let row = Row {
        id: "C19",
        claim: "More virtual machines and sessions a host",
        source: "VMware, Microsoft and Red Hat, as C1 to C10",
        known: "Said without a number, or with that of C10. By the processor's time, or by memory.",
        setup: format!(
            "equally many of {} on preset nehalem, 2M host pages, shadow tables that may be out of \
             sync beside EPT",
            GUESTS.join(", ")
        ),
        quantity: "virtual machines a core with SLAT / without",
        band: Some(Band::at_least(1.0)),
        ..EMPTY
    };
    let made = GUESTS
        .iter()
        .map(|guest| runs.on(guest, "nehalem"))
        .collect::<Result<Vec<_>, ReproduceError>>()?;
    let pairs: Vec<_> =
        made.iter().flatten().filter_map(|run| Some((run.shadow()?, run.nested(21)?))).collect();
    let Ok(pairs) = <[(&Outcome, &Outcome); GUESTS.len()]>::try_from(pairs) else {
        return Ok(missing(row, &GUESTS));
    };
    // While a guest waits for a device, another has the core.
    let busy = |cycles: &Cycles| cycles.total() - cycles.waiting;
    // Each kind counts alike. One processor: a parameter moves in all runs at once.
    let prices: [&Prices; 2 * GUESTS.len()] = std::array::from_fn(|nth| {
        let (shadow, nested) = pairs[nth / 2];
        if nth % 2 == 0 { &shadow.prices } else { &nested.prices }
    });
    let value = propagate(prices, |prices| {
        let each = pairs.iter().zip(prices.chunks(2)).map(|((shadow, nested), prices)| {
            busy(&Cycles::of(&shadow.events, prices[0]))
                / busy(&Cycles::of(&nested.events, prices[1]))
        });
        each.sum::<f64>() / pairs.len() as f64
    });
    let list: Vec<String> = GUESTS
        .iter()
        .zip(&pairs)
        .map(|(guest, (shadow, nested))| {
            let saved = (shadow.host_table_bytes as f64 - nested.host_table_bytes as f64) / 1e6;
            let times = busy(&shadow.cycles) / busy(&nested.cycles);
            format!("{guest} {times:.2} and {saved:.2} MB")
        })
        .collect();
    Ok(judged(
        Row {
            reading: format!(
                "Each alone, and the memory of tables that SLAT saves it: {}. Beside guests of hundreds of \
                 megabytes the memory decides nothing; the processor's time does, where page tables \
                 change often.",
                list.join("; ")
            ),
            ..row
        },
        value,
    ))
}

fn large_host_pages(fork: &Option<Run>) -> Row {
    let row = Row {
        id: "C16",
        claim: "Large host pages shrink walks and table memory",
        source: VMWARE_EPT,
        known: "\"This cost can be reduced by effectively using large pages in the guest and the \
            hypervisor\".",
        setup: "fork on preset nehalem: EPT tables with 4K pages, with 2M, with 1G".into(),
        quantity: "EPT table memory, 4K / 2M host pages",
        band: Some(Band::at_least(1.0)),
        ..EMPTY
    };
    let bytes = |shift| {
        let outcome = fork.as_ref()?.scheme(Scheme::Ept(shift))?;
        Some(outcome.host_table_bytes as f64 / 1024.0)
    };
    let (Some(small), Some(large), Some(huge)) = (bytes(12), bytes(21), bytes(30)) else {
        return missing(row, &["fork"]);
    };
    judged(
        Row {
            reading: format!(
                "{small:.0}, {large:.0} and {huge:.0} KiB; cold walks read {}, {} and {} entries.",
                long_over_ept(4, 0, 4, 0),
                long_over_ept(4, 0, 4, 1),
                long_over_ept(4, 0, 4, 2)
            ),
            ..row
        },
        exactly(small / large),
    )
}

/// Accesses of a turn of each of two machines on one core.
const TURN: usize = 50_000;

fn tag(runs: &mut Runs<'_>) -> Result<Row, ReproduceError> {
    let row = Row {
        id: "C17",
        claim: "The tag (VPID, ASID) avoids TLB flushes at switches",
        source: "Intel SDM 3C 30.1; AMD APM 2 15.16",
        known: "A tag of the virtual machine: it saves the flush at exits and entries, not the one \
            that a guest's own CR3 load makes.",
        setup: format!(
            "two guests on one core of preset nehalem that take turns of {TURN} accesses, both the recording \
             fork, EPT with 4K host pages, tag off and on"
        ),
        quantity: "page walks without the tag / with",
        band: Some(Band::at_least(1.01)),
        ..EMPTY
    };
    let four = Scheme::Ept(12);
    let mut with = |tagged| {
        let options = Options {
            tagged: Some(tagged),
            schemes: Some(vec![Scheme::Native, four]),
            ..Options::default()
        };
        runs.sharing("fork", "nehalem", &options, TURN)
    };
    let (Some(untagged), Some(tagged)) = (with(false)?, with(true)?) else {
        return Ok(missing(row, &["fork"]));
    };
    let sum = |guests: &[Run], of: fn(&Outcome) -> u64| -> u64 {
        guests.iter().filter_map(|run| run.scheme(four)).map(of).sum()
    };
    let walks = |outcome: &Outcome| outcome.counts().walks;
    let switches = sum(&tagged, |outcome| outcome.counts().exits[Cause::Switch as usize]);
    let (off, on) = (sum(&untagged, walks), sum(&tagged, walks));
    Ok(judged(
        Row {
            reading: format!(
                "{off} walks without, {on} with, over {switches} switches. The more often the guests exit, \
                 the more the tag saves; timer and device exits, which are not simulated, add to it."
            ),
            ..row
        },
        exactly(off as f64 / on as f64),
    ))
}

fn upkeep(compiler: &Option<Run>, fork: &Option<Run>) -> Row {
    let row = Row {
        id: "C18",
        claim: "Shadow upkeep is the largest cost of memory-intensive work",
        source: VMWARE_EPT,
        known: "Said of shadow paging in general; no share is given.",
        setup: "compiler (fork where that recording is not here), preset nehalem: exits for table \
            stores, fills, dirty bits, CR3 loads and INVLPG"
            .into(),
        quantity: "share of the extra time over native that is upkeep",
        band: Some(Band::new(0.5, 1.0)),
        ..EMPTY
    };
    let Some(run) = compiler.as_ref().or(fork.as_ref()) else {
        return missing(row, &["compiler", "fork"]);
    };
    let (Some(shadow), Some(native)) = (run.shadow(), run.native()) else { return row };
    let value = propagate([&shadow.prices, &native.prices], |[own, others]| {
        let with = Cycles::of(&shadow.events, own);
        let without = Cycles::of(&native.events, others);
        with.upkeep() / (with.total() - without.total())
    });
    judged(
        Row {
            reading: "The rest is longer page walks, the guest's own page faults, which shadow paging must \
                intercept, and devices, which exit under any hypervisor."
                .into(),
            ..row
        },
        value,
    )
}
