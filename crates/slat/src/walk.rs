//! The walker. There is one: two-dimensional walks are this walk over a memory that is itself
//! walked ([`Nested`]).

use core::marker::PhantomData;

use crate::access::Access;
use crate::address::Address;
use crate::fault::{Cause, Failed, Fault, Reserved, Why};
use crate::format::{Decoded, Format, Found, MAX_LEVELS, Path, Start};
use crate::memory::{EntryLayout, Memory, Reached, Value};
use crate::observe::{Observer, Step, Update};
use crate::regime::Regime;

/// How often a walk starts over because another writer changed an entry under its update. Hardware
/// has no such bound; a hostile memory must not hold a software walker for ever.
const RESTARTS: u32 = 1024;

/// When a stage's accessed and dirty bits are written. Whether the stage maintains them at all is
/// state of its format.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum Updates {
    /// Never; what would be written is reported to the observer.
    #[default]
    Never,
    /// Entry by entry as the walk goes, even where it later fails.
    AsWalked,
    /// Once this stage's walk and permission check have succeeded.
    OnSuccess,
}

/// One stage of translation: a format, its root, and when accessed and dirty bits are written.
/// `I` is the space it translates from, `O` the one it translates to and holds its tables in.
pub struct Stage<F: Format, I, O> {
    /// How the tables are encoded.
    pub format: F,
    /// What the root registers hold.
    pub root: F::Root,
    /// When accessed and dirty bits are written.
    pub updates: Updates,
    /// How steps and faults name this stage: 1, 2, and 3 for the host's own under nested
    /// virtualization.
    pub number: u8,
    spaces: PhantomData<fn(I) -> O>,
}

impl<F: Format, I, O> Clone for Stage<F, I, O> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F: Format, I, O> Copy for Stage<F, I, O> {}

impl<F: Format, I: Address, O: Address> Stage<F, I, O> {
    /// The stage with these tables, numbered as its format is, which never writes
    /// accessed and dirty bits.
    pub fn new(format: F, root: F::Root) -> Self {
        let number = format.stage();
        Stage { format, root, updates: Updates::Never, number, spaces: PhantomData }
    }

    /// The same stage, which writes accessed and dirty bits at this time.
    #[must_use]
    pub fn with_updates(self, updates: Updates) -> Self {
        Stage { updates, ..self }
    }

    /// The same stage, named by this number.
    #[must_use]
    pub fn with_number(self, number: u8) -> Self {
        Stage { number, ..self }
    }
}

/// What one stage's walk found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapped<O> {
    /// The address in the next space.
    pub output: O,
    /// The leaf.
    pub found: Found,
}

/// Walks one stage's tables in `memory` and checks that they permit `access`.
///
/// `input` is the address to translate; `regime` the state that belongs to no one stage; `observer`
/// sees every entry that is read (`&()` for nobody).
///
/// # Errors
/// [`Failed::Here`] where this stage faults, [`Failed::Below`] where `memory` does.
#[inline]
pub fn walk<F, I, O, M, W>(
    stage: &Stage<F, I, O>,
    memory: &mut M,
    input: I,
    access: &Access,
    regime: &Regime,
    observer: &W,
) -> Result<Mapped<O>, Failed<I, M::Fault>>
where
    F: Format,
    I: Address,
    O: Address,
    M: Memory<Address = O>,
    W: Observer,
{
    run(Walk { stage, from: None, restarts: true, memory, input, access, regime, observer })
}

