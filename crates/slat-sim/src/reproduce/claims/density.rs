//! What Microsoft and those who wrote about Hyper-V claimed: sessions, the hypervisor's share, memory.

use crate::compare::{Estimate, Outcome};
use crate::cost::{Cycles, Prices, propagate_apart};
use crate::reproduce::runs::{Part, Run, Runs, exactly, exit_share, ratio};
use crate::reproduce::{Band, ReproduceError, Row};

use super::{ARTICLE, EMPTY, MICROSOFT, Make, judged, missing, shown};

/// The session that density is computed for.
const SESSION: &str = "gen:terminal";

/// Which rows there are, in order.
pub(super) const ROWS: &[(&[&str], Make)] = &[
    (&["C10"], |runs| Ok(vec![sessions(&before_slat(runs)?, &with_slat(runs)?)])),
    (&["C11"], |runs| Ok(vec![share(&with_slat(runs)?)])),
    (&["C12"], |_| Ok(vec![arithmetic()])),
    (&["C13"], |runs| Ok(vec![per_vm(runs)?])),
];

/// Windows Server 2008 keeps shadow tables that guests' flushes make true.
fn before_slat(runs: &mut Runs<'_>) -> Result<Option<Run>, ReproduceError> {
    runs.under(SESSION, "core-2", "hyper-v-2008")
}

/// R2 uses EPT.
fn with_slat(runs: &mut Runs<'_>) -> Result<Option<Run>, ReproduceError> {
    runs.under(SESSION, "nehalem", "hyper-v-2008-r2")
}

/// Under shadow tables, and under EPT with 2 MiB host pages.
fn both(run: &Option<Run>) -> Option<(&Outcome, &Outcome)> {
    let run = run.as_ref()?;
    Some((run.shadow()?, run.nested(21)?))
}

/// Sessions that one core serves: a session's work is the same, so that they are as the inverse of
/// its time, and as the clock.
fn sessions(old: &Option<Run>, new: &Option<Run>) -> Row {
    let row = Row {
        id: "C10",
        claim: "Terminal server: 1.6 to 2.5 times the sessions with SLAT",
        source: MICROSOFT,
        known: "Windows Server 2008 guest under 2008 R2, a simulated knowledge worker; processors \
            with SLAT beside processors without, so the hardware differs too.",
        setup: format!(
            "{SESSION}: preset core-2 under hyper-v-2008 with shadow tables, 4K host pages; preset \
             nehalem under hyper-v-2008-r2 with EPT, 2M host pages; sessions a core as the clock / cycles"
        ),
        quantity: "sessions a core with SLAT / without",
        band: Some(Band::new(1.6, 2.5)),
        ..EMPTY
    };
    let without = old.as_ref().and_then(Run::shadow);
    let (Some(without), Some((shadow, with))) = (without, both(new)) else {
        return missing(row, &[SESSION]);
    };
    let clock = with.prices.frequency() / without.prices.frequency();
    let density = propagate_apart([&without.prices, &with.prices], |[before, after]| {
        let seconds = |outcome: &Outcome, prices: &Prices| {
            Cycles::of(&outcome.events, prices).total() / prices.frequency()
        };
        seconds(without, before) / seconds(with, after)
    });
    let same = ratio(shadow, with, Part::All);
    // Of the old host's time, what its exits take, and what they would have to for the least claimed.
    let (all, exits) = (without.cycles.total(), without.cycles.all_exits());
    let due = 1.6 * with.cycles.total() / clock;
    let reason = format!(
        "With shadow tables the old host spends {:.0} % of its time in the hypervisor, {:.1} M cycles beside \
         {:.1} M of all else. For 1.6 times the sessions it would have to spend 1 - {:.1} / {:.1} = {:.0} %. \
         What Microsoft's session did is not published; memory and cores, which differed too, are not in \
         this ratio.",
        100.0 * exits / all,
        exits / 1e6,
        (all - exits) / 1e6,
        (all - exits) / 1e6,
        due / 1e6,
        100.0 * (1.0 - (all - exits) / due)
    );
    judged(
        Row {
            reason,
            reading: format!(
                "On one processor (nehalem) with and without SLAT: {}; the new processor alone, both \
                 with shadow tables: {:.2}. What the session does is not sourced (slat compare \
                 --list), so that this says what such a session would give, not what Microsoft's was.",
                shown(&same),
                clock * ratio(without, shadow, Part::All).value
            ),
            ..row
        },
        density,
    )
}

