//! Random worlds of x86 tables, natively, over EPT and over NPT, against a naive walker: written from
//! the manuals' prose as plain recursion over a table of levels, with none of the library's code.

use slat::format::any::AnyFormat;
use slat::format::ept::{Ept, Features};
use slat::format::flat::Flat;
use slat::format::npt::Npt;
use slat::format::x86::legacy::Legacy;
use slat::format::x86::long::{Long, Processor};
use slat::format::x86::pae::{self, Pae};
use slat::format::x86::{Controls, Vendor};
use slat::syndrome::x86;
use slat::{
    Access, EntryLayout, Failed, Gpa, Gva, Kind, Privilege, Regime, SliceMemory, Spa, Stage,
    translate,
};

const PAGES: u64 = 24;

/// A generator (splitmix64), so that the test needs no seed file.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, odds: u64) -> bool {
        self.below(odds) == 0
    }
}

/// What the naive walker concludes.
#[derive(Debug, PartialEq)]
enum Naive {
    /// #PF with this error code.
    PageFault(u64),
    GeneralProtection,
    /// EPT violation: qualification and GPA.
    Violation(u64, u64),
    /// EPT misconfiguration at this GPA.
    Misconfiguration(u64),
    /// #NPF: EXITINFO1 and EXITINFO2.
    NestedFault(u64, u64),
    /// A table outside the memory.
    Nowhere,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Unpaged,
    Small,
    Pae,
    Four,
    Five,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Second {
    Native,
    Ept,
    Npt,
}

#[derive(Clone, Copy, Debug)]
struct Setup {
    mode: Mode,
    second: Second,
    width: u32,
    wp: bool,
    smep: bool,
    smap: bool,
    nxe: bool,
    pke: bool,
    ac: bool,
    pkru: u32,
    root: u64,
    second_root: u64,
    execute_only: bool,
    ad: bool,
    mbe: bool,
    pdptes: [u64; 4],
}

#[derive(Clone, Copy, Debug)]
struct Ask {
    gva: u64,
    write: bool,
    fetch: bool,
    user: bool,
}

fn load(memory: &[u8], at: u64, size: usize) -> Option<u64> {
    let bytes = memory.get(at as usize..at as usize + size)?;
    Some(bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
}

fn bit(value: u64, number: u32) -> bool {
    value >> number & 1 == 1
}

fn any(value: u64, low: u32, high: u32) -> bool {
    (low..=high).any(|number| bit(value, number))
}

/// How stage 2 is asked.
#[derive(Clone, Copy)]
struct Nested {
    write: bool,
    fetch: bool,
    table: bool,
    user_page: bool,
}

fn second(setup: &Setup, memory: &[u8], gpa: u64, ask: Nested) -> Result<u64, Naive> {
    match setup.second {
        Second::Native => Ok(gpa),
        Second::Ept => by_ept(setup, memory, gpa, ask),
        Second::Npt => by_npt(setup, memory, gpa, ask),
    }
}

fn by_ept(setup: &Setup, memory: &[u8], gpa: u64, ask: Nested) -> Result<u64, Naive> {
    let wants_write = ask.write || ask.table && setup.ad;
    let mut qualification = match (ask.fetch, ask.write) {
        (true, _) => 4,
        (_, true) => 2,
        _ => 1,
    };
    if ask.table && setup.ad {
        qualification |= 3;
    }
    qualification |= 0x80 | if ask.table { 0 } else { 0x100 };
    if gpa >> 48 != 0 {
        return Err(Naive::Violation(qualification, gpa));
    }
    let mut table = setup.second_root;
    let mut rights = 7u64;
    let mut user_execute = true;
    for level in [3u32, 2, 1, 0] {
        let at = table + (gpa >> (12 + 9 * level) & 511) * 8;
        let entry = load(memory, at, 8).ok_or(Naive::Nowhere)?;
        let xu = setup.mbe && bit(entry, 10);
        rights &= entry & 7;
        user_execute &= xu;
        if entry & 7 == 0 && !xu {
            return Err(Naive::Violation(qualification, gpa));
        }
        let leaf = level == 0 || level < 3 && bit(entry, 7);
        let bad_rights = !bit(entry, 0) && (bit(entry, 1) || !setup.execute_only);
        let bad_address = any(entry, setup.width, 51);
        let bad_bits = if leaf {
            matches!(entry >> 3 & 7, 2 | 3 | 7)
                || level == 1 && any(entry, 12, 20)
                || level == 2 && any(entry, 12, 29)
        } else {
            any(entry, 3, 7)
        };
        if bad_rights || bad_address || bad_bits {
            return Err(Naive::Misconfiguration(gpa));
        }
        if leaf {
            let executable = if setup.mbe && ask.user_page && !ask.table {
                user_execute
            } else {
                bit(rights, 2)
            };
            let denied = !ask.write && !ask.fetch && !bit(rights, 0)
                || wants_write && !bit(rights, 1)
                || ask.fetch && !executable;
            if denied {
                qualification |= rights << 3 | u64::from(user_execute) << 6;
                return Err(Naive::Violation(qualification, gpa));
            }
            let offset = (1u64 << (12 + 9 * level)) - 1;
            return Ok(entry & 0x000f_ffff_ffff_f000 & !offset | gpa & offset);
        }
        table = entry & 0x000f_ffff_ffff_f000;
    }
    unreachable!()
}

fn by_npt(setup: &Setup, memory: &[u8], gpa: u64, ask: Nested) -> Result<u64, Naive> {
    let write = ask.write || ask.table;
    let base = 4
        | u64::from(write) << 1
        | u64::from(ask.fetch && setup.nxe) << 4
        | if ask.table { 1 << 33 } else { 1 << 32 };
    if gpa >> 48 != 0 {
        return Err(Naive::NestedFault(base, gpa));
    }
    let mut table = setup.second_root;
    let (mut writable, mut user, mut executable) = (true, true, true);
    for level in [3u32, 2, 1, 0] {
        let at = table + (gpa >> (12 + 9 * level) & 511) * 8;
        let entry = load(memory, at, 8).ok_or(Naive::Nowhere)?;
        if !bit(entry, 0) {
            return Err(Naive::NestedFault(base, gpa));
        }
        let leaf = level == 0 || level < 3 && bit(entry, 7);
        let reserved = any(entry, setup.width, 51)
            || !setup.nxe && bit(entry, 63)
            || level == 3 && any(entry, 7, 8)
            || leaf && level == 1 && any(entry, 13, 20)
            || leaf && level == 2 && any(entry, 13, 29);
        if reserved {
            return Err(Naive::NestedFault(base | 9, gpa));
        }
        writable &= bit(entry, 1);
        user &= bit(entry, 2);
        executable &= !bit(entry, 63);
        if leaf {
            if !user || write && !writable || ask.fetch && !executable {
                return Err(Naive::NestedFault(base | 1, gpa));
            }
            let offset = (1u64 << (12 + 9 * level)) - 1;
            return Ok(entry & 0x000f_ffff_ffff_f000 & !offset | gpa & offset);
        }
        table = entry & 0x000f_ffff_ffff_f000;
    }
    unreachable!()
}

fn naive(setup: &Setup, memory: &[u8], ask: Ask) -> Result<u64, Naive> {
    let page = |user_page| Nested { write: ask.write, fetch: ask.fetch, table: false, user_page };
    if setup.mode == Mode::Unpaged {
        return second(setup, memory, ask.gva, page(true));
    }
    let flagged = setup.smep || setup.nxe && setup.mode != Mode::Small;
    let code =
        u64::from(ask.write) << 1 | u64::from(ask.user) << 2 | u64::from(ask.fetch && flagged) << 4;
    let bits = match setup.mode {
        Mode::Four => 48,
        Mode::Five => 57,
        _ => 32,
    };
    if bits > 32 {
        let sign = ask.gva as i64 >> (bits - 1);
        if sign != 0 && sign != -1 {
            return Err(Naive::GeneralProtection);
        }
    }
    let amd = setup.second == Second::Npt;
    let (entry_size, index_bits) = if setup.mode == Mode::Small { (4, 10) } else { (8, 9) };
    let mut levels: Vec<u32> = match setup.mode {
        Mode::Small => vec![1, 0],
        Mode::Pae => vec![2, 1, 0],
        Mode::Four => vec![3, 2, 1, 0],
        _ => vec![4, 3, 2, 1, 0],
    };
    let mut table = setup.root;
    if setup.mode == Mode::Pae && !amd {
        let pdpte = setup.pdptes[(ask.gva >> 30 & 3) as usize];
        if !bit(pdpte, 0) {
            return Err(Naive::PageFault(code));
        }
        table = pdpte & 0x000f_ffff_ffff_f000;
        levels.remove(0);
    }
    let (mut writable, mut user, mut executable) = (true, true, true);
    for level in levels {
        let mask = (1 << index_bits) - 1;
        let index = ask.gva >> (12 + index_bits * level) & mask;
        let index = if setup.mode == Mode::Pae && level == 2 { index & 3 } else { index };
        let read = Nested { write: false, fetch: false, table: true, user_page: false };
        let at = second(setup, memory, table + index * entry_size as u64, read)?;
        let entry = load(memory, at, entry_size).ok_or(Naive::Nowhere)?;
        if !bit(entry, 0) {
            return Err(Naive::PageFault(code));
        }
        let pointer_of_pae = setup.mode == Mode::Pae && level == 2;
        let leaf = level == 0 || !pointer_of_pae && level < 3 && bit(entry, 7);
        let reserved = match setup.mode {
            Mode::Small => leaf && level == 1 && any(entry, 13 + setup.width.min(40) - 32, 21),
            Mode::Pae if pointer_of_pae => {
                any(entry, 1, 2) || any(entry, 5, 8) || any(entry, setup.width, 63)
            }
            Mode::Pae => {
                any(entry, setup.width, 62)
                    || !setup.nxe && bit(entry, 63)
                    || leaf && level == 1 && any(entry, 13, 20)
            }
            _ => {
                any(entry, setup.width, 51)
                    || !setup.nxe && bit(entry, 63)
                    || level >= 3 && (bit(entry, 7) || amd && bit(entry, 8))
                    || leaf && level == 1 && any(entry, 13, 20)
                    || leaf && level == 2 && any(entry, 13, 29)
            }
        };
        if reserved {
            return Err(Naive::PageFault(code | 9));
        }
        if !pointer_of_pae {
            writable &= bit(entry, 1);
            user &= bit(entry, 2);
            executable &= setup.mode == Mode::Small || !setup.nxe || !bit(entry, 63);
        }
        if !leaf {
            table =
                entry & if setup.mode == Mode::Small { 0xffff_f000 } else { 0x000f_ffff_ffff_f000 };
            continue;
        }
        let rights = if ask.user {
            user && (!ask.write || writable) && (!ask.fetch || executable)
        } else if ask.fetch {
            executable && !(user && setup.smep)
        } else {
            let read_only = ask.write && !writable && setup.wp;
            let forbidden = user && setup.smap && !setup.ac;
            !read_only && !forbidden
        };
        let long = matches!(setup.mode, Mode::Four | Mode::Five);
        let key = entry >> 59 & 15;
        let (disable, read_only) =
            (setup.pkru >> (2 * key) & 1 == 1, setup.pkru >> (2 * key + 1) & 1 == 1);
        let by_key = long
            && setup.pke
            && user
            && !ask.fetch
            && (disable || read_only && ask.write && (ask.user || setup.wp));
        if !rights || by_key {
            return Err(Naive::PageFault(code | 1 | u64::from(by_key) << 5));
        }
        let shift = 12 + index_bits * level;
        let offset = (1u64 << shift) - 1;
        let base = if setup.mode == Mode::Small && level == 1 {
            entry & 0xffc0_0000 | (entry >> 13 & 0xff) << 32
        } else if setup.mode == Mode::Small {
            entry & 0xffff_f000
        } else {
            entry & 0x000f_ffff_ffff_f000 & !offset
        };
        return second(setup, memory, base | ask.gva & offset, page(user));
    }
    unreachable!()
}

/// The library's answer to the same.
fn library(setup: &Setup, memory: &mut [u8], ask: Ask) -> Result<u64, Naive> {
    let vendor = if setup.second == Second::Npt { Vendor::Amd } else { Vendor::Intel };
    let processor = Processor { physical_bits: setup.width as u8, vendor, ..Processor::default() };
    let controls = Controls {
        write_protect: setup.wp,
        smep: setup.smep,
        smap: setup.smap,
        nxe: setup.nxe,
        user_keys: setup.pke,
        ..Controls::default()
    };
    let root = match setup.second {
        Second::Npt => pae::Root::OnDemand(setup.root),
        _ => pae::Root::Registers(setup.pdptes),
    };
    let (format, pae_entries) = match setup.mode {
        Mode::Unpaged => (AnyFormat::Flat(Flat::X86_UNPAGED, ()), true),
        Mode::Small => {
            let legacy = Legacy::new(controls, true, setup.width as u8);
            (AnyFormat::Legacy(legacy, setup.root), false)
        }
        Mode::Pae => (AnyFormat::Pae(Pae::new(controls, processor), root), true),
        Mode::Four => (AnyFormat::Long(Long::four(controls, processor), setup.root), true),
        Mode::Five => (AnyFormat::Long(Long::five(controls, processor), setup.root), true),
    };
    let ept = Ept::four(Features {
        physical_bits: setup.width as u8,
        execute_only: setup.execute_only,
        accessed_dirty: setup.ad,
        mode_based_execute: setup.mbe,
        ..Features::default()
    });
    let npt = Npt::four(setup.nxe, processor);
    let second = match setup.second {
        Second::Native => AnyFormat::Flat(Flat::new("none", 2, 64), ()),
        Second::Ept => AnyFormat::Ept(ept, setup.second_root),
        Second::Npt => AnyFormat::Npt(npt, setup.second_root),
    };
    let mut regime = Regime::default();
    regime.x86.alignment_check = setup.ac;
    regime.x86.pkru = setup.pkru;
    let kind = match (ask.fetch, ask.write) {
        (true, _) => Kind::Execute,
        (_, true) => Kind::Write,
        _ => Kind::Read,
    };
    let privilege = if ask.user { Privilege::User } else { Privilege::Supervisor };
    let outcome = translate(
        &Stage::<_, Gva, Gpa>::new(format, ()),
        &Stage::<_, Gpa, Spa>::new(second, ()),
        &mut SliceMemory::new(Spa::new(0), memory),
        Gva::new(ask.gva),
        &Access::new(kind, privilege),
        &regime,
        &(),
    );
    match outcome {
        Ok(found) => Ok(found.output().raw()),
        Err(Failed::Here(fault)) => {
            let flagged = x86::fetch_flagged(&controls, pae_entries);
            Err(x86::page_fault(&fault, flagged).map_or(Naive::GeneralProtection, Naive::PageFault))
        }
        Err(Failed::Below(Failed::Here(fault))) => Err(match setup.second {
            Second::Ept => match x86::ept_violation(&fault, &ept, false) {
                Some(qualification) => Naive::Violation(qualification, fault.input.raw()),
                None => Naive::Misconfiguration(fault.input.raw()),
            },
            _ => Naive::NestedFault(x86::nested_page_fault(&fault, &npt), fault.input.raw()),
        }),
        Err(Failed::Below(Failed::Below(_))) => Err(Naive::Nowhere),
    }
}

/// An entry that mostly leads on: the address of a page of the memory, sensible flags, and now and
/// then a flipped bit or noise.
fn entry(random: &mut Random, ept: bool) -> u64 {
    let page = random.below(PAGES) << 12;
    let mut value = page
        | match (ept, random.below(4)) {
            (false, 0) => 0x63,
            (false, _) => 0x67,
            (true, 0) => 0x5,
            (true, _) => 0x407,
        };
    if random.one_in(6) {
        // A leaf: bits above the page size are cleared so that it is mostly aligned.
        value = value & 0xfff | 0x80 | if ept { 0x30 } else { 0 };
    } else if ept && random.one_in(3) {
        value |= 0x30;
    }
    if random.one_in(8) {
        value ^= 1 << random.below(64);
    }
    if !ept && random.one_in(6) {
        value |= random.below(16) << 59;
    }
    if random.one_in(64) { random.next() } else { value }
}

fn world(random: &mut Random) -> (Setup, Vec<u8>) {
    let second = [Second::Native, Second::Ept, Second::Npt][random.below(3) as usize];
    let mode =
        [Mode::Unpaged, Mode::Small, Mode::Pae, Mode::Four, Mode::Five][random.below(5) as usize];
    let mut bytes = vec![0u8; (PAGES << 12) as usize];
    // The first third of the pages are the guest's tables, the second the hypervisor's.
    for page in 0..PAGES {
        let ept = page >= PAGES / 3 && second == Second::Ept;
        let layout = if mode == Mode::Small && page < PAGES / 3 {
            EntryLayout::LE32
        } else {
            EntryLayout::LE64
        };
        let step = layout.size.bytes();
        for at in (page << 12..(page + 1) << 12).step_by(step as usize) {
            let value = entry(random, ept);
            bytes[at as usize..(at + step) as usize]
                .copy_from_slice(&value.to_le_bytes()[..step as usize]);
        }
    }
    let width = [36u32, 40, 46, 52][random.below(4) as usize];
    let mut pdptes = [0; 4];
    for pdpte in &mut pdptes {
        *pdpte = random.below(PAGES / 3) << 12 | u64::from(!random.one_in(5));
    }
    let setup = Setup {
        mode,
        second,
        width,
        wp: random.one_in(2),
        smep: random.one_in(3),
        smap: random.one_in(3),
        nxe: !random.one_in(3),
        pke: random.one_in(3),
        ac: random.one_in(2),
        pkru: random.next() as u32,
        root: random.below(PAGES / 3) << 12,
        second_root: (PAGES / 3 + random.below(PAGES / 3)) << 12,
        execute_only: random.one_in(2),
        ad: random.one_in(2),
        mbe: random.one_in(3),
        pdptes,
    };
    (setup, bytes)
}

#[test]
fn the_naive_walker_agrees() {
    let mut random = Random(0x51a7);
    let mut reached = [0u32; 3];
    let mut faults = [0u32; 6];
    for _ in 0..1500 {
        let (setup, mut bytes) = world(&mut random);
        for _ in 0..100 {
            let mut gva = random.next();
            match setup.mode {
                Mode::Four if !random.one_in(16) => gva = (gva << 16) as i64 as u64 >> 16,
                Mode::Five if !random.one_in(16) => gva >>= 8,
                Mode::Four | Mode::Five => {}
                _ => gva &= 0xffff_ffff,
            }
            let ask = Ask { gva, write: random.one_in(3), fetch: false, user: random.one_in(2) };
            let ask = Ask { fetch: !ask.write && random.one_in(3), ..ask };
            let expected = naive(&setup, &bytes, ask);
            let answered = library(&setup, &mut bytes, ask);
            assert_eq!(answered, expected, "{setup:x?} {ask:x?}");
            match expected {
                Ok(_) => reached[setup.second as usize] += 1,
                Err(Naive::PageFault(_)) => faults[0] += 1,
                Err(Naive::GeneralProtection) => faults[1] += 1,
                Err(Naive::Violation(..)) => faults[2] += 1,
                Err(Naive::Misconfiguration(_)) => faults[3] += 1,
                Err(Naive::NestedFault(..)) => faults[4] += 1,
                Err(Naive::Nowhere) => faults[5] += 1,
            }
        }
    }
    // A comparison of nothing but faults, or of none, would prove little.
    assert!(reached.iter().all(|&count| count > 300), "{reached:?} {faults:?}");
    assert!(faults.iter().all(|&count| count > 100), "{reached:?} {faults:?}");
}
