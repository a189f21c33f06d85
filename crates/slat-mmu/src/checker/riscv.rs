//! RISC-V's fences (privileged architecture, "Supervisor Memory-Management Fence Instruction",
//! "Hypervisor Memory-Management Fence Instructions", "Svinval").

use slat::edit::Encode;
use slat::invalidate::Context;
use slat::invalidate::riscv::Instruction;

use super::{Checker, Copy, What};

impl<F: Encode> Checker<F> {
    /// Executes an instruction of [`slat::invalidate::riscv`], with `vmid` in `hgatp`, whose guest's
    /// HFENCE.VVMA orders. The Svinval forms have happened at the SFENCE.INVAL.IR after them, and only if an
    /// SFENCE.W.INVAL came before them.
    pub fn riscv(&mut self, instruction: &Instruction, vmid: u16) {
        match *instruction {
            Instruction::WriteBeforeInvalidate => self.stores_ordered = true,
            Instruction::InvalidateBeforeRead => {
                for (due, vmid) in core::mem::take(&mut self.riscv) {
                    self.fence(&due, vmid);
                }
                self.stores_ordered = false;
            }
            Instruction::Vma { invalidate_only: true, .. }
            | Instruction::Vvma { invalidate_only: true, .. }
            | Instruction::Gvma { invalidate_only: true, .. } => {
                if self.stores_ordered {
                    self.riscv.push((*instruction, vmid));
                }
            }
            _ => self.fence(instruction, vmid),
        }
    }

    fn fence(&mut self, instruction: &Instruction, vmid: u16) {
        let input = match *instruction {
            // Bits 1:0 of the address are not given: it names the page all the same.
            Instruction::Gvma { rs1, .. } => rs1.and_then(|address| self.input(address << 2)),
            Instruction::Vma { rs1, .. } | Instruction::Vvma { rs1, .. } => {
                rs1.and_then(|address| self.input(address))
            }
            _ => None,
        };
        self.invalidate(|copy| reaches(copy, instruction, vmid, input));
    }
}

/// `current` is the VMID in `hgatp`, `input` what the instruction's address is, if it has one.
fn reaches(copy: &Copy, instruction: &Instruction, current: u16, input: Option<u64>) -> bool {
    let of = |held: u16, asked: Option<u16>| asked.is_none_or(|asked| asked == held);
    match (*instruction, copy.context) {
        (Instruction::Gvma { rs1, rs2, .. }, Context::GStage { vmid }) => {
            of(vmid, rs2) && (rs1.is_none() || by_address(copy, input))
        }
        (Instruction::Vvma { .. }, Context::SStage { vmid: Some(vmid), .. }) if vmid != current => {
            false
        }
        (Instruction::Vvma { rs1, rs2, .. }, Context::SStage { asid, vmid: Some(_) })
        | (Instruction::Vma { rs1, rs2, .. }, Context::SStage { asid, vmid: None }) => {
            // With an ASID, global mappings are passed by.
            rs2.is_none_or(|rs2| rs2 == asid && !copy.global)
                && (rs1.is_none() || by_address(copy, input))
        }
        _ => false,
    }
}

/// With an address, the leaf entries for it are fenced and no entries that point at tables.
fn by_address(copy: &Copy, input: Option<u64>) -> bool {
    copy.what != What::Table && input.is_some_and(|input| copy.overlaps(&(input..=input)))
}
