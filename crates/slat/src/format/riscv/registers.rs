//! `satp`, `vsatp` and `hgatp`: which scheme, and where its root is (privileged manual,
//! "Supervisor Address Translation and Protection", "Hypervisor Guest Address Translation and
//! Protection", "Virtual Supervisor Address Translation and Protection").

use super::Scheme;
use crate::register::{Refusal, Refused};

/// XLEN of the mode that a register governs, which decides its fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Width {
    /// RV32: MODE is bit 31, PPN bits 21:0.
    Rv32,
    /// RV64: MODE is bits 63:60, PPN bits 43:0.
    Rv64,
}

/// What an address-translation register says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Root {
    /// MODE; for `hgatp`, the x4 variant is meant.
    pub scheme: Scheme,
    /// Address of the root table; 0 in [`Scheme::Bare`].
    pub table: u64,
    /// ASID, or VMID for `hgatp`.
    pub id: u16,
}

/// Decodes `satp`.
///
/// # Errors
/// [`Refused`] names a reserved or custom MODE, or what [`Scheme::Bare`] leaves no room for.
///
/// ```
/// use slat::format::riscv::{Root, Scheme, Width, satp};
/// let root = satp(0x8000_0000_0008_0804, Width::Rv64).unwrap();
/// assert_eq!(root, Root { scheme: Scheme::Sv39, table: 0x8080_4000, id: 0 });
/// assert!(satp(11 << 60, Width::Rv64).unwrap_err().to_string().contains("Sv64"));
/// ```
pub fn satp(value: u64, width: Width) -> Result<Root, Refused> {
    decode("satp", value, width)
}

/// Decodes `vsatp`, whose fields are those of `satp`.
///
/// # Errors
/// As [`satp`].
pub fn vsatp(value: u64, width: Width) -> Result<Root, Refused> {
    decode("vsatp", value, width)
}

/// Decodes `hgatp`. The low two bits of its PPN read as zero, and are cleared here.
///
/// # Errors
/// As [`satp`]; bits 59:58 (30:29 on RV32) are reserved too.
pub fn hgatp(value: u64, width: Width) -> Result<Root, Refused> {
    let unused = match width {
        Width::Rv32 => 3 << 29,
        Width::Rv64 => 3 << 58,
    };
    if value & unused != 0 {
        let why = Refusal::Reserved("a bit between MODE and VMID");
        return Err(Refused { register: "hgatp", value, bits: unused, why });
    }
    let root = decode("hgatp", value, width)?;
    Ok(Root { table: root.table & !0x3fff, ..root })
}

fn decode(register: &'static str, value: u64, width: Width) -> Result<Root, Refused> {
    let refuse = |bits, why| Err(Refused { register, value, bits, why });
    let (mode, mode_bits, ppn_bits, id) = match width {
        Width::Rv32 if value >> 32 != 0 => {
            return refuse(!0 << 32, Refusal::Contradiction("an RV32 register has 32 bits"));
        }
        Width::Rv32 => (value >> 31, 1 << 31, 22, value >> 22 & 0x1ff),
        Width::Rv64 => (value >> 60, 0xf << 60, 44, value >> 44 & 0xffff),
    };
    let guest = register == "hgatp";
    let scheme = match (width, mode) {
        (_, 0) => Scheme::Bare,
        (Width::Rv32, _) => Scheme::Sv32,
        (Width::Rv64, 8) => Scheme::Sv39,
        (Width::Rv64, 9) => Scheme::Sv48,
        (Width::Rv64, 10) => Scheme::Sv57,
        (Width::Rv64, 11) if !guest => {
            return refuse(mode_bits, Refusal::Reserved("MODE 11 (Sv64)"));
        }
        (Width::Rv64, 14 | 15) if !guest => {
            return refuse(mode_bits, Refusal::Unmodelled("a custom MODE (14 or 15)"));
        }
        (Width::Rv64, _) => return refuse(mode_bits, Refusal::Reserved("this MODE")),
    };
    if scheme == Scheme::Bare && value & !mode_bits != 0 {
        return refuse(value & !mode_bits, Refusal::Reserved("MODE Bare with other fields set"));
    }
    Ok(Root { scheme, table: (value & ((1 << ppn_bits) - 1)) << 12, id: id as u16 })
}
