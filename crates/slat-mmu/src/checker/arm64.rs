//! Arm's invalidations (Arm ARM D8.16 and C5.5): TLBI is complete at the DSB after it, and those
//! before one DSB are in no order.

use slat::edit::Encode;
use slat::invalidate::Context;
use slat::invalidate::arm64::{Instruction, Operation};

use super::{Checker, Copy, What};

impl<F: Encode> Checker<F> {
    /// Executes an instruction of [`slat::invalidate::arm64`], with `vmid` in `VTTBR_EL2`. `None` is the
    /// host itself, with `HCR_EL2.E2H` and `TGE` set: operations on stage 1 are of its own translations then,
    /// and none of theirs is a guest's (Arm ARM D8.16.5).
    pub fn arm64(&mut self, instruction: &Instruction, vmid: impl Into<Option<u16>>) {
        match *instruction {
            Instruction::Tlbi { operation, operand } => {
                self.arm64.push((operation, operand, vmid.into()));
            }
            Instruction::Dsb => {
                let mut due = core::mem::take(&mut self.arm64);
                // The worst order: combined translations first, to be made again from those of
                // stage 2 that are dropped last.
                due.sort_by_key(|&(operation, ..)| by_ipa(operation));
                let mut combined = false;
                for (operation, operand, vmid) in due {
                    if by_ipa(operation) && !combined {
                        self.combine();
                        combined = true;
                    }
                    let (format, granule) = (self.format, self.format.shift(0));
                    let input = |address| format.input(0, address);
                    self.invalidate(|copy| reaches(copy, operation, operand, vmid, granule, input));
                }
            }
            Instruction::DsbStores | Instruction::Isb => {}
        }
    }
}

const fn by_ipa(operation: Operation) -> bool {
    matches!(
        operation,
        Operation::Ipas2e1 | Operation::Ipas2le1 | Operation::Ripas2e1 | Operation::Ripas2le1
    )
}

const fn of_el2(operation: Operation) -> bool {
    matches!(
        operation,
        Operation::Vae2
            | Operation::Vale2
            | Operation::Rvae2
            | Operation::Rvale2
            | Operation::Alle2
    )
}

/// `input` says which input of the tables a virtual address is.
fn reaches(
    copy: &Copy,
    operation: Operation,
    operand: u64,
    vmid: Option<u16>,
    granule: u32,
    input: impl Fn(u64) -> Option<u64>,
) -> bool {
    let el2 = copy.context == Context::El2;
    // With E2H, operations of EL2 are of the host's own translations, by their ASIDs.
    let (second, of) = match copy.context {
        Context::Stage2 { vmid: held } => (true, !of_el2(operation) && Some(held) == vmid),
        Context::Stage1 { vmid: None, .. } => {
            let both = operation == Operation::Vmalls12e1;
            (false, of_el2(operation) || vmid.is_none() && !both)
        }
        Context::Stage1 { vmid: held, .. } => (false, !of_el2(operation) && held == vmid),
        _ => (false, el2 && of_el2(operation)),
    };
    if operation == Operation::Alle1 {
        // Both stages of every guest; those are of another regime.
        return !el2 && !matches!(copy.context, Context::Stage1 { vmid: None, .. });
    }
    if !of {
        return false;
    }
    let own = second && copy.what != What::Combined;
    let asid = match copy.context {
        Context::Stage1 { asid, .. } => asid == (operand >> 48) as u16 || copy.global,
        _ => el2,
    };
    let last_level = copy.what != What::Table;
    // A virtual address is given without what extends its sign: from its highest bit that is.
    let given = |bits: u32, shift: u32| {
        let left = 64 - bits;
        let extended = ((operand << left) as i64 >> left) as u64;
        if second { Some((operand & ((1 << bits) - 1)) << shift) } else { input(extended << shift) }
    };
    let one = || {
        let input = given(if second { 40 } else { 44 }, 12);
        input.is_some_and(|input| copy.overlaps(&(input..=input)))
            && hinted(copy, operand >> 44 & 0xf)
    };
    let many = || {
        let (scale, number) = (operand >> 44 & 3, operand >> 39 & 0x1f);
        let bytes = (number + 1) << (5 * scale + 1) << granule;
        given(37, granule).is_some_and(|base| copy.overlaps(&(base..=base + (bytes - 1))))
            && hinted(copy, (operand >> 46 & 3) << 2 | operand >> 37 & 3)
    };
    match operation {
        Operation::Ipas2e1 => own && one(),
        Operation::Ipas2le1 => own && last_level && one(),
        Operation::Ripas2e1 => own && many(),
        Operation::Ripas2le1 => own && last_level && many(),
        Operation::Vmalle1 => !own,
        Operation::Vmalls12e1 | Operation::Alle1 | Operation::Alle2 => true,
        Operation::Vae1 => asid && one(),
        Operation::Vale1 => asid && last_level && one(),
        Operation::Rvae1 => asid && many(),
        Operation::Rvale1 => asid && last_level && many(),
        Operation::Vaae1 => !second && one(),
        Operation::Rvaae1 => !second && many(),
        Operation::Vae2 => asid && one(),
        Operation::Vale2 => asid && last_level && one(),
        Operation::Rvae2 => asid && many(),
        Operation::Rvale2 => asid && last_level && many(),
        Operation::Aside1 => asid && !copy.global,
    }
}

/// Whether a level hint lets the operation reach a copy: leaves of that level alone, and no hint
/// reaches all (Arm ARM D8.16.5). Reserved encodings are no hint: those of level 0, and of level 1 with pages
/// of 16 KiB. Where FEAT_LPA2 gives these a meaning, no plan uses them.
fn hinted(copy: &Copy, ttl: u64) -> bool {
    let none = matches!((ttl >> 2, ttl & 3), (0, _) | (_, 0) | (2, 1));
    none || copy.what != What::Table && u64::from(3 - copy.level.min(3)) == ttl & 3
}
