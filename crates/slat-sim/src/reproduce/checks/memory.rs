//! Random access: what walks cost where tables exceed the caches, and what large pages gain.

use crate::compare::{Options, Outcome, Scheme};
use crate::preset::Processor;
use crate::reproduce::claims::{EMPTY, judged, missing};
use crate::reproduce::runs::{Part, Run, Runs, exactly, ratio, references_per_walk};
use crate::reproduce::{Band, ReproduceError, Row};

use super::VMITOSIS;

/// Random updates over 2 GiB: leaf entries of 4 MiB in each dimension, more than a core's caches.
const GUPS: &str = "gen:gups,size=2048,memory=4096";

fn gups(runs: &mut Runs<'_>, huge: u8) -> Result<Option<Run>, ReproduceError> {
    let options = Options {
        schemes: Some(vec![Scheme::Ept(if huge == 1 { 21 } else { 12 })]),
        ..Options::default()
    };
    let workload = format!("{GUPS},huge={huge}");
    runs.with(&workload, "skylake-sp", &Processor::bundled("skylake-sp")?, &options)
}

pub(super) fn symmetry(runs: &mut Runs<'_>) -> Result<Row, ReproduceError> {
    let row = Row {
        id: "4",
        claim: "Remote guest and nested tables cost the same: (RR-1)/(RL-1) = 1.89 to 2.22",
        source: VMITOSIS,
        known: "Cascade Lake, six workloads of hundreds of GB; measured run times with guest tables, \
            nested tables or both on a remote node.",
        setup: format!(
            "{GUPS} on preset skylake-sp, EPT with 4K host pages. No second node is simulated: extra \
             time is in proportion to the table reads that memory serves"
        ),
        quantity: "(RR-1)/(RL-1) = 1 + nested / guest reads served by memory",
        band: Some(Band::new(1.8, 2.3)),
        ..EMPTY
    };
    let Some(run) = gups(runs, 0)? else { return Ok(missing(row, &[GUPS])) };
    let Some(nested) = run.scheme(Scheme::Ept(12)) else { return Ok(row) };
    let [guest, host] = [nested.events.guest_reads[3], nested.events.host_reads[3]];
    let served = format!(
        "Memory served {guest} guest and {host} nested reads, of {} and {}.",
        nested.events.guest_reads.iter().sum::<u64>(),
        nested.events.host_reads.iter().sum::<u64>()
    );
    if guest == 0 {
        return Ok(Row { reading: format!("{served} There is nothing to relate."), ..row });
    }
    Ok(judged(
        Row {
            reading: format!(
                "{served} Symmetry would be equal numbers. Those workloads are a hundred times larger than \
                 ours; what counts is that both dimensions' leaf entries exceed the caches."
            ),
            ..row
        },
        exactly(1.0 + host as f64 / guest as f64),
    ))
}

pub(super) fn large_pages(runs: &mut Runs<'_>) -> Result<Row, ReproduceError> {
    let row = Row {
        id: "5",
        claim: "2M pages in guest and host speed GUPS up 3.3 times",
        source: VMITOSIS,
        known: "GUPS on a thin VM, Cascade Lake: 3.29 times. The other workloads gain 1.39 to 1.68.",
        setup: format!(
            "{GUPS} with 4K pages in guest and host beside 2M in both, preset skylake-sp, EPT, exits \
             left out"
        ),
        quantity: "time with 4K pages / with 2M",
        band: Some(Band::new(2.2, 5.0)),
        ..EMPTY
    };
    let (Some(small), Some(large)) = (gups(runs, 0)?, gups(runs, 1)?) else {
        return Ok(missing(row, &[GUPS]));
    };
    let (Some(small), Some(large)) = (small.scheme(Scheme::Ept(12)), large.scheme(Scheme::Ept(21)))
    else {
        return Ok(row);
    };
    let walked = |outcome: &Outcome| {
        100.0 * outcome.counts().walks as f64 / outcome.counts().lookups.max(1) as f64
    };
    Ok(judged(
        Row {
            reading: format!(
                "The order of 3.3 is read as within a factor of 1.5. With small pages {:.1} % of lookups walk, \
                 {:.2} references each, with large ones {:.1} %; waiting for the data itself is in both.",
                walked(small),
                references_per_walk(small),
                walked(large)
            ),
            ..row
        },
        ratio(small, large, Part::WithoutExits),
    ))
}

pub(super) fn corner(runs: &mut Runs<'_>) -> Result<[Row; 2], ReproduceError> {
    let row = |id, claim, workload: &str, page, band| Row {
        id,
        claim,
        source: "VMware, Performance Evaluation of Intel EPT Hardware Assist, 2009",
        known: "In words only: SPECjbb with small pages is such a workload; no value could be read.",
        setup: format!("{workload} on preset nehalem, {page} host pages"),
        quantity: "time under EPT / time under shadow paging",
        band: Some(band),
        ..EMPTY
    };
    let small = row(
        "10a",
        "Random access, 4K pages: SLAT slower than shadow paging",
        "gen:jbb",
        "4K",
        Band::at_least(1.0),
    );
    let large = row(
        "10b",
        "The same with 2M pages: the gap closes",
        "gen:jbb,huge=1",
        "2M",
        Band::new(0.95, 1.05),
    );
    let one = |runs: &mut Runs<'_>, row: Row, workload, shift| -> Result<Row, ReproduceError> {
        let Some(run) = runs.on(workload, "nehalem")? else { return Ok(missing(row, &[workload])) };
        let (Some(nested), Some(shadow)) = (run.scheme(Scheme::Ept(shift)), run.shadow()) else {
            return Ok(row);
        };
        Ok(judged(
            Row {
                reading: format!(
                    "{:.2} references a walk under shadow paging (its fills included), {:.2} under EPT; {:.3} % \
                     of lookups walk.",
                    references_per_walk(shadow),
                    references_per_walk(nested),
                    100.0 * nested.counts().walks as f64 / nested.counts().lookups.max(1) as f64
                ),
                ..row
            },
            ratio(nested, shadow, Part::All),
        ))
    };
    Ok([one(runs, small, "gen:jbb", 12)?, one(runs, large, "gen:jbb,huge=1", 21)?])
}
