//! Several cores, and invalidations that travel between them.
//!
//! What hardware broadcasts (INVLPGB, the shareable forms of TLBI) the other cores carry out at any time
//! until its sender has waited for it (TLBSYNC, DSB): here at the very end, as the least favourable
//! hardware does. What software broadcasts (a *shoot-down*) interrupts each core that it names.

use alloc::vec::Vec;

use crate::array::BadGeometry;
use crate::maintenance::arm64::Reach;
use crate::maintenance::{Core, amd, arm64};
use crate::tlb::TlbConfig;
use crate::walker::WalkerConfig;

/// A broadcast that other cores have yet to carry out.
#[derive(Clone, Copy, Debug)]
enum Due {
    Amd(amd::Operation),
    Arm(arm64::Operation, u16),
}

/// The cores of one machine.
#[derive(Clone, Debug)]
pub struct Cores {
    cores: Vec<Core>,
    /// By sender.
    due: Vec<(usize, Due)>,
    interrupts: u64,
}

impl Cores {
    /// So many cores, all alike and empty.
    ///
    /// # Errors
    /// Where an array cannot have its geometry.
    pub fn new(count: usize, tlb: &TlbConfig, walker: &WalkerConfig) -> Result<Cores, BadGeometry> {
        let core = Core::new(tlb, walker)?;
        let cores = core::iter::repeat_n(core, count).collect();
        Ok(Cores { cores, due: Vec::new(), interrupts: 0 })
    }

    /// The core of this number.
    pub fn core(&mut self, number: usize) -> Option<&mut Core> {
        self.cores.get_mut(number)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Core> {
        self.cores.iter()
    }

    /// INVLPGB on core `from`.
    pub fn invlpgb(&mut self, from: usize, rax: u64, ecx: u32, edx: u32) {
        self.send(from, Due::Amd(amd::Operation::Invlpgb { rax, ecx, edx }));
    }

    /// TLBSYNC on core `from`: its broadcasts have been carried out.
    pub fn tlbsync(&mut self, from: usize) {
        self.wait(from, |due| matches!(due, Due::Amd(_)));
    }

    /// TLBI on core `from`, with `vmid` in its `VTTBR_EL2`.
    pub fn tlbi(&mut self, from: usize, operation: arm64::Operation, reach: Reach, vmid: u16) {
        match reach {
            Reach::Local => {
                if let Some(core) = self.cores.get_mut(from) {
                    core.arm64(&operation, vmid);
                }
            }
            Reach::InnerShareable | Reach::OuterShareable => {
                self.send(from, Due::Arm(operation, vmid));
            }
        }
    }

    /// DSB on core `from`.
    pub fn dsb(&mut self, from: usize) {
        self.wait(from, |due| matches!(due, Due::Arm(..)));
    }

    /// A shoot-down by software of core `from`: it and the cores that `names` names execute
    /// `instructions`. Returns how many were interrupted.
    pub fn shoot_down(
        &mut self,
        from: usize,
        names: impl Fn(usize) -> bool,
        instructions: impl Fn(&mut Core),
    ) -> u64 {
        let mut interrupted = 0;
        for (number, core) in self.cores.iter_mut().enumerate() {
            if number == from || names(number) {
                instructions(core);
                interrupted += u64::from(number != from);
            }
        }
        self.interrupts += interrupted;
        interrupted
    }

    /// How many cores shoot-downs have interrupted so far.
    pub fn interrupts(&self) -> u64 {
        self.interrupts
    }

    /// The sender carries its own broadcast out at once.
    fn send(&mut self, from: usize, due: Due) {
        if let Some(core) = self.cores.get_mut(from) {
            carry_out(core, due);
        }
        self.due.push((from, due));
    }

    fn wait(&mut self, from: usize, kind: impl Fn(&Due) -> bool) {
        let (now, later) = core::mem::take(&mut self.due)
            .into_iter()
            .partition(|(by, due)| *by == from && kind(due));
        self.due = later;
        let now: Vec<(usize, Due)> = now;
        for (_, due) in now {
            for (number, core) in self.cores.iter_mut().enumerate() {
                if number != from {
                    carry_out(core, due);
                }
            }
        }
    }
}

fn carry_out(core: &mut Core, due: Due) {
    match due {
        Due::Amd(operation) => core.amd(&operation),
        Due::Arm(operation, vmid) => core.arm64(&operation, vmid),
    }
}
