//! Whole translations: one walk after another, over memory that is itself walked.

use crate::access::{Access, Kind};
use crate::address::{Address, Gpa, Gva, L2Gpa, Spa};
use crate::fault::{Cause, Failed};
use crate::format::Format;
use crate::memory::Memory;
use crate::memory_type::{MemoryType, effective};
use crate::observe::Observer;
use crate::regime::Regime;
use crate::walk::{Mapped, Nested, Stage, walk};

/// What a two-stage walk found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation<I = Gpa, O = Spa> {
    /// Stage 1's part.
    pub stage1: Mapped<I>,
    /// Stage 2's part, for the final access.
    pub stage2: Mapped<O>,
}

impl<I: Address, O: Address> Translation<I, O> {
    /// The address in the outer space, where the access lands.
    #[inline]
    pub fn output(&self) -> O {
        self.stage2.output
    }

    /// log2 of the page size that a TLB may keep: the smaller of the two stages' pages; 64 where
    /// both stages are off.
    #[inline]
    pub fn shift(&self) -> u8 {
        self.stage1.found.shift.min(self.stage2.found.shift)
    }

    /// The effective memory type, by the rules of the two formats.
    pub fn memory_type<F1: Format, F2: Format>(
        &self,
        stage1: &F1,
        stage2: &F2,
        regime: &Regime,
    ) -> MemoryType {
        effective(
            stage1.memory_type(&self.stage1.found, regime),
            stage2.memory_type(&self.stage2.found, regime),
            self.output().raw(),
            regime,
        )
    }
}

/// Why a two-stage walk failed: `Here` is stage 1's own fault, `Below(Here)` stage 2's (whose
/// access tells whether it was for a stage-1 table or the final access), `Below(Below)` the bus's.
pub type TwoStageFailure<I, O, B> = Failed<I, Failed<O, B>>;

/// Translates a guest virtual address through both stages and checks `access` in both.
///
/// Stage 1's tables are read through stage 2. `observer` sees every entry of both stages.
///
/// # Errors
/// See [`TwoStageFailure`].
#[inline]
pub fn translate<F1, F2, A, B, C, M, W>(
    stage1: &Stage<F1, A, B>,
    stage2: &Stage<F2, B, C>,
    memory: &mut M,
    address: A,
    access: &Access,
    regime: &Regime,
    observer: &W,
) -> Result<Translation<B, C>, TwoStageFailure<A, B, M::Fault>>
where
    F1: Format,
    F2: Format,
    A: Address,
    B: Address,
    C: Address,
    M: Memory<Address = C>,
    W: Observer,
{
    let mut guest = Nested::new(stage2, memory, regime, observer);
    let stage1_found = walk(stage1, &mut guest, address, access, regime, observer)?;
    let access = through(stage1, &stage1_found, address, access, regime);
    let stage2_found = guest.locate(stage1_found.output, &access).map_err(Failed::Below)?;
    Ok(Translation { stage1: stage1_found, stage2: stage2_found })
}

/// What a three-stage walk (nested virtualization) found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NestedTranslation {
    /// The nested guest's own stage.
    pub stage1: Mapped<L2Gpa>,
    /// The guest hypervisor's second stage.
    pub stage2: Mapped<Gpa>,
    /// The host's second stage.
    pub stage3: Mapped<Spa>,
}

/// Why a three-stage walk failed, outermost stage first.
pub type NestedFailure<B> = Failed<Gva, Failed<L2Gpa, Failed<Gpa, B>>>;

/// Translates a nested guest's virtual address through three stages: its own, its hypervisor's and
/// the host's, each stage's tables read through all stages below.
///
/// # Errors
/// See [`NestedFailure`].
#[expect(clippy::too_many_arguments, reason = "three stages and the four things a walk takes")]
pub fn translate_nested<F1, F2, F3, M, W>(
    stage1: &Stage<F1, Gva, L2Gpa>,
    stage2: &Stage<F2, L2Gpa, Gpa>,
    stage3: &Stage<F3, Gpa, Spa>,
    memory: &mut M,
    address: Gva,
    access: &Access,
    regime: &Regime,
    observer: &W,
) -> Result<NestedTranslation, NestedFailure<M::Fault>>
where
    F1: Format,
    F2: Format,
    F3: Format,
    M: Memory<Address = Spa>,
    W: Observer,
{
    let mut l2 =
        Nested::new(stage2, Nested::new(stage3, memory, regime, observer), regime, observer);
    let first = walk(stage1, &mut l2, address, access, regime, observer)?;
    let access = through(stage1, &first, address, access, regime);
    let second = l2.locate(first.output, &access).map_err(Failed::Below)?;
    let third = l2
        .below()
        .locate(second.output, &access)
        .map_err(|below| Failed::Below(Failed::Below(below)))?;
    Ok(NestedTranslation { stage1: first, stage2: second, stage3: third })
}

/// The final access as the stage below sees it.
#[inline]
fn through<F: Format, A: Address, B: Address>(
    stage1: &Stage<F, A, B>,
    found: &Mapped<B>,
    address: A,
    access: &Access,
    regime: &Regime,
) -> Access {
    Access {
        page: Some(stage1.format.page(&found.found, regime)),
        origin: Some(address.raw()),
        ..*access
    }
}

/// What one privilege may do through the leaves that a walk found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Permissions {
    /// Data loads.
    pub read: bool,
    /// Data stores.
    pub write: bool,
    /// Instruction fetches.
    pub execute: bool,
}

impl Permissions {
    /// What `access`'s privilege may do through one stage's leaf.
    pub fn of<F: Format, O>(
        format: &F,
        mapped: &Mapped<O>,
        access: &Access,
        regime: &Regime,
    ) -> Permissions {
        let may = |kind: Kind| -> bool {
            let outcome: Result<(), Cause> =
                format.check(&mapped.found, &access.as_kind(kind), regime);
            outcome.is_ok()
        };
        Permissions { read: may(Kind::Read), write: may(Kind::Write), execute: may(Kind::Execute) }
    }

    /// What is permitted by both.
    #[must_use]
    pub const fn and(self, other: Permissions) -> Permissions {
        Permissions {
            read: self.read && other.read,
            write: self.write && other.write,
            execute: self.execute && other.execute,
        }
    }
}
