//! Segment registers with their hidden parts, and what a VM entry without unrestricted guest asks
//! of them (Intel SDM 3C 28.3.1.2; access rights as in the VMCS, table 26-2).

use std::fmt;

/// Type bits 3:0, in access rights.
const TYPE: u32 = 0xf;
/// Code or data, not a system segment.
const S: u32 = 1 << 4;
const DPL_SHIFT: u32 = 5;
/// Present.
const P: u32 = 1 << 7;
/// 32-bit operands and addresses (code), stack pointer (stack).
pub(super) const D: u32 = 1 << 14;
/// The limit counts pages.
const G: u32 = 1 << 15;

/// A segment register: the selector, and what the processor holds of the descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Segment {
    /// What software loaded.
    pub selector: u16,
    /// First byte, linear.
    pub base: u32,
    /// Last offset.
    pub limit: u32,
    /// Access rights, as the VMCS has them.
    pub rights: u32,
}

/// The registers, by number in instructions.
pub(super) const NAMES: [&str; 4] = ["ES", "CS", "SS", "DS"];
pub(super) const ES: usize = 0;
pub(super) const CS: usize = 1;
pub(super) const SS: usize = 2;
pub(super) const DS: usize = 3;

/// Why the processor cannot enter the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unfit {
    register: usize,
    why: Why,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Why {
    Base,
    Limit,
    Wide,
    Type,
    System,
    Absent,
    Privilege,
    Requested,
    Granularity,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES[self.register];
        let why = match self.why {
            Why::Base => "base is not its selector times 16",
            Why::Limit => "limit is not 0xffff",
            Why::Wide => "is a 32-bit segment",
            Why::Type => "is of a type that the entry refuses",
            Why::System => "is a system segment",
            Why::Absent => "is not present",
            Why::Privilege => "privilege level does not fit its selector's",
            Why::Requested => "selector asks for another privilege level than CS",
            Why::Granularity => "limit does not fit its granularity",
        };
        write!(f, "{name} {why}")
    }
}

impl Segment {
    /// After a real-mode load, with the limit and rights that a processor has after reset.
    pub(super) const fn real(selector: u16) -> Segment {
        let base = (selector as u32) << 4;
        Segment { selector, base, limit: 0xffff, rights: 0x93 }
    }

    /// What a descriptor makes.
    pub(super) const fn from_descriptor(selector: u16, descriptor: u64) -> Segment {
        let raw = (descriptor & 0xffff) as u32 | (descriptor >> 32 & 0xf_0000) as u32;
        let rights = (descriptor >> 40 & 0xf0ff) as u32;
        let limit = if rights & G != 0 { raw << 12 | 0xfff } else { raw };
        let base = (descriptor >> 16 & 0xff_ffff) as u32 | (descriptor >> 32 & 0xff00_0000) as u32;
        Segment { selector, base, limit, rights }
    }

    pub(super) const fn is_present(&self) -> bool {
        self.rights & P != 0
    }

    pub(super) const fn is_wide(&self) -> bool {
        self.rights & D != 0
    }

    const fn kind(&self) -> u32 {
        self.rights & TYPE
    }

    const fn dpl(&self) -> u32 {
        self.rights >> DPL_SHIFT & 3
    }

    const fn rpl(&self) -> u32 {
        self.selector as u32 & 3
    }
}

/// Whether the registers fit virtual-8086 mode: base 16 times the selector, limit 0xffff, and
/// rights that are no other than those of a 16-bit segment, which the hypervisor enters as 0xf3.
pub(super) fn fits_virtual_8086(segments: &[Segment; 4]) -> Result<(), Unfit> {
    for (register, segment) in segments.iter().enumerate() {
        let unfit = |why| Err(Unfit { register, why });
        if segment.base != u32::from(segment.selector) << 4 {
            return unfit(Why::Base);
        }
        if segment.limit != 0xffff {
            return unfit(Why::Limit);
        }
        if segment.is_wide() {
            return unfit(Why::Wide);
        }
    }
    Ok(())
}

