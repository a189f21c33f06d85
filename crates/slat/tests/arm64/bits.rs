//! Every bit of every entry, flipped, against a description of that bit that is written here.

use slat::format::arm64::{Granule, Processor, Stage1, Stage2, TranslationRegime};
use slat::format::{Decoded, Format, Found, Path};
use slat::regime::arm;
use slat::{Access, Kind, Privilege, Purpose, Regime, Why};

/// One way of encoding entries: granule, DS, physical and output address width.
#[derive(Clone, Copy, Debug)]
struct Encoding {
    granule: Granule,
    ds: bool,
    physical_bits: u8,
    output_bits: u8,
}

const SIZES: [(u8, u64); 7] = [(32, 0), (36, 1), (40, 2), (42, 3), (44, 4), (48, 5), (52, 6)];

fn encodings() -> Vec<Encoding> {
    let mut encodings = Vec::new();
    for granule in [Granule::Four, Granule::Sixteen, Granule::SixtyFour] {
        for ds in [false, true] {
            for physical_bits in [40, 48, 52] {
                for (output_bits, _) in SIZES {
                    encodings.push(Encoding { granule, ds, physical_bits, output_bits });
                }
            }
        }
    }
    encodings
}

impl Encoding {
    fn processor(&self) -> Processor {
        Processor { physical_bits: self.physical_bits, ..Processor::default() }
    }

    fn size(&self) -> u64 {
        SIZES.iter().find(|(bits, _)| *bits == self.output_bits).unwrap().1
    }

    fn stage1(&self) -> Stage1 {
        let tg = match self.granule {
            Granule::Four => 2 << 30,
            Granule::Sixteen => 2 << 14 | 1 << 30,
            Granule::SixtyFour => 1 << 14 | 3 << 30,
        };
        let tcr = 20 | 20 << 16 | tg | self.size() << 32 | u64::from(self.ds) << 59;
        Stage1::new(TranslationRegime::El10, tcr, 1, 0, &self.processor()).unwrap()
    }

    fn stage2(&self) -> Stage2 {
        let tg = match self.granule {
            Granule::Four => 0,
            Granule::Sixteen => 2 << 14,
            Granule::SixtyFour => 1 << 14,
        };
        let vtcr = 28 | 1 << 6 | tg | self.size() << 16 | u64::from(self.ds) << 32;
        Stage2::new(vtcr, arm::hcr::VM, 0, &self.processor()).unwrap()
    }

    fn ds(&self) -> bool {
        self.ds && self.granule != Granule::SixtyFour
    }

    /// The levels that a tree of this granule can have, lowest first.
    fn levels(&self) -> u8 {
        match self.granule {
            Granule::Four => 5,
            Granule::Sixteen => 4,
            Granule::SixtyFour => 3,
        }
    }

    /// log2 of the size that a leaf of this level maps: the manual's tables of block sizes, written out.
    fn leaf_shift(&self, level: u8) -> u32 {
        let sizes: &[u32] = match self.granule {
            Granule::Four => &[12, 21, 30, 39, 48],
            Granule::Sixteen => &[14, 25, 36, 47],
            Granule::SixtyFour => &[16, 29, 42],
        };
        sizes[usize::from(level)]
    }

    fn has_block(&self, level: u8) -> bool {
        match (self.granule, level) {
            (_, 0 | 4) => false,
            (_, 1) => true,
            (Granule::Four, 2) => true,
            (Granule::Four, 3) | (Granule::Sixteen, 2) => self.ds(),
            (Granule::SixtyFour, 2) => self.physical_bits == 52,
            _ => false,
        }
    }

    /// Which bit of the output address this bit of an entry is, where its low bits are from `low`.
    fn address_bit(&self, bit: u32, low: u32) -> Option<u32> {
        match (self.granule, bit) {
            (Granule::SixtyFour, 12..=15) if self.physical_bits == 52 => Some(bit + 36),
            (Granule::Four | Granule::Sixteen, 8 | 9) if self.ds() => Some(bit + 42),
            (Granule::Four | Granule::Sixteen, 48 | 49) if self.ds() => Some(bit),
            (_, 0..=47) if bit >= low => Some(bit),
            _ => None,
        }
    }

