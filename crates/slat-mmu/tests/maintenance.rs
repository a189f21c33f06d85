//! Each instruction beside its manual: what it drops of a core that holds one thing of each kind.

use slat::Kind;
use slat::format::ept::{self, Ept};
use slat::format::flat::Flat;
use slat::format::x86::Controls;
use slat::format::x86::long::{Long, Processor};
use slat::{EntryLayout, Gpa, Gva, References, Regime, SliceMemory, Spa, Stage};
use slat_mmu::array::Geometry;
use slat_mmu::cores::Cores;
use slat_mmu::maintenance::{Addresses, Core, Identity, Item, What, amd, arm64, intel, riscv};
use slat_mmu::tlb::{BankConfig, Entry, Rights, Served, TlbConfig};
use slat_mmu::walker::{Context, Design, Globals, WalkCacheConfig, WalkerConfig};

/// Two addresses, 2 MiB apart.
const A: u64 = 0x40_0000;
const B: u64 = 0x60_0000;

/// Things that a core can hold, by name: `machine.space@address`, `t` for a table entry of 2 MiB.
struct Held(Vec<(String, Item)>);

impl Held {
    /// `machines`: name, id and EP4TA, where guest-physical mappings are under that id.
    fn new(machines: &[(&str, u32, Option<u64>)], nested: &[(&str, u32, Option<u64>)]) -> Held {
        let mut held = Vec::new();
        let mut add = |name: String, vm, ep4ta, addresses| {
            for (place, start, what, shift) in [
                ("@a", A, What::Translation, 12),
                ("@b", B, What::Translation, 12),
                ("t@a", A, What::Table, 21),
                ("t@b", B, What::Table, 21),
            ] {
                let identity = Identity { vm, ep4ta, addresses };
                let item = Item { identity, what, start, shift, leaf: 0 };
                held.push((format!("{name}{place}"), item));
            }
        };
        for &(name, vm, ep4ta) in machines {
            for space in [1, 2] {
                add(format!("{name}.{space}"), vm, ep4ta, Addresses::Space(space));
            }
            add(format!("{name}.g"), vm, ep4ta, Addresses::Global);
        }
        for &(name, vm, ep4ta) in nested {
            add(name.to_string(), vm, ep4ta, Addresses::GuestPhysical);
        }
        // Table entries are not global.
        held.retain(|(name, _)| !name.contains(".gt"));
        Held(held)
    }

    fn dropped(&self, names: impl Fn(&Item) -> bool) -> String {
        let dropped: Vec<&str> =
            self.0.iter().filter(|(_, item)| names(item)).map(|(name, _)| name.as_str()).collect();
        dropped.join(" ")
    }

    /// Everything whose name begins with one of these.
    fn all(&self, beginnings: &[&str]) -> String {
        let matches = |name: &str| beginnings.iter().any(|start| name.starts_with(start));
        let all = self.0.iter().filter(|(name, _)| matches(name));
        all.map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(" ")
    }
}

const EPT_A: u64 = 0x1000;
const EPT_B: u64 = 0x2000;

/// The host, a guest under VPID 0, two guests with VPIDs, and the EPTs' own mappings.
fn on_intel() -> Held {
    Held::new(
        &[
            ("host", 0, None),
            ("plain", 0, Some(EPT_A)),
            ("one", 1, Some(EPT_A)),
            ("two", 2, Some(EPT_B)),
        ],
        &[("gpa-a", 0, Some(EPT_A)), ("gpa-b", 0, Some(EPT_B))],
    )
}

const HOST: intel::Current = intel::Current { vpid: 0, pcid: 1, ep4ta: None };
const ONE: intel::Current = intel::Current { vpid: 1, pcid: 1, ep4ta: Some(EPT_A) };

fn by_intel(operation: intel::Operation, current: &intel::Current) -> String {
    on_intel().dropped(|item| intel::names(&operation, current, item))
}

#[test]
fn intel_control_registers() {
    use intel::Operation::{MovCr3, MovCr4};
    let all = |starts: &[&str]| on_intel().all(starts);
    // One PCID of the current machine, globals kept; with bit 63 nothing.
    // Combined mappings of the VPID go too, without EPT in use and of every EP4TA.
    assert_eq!(by_intel(MovCr3 { pcid: 1, keep: false }, &HOST), all(&["host.1", "plain.1"]));
    assert_eq!(by_intel(MovCr3 { pcid: 2, keep: false }, &ONE), all(&["one.2"]));
    assert_eq!(by_intel(MovCr3 { pcid: 1, keep: true }, &HOST), "");
    let (pge, pcide, smep, pae) = (1 << 7, 1 << 17, 1 << 20, 1 << 5);
    let cr4 = |old, new| by_intel(MovCr4 { old, new }, &HOST);
    assert_eq!(cr4(0, pge), all(&["host", "plain"]));
    assert_eq!(cr4(pge, 0), all(&["host", "plain"]));
    assert_eq!(cr4(pcide, 0), all(&["host", "plain"]));
    assert_eq!(cr4(0, pcide), "");
    assert_eq!(cr4(0, smep), all(&["host.1", "host.g", "plain.1", "plain.g"]));
    assert_eq!(cr4(smep, 0), "");
    assert_eq!(cr4(pae, 0), all(&["host.1", "host.g", "plain.1", "plain.g"]));
    assert_eq!(cr4(0, 1 << 9), "", "CR4.OSFXSR is no concern of translations");
    let cr0 = |old, new| by_intel(intel::Operation::MovCr0 { old, new }, &HOST);
    assert_eq!(cr0(1 << 31, 0), all(&["host", "plain"]));
    assert_eq!(cr0(0, 1 << 31), "");
    assert_eq!(cr0(1 << 16, 0), "", "CR0.WP is asked at each access");
}

