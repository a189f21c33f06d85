//! The transformed instruction of `htinst` and `mtinst` (privileged manual, "Transformed
//! Instruction or Pseudoinstruction for mtinst or htinst").

use crate::format::riscv::Width;

mod opcodes {
    pub(super) const LOAD: u32 = 0x03;
    pub(super) const LOAD_FP: u32 = 0x07;
    pub(super) const STORE: u32 = 0x23;
    pub(super) const STORE_FP: u32 = 0x27;
    pub(super) const AMO: u32 = 0x2f;
    pub(super) const SYSTEM: u32 = 0x73;
}

/// The field that holds the address offset instead of `rs1`.
const RS1: u32 = 0x1f << 15;
const RS2: u32 = 0x1f << 20;
const RD: u32 = 0x1f << 7;
const FUNCT3: u32 = 7 << 12;

/// Transforms the load, store, atomic or virtual-machine load or store `instruction`. It is 0, as
/// `htinst` is then, where no transformation is defined for it.
///
/// `instruction` is 32 bits, or 16 in the low half: those of C with D, and Zcb. `offset` (0 to 31)
/// is the distance from the original to the faulting virtual address, nonzero only for a
/// misaligned access. `width` is the XLEN it was executed with, which decides compressed encodings.
///
/// ```
/// use slat::format::riscv::Width;
/// use slat::syndrome::riscv::transform;
/// // ld a1, 8(a0): the base register and the immediate go.
/// assert_eq!(transform(0x0085_3583, 0, Width::Rv64), 0x3583);
/// assert_eq!(transform(0x0000_0073, 0, Width::Rv64), 0); // ecall
/// ```
pub fn transform(instruction: u32, offset: u8, width: Width) -> u32 {
    let offset = (u32::from(offset) << 15) & RS1;
    let transformed = if instruction & 3 == 3 {
        without_address(instruction, width).map(|instruction| instruction | offset)
    } else {
        let expanded = expand(instruction as u16, width);
        let shown = expanded.and_then(|instruction| without_address(instruction, width));
        shown.map(|instruction| (instruction | offset) & !2)
    };
    transformed.unwrap_or(0)
}

/// The 32-bit instruction without its base register and immediate.
fn without_address(instruction: u32, width: Width) -> Option<u32> {
    let opcode = instruction & 0x7f;
    let funct3 = instruction >> 12 & 7;
    let wide = width == Width::Rv64;
    match (opcode, funct3) {
        (opcodes::LOAD, 3 | 6) if !wide => None,
        (opcodes::LOAD, 0..=6) | (opcodes::LOAD_FP, 1..=4) => {
            Some(instruction & (FUNCT3 | RD | 0x7f))
        }
        (opcodes::STORE, 3) if !wide => None,
        (opcodes::STORE, 0..=3) | (opcodes::STORE_FP, 1..=4) => {
            Some(instruction & (RS2 | FUNCT3 | 0x7f))
        }
        (opcodes::AMO, 0..=4) => Some(instruction & !RS1),
        // HLV, HLVX and HSV: funct7 0110xxx.
        (opcodes::SYSTEM, 4) if instruction >> 28 == 0b0110 => Some(instruction & !RS1),
        _ => None,
    }
}

/// The 32-bit equivalent of a compressed load or store, but for base register and immediate, which
/// the transformation drops.
fn expand(instruction: u16, width: Width) -> Option<u32> {
    let i = u32::from(instruction);
    let wide = width == Width::Rv64;
    // Quadrant 0 names registers 8 to 15 in bits 4:2; quadrant 2 all in 11:7 or 6:2.
    let (load_register, store_register) = match i & 3 {
        0 => ((i >> 2 & 7) + 8, (i >> 2 & 7) + 8),
        2 => (i >> 7 & 0x1f, i >> 2 & 0x1f),
        _ => return None,
    };
    let load = |opcode, funct3: u32| Some(load_register << 7 | funct3 << 12 | opcode);
    let store = |opcode, funct3: u32| Some(store_register << 20 | funct3 << 12 | opcode);
    // An integer load to x0, which only those from the stack can name, is a reserved encoding.
    let integer = load_register != 0;
    match i >> 13 {
        1 => load(opcodes::LOAD_FP, 3),
        2 if integer => load(opcodes::LOAD, 2),
        3 if wide && integer => load(opcodes::LOAD, 3),
        3 if !wide => load(opcodes::LOAD_FP, 2),
        5 => store(opcodes::STORE_FP, 3),
        6 => store(opcodes::STORE, 2),
        7 if wide => store(opcodes::STORE, 3),
        7 => store(opcodes::STORE_FP, 2),
        4 if i & 3 == 0 => match (i >> 10 & 7, i >> 6 & 1) {
            (0, _) => load(opcodes::LOAD, 4),
            (1, 0) => load(opcodes::LOAD, 5),
            (1, _) => load(opcodes::LOAD, 1),
            (2, _) => store(opcodes::STORE, 0),
            (3, 0) => store(opcodes::STORE, 1),
            _ => None,
        },
        _ => None,
    }
}
