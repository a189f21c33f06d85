//! What VMware and Red Hat measured.

use slat_mmu::shadow::Discipline;

use crate::compare::Outcome;
use crate::cost::Estimate;
use crate::preset::Processor;
use crate::report::page_name;
use crate::reproduce::runs::{Part, Runs, exit_prices, largest_page, ratio};
use crate::reproduce::{Band, ReproduceError, Row};

use super::{EMPTY, Make, RED_HAT, VMMARK, VMWARE_EPT, VMWARE_RVI, judged, missing, shown, up_to};

const SHADOW_OVER_NESTED: &str = "time under shadow paging / time under SLAT";

/// The benchmarks of VMware's class "MMU-intensive": a build, a database; and what is recorded of it.
const BENCHMARKS: &[&str] = &["gen:compile", "gen:oltp", "gen:terminal", "compiler", "sqlite"];
/// VMware's kernel microbenchmarks; and what is recorded of them.
pub(in crate::reproduce) const MICRO: &[&str] =
    &["gen:segv", "gen:pcd", "gen:nps", "gen:fcw", "fork"];

/// Which rows there are, in order.
pub(super) const ROWS: &[(&[&str], Make)] = &[
    (&["C1"], ept_benchmarks),
    (&["C2"], ept_micro),
    (&["C3"], corner),
    (&["C4"], rvi_benchmarks),
    (&["C5"], rvi_micro),
    (&["C6"], ept_beside_rvi),
    (&["C7"], vmmark),
    (&["C8"], red_hat),
    (&["C9"], red_hat_drivers),
];

fn ept_benchmarks(runs: &mut Runs<'_>) -> Result<Vec<Row>, ReproduceError> {
    let row = Row {
        id: "C1",
        claim: "EPT: up to 48 % on MMU-intensive benchmarks, over shadow paging",
        source: VMWARE_EPT,
        known: "First page and blog were read; ESX builds 140815 and 136362, EPT beside \
            VMware's own software shadow paging on the same Xeon 5500. Which bar is 48 %, \
            guests and memory: not known.",
        band: Some(up_to(1.48, 1.48)),
        ..EMPTY
    };
    Ok(vec![up_to_row(runs, row, "nehalem", BENCHMARKS)?])
}

fn ept_micro(runs: &mut Runs<'_>) -> Result<Vec<Row>, ReproduceError> {
    let row = Row {
        id: "C2",
        claim: "EPT: up to 600 % on MMU-intensive microbenchmarks",
        source: VMWARE_EPT,
        known: "As C1. 600 % can be read as 7 times (+600 %) or as 6 times; the ratio is \
            given here.",
        band: Some(up_to(6.0, 7.0)),
        ..EMPTY
    };
    Ok(vec![up_to_row(runs, row, "nehalem", MICRO)?])
}

fn rvi_benchmarks(runs: &mut Runs<'_>) -> Result<Vec<Row>, ReproduceError> {
    let row = Row {
        id: "C4",
        claim: "RVI: up to 42 % on MMU-intensive benchmarks",
        source: VMWARE_RVI,
        known: "Blog only: \"latest third generation AMD Opteron\"; model, guests and bars \
            are not known. The comparison is with VMware's binary translator, whose shadow \
            pager differs from the one simulated.",
        band: Some(up_to(1.42, 1.42)),
        ..EMPTY
    };
    Ok(vec![up_to_row(runs, row, "barcelona", BENCHMARKS)?])
}

fn rvi_micro(runs: &mut Runs<'_>) -> Result<Vec<Row>, ReproduceError> {
    let row = Row {
        id: "C5",
        claim: "RVI: up to 500 % on MMU-intensive microbenchmarks",
        source: VMWARE_RVI,
        known: "As C4; 5 times or +500 %, which is 6 times. Encyclopedias leave this figure \
            out.",
        band: Some(up_to(5.0, 6.0)),
        ..EMPTY
    };
    Ok(vec![up_to_row(runs, row, "barcelona", MICRO)?])
}

