//! System calls, switches between processes, and waiting.

use slat_trace::{Event, Kind};

use super::Kernel;
use crate::generated::costs;

impl Kernel {
    pub(super) fn enter_call(&mut self) {
        self.event(Event::Mode { user: false });
    }

    pub(super) fn leave_call(&mut self) {
        self.event(Event::Mode { user: true });
    }

    /// A system call that does little, and so many instructions more.
    pub(crate) fn call(&mut self, more: u64) {
        self.enter_call();
        self.kernel_runs(costs::SYSTEM_CALL.instructions + more);
        self.leave_call();
    }

    /// The running process blocks, and `next` runs.
    pub(crate) fn switch(&mut self, next: usize) {
        self.enter_call();
        self.path(costs::SWITCH, 1);
        if next != self.current {
            self.current = next;
            self.load_root();
        }
        self.leave_call();
    }

    /// The first process to run; before [`Kernel::begin`] alone.
    pub(crate) fn run_first(&mut self, process: usize) {
        self.current = process;
    }

    /// The running process asks a device, and nothing else runs until the answer is there.
    pub(crate) fn wait_for_device(&mut self, nanoseconds: u64) {
        self.enter_call();
        self.request(nanoseconds);
        self.leave_call();
    }

    /// So many instructions of the running process's own, with `data` of its emitted accesses going
    /// where `place` says, the others fetching from `text` on, `text_bytes` long.
    pub(crate) fn compute(
        &mut self,
        instructions: u64,
        (text, text_bytes): (u64, u64),
        mut place: impl FnMut(&mut Kernel) -> (Kind, u64),
    ) {
        if self.quiet {
            return;
        }
        self.out.instructions += instructions;
        for nth in 0..self.emitted(instructions) {
            if nth % 3 == 0 {
                let at = self.fetched(text_bytes);
                self.user(Kind::Fetch, text + at, 32);
            } else {
                let (kind, va) = place(self);
                self.user(kind, va, 8);
            }
            if self.failed.is_some() {
                return;
            }
        }
    }

    /// One instruction's own access, and so many instructions with it.
    pub(crate) fn access(&mut self, kind: Kind, va: u64, instructions: u64) {
        if !self.quiet {
            self.out.instructions += instructions;
        }
        self.user(kind, va, 8);
    }
}