    /// The whole decode, bit by bit.
    fn expected(&self, entry: u64, level: u8) -> Decoded {
        let kind = entry & 3;
        if kind & 1 == 0 {
            return Decoded::Empty;
        }
        let is_table = kind == 3 && level > 0;
        let reserved = |why, bits| Decoded::Reserved(slat::Reserved { why, bits });
        if kind == 1 && level == 0 {
            return reserved(Why::Encoding, 3);
        }
        if kind == 1 && !self.has_block(level) {
            return reserved(Why::LeafLevel, 3);
        }
        let low = if is_table { self.leaf_shift(0) } else { self.leaf_shift(level) };
        let width = u32::from(self.output_bits.min(self.physical_bits));
        let (mut output, mut beyond) = (0u64, 0u64);
        for bit in (0..64).filter(|bit| entry >> bit & 1 != 0) {
            if let Some(place) = self.address_bit(bit, low) {
                output += 1 << place;
                if place >= width {
                    beyond += 1 << bit;
                }
            }
        }
        if beyond != 0 {
            return reserved(Why::AddressSize, beyond);
        }
        if is_table {
            Decoded::Table { next: output }
        } else {
            Decoded::Leaf { base: output, shift: low as u8 }
        }
    }
}

/// Entries whose every bit is flipped.
const BASES: [u64; 8] = [
    0,
    1,
    3,
    0x0000_0000_8765_4703,
    0x0000_0000_c000_0701,
    0x0000_0000_ffff_ffff,
    !0,
    0xfff0_0000_0000_0fff,
];

#[test]
fn every_bit_of_every_entry_decodes_as_described() {
    for encoding in encodings() {
        let (stage1, stage2) = (encoding.stage1(), encoding.stage2());
        for level in 0..encoding.levels() {
            for base in BASES {
                for bit in 0..=64 {
                    let entry = if bit == 64 { base } else { base ^ 1 << bit };
                    let expected = encoding.expected(entry, level);
                    assert_eq!(
                        stage1.decode(entry, level),
                        expected,
                        "stage 1, {encoding:?}, level {level}, {entry:#x}"
                    );
                    assert_eq!(
                        stage2.decode(entry, level),
                        expected,
                        "stage 2, {encoding:?}, level {level}, {entry:#x}"
                    );
                }
            }
        }
    }
}

fn accesses() -> Vec<Access> {
    let mut accesses = Vec::new();
    for kind in [Kind::Read, Kind::Write, Kind::Execute] {
        for privilege in [Privilege::Supervisor, Privilege::User] {
            accesses.push(Access::new(kind, privilege));
        }
    }
    accesses
}

fn found(entry: u64, tables: u64) -> Found {
    Found {
        entry,
        level: 0,
        base: 0,
        shift: 12,
        path: Path { and: tables, or: tables, via: !0 },
        input: 0x1000,
        kind: Kind::Read,
    }
}

/// What a leaf and the tables above it let EL1 and EL0 do, as three-letter rights, for EL1&0
/// without WXN and PAN.
fn rights(entry: u64, tables: u64) -> (String, String) {
    let set = |word: u64, bit: u32| word >> bit & 1 != 0;
    let (mut el1, mut el0) = match entry >> 6 & 3 {
        0 => ("rw", "--"),
        1 => ("rw", "rw"),
        2 => ("r-", "--"),
        _ => ("r-", "r-"),
    };
    if set(tables, 62) {
        el1 = "r-";
        el0 = if el0 == "--" { "--" } else { "r-" };
    }
    if set(tables, 61) {
        el0 = "--";
    }
    let el1_never = set(entry, 53) || set(tables, 59) || el0 == "rw";
    let el0_never = set(entry, 54) || set(tables, 60);
    let right = |data: &str, never: bool| format!("{data}{}", if never { "-" } else { "x" });
    (right(el1, el1_never), right(el0, el0_never))
}

fn letter(kind: Kind) -> char {
    match kind {
        Kind::Read => 'r',
        Kind::Write => 'w',
        Kind::Execute => 'x',
    }
}

#[test]
fn every_bit_of_stage_1_permits_as_described() {
    let encoding =
        Encoding { granule: Granule::Four, ds: false, physical_bits: 48, output_bits: 48 };
    let stage1 = encoding.stage1();
    let regime = Regime::default();
    for ap in 0..4u64 {
        let base = 1 << 10 | ap << 6 | 3;
        // Each bit of the leaf with no table rights taken, and each bit of a table.
        let mut cases: Vec<(u64, u64)> = (0..64).map(|bit| (base ^ 1 << bit, 3)).collect();
        cases.extend((0..64).map(|bit| (base, 3 ^ 1 << bit)));
        cases.extend((0..16).map(|bits| (base, 3 | bits << 59)));
        for (entry, tables) in cases {
            let (el1, el0) = rights(entry, tables);
            for access in accesses() {
                let right = if access.privilege == Privilege::User { &el0 } else { &el1 };
                let expected = entry >> 10 & 1 != 0 && right.contains(letter(access.kind));
                let permitted = stage1.check(&found(entry, tables), &access, &regime).is_ok();
                assert_eq!(permitted, expected, "{entry:#x} under {tables:#x}: {access:?}");
            }
        }
    }
}

