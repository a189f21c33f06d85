//! Page-modification logging (Intel SDM 3C 30.3.6): which guest physical pages EPT's dirty flags were set
//! for.

use core::cell::Cell;

use alloc::vec::Vec;

use slat::format::Format;
use slat::{
    Access, Gva, Kind, Memory, Observer, Privilege, Spa, Stage, Update, Updates, translate,
};

use super::{Caches, Context, WalkFault, Walked};

/// Entries of a log.
pub const LOG_ENTRIES: usize = 512;

/// A page-modification log: hardware fills it from its last entry down.
#[derive(Clone, Debug, Default)]
pub struct Log {
    pages: Vec<u64>,
}

impl Log {
    /// The guest physical addresses that were logged, pages of 4 KiB in the order they were.
    pub fn pages(&self) -> &[u64] {
        &self.pages
    }

    /// The guest's PML index: 511 where nothing is logged, 0xffff where the log is full.
    pub fn index(&self) -> u16 {
        (LOG_ENTRIES as u16).wrapping_sub(1).wrapping_sub(self.pages.len() as u16)
    }

    /// Empties it, as a hypervisor does at a log-full event.
    pub fn clear(&mut self) {
        self.pages.clear();
    }

    fn is_full(&self) -> bool {
        self.pages.len() >= LOG_ENTRIES
    }
}

/// Why a logged walk found nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stopped<B> {
    /// A fault.
    Fault(WalkFault<B>),
    /// A page-modification log-full event: the walk would set an accessed or dirty flag of EPT, and
    /// there is no room to log that. No flag was set and nothing was cached.
    LogFull,
}

/// Whether a walk would set flags of one stage.
struct Would {
    stage: u8,
    set: Cell<bool>,
}

impl Observer for Would {
    fn update(&self, update: &Update) {
        if update.stage == self.stage {
            self.set.set(true);
        }
    }
}

impl Caches {
    /// As [`Caches::walk`], with page-modification logging: each guest physical page whose dirty flag of
    /// stage 2 is set is logged.
    ///
    /// # Errors
    /// The fault of either stage, or of `memory`; or a full log.
    #[expect(clippy::too_many_arguments, reason = "those of a walk, and the log")]
    pub fn walk_logged<F1, F2, M, W>(
        &mut self,
        log: &mut Log,
        context: &Context<'_, F1, F2>,
        memory: &mut M,
        address: Gva,
        kind: Kind,
        user: bool,
        observer: &W,
    ) -> Result<Walked, Stopped<M::Fault>>
    where
        F1: Format,
        F2: Format,
        M: Memory<Address = Spa>,
        W: Observer,
    {
        let Context { stage1, stage2, regime, .. } = *context;
        // The processor looks at the index before it sets a flag. A walk that sets several may cross the
        // end here, where hardware stops in its middle and takes it up again after the event.
        if log.is_full() && stage2.updates != Updates::Never {
            let privilege = if user { Privilege::User } else { Privilege::Supervisor };
            let access = Access::new(kind, privilege);
            let would = Would { stage: stage2.number, set: Cell::new(false) };
            let (dry1, dry2): (Stage<F1, _, _>, Stage<F2, _, _>) =
                (stage1.with_updates(Updates::Never), stage2.with_updates(Updates::Never));
            let _ = translate(&dry1, &dry2, memory, address, &access, regime, &would);
            if would.set.get() {
                return Err(Stopped::LogFull);
            }
        }
        let walked = self.walk(context, memory, address, kind, user, observer);
        log.pages.extend_from_slice(self.dirtied());
        walked.map_err(Stopped::Fault)
    }
}