/// SDM 3A 5.10.4.1 and 3C 30.4.3.1: faults drop what served their address.
#[test]
fn intel_faults() {
    use intel::Operation::{EptViolation, PageFault};
    assert_eq!(
        by_intel(PageFault { va: A }, &HOST),
        "host.1@a host.1t@a host.g@a plain.1@a plain.1t@a plain.g@a"
    );
    assert_eq!(by_intel(PageFault { va: B }, &ONE), "one.1@b one.1t@b one.g@b");
    let violation = |va| by_intel(EptViolation { gpa: B, va }, &ONE);
    assert_eq!(violation(None), "gpa-a@b gpa-at@b");
    assert_eq!(violation(Some(A)), "one.1@a one.1t@a one.g@a gpa-a@b gpa-at@b");
}

#[test]
fn intel_addresses_and_contexts() {
    use intel::Operation::{Invept, Invlpg, Invpcid, Invvpid, TransitionWithoutVpid};
    let all = |starts: &[&str]| on_intel().all(starts);
    // The page, global or not, and all table entries of the PCID.
    assert_eq!(
        by_intel(Invlpg { va: A + 5 }, &HOST),
        "host.1@a host.1t@a host.1t@b host.g@a plain.1@a plain.1t@a plain.1t@b plain.g@a"
    );
    // A guest that was in another view (VMFUNC) before.
    let other_view = intel::Current { ep4ta: Some(EPT_B), ..ONE };
    assert_eq!(by_intel(Invlpg { va: B }, &other_view), by_intel(Invlpg { va: B }, &ONE));
    assert_eq!(by_intel(Invlpg { va: B }, &ONE), "one.1@b one.1t@a one.1t@b one.g@b");
    let invpcid = |kind| by_intel(Invpcid { kind, pcid: 2, va: A }, &HOST);
    assert_eq!(invpcid(0), "host.2@a host.2t@a plain.2@a plain.2t@a", "globals may stay");
    assert_eq!(invpcid(1), all(&["host.2", "plain.2"]));
    assert_eq!(invpcid(2), all(&["host", "plain"]));
    assert_eq!(invpcid(3), all(&["host.1", "host.2", "plain.1", "plain.2"]));
    // VPID 0 alone; guest-physical mappings stay.
    assert_eq!(by_intel(TransitionWithoutVpid, &HOST), all(&["host", "plain"]));
    let invvpid = |kind, vpid| by_intel(Invvpid { kind, vpid, va: A }, &HOST);
    assert_eq!(invvpid(0, 1), "one.1@a one.1t@a one.2@a one.2t@a one.g@a");
    assert_eq!(invvpid(1, 1), all(&["one"]));
    assert_eq!(invvpid(2, 1), all(&["one", "two"]));
    assert_eq!(invvpid(3, 2), all(&["two.1", "two.2"]));
    assert_eq!(invvpid(1, 0), "");
    // Combined and guest-physical mappings of one EP4TA, whatever the VPID and the EPTP's low bits.
    let invept = |kind, eptp| by_intel(Invept { kind, eptp }, &HOST);
    assert_eq!(invept(1, EPT_A | 0x5e), all(&["plain", "one", "gpa-a"]));
    assert_eq!(invept(2, 0), all(&["plain", "one", "two", "gpa"]));
    assert_eq!(invept(0, EPT_A), "");
}

fn on_amd() -> Held {
    Held::new(
        &[("host", 0, None), ("five", 5, None), ("six", 6, None)],
        &[("nested-five", 5, None), ("nested-six", 6, None)],
    )
}

