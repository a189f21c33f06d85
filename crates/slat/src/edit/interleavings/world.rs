//! What two threads share.

use super::*;

/// Frames of two entries each, of which it is known which are out. What is given back is filled with
/// what no table may ever show.
#[derive(Debug)]
pub(super) struct Frames {
    cells: Vec<[AtomicU64; 2]>,
    free: Mutex<Vec<u64>>,
}

pub(super) const FIRST: u64 = 0x10_0000;
pub(super) const POISON: u64 = 0xdead_0000;

impl Frames {
    pub(super) fn new(count: usize) -> Frames {
        Frames {
            cells: (0..count).map(|_| [AtomicU64::new(0), AtomicU64::new(0)]).collect(),
            free: Mutex::new((0..count as u64).rev().collect()),
        }
    }

    pub(super) fn cells(&self, number: usize) -> &[AtomicU64; 2] {
        &self.cells[number]
    }

    pub(super) fn left(&self) -> usize {
        self.free.lock().unwrap().len()
    }
}

// SAFETY: the frames are this value's, and only tables lie in them.
#[allow(unsafe_code, reason = "the contract of table memory")]
unsafe impl TableMemory<u64> for Frames {
    fn table(&self, address: u64, entries: usize) -> Option<&[AtomicU64]> {
        let frame = (address.checked_sub(FIRST)? >> 12) as usize;
        self.cells.get(frame)?.get(..entries)
    }
}

impl FrameSource for Frames {
    fn take(&self, bytes: u64) -> Option<Frame> {
        let frame = self.free.lock().unwrap().pop()?;
        Some(Frame::new(FIRST + (frame << 12), bytes))
    }

    fn put(&self, frame: Frame) {
        let number = frame.address() - FIRST >> 12;
        for cell in &self.cells[number as usize] {
            cell.store(POISON | VALID | LEAF, Ordering::Relaxed);
        }
        self.free.lock().unwrap().push(number);
    }
}

/// Tables that two threads share, with what they need.
pub(super) struct World {
    pub(super) frames: &'static Frames,
    pub(super) shared: Shared<'static, Toy, Gpa, Spa, &'static Frames>,
}

pub(super) const ALL: u64 = 4 * 4096;
pub(super) const PAGE: u64 = 4096;
pub(super) const OUTPUT: u64 = 0x80_0000;

pub(super) fn leaves() -> Leaves {
    Leaves::new(&Toy, &WRITE).unwrap()
}

/// Lends a value for the process: loom's models are many, and small.
pub(super) fn lend<T>(value: T) -> &'static T {
    std::boxed::Box::leak(std::boxed::Box::new(value))
}

impl World {
    pub(super) fn new(frames: usize) -> Arc<World> {
        let frames = lend(Frames::new(frames));
        let slots = lend([AtomicU64::new(0), AtomicU64::new(0)]);
        let walkers = lend(Walkers::new(slots));
        let tables = Tables::create(Toy, frames, frames).unwrap();
        Arc::new(World { frames, shared: Shared::new(tables, walkers) })
    }

    /// Maps the first two pages before threads meet.
    pub(super) fn with_pages(frames: usize) -> Arc<World> {
        let world = World::new(frames);
        for page in [0, PAGE] {
            assert!(world.fault(page, 0).is_ok());
        }
        world
    }

    pub(super) fn fault(&self, at: u64, level: u8) -> Result<Served, Error> {
        let walker = self.shared.walker().unwrap();
        let start = at & !((1 << Toy.shift(level)) - 1);
        walker.fault(self.frames, Gpa::new(at), Spa::new(OUTPUT + start), level, &leaves())
    }

    pub(super) fn sees(&self, at: u64) -> Option<u64> {
        let walker = self.shared.walker().unwrap();
        walker.translate(Gpa::new(at)).map(|found| found.output.raw())
    }

