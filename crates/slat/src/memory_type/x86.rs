//! x86 memory types: PAT (Intel SDM 3A 13.12, AMD APM 2 7.8), their combination with EPT's type
//! (Intel SDM 3C 30.3.7) and with the host's PAT under NPT (AMD APM 2 15.25.8).

use core::fmt;

use crate::regime::x86::State;

/// An x86 memory type.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Type {
    /// Uncacheable.
    Uc,
    /// Write combining.
    Wc,
    /// Write through.
    Wt,
    /// Write protected.
    Wp,
    /// Write back.
    Wb,
    /// Uncacheable, but WC where the MTRR says so. Exists in the PAT only.
    UcMinus,
}

impl Type {
    /// The type with this encoding in a PAT entry, an MTRR or an EPT leaf; `None` for reserved
    /// encodings. 7 (UC-) exists in PAT entries only.
    pub const fn from_encoding(encoding: u8) -> Option<Type> {
        Some(match encoding {
            0 => Type::Uc,
            1 => Type::Wc,
            4 => Type::Wt,
            5 => Type::Wp,
            6 => Type::Wb,
            7 => Type::UcMinus,
            _ => return None,
        })
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Type::Uc => "UC",
            Type::Wc => "WC",
            Type::Wt => "WT",
            Type::Wp => "WP",
            Type::Wb => "WB",
            Type::UcMinus => "UC-",
        })
    }
}

/// The type that entry `index` (0 to 7) of a PAT register has. A reserved encoding cannot be
/// loaded into the register (#GP); it reads as UC here.
pub const fn pat_entry(pat: u64, index: u8) -> Type {
    match Type::from_encoding((pat >> (8 * (index as u32 & 7))) as u8 & 7) {
        Some(memory_type) => memory_type,
        None => Type::Uc,
    }
}

/// The effective type of a native access: UC while caches are disabled, else PAT and MTRR combined.
pub(super) fn native(pat: Type, address: u64, state: &State) -> Type {
    if state.cache_disabled { Type::Uc } else { with_mtrrs(pat, address, state) }
}

fn with_mtrrs(pat: Type, address: u64, state: &State) -> Type {
    match &state.mtrrs {
        Some(mtrrs) => mtrr_and_pat(mtrrs.type_of(address), pat),
        None => pat,
    }
}

/// Intel SDM 3C 30.3.7.2: UC with CR0.CD set, else EPT's type alone where it ignores the PAT, else
/// both combined as table 13-7 combines MTRR and PAT.
pub(super) fn under_ept(guest: Type, ept: Type, ignore_pat: bool, state: &State) -> Type {
    if state.cache_disabled {
        Type::Uc
    } else if ignore_pat {
        ept
    } else {
        mtrr_and_pat(ept, guest)
    }
}

/// Intel SDM 3A table 13-7. The manual gives every combination; the odd ones of WP were undefined in
/// old editions.
pub fn mtrr_and_pat(mtrr: Type, pat: Type) -> Type {
    use Type::{Uc, UcMinus, Wb, Wc, Wp, Wt};
    match (mtrr, pat) {
        (_, Uc) => Uc,
        (_, Wc) => Wc,
        (Wc | Wp, UcMinus) => Wc,
        (_, UcMinus) => Uc,
        // UC- does not exist in MTRRs.
        (Uc | UcMinus, Wt | Wp | Wb) => Uc,
        (Wc, Wb) => Wc,
        (Wc, Wt | Wp) => Uc,
        (Wt | Wb | Wp, Wt) => Wt,
        (Wt | Wb | Wp, Wp) => Wp,
        (Wt | Wb | Wp, Wb) => mtrr,
    }
}

/// AMD APM 2 15.25.8: guest and host PAT combined by table 15-19, then with the MTRR.
pub(super) fn under_npt(guest: Type, host: Type, address: u64, state: &State) -> Type {
    if state.cache_disabled {
        Type::Uc
    } else {
        with_mtrrs(guest_and_host_pat(guest, host), address, state)
    }
}

/// AMD APM 2 table 15-19.
pub fn guest_and_host_pat(guest: Type, host: Type) -> Type {
    use Type::{Uc, UcMinus, Wb, Wc, Wp, Wt};
    match (guest, host) {
        (Uc, _) => Uc,
        (UcMinus, Uc) => Uc,
        (UcMinus, Wc) => Wc,
        (UcMinus, _) => UcMinus,
        (Wc, _) => Wc,
        (Wb, host) => host,
        (_, Wc) => Wc,
        (Wp, Wp | Wb) => Wp,
        (Wt, Wt | Wb) => Wt,
        (Wp | Wt, _) => Uc,
    }
}

#[cfg(test)]
mod tests {
    use super::Type::{self, Uc, UcMinus, Wb, Wc, Wp, Wt};
    use super::{State, guest_and_host_pat, mtrr_and_pat, under_ept};

    const PAT: [Type; 6] = [Uc, UcMinus, Wc, Wt, Wb, Wp];

    /// Intel SDM 3A table 13-7, line by line.
    #[test]
    fn every_line_of_the_mtrr_and_pat_table() {
        let table = [
            (Uc, [Uc, Uc, Wc, Uc, Uc, Uc]),
            (Wc, [Uc, Wc, Wc, Uc, Wc, Uc]),
            (Wt, [Uc, Uc, Wc, Wt, Wt, Wp]),
            (Wb, [Uc, Uc, Wc, Wt, Wb, Wp]),
            (Wp, [Uc, Wc, Wc, Wt, Wp, Wp]),
        ];
        for (mtrr, line) in table {
            for (pat, expected) in PAT.into_iter().zip(line) {
                assert_eq!(mtrr_and_pat(mtrr, pat), expected, "MTRR {mtrr}, PAT {pat}");
            }
        }
    }

    /// AMD APM 2 table 15-19, line by line: the guest's type, then by the host's.
    #[test]
    fn every_line_of_the_guest_and_host_table() {
        let table = [
            (Uc, [Uc, Uc, Uc, Uc, Uc, Uc]),
            (UcMinus, [Uc, UcMinus, Wc, UcMinus, UcMinus, UcMinus]),
            (Wc, [Wc, Wc, Wc, Wc, Wc, Wc]),
            (Wt, [Uc, Uc, Wc, Wt, Wt, Uc]),
            (Wb, [Uc, UcMinus, Wc, Wt, Wb, Wp]),
            (Wp, [Uc, Uc, Wc, Uc, Wp, Wp]),
        ];
        for (guest, line) in table {
            for (host, expected) in PAT.into_iter().zip(line) {
                let combined = guest_and_host_pat(guest, host);
                assert_eq!(combined, expected, "guest {guest}, host {host}");
            }
        }
    }

    /// Intel SDM 3C 30.3.7.2. A memory write-back in EPT and uncacheable in the guest, and the reverse.
    #[test]
    fn ept_ignores_the_guests_type_where_it_says_so_and_caches_are_on() {
        let (on, off) = (State::default(), State { cache_disabled: true, ..State::default() });
        for ept in [Uc, Wc, Wt, Wp, Wb] {
            for guest in PAT {
                assert_eq!(under_ept(guest, ept, true, &on), ept);
                assert_eq!(under_ept(guest, ept, false, &on), mtrr_and_pat(ept, guest));
                assert_eq!(under_ept(guest, ept, true, &off), Uc);
                assert_eq!(under_ept(guest, ept, false, &off), Uc);
            }
        }
    }
}