#[test]
fn amd_scopes() {
    use amd::Operation::{Invlpg, Invlpga, Invlpgb, MovCr3, TlbControl};
    let by = |operation| on_amd().dropped(|item| amd::names(&operation, item));
    let all = |starts: &[&str]| on_amd().all(starts);
    assert_eq!(by(MovCr3 { asid: 5, pcid: 2, keep: false }), all(&["five.2"]));
    assert_eq!(by(Invlpg { asid: 0, pcid: 1, va: A }), "host.1@a host.1t@a host.1t@b host.g@a");
    assert_eq!(
        by(Invlpga { va: A, asid: 5 }),
        "five.1@a five.1t@a five.2@a five.2t@a five.g@a",
        "nested translations stay"
    );
    assert_eq!(by(amd::Operation::PagingMode { asid: 5 }), all(&["five"]));
    let invpcid = |kind| by(amd::Operation::Invpcid { asid: 5, kind, pcid: 2, va: A });
    assert_eq!(invpcid(0), "five.2@a five.2t@a");
    assert_eq!(invpcid(1), all(&["five.2"]));
    assert_eq!(invpcid(2), all(&["five"]));
    assert_eq!(invpcid(3), all(&["five.1", "five.2"]));
    let control = |value| by(TlbControl { value, asid: 5 });
    assert_eq!(control(0), "");
    assert_eq!(control(1), all(&[""]));
    assert_eq!(control(3), all(&["five", "nested-five"]));
    assert_eq!(control(7), all(&["five.1", "five.2", "nested-five"]));
    let invlpgb = |rax, ecx, edx| by(Invlpgb { rax, ecx, edx });
    let (va, pcid, asid, global, last, nested) = (1, 2, 4, 8, 16, 32);
    assert_eq!(invlpgb(asid | global | nested, 0, 5), all(&["five", "nested-five"]));
    assert_eq!(invlpgb(asid | global, 0, 5), all(&["five"]));
    assert_eq!(invlpgb(asid | pcid, 0, 5 | 2 << 16), all(&["five.2"]));
    assert_eq!(invlpgb(A | va | asid | global | last, 0, 5), "five.1@a five.2@a five.g@a");
    // Two pages of 2 MiB, against two of 4 KiB.
    assert_eq!(invlpgb(A | va | asid | last, 1 << 31 | 1, 6), "six.1@a six.1@b six.2@a six.2@b");
    assert_eq!(invlpgb(A | va | asid | last, 1, 6), "six.1@a six.2@a");
}

#[test]
fn arm_scopes() {
    use arm64::{Operation, Range};
    let held = || {
        Held::new(
            &[("three", 3, None), ("four", 4, None), ("el2", arm64::EL2, None)],
            &[("ipa-3", 3, None), ("ipa-4", 4, None)],
        )
    };
    let by = |operation| held().dropped(|item| arm64::names(&operation, 3, item));
    let all = |starts: &[&str]| held().all(starts);
    let one = |last_level| Range::page(A, last_level);
    let both = Range { bytes: B - A + 0x1000, ..Range::page(A, true) };
    assert_eq!(by(Operation::Vmalle1), all(&["three"]), "stage 2's stay");
    assert_eq!(by(Operation::Aside1(2)), all(&["three.2"]));
    assert_eq!(by(Operation::Vae1(1, one(false))), "three.1@a three.1t@a three.g@a");
    assert_eq!(by(Operation::Vae1(1, one(true))), "three.1@a three.g@a");
    assert_eq!(by(Operation::Vae1(1, both)), "three.1@a three.1@b three.g@a three.g@b");
    assert_eq!(by(Operation::Vaae1(one(true))), "three.1@a three.2@a three.g@a");
    assert_eq!(by(Operation::Ipas2e1(one(false))), "ipa-3@a ipa-3t@a", "combined ones stay");
    assert_eq!(by(Operation::Ipas2e1(one(true))), "ipa-3@a");
    assert_eq!(by(Operation::Vmalls12e1), all(&["three", "ipa-3"]));
    assert_eq!(by(Operation::Alle1), all(&["three", "four", "ipa"]));
    assert_eq!(by(Operation::Alle2), all(&["el2"]));
    assert_eq!(by(Operation::Vae2(1, one(true))), "el2.1@a el2.g@a");
    // Level hints: pages of 4 KiB alone; leaves of 2 MiB, and what a TLB keeps of them.
    let hinted = |leaf| Range { leaf: Some(leaf), ..one(false) };
    assert_eq!(by(Operation::Vaae1(hinted(12))), "three.1@a three.2@a three.g@a");
    assert_eq!(by(Operation::Vaae1(hinted(21))), "three.1@a three.2@a three.g@a");
}

