//! The translation of AArch32 as prose would give it, for one processor with both stages: to be
//! compared with the walker over made-up memory, syndromes included.

use proptest::prelude::*;
use slat::format::Format;
use slat::format::arm32::{Lpae, Processor, Registers, Root, Short, Stage2, Version, sctlr, ttbcr};
use slat::regime::arm::{State, hcr};
use slat::syndrome::Field;
use slat::syndrome::arm32::{Abort, abort};
use slat::{
    Access, Failed, Flavor, Gpa, Gva, Kind, Outside, Privilege, References, Regime, Spa, Stage,
    Updates, translate,
};

use crate::ram::Ram;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Class {
    Translation,
    AddressSize,
    AccessFlag,
    Domain,
    Permission,
}

/// Who asks, and for what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) kind: Kind,
    pub(crate) pl0: bool,
}

/// `SCTLR` bits and PSTATE that decide permissions of PL1&0.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) wxn: bool,
    pub(crate) uwxn: bool,
    pub(crate) pan: bool,
}

/// The rights that a leaf gives, `"rw"` for PL1 and PL0, and its execute-never bits.
pub(crate) fn permitted(
    (pl1, pl0): (&str, &str),
    xn: bool,
    pxn: bool,
    rules: Rules,
    asked: Asked,
) -> bool {
    let mine = if asked.pl0 { pl0 } else { pl1 };
    match asked.kind {
        Kind::Execute => {
            let written_here = mine.contains('w') && rules.wxn;
            let written_by_user = !asked.pl0 && pl0.contains('w') && rules.uwxn;
            mine.contains('r') && !xn && (asked.pl0 || !pxn) && !written_here && !written_by_user
        }
        kind => {
            let letter = if kind == Kind::Write { 'w' } else { 'r' };
            mine.contains(letter) && !(rules.pan && !asked.pl0 && !pl0.is_empty())
        }
    }
}

/// `AP[2:0]` with `SCTLR.AFE` clear.
pub(crate) const AP_3: [(&str, &str); 8] =
    [("", ""), ("rw", ""), ("rw", "r"), ("rw", "rw"), ("", ""), ("r", ""), ("r", "r"), ("r", "r")];

/// `AP[2:1]`.
pub(crate) const AP_2: [(&str, &str); 4] = [("rw", ""), ("rw", "rw"), ("r", ""), ("r", "r")];

/// `AP[2:1]` as `APTable` of the tables above cuts it.
pub(crate) fn cut(ap: u64, ap_table: u64) -> (&'static str, &'static str) {
    let read_only = ap & 2 | ap_table & 2;
    let user = ap & 1 & !ap_table;
    AP_2[(read_only | user) as usize]
}

#[derive(Clone, Debug)]
enum One {
    Off,
    Short { ttbcr: u32, afe: bool, ha: bool, dacr: u32 },
    Long { ttbcr: u32, hpd: [bool; 2] },
}

struct Machine<'a> {
    ram: &'a mut Ram,
    version: Version,
    xnx: bool,
    one: One,
    ttbr: [u64; 2],
    rules: Rules,
    /// `VTCR`, `VTTBR` and `HCR.PTW`.
    two: Option<(u32, u64, bool)>,
    reads: u64,
}

/// Where and why it ended: class, the manual's level, and stage 2's input where it was stage 2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Ended {
    class: Class,
    level: u64,
    stage2: Option<(u64, bool)>,
    domain: Option<u64>,
}

fn ended<T>(class: Class, level: u64) -> Result<T, Ended> {
    Err(Ended { class, level, stage2: None, domain: None })
}

