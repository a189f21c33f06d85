//! Caches of walks: Bhargava et al.'s three designs, and walk cycles of a database.

use crate::compare::{Options, Scheme};
use crate::preset::{Confidence, Entries, Param, Processor};
use crate::reproduce::claims::{EMPTY, judged, missing};
use crate::reproduce::runs::{Part, Runs, ratio, references_per_walk};
use crate::reproduce::{Band, ReproduceError, Row};

use super::BHARGAVA;

/// Barcelona with one of the three designs of Bhargava et al.
pub(super) fn design(second_stage: bool, nested_tlb: u32) -> Result<Processor, ReproduceError> {
    let mut processor = Processor::bundled("barcelona")?;
    let param = |source: &str| (source.to_owned(), Confidence::Assumed);
    let (source, confidence) = param("a design of Bhargava et al., ASPLOS 2008");
    processor.walk_caches.second_stage =
        Some(Param { value: second_stage, source: source.clone(), confidence });
    let entries = Entries { entries: nested_tlb, ways: nested_tlb.max(1) };
    processor.walk_caches.nested_tlb = Param { value: entries, source, confidence };
    Ok(processor)
}

pub(super) fn nested_caches(runs: &mut Runs<'_>) -> Result<Vec<Row>, ReproduceError> {
    // A Java server, one of the paper's workloads, with small pages.
    let workload = "gen:jbb";
    let row = |id, claim, band| Row {
        id,
        claim,
        source: BHARGAVA,
        known: "Trace-driven model of an Opteron, a mix of server and SPEC workloads. Its walk cache \
            holds entries by physical address; ours finds them by input address, level by level.",
        setup: format!("{workload} on barcelona with the design's caches, NPT, exits left out"),
        quantity: "time before / time with",
        band: Some(band),
        ..EMPTY
    };
    let mut rows = [
        row("3a", "Walk cache in the nested dimension too: +15 to 38 %", Band::new(1.15, 1.38)),
        row("3b", "Nested TLB on top: +3 to 7 %", Band::new(1.03, 1.07)),
        row("3c", "Large host pages on top: +3 to 22 %", Band::new(1.03, 1.22)),
    ];
    let options =
        Options { schemes: Some(vec![Scheme::Npt(12), Scheme::Npt(21)]), ..Options::default() };
    let one = runs.with(workload, "1D_PWC", &design(false, 0)?, &options)?;
    let two = runs.with(workload, "2D_PWC", &design(true, 0)?, &options)?;
    let with = runs.with(workload, "2D_PWC+NT", &design(true, 16)?, &options)?;
    let (small, large) = (Scheme::Npt(12), Scheme::Npt(21));
    let steps =
        [(&one, small, &two, small), (&two, small, &with, small), (&with, small, &with, large)];
    for (row, (before, from, after, to)) in rows.iter_mut().zip(steps) {
        let (Some(before), Some(after)) = (before, after) else {
            *row = missing(std::mem::replace(row, EMPTY), &[workload]);
            continue;
        };
        let (Some(before), Some(after)) = (before.scheme(from), after.scheme(to)) else { continue };
        let value = ratio(before, after, Part::WithoutExits);
        let judged_row = judged(std::mem::replace(row, EMPTY), value);
        *row = Row {
            reading: format!(
                "On {workload}: {:.2} references a walk before, {:.2} with; {:.3} % of its lookups \
                 walk.",
                references_per_walk(before),
                references_per_walk(after),
                100.0 * before.counts().walks as f64 / before.counts().lookups.max(1) as f64
            ),
            ..judged_row
        };
    }
    Ok(rows.into())
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
        let mut references = |second_stage, nested_tlb, host| {
            let processor = design(second_stage, nested_tlb).unwrap();
            let key = format!("{second_stage} {nested_tlb}");
            let run =
                runs.with("chase-4k", &key, &processor, &Options::default()).unwrap().unwrap();
            references_per_walk(run.scheme(Scheme::Npt(host)).unwrap())
        };
        let one = references(false, 0, 12);
        let two = references(true, 0, 12);
        let with = references(true, 16, 12);
        let large = references(true, 16, 21);
        assert!(one > two && two > with && with > large, "{one} {two} {with} {large}");
    }
}
