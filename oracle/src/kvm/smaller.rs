//! The smallest tables and registers with which KVM still disagrees, each asked of a machine of its own.
//!
//! What a disagreement owes to the round before it, such as a translation that is kept, does not show in a
//! machine that has run nothing: it is left as it was met.

use slat_kvm::prober::{Deed, Prober, TABLES};

use super::Way;
use super::mode::{Mode, Paging};
use super::round::{Asker, Round};
use crate::contract::{Machine, STATE};
use crate::engine::Disagreement;
use crate::probe::Probe;
use crate::shrink::shrink;
use crate::world::{Beyond, World};

/// Bits of state that a question can do without: the address; CR0.WP; CR4's PSE, SMEP and SMAP; EFER.NXE;
/// RFLAGS.AC. Without the others it is one of another paging mode.
const OPTIONAL: [(usize, u64); 5] =
    [(1, !0), (3, 1 << 16), (5, 1 << 4 | 3 << 20), (6, 1 << 11), (9, 1 << 18)];

/// The entries that a walk of this address may read: those that the walker has `read`, and those at which one
/// would arrive that stops for nothing.
pub(super) fn path(
    world: &World,
    mode: Mode,
    root: u64,
    address: u64,
    mut read: Vec<u64>,
) -> Vec<(u64, u64)> {
    let index_bits = if mode.paging == Paging::Legacy { 10 } else { 9 };
    let size = if index_bits == 10 { 4 } else { 8 };
    let mut table = root;
    for level in (0..u32::from(mode.paging.levels())).rev() {
        let index = address >> (12 + index_bits * level) & ((1 << index_bits) - 1);
        let at = table + size * index;
        read.push(at & !7);
        let entry = world.word(at).unwrap_or(0) >> (8 * (at & 4));
        table = entry & if size == 4 { 0xFFFF_F000 } else { 0xF_FFFF_FFFF_F000 };
        if !TABLES.contains(&table) {
            break;
        }
    }
    if mode.paging == Paging::Pae {
        // They are read together, when CR3 is set.
        read.extend((0..4).map(|n| root + 8 * n));
    }
    read.retain(|at| TABLES.contains(at));
    read.sort_unstable();
    read.dedup();
    read.into_iter().map(|at| (at, world.word(at).unwrap_or(0))).collect()
}

/// What is left of a disagreement where nothing more can go; `None` where a machine of its own does not
/// disagree. `machine` makes such a machine.
///
/// # Errors
/// Where KVM fails.
pub(super) fn smaller(
    way: Way,
    disagreement: &Disagreement,
    machine: &mut dyn FnMut() -> anyhow::Result<Asker>,
) -> anyhow::Result<Option<Disagreement>> {
    let probe = &disagreement.case.probe;
    if probe.words.is_empty() {
        // One about the tables after all of a round.
        return Ok(None);
    }
    let template = template(probe);
    let mut ask = |probe: &Probe| ask_alone(way, machine()?, probe);
    let Some(found) = ask(probe)? else { return Ok(None) };
    let (case, _) = shrink(&OPTIONAL, &template, (found.case, found.seen), &mut |probes| {
        let ask = |probe| {
            // The words of a smaller probe are its own, those that are left.
            let found = ask(probe)?;
            Ok(found.map(|mut found| {
                found.case.probe = probe.clone();
                (found.case, found.seen)
            }))
        };
        probes.iter().map(ask).collect()
    })?;
    ask(&case.probe)
}

/// Asks a machine that has run nothing, and returns what both sides disagree over.
fn ask_alone(way: Way, machine: Asker, probe: &Probe) -> anyhow::Result<Option<Disagreement>> {
    let Some(deed) = deed(probe) else { return Ok(None) };
    let mut words = own(probe);
    words.extend(&probe.words);
    let state = &probe.state;
    Round::with(way, mode(state), machine, state[4], &words).ask_one(state[1], deed)
}

fn mode(state: &[u64; STATE]) -> Mode {
    Mode::of(state[3], state[5], state[6], state[9] >> 18 & 1 != 0)
}

fn deed(probe: &Probe) -> Option<Deed> {
    [Deed::Load, Deed::Store, Deed::Call].into_iter().find(|deed| *deed as u32 == probe.operation)
}

/// The entry of the guest's own program, which it cannot do without.
fn own(probe: &Probe) -> Vec<(u64, u64)> {
    let paging = mode(&probe.state).paging;
    let entry = (probe.state[4], Prober::own_table(paging.levels()) | 0x67);
    paging.is_long().then_some(entry).into_iter().collect()
}

fn template(probe: &Probe) -> World {
    let mut world = World::new(&Machine::KVM, Beyond::Abort);
    for (at, entry) in own(probe) {
        world.set(at, entry);
    }
    world
}

#[cfg(test)]
mod tests {
    use super::super::tables::{self, Tables};
    use super::*;
    use crate::probe::Outcome;
    use crate::random::Random;

    const WP: u64 = 1 << 16;

    /// A machine without CR0.WP: what is left are a store of the supervisor's, WP, and entries that lead to
    /// one that is not writable.
    #[test]
    fn what_is_left_has_a_part_in_the_disagreement() {
        let mut machine = || Ok(Asker::Without(WP));
        let random = &mut Random::new(7);
        let mut shrunk = 0;
        while shrunk < 3 {
            let mode = Mode::choose(Way::Supervisor, random);
            let tables = Tables::new(mode.paging, random);
            let mut round =
                Round::with(Way::Supervisor, mode, machine().unwrap(), tables.root, &tables.words);
            let address = mode.canonical(tables::address(random));
            let Some(found) = round.ask_one(address, Deed::Store).unwrap() else { continue };
            let small = smaller(Way::Supervisor, &found, &mut machine).unwrap().unwrap();
            assert_eq!(small.seen.outcome, Outcome::Done { value: 0 });
            let Outcome::Stage1 { syndrome, .. } = small.case.expected else { panic!("{small:?}") };
            assert_eq!(syndrome, 3, "a store to a page that is there");
            let state = &small.case.probe.state;
            assert_eq!([state[3] & WP, state[9]], [WP, 0]);
            assert_eq!((state[5] & 3 << 20, state[6] & 1 << 11), (0, 0), "SMEP, SMAP and NXE");
            // Each entry is there for its table or page; the last or one above it is not writable, and nothing
            // else is said.
            let words = &small.case.probe.words;
            let levels = u64::from(Mode::of(state[3], state[5], state[6], false).paging.levels());
            let entries = words.iter().filter(|(_, entry)| entry & 1 != 0);
            assert!(entries.count() as u64 <= levels, "{words:x?}");
            let rest = |entry: u64| entry & !(TABLES.end * 2 - 1) & !3;
            assert!(words.iter().all(|&(_, entry)| rest(entry) == 0), "{words:x?}");
            let again = ask_alone(Way::Supervisor, machine().unwrap(), &small.case.probe).unwrap();
            assert_eq!(again.map(|found| found.seen), Some(small.seen.clone()));
            shrunk += 1;
        }
    }
}