impl Machine<'_> {
    fn long_leaf_or_table(&self, entry: u64, level: u64) -> Result<Option<u64>, Ended> {
        let kind = entry & 3;
        if kind & 1 == 0 || kind == 1 && level == 3 {
            return ended(Class::Translation, level);
        }
        if self.version == Version::V8 && entry >> 40 & 0xff != 0 {
            return ended(Class::AddressSize, level);
        }
        if kind == 3 && level < 3 {
            return Ok(Some(entry & 0xff_ffff_f000));
        }
        if entry >> 10 & 1 == 0 {
            return ended(Class::AccessFlag, level);
        }
        Ok(None)
    }

    fn stage2(&mut self, ipa: u64, asked: Asked, walk: bool) -> Result<u64, Ended> {
        let Some((vtcr, vttbr, ptw)) = self.two else { return Ok(ipa) };
        let failed = |end: Ended| Ended { stage2: Some((ipa, walk)), ..end };
        let t0sz = ((vtcr as i32) << 28) >> 28;
        let bits = (32 - t0sz) as u32;
        let first = [2, 1, 0, 0][(vtcr >> 6 & 3) as usize];
        let covered = 12 + 9 * (4 - first as u32);
        if ipa >> bits != 0 || first == 0 || bits > covered + 4 || bits <= covered - 9 {
            return ended(Class::Translation, 1).map_err(failed);
        }
        if self.version == Version::V8 && vttbr >> 40 & 0xff != 0 {
            return ended(Class::AddressSize, 0).map_err(failed);
        }
        let entries = 1u64 << (bits - (covered - 9));
        let mut table = (vttbr & 0xff_ffff_ffff) / (entries * 8) * (entries * 8);
        let mut level = first;
        loop {
            let below = 12 + 9 * (3 - level as u32);
            let index = (ipa >> below) % if level == first { entries } else { 512 };
            let entry = self.ram.get(table + 8 * index, 8).unwrap();
            self.reads += 1;
            if let Some(next) = self.long_leaf_or_table(entry, level).map_err(failed)? {
                table = next;
                level += 1;
                continue;
            }
            let readable = entry >> 6 & 1 != 0;
            let device = entry >> 4 & 3 == 0;
            let allowed = match asked.kind {
                Kind::Read => readable && !(walk && ptw && device),
                // Hardware that sets an access flag reads and writes the entry.
                Kind::Write => entry >> 7 & 1 != 0 && !(walk && (ptw && device || !readable)),
                Kind::Execute => {
                    let xn = match (entry >> 53 & 3, self.xnx) {
                        (0, _) | (1, false) => false,
                        (1, true) => !asked.pl0,
                        (3, true) => asked.pl0,
                        _ => true,
                    };
                    readable && !xn
                }
            };
            if !allowed {
                return ended(Class::Permission, level).map_err(failed);
            }
            let size = (1 << below) - 1;
            return Ok(entry & 0xff_ffff_ffff & !size | ipa & size);
        }
    }

    fn descriptor(&mut self, address: u64, size: u64, pl0: bool) -> Result<u64, Ended> {
        let read = Asked { kind: Kind::Read, pl0 };
        let at = self.stage2(address, read, true)?;
        self.reads += 1;
        Ok(self.ram.get(at, size).unwrap())
    }

    fn stage1(&mut self, va: u64, asked: Asked) -> Result<u64, Ended> {
        match self.one.clone() {
            One::Off => Ok(va),
            One::Short { ttbcr, afe, ha, dacr } => self.short(va, asked, ttbcr, afe, ha, dacr),
            One::Long { ttbcr, hpd } => self.long(va, asked, ttbcr, hpd),
        }
    }

    fn short(
        &mut self,
        va: u64,
        asked: Asked,
        ttbcr: u32,
        afe: bool,
        ha: bool,
        dacr: u32,
    ) -> Result<u64, Ended> {
        let n = ttbcr & 7;
        let second = n > 0 && va >> (32 - n) > 0;
        if ttbcr >> (4 + u32::from(second)) & 1 != 0 {
            return ended(Class::Translation, 1);
        }
        let size = if second { 0x4000 } else { 0x4000 >> n };
        let base = self.ttbr[usize::from(second)] & 0xffff_ffff & !(size - 1);
        let first_address = base + (va >> 20) * 4 % size;
        let first = self.descriptor(first_address, 4, asked.pl0)?;
        let bit = |entry: u64, bit: u32| entry >> bit & 1;
        let mut found_at = first_address;
        let (output, ap, xn, pxn, domain, level) = match first & 3 {
            0 => return ended(Class::Translation, 1),
            1 => {
                let domain = first >> 5 & 15;
                let table = first & !0x3ff;
                found_at = table + (va >> 12 & 0xff) * 4;
                let second = self.descriptor(found_at, 4, asked.pl0)?;
                let (output, xn) = match second & 3 {
                    0 => {
                        let unmapped = ended(Class::Translation, 2);
                        return unmapped.map_err(|end| Ended { domain: Some(domain), ..end });
                    }
                    1 => (second & 0xffff_0000 | va & 0xffff, bit(second, 15)),
                    _ => (second & 0xffff_f000 | va & 0xfff, bit(second, 0)),
                };
                let ap = bit(second, 9) << 2 | second >> 4 & 3;
                (output, ap, xn, bit(first, 2), domain, 2)
            }
            _ => {
                let ap = bit(first, 15) << 2 | first >> 10 & 3;
                let (output, domain) = if bit(first, 18) == 1 {
                    let high = (first >> 5 & 15) << 4 | first >> 20 & 15;
                    (high << 32 | first & 0xff00_0000 | va & 0xff_ffff, 0)
                } else {
                    (first & 0xfff0_0000 | va & 0xf_ffff, first >> 5 & 15)
                };
                (output, ap, bit(first, 4), bit(first, 0), domain, 1)
            }
        };
        let accessed = ap & 1 != 0;
        if afe && !accessed && !ha {
            return ended(Class::AccessFlag, level);
        }
        match dacr >> (2 * domain) & 3 {
            3 => {}
            1 => {
                let rights = if afe { AP_2[(ap >> 1) as usize] } else { AP_3[ap as usize] };
                if !permitted(rights, xn == 1, pxn == 1, self.rules, asked) {
                    return ended(Class::Permission, level);
                }
            }
            _ => {
                let refused = ended(Class::Domain, level);
                return refused.map_err(|end| Ended { domain: Some(domain), ..end });
            }
        }
        if afe && ha && !accessed {
            let write = Asked { kind: Kind::Write, pl0: asked.pl0 };
            let at = self.stage2(found_at, write, true)?;
            let old = self.ram.get(at, 4).unwrap();
            self.ram.set(at, 4, old | if level == 1 { 1 << 10 } else { 1 << 4 });
        }
        Ok(output)
    }

    fn long(&mut self, va: u64, asked: Asked, ttbcr: u32, hpd: [bool; 2]) -> Result<u64, Ended> {
        let (t0, t1) = (ttbcr & 7, ttbcr >> 16 & 7);
        let lower = va >> (32 - t0) == 0;
        let upper = va >> (32 - t1) == (1 << t1) - 1;
        let half = if t1 == 0 {
            usize::from(!lower)
        } else if t0 == 0 {
            usize::from(upper)
        } else if lower || upper {
            usize::from(!lower)
        } else {
            return ended(Class::Translation, 1);
        };
        if ttbcr >> [7, 23][half] & 1 != 0 {
            return ended(Class::Translation, 1);
        }
        let bits = 32 - [t0, t1][half];
        let ttbr = self.ttbr[half];
        if self.version == Version::V8 && ttbr >> 40 & 0xff != 0 {
            return ended(Class::AddressSize, 0);
        }
        let mut level = if bits > 30 { 1 } else { 2 };
        let first = level;
        let entries = 1u64 << (bits - (12 + 9 * (3 - level as u32)));
        let mut table = (ttbr & 0xff_ffff_ffff) / (entries * 8) * (entries * 8);
        let (mut ap_table, mut xn_table, mut pxn_table) = (0, false, false);
        loop {
            let below = 12 + 9 * (3 - level as u32);
            let index = (va >> below) % if level == first { entries } else { 512 };
            let entry = self.descriptor(table + 8 * index, 8, asked.pl0)?;
            let flag = |bit: u32| entry >> bit & 1 != 0;
            if let Some(next) = self.long_leaf_or_table(entry, level)? {
                if !hpd[half] {
                    ap_table |= entry >> 61 & 3;
                    xn_table |= flag(60);
                    pxn_table |= flag(59);
                }
                table = next;
                level += 1;
                continue;
            }
            let rights = cut(entry >> 6 & 3, ap_table);
            let (xn, pxn) = (flag(54) || xn_table, flag(53) || pxn_table);
            if !permitted(rights, xn, pxn, self.rules, asked) {
                return ended(Class::Permission, level);
            }
            let size = (1 << below) - 1;
            return Ok(entry & 0xff_ffff_ffff & !size | va & size);
        }
    }
}