/// One walk, its updates compiled in only where some are to be made or watched.
#[inline(always)]
fn run<F, I, O, M, W>(mut walk: Walk<'_, F, I, O, M, W>) -> Result<Mapped<O>, Failed<I, M::Fault>>
where
    F: Format,
    I: Address,
    O: Address,
    M: Memory<Address = O>,
    W: Observer,
{
    if W::WATCHES || walk.stage.updates != Updates::Never {
        return walk_with_updates(walk);
    }
    walk.attempt::<false>()
}

/// An entry asked for a restart at the ordinary root, which happens once. Apart from the walk, so
/// that what a walk knows can stay in registers.
#[cold]
#[inline(never)]
fn restart<F, I, O, M, W>(
    stage: &Stage<F, I, O>,
    memory: &mut M,
    input: I,
    access: &Access,
    regime: &Regime,
    observer: &W,
) -> Result<Mapped<O>, Failed<I, M::Fault>>
where
    F: Format,
    I: Address,
    O: Address,
    M: Memory<Address = O>,
    W: Observer,
{
    let stage = &Stage { format: stage.format.after_restart(), ..*stage };
    run(Walk { stage, from: None, restarts: false, memory, input, access, regime, observer })
}

/// Where a walk takes up what a cache of table entries remembers: the entries above `level` are not
/// read again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Partial {
    /// Level of the first entry to read.
    pub level: u8,
    /// Address of its table in the output space.
    pub table: u64,
    /// What the entries above said.
    pub path: Path,
}

/// As [`walk`], but begins at a table that a paging-structure cache remembers. Accessed bits of the
/// entries above are left as they are: a processor set them when it cached the entries.
///
/// # Errors
/// As [`walk`].
#[inline]
pub fn walk_from<F, I, O, M, W>(
    stage: &Stage<F, I, O>,
    from: &Partial,
    memory: &mut M,
    input: I,
    access: &Access,
    regime: &Regime,
    observer: &W,
) -> Result<Mapped<O>, Failed<I, M::Fault>>
where
    F: Format,
    I: Address,
    O: Address,
    M: Memory<Address = O>,
    W: Observer,
{
    run(Walk { stage, from: Some(from), restarts: false, memory, input, access, regime, observer })
}

fn walk_with_updates<F, I, O, M, W>(
    mut walk: Walk<'_, F, I, O, M, W>,
) -> Result<Mapped<O>, Failed<I, M::Fault>>
where
    F: Format,
    I: Address,
    O: Address,
    M: Memory<Address = O>,
    W: Observer,
{
    let mut outcome = walk.attempt::<true>();
    for _ in 1..RESTARTS {
        match outcome {
            // An update met a changed entry: the walk starts over.
            Err(Failed::Here(Fault { cause: Cause::Contended, .. })) => {
                outcome = walk.attempt::<true>();
            }
            _ => break,
        }
    }
    outcome
}

struct Walk<'a, F: Format, I, O, M, W> {
    stage: &'a Stage<F, I, O>,
    from: Option<&'a Partial>,
    /// Whether an entry may ask for the walk to start over at the ordinary root.
    restarts: bool,
    memory: &'a mut M,
    input: I,
    access: &'a Access,
    regime: &'a Regime,
    observer: &'a W,
}

/// Entries on the way that may have to be updated once the walk has succeeded.
#[derive(Clone, Copy)]
struct Trail {
    entries: [(u64, u64, u8); MAX_LEVELS],
    len: usize,
}