#[test]
fn every_bit_of_stage_2_permits_as_described() {
    let encoding =
        Encoding { granule: Granule::Four, ds: false, physical_bits: 48, output_bits: 48 };
    let stage2 = encoding.stage2();
    let regime = Regime::default();
    for rights in 0..16u64 {
        let base = 1 << 10 | (rights & 3) << 6 | (rights >> 2) << 53 | 0xf << 2 | 3;
        for bit in 0..=64 {
            let entry = if bit == 64 { base } else { base ^ 1 << bit };
            // XN[1:0]: everybody, EL0 alone, nobody, EL1 alone.
            let (el1, el0) = match entry >> 53 & 3 {
                0 => (true, true),
                1 => (false, true),
                2 => (false, false),
                _ => (true, false),
            };
            for access in accesses() {
                let expected = entry >> 10 & 1 != 0
                    && match access.kind {
                        Kind::Read => entry >> 6 & 1 != 0,
                        Kind::Write => entry >> 7 & 1 != 0,
                        Kind::Execute if access.privilege == Privilege::User => el0,
                        Kind::Execute => el1,
                    };
                let permitted = stage2.check(&found(entry, 3), &access, &regime).is_ok();
                assert_eq!(permitted, expected, "{entry:#x}: {access:?}");
            }
        }
    }
}

/// A stage-1 walk needs to read its entries, and hardware that updates one to write it as well.
#[test]
fn stage_1_tables_need_their_rights_of_stage_2() {
    let encoding =
        Encoding { granule: Granule::Four, ds: false, physical_bits: 48, output_bits: 48 };
    let stage2 = encoding.stage2();
    for rights in 0..4u64 {
        for (purpose, kind, needed) in [
            (Purpose::Table { level: 0 }, Kind::Read, 1),
            (Purpose::Update { level: 0 }, Kind::Write, 3),
        ] {
            // Normal and device memory, with HCR_EL2.PTW clear and set.
            for (mem_attr, ptw) in [(0xf, false), (0xf, true), (1, false), (1, true)] {
                let mut regime = Regime::default();
                regime.arm.protect_table_walks = ptw;
                let access = Access { purpose, ..Access::new(kind, Privilege::Supervisor) };
                let entry = 1 << 10 | rights << 6 | mem_attr << 2 | 3;
                let permitted = stage2.check(&found(entry, 3), &access, &regime).is_ok();
                let expected = rights & needed == needed && !(ptw && mem_attr == 1);
                assert_eq!(permitted, expected, "{entry:#x}: {access:?}, PTW {ptw}");
            }
        }
    }
}

/// Hardware updates touch AF, and the write permission of a DBM leaf; nothing else, and not tables.
#[test]
fn every_bit_is_left_alone_but_those_that_hardware_updates() {
    let processor = Processor::default();
    for ha in [false, true] {
        for hd in [false, true] {
            let (h1, h2) = (
                u64::from(ha) << 39 | u64::from(hd) << 40,
                u64::from(ha) << 21 | u64::from(hd) << 22,
            );
            let tcr = 16 | 16 << 16 | 2 << 30 | 5 << 32 | h1;
            let stage1 = Stage1::new(TranslationRegime::El10, tcr, 1, 0, &processor).unwrap();
            let vtcr = 24 | 1 << 6 | 5 << 16 | h2;
            let stage2 = Stage2::new(vtcr, 1, 0, &processor).unwrap();
            for base in BASES {
                for bit in 0..64 {
                    let entry = base ^ 1 << bit;
                    for access in accesses() {
                        let write = access.kind == Kind::Write;
                        let accessed = if ha { entry | 1 << 10 } else { entry };
                        let dirty = ha && hd && write && entry >> 51 & 1 != 0;
                        let expected1 = if dirty { accessed & !(1 << 7) } else { accessed };
                        let expected2 = if dirty { accessed | 1 << 7 } else { accessed };
                        assert_eq!(stage1.touched(entry, 0, true, &access), expected1);
                        assert_eq!(stage2.touched(entry, 0, true, &access), expected2);
                        assert_eq!(stage1.touched(entry, 1, false, &access), entry);
                        assert_eq!(stage2.touched(entry, 1, false, &access), entry);
                    }
                }
            }
        }
    }
}

/// How many neighbours a contiguous leaf has.
#[test]
fn contiguous_ranges() {
    let shift = |granule, level| {
        let ds = granule != Granule::SixtyFour;
        let encoding = Encoding { granule, ds, physical_bits: 52, output_bits: 52 };
        encoding.stage1().geometry().contiguous_shift(level)
    };
    for (granule, expected) in [
        (Granule::Four, [Some(16), Some(25), Some(34), None]),
        (Granule::Sixteen, [Some(21), Some(30), None, None]),
        (Granule::SixtyFour, [Some(21), Some(34), None, None]),
    ] {
        for (level, expected) in (0..).zip(expected) {
            assert_eq!(shift(granule, level), expected, "{granule:?} level {level}");
        }
    }
}