/// Whether the registers fit protected mode, as the entry checks them without unrestricted guest.
pub(super) fn fits_protected(segments: &[Segment; 4]) -> Result<(), Unfit> {
    let [_, code, stack, _] = segments;
    for (register, segment) in segments.iter().enumerate() {
        let unfit = |why| Err(Unfit { register, why });
        let kind = segment.kind();
        let fits = match register {
            // Accessed code.
            CS => matches!(kind, 9 | 11 | 13 | 15),
            // Accessed, writable data.
            SS => matches!(kind, 3 | 7),
            // Accessed; readable if code.
            _ => kind & 1 != 0 && (kind & 8 == 0 || kind & 2 != 0),
        };
        if !fits {
            return unfit(Why::Type);
        }
        if segment.rights & S == 0 {
            return unfit(Why::System);
        }
        let privileged = match register {
            CS if kind <= 11 => segment.dpl() == stack.dpl(),
            CS => segment.dpl() <= stack.dpl(),
            SS => segment.dpl() == segment.rpl(),
            _ => kind > 11 || segment.dpl() >= segment.rpl(),
        };
        if !privileged {
            return unfit(Why::Privilege);
        }
        if !segment.is_present() {
            return unfit(Why::Absent);
        }
        let coarse = segment.rights & G != 0;
        if coarse && segment.limit & 0xfff != 0xfff || !coarse && segment.limit >> 20 != 0 {
            return unfit(Why::Granularity);
        }
        if register == SS && segment.rpl() != code.rpl() {
            return unfit(Why::Requested);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAT_CODE: u64 = 0x00cf_9b00_0000_ffff;
    const FLAT_DATA: u64 = 0x00cf_9300_0000_ffff;

    fn flat() -> [Segment; 4] {
        let data = Segment::from_descriptor(0x10, FLAT_DATA);
        [data, Segment::from_descriptor(0x08, FLAT_CODE), data, data]
    }

    fn real() -> [Segment; 4] {
        [Segment::real(0x1000); 4]
    }

    #[test]
    fn descriptors_are_taken_apart() {
        let code = Segment::from_descriptor(8, FLAT_CODE);
        assert_eq!((code.base, code.limit, code.rights), (0, u32::MAX, 0xc09b));
        let small = Segment::from_descriptor(0x18, 0x1200_9a34_5678_ffff);
        assert_eq!((small.base, small.limit, small.rights), (0x1234_5678, 0xffff, 0x9a));
    }

    #[test]
    fn virtual_8086_mode_has_one_shape_of_segments() {
        assert_eq!(fits_virtual_8086(&real()), Ok(()));
        let change = |register: usize, change: fn(&mut Segment)| {
            let mut segments = real();
            change(&mut segments[register]);
            fits_virtual_8086(&segments).unwrap_err().to_string()
        };
        assert_eq!(change(CS, |s| s.base = 0xffff_0000), "CS base is not its selector times 16");
        assert_eq!(change(DS, |s| s.limit = u32::MAX), "DS limit is not 0xffff");
        assert_eq!(change(SS, |s| s.rights |= D), "SS is a 32-bit segment");
    }

    #[test]
    fn protected_mode_is_checked_as_the_entry_does() {
        assert_eq!(fits_protected(&flat()), Ok(()));
        // Real mode's CS is a data segment: until the far jump, the entry fails.
        let mut segments = flat();
        segments[CS] = Segment::real(0);
        assert!(fits_protected(&segments).unwrap_err().to_string().starts_with("CS is of a type"));
        // Real mode's selectors have any low bits.
        segments = flat();
        segments[SS] = Segment::real(0x9001);
        assert!(fits_protected(&segments).unwrap_err().to_string().contains("SS privilege"));
        segments = flat();
        segments[DS] = Segment::real(0x1003);
        assert!(fits_protected(&segments).unwrap_err().to_string().contains("DS privilege"));
        segments = flat();
        segments[ES].rights &= !P;
        assert!(fits_protected(&segments).unwrap_err().to_string().contains("not present"));
        segments = flat();
        segments[ES].limit = 0x1000;
        assert!(fits_protected(&segments).unwrap_err().to_string().contains("granularity"));
    }
}