/// Made-up memory: below 2 GiB mostly stage 2's descriptors, above it stage 1's.
pub(crate) fn invent(seed: u64, address: u64) -> u32 {
    let short = seed & 1 != 0 && address >> 31 & 1 != 0;
    let slot = if short { address } else { address & !7 };
    let mut z = slot.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed;
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    let pick = |shift: u32, bits: u32| z >> shift & ((1 << bits) - 1);
    let above = 1u64 << 31;
    if short {
        let domain = (pick(0, 2) & pick(2, 2)) << 5;
        let ap = match pick(4, 4) {
            0..10 => 3,
            other => other & 7,
        };
        let rare = |shift: u32| pick(shift, 1) & pick(shift + 1, 1) & pick(shift + 2, 1);
        let entry = match pick(10, 4) {
            0 => pick(20, 32) & !1,
            // A table at level 1; as a page its address is no matter.
            1..10 => above | pick(20, 4) << 12 | domain | ap << 4 | rare(16) << 2 | 1,
            10..13 => {
                let small = ap & 3 | (ap >> 2) << 5;
                above | pick(20, 4) << 12 | small << 4 | rare(16) | 2
            }
            _ => {
                let section = (ap & 3) << 10 | (ap >> 2) << 15;
                let high = rare(26) * (pick(29, 4) << 20);
                above | section | domain | rare(16) << 4 | rare(20) << 18 | high | rare(23) | 2
            }
        };
        return entry as u32;
    }
    let entry = match pick(0, 5) {
        0 => pick(5, 48) | 1,
        1 => pick(5, 20) << 12,
        kind => {
            // Tables of stage 2 lie low, everything else high.
            let high = if address & above != 0 { above } else { pick(5, 4).min(1) << 31 };
            let at = high | pick(9, 4) << 12;
            let table = at & if address & above == 0 && kind < 18 { !above } else { !0 };
            let shape = if kind < 26 { 3 } else { 1 };
            let af = u64::from(pick(13, 4) != 0) << 10;
            let ap = match pick(17, 3) {
                0..5 => 3,
                other => other & 3,
            } << 6;
            let ap =
                if address & above != 0 { ap & !(u64::from(pick(20, 2) != 0) << 7) } else { ap };
            let xn = pick(22, 2) & pick(24, 2) & pick(26, 2);
            let tables = pick(28, 4) & pick(32, 4) & pick(36, 4);
            let device = if pick(40, 3) == 0 { 0 } else { 0xf } << 2;
            let beyond = (u64::from(pick(43, 6) == 0) * pick(49, 8)) << 40;
            table | shape | af | ap | device | xn << 53 | tables << 59 | beyond
        }
    };
    if address & 4 != 0 { (entry >> 32) as u32 } else { entry as u32 }
}