fn ept_beside_rvi(_: &mut Runs<'_>) -> Result<Vec<Row>, ReproduceError> {
    Ok(vec![Row {
        id: "C6",
        claim: "EPT gains more than RVI (48 beside 42 %)",
        source: VMWARE_RVI,
        known: "The source itself: different ESX builds, \"the results are not directly \
            comparable\".",
        reading: "The claim is nobody's: only the two figures are published, and their author \
            forbids the comparison."
            .into(),
        ..EMPTY
    }])
}

fn vmmark(_: &mut Runs<'_>) -> Result<Vec<Row>, ReproduceError> {
    Ok(vec![Row {
        id: "C7",
        claim: "VMmark gains from RVI",
        source: VMMARK,
        known: "Two Opteron 8384, ESX build 127430, three monitor modes; the gains are in a \
            chart that could not be read.",
        reading: "No number could be read, and no workload here is a VMmark tile.".into(),
        ..EMPTY
    }])
}

fn red_hat_drivers(_: &mut Runs<'_>) -> Result<Vec<Row>, ReproduceError> {
    Ok(vec![Row {
        id: "C9",
        claim: "RHEL: nested paging and PV drivers, 3.5 times, 75 % of bare metal",
        source: RED_HAT,
        known: "0.75 / 3.5 = 0.21 of bare metal fully virtualized; almost double that, 0.43, \
            with nested paging; 0.75 with paravirtual drivers.",
        reading: "The step from 0.43 to 0.75 is I/O emulation, which this system does not \
            simulate; only the first step is C8."
            .into(),
        ..EMPTY
    }])
}