/// Arm ARM C5.5: every TLBI of EL1 and EL2 that a hypervisor uses, by its encoding.
#[test]
fn arm_encodings() {
    use arm64::{Operation, Range, Reach, decode};
    let (inner, outer, local) = (Reach::InnerShareable, Reach::OuterShareable, Reach::Local);
    let page = |last_level| Range::page(A, last_level);
    let va = 7 << 48 | A >> 12;
    for (crm, reach) in [(7, local), (3, inner), (1, outer)] {
        let of = |op1, op2| decode(op1, crm, op2, va);
        assert_eq!(of(0, 0), Some((Operation::Vmalle1, reach)));
        assert_eq!(of(0, 1), Some((Operation::Vae1(7, page(false)), reach)));
        assert_eq!(of(0, 2), Some((Operation::Aside1(7), reach)));
        assert_eq!(of(0, 3), Some((Operation::Vaae1(page(false)), reach)));
        assert_eq!(of(0, 5), Some((Operation::Vae1(7, page(true)), reach)));
        assert_eq!(of(0, 7), Some((Operation::Vaae1(page(true)), reach)));
        assert_eq!(of(4, 0), Some((Operation::Alle2, reach)));
        assert_eq!(of(4, 1), Some((Operation::Vae2(7, page(false)), reach)));
        assert_eq!(of(4, 4), Some((Operation::Alle1, reach)));
        assert_eq!(of(4, 5), Some((Operation::Vae2(7, page(true)), reach)));
        assert_eq!(of(4, 6), Some((Operation::Vmalls12e1, reach)));
        assert_eq!((of(0, 4), of(4, 2), of(4, 7), of(6, 0)), (None, None, None, None));
    }
    // 2 MiB from A on: (31 + 1) x 2^(5 x 0 + 1) pages of 4 KiB are 256 KiB, with SCALE 1 32 times that.
    let range = |scale: u64, number: u64, hint: u64| {
        7 << 48 | 1 << 46 | scale << 44 | number << 39 | hint << 37 | A >> 12
    };
    let bytes = |bytes, last_level| Range { bytes, ..page(last_level) };
    for (crm, reach) in [(6, local), (2, inner), (5, outer)] {
        let of = |op1, op2, operand| decode(op1, crm, op2, operand);
        let small = bytes(256 << 10, false);
        assert_eq!(of(0, 1, range(0, 31, 0)), Some((Operation::Vae1(7, small), reach)));
        assert_eq!(
            of(0, 3, range(1, 7, 0)),
            Some((Operation::Vaae1(bytes(2 << 20, false)), reach))
        );
        assert_eq!(of(0, 5, range(0, 0, 0)), Some((Operation::Vae1(7, bytes(8192, true)), reach)));
        assert_eq!(of(0, 7, range(0, 0, 0)), Some((Operation::Vaae1(bytes(8192, true)), reach)));
        assert_eq!(of(4, 5, range(0, 0, 0)), Some((Operation::Vae2(7, bytes(8192, true)), reach)));
        let hinted = Range { leaf: Some(21), ..small };
        assert_eq!(of(0, 1, range(0, 31, 2)), Some((Operation::Vae1(7, hinted), reach)));
        assert_eq!(of(0, 1, A >> 12), None, "granule 0 is reserved");
    }
    // The upper half: bit 36 of the operand is repeated above bit 48.
    let upper = 0xffff_8000_0000_0000u64;
    let operand = 1 << 46 | upper >> 12 & ((1 << 37) - 1);
    let Some((operation, _)) = decode(0, 2, 3, operand) else { panic!("RVAAE1IS") };
    let identity = Identity { vm: 0, ep4ta: None, addresses: Addresses::Global };
    let item = Item { identity, what: What::Translation, start: upper, shift: 12, leaf: 12 };
    assert!(arm64::names(&operation, 0, &item), "{operation:?}");
    let ipa = A >> 12;
    let rows = [(0, 1, inner), (4, 1, local), (4, 0, outer)];
    for (crm, op2, reach) in rows {
        let of = |op2, operand| decode(4, crm, op2, operand);
        assert_eq!(of(op2, ipa), Some((Operation::Ipas2e1(page(false)), reach)));
        assert_eq!(of(op2 | 4, ipa), Some((Operation::Ipas2e1(page(true)), reach)));
    }
    for (crm, op2, reach) in [(0, 2, inner), (4, 2, local), (4, 3, outer)] {
        let of = |op2| decode(4, crm, op2, range(0, 0, 0));
        assert_eq!(of(op2), Some((Operation::Ipas2e1(bytes(8192, false)), reach)));
        assert_eq!(of(op2 | 4), Some((Operation::Ipas2e1(bytes(8192, true)), reach)));
    }
    // By one address with a hint: a block of level 2 with the 16K granule.
    let hint = 2 << 46 | 2 << 44;
    let block = Range { start: A, bytes: 1 << 14, last_level: false, leaf: Some(25) };
    assert_eq!(decode(4, 4, 1, ipa | hint), Some((Operation::Ipas2e1(block), local)));
    // Reserved hints are none: table entries go too, and low bits of the page number count.
    for hint in [0b0100, 0b1000, 0b1001, 0b1100] {
        let small = Range::page(A + 0x1000, false);
        let operand = (hint << 44) | (ipa + 1);
        assert_eq!(decode(4, 4, 1, operand), Some((Operation::Ipas2e1(small), local)), "{hint:#b}");
    }
    // By range, with pages of 16 KiB.
    let many = |level: u64| 2 << 46 | level << 37 | A >> 14;
    for (level, leaf) in [(0, None), (1, None), (2, Some(25)), (3, Some(14))] {
        let range = Range { start: A, bytes: 1 << 15, last_level: false, leaf };
        assert_eq!(decode(4, 4, 2, many(level)), Some((Operation::Ipas2e1(range), local)));
    }
}

