//! Shadow paging beside SLAT: a build, microbenchmarks, one that waits, and memory.

use slat_mmu::shadow::Discipline;

use crate::hypervisor::Hypervisor;
use crate::preset::Processor;
use crate::reproduce::claims::{EMPTY, MICRO, judged, missing, saved, saved_list, up_to_row};
use crate::reproduce::runs::{Part, Runs, exactly, exit_prices, ratio};
use crate::reproduce::{Band, ReproduceError, Row};

use super::KERNBENCH;

const SHADOW_OVER_EPT: &str = "time under shadow paging / time under EPT";

/// The KVM of the measurement.
const KVM: &str = "kvm-3.0";

pub(super) fn compile(runs: &mut Runs<'_>) -> Result<Row, ReproduceError> {
    let workload = "gen:compile";
    let row = Row {
        id: "7",
        claim: "Compiling: shadow / EPT = 1.8 to 2.2 (KVM, kernbench)",
        source: KERNBENCH,
        known: "Raw times are public: 4m45 beside 2m35 on a 64-bit host (1.84), 2.23 on a 32-bit one. \
            The processor is not named. ESX in 2009: up to 1.48, see C1.",
        setup: format!(
            "{workload} on preset nehalem under {KVM}, 2M host pages, out-of-sync shadow tables"
        ),
        quantity: SHADOW_OVER_EPT,
        band: Some(Band::new(1.8, 2.2)),
        ..EMPTY
    };
    let run = runs.under(workload, "nehalem", KVM)?;
    let Some((shadow, trap, nested)) = run.as_ref().and_then(|run| {
        Some((run.shadow()?, run.shadow_of(Discipline::TrapAll)?, run.nested(21)?))
    }) else {
        return Ok(missing(row, &[workload]));
    };
    let mut processor = Processor::bundled("nehalem")?;
    processor.cycles = Hypervisor::bundled(KVM)?.cycles(&processor.cycles);
    let faults = shadow.counts().exits[crate::machine::Cause::TrueFault as usize].max(1);
    let other = match runs.under("compiler", "nehalem", KVM)?.as_ref() {
        Some(run) => match (run.shadow(), run.nested(21)) {
            (Some(shadow), Some(nested)) => {
                format!("{:.2}", ratio(shadow, nested, Part::All).value)
            }
            _ => "-".to_owned(),
        },
        None => "not here".to_owned(),
    };
    let value = ratio(shadow, nested, Part::All);
    // What would have to be true for the published ratio: cycles for each page fault's exits.
    let per_fault = nested.cycles.total() / faults as f64;
    Ok(judged(
        Row {
            reading: format!(
                "Fixed before: {}. {:.1} exits a page fault of the guest, {:.2} where every store traps \
                 (ratio {:.2}). The recording `compiler`: {other}.",
                exit_prices(&processor),
                shadow.exits() as f64 / faults as f64,
                trap.exits() as f64 / faults as f64,
                ratio(trap, nested, Part::All).value,
            ),
            reason: format!(
                "By published counts of a Linux build a page fault comes every {per_fault:.0} cycles, so that \
                 1.84 would take 0.84 x {per_fault:.0} = {:.0} cycles of exits a page fault; ours take {:.0}. \
                 Several processors of one guest, which contend for KVM's one lock under shadow paging, are \
                 not simulated.",
                0.84 * per_fault,
                shadow.cycles.all_exits() / faults as f64,
            ),
            ..row
        },
        value,
    ))
}

pub(super) fn micro(runs: &mut Runs<'_>) -> Result<Row, ReproduceError> {
    let row = Row {
        id: "8",
        claim: "Fork and fault microbenchmarks: 5 to 7 times",
        source: "VMware, the 500 % and 600 % of C2 and C5",
        known: "The microbenchmarks' names are known, their sources and values not.",
        band: Some(Band::new(5.0, 7.0)),
        ..EMPTY
    };
    up_to_row(runs, row, "nehalem", MICRO)
}

pub(super) fn io_bound(runs: &mut Runs<'_>) -> Result<Row, ReproduceError> {
    let workload = "gen:io";
    let row = Row {
        id: "9",
        claim: "I/O-bound work: shadow / EPT = 1.00 to 1.02",
        source: KERNBENCH,
        known: "netperf TCP_RR, 710 transactions a second in both modes; 1.013.",
        setup: format!(
            "{workload} on preset nehalem under {KVM}, 2M host pages: a request every 1.4 ms, with two \
             process switches, a device's exit, and 1.38 ms of waiting"
        ),
        quantity: SHADOW_OVER_EPT,
        band: Some(Band::new(1.0, 1.02)),
        ..EMPTY
    };
    let run = runs.under(workload, "nehalem", KVM)?;
    let Some((shadow, nested)) =
        run.as_ref().and_then(|run| Some((run.shadow()?, run.nested(21)?)))
    else {
        return Ok(missing(row, &[workload]));
    };
    let value = ratio(shadow, nested, Part::All);
    Ok(judged(
        Row {
            reading: format!(
                "{:.4} to four places, beside 1.013. {:.2} % of the time is waiting. That both modes pay the same for the device's exits is \
                 simulated: they are the same exits.",
                value.value,
                100.0 * shadow.cycles.waiting / shadow.cycles.total()
            ),
            ..row
        },
        value,
    ))
}

pub(super) fn memory(runs: &mut Runs<'_>) -> Result<Row, ReproduceError> {
    let row = Row {
        id: "12",
        claim: "Shadow less nested tables: order of 1 MB a small guest",
        source: "the 2009 article of C13, second-hand",
        known: "As C13; expected to grow with the number of processes.",
        setup:
            "guests with more and more processes on preset nehalem: the most shadow tables at once \
            less EPT tables for 2M pages; the value is gen:pcd's with 64 children alive"
                .into(),
        quantity: "MB of hypervisor tables saved",
        band: Some(Band::new(0.33, 3.3)),
        ..EMPTY
    };
    let all = saved(runs)?;
    let Some(&(_, value)) = all.iter().find(|(workload, _)| *workload == "gen:pcd,alive=64") else {
        return Ok(missing(row, &["gen:pcd"]));
    };
    Ok(judged(
        Row {
            reading: format!(
                "{} MB. \"Order of\" is read as within a factor of 3.3. Reverse maps and the pager's own \
                 state are not counted. With 4K host pages the nested tables of the whole guest outweigh \
                 the shadow.",
                saved_list(&all)
            ),
            ..row
        },
        exactly(value),
    ))
}
