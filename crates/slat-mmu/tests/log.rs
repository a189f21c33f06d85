//! Page-modification logging beside Intel SDM 3C 30.3.6.

use slat::format::ept::{self, Ept};
use slat::format::flat::Flat;
use slat::{EntryLayout, Gpa, Gva, Kind, Regime, SliceMemory, Spa, Stage, Updates};
use slat_mmu::tlb::{Space, Tag};
use slat_mmu::walker::{Caches, Context, Globals, LOG_ENTRIES, Log, Stopped, WalkerConfig};

const DIRTY: u64 = 1 << 9;
const ACCESSED: u64 = 1 << 8;

#[test]
fn dirty_flags_are_logged_until_the_log_is_full() {
    // EPT at pages 0 to 3, one table more at 4: 1,024 pages of 4 KiB, and a page of 2 MiB behind them.
    let mut bytes = vec![0; 8 * 4096];
    let mut memory = SliceMemory::new(Spa::new(0), &mut bytes);
    let set = |memory: &mut SliceMemory<'_, Spa>, at: u64, entry: u64| {
        memory.poke(Spa::new(at), EntryLayout::LE64, entry).unwrap();
    };
    for (at, entry) in
        [(0, 0x1007), (0x1000, 0x2007), (0x2000, 0x3007), (0x2008, 0x4007), (0x2010, 0x40_00b7)]
    {
        set(&mut memory, at, entry);
    }
    for n in 0..1024 {
        set(&mut memory, 0x3000 + 8 * n, (1 << 30) + (n << 12) + 0x37);
    }
    let features = ept::Features { accessed_dirty: true, ..ept::Features::default() };
    let stage1 = Stage::<_, Gva, Gpa>::new(Flat::X86_UNPAGED, ());
    let stage2 = Stage::<_, Gpa, Spa>::new(Ept::four(features), 0).with_updates(Updates::OnSuccess);
    let own = Tag::new(1).unwrap();
    let context = Context {
        stage1: &stage1,
        stage2: &stage2,
        regime: &Regime::default(),
        space: Space { own, global: own },
        vm: own,
        globals: Globals::None,
        dirty_tracked: true,
    };
    let mut caches = Caches::new(&WalkerConfig::NONE).unwrap();
    let mut log = Log::default();
    let mut access = |log: &mut Log, memory: &mut SliceMemory<'_, Spa>, gpa: u64, kind| {
        caches.walk_logged(log, &context, memory, Gva::new(gpa), kind, false, &())
    };
    let entry = |memory: &mut SliceMemory<'_, Spa>, n: u64| {
        let at = Spa::new(0x3000 + 8 * n);
        slat::Memory::read(memory, at, EntryLayout::LE64, &slat::Access::default()).unwrap().value
    };
    assert_eq!(log.index(), 511);
    // A load sets the accessed flag, and logs nothing.
    access(&mut log, &mut memory, 0x5123, Kind::Read).unwrap();
    assert_eq!(entry(&mut memory, 5) & (ACCESSED | DIRTY), ACCESSED);
    assert_eq!(log.pages(), [0; 0]);
    // The first store logs the page; the second finds the flag set.
    access(&mut log, &mut memory, 0x5123, Kind::Write).unwrap();
    access(&mut log, &mut memory, 0x5fff, Kind::Write).unwrap();
    assert_eq!(log.pages(), [0x5000]);
    assert_eq!(log.index(), 510);
    // Of a large page, the 4 KiB that were stored to, once.
    access(&mut log, &mut memory, 0x41_2345, Kind::Write).unwrap();
    access(&mut log, &mut memory, 0x41_9000, Kind::Write).unwrap();
    assert_eq!(log.pages(), [0x5000, 0x41_2000]);
    for n in 100..610 {
        access(&mut log, &mut memory, n << 12, Kind::Write).unwrap();
    }
    assert_eq!((log.pages().len(), log.index()), (LOG_ENTRIES, 0xffff));
    // The next flag does not fit: nothing is set, not even an accessed flag.
    for kind in [Kind::Write, Kind::Read] {
        let stopped = access(&mut log, &mut memory, 700 << 12, kind);
        assert_eq!(stopped.err(), Some(Stopped::LogFull));
        assert_eq!(entry(&mut memory, 700) & (ACCESSED | DIRTY), 0);
    }
    // What sets no flag goes on; and all does once the hypervisor has emptied the log.
    access(&mut log, &mut memory, 0x5000, Kind::Write).unwrap();
    log.clear();
    access(&mut log, &mut memory, 700 << 12, Kind::Write).unwrap();
    assert_eq!(log.pages(), [700 << 12]);
}
