//! AArch64: which instructions matter beyond their accesses, and what they do. Encodings are those
//! of the Arm ARM, C5.3 and C6.2.

use slat_trace::{Control, Event, Exception, Invalidation, Root};

use crate::guest::Registers;

/// HINT #0x7a, a NOP to every processor, begins a recording.
const BEGIN: u32 = 0xd503_201f | 0x7a << 5;
/// HINT #0x7b ends it.
const END: u32 = 0xd503_201f | 0x7b << 5;

/// An instruction that is to be reported when it executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Special {
    /// The marker: true begins, false ends.
    Marker(bool),
    /// MSR to a root register.
    WriteRoot(Root),
    /// MSR to a control register.
    WriteControl(Control),
    /// TLBI.
    Tlbi,
    /// ERET.
    Return,
}

impl Special {
    /// Whether it matters before the recording has begun.
    pub(crate) fn always(self) -> bool {
        matches!(self, Self::Marker(_))
    }
}

/// Says whether an instruction is special.
pub(crate) fn special(word: u32) -> Option<Special> {
    // MSR (register): the system register without Rt.
    const MSR: u32 = 0xffff_ffe0;
    Some(match word {
        BEGIN => Special::Marker(true),
        END => Special::Marker(false),
        // ERET, ERETAA, ERETAB.
        0xd69f_03e0 | 0xd69f_0bff | 0xd69f_0fff => Special::Return,
        _ => match word & MSR {
            0xd518_2000 => Special::WriteRoot(Root::Ttbr0),
            0xd518_2020 => Special::WriteRoot(Root::Ttbr1),
            0xd518_2040 => Special::WriteControl(Control::Tcr),
            0xd518_1000 => Special::WriteControl(Control::Sctlr),
            0xd518_a200 => Special::WriteControl(Control::Mair),
            // SYS with CRn 8, and 9 for the forms that leave out XS.
            _ if matches!(word & 0xfff8_f000, 0xd508_8000 | 0xd508_9000) => Special::Tlbi,
            _ => return None,
        },
    })
}

fn operand(registers: &Registers, word: u32) -> u64 {
    match word & 31 {
        31 => 0,
        number => registers.get(&format!("x{number}")),
    }
}

/// What a special instruction is about to do.
pub(crate) fn event(registers: &Registers, special: Special, word: u32) -> Option<Event> {
    Some(match special {
        Special::Marker(_) => return None,
        Special::WriteRoot(root) => Event::Root { root, value: operand(registers, word) },
        Special::WriteControl(register) => {
            Event::Control { register, value: operand(registers, word) }
        }
        Special::Tlbi => Event::Invalidate(Invalidation::Tlbi {
            operation: (word >> 5 & 0x3fff) as u16,
            operand: operand(registers, word),
        }),
        Special::Return => Event::ExceptionReturn,
    })
}

/// The first instruction of each of the 16 entries of the vector table (Arm ARM D1.3.1).
pub(crate) fn handlers(registers: &Registers) -> Vec<(u64, u8)> {
    let base = registers.get("VBAR");
    (0..16).map(|entry| (base + 0x80 * u64::from(entry), entry)).collect()
}

/// The exception whose handler is about to run.
pub(crate) fn exception(registers: &Registers, vector: u8) -> Exception {
    let mut frame = [0; 6];
    frame[0] = registers.get("ELR_EL1");
    frame[1] = registers.get("SPSR_EL1");
    Exception {
        vector,
        fault_va: registers.get("FAR_EL1"),
        stack_or_syndrome: registers.get("ESR_EL1"),
        frame,
    }
}

/// Whether the vCPU runs with user privilege: EL0, PSTATE bits 3:2.
pub(crate) fn is_user(registers: &Registers) -> bool {
    registers.get("cpsr") & 0b1100 == 0
}

/// The registers that decide about translation, as events.
pub(crate) fn initial(registers: &Registers) -> Vec<Event> {
    let control = |register, name| Event::Control { register, value: registers.get(name) };
    let root = |root, name| Event::Root { root, value: registers.get(name) };
    vec![
        control(Control::Sctlr, "SCTLR"),
        control(Control::Tcr, "TCR_EL1"),
        control(Control::Mair, "MAIR_EL1"),
        root(Root::Ttbr1, "TTBR1_EL1"),
        root(Root::Ttbr0, "TTBR0_EL1"),
    ]
}

/// The table that a value of a root register points at, and its level, for the 4 KiB granule.
pub(crate) fn root(registers: &Registers, root: Root, value: u64) -> (u64, u8) {
    // T0SZ is bits 5:0 of TCR_EL1, T1SZ bits 21:16 (Arm ARM D24.2.177).
    let shift = if root == Root::Ttbr1 { 16 } else { 0 };
    let bits = 64 - (registers.get("TCR_EL1") >> shift & 63).min(52);
    let levels = bits.saturating_sub(12).div_ceil(9).max(1);
    (value & 0x0000_ffff_ffff_f000, (levels - 1) as u8)
}
