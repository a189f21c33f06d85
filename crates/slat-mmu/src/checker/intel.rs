//! Intel's invalidations (SDM 3C 30.4.3.1 and 30.4.3.3, SDM 3A 5.10.4.1).

use slat::edit::Encode;
use slat::invalidate::intel::Instruction;
use slat::invalidate::{Context, LinearOwner};

use super::{Checker, What};

/// The bits of an EPTP that tag mappings: the EP4TA.
const EP4TA: u64 = 0x000f_ffff_ffff_f000;

impl<F: Encode> Checker<F> {
    /// Executes an instruction of [`slat::invalidate::intel`]. INVLPG and CR3 reloads act on PCID 0
    /// of the host; types that do not exist do nothing, as they fault.
    pub fn intel(&mut self, instruction: &Instruction) {
        match *instruction {
            Instruction::Invept { kind: 1, descriptor: [eptp, _] } => {
                self.uncache(|copy| {
                    matches!(copy.context, Context::Ept { eptp: held }
                        if (held ^ eptp) & EP4TA == 0)
                });
            }
            Instruction::Invept { kind: 2, .. } => {
                self.uncache(|copy| matches!(copy.context, Context::Ept { .. }));
            }
            Instruction::Invvpid { kind, descriptor: [vpid, address] } => {
                let input = self.input(address);
                self.uncache(|copy| match copy.context {
                    Context::Linear { owner: LinearOwner::Vpid(held), .. } => match kind {
                        0 => u64::from(held) == vpid & 0xffff && at(copy, input),
                        1 => u64::from(held) == vpid & 0xffff,
                        2 => true,
                        3 => u64::from(held) == vpid & 0xffff && !copy.global,
                        _ => false,
                    },
                    _ => false,
                });
            }
            Instruction::Invpcid { kind, descriptor: [id, address] } => {
                let input = self.input(address);
                self.uncache(|copy| match copy.context {
                    Context::Linear { owner: LinearOwner::Native, pcid } => match kind {
                        0 => u64::from(pcid) == id & 0xfff && !copy.global && at(copy, input),
                        1 => u64::from(pcid) == id & 0xfff && !copy.global,
                        2 => true,
                        3 => !copy.global,
                        _ => false,
                    },
                    _ => false,
                });
            }
            // Every paging-structure-cache entry of the PCID goes with the page; a global page, of whatever
            // PCID.
            Instruction::Invlpg { address } => {
                let input = self.input(address);
                self.uncache(|copy| match copy.context {
                    Context::Linear { owner: LinearOwner::Native, pcid } => {
                        pcid == 0 && copy.what == What::Table
                            || (pcid == 0 || copy.global) && at(copy, input)
                    }
                    _ => false,
                });
            }
            Instruction::ReloadCr3 => self.invalidate(|copy| {
                matches!(copy.context, Context::Linear { owner: LinearOwner::Native, .. })
            }),
            // What was cached by way of the registers stays.
            Instruction::LoadPdptes { vpid } => {
                let top = self.format.top();
                self.invalidate(|copy| match copy.context {
                    Context::Linear { owner: LinearOwner::Vpid(held), .. } => {
                        vpid.is_none_or(|vpid| vpid == held)
                            && copy.level == top
                            && matches!(copy.what, What::Table | What::Invalid)
                    }
                    _ => false,
                });
            }
            Instruction::Invept { .. } => {}
        }
    }
}

/// Whether a copy is used for an input.
fn at(copy: &super::Copy, input: Option<u64>) -> bool {
    input.is_some_and(|input| copy.overlaps(&(input..=input)))
}
