//! This library over the same arena, quiet and live.
//!
//! Each call makes its cursor anew except where the workload itself is one cursor's (`CURSOR`), and
//! its gather is completed by an invalidation that costs nothing, as every peer's is: frames then
//! come back by the library's own way.

use core::marker::PhantomData;
use core::sync::atomic::AtomicU64;

use ::slat::edit::{
    Cursor, Detached, Frame, FrameSource, Gather, Leaves, Live, Mode, Quiet, Served, Slots, Stale,
    Step, TableMemory, Tables, ept,
};
use ::slat::format::ept::{Ept, Features};
use ::slat::invalidate::{By, Context};
use ::slat::memory_type::x86::Type;
use ::slat::{Gpa, Permissions, Spa};

use crate::arena::arena;
use crate::peers::Peer;

/// The arena's frames, physical equal to virtual.
pub struct Identity;

// SAFETY: the arena is mapped for good, its frames are page tables of one peer at a time, and
// that peer is this one.
unsafe impl TableMemory<u64> for Identity {
    #[inline(always)]
    fn table(&self, address: u64, entries: usize) -> Option<&[AtomicU64]> {
        // SAFETY: only frames of the arena are ever linked, each as long as its table.
        Some(unsafe { core::slice::from_raw_parts(address as *const AtomicU64, entries) })
    }
}

pub struct Source;

impl FrameSource for Source {
    #[inline]
    fn take(&self, _: u64) -> Option<Frame> {
        Some(Frame::new(arena().alloc() as u64, 4096))
    }
    #[inline]
    fn put(&self, frame: Frame) {
        arena().free(frame.address() as usize);
    }
}

type EptTables = Tables<Ept, Gpa, Spa, Identity>;

const RW: Permissions = Permissions { read: true, write: true, execute: true };
const RO: Permissions = Permissions { read: true, write: false, execute: true };
const SPACE: u64 = 1 << 48;

pub struct Slat<X> {
    tables: EptTables,
    leaves: Leaves,
    small: Leaves,
    ranges: Box<[Stale]>,
    detached: Box<[Detached]>,
    mode: PhantomData<X>,
}

macro_rules! done {
    ($cursor:ident, $operation:expr) => {{
        let mut operation = $operation.unwrap();
        let Ok(Step::Done) = $cursor.step(&mut operation, u32::MAX) else { panic!("stopped") };
    }};
}

