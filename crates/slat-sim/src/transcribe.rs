//! An x86 guest's tables in another architecture's words.
//!
//! x86-64 with four levels, AArch64 with the 4K granule and 48 bits, and RISC-V Sv48 cut an address
//! alike: four levels of 512 entries. So each table page stays where it is, and each entry is written
//! anew in the other format. Root loads and invalidations become those that the other architecture
//! would need for the same effect. Accessed and dirty flags are taken as set: the recording does not
//! say what another kernel would do about them.

use slat::format::riscv::bits as riscv;
use slat::format::x86::bits as x86;
use slat_trace::{At, Control, Event, Invalidation, Root};

use crate::compare::Scheme;

/// The architecture that a guest is transcribed into.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum Target {
    /// AArch64, both halves of the address space.
    Aarch64,
    /// RISC-V Sv48.
    RiscV,
}

/// TCR_EL1 with 48 bits in both halves and 4K granules, 48 bits of output (Arm ARM D24.2.182).
const TCR: u64 = 16 | 16 << 16 | 2 << 30 | 5 << 32;
/// SCTLR_EL1 with M, C and I.
const SCTLR: u64 = 0x1005;
/// Every attribute index is Normal write-back memory.
const MAIR: u64 = 0xffff_ffff_ffff_ffff;

/// TLBI ASIDE1 and TLBI VAAE1, as the recording names operations: op1, CRn, CRm, op2.
const ASIDE1: u16 = 8 << 7 | 7 << 3 | 2;
const VAAE1: u16 = 8 << 7 | 7 << 3 | 3;

/// Where an x86 entry has its address (Intel SDM 3A 4.5).
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// No level is known of a page.
const UNKNOWN: u8 = u8::MAX;

/// A recording's events in another architecture.
#[derive(Clone, Debug)]
pub struct Transcribed {
    target: Target,
    /// Level of each table page, by frame.
    levels: Vec<u8>,
    /// The events of the last batch.
    events: Vec<At>,
    begun: bool,
    /// Tables of five levels were seen.
    too_deep: bool,
}

impl Transcribed {
    /// Nothing yet.
    pub fn new(target: Target) -> Transcribed {
        Transcribed {
            target,
            levels: Vec::new(),
            events: Vec::new(),
            begun: false,
            too_deep: false,
        }
    }

    /// What a guest is transcribed into for a scheme.
    pub fn target(scheme: Scheme) -> Option<Target> {
        match scheme {
            Scheme::Arm(_) => Some(Target::Aarch64),
            Scheme::RiscV(_) => Some(Target::RiscV),
            _ => None,
        }
    }

    /// Whether it is into this one.
    pub fn is_for(&self, target: Target) -> bool {
        self.target == target
    }

    /// The events of the last batch that was taken.
    pub fn events(&self) -> &[At] {
        &self.events
    }

    /// What has to be known of it.
    pub fn note(&self) -> Option<String> {
        self.too_deep.then(|| {
            format!(
                "The guest has tables of five levels, which are not transcribed: ignore {}.",
                match self.target {
                    Target::Aarch64 => "stage2",
                    Target::RiscV => "g-stage",
                }
            )
        })
    }

    /// Transcribes a batch's events.
    pub fn take(&mut self, events: &[At]) {
        self.events.clear();
        for at in events {
            self.one(at);
        }
    }

    fn push(&mut self, at: &At, event: Event) {
        self.events.push(At { event, ..*at });
    }

    fn one(&mut self, at: &At) {
        match at.event {
            Event::Control { .. } => {
                if !self.begun && self.target == Target::Aarch64 {
                    for (register, value) in
                        [(Control::Mair, MAIR), (Control::Tcr, TCR), (Control::Sctlr, SCTLR)]
                    {
                        self.push(at, Event::Control { register, value });
                    }
                }
                self.begun = true;
            }
            Event::Root { value, .. } => self.root(at, value & ADDRESS),
            Event::TablePage { gpa, level, .. } => {
                self.too_deep |= level > 3;
                let frame = (gpa >> 12) as usize;
                if self.levels.len() <= frame {
                    // As much as the machines keep; they refuse what is beyond.
                    self.levels.resize((frame + 1).min(1 << 24), UNKNOWN);
                }
                if let Some(known) = self.levels.get_mut(frame) {
                    *known = level;
                }
                self.push(at, at.event);
            }
            Event::TableEntry { gpa, value } => {
                let value = self.entry(gpa, value);
                self.push(at, Event::TableEntry { gpa, value });
            }
            Event::TableStore { gpa, value } => {
                let value = self.entry(gpa, value);
                self.push(at, Event::TableStore { gpa, value });
            }
            Event::Invalidate(Invalidation::Invlpg { va }) => {
                let invalidation = match self.target {
                    Target::Aarch64 => {
                        Invalidation::Tlbi { operation: VAAE1, operand: va >> 12 & ((1 << 44) - 1) }
                    }
                    Target::RiscV => Invalidation::Invlpg { va },
                };
                self.push(at, Event::Invalidate(invalidation));
            }
            _ => self.push(at, at.event),
        }
    }

