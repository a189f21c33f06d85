//! Memory type range registers (Intel SDM 3A 13.11, AMD APM 2 7.7).

use crate::memory_type::x86::Type;

/// The most variable ranges that are looked at; processors have 8 to 10.
pub const MAX_VARIABLE: usize = 16;

/// A variable range: `IA32_MTRR_PHYSBASEn` and `IA32_MTRR_PHYSMASKn`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub struct Variable {
    /// Bits 7:0 type, bits above 11 address.
    pub base: u64,
    /// Bit 11 valid, bits above it mask.
    pub mask: u64,
}

/// The MTRRs of a processor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mtrrs {
    /// `IA32_MTRR_DEF_TYPE`: bits 7:0 default type, bit 10 fixed ranges enabled, bit 11 enabled.
    pub def_type: u64,
    /// The eleven fixed-range registers in address order: `FIX64K_00000`, `FIX16K_80000`,
    /// `FIX16K_A0000`, `FIX4K_C0000` to `FIX4K_F8000`.
    pub fixed: [u64; 11],
    /// The variable ranges; those without the valid bit do not count.
    pub variable: [Variable; MAX_VARIABLE],
}

impl Mtrrs {
    /// The type of the byte at this system physical address (SDM 3A 13.11.4.1).
    pub fn type_of(&self, address: u64) -> Type {
        const ENABLED: u64 = 1 << 11;
        const FIXED_ENABLED: u64 = 1 << 10;
        const VALID: u64 = 1 << 11;
        if self.def_type & ENABLED == 0 {
            return Type::Uc;
        }
        if address < 0x10_0000 && self.def_type & FIXED_ENABLED != 0 {
            let (register, byte) = match address {
                0..0x8_0000 => (0, address >> 16),
                0x8_0000..0xc_0000 => {
                    let index = (address - 0x8_0000) >> 14;
                    (1 + index / 8, index % 8)
                }
                _ => {
                    let index = (address - 0xc_0000) >> 12;
                    (3 + index / 8, index % 8)
                }
            };
            return encoded(self.fixed[register as usize] >> (8 * byte));
        }
        let mut found = None;
        for range in self.variable.iter().filter(|range| range.mask & VALID != 0) {
            let mask = range.mask & !0xfff;
            if address & mask == range.base & mask {
                let this = encoded(range.base);
                found = Some(match found {
                    None => this,
                    Some(other) => overlapping(other, this),
                });
            }
        }
        found.unwrap_or(encoded(self.def_type))
    }
}

/// Overlapping variable ranges: UC counts first, then WT over WB; other mixes are undefined, and
/// UC is what does least harm.
fn overlapping(one: Type, other: Type) -> Type {
    match (one, other) {
        (one, other) if one == other => one,
        (Type::Wt, Type::Wb) | (Type::Wb, Type::Wt) => Type::Wt,
        _ => Type::Uc,
    }
}

/// The type in bits 7:0. UC- does not exist in MTRRs; reserved encodings cannot be written.
fn encoded(register: u64) -> Type {
    match Type::from_encoding(register as u8) {
        None | Some(Type::UcMinus) => Type::Uc,
        Some(memory_type) => memory_type,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mtrrs(def_type: u64) -> Mtrrs {
        let mut fixed = [0; 11];
        for (register, value) in fixed.iter_mut().enumerate() {
            // Each byte's type alternates so that every border shows.
            *value = if register % 2 == 0 { 0x0600_0600_0600_0600 } else { 0x0006_0006_0006_0006 };
        }
        Mtrrs { def_type, fixed, variable: [Variable::default(); MAX_VARIABLE] }
    }

    #[test]
    fn disabled_is_uncacheable() {
        assert_eq!(mtrrs(6).type_of(0x1234_5000), Type::Uc);
    }

    #[test]
    fn fixed_ranges_have_three_granularities() {
        let mtrrs = mtrrs(0xc06);
        let expect = |address: u64, register: usize, byte: u64| {
            let expected =
                if mtrrs.fixed[register] >> (8 * byte) & 0xff == 6 { Type::Wb } else { Type::Uc };
            assert_eq!(mtrrs.type_of(address), expected, "{address:#x}");
        };
        for page in 0..256u64 {
            let address = page << 12;
            match page {
                0..128 => expect(address, 0, page / 16),
                128..160 => expect(address, 1, (page - 128) / 4),
                160..192 => expect(address, 2, (page - 160) / 4),
                _ => expect(address, 3 + (page as usize - 192) / 8, (page - 192) % 8),
            }
        }
        assert_eq!(mtrrs.type_of(0x10_0000), Type::Wb);
    }

    #[test]
    fn variable_ranges_overlap() {
        let mut mtrrs = mtrrs(0x806);
        mtrrs.variable[0] = Variable { base: 0xc000_0000, mask: 0xf_c000_0800 };
        mtrrs.variable[1] = Variable { base: 0x8000_0004, mask: 0xf_8000_0800 };
        mtrrs.variable[2] = Variable { base: 0x8000_0006, mask: 0xf_f000_0800 };
        assert_eq!(mtrrs.type_of(0xc000_0000), Type::Uc);
        assert_eq!(mtrrs.type_of(0x8000_0000), Type::Wt);
        assert_eq!(mtrrs.type_of(0x9000_0000), Type::Wt);
        assert_eq!(mtrrs.type_of(0x7fff_ffff), Type::Wb);
    }
}
