//! Caches of walks: Bhargava et al.'s three designs, and walk cycles of a database.

use slat_mmu::walker::Design;

use crate::compare::{Options, Outcome, Scheme};
use crate::preset::Processor;
use crate::reproduce::claims::{EMPTY, judged, missing};
use crate::reproduce::runs::{Part, Run, Runs, ratio, references_per_walk};
use crate::reproduce::{Band, ReproduceError, Row};

use super::BHARGAVA;

pub(super) fn nested_caches(runs: &mut Runs<'_>) -> Result<Vec<Row>, ReproduceError> {
    // A Java server, one of the paper's workloads, with small pages; others beside it.
    const WORKLOADS: [&str; 3] = ["gen:jbb", "gen:oltp", "gen:terminal"];
    let row = |id, claim, band| Row {
        id,
        claim,
        source: BHARGAVA,
        known: "Trace-driven model of an Opteron, a mix of server and SPEC workloads; a small, fully \
            associative walk cache by physical address, which holds no leaves. Its size here, 24, \
            and the nested TLB's, 16, are as remembered.",
        setup: format!(
            "{} on barcelona with the design's caches, NPT, exits left out",
            WORKLOADS[0]
        ),
        quantity: "time before / time with",
        band: Some(band),
        ..EMPTY
    };
    let rows = [
        row("3a", "Walk cache in the nested dimension too: +15 to 38 %", Band::new(1.15, 1.38)),
        row("3b", "Nested TLB on top: +3 to 7 %", Band::new(1.03, 1.07)),
        row("3c", "Large host pages on top: +3 to 22 %", Band::new(1.03, 1.22)),
    ];
    let options =
        Options { schemes: Some(vec![Scheme::Npt(12), Scheme::Npt(21)]), ..Options::default() };
    let barcelona = Processor::bundled("barcelona")?;
    let mut made = Vec::new();
    for workload in WORKLOADS {
        let mut designs = Vec::new();
        for design in Design::ALL {
            let processor = barcelona.with_design(design);
            designs.push(runs.with(workload, design.name(), &processor, &options)?);
        }
        made.push((workload, designs));
    }
    // Which design and host page a step leads from, and which to.
    let steps = [((0, 12), (1, 12)), ((1, 12), (2, 12)), ((2, 12), (2, 21))];
    let ends = |designs: &'_ [Option<Run>], step: usize| -> Option<(Outcome, Outcome)> {
        let end = |(design, shift): (usize, u8)| {
            designs[design].as_ref()?.scheme(Scheme::Npt(shift)).cloned()
        };
        Some((end(steps[step].0)?, end(steps[step].1)?))
    };
    Ok(rows
        .into_iter()
        .enumerate()
        .map(|(step, row)| {
            let Some((before, after)) = ends(&made[0].1, step) else {
                return missing(row, &WORKLOADS);
            };
            let list: Vec<String> = made
                .iter()
                .filter_map(|(workload, designs)| {
                    let (before, after) = ends(designs, step)?;
                    Some(format!(
                        "{workload} {:.2} times in all and {:.2} times in walks, {:.2} entries read a walk \
                         before and {:.2} with, {:.2} % of lookups walk",
                        ratio(&before, &after, Part::WithoutExits).value,
                        ratio(&before, &after, Part::Walks).value,
                        references_per_walk(&before),
                        references_per_walk(&after),
                        100.0 * before.counts().walks as f64
                            / before.counts().lookups.max(1) as f64
                    ))
                })
                .collect();
            let value = ratio(&before, &after, Part::WithoutExits);
            let reading = format!(
                "{}. What the walk cache holds costs nothing; the rest is read through the data caches, from \
                 the second level on, where the processor counts its walks.",
                list.join("; ")
            );
            judged(Row { reading, ..row }, value)
        })
        .collect())
}

pub(super) fn walk_cycles(runs: &mut Runs<'_>) -> Result<Row, ReproduceError> {
    let row = Row {
        id: "6",
        claim: "OLTP: walk cycles in a VM about 1.3 times native's, not 6",
        source: "Merrifield and Taheri, VEE 2016 (abstract): TPC-C spends 20 % in TLB misses in the \
            VM, 4.2 points less on bare metal",
        known: "72-CPU Haswell-EP, 475 GB; 20 / 15.8 = 1.27.",
        setup: "gen:oltp on preset haswell, EPT with 2M host pages".into(),
        quantity: "walk cycles under EPT / natively",
        band: Some(Band::new(1.02, 1.59)),
        ..EMPTY
    };
    let Some(run) = runs.on("gen:oltp", "haswell")? else { return Ok(missing(row, &["gen:oltp"])) };
    let (Some(nested), Some(native)) = (run.scheme(Scheme::Ept(21)), run.native()) else {
        return Ok(row);
    };
    Ok(judged(
        Row {
            reading: format!(
                "{:.2} references a walk natively, {:.2} nested. \"About\" is read as within a factor \
                 of 1.25. A working set that the caches hold makes the nested reads as dear as the \
                 guest's, since none waits for memory.",
                references_per_walk(native),
                references_per_walk(nested)
            ),
            ..row
        },
        ratio(nested, native, Part::Walks),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use slat_trace::recording::{Error, Recording};

    /// Bhargava et al.: each step makes walks shorter, in this order.
    #[test]
    fn walks_shorten_with_each_cache_and_with_large_pages() {
        let recordings = concat!(env!("CARGO_MANIFEST_DIR"), "/../../recordings");
        let mut open = |name: &str| -> Result<Option<Recording>, Error> {
            Recording::open(format!("{recordings}/{name}.slat")).map(Some)
        };
        let mut progress = |_: &str| {};
        let mut runs = Runs::new(&mut open, crate::reproduce::Effort::default(), &mut progress);
        let mut references = |design: Design, host| {
            let processor = Processor::bundled("barcelona").unwrap().with_design(design);
            let options = Options::default();
            let run = runs.with("chase-4k", design.name(), &processor, &options);
            references_per_walk(run.unwrap().unwrap().scheme(Scheme::Npt(host)).unwrap())
        };
        let [one, two, with] = Design::ALL.map(|design| references(design, 12));
        let large = references(Design::TwoDNestedTlb, 21);
        assert!(one > two && two > with && with > large, "{one} {two} {with} {large}");
        // 24 entries a cold walk, of which the walk cache holds those of the guest that are no leaves.
        assert!((20.0..23.0).contains(&one), "{one}");
        // Leaves of both dimensions are never kept: five of nested tables, one of the guest's.
        assert!(two > 6.0, "{two}");
    }
}
