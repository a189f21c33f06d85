//! PAE paging (Intel SDM 3A 5.4, AMD APM 2 5.2.3).
//!
//! | level | manual | maps | index bits |
//! |---|---|---|---|
//! | 2 | PDPTE | | 31:30, four entries |
//! | 1 | PDE | table or 2 MiB page | 29:21 |
//! | 0 | PTE | 4 KiB page | 20:12 |
//!
//! Natively and under EPT the four PDPTEs are registers, loaded by MOV to CR3 (SDM 3A 5.4.1); in
//! a guest under NPT they are read from memory on demand (APM 2 15.25.10).

use core::fmt;

use super::long::{ADDRESS, Processor, address_bits};
use super::{Controls, bits, describe_flags, touched, type_bits, type_in};
use crate::access::{Access, Kind, Purpose, Stage1Page};
use crate::address::Address;
use crate::fault::{Cause, Reserved, Why};
use crate::format::{Decoded, Format, Found, Path, Start};
use crate::memory::{EntryLayout, Memory};
use crate::memory_type::{StageType, TypeBits};
use crate::regime::Regime;

/// Where a PAE walk begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Root {
    /// The four PDPTE registers.
    Registers([u64; 4]),
    /// CR3: the PDPTEs are read from the 32-byte aligned table it names.
    OnDemand(u64),
}

/// Why PDPTE registers could not be loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LoadFailed<B> {
    /// The entry could not be read.
    Memory {
        /// Which entry, 0 to 3.
        index: usize,
        /// The memory's fault.
        fault: B,
    },
    /// The entry has reserved bits: #GP, or a failed VM entry.
    Reserved {
        /// Which entry, 0 to 3.
        index: usize,
        /// The bits.
        bits: u64,
    },
}

impl<B: fmt::Debug> fmt::Display for LoadFailed<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LoadFailed::Memory { index, fault } => {
                write!(f, "PDPTE {index} cannot be read: {fault:?}")
            }
            LoadFailed::Reserved { index, bits } => {
                write!(f, "PDPTE {index} has reserved bits {bits:#x}: its load raises #GP")
            }
        }
    }
}

/// PAE paging.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pae {
    controls: Controls,
    pdpte_reserved: u64,
    table_reserved: u64,
    leaf_reserved: [u64; 2],
}

impl Pae {
    /// PAE paging with these controls; of `processor`, the physical width counts.
    pub fn new(controls: Controls, processor: Processor) -> Pae {
        let physical = processor.physical_bits.clamp(32, 52);
        // SDM 3A tables 5-10 to 5-12: bits 62:MAXPHYADDR are reserved, beyond bit 51 as well.
        let beyond = address_bits(u32::from(physical), 62);
        let always = beyond | if controls.nxe { 0 } else { bits::XD };
        Pae {
            controls,
            // SDM 3A table 5-8: bits 2:1, 8:5 and 63:MAXPHYADDR.
            pdpte_reserved: address_bits(u32::from(physical), 63)
                | address_bits(1, 2)
                | address_bits(5, 8),
            table_reserved: always,
            leaf_reserved: [always, always | address_bits(13, 20)],
        }
    }

    /// The bits of a PDPTE that make its load fail (#GP; under EPT, VM entry fails).
    pub fn pdpte_reserved(&self, pdpte: u64) -> u64 {
        if pdpte & bits::P == 0 { 0 } else { pdpte & self.pdpte_reserved }
    }

    /// Loads the four PDPTE registers from the table that `cr3` names, as MOV to CR3 does natively
    /// and under EPT (SDM 3A 5.4.1).
    ///
    /// # Errors
    /// Where the table cannot be read, or an entry has reserved bits (#GP).
    pub fn load_root<M: Memory>(
        &self,
        memory: &mut M,
        cr3: M::Address,
    ) -> Result<Root, LoadFailed<M::Fault>> {
        let access = Access { purpose: Purpose::PdpteLoad, ..Access::default() };
        let table = cr3.raw() & 0xffff_ffe0;
        let mut registers = [0; 4];
        for (index, register) in registers.iter_mut().enumerate() {
            let address = M::Address::new(table + 8 * index as u64);
            let read = memory
                .read(address, EntryLayout::LE64, &access)
                .map_err(|fault| LoadFailed::Memory { index, fault })?;
            let bits = self.pdpte_reserved(read.value);
            if bits != 0 {
                return Err(LoadFailed::Reserved { index, bits });
            }
            *register = read.value;
        }
        Ok(Root::Registers(registers))
    }

