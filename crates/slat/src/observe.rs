//! Watching a walk: costs nothing when nobody does.

use crate::access::Access;
use crate::format::Decoded;

/// One entry that a walk read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// Which stage, as its [`crate::Stage`] counts.
    pub stage: u8,
    /// Level of the entry.
    pub level: u8,
    /// Where it lies in the stage's output space.
    pub entry_address: u64,
    /// The raw entry.
    pub entry: u64,
    /// What it decodes to.
    pub decoded: Decoded,
    /// The access this stage was translating: its purpose tells whether the walk serves the final
    /// access or a table of the stage above.
    pub access: Access,
}

/// Accessed or dirty bits that a walk set, or would set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Update {
    /// Which stage.
    pub stage: u8,
    /// Level of the entry.
    pub level: u8,
    /// Where it lies in the stage's output space.
    pub entry_address: u64,
    /// The entry that was read.
    pub old: u64,
    /// The entry with its bits set.
    pub new: u64,
    /// Whether it was stored, or only would have been ([`crate::Updates::Never`]).
    pub stored: bool,
}

/// Sees each step of a walk. Methods take `&self`, so that one observer serves all stages.
pub trait Observer {
    /// Whether updates are worth reporting when they are not made; `false` lets a walk forget its
    /// trail.
    const WATCHES: bool = true;

    /// An entry was read and decoded.
    fn step(&self, step: &Step) {
        let _ = step;
    }

    /// Accessed or dirty bits were set, or would be.
    fn update(&self, update: &Update) {
        let _ = update;
    }
}

/// Nobody watches.
impl Observer for () {
    const WATCHES: bool = false;
}

impl<O: Observer> Observer for &O {
    const WATCHES: bool = O::WATCHES;

    #[inline]
    fn step(&self, step: &Step) {
        (**self).step(step);
    }

    #[inline]
    fn update(&self, update: &Update) {
        (**self).update(update);
    }
}

/// Counts the table entries that were read from memory.
///
/// ```
/// use slat::{Observer, References};
/// let references = References::default();
/// assert_eq!(references.count(), 0);
/// ```
#[derive(Debug, Default)]
pub struct References(core::cell::Cell<u64>);

impl References {
    /// How many so far.
    pub fn count(&self) -> u64 {
        self.0.get()
    }
}

impl Observer for References {
    const WATCHES: bool = false;

    #[inline]
    fn step(&self, _: &Step) {
        self.0.set(self.0.get() + 1);
    }
}

/// Keeps the first `N` steps of a walk and counts the others.
///
/// 35 steps are the most that two stages of five levels take; 215 those of three.
#[derive(Debug)]
pub struct Steps<const N: usize> {
    steps: [core::cell::Cell<Option<Step>>; N],
    count: core::cell::Cell<usize>,
}

impl<const N: usize> Default for Steps<N> {
    fn default() -> Self {
        Steps { steps: [const { core::cell::Cell::new(None) }; N], count: Default::default() }
    }
}

impl<const N: usize> Steps<N> {
    /// The steps that were kept, in the order they were taken.
    pub fn iter(&self) -> impl Iterator<Item = Step> + '_ {
        self.steps[..self.count.get().min(N)].iter().filter_map(core::cell::Cell::get)
    }

    /// How many steps were taken, kept or not.
    pub fn count(&self) -> usize {
        self.count.get()
    }

    /// Forgets all steps.
    pub fn clear(&self) {
        self.count.set(0);
    }
}

impl<const N: usize> Observer for Steps<N> {
    const WATCHES: bool = false;

    #[inline]
    fn step(&self, step: &Step) {
        let count = self.count.get();
        if let Some(slot) = self.steps.get(count) {
            slot.set(Some(*step));
        }
        self.count.set(count + 1);
    }
}