/// The largest ratio of shadow paging, where every table store traps, to SLAT over the workloads of
/// a class.
///
/// The discipline is VMware's: traces on guest tables (Adams and Agesen, ASPLOS 2006). Handlers cost
/// what the processor's preset says: those that Adams and Agesen measured are of a Pentium 4.
pub(in crate::reproduce) fn up_to_row(
    runs: &mut Runs<'_>,
    row: Row,
    preset: &str,
    workloads: &[&'static str],
) -> Result<Row, ReproduceError> {
    let least = row.band.map_or(1.0, |band| band.low);
    let mut best: Option<(Estimate, &str, String)> = None;
    let mut list = Vec::new();
    for &workload in workloads {
        let Some(run) = runs.on(workload, preset)? else {
            list.push(format!("{workload}: recording not here"));
            continue;
        };
        let (Some(shadow), Some(trap), Some(nested)) =
            (run.shadow(), run.shadow_of(Discipline::TrapAll), run.nested(21))
        else {
            continue;
        };
        let value = ratio(trap, nested, Part::All);
        list.push(format!(
            "{workload}: {}, {:.2} with tables that may be out of sync",
            shown(&value),
            ratio(shadow, nested, Part::All).value
        ));
        if best.as_ref().is_none_or(|(best, ..)| value.value > best.value) {
            best = Some((value, workload, exits_for(least, trap, nested)));
        }
    }
    let row = Row {
        setup: format!(
            "{} on preset {preset}, 2M host pages, shadow tables every store to which traps, as \
             VMware's did",
            workloads.join(", ")
        ),
        quantity: SHADOW_OVER_NESTED,
        ..row
    };
    let Some((value, which, exits)) = best else { return Ok(missing(row, workloads)) };
    let processor = Processor::bundled(preset)?;
    let reaches = value.value >= least;
    Ok(judged(
        Row {
            reading: format!(
                "{which} gives most and {} the claim. {}. Fixed before: {}. An \"up to\" is met where a \
                 workload of its class reaches it; over 1.5 times it contradicts it.",
                if reaches { "reaches" } else { "does not reach" },
                list.join("; "),
                exit_prices(&processor)
            ),
            reason: if reaches {
                format!(
                    "{which} gives more than one and a half times the claim, which is said to be the most."
                )
            } else {
                format!(
                    "{which} gives most, and {exits}. What VMware's programs did between two exits, and what \
                     its handlers took, was not published."
                )
            },
            ..row
        },
        value,
    ))
}

/// What exits would have to cost for a ratio: the arithmetic that a row out of range shows.
fn exits_for(ratio: f64, trap: &Outcome, nested: &Outcome) -> String {
    let (count, spent) = (trap.exits() as f64, trap.cycles.all_exits());
    let due = ratio * nested.cycles.total() - (trap.cycles.total() - spent);
    format!(
        "its {count:.0} exits take {:.0} cycles each on average; for {ratio:.2} times they would have to \
         take ({ratio:.2} x {:.1} M - {:.1} M) / {count:.0} = {:.0}",
        spent / count,
        nested.cycles.total() / 1e6,
        (trap.cycles.total() - spent) / 1e6,
        due / count
    )
}

fn corner(runs: &mut Runs<'_>) -> Result<Vec<Row>, ReproduceError> {
    let row = Row {
        id: "C3",
        claim: "EPT is slower in a corner: TLB misses on small pages",
        source: VMWARE_EPT,
        known: "\"EPT increases memory access latencies for a few workloads\"; which and by how \
            much could not be read. SPECjbb2005 is the one of its workloads that misses the TLB most.",
        setup: "gen:jbb on preset nehalem, 4K host pages".into(),
        quantity: "time under EPT / time under shadow paging",
        band: Some(Band::at_least(1.0)),
        ..EMPTY
    };
    let Some(run) = runs.on("gen:jbb", "nehalem")? else {
        return Ok(vec![missing(row, &["gen:jbb"])]);
    };
    let (Some(shadow), Some(nested)) = (run.shadow(), run.nested(12)) else { return Ok(vec![row]) };
    let mut readings = Vec::new();
    for workload in ["gen:gups", "gen:btree", "chase-4k"] {
        let run = runs.on(workload, "nehalem")?;
        if let Some((shadow, nested)) =
            run.as_ref().and_then(|r| Some((r.shadow()?, r.nested(12)?)))
        {
            let value = ratio(nested, shadow, Part::WithoutExits).value;
            readings.push(format!("{workload} {value:.2}"));
        }
    }
    Ok(vec![judged(
        Row {
            reading: format!(
                "Others, their exits left out: {}. See check 10 for large pages.",
                readings.join(", ")
            ),
            ..row
        },
        ratio(nested, shadow, Part::All),
    )])
}

fn red_hat(runs: &mut Runs<'_>) -> Result<Vec<Row>, ReproduceError> {
    let largest = largest_page("barcelona", "xen-3.2")?;
    let row = Row {
        id: "C8",
        claim: "Nested paging almost doubles OLTP (RHEL 5.1, Barcelona)",
        source: RED_HAT,
        known: "Oracle 10gR2, fully virtualized guest, Xen; \"almost doubles\". The table's values \
            could not be read. The article calls what costs under shadow paging page modifications.",
        setup: format!(
            "gen:oltp on preset barcelona under xen-3.2, whose shadow tables every store traps on; \
             {} host pages, the largest that it has",
            page_name(largest.shift())
        ),
        quantity: SHADOW_OVER_NESTED,
        band: Some(Band::new(1.5, 2.2)),
        ..EMPTY
    };
    let workload = "gen:oltp";
    let run = runs.under(workload, "barcelona", "xen-3.2")?;
    let Some((trap, shadow, nested)) = run.as_ref().and_then(|run| {
        Some((run.shadow_of(Discipline::TrapAll)?, run.shadow()?, run.nested(largest.shift())?))
    }) else {
        return Ok(vec![missing(row, &[workload])]);
    };
    Ok(vec![judged(
        Row {
            reading: format!(
                "{:.2} with tables that may be out of sync, which Xen has since 3.3. How often an Oracle \
                 server of 2007 switches and maps is not sourced: the workload's parameters were set \
                 once, by what such servers do, and decide the value.",
                ratio(shadow, nested, Part::All).value
            ),
            reason: format!(
                "In {workload}, a database that has been running, whose processes' shadows are filled, {}. How often \
                 an Oracle server of 2007 changed its tables was not published.",
                exits_for(1.5, trap, nested)
            ),
            ..row
        },
        ratio(trap, nested, Part::All),
    )])
}