fn asked() -> impl Strategy<Value = (Access, Asked)> {
    let kind = prop_oneof![Just(Kind::Read), Just(Kind::Write), Just(Kind::Execute)];
    (kind, 0..5u8).prop_map(|(kind, who)| match who {
        0 | 1 => (Access::new(kind, Privilege::Supervisor), Asked { kind, pl0: false }),
        2 | 3 => (Access::new(kind, Privilege::User), Asked { kind, pl0: true }),
        _ => {
            // A fetch is never unprivileged code's from privileged code.
            let pl0 = kind != Kind::Execute;
            let flavor = if pl0 { Flavor::Unprivileged } else { Flavor::Plain };
            let access = Access::new(kind, Privilege::Supervisor).with_flavor(flavor);
            (access, Asked { kind, pl0 })
        }
    })
}

type Walked = Result<u64, Failed<Gva, Failed<Gpa, Outside<Spa>>>>;

fn run<F: Format>(
    stage1: &Stage<F, Gva, Gpa>,
    stage2: &Stage<Stage2, Gpa, Spa>,
    ram: &mut Ram,
    va: u64,
    access: &Access,
    regime: &Regime,
) -> (Walked, u64) {
    let counted = References::default();
    let walked = translate(stage1, stage2, ram, Gva::new(va), access, regime, &counted)
        .map(|found| found.output().raw());
    (walked, counted.count())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 60_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn walks_as_prose_does(
        seed: u64,
        va: u32,
        near in 0..4u8,
        (access, asked) in asked(),
        format in 0..5u8,
        ttbcr_bits in prop_oneof![4 => Just(0u32), 1 => any::<u32>()],
        [wxn, uwxn, pan, afe, ha, ptw, v7, xnx, hpd0, hpd1, with_stage2]: [bool; 11],
        dacr in prop_oneof![3 => Just(0x5555_5555u32), 1 => Just(0x5555_55d1), 1 => any::<u32>()],
        vtcr_bits in prop_oneof![3 => Just(0x58u32), 2 => Just(0x40), 1 => 0..0x100u32],
        root_beyond in prop_oneof![20 => Just(0u64), 1 => Just(1u64 << 44)],
    ) {
        // Most addresses share few table entries, so that walks go deep.
        let va = if near > 0 { va & 0x8021_3fff } else { va };
        let long = format >= 2;
        let seed = seed & !1 | u64::from(!long);
        let version = if v7 { Version::V7 } else { Version::V8 };
        let processor = Processor {
            version,
            hardware_access_flag: true,
            hierarchical_disable: true,
            execute_never_extension: xnx,
        };
        let bit = |on: bool, bit: u32| if on { bit } else { 0 };
        let sctlr = bit(format != 4, sctlr::M)
            | bit(wxn, sctlr::WXN)
            | bit(uwxn, sctlr::UWXN)
            | bit(afe, sctlr::AFE)
            | bit(ha, sctlr::HA);
        let hcr_bits = if with_stage2 { hcr::VM | if ptw { hcr::PTW } else { 0 } } else { 0 };
        let allowed = if long { 7 | 7 << 16 | ttbcr::EPD0 | ttbcr::EPD1 } else { 0x37 };
        let ttbcr_value = ttbcr_bits & allowed | bit(long, ttbcr::EAE | ttbcr::T2E);
        let registers = Registers {
            ttbcr: ttbcr_value,
            ttbcr2: bit(hpd0, 1 << 9) | bit(hpd1, 1 << 10),
            sctlr,
            dacr,
            hcr: hcr_bits,
        };
        let vtcr = 1 << 31 | vtcr_bits & 0xc8 | (vtcr_bits & 8) << 1 | vtcr_bits & 7;
        let vttbr = 0x4_0000 | root_beyond;
        let roots = [0x8000_4000 | root_beyond, 0x8000_8000];
        let regime = Regime {
            arm: State { pan, ..State::new(0xff, hcr_bits) },
            ..Regime::default()
        };
        let ram = Ram { range: 0..1 << 41, words: Default::default(), fill: invent, seed };

        let mut ours = ram.clone();
        let root = Root { ttbr0: roots[0], ttbr1: roots[1] };
        let format2 = Stage2::new(vtcr, hcr_bits, 0, &processor).unwrap();
        let stage2 = Stage::<_, Gpa, Spa>::new(format2, vttbr);
        let (walked, reads) = if long {
            let lpae = Lpae::new(&registers, &processor).unwrap();
            let stage1 = Stage::<_, Gva, Gpa>::new(lpae, root).with_updates(Updates::OnSuccess);
            run(&stage1, &stage2, &mut ours, va.into(), &access, &regime)
        } else {
            let short = Short::new(&registers, &processor).unwrap();
            let stage1 = Stage::<_, Gva, Gpa>::new(short, root).with_updates(Updates::OnSuccess);
            run(&stage1, &stage2, &mut ours, va.into(), &access, &regime)
        };

        let mut theirs = ram;
        let mut machine = Machine {
            ram: &mut theirs,
            version,
            xnx,
            one: match (format, long) {
                (4, _) => One::Off,
                (_, true) => One::Long { ttbcr: ttbcr_value, hpd: [hpd0, hpd1] },
                (_, false) => One::Short { ttbcr: ttbcr_value, afe, ha: ha && afe, dacr },
            },
            ttbr: roots,
            rules: Rules { wxn, uwxn, pan },
            two: with_stage2.then_some((vtcr, vttbr, ptw)),
            reads: 0,
        };
        let expected = machine
            .stage1(va.into(), asked)
            .and_then(|ipa| machine.stage2(ipa, asked, false));
        prop_assert_eq!(reads, machine.reads);

        match (expected, walked) {
            (Ok(theirs), Ok(ours)) => prop_assert_eq!(theirs, ours),
            (Err(end), Err(failed)) => {
                let taken = abort(&failed, &access, long, version).unwrap();
                syndrome_agrees(&end, &taken, va, asked, long, version)?;
            }
            (expected, walked) => prop_assert!(false, "{:x?} but {:x?}", expected, walked),
        }
        prop_assert_eq!(ours.words, theirs.words);
    }
}