impl<F, I, O, M, W> Walk<'_, F, I, O, M, W>
where
    F: Format,
    I: Address,
    O: Address,
    M: Memory<Address = O>,
    W: Observer,
{
    #[inline(always)]
    fn attempt<const UPDATES: bool>(&mut self) -> Result<Mapped<O>, Failed<I, M::Fault>> {
        let half;
        let format = if F::HALVES {
            half = self.stage.format.half(self.input.raw());
            &half
        } else {
            &self.stage.format
        };
        let layout = format.layout();
        let start = format.begin(&self.stage.root, self.input.raw(), self.access, self.regime);
        let (mut table, mut level, input) = match start {
            Ok(Start::Table { table, level, input }) => (table, level, input),
            Ok(Start::Flat { output }) => return self.flat(output),
            Err((level, cause)) => {
                return Err(Failed::Here(self.fault_at(level, cause)));
            }
        };
        let mut trail = Trail { entries: [(0, 0, 0); MAX_LEVELS], len: 0 };
        let mut path = Path::START;
        let mut index = input >> format.shift(level);
        if let Some(from) = self.from {
            if from.level < level {
                index = (input >> format.shift(from.level))
                    & ((1 << format.index_bits(from.level)) - 1);
            }
            (level, table, path) = (from.level.min(level), from.table, from.path);
        }
        loop {
            let entry_address = table.wrapping_add(index * layout.size.bytes());
            let read = self
                .memory
                .read(
                    O::new(entry_address),
                    layout,
                    &self.access.table_read(level, self.input.raw()),
                )
                .map_err(Failed::Below)?;
            let Value { value: entry, reached: Reached { leaf: via } } = read;
            path.via &= via;
            let decoded = format.decode(entry, level);
            self.observer.step(&Step {
                stage: self.stage.number,
                level,
                entry_address,
                entry,
                decoded,
                access: *self.access,
            });
            let cause = match decoded {
                Decoded::Table { next } if level > 0 => {
                    format.join(&mut path, entry, level);
                    if UPDATES {
                        if self.stage.updates == Updates::AsWalked {
                            self.update(entry_address, entry, level, false)?;
                        } else {
                            trail.push(entry_address, entry, level);
                        }
                    }
                    level -= 1;
                    table = next;
                    index = (input >> format.shift(level)) & ((1 << format.index_bits(level)) - 1);
                    continue;
                }
                Decoded::Leaf { base, shift } => {
                    let input_address = self.input.raw();
                    let kind = self.access.kind;
                    let found =
                        Found { entry, level, base, shift, path, input: input_address, kind };
                    match format.check(&found, self.access, self.regime) {
                        Ok(()) => {
                            if UPDATES {
                                for &(address, entry, level) in &trail.entries[..trail.len] {
                                    self.update(address, entry, level, false)?;
                                }
                                self.update(entry_address, entry, level, true)?;
                            }
                            let output = O::new(base | (input & ((1u64 << shift) - 1)));
                            return Ok(Mapped { output, found });
                        }
                        Err(cause) => cause,
                    }
                }
                Decoded::Empty => Cause::Empty,
                Decoded::Reserved(reserved) => Cause::Reserved(reserved),
                Decoded::Restart if self.restarts => {
                    return restart(
                        self.stage,
                        self.memory,
                        self.input,
                        self.access,
                        self.regime,
                        self.observer,
                    );
                }
                Decoded::Restart => Cause::Restart,
                // No format decodes so; a walk must be bounded even if one did.
                Decoded::Table { .. } => {
                    Cause::Reserved(Reserved { why: Why::Encoding, bits: entry })
                }
            };
            return Err(Failed::Here(Fault {
                stage: self.stage.number,
                input: self.input,
                level,
                entry,
                entry_address,
                path,
                cause,
                access: *self.access,
            }));
        }
    }

    /// The stage is off: nothing is read, the output is the input.
    #[inline(always)]
    fn flat(&self, output: u64) -> Result<Mapped<O>, Failed<I, M::Fault>> {
        let found = Found {
            entry: 0,
            level: 0,
            base: 0,
            shift: 64,
            path: Path::START,
            input: self.input.raw(),
            kind: self.access.kind,
        };
        match self.stage.format.check(&found, self.access, self.regime) {
            Ok(()) => Ok(Mapped { output: O::new(output), found }),
            Err(cause) => Err(Failed::Here(self.fault_at(0, cause))),
        }
    }

    /// Sets accessed and dirty bits of one entry, or reports what would be set.
    fn update(
        &mut self,
        entry_address: u64,
        old: u64,
        level: u8,
        is_leaf: bool,
    ) -> Result<(), Failed<I, M::Fault>> {
        let new = self.stage.format.touched(old, level, is_leaf, self.access);
        if new == old {
            return Ok(());
        }
        let stored = self.stage.updates != Updates::Never;
        if stored {
            let layout = self.stage.format.layout();
            let won = self
                .memory
                .compare_exchange(
                    O::new(entry_address),
                    layout,
                    old,
                    new,
                    &self.access.table_update(level, self.input.raw()),
                )
                .map_err(Failed::Below)?;
            if !won {
                return Err(Failed::Here(self.fault_at(level, Cause::Contended)));
            }
        }
        let stage = self.stage.number;
        self.observer.update(&Update { stage, level, entry_address, old, new, stored });
        Ok(())
    }

    /// A fault without an entry.
    #[inline(always)]
    fn fault_at(&self, level: u8, cause: Cause) -> Fault<I> {
        Fault {
            stage: self.stage.number,
            input: self.input,
            level,
            entry: 0,
            entry_address: 0,
            path: Path::START,
            cause,
            access: *self.access,
        }
    }
}

