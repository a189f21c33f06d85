//! x86-64: which instructions matter beyond their accesses, and what they do.

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use slat_trace::{Control, Event, Exception, Invalidation, Root};

use crate::guest::Registers;

/// CPUID with this in EAX, plus 1, begins a recording, and plus 2 ends it. The leaf means nothing to
/// a processor, so that a program with the marker runs on any.
const MARKER: u64 = 0x51a7_0000;

/// An instruction that is to be reported when it executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Special {
    /// CPUID, perhaps a marker.
    Cpuid,
    /// LIDT: where the handlers are.
    Lidt,
    /// MOV to CR0, CR3 or CR4.
    WriteControl,
    /// INVLPG.
    Invlpg,
    /// INVPCID.
    Invpcid,
    /// IRET, SYSRET or SYSEXIT.
    Return,
    /// SYSCALL or SYSENTER.
    Call,
    /// WRMSR.
    WriteMsr,
}

impl Special {
    /// Whether it matters before the recording has begun.
    pub(crate) fn always(self) -> bool {
        matches!(self, Self::Cpuid | Self::Lidt)
    }
}

/// Decodes the instruction in `bytes` at `va` and says whether it is special.
pub(crate) fn special(bytes: &[u8], va: u64) -> Option<(Special, Instruction)> {
    let mut decoder = Decoder::with_ip(64, bytes, va, DecoderOptions::NONE);
    let instruction = decoder.decode();
    let special = match instruction.mnemonic() {
        Mnemonic::Cpuid => Special::Cpuid,
        Mnemonic::Lidt => Special::Lidt,
        Mnemonic::Mov if instruction.code() == Code::Mov_cr_r64 => {
            let to = instruction.op0_register();
            if !matches!(to, Register::CR0 | Register::CR3 | Register::CR4) {
                return None;
            }
            Special::WriteControl
        }
        Mnemonic::Invlpg => Special::Invlpg,
        Mnemonic::Invpcid => Special::Invpcid,
        Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq => Special::Return,
        Mnemonic::Sysret | Mnemonic::Sysretq | Mnemonic::Sysexit | Mnemonic::Sysexitq => {
            Special::Return
        }
        Mnemonic::Syscall | Mnemonic::Sysenter => Special::Call,
        Mnemonic::Wrmsr => Special::WriteMsr,
        _ => return None,
    };
    Some((special, instruction))
}

fn value(registers: &Registers, register: Register) -> u64 {
    match register {
        // Segment bases other than these are 0 in 64-bit mode (Intel SDM volume 1, 3.4.2.1).
        Register::FS => registers.get("fs_base"),
        Register::GS => registers.get("gs_base"),
        Register::ES | Register::CS | Register::SS | Register::DS => 0,
        other => registers.get(&format!("{:?}", other.full_register()).to_lowercase()),
    }
}

fn operand_address(registers: &Registers, instruction: &Instruction) -> u64 {
    let memory = (0..instruction.op_count()).find(|&i| instruction.op_kind(i) == OpKind::Memory);
    let read = |register, _, _| Some(value(registers, register));
    memory.and_then(|i| instruction.virtual_address(i, 0, read)).unwrap_or(0)
}

/// What CPUID asks of the recorder, if it is the marker: true to begin, false to end.
pub(crate) fn marker(registers: &Registers) -> Option<bool> {
    match (registers.get("rax") & 0xffff_ffff).checked_sub(MARKER) {
        Some(1) => Some(true),
        Some(2) => Some(false),
        _ => None,
    }
}

/// The base of the table of handlers that LIDT is about to load.
pub(crate) fn handler_table(registers: &Registers, instruction: &Instruction) -> Option<u64> {
    let operand = operand_address(registers, instruction);
    // Two bytes of limit, then the base (Intel SDM volume 2A, LGDT/LIDT).
    registers.memory::<2>(operand).map(|[low, high]| low >> 16 | high << 48)
}

/// The first instruction of each handler and its vector, from the table at `base`: 256 gates of 16
/// bytes (Intel SDM volume 3, 7.14.1).
pub(crate) fn handlers(registers: &Registers, base: u64) -> Vec<(u64, u8)> {
    let Some(words) = registers.memory::<512>(base) else { return Vec::new() };
    let gate = |(vector, pair): (usize, &[u64])| {
        let [low, high] = pair else { return None };
        let present = low >> 47 & 1 != 0;
        let va = low & 0xffff | low >> 32 & 0xffff_0000 | high << 32;
        present.then_some((va, vector as u8))
    };
    words.chunks_exact(2).enumerate().filter_map(gate).collect()
}

/// The exception whose handler is about to run.
pub(crate) fn exception(registers: &Registers, vector: u8) -> Exception {
    let stack = registers.get("rsp");
    Exception {
        vector,
        fault_va: registers.get("cr2"),
        stack_or_syndrome: stack,
        frame: registers.memory(stack).unwrap_or_default(),
    }
}

/// Whether the vCPU runs with user privilege: CPL 3, the low bits of CS.
pub(crate) fn is_user(registers: &Registers) -> bool {
    registers.get("cs") & 3 == 3
}

/// The registers that decide about translation, as events.
pub(crate) fn initial(registers: &Registers) -> Vec<Event> {
    let control = |register, name| Event::Control { register, value: registers.get(name) };
    vec![
        control(Control::Cr0, "cr0"),
        control(Control::Cr4, "cr4"),
        control(Control::Efer, "efer"),
        Event::Root { root: Root::Cr3, value: registers.get("cr3") },
    ]
}

/// The table that a value of CR3 points at, and its level.
pub(crate) fn root(registers: &Registers, value: u64) -> (u64, u8) {
    let five = registers.get("cr4") & 1 << 12 != 0;
    (value & 0x000f_ffff_ffff_f000, if five { 4 } else { 3 })
}

/// What a special instruction is about to do.
pub(crate) fn event(
    registers: &Registers,
    special: Special,
    instruction: &Instruction,
) -> Option<Event> {
    Some(match special {
        Special::WriteControl => {
            let value = value(registers, instruction.op1_register());
            match instruction.op0_register() {
                Register::CR0 => Event::Control { register: Control::Cr0, value },
                Register::CR4 => Event::Control { register: Control::Cr4, value },
                // Bit 63 only asks to keep translations and is not written.
                _ => Event::Root { root: Root::Cr3, value },
            }
        }
        Special::Invlpg => {
            let va = operand_address(registers, instruction);
            Event::Invalidate(Invalidation::Invlpg { va })
        }
        Special::Invpcid => {
            let kind = value(registers, instruction.op0_register());
            let descriptor = operand_address(registers, instruction);
            let [pcid, va] = registers.memory(descriptor)?;
            Event::Invalidate(Invalidation::Invpcid { kind, pcid: pcid & 0xfff, va })
        }
        Special::Return if instruction.mnemonic() == Mnemonic::Sysretq => return None,
        Special::Return if instruction.mnemonic() == Mnemonic::Sysret => return None,
        Special::Return => Event::ExceptionReturn,
        Special::WriteMsr => {
            let value = registers.get("rax") & 0xffff_ffff | registers.get("rdx") << 32;
            Event::Msr { number: registers.get("rcx") as u32, value }
        }
        Special::Cpuid | Special::Lidt | Special::Call => return None,
    })
}

/// The number of the MSR that [`Control::Efer`] stands for.
pub(crate) const EFER: u32 = 0xc000_0080;
