//! Instructions and operands, bit by bit, against values worked out from the manuals by hand.

use core::sync::atomic::AtomicU64;

use slat::edit::{Arena, Gather, Leaves, Live, Slots, Stale, Step, Tables, ept};
use slat::format::arm32::Version;
use slat::format::arm64::Granule;
use slat::format::ept::{Ept, Features};
use slat::invalidate::{By, Context, LinearOwner, amd, arm32, arm64, ids, intel, riscv};
use slat::memory_type::x86::Type;
use slat::{Gpa, Permissions, Spa};

const PAGE: u64 = 4096;
const TWO_MIB: u64 = 2 << 20;

/// What is unmapped: (start, bytes) each; mapped before by the largest pages that fit.
fn gathered(context: Context, unmapped: &[(u64, u64)], act: impl FnOnce(&Gather<'_>)) {
    let cells: Vec<AtomicU64> = (0..64 * 512).map(|_| AtomicU64::new(0)).collect();
    let arena = Arena::<u64>::new(0, &cells).unwrap();
    let format = Ept::four(Features::default());
    let mut tables = Tables::<_, Gpa, Spa, _>::create(format, &arena, &arena).unwrap();
    let all = Permissions { read: true, write: true, execute: true };
    let leaves = Leaves::new(&format, &ept::Attributes::new(all, Type::Wb)).unwrap();
    let (mut ranges, mut detached) = ([Stale::default(); 8], [Default::default(); 8]);
    let slots = Slots {
        ranges: &mut ranges,
        detached: &mut detached,
        pending: &mut [],
        report: |leak| panic!("{leak}"),
    };
    let mut cursor =
        tables.cursor::<_, Live>(&arena, context, slots, Gpa::new(0), 1 << 48).unwrap();
    for &(start, bytes) in unmapped {
        let mut map = cursor.map(Gpa::new(start), Spa::new(start & 0xffff_ffff), bytes, &leaves);
        let map = map.as_mut().unwrap();
        assert!(matches!(cursor.step(map, u32::MAX), Ok(Step::Done)));
        let mut unmap = cursor.unmap(Gpa::new(start), bytes, ()).unwrap();
        assert!(matches!(cursor.step(&mut unmap, u32::MAX), Ok(Step::Done)));
    }
    let gather = cursor.finish();
    act(&gather);
    let completed = gather.complete(&mut By(|_: &Gather<'_>| {})).unwrap();
    let _ = completed.reclaim(&tables).unwrap().into_source(&arena).unwrap();
}

/// A gather of pages in one table, which stays.
fn pages(context: Context, start: u64, count: u64, act: impl FnOnce(&Gather<'_>)) {
    gathered(context, &[(start, count * PAGE)], act);
}

fn on_intel(gather: &Gather<'_>, capabilities: intel::Capabilities) -> Vec<intel::Instruction> {
    let mut seen = vec![];
    intel::plan(gather, &capabilities, 3, |instruction| seen.push(instruction));
    seen
}

#[test]
fn intel_operands() {
    use intel::Instruction::{Invept, Invlpg, Invpcid, Invvpid, ReloadCr3};
    let all = intel::Capabilities::default();
    pages(Context::Ept { eptp: 0x1234_501e }, 0x40_3000, 1, |gather| {
        let single = Invept { kind: 1, descriptor: [0x1234_501e, 0] };
        assert_eq!(on_intel(gather, all), [single]);
        let without = intel::Capabilities { invept_single: false, ..all };
        assert_eq!(on_intel(gather, without), [Invept { kind: 2, descriptor: [0, 0] }]);
    });
    let vpid = Context::Linear { owner: LinearOwner::Vpid(7), pcid: 0 };
    pages(vpid, 0x40_3000, 2, |gather| {
        let at = |page| Invvpid { kind: 0, descriptor: [7, page] };
        assert_eq!(on_intel(gather, all), [at(0x40_3000), at(0x40_4000)]);
        let few = intel::Capabilities { most_pages: 1, ..all };
        assert_eq!(on_intel(gather, few), [Invvpid { kind: 1, descriptor: [7, 0] }]);
    });
    // A whole table goes: entries above the leaves may be cached for any address.
    gathered(vpid, &[(TWO_MIB, 512 * PAGE - PAGE), (TWO_MIB, TWO_MIB)], |gather| {
        assert!(gather.tables_changed());
        assert_eq!(on_intel(gather, all), [Invvpid { kind: 1, descriptor: [7, 0] }]);
    });
    let native = |pcid| Context::Linear { owner: LinearOwner::Native, pcid };
    pages(native(3), 0x40_3000, 1, |gather| {
        assert_eq!(on_intel(gather, all), [Invlpg { address: 0x40_3000 }]);
    });
    pages(native(0x123), 0x40_3000, 1, |gather| {
        assert_eq!(on_intel(gather, all), [Invpcid { kind: 2, descriptor: [0, 0] }]);
        let local = intel::Capabilities { global_pages: false, ..all };
        let one = Invpcid { kind: 0, descriptor: [0x123, 0x40_3000] };
        assert_eq!(on_intel(gather, local), [one]);
        let old = intel::Capabilities { invpcid: false, ..all };
        assert_eq!(on_intel(gather, old), [ReloadCr3]);
    });
    // An id that the processor does not have may be anybody's.
    pages(Context::Linear { owner: LinearOwner::Asid(5), pcid: 3 }, 0x40_3000, 1, |gather| {
        let zero = [0, 0];
        let everything = [
            Invept { kind: 2, descriptor: zero },
            Invvpid { kind: 2, descriptor: zero },
            Invpcid { kind: 2, descriptor: zero },
        ];
        assert_eq!(on_intel(gather, all), everything);
    });
}

fn on_amd(gather: &Gather<'_>, capabilities: amd::Capabilities) -> Vec<amd::Instruction> {
    let mut seen = vec![];
    amd::plan(gather, &capabilities, 3, |instruction| seen.push(instruction));
    seen
}

#[test]
fn amd_operands() {
    use amd::Instruction::{Invlpga, Invlpgb, TlbControl, Tlbsync};
    let all = amd::Capabilities {
        flush_by_asid: true,
        invlpgb: true,
        invlpgb_nested: true,
        invlpgb_most: 7,
        invpcid: true,
        global_pages: true,
        pae: false,
        most_pages: 64,
    };
    let plain = amd::Capabilities { invlpgb: false, ..all };
    pages(Context::Npt { asid: 5 }, 0x40_3000, 1, |gather| {
        assert_eq!(on_amd(gather, all), [Invlpgb { rax: 0x2c, ecx: 0, edx: 5 }, Tlbsync]);
        assert_eq!(on_amd(gather, plain), [TlbControl { asid: Some(5), value: 3 }]);
        let old = amd::Capabilities { flush_by_asid: false, ..plain };
        assert_eq!(on_amd(gather, old), [TlbControl { asid: None, value: 1 }]);
    });
    let guest = Context::Linear { owner: LinearOwner::Asid(5), pcid: 0 };
    // 10 pages: 8 at a time (7 after the first), the next begins where the first ended.
    pages(guest, 0x40_3000, 10, |gather| {
        let first = Invlpgb { rax: 0x40_301d, ecx: 7, edx: 5 };
        let second = Invlpgb { rax: 0x40_b01d, ecx: 1, edx: 5 };
        assert_eq!(on_amd(gather, all), [first, second, Tlbsync]);
        let singles = on_amd(gather, plain);
        assert_eq!(singles.len(), 10);
        assert_eq!(singles[9], Invlpga { rax: 0x40_c000, ecx: 5 });
    });
    // 2 MiB pages: bit 31 of ECX is the stride.
    gathered(guest, &[(0x40_0000, 3 * TWO_MIB)], |gather| {
        let blocks = Invlpgb { rax: 0x40_001d, ecx: 0x8000_0002, edx: 5 };
        assert_eq!(on_amd(gather, all), [blocks, Tlbsync]);
    });
    pages(Context::Linear { owner: LinearOwner::Native, pcid: 0x12 }, 0x40_3000, 1, |gather| {
        let host = Invlpgb { rax: 0x40_301f, ecx: 0, edx: 0x12_0000 };
        assert_eq!(on_amd(gather, all), [host, Tlbsync]);
    });
}

/// What the host itself translates has to go now: TLB_CONTROL waits for a guest to be entered, and no
/// guest has ASID 0.
#[test]
fn amd_host_without_broadcasts() {
    use amd::Instruction::{Invlpg, Invpcid, ReloadCr3, TlbControl};
    let all = amd::Capabilities {
        flush_by_asid: true,
        invlpgb: false,
        invlpgb_nested: false,
        invlpgb_most: 0,
        invpcid: true,
        global_pages: true,
        pae: false,
        most_pages: 64,
    };
    let local = amd::Capabilities { global_pages: false, ..all };
    let old = amd::Capabilities { invpcid: false, ..all };
    let everything = Invpcid { kind: 2, descriptor: [0, 0] };
    let native = |pcid| Context::Linear { owner: LinearOwner::Native, pcid };
    pages(native(3), 0x40_3000, 2, |gather| {
        let expected = [Invlpg { address: 0x40_3000 }, Invlpg { address: 0x40_4000 }];
        assert_eq!(on_amd(gather, all), expected);
        assert_eq!(on_amd(gather, old), expected);
        let few = amd::Capabilities { most_pages: 1, ..all };
        assert_eq!(on_amd(gather, few), [everything]);
    });
    pages(native(0x123), 0x40_3000, 1, |gather| {
        assert_eq!(on_amd(gather, all), [everything]);
        assert_eq!(on_amd(gather, old), [ReloadCr3]);
        let one = Invpcid { kind: 0, descriptor: [0x123, 0x40_3000] };
        assert_eq!(on_amd(gather, local), [one]);
    });
    // A whole table goes.
    for pcid in [3, 0x123] {
        gathered(native(pcid), &[(TWO_MIB, 512 * PAGE - PAGE), (TWO_MIB, TWO_MIB)], |gather| {
            assert!(gather.tables_changed());
            assert_eq!(on_amd(gather, all), [everything]);
            assert_eq!(on_amd(gather, old), [ReloadCr3]);
            let one = Invpcid { kind: 1, descriptor: [pcid.into(), 0] };
            assert_eq!(on_amd(gather, local), [one]);
        });
    }
    // Every context's, and those of an id that the processor does not have.
    let vpid = Context::Linear { owner: LinearOwner::Vpid(7), pcid: 0 };
    for context in [Context::All, vpid] {
        pages(context, 0x40_3000, 1, |gather| {
            let guests = TlbControl { asid: None, value: 1 };
            assert_eq!(on_amd(gather, all), [guests, everything]);
            assert_eq!(on_amd(gather, old), [guests, ReloadCr3]);
        });
    }
}

fn on_arm(gather: &Gather<'_>, capabilities: arm64::Capabilities) -> Vec<arm64::Instruction> {
    let mut seen = vec![];
    arm64::plan(gather, &capabilities, |instruction| seen.push(instruction));
    seen
}

#[test]
fn arm_operands_and_barriers() {
    use arm64::Instruction::{Dsb, DsbStores, Isb, Tlbi};
    use arm64::Operation;
    let old = arm64::Capabilities {
        granule: Granule::Four,
        lpa2: false,
        ranges: false,
        level_hints: false,
        broadcast: true,
        global_pages: false,
        most_operations: 512,
    };
    let new = arm64::Capabilities { ranges: true, level_hints: true, ..old };
    let tlbi = |operation, operand| Tlbi { operation, operand };
    let combined = tlbi(Operation::Vmalle1, 0);
    let stage2 = Context::Stage2 { vmid: 9 };
    pages(stage2, 0x4000_3000, 3, |gather| {
        let one = |page| tlbi(Operation::Ipas2le1, page);
        assert_eq!(
            on_arm(gather, old),
            [DsbStores, one(0x4_0003), one(0x4_0004), one(0x4_0005), Dsb, combined, Dsb, Isb]
        );
        // Two pages by range (TG 4K, SCALE 0, NUM 0, TTL 3), the odd one alone (TTL 4K, level 3).
        let range = tlbi(Operation::Ripas2le1, 1 << 46 | 3 << 37 | 0x4_0003);
        let single = tlbi(Operation::Ipas2le1, 0b0111 << 44 | 0x4_0005);
        assert_eq!(on_arm(gather, new), [DsbStores, range, single, Dsb, combined, Dsb, Isb]);
        let few = arm64::Capabilities { most_operations: 2, ..old };
        let whole = tlbi(Operation::Vmalls12e1, 0);
        assert_eq!(on_arm(gather, few), [DsbStores, whole, Dsb, Isb]);
    });
    // A block of 2 MiB: one operation, level 2.
    gathered(stage2, &[(0x4020_0000, TWO_MIB)], |gather| {
        let block = tlbi(Operation::Ipas2le1, 0x4_0200);
        assert_eq!(on_arm(gather, old), [DsbStores, block, Dsb, combined, Dsb, Isb]);
        // 512 granules are 8 units of 64: SCALE 1, NUM 7.
        let range = tlbi(Operation::Ripas2le1, 1 << 46 | 1 << 44 | 7 << 39 | 2 << 37 | 0x4_0200);
        assert_eq!(on_arm(gather, new), [DsbStores, range, Dsb, combined, Dsb, Isb]);
    });
    // A whole ASID; where leaves may be global, they go by the whole VMID alone (Arm ARM D8.16: ASIDE1
    // takes non-global entries).
    pages(Context::Stage1 { asid: 5, vmid: None }, 0x4000, 3, |gather| {
        let few = arm64::Capabilities { most_operations: 2, ..old };
        let aside = tlbi(Operation::Aside1, 5 << 48);
        assert_eq!(on_arm(gather, few), [DsbStores, aside, Dsb, Isb]);
        let global = arm64::Capabilities { global_pages: true, ..few };
        assert_eq!(on_arm(gather, global), [DsbStores, combined, Dsb, Isb]);
    });
    // With a detached table neither the last-level form nor a hint may be used.
    gathered(stage2, &[(TWO_MIB, PAGE), (TWO_MIB, TWO_MIB)], |gather| {
        let range = tlbi(Operation::Ripas2e1, 1 << 46 | 1 << 44 | 7 << 39 | 0x200);
        assert!(on_arm(gather, new).contains(&range));
    });
    // The sign of an upper-half address is neither level hint nor ASID.
    let stage1 = Context::Stage1 { asid: 0x12, vmid: Some(9) };
    pages(stage1, 0x8000_0000_1000, 1, |gather| {
        let one = tlbi(Operation::Vale1, 0x12 << 48 | 0b0111 << 44 | 0x8_0000_0001);
        assert_eq!(on_arm(gather, new), [DsbStores, one, Dsb, Isb]);
    });
    // VA[55:12] whatever the granule: 16K pages count in 4 KiB as well.
    let sixteen = arm64::Capabilities { granule: Granule::Sixteen, ..old };
    pages(stage1, 0x4_4000, 4, |gather| {
        let one = tlbi(Operation::Vale1, 0x12 << 48 | 0x44);
        assert_eq!(on_arm(gather, sixteen), [DsbStores, one, Dsb, Isb]);
    });
}

/// What is above the last level is held under the ASID of whoever walked there, global leaf or not
/// (Arm ARM D8.16.1): a table that goes is named for every ASID.
#[test]
fn arm_tables_of_global_pages_go_for_every_asid() {
    use arm64::Instruction::{Dsb, DsbStores, Isb, Tlbi};
    use arm64::Operation;
    let plain = arm64::Capabilities {
        granule: Granule::Four,
        lpa2: false,
        ranges: false,
        level_hints: false,
        broadcast: true,
        global_pages: false,
        most_operations: 512,
    };
    let global = arm64::Capabilities { global_pages: true, ..plain };
    let stage1 = Context::Stage1 { asid: 5, vmid: None };
    gathered(stage1, &[(TWO_MIB, PAGE), (TWO_MIB, TWO_MIB)], |gather| {
        assert!(gather.tables_changed());
        let named = |capabilities| match on_arm(gather, capabilities)[1] {
            Tlbi { operation, operand } => (operation, operand),
            other => panic!("{other:?}"),
        };
        assert_eq!(named(plain), (Operation::Vae1, 5 << 48 | 0x200));
        assert_eq!(named(global), (Operation::Vaae1, 0x200));
        let ranges = arm64::Capabilities { ranges: true, ..global };
        let range = 1 << 46 | 1 << 44 | 7 << 39 | 0x200;
        assert_eq!(named(ranges), (Operation::Rvaae1, range));
    });
    // A leaf goes by any ASID where it is global.
    pages(stage1, 0x4000, 1, |gather| {
        let one = Tlbi { operation: Operation::Vale1, operand: 5 << 48 | 4 };
        assert_eq!(on_arm(gather, global), [DsbStores, one, Dsb, Isb]);
    });
}

/// EL2's own translations have operations of their own, without an ASID.
#[test]
fn arm_operands_of_el2() {
    use arm64::Instruction::{Dsb, DsbStores, Isb, Tlbi};
    use arm64::Operation;
    let capabilities = arm64::Capabilities {
        granule: Granule::Four,
        lpa2: false,
        ranges: false,
        level_hints: true,
        broadcast: true,
        global_pages: true,
        most_operations: 2,
    };
    let tlbi = |operation, operand| Tlbi { operation, operand };
    pages(Context::El2, 0x4000_3000, 1, |gather| {
        let one = tlbi(Operation::Vale2, 0b0111 << 44 | 0x4_0003);
        assert_eq!(on_arm(gather, capabilities), [DsbStores, one, Dsb, Isb]);
    });
    pages(Context::El2, 0x4000_3000, 3, |gather| {
        let all = tlbi(Operation::Alle2, 0);
        assert_eq!(on_arm(gather, capabilities), [DsbStores, all, Dsb, Isb]);
        let ranges = arm64::Capabilities { ranges: true, ..capabilities };
        let two = tlbi(Operation::Rvale2, 1 << 46 | 3 << 37 | 0x4_0003);
        let odd = tlbi(Operation::Vale2, 0b0111 << 44 | 0x4_0005);
        assert_eq!(on_arm(gather, ranges), [DsbStores, two, odd, Dsb, Isb]);
    });
    gathered(Context::El2, &[(TWO_MIB, PAGE), (TWO_MIB, TWO_MIB)], |gather| {
        let many = arm64::Capabilities { most_operations: 512, ..capabilities };
        assert_eq!(on_arm(gather, many)[1], tlbi(Operation::Vae2, 0x200));
    });
    pages(Context::All, 0x3000, 1, |gather| {
        let (guests, own) = (tlbi(Operation::Alle1, 0), tlbi(Operation::Alle2, 0));
        assert_eq!(on_arm(gather, capabilities), [DsbStores, guests, own, Dsb, Isb]);
    });
}

fn on_arm32(gather: &Gather<'_>, capabilities: arm32::Capabilities) -> Vec<arm32::Instruction> {
    let mut seen = vec![];
    arm32::plan(gather, &capabilities, |instruction| seen.push(instruction));
    seen
}

const AARCH32: arm32::Capabilities = arm32::Capabilities {
    version: Version::V8,
    short_descriptors: false,
    broadcast: true,
    global_pages: false,
    flat_stage1: false,
    branch_predictor: false,
    most_operations: 16,
};
const ARMV7: arm32::Capabilities =
    arm32::Capabilities { version: Version::V7, branch_predictor: true, ..AARCH32 };

#[test]
fn arm32_operands_and_barriers() {
    use arm32::Instruction::{Dsb, DsbStores, Isb, Mcr};
    use arm32::Operation::{
        Bpiall, TlbiAll, TlbiAllh, TlbiAllnsnh, TlbiAsid, TlbiIpas2, TlbiIpas2l, TlbiMva, TlbiMvaa,
        TlbiMvah, TlbiMval, TlbiMvalh,
    };
    let mcr = |operation, operand| Mcr { operation, operand };
    let predictors = mcr(Bpiall, 0);
    let stage2 = Context::Stage2 { vmid: 9 };
    let whole = mcr(TlbiAll, 0);
    // By the VMID in VTTBR: from Hyp mode both stages go, and the combined with them.
    pages(stage2, 0x12_4000_3000, 2, |gather| {
        assert_eq!(on_arm32(gather, AARCH32), [DsbStores, whole, Dsb, Isb]);
        assert_eq!(on_arm32(gather, ARMV7), [DsbStores, whole, predictors, Dsb, Isb]);
    });
    // IPA[39:12] in bits 27:0; where the guest has no stage 1, the virtual address is the IPA, of
    // which it reaches 32 bits.
    let flat = arm32::Capabilities { flat_stage1: true, ..AARCH32 };
    pages(stage2, 0xffff_f000, 2, |gather| {
        let by_ipa = [mcr(TlbiIpas2l, 0xf_ffff), mcr(TlbiIpas2l, 0x10_0000)];
        let by_va = mcr(TlbiMvaa, 0xffff_f000);
        let [first, second] = by_ipa;
        assert_eq!(on_arm32(gather, flat), [DsbStores, first, second, Dsb, by_va, Dsb, Isb]);
        // ARMv7 has no such operation.
        let old = arm32::Capabilities { flat_stage1: true, ..ARMV7 };
        assert_eq!(on_arm32(gather, old), [DsbStores, whole, predictors, Dsb, Isb]);
        let few = arm32::Capabilities { most_operations: 3, ..flat };
        assert_eq!(on_arm32(gather, few), [DsbStores, whole, Dsb, Isb]);
    });
    pages(stage2, 0x12_4000_3000, 1, |gather| {
        let by_ipa = mcr(TlbiIpas2l, 0x124_0003);
        assert_eq!(on_arm32(gather, flat), [DsbStores, by_ipa, Dsb, Isb]);
    });
    gathered(stage2, &[(TWO_MIB, PAGE), (TWO_MIB, TWO_MIB)], |gather| {
        let many = arm32::Capabilities { most_operations: 1024, ..flat };
        let plan = on_arm32(gather, many);
        assert_eq!((plan[1], plan[512]), (mcr(TlbiIpas2, 0x200), mcr(TlbiIpas2, 0x3ff)));
        assert_eq!(plan[513..515], [Dsb, mcr(TlbiMvaa, 0x20_0000)]);
        assert_eq!(plan.len(), 1 + 512 + 1 + 512 + 2);
    });

    // VA[31:12] in bits 31:12, the ASID in bits 7:0; the last level has a form of its own in Armv8.
    let stage1 = Context::Stage1 { asid: 0x1a5, vmid: Some(9) };
    pages(stage1, 0xc000_3000, 2, |gather| {
        let one = |operation| [mcr(operation, 0xc000_30a5), mcr(operation, 0xc000_40a5)];
        let [first, second] = one(TlbiMval);
        assert_eq!(on_arm32(gather, AARCH32), [DsbStores, first, second, Dsb, Isb]);
        let [first, second] = one(TlbiMva);
        assert_eq!(on_arm32(gather, ARMV7), [DsbStores, first, second, predictors, Dsb, Isb]);
        let few = arm32::Capabilities { most_operations: 1, ..AARCH32 };
        assert_eq!(on_arm32(gather, few), [DsbStores, mcr(TlbiAsid, 0xa5), Dsb, Isb]);
        let global = arm32::Capabilities { global_pages: true, ..few };
        assert_eq!(on_arm32(gather, global), [DsbStores, whole, Dsb, Isb]);
    });
    gathered(stage1, &[(TWO_MIB, PAGE), (TWO_MIB, TWO_MIB)], |gather| {
        let many = arm32::Capabilities { most_operations: 512, ..AARCH32 };
        assert_eq!(on_arm32(gather, many)[1], mcr(TlbiMva, 0x20_00a5));
        // What is above the last level is held under any ASID.
        let global = arm32::Capabilities { global_pages: true, ..many };
        assert_eq!(on_arm32(gather, global)[1], mcr(TlbiMvaa, 0x20_0000));
    });
    // A section of short descriptors is 1 MiB, a block of long ones 2 MiB.
    gathered(stage1, &[(2 * TWO_MIB, TWO_MIB)], |gather| {
        let block = mcr(TlbiMval, 0x40_00a5);
        assert_eq!(on_arm32(gather, AARCH32), [DsbStores, block, Dsb, Isb]);
        let short = arm32::Capabilities { short_descriptors: true, ..AARCH32 };
        let next = mcr(TlbiMval, 0x50_00a5);
        assert_eq!(on_arm32(gather, short), [DsbStores, block, next, Dsb, Isb]);
    });

    // Hyp mode's own.
    pages(Context::El2, 0xc000_3000, 1, |gather| {
        let one = mcr(TlbiMvalh, 0xc000_3000);
        assert_eq!(on_arm32(gather, AARCH32), [DsbStores, one, Dsb, Isb]);
        let one = mcr(TlbiMvah, 0xc000_3000);
        assert_eq!(on_arm32(gather, ARMV7), [DsbStores, one, predictors, Dsb, Isb]);
        let none = arm32::Capabilities { most_operations: 0, ..AARCH32 };
        assert_eq!(on_arm32(gather, none), [DsbStores, mcr(TlbiAllh, 0), Dsb, Isb]);
    });
    pages(Context::All, 0x3000, 1, |gather| {
        let expected = [DsbStores, mcr(TlbiAllnsnh, 0), mcr(TlbiAllh, 0), Dsb, Isb];
        assert_eq!(on_arm32(gather, AARCH32), expected);
    });
}

/// DDI 0487 G8.2 and DDI 0406C B4.2, table by table: opc1, CRn, CRm (inner-shareable, local), opc2.
#[test]
fn arm32_encodings() {
    use arm32::Operation::{
        Bpiall, TlbiAll, TlbiAllh, TlbiAllnsnh, TlbiAsid, TlbiIpas2, TlbiIpas2l, TlbiMva, TlbiMvaa,
        TlbiMvah, TlbiMval, TlbiMvalh,
    };
    for (operation, opc1, crn, inner, local, opc2) in [
        (TlbiAll, 0, 8, 3, 7, 0),
        (TlbiMva, 0, 8, 3, 7, 1),
        (TlbiAsid, 0, 8, 3, 7, 2),
        (TlbiMvaa, 0, 8, 3, 7, 3),
        (TlbiMval, 0, 8, 3, 7, 5),
        (TlbiIpas2, 4, 8, 0, 4, 1),
        (TlbiIpas2l, 4, 8, 0, 4, 5),
        (TlbiAllh, 4, 8, 3, 7, 0),
        (TlbiMvah, 4, 8, 3, 7, 1),
        (TlbiAllnsnh, 4, 8, 3, 7, 4),
        (TlbiMvalh, 4, 8, 3, 7, 5),
        (Bpiall, 0, 7, 1, 5, 6),
    ] {
        for (broadcast, crm) in [(true, inner), (false, local)] {
            let expected = arm32::Encoding { coproc: 15, opc1, crn, crm, opc2 };
            assert_eq!(operation.encoding(broadcast), expected, "{operation:?}");
        }
    }
}

/// Every page of a range is covered by exactly the ranges that the operands encode.
#[test]
fn arm_ranges_cover_what_they_should() {
    for (first, count) in [(0u64, 511u64), (3, 2), (1, 64), (7, 65), (16, 480), (1, 1), (5, 300)] {
        for lpa2 in [false, true] {
            let capabilities = arm64::Capabilities {
                granule: Granule::Four,
                lpa2,
                ranges: true,
                level_hints: true,
                broadcast: true,
                global_pages: false,
                most_operations: 1000,
            };
            let start = 0x4000_0000 + first * PAGE;
            pages(Context::Stage2 { vmid: 1 }, start, count, |gather| {
                let mut hit = vec![0u32; 1024];
                for instruction in on_arm(gather, capabilities) {
                    let arm64::Instruction::Tlbi { operation, operand } = instruction else {
                        continue;
                    };
                    let (base, granules) = match operation {
                        arm64::Operation::Ipas2le1 => (operand & 0xff_ffff_ffff, 1),
                        arm64::Operation::Ripas2le1 => {
                            let scale = operand >> 44 & 3;
                            let number = operand >> 39 & 0x1f;
                            let unit = if lpa2 { 4 } else { 0 };
                            let base = (operand & 0x1f_ffff_ffff) << unit;
                            (base, (number + 1) << (5 * scale + 1))
                        }
                        _ => continue,
                    };
                    for page in base..base + granules {
                        hit[(page - 0x4_0000) as usize] += 1;
                    }
                }
                for (page, hits) in hit.iter().enumerate() {
                    let within = (first..first + count).contains(&(page as u64));
                    assert_eq!(*hits, u32::from(within), "page {page}, {count} from {first}");
                }
            });
        }
    }
}

#[test]
fn riscv_operands() {
    use riscv::Instruction::{Gvma, InvalidateBeforeRead, Vma, Vvma, WriteBeforeInvalidate};
    let plain =
        riscv::Capabilities { svinval: false, sv32: false, global_pages: false, most_pages: 16 };
    let plan = |gather: &Gather<'_>, capabilities| {
        let mut seen = vec![];
        riscv::plan(gather, &capabilities, |instruction| seen.push(instruction));
        seen
    };
    pages(Context::GStage { vmid: 4 }, 0x4000_3000, 1, |gather| {
        // The address is shifted right by two.
        let fence = Gvma { invalidate_only: false, rs1: Some(0x1000_0c00), rs2: Some(4) };
        assert_eq!(plan(gather, plain), [fence]);
        let svinval = riscv::Capabilities { svinval: true, ..plain };
        let invalidate = Gvma { invalidate_only: true, rs1: Some(0x1000_0c00), rs2: Some(4) };
        assert_eq!(
            plan(gather, svinval),
            [WriteBeforeInvalidate, invalidate, InvalidateBeforeRead]
        );
    });
    pages(Context::GStage { vmid: 4 }, 0x4000_3000, 17, |gather| {
        let fence = Gvma { invalidate_only: false, rs1: None, rs2: Some(4) };
        assert_eq!(plan(gather, plain), [fence]);
    });
    // An address covers leaf entries alone.
    gathered(Context::GStage { vmid: 4 }, &[(TWO_MIB, PAGE), (TWO_MIB, TWO_MIB)], |gather| {
        let fence = Gvma { invalidate_only: false, rs1: None, rs2: Some(4) };
        assert_eq!(plan(gather, plain), [fence]);
    });
    pages(Context::SStage { asid: 2, vmid: Some(4) }, 0x3000, 1, |gather| {
        let fence = Vvma { invalidate_only: false, rs1: Some(0x3000), rs2: Some(2) };
        assert_eq!(plan(gather, plain), [fence]);
        // A fence that names an ASID does not order global mappings.
        let global = riscv::Capabilities { global_pages: true, ..plain };
        let fence = Vvma { invalidate_only: false, rs1: Some(0x3000), rs2: None };
        assert_eq!(plan(gather, global), [fence]);
    });
    pages(Context::SStage { asid: 2, vmid: None }, 0x3000, 17, |gather| {
        let fence = |rs2| Vma { invalidate_only: false, rs1: None, rs2 };
        assert_eq!(plan(gather, plain), [fence(Some(2))]);
        let global = riscv::Capabilities { global_pages: true, ..plain };
        assert_eq!(plan(gather, global), [fence(None)]);
    });
    pages(Context::All, 0x3000, 1, |gather| {
        let (rs1, rs2, invalidate_only) = (None, None, false);
        let expected = [
            Gvma { invalidate_only, rs1, rs2 },
            Vvma { invalidate_only, rs1, rs2 },
            Vma { invalidate_only, rs1, rs2 },
        ];
        assert!(plan(gather, plain).ends_with(&expected[1..]));
        assert!(plan(gather, plain).contains(&expected[0]));
    });
}

/// More ranges than slots: what is invalidated grows, it never shrinks.
#[test]
fn ranges_widen_when_slots_run_out() {
    let unmapped: Vec<(u64, u64)> = (1..40).map(|n| (n * 0x100_0000, PAGE)).collect();
    gathered(Context::Ept { eptp: 0 }, &unmapped, |gather| {
        assert_eq!(gather.ranges().len(), 8);
        for (start, bytes) in &unmapped {
            let last = start + bytes - 1;
            let inside = |range: &Stale| range.start <= *start && last <= range.last;
            assert!(gather.ranges().iter().any(inside), "{start:#x}");
        }
    });
}

/// Guests that run on CPUs in a random order never meet another's translations, and never run
/// under two numbers at a time.
#[test]
fn ids_over_many_generations() {
    const CPUS: usize = 3;
    const GUESTS: usize = 40;
    let (mut map, mut cpus) = ([0u64; 1], [ids::CpuIds::default(); CPUS]);
    let mut ids = ids::Ids::new(1, 9, &mut map, &mut cpus).unwrap();
    let mut held = [ids::Id::NONE; GUESTS];
    // What each CPU's TLB holds under each id, and what runs there.
    let mut tlbs: [[Option<usize>; 16]; CPUS] = [[None; 16]; CPUS];
    let mut running: [Option<(usize, u32)>; CPUS] = [None; CPUS];
    let (mut random, mut flushes) = (0x1234_5678_9abc_def1u64, 0);
    for _ in 0..20_000 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let cpu = random as usize % CPUS;
        // Few guests most of the time, so that some stay where they are over rollovers.
        let guest = if random >> 32 & 3 == 0 { (random >> 40) as usize % GUESTS } else { cpu };
        let assigned = ids.assign(cpu, held[guest]);
        held[guest] = assigned.id;
        if assigned.flush {
            tlbs[cpu] = [None; 16];
            flushes += 1;
        }
        let number = assigned.id.value();
        let owner = &mut tlbs[cpu][number as usize];
        assert!(owner.is_none_or(|owner| owner == guest), "another's translations");
        *owner = Some(guest);
        running[cpu] = Some((guest, number));
        for (guest, number) in running.iter().flatten() {
            for (other, theirs) in running.iter().flatten() {
                assert_eq!(guest == other, number == theirs, "shared, or under two numbers");
            }
        }
    }
    assert!(flushes > 100, "generations did roll over");
    assert!(flushes < 15_000, "ids lasted");
}
