//! Ids that hardware tags translations with, handed out by generation: VMIDs, VPIDs, ASIDs.
//!
//! There are fewer ids than guests that ever live. An id stays with its guest while its generation
//! lasts. When ids run out a new generation begins: what runs at that moment keeps its id, every
//! other id is free again, and every CPU flushes all ids before it runs anything of the new
//! generation.

/// An id with its generation, kept with the guest it was given to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct Id {
    generation: u64,
    value: u32,
}

impl Id {
    /// No id yet.
    pub const NONE: Id = Id { generation: 0, value: 0 };

    /// The number for the hardware.
    pub const fn value(self) -> u32 {
        self.value
    }
}

/// What the allocator keeps for each CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CpuIds {
    /// What runs there, or ran there last.
    active: Id,
    /// The number that it kept over a rollover.
    kept: u32,
    /// It must flush every id before it runs anything.
    flush: bool,
}

/// An id to run with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "the id must be kept, and a flush that is asked for must be done"]
pub struct Assigned {
    /// To be kept with the guest for the next time.
    pub id: Id,
    /// This CPU flushes every id before it enters the guest.
    pub flush: bool,
}

/// The allocator, over storage that the caller lends and behind the caller's lock.
///
/// ```
/// use slat::invalidate::ids::{CpuIds, Id, Ids};
/// let (mut map, mut cpus) = ([0u64; 1], [CpuIds::default(); 1]);
/// let mut ids = Ids::new(1, 3, &mut map, &mut cpus).unwrap(); // VMIDs 1, 2 and 3; 0 is the host's
/// let a = ids.assign(0, Id::NONE);
/// let b = ids.assign(0, Id::NONE);
/// assert_ne!(a.id.value(), b.id.value());
/// assert_eq!(ids.assign(0, a.id).id, a.id, "it stays while its generation lasts");
/// let c = ids.assign(0, Id::NONE);
/// assert!(!c.flush);
/// let d = ids.assign(0, Id::NONE);
/// assert!(d.flush, "there was no fourth: a new generation begins");
/// ```
#[derive(Debug)]
pub struct Ids<'a> {
    first: u32,
    last: u32,
    next: u32,
    generation: u64,
    /// Bit n: the id `first + n` is taken in this generation.
    taken: &'a mut [u64],
    cpus: &'a mut [CpuIds],
}

impl<'a> Ids<'a> {
    /// An allocator of the ids `first..=last`, for as many CPUs as `cpus` has. `taken` has a bit an
    /// id. `None` where it is too small, where there are not more ids than CPUs, or `first` is 0
    /// and so cannot be told from none.
    pub fn new(
        first: u32,
        last: u32,
        taken: &'a mut [u64],
        cpus: &'a mut [CpuIds],
    ) -> Option<Self> {
        let count = u64::from(last).checked_sub(u64::from(first))? + 1;
        if first == 0 || taken.len() as u64 * 64 < count || count <= cpus.len() as u64 {
            return None;
        }
        taken.fill(0);
        cpus.fill(CpuIds::default());
        Some(Ids { first, last, next: first, generation: 1, taken, cpus })
    }

    /// The id for a guest that is about to run on `cpu`, which held `held` before ([`Id::NONE`] the
    /// first time).
    ///
    /// # Panics
    /// Where `cpu` is not below the number of CPUs.
    pub fn assign(&mut self, cpu: usize, held: Id) -> Assigned {
        let id = if held.generation == self.generation { held } else { self.renew(held) };
        let state = &mut self.cpus[cpu];
        state.active = id;
        // Its own number is marked as taken: there is nothing to keep beyond this generation's.
        state.kept = 0;
        let flush = core::mem::take(&mut state.flush);
        Assigned { id, flush }
    }

    fn renew(&mut self, held: Id) -> Id {
        let kept = held.value != 0
            && self.cpus.iter().any(|cpu| cpu.kept == held.value && cpu.active == held);
        if kept {
            // It ran over the rollover and kept its number, on every CPU where it did.
            let id = Id { generation: self.generation, value: held.value };
            for cpu in self.cpus.iter_mut().filter(|cpu| cpu.active == held) {
                cpu.active = id;
            }
            return id;
        }
        let value = self.free().unwrap_or_else(|| {
            self.roll_over();
            // There are more ids than CPUs, and at most one a CPU is kept.
            self.free().unwrap_or(self.first)
        });
        self.mark(value);
        self.next = if value == self.last { self.first } else { value + 1 };
        Id { generation: self.generation, value }
    }

    fn is_taken(&self, value: u32) -> bool {
        let index = (value - self.first) as usize;
        self.taken[index / 64] >> (index % 64) & 1 != 0
    }

    fn mark(&mut self, value: u32) {
        let index = (value - self.first) as usize;
        self.taken[index / 64] |= 1 << (index % 64);
    }

    fn free(&self) -> Option<u32> {
        (self.next..=self.last).chain(self.first..self.next).find(|value| !self.is_taken(*value))
    }

    fn roll_over(&mut self) {
        self.generation += 1;
        self.taken.fill(0);
        self.next = self.first;
        for cpu in 0..self.cpus.len() {
            let CpuIds { active, .. } = self.cpus[cpu];
            // What runs there keeps its number until the CPU takes up something else.
            let kept = active.value;
            self.cpus[cpu].kept = kept;
            self.cpus[cpu].flush = true;
            if kept != 0 {
                self.mark(kept);
            }
        }
    }
}