/// Broadcasts have happened when their sender has waited, and on its own core before; shoot-downs reach
/// the cores that they name.
#[test]
fn several_cores() {
    let sizes = BankConfig::new(Geometry::full(4), &[12]);
    let tlb =
        TlbConfig { load: vec![sizes], second: vec![sizes], largest: 12, ..TlbConfig::default() };
    let filled = |vm: u32| {
        let mut cores = Cores::new(3, &tlb, &WalkerConfig::NONE).unwrap();
        for number in 0..3 {
            let core = cores.core(number).unwrap();
            let space = core.tags.space(vm, None, 1).unwrap();
            let entry =
                Entry { base: A, shift: 12, leaf: 12, rights: Rights::ALL, ..Entry::default() };
            core.tlb.insert(A, space, Kind::Read, entry);
        }
        cores
    };
    let held = |cores: &Cores| -> Vec<bool> {
        cores.iter().map(|core| core.tlb.iter().next().is_some()).collect()
    };
    let mut amd = filled(5);
    amd.invlpgb(1, A | 1 | 4 | 8, 0, 5);
    assert_eq!(held(&amd), [true, false, true]);
    amd.tlbsync(0);
    amd.dsb(1);
    assert_eq!(held(&amd), [true, false, true], "neither another's TLBSYNC nor a DSB");
    amd.tlbsync(1);
    assert_eq!(held(&amd), [false; 3]);
    let mut arm = filled(3);
    let operation = arm64::Operation::Vmalle1;
    arm.tlbi(0, operation, arm64::Reach::Local, 3);
    arm.dsb(0);
    assert_eq!(held(&arm), [false, true, true]);
    arm.tlbi(0, operation, arm64::Reach::InnerShareable, 3);
    assert_eq!(held(&arm), [false, true, true]);
    arm.dsb(0);
    assert_eq!(held(&arm), [false; 3]);
    let mut intel = filled(1);
    let current = intel::Current { vpid: 1, pcid: 1, ep4ta: None };
    let flush = |core: &mut Core| core.intel(&intel::Operation::Invlpg { va: A }, &current);
    assert_eq!(intel.shoot_down(2, |core| core == 0, flush), 1);
    assert_eq!(held(&intel), [false, true, false]);
    assert_eq!(intel.interrupts(), 1);
}

/// A page walk cache knows no input addresses, and of ids the machine: its entries go with what names any
/// table entries of that, and those that two machines have read with what names either's.
#[test]
fn page_walk_caches_go_by_machine() {
    let mut bytes = vec![0; 16 * 4096];
    let mut memory = SliceMemory::new(Spa::new(0), &mut bytes);
    for (at, entry) in [(0x1000, 0x2007), (0x2000, 0x3007), (0x3000, 0x4007), (0x4008, 0x5007)] {
        memory.poke(Spa::new(at), EntryLayout::LE64, entry).unwrap();
    }
    let none = TlbConfig { largest: 12, ..TlbConfig::default() };
    let caches = WalkerConfig::amd(Design::OneD, 24, 0);
    let mut core = Core::new(&none, &caches).unwrap();
    let long = Long::four(Controls::default(), Processor::default());
    let stage1 = Stage::<_, Gva, Gpa>::new(long, 0x1000);
    let stage2 = Stage::<_, Gpa, Spa>::new(Flat::new("off", 2, 64), ());
    let space = core.tags.space(5, None, 1).unwrap();
    let context = Context {
        stage1: &stage1,
        stage2: &stage2,
        regime: &Regime::default(),
        space,
        vm: space.own,
        globals: Globals::X86,
        dirty_tracked: true,
    };
    // Software has torn a table away: a walk that still succeeds has it from the cache.
    let other = core.tags.space(6, None, 1).unwrap();
    let also = Context { space: other, vm: other.own, ..context };
    let mut stale_after = |shared: bool, operation: Option<amd::Operation>| {
        let gva = Gva::new(0x1000);
        let walk = |core: &mut Core, memory: &mut SliceMemory<'_, Spa>| {
            core.caches.walk(&context, memory, gva, Kind::Read, true, &()).is_ok()
        };
        memory.poke(Spa::new(0x2000), EntryLayout::LE64, 0x3007).unwrap();
        core.amd(&amd::Operation::TlbControl { value: 1, asid: 0 });
        assert!(walk(&mut core, &mut memory));
        if shared {
            let kept = core.caches.walk(&also, &mut memory, gva, Kind::Read, true, &());
            assert!(kept.is_ok());
        }
        memory.poke(Spa::new(0x2000), EntryLayout::LE64, 0).unwrap();
        operation.iter().for_each(|operation| core.amd(operation));
        walk(&mut core, &mut memory)
    };
    use amd::Operation::{Invlpg, Invlpga, Invlpgb, MovCr3, TlbControl};
    assert!(stale_after(false, None));
    assert!(stale_after(false, Some(Invlpg { asid: 6, pcid: 1, va: 0x1000 })), "another's");
    assert!(stale_after(false, Some(MovCr3 { asid: 5, pcid: 1, keep: true })));
    assert!(
        stale_after(false, Some(Invlpgb { rax: 0x1000 | 1 | 4 | 16, ecx: 0, edx: 5 })),
        "final alone"
    );
    assert!(
        !stale_after(false, Some(Invlpg { asid: 5, pcid: 1, va: 0x9000 })),
        "whatever the address"
    );
    assert!(!stale_after(false, Some(Invlpga { va: 0x1000, asid: 5 })));
    assert!(!stale_after(false, Some(MovCr3 { asid: 5, pcid: 1, keep: false })));
    assert!(stale_after(false, Some(TlbControl { value: 3, asid: 6 })));
    assert!(stale_after(false, Some(MovCr3 { asid: 6, pcid: 1, keep: false })));
    assert!(
        !stale_after(true, Some(MovCr3 { asid: 6, pcid: 1, keep: false })),
        "both have read it"
    );
    assert!(!stale_after(true, Some(Invlpg { asid: 5, pcid: 1, va: 0x9000 })));
    assert!(stale_after(true, Some(TlbControl { value: 3, asid: 7 })));
}