impl<X: Mode> Slat<X> {
    #[inline(always)]
    fn edit(
        &mut self,
        act: impl FnOnce(&mut Cursor<'_, '_, Ept, Gpa, Spa, Identity, Source, X>, &Leaves, &Leaves),
    ) {
        let slots = Slots {
            ranges: &mut self.ranges,
            detached: &mut self.detached,
            pending: &mut [],
            report: |leak| panic!("{leak}"),
        };
        let context = Context::Ept { eptp: 0 };
        let mut cursor =
            self.tables.cursor::<_, X>(&Source, context, slots, Gpa::new(0), SPACE).unwrap();
        act(&mut cursor, &self.leaves, &self.small);
        let gather = cursor.finish();
        if gather.is_empty() {
            return;
        }
        let completed = gather.complete(&mut By(|_: &Gather<'_>| {})).unwrap();
        if let Err(tables) = completed.ready() {
            let _ = tables.reclaim(&self.tables).unwrap().into_source(&Source).unwrap();
        }
    }
}

impl<X: Mode> Peer for Slat<X> {
    const NAME: &'static str = if X::LIVE { "slat (live)" } else { "slat" };
    const LIVE: bool = X::LIVE;

    fn new() -> Self {
        let features =
            Features { physical_bits: 48, accessed_dirty: X::LIVE, ..Features::default() };
        let format = Ept::four(features);
        let leaves = Leaves::new(&format, &ept::Attributes::new(RW, Type::Wb)).unwrap();
        Slat {
            tables: Tables::create(format, Identity, &Source).unwrap(),
            leaves,
            small: leaves.up_to(0),
            ranges: vec![Stale::default(); 32].into(),
            detached: vec![Detached::default(); 32].into(),
            mode: PhantomData,
        }
    }
    fn map_range(&mut self, va: u64, pa: u64, len: u64, huge: bool) {
        self.edit(|cursor, leaves, small| {
            let leaves = if huge { leaves } else { small };
            done!(cursor, cursor.map(Gpa::new(va), Spa::new(pa), len, leaves));
        });
    }
    #[inline]
    fn map_one(&mut self, va: u64, pa: u64) {
        let (at, output) = (Gpa::new(va), Spa::new(pa));
        let served = self.tables.fault::<_, X>(&Source, at, output, 0, &self.small);
        assert_eq!(served, Ok(Served::Installed { level: 0 }));
    }
    fn map_many(&mut self, pages: &[u64], va: u64, pa: u64) -> bool {
        self.edit(|cursor, _, small| {
            for &page in pages {
                let (at, output) = (Gpa::new(va + page * 4096), Spa::new(pa + page * 4096));
                let served = cursor.fault(at, output, 0, small);
                assert_eq!(served, Ok(Served::Installed { level: 0 }));
            }
        });
        true
    }
    #[inline]
    fn unmap_one(&mut self, va: u64) {
        let context = Context::Ept { eptp: 0 };
        let removed = self.tables.remove::<X>(Gpa::new(va), context, |leak| panic!("{leak}"));
        removed.unwrap().unwrap().complete(&mut By(|_: &Gather<'_>| {})).unwrap();
    }
    fn unmap_many(&mut self, pages: &[u64], va: u64) -> bool {
        self.edit(|cursor, _, _| {
            for &page in pages {
                let removed = cursor.remove(Gpa::new(va + page * 4096));
                assert!(matches!(removed, Ok(entry) if entry != 0));
            }
        });
        true
    }
    fn unmap_range(&mut self, va: u64, len: u64) {
        self.edit(|cursor, _, _| done!(cursor, cursor.unmap(Gpa::new(va), len, ())));
    }
    fn protect_ro(&mut self, va: u64, len: u64) {
        self.edit(|cursor, _, _| done!(cursor, cursor.protect(Gpa::new(va), len, RO, ())));
    }
    #[inline(never)]
    fn query(&self, va: u64) -> Option<u64> {
        self.tables.translate(Gpa::new(va)).map(|found| found.output.raw())
    }
    fn split_2m(&mut self, va: u64, _: u64) -> bool {
        self.edit(|cursor, _, _| done!(cursor, cursor.split(Gpa::new(va), 4096, 0)));
        true
    }
}

pub type SlatQuiet = Slat<Quiet>;
pub type SlatLive = Slat<Live>;

/// Concurrent faults on one set of tables, by one and by two threads: wall time, since the threads'
/// own clocks do not show what they make each other wait.
pub fn faults() {
    use ::slat::edit::{Arena, Shared, Walkers};
    use std::time::Instant;
    const PAGES: u64 = 1 << 18;
    let cells: Vec<AtomicU64> = (0..600 * 512).map(|_| AtomicU64::new(0)).collect();
    for threads in [1u64, 2] {
        let mut best = f64::MAX;
        for _ in 0..5 {
            let arena = Arena::<u64>::new(0x1000, &cells).unwrap();
            let slots = [const { AtomicU64::new(0) }; 2];
            let walkers = Walkers::new(&slots);
            let format = Ept::four(Features { accessed_dirty: true, ..Features::default() });
            let leaves = Leaves::new(&format, &ept::Attributes::new(RW, Type::Wb)).unwrap();
            let tables: Tables<_, Gpa, Spa, _> = Tables::create(format, &arena, &arena).unwrap();
            let shared = Shared::new(tables, &walkers);
            let start = Instant::now();
            std::thread::scope(|scope| {
                for thread in 0..threads {
                    let (shared, arena, leaves) = (&shared, &arena, &leaves);
                    scope.spawn(move || {
                        // Pages interleave, so that the threads meet in every table.
                        for page in (thread..PAGES).step_by(threads as usize) {
                            let page = page.wrapping_mul(0x9e37_79b1) % PAGES;
                            let walker = shared.walker().unwrap();
                            let (at, to) = (Gpa::new(page << 12), Spa::new(page << 12));
                            let _ = walker.fault(arena, at, to, 0, leaves).unwrap();
                        }
                    });
                }
            });
            best = best.min(start.elapsed().as_nanos() as f64 / PAGES as f64);
        }
        println!("faults by {threads} threads, each with its guard: {best:.1} ns/page wall");
    }
}
