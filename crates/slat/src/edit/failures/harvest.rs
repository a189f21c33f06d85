//! The same for harvests: cleaning and ageing, of a part of a block and a part of a table.

use core::cell::RefCell;
use std::collections::BTreeSet;

use super::*;

/// Which state is harvested.
#[derive(Clone, Copy, PartialEq, Debug)]
enum State {
    Dirty,
    Accessed,
}

const FROM: u64 = 300;
const COUNT: u64 = 400;

impl State {
    /// What hardware sets for this state alone.
    fn bits<F: Encode>(self, format: &F) -> u64 {
        match self {
            State::Dirty => format.soil().set & !format.age().clear,
            State::Accessed => format.age().clear,
        }
    }

    fn of<F: Encode>(self, format: &F, entry: u64) -> bool {
        match self {
            State::Dirty => format.is_dirty(entry),
            State::Accessed => format.is_accessed(entry),
        }
    }

    fn other(self) -> State {
        match self {
            State::Dirty => State::Accessed,
            State::Accessed => State::Dirty,
        }
    }
}

/// The leaves of each page.
fn entries<F: Encode<Word = u64>>(tables: &TablesOf<F>) -> Vec<Option<u64>> {
    let mut seen = vec![None; PAGES as usize];
    for found in tables.mappings(Gpa::new(0), PAGES * PAGE).unwrap() {
        let first = (found.start.raw() / PAGE) as usize;
        seen[first..][..(found.bytes / PAGE) as usize].fill(Some(found.entry));
    }
    seen
}

/// Tables in which every leaf is in this state, and not in the other.
fn prepared<F: Encode<Word = u64>>(
    format: F,
    leaves: &Leaves,
    state: State,
) -> (TablesOf<F>, &'static Rationed) {
    let (tables, source) = prepare(format, leaves);
    let (own, other) = (state.bits(&format), state.other().bits(&format));
    for found in tables.mappings(Gpa::new(0), PAGES * PAGE).unwrap() {
        let at = found.start.raw();
        let table = tables.table_on_the_way(at, found.level).unwrap().unwrap();
        let cells = tables.cells(table, found.level).unwrap();
        let index = (at >> format.shift(found.level)) as usize & (cells.len() - 1);
        cells[index].store(found.entry & !other | own, Ordering::Relaxed);
    }
    (tables, source)
}

/// What was done is no longer in the state, and was seen; what was not done still is. Nothing else
/// that hardware said is lost.
fn check<F: Encode<Word = u64>>(
    tables: &TablesOf<F>,
    state: State,
    reported: &RefCell<BTreeSet<u64>>,
    ended: &Ended,
    met: Option<u64>,
    what: &str,
) {
    let format = tables.format();
    let done = FROM..FROM + ended.done / PAGE;
    for (page, entry) in (0..).zip(entries(tables)) {
        let Some(entry) = entry else { continue };
        let is = state.of(format, entry);
        if done.contains(&page) {
            assert!(!is, "{what}: {page} is still {state:?}");
            assert!(reported.borrow().contains(&page), "{what}: {page} went unseen");
        } else {
            assert!(is, "{what}: {page} lost what it was");
            assert!(!reported.borrow().contains(&page), "{what}: {page} was not to be touched");
        }
        // Hardware said more of the block while it was divided.
        if met.is_some() && page < 512 {
            let other = state.other();
            assert!(other.of(format, entry), "{what}: {page} lost that it is {other:?}");
        }
    }
}

fn every_failure<F: Encode<Word = u64>, X: Mode>(format: F, leaves: &Leaves, state: State) {
    let (from, bytes) = (Gpa::new(FROM * PAGE), COUNT * PAGE);
    let reported: RefCell<BTreeSet<u64>> = RefCell::default();
    let fresh = || {
        reported.borrow_mut().clear();
        prepared(format, leaves, state)
    };
    let harvest = |tables: &mut TablesOf<F>, source, budget, steps| {
        let watch = Watch(|start: u64, level: u8, entry: u64| {
            assert!(state.of(&format, entry));
            let pages = 1 << (format.shift(level) - 12);
            reported.borrow_mut().extend(start / PAGE..start / PAGE + pages);
        });
        run::<F, _, X>(tables, source, budget, steps, |c| match state {
            State::Dirty => c.clean(from, bytes, watch),
            State::Accessed => c.age(from, bytes, watch),
        })
        .unwrap()
    };
    for frames in 0.. {
        let (mut tables, source) = fresh();
        source.left.store(frames, Ordering::Relaxed);
        let ended = harvest(&mut tables, source, u32::MAX, u32::MAX);
        check(&tables, state, &reported, &ended, None, "without a frame");
        match ended.outcome {
            Ok(()) => {
                assert!(frames > 0, "nothing was allocated");
                break;
            }
            Err(error) => assert!(matches!(error, Error::NoFrame { .. }), "{error}"),
        }
    }
    for steps in 0.. {
        let (mut tables, source) = fresh();
        let ended = harvest(&mut tables, source, 1, steps);
        check(&tables, state, &reported, &ended, None, "abandoned");
        if ended.complete {
            assert!(steps > 2);
            break;
        }
    }
    // Hardware adds the other state before each exchange, which then fails.
    let bits = state.other().bits(&format);
    for exchange in 0.. {
        let (mut tables, source) = fresh();
        MEDDLE.set(Some((exchange, bits)));
        let ended = harvest(&mut tables, source, u32::MAX, u32::MAX);
        let met = MEDDLE.take().is_none().then(|| MET.get());
        assert!(ended.complete);
        // A page was met, rather than a table on the way.
        let leaf = met.filter(|entry| format.points_at(*entry, 1).is_none());
        let met = leaf.filter(|_| bits != 0);
        check(&tables, state, &reported, &ended, met, "an exchange was lost");
        if leaf.is_none() {
            // With break-before-make the block is swapped out: there is nothing to lose.
            assert!(exchange > 0 || F::BREAKS);
            break;
        }
    }
}

/// After the other test of this memory: it is one.
pub(super) fn every_harvest() {
    let features = Features { accessed_dirty: true, physical_bits: 40, ..Features::default() };
    let format = Ept::four(features);
    let leaves = Leaves::new(&format, &ept::Attributes::new(RWX, Type::Wb)).unwrap();
    for state in [State::Dirty, State::Accessed] {
        every_failure::<_, Live>(format, &leaves, state);
        every_failure::<_, Faulting>(format, &leaves, state);
    }
    let processor = Processor { physical_bits: 40, ..Processor::default() };
    // VTCR_EL2.HA and HD: hardware sets both.
    let vtcr = Stage2::control(Granule::Four, 39, &processor) | 3 << 21;
    let format = Stage2::new(vtcr, crate::regime::arm::hcr::VM, 0, &processor).unwrap();
    assert!(format.sets_dirty_state());
    let mut attributes = arm64::Stage2Attributes::new(RWX, arm64::Memory::WRITE_BACK);
    attributes.tracked = true;
    let leaves = Leaves::new(&format, &attributes).unwrap();
    for state in [State::Dirty, State::Accessed] {
        every_failure::<_, Live>(format, &leaves, state);
        every_failure::<_, Faulting>(format, &leaves, state);
    }
}
