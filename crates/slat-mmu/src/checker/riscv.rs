//! RISC-V's fences (privileged architecture, "Supervisor Memory-Management Fence Instruction",
//! "Hypervisor Memory-Management Fence Instructions", "Svinval").

use core::ops::RangeInclusive;

use slat::edit::Encode;
use slat::invalidate::Context;
use slat::invalidate::riscv::Instruction;

use super::{Checker, Copy, What};

impl<F: Encode> Checker<F> {
    /// Executes an instruction of [`slat::invalidate::riscv`]. The Svinval forms have happened at
    /// the SFENCE.INVAL.IR after them, and only if an SFENCE.W.INVAL came before them.
    pub fn riscv(&mut self, instruction: &Instruction) {
        match *instruction {
            Instruction::WriteBeforeInvalidate => self.stores_ordered = true,
            Instruction::InvalidateBeforeRead => {
                for due in core::mem::take(&mut self.riscv) {
                    self.invalidate(|copy| reaches(copy, &due));
                }
                self.stores_ordered = false;
            }
            Instruction::Vma { invalidate_only: true, .. }
            | Instruction::Vvma { invalidate_only: true, .. }
            | Instruction::Gvma { invalidate_only: true, .. } => {
                if self.stores_ordered {
                    self.riscv.push(*instruction);
                }
            }
            _ => self.invalidate(|copy| reaches(copy, instruction)),
        }
    }
}

fn reaches(copy: &Copy, instruction: &Instruction) -> bool {
    let of = |held: u16, asked: Option<u16>| asked.is_none_or(|asked| asked == held);
    match (*instruction, copy.context) {
        (Instruction::Gvma { rs1, rs2, .. }, Context::GStage { vmid }) => {
            // Bits 1:0 of the address are not given: it names the page all the same.
            of(vmid, rs2) && by_address(copy, rs1.map(|address| address << 2..=address << 2 | 3))
        }
        (Instruction::Vvma { rs1, rs2, .. }, Context::SStage { asid, vmid: Some(_) })
        | (Instruction::Vma { rs1, rs2, .. }, Context::SStage { asid, vmid: None }) => {
            of(asid, rs2) && by_address(copy, rs1.map(|address| address..=address))
        }
        _ => false,
    }
}

/// With an address, the leaf entries for it are fenced and no entries that point at tables.
fn by_address(copy: &Copy, address: Option<RangeInclusive<u64>>) -> bool {
    address.is_none_or(|range| copy.what != What::Table && copy.overlaps(&range))
}