#[test]
fn riscv_scopes() {
    use riscv::Operation::{HfenceGvma, HfenceVvma, SfenceVma};
    // Identities count VMIDs from 1: VMID 0 is a guest's.
    let held = || {
        Held::new(
            &[("host", 0, None), ("vm0", 1, None), ("vm3", 4, None)],
            &[("gpa0", 1, None), ("gpa3", 4, None)],
        )
    };
    let by = |operation| held().dropped(|item| riscv::names(&operation, 3, item));
    let all = |starts: &[&str]| held().all(starts);
    assert_eq!(by(SfenceVma { rs1: None, rs2: None }), all(&["host"]));
    assert_eq!(by(SfenceVma { rs1: None, rs2: Some(1) }), all(&["host.1"]), "globals stay");
    assert_eq!(by(SfenceVma { rs1: Some(A), rs2: None }), "host.1@a host.2@a host.g@a");
    assert_eq!(by(SfenceVma { rs1: Some(A), rs2: Some(2) }), "host.2@a");
    assert_eq!(by(HfenceVvma { rs1: None, rs2: None }), all(&["vm3"]), "the VMID in hgatp");
    assert_eq!(by(HfenceVvma { rs1: Some(B), rs2: Some(1) }), "vm3.1@b");
    assert_eq!(by(HfenceGvma { rs1: None, rs2: None }), all(&["vm", "gpa"]));
    assert_eq!(by(HfenceGvma { rs1: None, rs2: Some(0) }), all(&["vm0", "gpa0"]));
    let by_address = by(HfenceGvma { rs1: Some(A >> 2), rs2: Some(3) });
    assert_eq!(
        by_address,
        "vm3.1@a vm3.1@b vm3.1t@a vm3.1t@b vm3.2@a vm3.2@b vm3.2t@a vm3.2t@b vm3.g@a vm3.g@b gpa3@a",
        "what was made through both stages goes with any address"
    );
}