fn syndrome_agrees(
    end: &Ended,
    taken: &Abort,
    va: u32,
    asked: Asked,
    long: bool,
    version: Version,
) -> Result<(), TestCaseError> {
    let fetch = asked.kind == Kind::Execute;
    let write = asked.kind == Kind::Write;
    let long_status = match end.class {
        Class::AddressSize => 0,
        Class::Translation => 4,
        Class::AccessFlag => 8,
        Class::Permission | Class::Domain => 12,
    } + end.level;
    match (end.stage2, taken) {
        (None, Abort::Pl1(taken)) => {
            prop_assert_eq!((taken.prefetch, taken.address), (fetch, va));
            let status = if long {
                1 << 9 | long_status
            } else {
                let second = end.level == 2;
                (match end.class {
                    Class::Translation => 0b0101 | u64::from(second) << 1,
                    Class::Domain => 0b1001 | u64::from(second) << 1,
                    Class::Permission => 0b1101 | u64::from(second) << 1,
                    Class::AccessFlag => {
                        if second {
                            0b0110
                        } else {
                            0b0011
                        }
                    }
                    Class::AddressSize => unreachable!("short descriptors have none"),
                }) | if fetch { 0 } else { end.domain.unwrap_or(0) << 4 }
            };
            let status = status | u64::from(write) << 11;
            prop_assert!(taken.status.permits(status), "{:x?} but {:#x}", taken, status);
            let domain_defined = taken.status.defined & 0xf0 != 0;
            prop_assert_eq!(domain_defined, long || fetch || end.domain.is_some());
        }
        (Some((ipa, walk)), Abort::Hyp(taken)) => {
            let class = if fetch { 0x20 } else { 0x24 };
            let hsr =
                class << 26 | 1 << 25 | u64::from(walk) << 7 | u64::from(write) << 6 | long_status;
            prop_assert!(taken.hsr.permits(hsr), "{:x?} but {:#x}", taken, hsr);
            let il_defined = version == Version::V8 && (walk || fetch);
            prop_assert_eq!(taken.hsr.defined >> 25 & 1 != 0, il_defined);
            let (own, other) =
                if fetch { (taken.hifar, taken.hdfar) } else { (taken.hdfar, taken.hifar) };
            prop_assert_eq!((own, other), (Field::Defined(va), Field::Undefined));
            let unknown = !walk && end.class == Class::Permission;
            let page = (ipa >> 12 << 4) as u32;
            let hpfar = if unknown { Field::Undefined } else { Field::Defined(page) };
            prop_assert_eq!(taken.hpfar, hpfar);
        }
        (stage2, taken) => prop_assert!(false, "{:x?} but {:x?}", stage2, taken),
    }
    Ok(())
}
