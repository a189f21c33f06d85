//! What a format says plainly is never more than what it says exactly: random walks over random
//! tables, once as they go and once with everything asked exactly, for every format over every
//! second stage of its architecture; and every answer about an entry, bit by bit.

use core::fmt;

use slat::format::any::AnyFormat;
use slat::format::arm32;
use slat::format::arm64::{self, Granule, Stage1, Stage2};
use slat::format::ept::{Ept, Features};
use slat::format::flat::Flat;
use slat::format::npt::{Npt, Options};
use slat::format::riscv::{self, Scheme, Sv};
use slat::format::x86::legacy::Legacy;
use slat::format::x86::long::{Linear, Long, Masking, Processor};
use slat::format::x86::pae::{self, Pae};
use slat::format::x86::{Controls, Vendor};
use slat::format::{Decoded, Format, Found, Path, Start};
use slat::memory_type::{StageType, TypeBits};
use slat::{
    Access, Cause, Descent, EntryLayout, EntrySize, Failed, Flavor, Gpa, Gva, Kind, Next,
    Privilege, Regime, SliceMemory, Spa, Stage, Stage1Page, Steps, Updates, translate, walk,
    walk_from,
};

/// A format that says nothing plainly.
#[derive(Clone, Copy, Debug)]
struct Exact(AnyFormat);

impl Format for Exact {
    type Root = ();

    const HALVES: bool = true;

    fn half(&self, input: u64) -> Self {
        Exact(self.0.half(input))
    }

    fn plain_table(&self, _: u64, _: u8) -> Option<u64> {
        None
    }

    fn plain_leaf(&self, _: u64, _: u8) -> Option<(u64, u8)> {
        None
    }

    fn plainly_permits(&self, _: &Found, _: &Access, _: &Regime) -> bool {
        false
    }

    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn stage(&self) -> u8 {
        self.0.stage()
    }

    fn layout(&self) -> EntryLayout {
        self.0.layout()
    }

    fn begin(
        &self,
        root: &(),
        input: u64,
        access: &Access,
        regime: &Regime,
    ) -> Result<Start, (u8, Cause)> {
        self.0.begin(root, input, access, regime)
    }

    fn shift(&self, level: u8) -> u32 {
        self.0.shift(level)
    }

    fn index_bits(&self, level: u8) -> u32 {
        self.0.index_bits(level)
    }

    fn decode(&self, entry: u64, level: u8) -> Decoded {
        self.0.decode(entry, level)
    }

    fn join(&self, path: &mut Path, entry: u64, level: u8) {
        self.0.join(path, entry, level);
    }

    fn check(&self, found: &Found, access: &Access, regime: &Regime) -> Result<(), Cause> {
        self.0.check(found, access, regime)
    }

    fn touched(&self, entry: u64, level: u8, is_leaf: bool, access: &Access) -> u64 {
        self.0.touched(entry, level, is_leaf, access)
    }

    fn type_bits(&self, found: &Found) -> TypeBits {
        self.0.type_bits(found)
    }

    fn type_of(&self, bits: TypeBits, kind: Kind, regime: &Regime) -> StageType {
        self.0.type_of(bits, kind, regime)
    }

    fn arch_level(&self, level: u8) -> i8 {
        self.0.arch_level(level)
    }

    fn describe(&self, entry: u64, level: u8, f: &mut dyn fmt::Write) -> fmt::Result {
        self.0.describe(entry, level, f)
    }

    fn guards(&self, found: &Found) -> bool {
        self.0.guards(found)
    }

    fn page(&self, found: &Found, regime: &Regime) -> Stage1Page {
        self.0.page(found, regime)
    }
}