/// The scopes act on real TLBs and caches: what a walk costs after each of them.
#[test]
fn walks_pay_for_what_was_dropped() {
    let page = |at: u64, entry: u64, bytes: &mut [u8]| {
        let mut memory = SliceMemory::new(Spa::new(0), bytes);
        memory.poke(Spa::new(at), EntryLayout::LE64, entry).unwrap();
    };
    // Guest tables at 1-4 (pages), EPT at 8-b; both map the first 64 KiB one to one.
    let mut bytes = vec![0; 16 * 4096];
    for root in [1u64, 8] {
        let leaf = if root == 8 { 0x37 } else { 7 };
        for level in 0..3 {
            page((root + level) << 12, (root + level + 1) << 12 | 7, &mut bytes);
        }
        for n in 0..16 {
            page((root + 3) << 12 | n << 3, n << 12 | leaf, &mut bytes);
        }
    }
    let sizes = BankConfig::new(Geometry::full(16), &[12]);
    let tlb = TlbConfig {
        fetch: vec![sizes],
        load: vec![sizes],
        second: vec![sizes],
        largest: 12,
        ..TlbConfig::default()
    };
    let full = Geometry::full(8);
    let levels = WalkCacheConfig::by_level([full, full, full, Geometry::NONE]);
    let nested_tlb = BankConfig::new(full, &[12]);
    let caches = WalkerConfig { nested_tlb, ..WalkerConfig::intel(levels) };
    let mut core = Core::new(&tlb, &caches).unwrap();
    let stage1 =
        Stage::<_, Gva, Gpa>::new(Long::four(Controls::default(), Processor::default()), 1 << 12);
    let stage2 = Stage::<_, Gpa, Spa>::new(Ept::four(ept::Features::default()), 8 << 12);
    let regime = Regime::default();
    let ep4ta = Some(8 << 12);
    let space = core.tags.space(1, ep4ta, 1).unwrap();
    let nested = Identity { vm: 0, ep4ta, addresses: Addresses::GuestPhysical };
    let vm = core.tags.tag(nested).unwrap();
    let context = Context {
        stage1: &stage1,
        stage2: &stage2,
        regime: &regime,
        space,
        vm,
        globals: Globals::X86,
        dirty_tracked: true,
    };
    let mut memory = SliceMemory::new(Spa::new(0), &mut bytes);
    let mut cost = |core: &mut Core| {
        let (served, _) = core.tlb.find(0x5000, space, Kind::Read, true);
        if served != Served::Miss {
            return 0;
        }
        let counted = References::default();
        let gva = Gva::new(0x5000);
        let walked =
            core.caches.walk(&context, &mut memory, gva, Kind::Read, true, &counted).unwrap();
        core.tlb.insert(0x5000, space, Kind::Read, walked.entry);
        counted.count()
    };
    let one = intel::Current { vpid: 1, pcid: 1, ep4ta };
    let two = intel::Current { vpid: 2, ..one };
    use intel::Operation::{Invept, Invlpg, Invvpid, MovCr3, TransitionWithoutVpid};
    // Stage 1's four entries; of stage 2, one walk of four and then, from its walk cache, one each.
    let cold = cost(&mut core);
    assert_eq!(cold, 4 + 4 + 4);
    assert_eq!(cost(&mut core), 0);
    core.intel(&MovCr3 { pcid: 1, keep: true }, &one);
    core.intel(&MovCr3 { pcid: 1, keep: false }, &two);
    core.intel(&TransitionWithoutVpid, &one);
    core.intel(&Invvpid { kind: 1, vpid: 2, va: 0 }, &one);
    core.intel(&Invept { kind: 1, eptp: 0x7000 }, &one);
    assert_eq!(cost(&mut core), 0, "none of these names it");
    // Linear and combined mappings go; the nested TLB and stage 2's walk cache stay: four entries of
    // stage 1 at known places, and the final leaf.
    core.intel(&MovCr3 { pcid: 1, keep: false }, &one);
    assert_eq!(cost(&mut core), 5);
    core.intel(&Invlpg { va: 0x5000 }, &one);
    assert_eq!(cost(&mut core), 5);
    core.intel(&Invvpid { kind: 0, vpid: 1, va: 0x5123 }, &one);
    assert_eq!(cost(&mut core), 5);
    core.intel(&Invept { kind: 1, eptp: 8 << 12 | 0x1e }, &one);
    assert_eq!(cost(&mut core), cold);
    let rights = Rights::default().with(Rights::GLOBAL, true);
    let global = Entry { base: 0x9000, shift: 12, leaf: 12, rights, ..Entry::default() };
    core.tlb.insert(0x9000, space, Kind::Read, global);
    core.intel(&MovCr3 { pcid: 1, keep: false }, &one);
    let held: Vec<u64> = core.tlb.iter().map(|held| held.va).collect();
    assert_eq!(held, [0x9000, 0x9000], "the global page, in both levels");
}