fn share(new: &Option<Run>) -> Row {
    let row = Row {
        id: "C11",
        claim: "Hypervisor's share of the processor: 10 % to 2 %",
        source: ARTICLE,
        known: "Neither workload nor hardware is stated anywhere that could be read.",
        setup: format!("{SESSION}, time in exits, preset nehalem, 2M host pages"),
        quantity: "percent of time in the hypervisor with shadow tables",
        ..EMPTY
    };
    let Some((shadow, nested)) = both(new) else { return missing(row, &[SESSION]) };
    let percent = |share: Estimate| Estimate {
        value: 100.0 * share.value,
        low: 100.0 * share.low,
        high: 100.0 * share.high,
    };
    let (with_shadow, with_ept) = (percent(exit_share(shadow)), percent(exit_share(nested)));
    Row {
        value: Some(with_shadow),
        reading: format!(
            "{:.1} % with shadow tables, {:.1} % under EPT. Devices other than the guest's disk, timers \
             and interrupts, which make the 2 %, are not simulated; and the source does not say of what \
             it speaks.",
            with_shadow.value, with_ept.value
        ),
        ..row
    }
}

/// What follows from the two figures, which is no simulation and so no verdict on it.
fn arithmetic() -> Row {
    let gain = 0.98 / 0.90;
    Row {
        id: "C12",
        claim: "1.6 to 2.5 times the sessions follow from 10 % to 2 %",
        source: ARTICLE,
        known: "The figures stand side by side in articles as if one explained the other.",
        setup: "arithmetic: a host with 10 % in its hypervisor has 90 % for guests, one with 2 % has 98 %"
            .into(),
        quantity: "capacity with SLAT / without",
        band: Some(Band::new(1.6, 2.5)),
        value: Some(exactly(gain)),
        reading: format!(
            "Not comparable: it is arithmetic on two published figures, and wrong. 0.98 / 0.90 = {gain:.2}. \
             For 1.6 to 2.5 times, shadow paging must have taken 1 - 0.98/1.6 = 38.8 % to 1 - 0.98/2.5 = \
             60.8 % of the processor, or the hardware change must have given the rest. 10 % to 2 % cannot \
             give 2.5 times."
        ),
        ..EMPTY
    }
}

/// Shadow tables beyond the nested tables of the same guest, in MB.
pub(in crate::reproduce) fn saved_megabytes(run: &Run) -> Option<f64> {
    let (shadow, nested) = (run.shadow()?, run.nested(21)?);
    Some((shadow.host_table_bytes as f64 - nested.host_table_bytes as f64) / 1e6)
}

/// Guests by the number of their processes, and what each saves.
pub(in crate::reproduce) fn saved(
    runs: &mut Runs<'_>,
) -> Result<Vec<(&'static str, f64)>, ReproduceError> {
    let mut list = Vec::new();
    for workload in ["fork", "gen:pcd", "gen:oltp", SESSION, "gen:pcd,alive=64"] {
        if let Some(megabytes) = runs.on(workload, "nehalem")?.as_ref().and_then(saved_megabytes) {
            list.push((workload, megabytes));
        }
    }
    Ok(list)
}

/// The list for people.
pub(in crate::reproduce) fn saved_list(saved: &[(&'static str, f64)]) -> String {
    saved
        .iter()
        .map(|(workload, megabytes)| format!("{workload} {megabytes:.2}"))
        .collect::<Vec<_>>()
        .join(", ")
}

fn per_vm(runs: &mut Runs<'_>) -> Result<Row, ReproduceError> {
    let row = Row {
        id: "C13",
        claim: "About 1 MB less memory a virtual machine",
        source: ARTICLE,
        known: "Second-hand; Microsoft's own pages say only that more memory is saved. 1 MB is 256 \
            shadow tables.",
        setup: format!(
            "{SESSION} on preset nehalem: most shadow tables at once, less EPT tables for 2M pages"
        ),
        quantity: "MB of hypervisor tables saved",
        band: Some(Band::new(0.33, 3.3)),
        ..EMPTY
    };
    let all = saved(runs)?;
    let Some(&(_, value)) = all.iter().find(|(workload, _)| *workload == SESSION) else {
        return Ok(missing(row, &[SESSION]));
    };
    Ok(judged(
        Row {
            reading: format!(
                "\"About\" is read as within a factor of 3.3. Only tables count here; a real shadow pager \
                 also keeps reverse maps. {} MB: a shadow table a touched 2 MiB of each process.",
                saved_list(&all)
            ),
            ..row
        },
        exactly(value),
    ))
}
