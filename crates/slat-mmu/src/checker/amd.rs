//! AMD's invalidations (APM 2 5.5.3 and 15.16, APM 3 INVLPGA, INVLPGB, TLBSYNC).

use slat::edit::Encode;
use slat::invalidate::amd::Instruction;
use slat::invalidate::{Context, LinearOwner};

use super::{Checker, Copy, What};

const VA: u64 = 1 << 0;
const PCID: u64 = 1 << 1;
const ASID: u64 = 1 << 2;
const FINAL_ONLY: u64 = 1 << 4;
const NESTED: u64 = 1 << 5;

impl<F: Encode> Checker<F> {
    /// Executes an instruction of [`slat::invalidate::amd`]. A broadcast has happened when TLBSYNC
    /// returns, and not before.
    pub fn amd(&mut self, instruction: &Instruction) {
        match *instruction {
            Instruction::TlbControl { asid: None, value: 1 } => self.invalidate(|_| true),
            Instruction::TlbControl { asid: Some(asid), value: 3 } => {
                self.invalidate(|copy| asid_of(copy) == Some(asid));
            }
            Instruction::TlbControl { .. } => {}
            // Translations from the guest's virtual addresses: no nested ones.
            Instruction::Invlpga { rax, ecx } => {
                let input = self.input(rax);
                self.invalidate(|copy| {
                    matches!(copy.context, Context::Linear { .. })
                        && asid_of(copy) == Some(ecx)
                        && input.is_some_and(|input| copy.overlaps(&(input..=input)))
                });
            }
            Instruction::Invlpgb { .. } => self.amd.push(*instruction),
            Instruction::Tlbsync => {
                for broadcast in core::mem::take(&mut self.amd) {
                    if let Instruction::Invlpgb { rax, ecx, edx } = broadcast {
                        let start = self.input(rax >> 12 << 12);
                        self.invalidate(|copy| broadcast_reaches(copy, start, rax, ecx, edx));
                    }
                }
            }
        }
    }
}

/// The ASID that a copy is tagged with: the host's is 0.
fn asid_of(copy: &Copy) -> Option<u32> {
    match copy.context {
        Context::Npt { asid } | Context::Linear { owner: LinearOwner::Asid(asid), .. } => {
            Some(asid)
        }
        Context::Linear { owner: LinearOwner::Native, .. } => Some(0),
        _ => None,
    }
}

fn broadcast_reaches(copy: &Copy, start: Option<u64>, rax: u64, ecx: u32, edx: u32) -> bool {
    let nested = matches!(copy.context, Context::Npt { .. });
    if nested && (rax & NESTED == 0 || rax & VA != 0) {
        return false;
    }
    if rax & ASID != 0 && asid_of(copy) != Some(edx & 0xffff) {
        return false;
    }
    if let Context::Linear { pcid, .. } = copy.context
        && rax & PCID != 0
        && u32::from(pcid) != edx >> 16 & 0xfff
    {
        return false;
    }
    if rax & FINAL_ONLY != 0 && copy.what == What::Table {
        return false;
    }
    if rax & VA == 0 {
        return true;
    }
    let shift = if ecx >> 31 != 0 { 21 } else { 12 };
    let bytes = (u64::from(ecx & 0xffff) + 1) << shift;
    start.is_some_and(|start| copy.overlaps(&(start..=start.saturating_add(bytes - 1))))
}