/// Which of two pieces of a guest's page of 2 MiB are still held after `operation`, where the host's pages
/// are of 4 KiB, and where only the first level has arrays too small for it.
fn pieces_held_after(operation: &dyn Fn(&mut Core)) -> [[bool; 2]; 2] {
    let mut bytes = vec![0; 16 * 4096];
    let mut memory = SliceMemory::new(Spa::new(0), &mut bytes);
    let mut poke = |at, entry| memory.poke(Spa::new(at), EntryLayout::LE64, entry).unwrap();
    // The guest's tables at pages 1 to 3, EPT's at 8 to 11: the first 64 KiB lie one to one.
    for (at, entry) in [(0x1000, 0x2007), (0x2000, 0x3007), (0x3000, 0xe7), (0x8000, 0x9007)] {
        poke(at, entry);
    }
    poke(0x9000, 0xa007);
    poke(0xa000, 0xb007);
    (0..16).for_each(|page| poke(0xb000 + 8 * page, page << 12 | 0x37));
    let long = Long::four(Controls::default(), Processor::default());
    let stage1 = Stage::<_, Gva, Gpa>::new(long, 0x1000);
    let regime = Regime::default();
    let small = BankConfig::new(Geometry::full(4), &[12]);
    [true, false].map(|nested| {
        let tlb = TlbConfig {
            load: vec![small],
            second: vec![BankConfig::new(Geometry::full(4), &[12, 21])],
            largest: 30,
            first_smashes: true,
            ..TlbConfig::default()
        };
        let mut core = Core::new(&tlb, &WalkerConfig::NONE).unwrap();
        let space = core.tags.space(1, None, 1).unwrap();
        let walk = |core: &mut Core, memory: &mut SliceMemory<'_, Spa>, va| {
            let gva = Gva::new(va);
            let (globals, dirty_tracked) = (Globals::None, true);
            let (stage1, regime, vm) = (&stage1, &regime, space.own);
            if nested {
                let stage2 =
                    &Stage::<_, Gpa, Spa>::new(Ept::four(ept::Features::default()), 0x8000);
                let context = Context { stage1, stage2, regime, space, vm, globals, dirty_tracked };
                core.caches.walk(&context, memory, gva, Kind::Read, true, &()).unwrap()
            } else {
                let stage2 = &Stage::<_, Gpa, Spa>::new(Flat::new("off", 2, 64), ());
                let context = Context { stage1, stage2, regime, space, vm, globals, dirty_tracked };
                core.caches.walk(&context, memory, gva, Kind::Read, true, &()).unwrap()
            }
        };
        for va in [0, 0x1000] {
            let entry = walk(&mut core, &mut memory, va).entry;
            assert_eq!(entry.shift, if nested { 12 } else { 21 });
            core.tlb.insert(va, space, Kind::Read, entry);
        }
        operation(&mut core);
        [0, 0x1000].map(|va| core.tlb.find(va, space, Kind::Read, true).0 != Served::Miss)
    })
}

/// An invalidation of one address takes all that a TLB keeps of its page, in however many pieces (Intel
/// SDM 3A 5.10.2.3, and the others' manuals alike).
#[test]
fn every_piece_of_a_page_goes_with_any_of_its_addresses() {
    let current = intel::Current { vpid: 1, pcid: 1, ep4ta: None };
    let (va, pcid) = (0x1f_f000, 1);
    use intel::Operation::{Invlpg, Invpcid, Invvpid, PageFault};
    for operation in [
        Invlpg { va },
        Invpcid { kind: 0, pcid, va },
        Invvpid { kind: 0, vpid: 1, va },
        PageFault { va },
    ] {
        let held = pieces_held_after(&|core| core.intel(&operation, &current));
        assert_eq!(held, [[false; 2]; 2], "{operation:?}");
    }
    use amd::Operation::{Invlpga, Invlpgb};
    for operation in [
        amd::Operation::Invlpg { asid: 1, pcid, va },
        amd::Operation::Invpcid { asid: 1, kind: 0, pcid, va },
        Invlpga { va, asid: 1 },
        Invlpgb { rax: va | 1 | 4 | 8, ecx: 0, edx: 1 },
    ] {
        let held = pieces_held_after(&|core| core.amd(&operation));
        assert_eq!(held, [[false; 2]; 2], "{operation:?}");
    }
    let fence = riscv::Operation::HfenceVvma { rs1: Some(va), rs2: Some(1) };
    assert_eq!(pieces_held_after(&|core| core.riscv(&fence, 0)), [[false; 2]; 2]);
    // VALE1 with the level of the block as its hint; with that of pages, all may stay.
    let hinted = |leaf| {
        let range = arm64::Range { leaf: Some(leaf), ..arm64::Range::page(va, true) };
        pieces_held_after(&|core| core.arm64(&arm64::Operation::Vae1(1, range), 1))
    };
    assert_eq!(hinted(21), [[false; 2]; 2]);
    assert_eq!(hinted(12), [[true; 2]; 2]);
    let other = pieces_held_after(&|core| core.intel(&Invlpg { va: 0x20_0000 }, &current));
    assert_eq!(other, [[true; 2]; 2]);
    // Of a guest physical page, what a nested TLB keeps of it.
    let identity = Identity { vm: 1, ep4ta: None, addresses: Addresses::GuestPhysical };
    let item = Item { identity, what: What::Translation, start: A, shift: 12, leaf: 21 };
    let by_ipa = |ipa| arm64::Operation::Ipas2e1(arm64::Range::page(ipa, true));
    assert!(arm64::names(&by_ipa(A + 0x1f_f000), 1, &item));
    assert!(!arm64::names(&by_ipa(A + 0x20_0000), 1, &item));
    let by_gpa = |gpa| riscv::Operation::HfenceGvma { rs1: Some(gpa >> 2), rs2: None };
    assert!(riscv::names(&by_gpa(A + 0x1f_f000), 0, &item));
    assert!(!riscv::names(&by_gpa(A + 0x20_0000), 0, &item));
}