    fn root(&mut self, at: &At, table: u64) {
        match self.target {
            // One table serves both halves: the lower one's entries lie in its first half, the upper
            // one's in its second. MOV to CR3 drops what is not global, and so must this.
            Target::Aarch64 => {
                self.push(at, Event::Root { root: Root::Ttbr1, value: table });
                self.push(at, Event::Root { root: Root::Ttbr0, value: table });
                let drop = Invalidation::Tlbi { operation: ASIDE1, operand: 0 };
                self.push(at, Event::Invalidate(drop));
            }
            Target::RiscV => self.push(at, Event::Root { root: Root::Cr3, value: table }),
        }
    }

    fn entry(&self, gpa: u64, entry: u64) -> u64 {
        let level = self.levels.get((gpa >> 12) as usize).copied().unwrap_or(UNKNOWN);
        if entry & x86::P == 0 || level > 3 {
            return 0;
        }
        let leaf = level == 0 || entry & x86::PS != 0 && level < 3;
        let shift = if leaf { 12 + 9 * u32::from(level) } else { 12 };
        // A large leaf has PAT where the address would go on.
        let address = entry & ADDRESS & (!0 << shift);
        match self.target {
            Target::Aarch64 => arm64(entry, address, leaf, level),
            Target::RiscV => sv48(entry, address, leaf),
        }
    }
}

/// An AArch64 stage-1 descriptor (Arm ARM D8.3.1, D8.3.2).
fn arm64(entry: u64, address: u64, leaf: bool, level: u8) -> u64 {
    if !leaf {
        return address | 0b11;
    }
    let user = entry & x86::US != 0;
    let set = |bit: u32, on: bool| u64::from(on) << bit;
    address
        | if level == 0 { 0b11 } else { 0b01 }
        | set(6, user)
        | set(7, entry & x86::RW == 0)
        | 0b11 << 8
        | set(10, true)
        | set(11, entry & x86::G == 0)
        | set(53, user || entry & x86::XD != 0)
        | set(54, !user || entry & x86::XD != 0)
}

/// A RISC-V PTE (privileged ISA, 12.4).
fn sv48(entry: u64, address: u64, leaf: bool) -> u64 {
    let pointer = address >> 2 | riscv::V;
    if !leaf {
        return pointer;
    }
    let set = |bit: u64, on: bool| if on { bit } else { 0 };
    pointer
        | riscv::R
        | riscv::A
        | set(riscv::W | riscv::D, entry & x86::RW != 0)
        | set(riscv::X, entry & x86::XD == 0)
        | set(riscv::U, entry & x86::US != 0)
        | set(riscv::G, entry & x86::G != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_keep_place_and_rights() {
        // A user page, read-only, not executable; a kernel page of 2 MiB, global, writable.
        let user = 0x1234_5000 | x86::P | x86::US | x86::A | x86::XD;
        let kernel = 0x4020_0000 | x86::P | x86::RW | x86::PS | x86::G;
        assert_eq!(arm64(user, 0x1234_5000, true, 0), 0x1234_5000 | 0x60_0000_0000_0fc3);
        assert_eq!(arm64(kernel, 0x4020_0000, true, 1), 0x4020_0000 | 0x40_0000_0000_0701);
        assert_eq!(sv48(user, 0x1234_5000, true), 0x1234_5000 >> 2 | 0b0101_0011);
        assert_eq!(sv48(kernel, 0x4020_0000, true), 0x4020_0000 >> 2 | 0b1110_1111);
    }
}