/// splitmix64.
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

    fn coin(&mut self) -> bool {
        self.next() & 1 != 0
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

/// Frames of 64 KiB, so that every granule's root fits.
const SIZE: usize = 8 << 16;

fn x86_first(r: &mut Random) -> AnyFormat {
    let controls = Controls {
        write_protect: r.coin(),
        smep: r.coin(),
        smap: r.coin(),
        nxe: r.coin(),
        user_keys: r.below(4) == 0,
        supervisor_keys: r.below(4) == 0,
        shadow_stacks: r.below(4) == 0,
    };
    let processor = processor(r);
    let root = r.below(8) << 16;
    let linear = Linear {
        mask_user: r.pick(&[Masking::Off, Masking::Off, Masking::From48, Masking::From57]),
        mask_supervisor: r.below(4) == 0,
        separation: r.below(4) == 0,
    };
    match r.below(6) {
        0 => AnyFormat::Flat(Flat::X86_UNPAGED, ()),
        1 => AnyFormat::Legacy(Legacy::new(controls, r.coin(), processor.physical_bits), root),
        2 => AnyFormat::Pae(Pae::new(controls, processor), pae::Root::OnDemand(root)),
        3 => AnyFormat::Long(Long::five(controls, processor).with_linear(linear), root),
        4 => AnyFormat::Long(Long::four(controls, processor).with_linear(linear), root),
        _ => AnyFormat::Long(Long::four(controls, processor), root),
    }
}

fn processor(r: &mut Random) -> Processor {
    Processor {
        physical_bits: r.pick(&[36, 40, 46, 52]),
        gigabyte_pages: r.coin(),
        vendor: r.pick(&[Vendor::Intel, Vendor::Amd]),
        encryption_bit: r.pick(&[None, None, Some(47)]),
    }
}

fn x86_second(r: &mut Random) -> AnyFormat {
    let processor = processor(r);
    let root = r.below(8) << 16;
    let mut rarely = || r.below(5) == 0;
    let features = Features {
        guest_paging_verification: rarely(),
        supervisor_shadow_stack: rarely(),
        paging_write: rarely(),
        sub_page: rarely(),
        mode_based_execute: rarely(),
        ..Features::default()
    };
    let options = Options {
        guest_mode_execute_trap: rarely(),
        supervisor_shadow_stack: rarely(),
        read_only_guest_tables: rarely(),
    };
    let features = Features {
        physical_bits: processor.physical_bits,
        execute_only: r.coin(),
        two_megabyte_pages: r.below(4) != 0,
        gigabyte_pages: r.coin(),
        accessed_dirty: r.coin(),
        ..features
    };
    let nxe = r.coin();
    let npt = match r.below(7) {
        0 => return AnyFormat::Flat(Flat::new("none", 2, 64), ()),
        1 => Npt::legacy(nxe, processor.physical_bits),
        2 => Npt::pae(nxe, processor),
        3 => Npt::four(nxe, processor),
        4 => Npt::five(nxe, processor),
        5 => return AnyFormat::Ept(Ept::five(features), root),
        _ => return AnyFormat::Ept(Ept::four(features), root),
    };
    AnyFormat::Npt(if r.below(3) == 0 { npt.with_options(options) } else { npt }, root)
}

fn granule(r: &mut Random) -> (Granule, u8) {
    r.pick(&[
        (Granule::Four, 39),
        (Granule::Four, 48),
        (Granule::Four, 52),
        (Granule::Sixteen, 36),
        (Granule::Sixteen, 47),
        (Granule::Sixteen, 52),
        (Granule::SixtyFour, 42),
        (Granule::SixtyFour, 52),
    ])
}

fn arm64_processor(r: &mut Random) -> arm64::Processor {
    arm64::Processor {
        physical_bits: r.pick(&[40, 48, 52]),
        hardware_access_flag: r.coin(),
        execute_never_extension: r.coin(),
        ..arm64::Processor::default()
    }
}

fn arm64_first(r: &mut Random) -> AnyFormat {
    let (granule, bits) = granule(r);
    let stage = Stage1::plain(granule, bits, &arm64_processor(r)).expect("the sizes exist");
    let root = arm64::Root { ttbr0: r.below(8) << 16, ttbr1: r.below(8) << 16 };
    AnyFormat::Arm64(stage, root)
}

fn arm64_second(r: &mut Random) -> AnyFormat {
    let (granule, bits) = granule(r);
    let processor = arm64_processor(r);
    let bits = bits.min(processor.physical_bits);
    let stage = Stage2::plain(granule, bits, &processor).expect("the sizes exist");
    AnyFormat::Arm64Stage2(stage, r.below(8) << 16)
}

fn riscv_features(r: &mut Random) -> riscv::Features {
    riscv::Features {
        hardware_ad: r.coin(),
        napot: r.coin(),
        memory_types: r.coin(),
        shadow_stacks: r.coin(),
        software_bits: r.coin(),
        ..riscv::Features::default()
    }
}

const SCHEMES: [Scheme; 5] = [Scheme::Bare, Scheme::Sv32, Scheme::Sv39, Scheme::Sv48, Scheme::Sv57];

fn riscv_first(r: &mut Random) -> AnyFormat {
    AnyFormat::Sv(Sv::stage1(r.pick(&SCHEMES), riscv_features(r)), r.below(8) << 16)
}

fn riscv_second(r: &mut Random) -> AnyFormat {
    AnyFormat::Sv(Sv::stage2(r.pick(&SCHEMES), riscv_features(r)), r.below(8) << 16)
}

/// An entry that is often good for something: an address inside, the format's usual low bits, and now
/// and then any bit flipped.
fn entry(r: &mut Random, format: &AnyFormat, level: u8) -> u64 {
    let address = r.below(SIZE as u64 >> 12) << 12;
    let table = level > 0 && r.below(4) != 0;
    let mut entry = match format {
        AnyFormat::Ept(..) if table => address | r.below(8) | 1,
        AnyFormat::Ept(..) => address | 0x30 | 1 | r.below(8) | if level > 0 { 0x80 } else { 0 },
        AnyFormat::Sv(..) if table => address >> 2 | 1,
        AnyFormat::Sv(..) => address >> 2 | 1 | (r.next() & 0xfe),
        AnyFormat::Arm64(..) | AnyFormat::Arm64Stage2(..) if table => address & !0xf000 | 3,
        AnyFormat::Arm64(..) | AnyFormat::Arm64Stage2(..) => {
            let page = if level == 0 { 2 } else { 0 };
            address & !0xf000 | 0x401 | page | (r.next() & 0xfc)
        }
        AnyFormat::ArmShort(..) if table => address | 1,
        AnyFormat::ArmShort(..) => address | 2 | (r.next() & 0xfffd),
        AnyFormat::ArmLpae(..) | AnyFormat::ArmLpaeStage2(..) if table => address | 3,
        AnyFormat::ArmLpae(..) | AnyFormat::ArmLpaeStage2(..) => {
            let page = if level == 0 { 2 } else { 0 };
            address | 0x401 | page | (r.next() & 0xfc)
        }
        _ if table => address | 0x67,
        _ => address | 1 | (r.next() & 0x7e) | if level > 0 { 0x80 } else { 0 },
    };
    while r.below(6) == 0 {
        entry ^= 1 << r.below(64);
    }
    // Blocks must be aligned to be leaves at all.
    if level > 0 && !table && r.coin() {
        entry &= !0x1f_f000;
    }
    entry
}

/// Fills the memory with entries of both formats.
fn fill(r: &mut Random, bytes: &mut [u8], formats: [&AnyFormat; 2]) {
    let mut memory = SliceMemory::new(Spa::new(0), bytes);
    let sizes = formats.map(|format| format.layout().size.bytes());
    let mut at = 0;
    while at < SIZE as u64 {
        let which = usize::from(r.below(3) == 0);
        for _ in 0..64 / sizes[which] {
            let level = r.below(4) as u8;
            let value = entry(r, formats[which], level);
            let layout = match sizes[which] {
                4 => EntryLayout { size: EntrySize::Four, ..EntryLayout::LE64 },
                _ => EntryLayout::LE64,
            };
            memory.poke(Spa::new(at), layout, value).expect("it is inside");
            at += sizes[which];
        }
    }
}

fn address(r: &mut Random) -> u64 {
    let bits = r.pick(&[16, 20, 24, 32, 39, 48, 64]);
    let low = r.next() >> (64 - bits);
    if r.below(4) == 0 { !low } else { low }
}

/// Makes a format with registers that vary.
type Make = fn(&mut Random) -> AnyFormat;

fn compare(seed: u64, pairs: &[(Make, Make)]) {
    let mut r = Random(seed);
    let mut bytes = vec![0u8; SIZE];
    let (mut translated, mut failed) = (0, 0);
    let mut alone = [0; 2];
    for _ in 0..300 {
        let (first, second) = r.pick(pairs);
        let (first, second) = (first(&mut r), second(&mut r));
        fill(&mut r, &mut bytes, [&first, &second]);
        for _ in 0..100 {
            let mut regime = Regime::default();
            regime.x86.pkru = r.next() as u32;
            regime.x86.alignment_check = r.coin();
            regime.riscv.sum = r.coin();
            regime.riscv.mxr = r.coin();
            regime.arm.pan = r.coin();
            regime.arm.protect_table_walks = r.coin();
            let kind = r.pick(&[Kind::Read, Kind::Write, Kind::Execute]);
            let privilege = r.pick(&[Privilege::User, Privilege::Supervisor]);
            let flavor = match r.below(12) {
                0 => Flavor::ShadowStack,
                1 => Flavor::Implicit,
                2 => Flavor::Hlvx,
                3 => Flavor::Unprivileged,
                _ => Flavor::Plain,
            };
            let access = Access::new(kind, privilege).with_flavor(flavor);
            let gva = Gva::new(address(&mut r));
            let mut memory = SliceMemory::new(Spa::new(0), &mut bytes);
            let plain = translate(
                &Stage::<_, Gva, Gpa>::new(first, ()),
                &Stage::<_, Gpa, Spa>::new(second, ()),
                &mut memory,
                gva,
                &access,
                &regime,
                &(),
            );
            let exact = translate(
                &Stage::<_, Gva, Gpa>::new(Exact(first), ()),
                &Stage::<_, Gpa, Spa>::new(Exact(second), ()),
                &mut memory,
                gva,
                &access,
                &regime,
                &(),
            );
            assert_eq!(plain, exact, "{} over {}: {gva:?} {access:?}", first.name(), second.name());
            *if plain.is_ok() { &mut translated } else { &mut failed } += 1;
            // Each alone: walks of one stage have code of their own.
            alone[0] += one_stage(first, &mut memory, gva, &access, &regime);
            alone[1] += one_stage(second, &mut memory, gva, &access, &regime);
            if r.below(4) == 0 {
                descends_alike(first, &bytes, gva, &access, &regime);
                descends_alike(second, &bytes, gva, &access, &regime);
            }
        }
        one_by_one(&mut r, &first);
        one_by_one(&mut r, &second);
    }
    assert!(translated > 100 && failed > 100, "{translated} translated, {failed} failed");
    assert!(alone.iter().all(|&alone| alone > 100), "{alone:?} translated alone");
}

/// One stage's walk, plainly and exactly: result and steps. Returns whether it translates, as a number.
fn one_stage(
    format: AnyFormat,
    memory: &mut SliceMemory<'_, Spa>,
    address: Gva,
    access: &Access,
    regime: &Regime,
) -> u32 {
    let seen = [Steps::<8>::default(), Steps::<8>::default()];
    let stage = Stage::<_, Gva, Spa>::new(format, ());
    let plain = walk(&stage, memory, address, access, regime, &seen[0]);
    let stage = Stage::<_, Gva, Spa>::new(Exact(format), ());
    let exact = walk(&stage, memory, address, access, regime, &seen[1]);
    let name = format.name();
    assert_eq!(plain, exact, "{name}: {address:?} {access:?}");
    let steps = seen.map(|seen| seen.iter().collect::<Vec<_>>());
    assert_eq!(steps[0], steps[1], "{name}: {address:?} {access:?}");
    plain.is_ok().into()
}

/// Entries, each at every level: what is said plainly is said exactly.
/// A walk taken entry by entry beside one at once, from the root and from each table on the way, whatever
/// is written: result, steps, and memory.
fn descends_alike(format: AnyFormat, bytes: &[u8], address: Gva, access: &Access, regime: &Regime) {
    let half = format.half(address.raw());
    for updates in [Updates::Never, Updates::AsWalked, Updates::OnSuccess] {
        let stage = Stage::<_, Gva, Spa>::new(format, ()).with_updates(updates);
        let mut tables = vec![None];
        while let Some(from) = tables.pop() {
            let seen = [Steps::<8>::default(), Steps::<8>::default()];
            let mut after = [bytes.to_vec(), bytes.to_vec()];
            let [one, other] = &mut after;
            let mut memory = SliceMemory::new(Spa::new(0), one);
            let at_once = match &from {
                None => walk(&stage, &mut memory, address, access, regime, &seen[0]),
                Some(from) => {
                    walk_from(&stage, from, &mut memory, address, access, regime, &seen[0])
                }
            };
            let mut memory = SliceMemory::new(Spa::new(0), other);
            let begun =
                Descent::new(&stage, &half, from.as_ref(), address, access, regime, &seen[1]);
            let Some(mut begun) = begun else {
                assert!(seen[0].iter().next().is_none(), "no table was read");
                continue;
            };
            let by_entry = loop {
                match begun.step(&mut memory) {
                    Ok(Next::Table(partial)) if from.is_none() => tables.push(Some(partial)),
                    Ok(Next::Table(_)) => {}
                    Ok(Next::Leaf(mapped)) => break Ok(mapped),
                    Ok(Next::Other(entry)) => break begun.finish(entry, &mut memory, &seen[1]),
                    Err(below) => break Err(Failed::Below(below)),
                }
            };
            let case = (format.name(), address, access, updates, from);
            assert_eq!(by_entry, at_once, "{case:?}");
            let [steps, other_steps] = seen.map(|seen| seen.iter().collect::<Vec<_>>());
            assert_eq!(other_steps, steps, "{case:?}");
            assert!(after[0] == after[1], "{case:?}");
        }
    }
}

fn one_by_one(r: &mut Random, format: &AnyFormat) {
    for _ in 0..200 {
        for level in 0..5 {
            let entry = entry(r, format, level);
            let decoded = format.decode(entry, level);
            if let Some(next) = format.plain_table(entry, level) {
                assert!(level > 0, "{}: {entry:#x}", format.name());
                assert_eq!(decoded, Decoded::Table { next }, "{} {entry:#x}", format.name());
            }
            if let Some((base, shift)) = format.plain_leaf(entry, level) {
                assert_eq!(decoded, Decoded::Leaf { base, shift }, "{} {entry:#x}", format.name());
            }
        }
    }
}

/// Of the tables that most machines have, table entries and leaves that permit everything are plain: the
/// fast walks rest on it, and would otherwise be right all the same.
#[test]
fn everyday_entries_are_plain() {
    fn ask<F: Format>(format: &F, levels: u8, table: u64, leaves: &[u64]) {
        let name = format.name();
        for level in 1..levels {
            let next = Some(0x4000_0000);
            assert_eq!(format.plain_table(table, level), next, "{name} level {level}");
        }
        for (level, &entry) in (0..).zip(leaves) {
            let shift = format.shift(level) as u8;
            let leaf = Some((0x4000_0000, shift));
            assert_eq!(format.plain_leaf(entry, level), leaf, "{name} level {level}");
            let path = Path { and: table, or: table, via: u64::MAX };
            for kind in [Kind::Read, Kind::Write, Kind::Execute] {
                let found = Found { entry, level, base: 0x4000_0000, shift, path, input: 0, kind };
                let access = Access::new(kind, Privilege::User);
                let permitted = format.plainly_permits(&found, &access, &Regime::default());
                assert!(permitted, "{name} level {level} {kind:?}");
            }
        }
    }
    const AT: u64 = 0x4000_0000;
    let (controls, processor) =
        (Controls { nxe: true, ..Controls::default() }, Processor::default());
    let x86 = [AT | 0x67, AT | 0xe7, AT | 0xe7];
    ask(&Long::four(controls, processor), 4, AT | 0x67, &x86);
    ask(&Long::five(controls, processor), 5, AT | 0x67, &x86);
    ask(&Npt::four(true, processor), 4, AT | 0x67, &x86);
    ask(&Npt::five(true, processor), 5, AT | 0x67, &x86);
    let ept = [AT | 0x37, AT | 0xb7, AT | 0xb7];
    ask(&Ept::four(Features::default()), 4, AT | 7, &ept);
    ask(&Ept::five(Features::default()), 5, AT | 7, &ept);
    let features = riscv::Features::default();
    for (scheme, levels) in [(Scheme::Sv39, 3), (Scheme::Sv48, 4), (Scheme::Sv57, 5)] {
        for sv in [Sv::stage1(scheme, features), Sv::stage2(scheme, features)] {
            ask(&sv, levels, AT >> 2 | 1, &[AT >> 2 | 0xdf; 3]);
        }
    }
    for physical_bits in [40, 48, 52] {
        let processor = arm64::Processor { physical_bits, ..arm64::Processor::default() };
        for (granule, bits, levels) in
            [(Granule::Four, 40, 3), (Granule::Sixteen, 40, 3), (Granule::SixtyFour, 40, 2)]
        {
            let page = AT | 0x443;
            let leaves = if levels == 3 && granule == Granule::Four {
                vec![page, AT | 0x441, AT | 0x441]
            } else {
                vec![page]
            };
            let stage = Stage1::plain(granule, bits, &processor).expect("the sizes exist");
            ask(&stage, levels, AT | 3, &leaves);
            let stage = Stage2::plain(granule, bits, &processor).expect("the sizes exist");
            let leaves: Vec<u64> = leaves.iter().map(|leaf| leaf | 0xfc).collect();
            ask(&stage, levels, AT | 3, &leaves);
        }
    }
}

#[test]
fn x86() {
    compare(1, &[(x86_first, x86_second)]);
}

#[test]
fn arm64() {
    compare(2, &[(arm64_first, arm64_second)]);
}

#[test]
fn riscv() {
    compare(3, &[(riscv_first, riscv_second)]);
}

/// AArch32 has no plain answers of its own: the defaults are what is tested.
#[test]
fn arm32() {
    fn first(r: &mut Random) -> AnyFormat {
        let processor = arm32::Processor::default();
        let registers = arm32::Registers {
            sctlr: 1 | if r.coin() { arm32::sctlr::AFE } else { 0 },
            dacr: r.next() as u32,
            ..arm32::Registers::default()
        };
        let root = arm32::Root::from(r.below(8) << 16);
        if r.coin() {
            let short = arm32::Short::new(&registers, &processor).expect("they are plain");
            return AnyFormat::ArmShort(short, root);
        }
        let registers = arm32::Registers { ttbcr: arm32::ttbcr::EAE, ..registers };
        let lpae = arm32::Lpae::new(&registers, &processor).expect("they are plain");
        AnyFormat::ArmLpae(lpae, root)
    }
    fn second(r: &mut Random) -> AnyFormat {
        let control = 1 << 31 | 1 << 6; // Level 1, 32 bits.
        let stage = arm32::Stage2::new(control, 1, 0, &arm32::Processor::default());
        AnyFormat::ArmLpaeStage2(stage.expect("they are plain"), r.below(8) << 16)
    }
    compare(4, &[(first, second), (first, arm64_second)]);
}
