//! Accessed and dirty bits while others write the same tables (Intel SDM 3A 5.8, AMD APM 2 5.4.2: a processor
//! sets them by locked operations on the entry that it read).

use slat::format::x86::Controls;
use slat::format::x86::long::{Long, Processor};
use slat::{
    Access, Cause, EntryLayout, Failed, Gva, Kind, Mapped, Memory, Outside, Privilege, Regime,
    SliceMemory, Spa, Stage, Updates, Value, walk,
};

const PAGE: u64 = 0x1000;
/// Where the leaf is.
const LEAF: Spa = Spa::new(4 * PAGE);

/// A memory in which another writer puts `others` into the leaf, one before each update of it.
struct Written<'a> {
    memory: SliceMemory<'a, Spa>,
    others: &'a mut dyn Iterator<Item = u64>,
}

impl Memory for Written<'_> {
    type Address = Spa;
    type Fault = Outside<Spa>;

    fn read(
        &mut self,
        address: Spa,
        layout: EntryLayout,
        access: &Access,
    ) -> Result<Value, Outside<Spa>> {
        self.memory.read(address, layout, access)
    }

    fn compare_exchange(
        &mut self,
        address: Spa,
        layout: EntryLayout,
        current: u64,
        new: u64,
        access: &Access,
    ) -> Result<bool, Outside<Spa>> {
        if address == LEAF
            && let Some(other) = self.others.next()
        {
            self.memory.poke(LEAF, layout, other)?;
        }
        self.memory.compare_exchange(address, layout, current, new, access)
    }
}

type Found = Result<Mapped<Spa>, Failed<Gva, Outside<Spa>>>;

/// A write through four levels whose leaf is a page at 0x9000, not yet accessed: what is found, and the leaf
/// afterwards.
fn written(updates: Updates, others: &mut dyn Iterator<Item = u64>) -> (Found, u64) {
    let mut bytes = vec![0; 5 * PAGE as usize];
    let mut memory = SliceMemory::new(Spa::new(0), &mut bytes);
    for n in 1..4 {
        let next = (PAGE * (n + 1)) | 0x27;
        memory.poke(Spa::new(PAGE * n), EntryLayout::LE64, next).unwrap();
    }
    memory.poke(LEAF, EntryLayout::LE64, 0x9003).unwrap();
    let long = Long::four(Controls::default(), Processor::default());
    let stage = Stage::<_, Gva, Spa>::new(long, PAGE).with_updates(updates);
    let access = Access::new(Kind::Write, Privilege::Supervisor);
    let mut memory = Written { memory, others };
    let found = walk(&stage, &mut memory, Gva::new(0x123), &access, &Regime::default(), &());
    let leaf = memory.read(LEAF, EntryLayout::LE64, &access).unwrap().value;
    (found, leaf)
}

const WRITING: [Updates; 2] = [Updates::AsWalked, Updates::OnSuccess];

#[test]
fn alone_the_update_is_made() {
    for updates in WRITING {
        let (found, leaf) = written(updates, &mut std::iter::empty());
        assert_eq!((found.unwrap().output, leaf), (Spa::new(0x9123), 0x9063), "{updates:?}");
    }
    let (found, leaf) = written(Updates::Never, &mut std::iter::empty());
    assert_eq!((found.unwrap().output, leaf), (Spa::new(0x9123), 0x9003));
}

/// The entry that another writer put there is the one that counts: bits are never set in it by a walk that
/// read another.
#[test]
fn a_walk_whose_entry_was_replaced_starts_over() {
    for updates in WRITING {
        for times in 1..4 {
            let mut others = (1..=times).map(|n| 0x9003 + n * PAGE);
            let (found, leaf) = written(updates, &mut others);
            let page = 0x9000 + times * PAGE;
            assert_eq!(found.unwrap().output, Spa::new(page + 0x123), "{updates:?} {times}");
            assert_eq!(leaf, page | 0x63, "{updates:?} {times}");
        }
        // Replaced by nothing.
        let (found, leaf) = written(updates, &mut std::iter::once(0));
        let Err(Failed::Here(fault)) = found else { panic!("{found:?}") };
        assert_eq!((fault.cause, leaf), (Cause::Empty, 0), "{updates:?}");
    }
}

/// A software walker is not held for ever.
#[test]
fn a_writer_that_never_stops_ends_the_walk() {
    for updates in WRITING {
        let (found, _) = written(updates, &mut (1..).map(|n| 0x9003 + n * PAGE));
        let Err(Failed::Here(fault)) = found else { panic!("{found:?}") };
        assert_eq!((fault.cause, fault.level), (Cause::Contended, 0), "{updates:?}");
    }
}
