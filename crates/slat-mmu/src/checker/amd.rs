//! AMD's invalidations (APM 2 5.5.3 and 15.16, APM 3 INVLPGA, INVLPGB, TLBSYNC).

use slat::edit::Encode;
use slat::invalidate::amd::Instruction;
use slat::invalidate::{Context, LinearOwner};

use super::{Checker, Copy, What};

/// The host's ASID, which no guest has (APM 2 15.5.1).
const HOST: u32 = 0;

const VA: u64 = 1 << 0;
const PCID: u64 = 1 << 1;
const ASID: u64 = 1 << 2;
const GLOBAL: u64 = 1 << 3;
const FINAL_ONLY: u64 = 1 << 4;
const NESTED: u64 = 1 << 5;

impl<F: Encode> Checker<F> {
    /// Executes an instruction of [`slat::invalidate::amd`]. A broadcast has happened when TLBSYNC
    /// returns, and not before. TLB_CONTROL has happened at the guest's next VMRUN, until which the host
    /// goes on with what it holds. INVLPG acts on PCID 0 of the host.
    pub fn amd(&mut self, instruction: &Instruction) {
        match *instruction {
            Instruction::TlbControl { asid: None, value: 1 } => {
                self.uncache(|copy| asid_of(copy) != Some(HOST));
            }
            Instruction::TlbControl { asid: Some(asid), value: 3 } if asid != HOST => {
                self.uncache(|copy| asid_of(copy) == Some(asid));
            }
            Instruction::TlbControl { asid: Some(asid), value: 7 } if asid != HOST => {
                self.uncache(|copy| asid_of(copy) == Some(asid) && !copy.global);
            }
            Instruction::TlbControl { .. } => {}
            // Translations from the guest's virtual addresses: no nested ones.
            Instruction::Invlpga { rax, ecx } => {
                let input = self.input(rax);
                self.uncache(|copy| {
                    matches!(copy.context, Context::Linear { .. })
                        && asid_of(copy) == Some(ecx)
                        && input.is_some_and(|input| copy.overlaps(&(input..=input)))
                });
            }
            // A global page goes whatever its PCID.
            Instruction::Invlpg { address } => {
                self.host(address, |pcid, copy, here| here && (pcid == 0 || copy.global));
            }
            Instruction::Invpcid { kind, descriptor: [id, address] } => {
                self.host(address, |pcid, copy, here| {
                    let own = u64::from(pcid) == id & 0xfff && !copy.global;
                    match kind {
                        0 => own && here,
                        1 => own,
                        2 => true,
                        3 => !copy.global,
                        _ => false,
                    }
                });
            }
            Instruction::ReloadCr3 => self.invalidate(|copy| asid_of(copy) == Some(HOST)),
            Instruction::Invlpgb { .. } => self.amd.push(*instruction),
            Instruction::Tlbsync => {
                for broadcast in core::mem::take(&mut self.amd) {
                    if let Instruction::Invlpgb { rax, ecx, edx } = broadcast {
                        let start = self.input(rax >> 12 << 12);
                        self.uncache(|copy| broadcast_reaches(copy, start, rax, ecx, edx));
                    }
                }
            }
        }
    }

    /// Drops copies of the host's own that `names` names by PCID, itself, and whether it is used for the
    /// address. With EFER.TCE set, only the upper-level entries that lead to an address go with it (APM 2
    /// 3.1.7).
    fn host(&mut self, address: u64, names: impl Fn(u16, &Copy, bool) -> bool) {
        let input = self.input(address);
        self.uncache(|copy| match copy.context {
            Context::Linear { owner: LinearOwner::Native, pcid } => {
                let here = input.is_some_and(|input| copy.overlaps(&(input..=input)));
                names(pcid, copy, here)
            }
            _ => false,
        });
    }
}

/// The ASID that a copy is tagged with.
fn asid_of(copy: &Copy) -> Option<u32> {
    match copy.context {
        Context::Npt { asid } | Context::Linear { owner: LinearOwner::Asid(asid), .. } => {
            Some(asid)
        }
        Context::Linear { owner: LinearOwner::Native, .. } => Some(HOST),
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
    // Global pages are of no PCID.
    if copy.global && rax & GLOBAL == 0 {
        return false;
    }
    if let Context::Linear { pcid, .. } = copy.context
        && !copy.global
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