    /// The access controls.
    pub fn controls(&self) -> &Controls {
        &self.controls
    }
}

impl Format for Pae {
    type Root = Root;

    fn name(&self) -> &'static str {
        "x86-pae"
    }

    fn stage(&self) -> u8 {
        1
    }

    #[inline]
    fn layout(&self) -> EntryLayout {
        EntryLayout::LE64
    }

    #[inline]
    fn begin(&self, root: &Root, input: u64, _: &Access, _: &Regime) -> Result<Start, (u8, Cause)> {
        if input >> 32 != 0 {
            return Err((2, Cause::InputSize));
        }
        match root {
            Root::OnDemand(cr3) => Ok(Start::Table { table: cr3 & 0xffff_ffe0, level: 2, input }),
            Root::Registers(pdptes) => {
                let pdpte = pdptes[(input >> 30) as usize & 3];
                if pdpte & bits::P == 0 {
                    return Err((2, Cause::Empty));
                }
                // The root's index is everything from its shift up: keep bits 29:0.
                let input = input & 0x3fff_ffff;
                Ok(Start::Table { table: pdpte & ADDRESS, level: 1, input })
            }
        }
    }

    #[inline]
    fn shift(&self, level: u8) -> u32 {
        12 + 9 * u32::from(level)
    }

    #[inline]
    fn index_bits(&self, level: u8) -> u32 {
        if level == 2 { 2 } else { 9 }
    }

    #[inline]
    fn decode(&self, entry: u64, level: u8) -> Decoded {
        if entry & bits::P == 0 {
            return Decoded::Empty;
        }
        let is_leaf = level == 0 || level == 1 && entry & bits::PS != 0;
        let reserved = entry
            & match level {
                0 => self.leaf_reserved[0],
                1 if is_leaf => self.leaf_reserved[1],
                1 => self.table_reserved,
                _ => self.pdpte_reserved,
            };
        if reserved != 0 {
            return Decoded::Reserved(Reserved { why: Why::Bits, bits: reserved });
        }
        if is_leaf {
            let shift = self.shift(level);
            Decoded::Leaf { base: entry & ADDRESS & (!0 << shift), shift: shift as u8 }
        } else {
            Decoded::Table { next: entry & ADDRESS }
        }
    }

    #[inline]
    fn join(&self, path: &mut Path, entry: u64, level: u8) {
        // PDPTEs have neither R/W nor U/S nor XD: they restrict nothing.
        if level < 2 {
            path.and &= entry;
            path.or |= entry;
        }
    }

    #[inline(always)]
    fn plainly_permits(&self, found: &Found, access: &Access, _: &Regime) -> bool {
        self.controls.plainly_permits(found, access)
    }

    fn check(&self, found: &Found, access: &Access, regime: &Regime) -> Result<(), Cause> {
        let rights = self.controls.rights(found);
        self.controls.denied(rights, access, &regime.x86).into_result()
    }

    fn touched(&self, entry: u64, level: u8, is_leaf: bool, access: &Access) -> u64 {
        // PDPTEs have no accessed bit.
        if level == 2 { entry } else { touched(entry, is_leaf, access) }
    }

    #[inline(always)]
    fn type_bits(&self, found: &Found) -> TypeBits {
        type_bits(found)
    }

    fn type_of(&self, bits: TypeBits, _: Kind, regime: &Regime) -> StageType {
        StageType::Pat(type_in(regime.x86.pat, bits))
    }

    fn arch_level(&self, level: u8) -> i8 {
        level as i8 + 1
    }

    fn describe(&self, entry: u64, level: u8, f: &mut dyn fmt::Write) -> fmt::Result {
        match self.decode(entry, level) {
            Decoded::Empty => f.write_str("not present"),
            Decoded::Reserved(reserved) => {
                describe_flags(entry, None, f)?;
                write!(f, "; {reserved}")
            }
            Decoded::Leaf { .. } => describe_flags(entry, Some(level), f),
            _ if level == 2 => f.write_str("P"),
            _ => describe_flags(entry, None, f),
        }
    }

    fn page(&self, found: &Found, _: &Regime) -> Stage1Page {
        self.controls.page(found)
    }
}
