//! Invalidations of AArch32 state and ARMv7 (Arm ARM G5.9.5, table G5-23): a TLB operation is complete
//! at the DSB after it, and those before one DSB are in no order.

use slat::edit::Encode;
use slat::invalidate::Context;
use slat::invalidate::arm32::{Instruction, Operation};

use super::{Checker, Copy, What};

impl<F: Encode> Checker<F> {
    /// Executes an instruction of [`slat::invalidate::arm32`] in Hyp mode, with `vmid` in `VTTBR`.
    pub fn arm32(&mut self, instruction: &Instruction, vmid: u16) {
        match *instruction {
            Instruction::Mcr { operation, operand } => {
                self.arm32.push((operation, operand, vmid));
            }
            Instruction::Dsb => {
                let mut due = core::mem::take(&mut self.arm32);
                // The worst order, as in [`Checker::arm64`].
                due.sort_by_key(|&(operation, ..)| by_ipa(operation));
                let mut combined = false;
                for (operation, operand, vmid) in due {
                    if by_ipa(operation) && !combined {
                        self.combine();
                        combined = true;
                    }
                    let (format, flat) = (self.format, self.flat_stage1);
                    let input = |address: u32| format.input(0, address.into());
                    self.invalidate(|copy| reaches(copy, operation, operand, vmid, flat, input));
                }
            }
            Instruction::DsbStores | Instruction::Isb => {}
        }
    }
}

const fn by_ipa(operation: Operation) -> bool {
    matches!(operation, Operation::TlbiIpas2 | Operation::TlbiIpas2l)
}

/// `flat`: combined translations are found by the address that stage 2 translates. `input` says which
/// input of the tables a virtual address is.
fn reaches(
    copy: &Copy,
    operation: Operation,
    operand: u32,
    vmid: u16,
    flat: bool,
    input: impl Fn(u32) -> Option<u64>,
) -> bool {
    let hyp = copy.context == Context::El2;
    let current = match copy.context {
        Context::Stage2 { vmid: held } | Context::Stage1 { vmid: Some(held), .. } => held == vmid,
        _ => false,
    };
    let second = matches!(copy.context, Context::Stage2 { .. });
    let combined = copy.what == What::Combined;
    let last_level = copy.what != What::Table;
    let at =
        |address: Option<u64>| address.is_some_and(|address| copy.overlaps(&(address..=address)));
    let virtual_address = || at(input(operand & !0xfff));
    let asid = match copy.context {
        Context::Stage1 { asid, .. } => {
            current && (copy.global || asid & 0xff == operand as u16 & 0xff)
        }
        _ => false,
    };
    let ipa = || current && second && !combined && at(Some(u64::from(operand & 0xfff_ffff) << 12));
    match operation {
        Operation::TlbiAll => current,
        Operation::TlbiAllnsnh => !hyp,
        Operation::TlbiMva => asid && virtual_address(),
        Operation::TlbiMval => asid && last_level && virtual_address(),
        // A combined translation has a virtual address, which is known where stage 1 is off.
        Operation::TlbiMvaa if second => current && combined && flat && virtual_address(),
        Operation::TlbiMvaa => current && virtual_address(),
        Operation::TlbiAsid => asid && !copy.global,
        Operation::TlbiIpas2 => ipa(),
        Operation::TlbiIpas2l => last_level && ipa(),
        Operation::TlbiAllh => hyp,
        Operation::TlbiMvah => hyp && virtual_address(),
        Operation::TlbiMvalh => hyp && last_level && virtual_address(),
        Operation::Bpiall => false,
    }
}