    /// The cell that maps `at`, found as hardware finds it.
    pub(super) fn cell(&self, at: u64) -> Option<&'static AtomicU64> {
        let root = self.shared.tables().root;
        let cell = &self.frames.table(root, 2).unwrap()[(at >> 13) as usize & 1];
        match Toy.decode(cell.load(Ordering::Acquire), 1) {
            Decoded::Table { next } => {
                Some(&self.frames.table(next, 2).unwrap()[(at >> 12) as usize & 1])
            }
            Decoded::Leaf { .. } => Some(cell),
            _ => None,
        }
    }

    /// Hardware writes to `at` once: true where it could, and so set the dirty bit.
    pub(super) fn write(&self, at: u64) -> bool {
        let _guard = self.shared.walker().unwrap();
        let Some(cell) = self.cell(at) else { return false };
        let entry = cell.load(Ordering::Acquire);
        let writable = entry & (VALID | LEAF | WRITE) == VALID | LEAF | WRITE;
        let soiled = entry | DIRTY | ACCESSED;
        let relaxed = Ordering::Relaxed;
        writable && cell.compare_exchange(entry, soiled, Ordering::AcqRel, relaxed).is_ok()
    }

    /// Runs one operation to its end. Frames wait until `others` have ended where they must.
    pub(super) fn edit<V: Verb<Toy>>(
        &self,
        make: impl FnOnce(
            &Cursor<'_, '_, Toy, Gpa, Spa, &'static Frames, Frames, Faulting>,
        ) -> Operation<V>,
        witness: &mut impl Witness,
        others: Option<thread::JoinHandle<()>>,
    ) -> Operation<V> {
        self.edit_and_flush(make, witness, others, || ())
    }

    /// The same; `flushed` is called where the invalidation happens.
    pub(super) fn edit_and_flush<V: Verb<Toy>>(
        &self,
        make: impl FnOnce(
            &Cursor<'_, '_, Toy, Gpa, Spa, &'static Frames, Frames, Faulting>,
        ) -> Operation<V>,
        witness: &mut impl Witness,
        others: Option<thread::JoinHandle<()>>,
        flushed: impl Fn(),
    ) -> Operation<V> {
        self.attempt(make, witness, others, flushed).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The same, of an operation that an obstacle may end.
    pub(super) fn attempt<V: Verb<Toy>>(
        &self,
        make: impl FnOnce(
            &Cursor<'_, '_, Toy, Gpa, Spa, &'static Frames, Frames, Faulting>,
        ) -> Operation<V>,
        witness: &mut impl Witness,
        mut others: Option<thread::JoinHandle<()>>,
        flushed: impl Fn(),
    ) -> Result<Operation<V>, Error> {
        let (mut ranges, mut detached, mut pending) =
            ([Stale::default()], [Detached::default()], [Pending::default()]);
        let slots = Slots {
            ranges: &mut ranges,
            detached: &mut detached,
            pending: &mut pending,
            report: |leak| panic!("{leak}"),
        };
        let mut cursor =
            self.shared.cursor(&(), self.frames, Context::All, slots, Gpa::new(0), ALL).unwrap();
        let mut operation = make(&cursor);
        let mut outcome = Ok(());
        loop {
            let (gather, done) = match cursor.step(&mut operation, u32::MAX) {
                Ok(Step::Done) => (cursor.flush().unwrap(), true),
                Ok(Step::Yield) => continue,
                Ok(Step::Invalidate(gather)) => (gather, false),
                Err(error) => {
                    outcome = Err(error);
                    (cursor.flush().unwrap(), true)
                }
            };
            let completed = gather.complete(&mut By(|_: &Gather<'_>| flushed())).unwrap();
            let mut reclaim = match completed.reclaim(self.shared.tables()) {
                Ok(reclaim) => reclaim,
                Err(completed) => {
                    // A walker that may still look: once it has ended there is none.
                    others.take().expect("nobody else walks").join().unwrap();
                    completed.reclaim(self.shared.tables()).unwrap()
                }
            };
            while let Some(frame) = reclaim.next_frame(witness).unwrap() {
                self.frames.put(frame);
            }
            cursor.resume(reclaim.finish().unwrap()).unwrap();
            if done {
                break;
            }
        }
        let _ = cursor.finish().waive().unwrap();
        if let Some(others) = others {
            others.join().unwrap();
        }
        outcome.map(|()| operation)
    }
}
