//! How a guest of KVM translates.

use slat::format::x86::Controls;

use super::Way;
use crate::random::Random;

/// Paging as the guest has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mode {
    /// Of what its tables are.
    pub(super) paging: Paging,
    pub(super) cr0: u64,
    pub(super) cr4: u64,
    pub(super) efer: u64,
    /// RFLAGS.AC.
    pub(super) alignment_check: bool,
}

/// The paging modes (Intel SDM 3A 5.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Paging {
    None,
    Legacy,
    Pae,
    Four,
    Five,
}

impl Paging {
    /// Levels of its tables.
    pub(super) fn levels(self) -> u8 {
        match self {
            Paging::None => 0,
            Paging::Legacy => 2,
            Paging::Pae => 3,
            Paging::Four => 4,
            Paging::Five => 5,
        }
    }

    /// Whether addresses have 64 bits.
    pub(super) fn is_long(self) -> bool {
        matches!(self, Paging::Four | Paging::Five)
    }

    /// What `slat walk` calls it; `x86-32` is also what paging that is off goes by.
    pub(super) fn name(self) -> &'static str {
        match self {
            Paging::None | Paging::Legacy => "x86-32",
            Paging::Pae => "x86-pae",
            Paging::Four => "x86-4",
            Paging::Five => "x86-5",
        }
    }
}

const PAE: u64 = 1 << 5;
const LA57: u64 = 1 << 12;

impl Mode {
    /// The mode that these registers are of.
    pub(super) fn of(cr0: u64, cr4: u64, efer: u64, alignment_check: bool) -> Mode {
        const PG: u64 = 1 << 31;
        const LME: u64 = 1 << 8;
        let paging = match () {
            () if cr0 & PG == 0 => Paging::None,
            () if cr4 & PAE == 0 => Paging::Legacy,
            () if efer & LME == 0 => Paging::Pae,
            () if cr4 & LA57 == 0 => Paging::Four,
            () => Paging::Five,
        };
        Mode { paging, cr0, cr4, efer, alignment_check }
    }

    /// Any, of those that guests can be asked in: a program in 64-bit mode runs in long mode alone.
    pub(super) fn choose(way: Way, random: &mut Random) -> Mode {
        const WP: u64 = 1 << 16;
        const PSE: u64 = 1 << 4;
        const SMEP: u64 = 1 << 20;
        const SMAP: u64 = 1 << 21;
        let translate = way == Way::Translate;
        let paging = match random.below(20) {
            0 if translate => Paging::None,
            1 => Paging::Five,
            2 if translate => Paging::Legacy,
            3 if translate => Paging::Pae,
            _ => Paging::Four,
        };
        let mut some = |bit: u64, percent| if random.chance(percent) { bit } else { 0 };
        let wp = some(WP, 60);
        let nxe = some(1 << 11, 75);
        // Of what KVM_TRANSLATE asks, SMAP alone could forbid something.
        let smep = if translate { 0 } else { some(SMEP, 40) };
        let smap = if translate { 0 } else { some(SMAP, 40) };
        let alignment_check = some(1, 40) != 0;
        let (cr0, cr4, efer) = match paging {
            Paging::None => (0x33, 0, 0),
            Paging::Legacy => (0x8000_0033 | wp, some(PSE, 80), 0),
            Paging::Pae => (0x8000_0033 | wp, PAE, nxe),
            Paging::Four => (0x8000_0033 | wp, PAE | smep | smap, 0x500 | nxe),
            Paging::Five => (0x8000_0033 | wp, PAE | LA57 | smep | smap, 0x500 | nxe),
        };
        let alignment_check = alignment_check && paging != Paging::None;
        Mode::of(cr0, cr4, efer, alignment_check)
    }

    fn bit(register: u64, bit: u32) -> bool {
        register >> bit & 1 != 0
    }

    pub(super) fn controls(self) -> Controls {
        Controls {
            write_protect: Mode::bit(self.cr0, 16),
            smep: Mode::bit(self.cr4, 20),
            smap: Mode::bit(self.cr4, 21),
            nxe: Mode::bit(self.efer, 11),
            ..Controls::default()
        }
    }

    /// CR4.PSE.
    pub(super) fn large_pages(self) -> bool {
        Mode::bit(self.cr4, 4)
    }

    /// The address with the upper bits that it should have.
    pub(super) fn canonical(self, address: u64) -> u64 {
        let unused = match self.paging {
            Paging::Five => 7,
            Paging::Four => 16,
            _ => return address & 0xFFFF_FFFF,
        };
        ((address << unused) as i64 >> unused) as u64
    }
}