impl Trail {
    #[inline]
    fn push(&mut self, entry_address: u64, entry: u64, level: u8) {
        if let Some(slot) = self.entries.get_mut(self.len) {
            *slot = (entry_address, entry, level);
            self.len += 1;
        }
    }
}

/// A memory whose every access is first translated by a stage: what turns the one walker into a
/// two-dimensional one, and two of these into a three-dimensional one.
pub struct Nested<'a, F: Format, I, M: Memory, W> {
    stage: &'a Stage<F, I, M::Address>,
    memory: M,
    regime: &'a Regime,
    observer: &'a W,
}

impl<'a, F: Format, I: Address, M: Memory, W: Observer> Nested<'a, F, I, M, W> {
    /// The memory that `stage` presents to the stage above, itself held in `memory`.
    #[inline]
    pub fn new(
        stage: &'a Stage<F, I, M::Address>,
        memory: M,
        regime: &'a Regime,
        observer: &'a W,
    ) -> Self {
        Nested { stage, memory, regime, observer }
    }

    /// Translates one address for an access that is not to a table: the last step of a nested walk.
    ///
    /// # Errors
    /// As [`walk`].
    #[inline]
    pub fn locate(
        &mut self,
        address: I,
        access: &Access,
    ) -> Result<Mapped<M::Address>, Failed<I, M::Fault>> {
        walk(self.stage, &mut self.memory, address, access, self.regime, self.observer)
    }

    /// As [`locate`](Nested::locate), with accessed and dirty bits written at this time.
    ///
    /// # Errors
    /// As [`walk`].
    pub fn locate_with(
        &mut self,
        address: I,
        access: &Access,
        updates: Updates,
    ) -> Result<Mapped<M::Address>, Failed<I, M::Fault>> {
        let stage = self.stage.with_updates(updates);
        walk(&stage, &mut self.memory, address, access, self.regime, self.observer)
    }

    /// The memory below.
    #[inline]
    pub fn below(&mut self) -> &mut M {
        &mut self.memory
    }
}

impl<F: Format, I: Address, M: Memory, W: Observer> Memory for Nested<'_, F, I, M, W> {
    type Address = I;
    type Fault = Failed<I, M::Fault>;

    #[inline]
    fn read(
        &mut self,
        address: I,
        layout: EntryLayout,
        access: &Access,
    ) -> Result<Value, Self::Fault> {
        let mapped = self.locate(address, access)?;
        let read = self.memory.read(mapped.output, layout, access).map_err(Failed::Below)?;
        let leaf = if mapped.found.is_flat() { u64::MAX } else { mapped.found.entry };
        Ok(Value { value: read.value, reached: Reached { leaf } })
    }

    #[inline]
    fn compare_exchange(
        &mut self,
        address: I,
        layout: EntryLayout,
        current: u64,
        new: u64,
        access: &Access,
    ) -> Result<bool, Self::Fault> {
        let mapped = self.locate(address, access)?;
        self.memory
            .compare_exchange(mapped.output, layout, current, new, access)
            .map_err(Failed::Below)
    }
}
