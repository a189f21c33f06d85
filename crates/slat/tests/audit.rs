//! Each rule finds the bug that it is named after, planted in tables that are right otherwise.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

use slat::audit::{Finding, Ground, OverStage2, Owner, Policy, Rule, Summary, audit};
use slat::edit::{
    Arena, Encode, Leaves, Quiet, Slots, Step, Tables, arm64, ept, riscv as riscv_entries,
};
use slat::format::Decoded;
use slat::format::arm64::{Granule, Processor as ArmProcessor, Stage2};
use slat::format::ept::{Ept, Features};
use slat::format::riscv::{self, Scheme, Sv};
use slat::invalidate::Context;
use slat::memory_type::StageType;
use slat::memory_type::x86::Type;
use slat::{EntryLayout, Gpa, Permissions, Regime, SliceMemory, Spa};

const PAGE: u64 = 4096;
const BLOCK: u64 = 2 << 20;
/// Tables lie in the first frames, guest memory above.
const TABLES: u64 = 16 * PAGE;
const GUEST: u64 = 1 << 30;

#[derive(Default)]
struct Records {
    owners: BTreeMap<u64, Owner>,
    visited: BTreeSet<u64>,
    types: BTreeMap<u64, StageType>,
    /// Read-only frames, and those that are mapped.
    read_only: BTreeSet<u64>,
    mapped: BTreeSet<u64>,
    aliases: bool,
}

impl Ground for Records {
    fn owner(&mut self, base: u64, bytes: u64) -> Owner {
        if let Some((_, owner)) = self.owners.range(base..base + bytes).next() {
            return *owner;
        }
        if base < TABLES { Owner::Tables } else { Owner::Guest }
    }
    fn first_visit(&mut self, table: u64, _: u8) -> bool {
        self.visited.insert(table)
    }
    fn other_type(&mut self, base: u64, _: u64, memory_type: StageType) -> Option<StageType> {
        let earlier = *self.types.entry(base).or_insert(memory_type);
        (earlier != memory_type).then_some(earlier)
    }
    fn most(&mut self, _: u64, base: u64, bytes: u64) -> Permissions {
        let write = self.read_only.range(base..base + bytes).next().is_none();
        Permissions { read: true, write, execute: true }
    }
    fn first_mapping(&mut self, base: u64, bytes: u64) -> bool {
        let pages = (base..base + bytes).step_by(PAGE as usize);
        let again = pages.filter(|page| !self.mapped.insert(*page)).count();
        again == 0 || self.aliases
    }
}

fn format() -> Ept {
    Ept::four(Features { physical_bits: 40, ..Features::default() })
}

/// Right tables: 4 pages and a block. The bytes of table memory, and the root.
fn right() -> (Vec<u8>, u64) {
    let cells: Vec<AtomicU64> = (0..16 * 512).map(|_| AtomicU64::new(0)).collect();
    let arena = Arena::<u64>::new(0, &cells).unwrap();
    let mut tables = Tables::<_, Gpa, Spa, _>::create(format(), &arena, &arena).unwrap();
    let root = tables.root();
    let slots =
        Slots { ranges: &mut [], detached: &mut [], pending: &mut [], report: |_| panic!() };
    let context = Context::Ept { eptp: 0 };
    let mut cursor =
        tables.cursor::<_, Quiet>(&arena, context, slots, Gpa::new(0), 1 << 30).unwrap();
    let write = Permissions { read: true, write: true, execute: false };
    let leaves = Leaves::new(&format(), &ept::Attributes::new(write, Type::Wb)).unwrap();
    for (at, bytes) in [(0, 4 * PAGE), (BLOCK, BLOCK)] {
        let mut map = cursor.map(Gpa::new(at), Spa::new(GUEST + at), bytes, &leaves).unwrap();
        assert!(matches!(cursor.step(&mut map, u32::MAX), Ok(Step::Done)));
    }
    drop(cursor.finish());
    let bytes = cells.iter().flat_map(|cell| cell.load(Ordering::Relaxed).to_le_bytes()).collect();
    (bytes, root)
}

/// Audits the right tables after `plant` has had its way with them.
fn audited(
    policy: Policy,
    plant: impl FnOnce(&mut SliceMemory<'_, Spa>, &mut Records),
) -> (Vec<Finding>, Summary) {
    let (mut bytes, root) = right();
    let mut memory = SliceMemory::new(Spa::new(0), &mut bytes);
    let mut records = Records::default();
    plant(&mut memory, &mut records);
    let mut findings = vec![];
    let summary = audit(
        &format(),
        &root,
        &mut memory,
        &Regime::default(),
        &policy,
        &mut records,
        &mut |finding| findings.push(*finding),
    )
    .unwrap();
    assert_eq!(summary.findings as usize, findings.len());
    (findings, summary)
}

fn rules(findings: &[Finding]) -> Vec<(Rule, u64)> {
    findings.iter().map(|finding| (finding.rule, finding.input)).collect()
}

/// Where the entry with this value lies.
fn address_of(entry: u64) -> u64 {
    let (bytes, _) = right();
    let at = bytes.chunks_exact(8).position(|chunk| chunk == entry.to_le_bytes());
    at.expect("no such entry") as u64 * 8
}

/// The level-0 leaf of the page at `at`, and the block's.
fn page(at: u64) -> u64 {
    (GUEST + at) | 0x33
}
const BLOCK_LEAF: u64 = (GUEST + BLOCK) | 0xb3;

#[test]
fn right_tables_break_no_rule() {
    let strict = Policy { write_xor_execute: true, no_executable_large: true, ..Policy::default() };
    let (findings, summary) = audited(strict, |_, _| {});
    assert_eq!(findings, []);
    let expected =
        Summary { tables: 4, leaves: 5, bytes: 4 * PAGE + BLOCK, findings: 0, complete: true };
    assert_eq!(summary, expected);
}

#[test]
fn xsa_379_xsa_473_frames_that_changed_owners() {
    for (owner, rule) in [
        (Owner::Other, Rule::ForeignFrame),
        (Owner::Hypervisor, Rule::ForeignFrame),
        (Owner::Nobody, Rule::FreedFrame),
        (Owner::Tables, Rule::TableMapped),
    ] {
        let (findings, _) = audited(Policy::default(), |_, records| {
            records.owners.insert(GUEST + 2 * PAGE, owner);
            // In the middle of the block, too.
            records.owners.insert(GUEST + BLOCK + 7 * PAGE, owner);
        });
        assert_eq!(rules(&findings), [(rule, 2 * PAGE), (rule, BLOCK)]);
    }
    let (findings, _) = audited(Policy::default(), |_, records| {
        records.owners.insert(GUEST, Owner::Shared);
    });
    assert_eq!(findings, []);
}

/// A table page given away while it is still linked.
#[test]
fn a_table_that_is_no_longer_one() {
    let lowest = address_of(page(0));
    let (findings, _) = audited(Policy::default(), |_, records| {
        records.owners.insert(lowest, Owner::Nobody);
    });
    assert_eq!(rules(&findings), [(Rule::TableNotOwned, 0)]);
}

#[test]
fn a_guest_that_maps_its_own_table() {
    let (findings, _) = audited(Policy::default(), |memory, _| {
        let entry = address_of(page(PAGE));
        memory.poke(Spa::new(entry), EntryLayout::LE64, 0x33).unwrap();
    });
    assert_eq!(rules(&findings), [(Rule::TableMapped, PAGE)]);
}

#[test]
fn a_table_linked_twice_even_to_itself() {
    let block = address_of(BLOCK_LEAF);
    let lowest = address_of(page(0));
    let (findings, summary) = audited(Policy::default(), |memory, _| {
        memory.poke(Spa::new(block), EntryLayout::LE64, lowest | 7).unwrap();
    });
    assert_eq!(rules(&findings), [(Rule::TableLinkedTwice, BLOCK)]);
    assert!(summary.complete);
    // A table that is its own child, where nobody keeps records: the audit ends all the same.
    let (_, summary) =
        audited(Policy { most_tables: 100, ..Policy::default() }, |memory, records| {
            struct Forgetful;
            impl Ground for Forgetful {
                fn owner(&mut self, base: u64, _: u64) -> Owner {
                    if base < TABLES { Owner::Tables } else { Owner::Guest }
                }
                fn first_visit(&mut self, _: u64, _: u8) -> bool {
                    true
                }
            }
            let (_, root) = right();
            for slot in 0..512 {
                memory.poke(Spa::new(root + 8 * slot), EntryLayout::LE64, root | 7).unwrap();
            }
            let policy = Policy { most_tables: 100, ..Policy::default() };
            let summary = audit(
                &format(),
                &root,
                memory,
                &Regime::default(),
                &policy,
                &mut Forgetful,
                &mut |_| {},
            )
            .unwrap();
            assert_eq!((summary.tables, summary.complete), (100, false));
            let _ = records;
        });
    assert!(summary.tables <= 100);
}

#[test]
fn misconfigurations_and_misaligned_blocks() {
    for wrong in [BLOCK_LEAF | 0x1000, BLOCK_LEAF | 1 << 41, BLOCK_LEAF & !1, BLOCK_LEAF | 0x38] {
        let (findings, _) = audited(Policy::default(), |memory, _| {
            memory.poke(Spa::new(address_of(BLOCK_LEAF)), EntryLayout::LE64, wrong).unwrap();
        });
        assert_eq!(rules(&findings), [(Rule::Reserved, BLOCK)], "{wrong:#x}");
        assert!(findings[0].reserved.is_some());
        assert!(findings[0].to_string().starts_with("0x200000: the level-1 entry"));
    }
}

#[test]
fn kvm_a216e24fc947_a_large_page_that_is_writable_while_logging() {
    let logging = Policy { logging: true, ..Policy::default() };
    let (findings, _) = audited(logging, |_, _| {});
    assert_eq!(rules(&findings), [(Rule::LargeWritableWhileLogging, BLOCK)]);
    let (findings, _) = audited(logging, |memory, _| {
        memory.poke(Spa::new(address_of(BLOCK_LEAF)), EntryLayout::LE64, BLOCK_LEAF & !2).unwrap();
    });
    assert_eq!(findings, []);
}

#[test]
fn one_frame_with_two_memory_types() {
    let (findings, _) = audited(Policy::default(), |memory, records| {
        records.aliases = true;
        // The second page maps the first one's frame, uncacheable.
        let entry = address_of(page(PAGE));
        memory.poke(Spa::new(entry), EntryLayout::LE64, page(0) & !0x38).unwrap();
    });
    assert_eq!(rules(&findings), [(Rule::MemoryTypeAlias, PAGE)]);
}

#[test]
fn xsa_304_writable_and_executable_and_executable_large() {
    let policy = Policy { write_xor_execute: true, no_executable_large: true, ..Policy::default() };
    let (findings, _) = audited(policy, |memory, _| {
        let block = Spa::new(address_of(BLOCK_LEAF));
        memory.poke(block, EntryLayout::LE64, BLOCK_LEAF | 4).unwrap();
        let first = Spa::new(address_of(page(0)));
        memory.poke(first, EntryLayout::LE64, page(0) | 4).unwrap();
    });
    let expected = [
        (Rule::WritableExecutable, 0),
        (Rule::WritableExecutable, BLOCK),
        (Rule::ExecutableLarge, BLOCK),
    ];
    assert_eq!(rules(&findings), expected);
}

/// What tables of one leaf each break, of a format and attributes that the caller chooses.
fn alone<F: Encode<Word = u64>>(
    format: F,
    attributes: &F::Attributes,
    policy: Policy,
    grouped: bool,
    plant: impl Fn(u64) -> u64,
) -> Vec<Rule> {
    let cells: Vec<AtomicU64> = (0..16 * 512).map(|_| AtomicU64::new(0)).collect();
    let arena = Arena::<u64>::new(0, &cells).unwrap();
    let mut tables = Tables::<_, Gpa, Spa, _>::create(format, &arena, &arena).unwrap();
    let mut leaves = Leaves::new(&format, attributes).unwrap();
    if grouped {
        leaves = leaves.up_to(0).grouped();
    }
    let bytes = if grouped { 1u64 << format.group_shift(0).unwrap() } else { BLOCK };
    let slots =
        Slots { ranges: &mut [], detached: &mut [], pending: &mut [], report: |_| panic!() };
    let mut cursor =
        tables.cursor::<_, Quiet>(&arena, Context::All, slots, Gpa::new(0), 1 << 30).unwrap();
    let mut map = cursor.map(Gpa::new(0), Spa::new(GUEST), bytes, &leaves).unwrap();
    assert!(matches!(cursor.step(&mut map, u32::MAX), Ok(Step::Done)));
    core::mem::forget(cursor.finish());
    for cell in &cells {
        let entry = cell.load(Ordering::Relaxed);
        let level = if grouped { 0 } else { 1 };
        if let Decoded::Leaf { base, .. } = format.decode(entry, level)
            && base >= GUEST
        {
            cell.store(plant(entry), Ordering::Relaxed);
        }
    }
    let mut bytes: Vec<u8> =
        cells.iter().flat_map(|cell| cell.load(Ordering::Relaxed).to_le_bytes()).collect();
    let mut memory = SliceMemory::new(Spa::new(0), &mut bytes);
    let mut found = BTreeMap::new();
    let (root, regime) = (tables.root(), Regime::default());
    let mut records = Records { aliases: true, ..Records::default() };
    records.read_only.insert(GUEST);
    let mut report = |finding: &Finding| {
        found.insert(finding.rule.text(), finding.rule);
    };
    audit(&format, &root, &mut memory, &regime, &policy, &mut records, &mut report).unwrap();
    found.into_values().collect()
}

const STRICT: Policy = Policy {
    logging: true,
    write_xor_execute: true,
    no_executable_large: true,
    table_budget: u64::MAX,
    frozen: None,
    most_tables: 1 << 20,
};
const RWX: Permissions = Permissions { read: true, write: true, execute: true };

/// With mode-based execute control XU is the right of user pages to be executed (SDM 3C 30.3.3.1): a
/// leaf with it alone is writable and executable all the same.
#[test]
fn execution_by_user_pages_alone_is_execution() {
    const XU: u64 = 1 << 10;
    let format =
        Ept::four(Features { physical_bits: 40, mode_based_execute: true, ..Features::default() });
    let write = Permissions { execute: false, ..RWX };
    let attributes = ept::Attributes::new(write, Type::Wb);
    let policy = Policy { logging: false, ..STRICT };
    let rules = alone(format, &attributes, policy, false, |leaf| leaf & !4 & !XU);
    assert_eq!(rules, [Rule::Widened], "writable, which the owner does not permit");
    let rules = alone(format, &attributes, policy, false, |leaf| leaf & !4 | XU);
    let expected = [Rule::Widened, Rule::ExecutableLarge, Rule::WritableExecutable];
    assert_eq!(rules, expected);
}

/// A page that is merely old is what it will be once its accessed bit is set again. What software is
/// asked to make dirty first is logged there.
#[test]
fn a_page_that_is_old_keeps_no_secret() {
    let everything = [
        Rule::Widened,
        Rule::ExecutableLarge,
        Rule::LargeWritableWhileLogging,
        Rule::WritableExecutable,
    ];
    let processor = ArmProcessor { physical_bits: 40, ..ArmProcessor::default() };
    let stage2 = Stage2::plain(Granule::Four, 40, &processor).unwrap();
    let attributes = arm64::Stage2Attributes::new(RWX, arm64::Memory::WRITE_BACK);
    for old in [0, 1 << 10] {
        let rules = alone(stage2, &attributes, STRICT, false, |leaf| leaf & !old);
        assert_eq!(rules, everything, "AF cleared: {}", old != 0);
    }
    // Svade: A is bit 6, D is bit 7.
    let format = Sv::stage1(Scheme::Sv39, riscv::Features::default());
    let attributes = riscv_entries::Attributes::new(RWX);
    for old in [0, 1 << 6] {
        let rules = alone(format, &attributes, STRICT, false, |leaf| leaf & !old);
        assert_eq!(rules, everything, "A cleared: {}", old != 0);
    }
    for old in [1 << 7, 1 << 7 | 1 << 6] {
        let rules = alone(format, &attributes, STRICT, false, |leaf| leaf & !old);
        let logged = [Rule::Widened, Rule::ExecutableLarge, Rule::WritableExecutable];
        assert_eq!(rules, logged, "the first write faults");
    }
}

/// One TLB entry may serve a whole group: a write to its first page hides those to the others.
#[test]
fn a_group_that_is_writable_while_logging() {
    let policy = Policy { logging: true, ..Policy::default() };
    let expected = [Rule::Widened, Rule::LargeWritableWhileLogging];
    let napot = Sv::stage2(Scheme::Sv39, riscv::Features::default());
    let attributes =
        riscv_entries::Attributes { user: true, ..riscv_entries::Attributes::new(RWX) };
    assert_eq!(alone(napot, &attributes, policy, true, |leaf| leaf), expected);
    let processor = ArmProcessor { physical_bits: 40, ..ArmProcessor::default() };
    let attributes = arm64::Stage2Attributes::new(RWX, arm64::Memory::WRITE_BACK);
    let stage2 = Stage2::plain(Granule::Four, 40, &processor).unwrap();
    assert_eq!(alone(stage2, &attributes, policy, true, |leaf| leaf), expected);
    // By themselves they are small.
    let single = |leaf| stage2.ungrouped(leaf, 0, 0);
    assert_eq!(alone(stage2, &attributes, policy, true, single), [Rule::Widened]);
}

/// XSA-393 (CVE-2022-23033): entries whose valid bit the hypervisor had taken were passed over when
/// their frames were freed.
#[test]
fn xsa_393_a_freed_frame_in_an_entry_that_is_not_valid() {
    /// Reads, writes and execution are gone; the address is still there.
    struct Sampling(Records);
    impl Ground for Sampling {
        fn owner(&mut self, base: u64, bytes: u64) -> Owner {
            self.0.owner(base, bytes)
        }
        fn first_visit(&mut self, table: u64, level: u8) -> bool {
            self.0.first_visit(table, level)
        }
        fn occupied(&mut self, entry: u64, level: u8) -> Option<u64> {
            assert_eq!((entry & 7, level), (0, 0));
            Some(entry & 0x000f_ffff_ffff_f000)
        }
    }
    for (owner, expected) in [
        (Owner::Guest, None),
        (Owner::Nobody, Some(Rule::FreedFrame)),
        (Owner::Other, Some(Rule::ForeignFrame)),
        (Owner::Tables, Some(Rule::TableMapped)),
    ] {
        let (mut bytes, root) = right();
        let mut memory = SliceMemory::new(Spa::new(0), &mut bytes);
        let set = |memory: &mut SliceMemory<'_, Spa>, at: u64, entry: u64| {
            memory.poke(Spa::new(at), EntryLayout::LE64, entry).unwrap();
        };
        set(&mut memory, address_of(page(PAGE)), page(PAGE) & !7);
        // What is frozen or empty has no page.
        set(&mut memory, address_of(page(2 * PAGE)), format().frozen());
        set(&mut memory, address_of(page(3 * PAGE)), 0);
        let mut ground = Sampling(Records::default());
        ground.0.owners.insert(GUEST + PAGE, owner);
        let policy = Policy { frozen: Some(format().frozen()), ..Policy::default() };
        let (regime, mut findings) = (Regime::default(), vec![]);
        let mut report = |finding: &Finding| findings.push(*finding);
        audit(&format(), &root, &mut memory, &regime, &policy, &mut ground, &mut report).unwrap();
        let expected: Vec<_> = expected.map(|rule| (rule, PAGE)).into_iter().collect();
        let left = [(Rule::LeftFrozen, 2 * PAGE)];
        assert_eq!(rules(&findings), [expected, left.to_vec()].concat());
    }
}

#[test]
fn what_was_left_frozen_and_what_cannot_be_read() {
    let policy = Policy { frozen: Some(format().frozen()), ..Policy::default() };
    let (findings, _) = audited(policy, |memory, _| {
        let entry = Spa::new(address_of(page(PAGE)));
        memory.poke(entry, EntryLayout::LE64, format().frozen()).unwrap();
    });
    assert_eq!(rules(&findings), [(Rule::LeftFrozen, PAGE)]);
    let (findings, summary) = audited(Policy::default(), |memory, records| {
        let block = Spa::new(address_of(BLOCK_LEAF));
        memory.poke(block, EntryLayout::LE64, (1 << 35) | 7).unwrap();
        records.owners.insert(1 << 35, Owner::Tables);
    });
    assert_eq!(rules(&findings), [(Rule::Unreadable, BLOCK)]);
    assert!(!summary.complete);
}

/// A split that writes read, write and execute whatever the large page permitted.
#[test]
fn a_leaf_that_a_split_has_widened() {
    let frame = GUEST + 2 * PAGE;
    let (findings, _) = audited(Policy::default(), |memory, records| {
        let entry = Spa::new(address_of(page(2 * PAGE)));
        memory.poke(entry, EntryLayout::LE64, page(2 * PAGE) & !2).unwrap();
        records.read_only.insert(frame);
    });
    assert_eq!(findings, [], "read-only as its owner has it");
    let (findings, _) = audited(Policy::default(), |_, records| {
        records.read_only.insert(frame);
    });
    assert_eq!(rules(&findings), [(Rule::Widened, 2 * PAGE)]);
}

/// XSA-301: one frame at two guest addresses.
#[test]
fn xsa_301_a_frame_that_is_mapped_twice() {
    let alias = |memory: &mut SliceMemory<'_, Spa>| {
        let entry = Spa::new(address_of(page(PAGE)));
        memory.poke(entry, EntryLayout::LE64, page(0)).unwrap();
    };
    let (findings, _) = audited(Policy::default(), |memory, _| alias(memory));
    assert_eq!(rules(&findings), [(Rule::MappedTwice, PAGE)]);
    let (findings, _) = audited(Policy::default(), |memory, records| {
        records.aliases = true;
        alias(memory);
    });
    assert_eq!(findings, [], "the alias is declared");
}

/// XSA-409, XSA-410.
#[test]
fn xsa_409_tables_beyond_their_budget() {
    let (findings, _) = audited(Policy { table_budget: 4, ..Policy::default() }, |_, _| {});
    assert_eq!(findings, []);
    let (findings, summary) = audited(Policy { table_budget: 3, ..Policy::default() }, |_, _| {});
    assert_eq!(rules(&findings), [(Rule::TableBudget, 0)], "once, at the first too many");
    assert!(summary.complete);
}

/// W^X over both stages: what the guest maps writable and executable is neither here nor there while
/// the hypervisor lets no page be both.
#[test]
fn writable_and_executable_in_both_stages_together() {
    use slat::format::any::AnyFormat;
    use slat::format::x86::long::{Long, Processor};
    use slat::{Nested, Stage};
    let (mut bytes, root) = right();
    let mut memory = SliceMemory::new(Spa::new(0), &mut bytes);
    let mut set = |at: u64, entry: u64| {
        memory.poke(Spa::new(at), EntryLayout::LE64, entry).unwrap();
    };
    // The guest's tables in its pages 0 to 2 would lie at GUEST, which this memory does not hold: its
    // second stage maps GPA 0x100000 to frames of this memory instead.
    let lowest = address_of(page(0)) & !0xfff;
    for n in 0..3u64 {
        set(lowest + 8 * (0x100 + n), ((10 + n) << 12) | 0x33);
    }
    set(10 << 12, 0x10_1000 | 7);
    set(11 << 12, 0x10_2000 | 7);
    // One leaf of 2 MiB over GPA 0: writable and executable.
    set(12 << 12, 0x87);
    let processor = Processor::default();
    let long = Long::four(slat::format::x86::Controls::default(), processor);
    let stage1 = AnyFormat::Long(long, 0x10_0000);
    let stage2: Stage<_, Gpa, Spa> = Stage::new(format(), root);
    let regime = Regime::default();
    let mut audit_stage1 = |entry: Option<u64>| {
        if let Some(entry) = entry {
            let at = Spa::new(lowest + 8 * 3);
            memory.poke(at, EntryLayout::LE64, entry).unwrap();
        }
        let mut copy = bytes_of(&mut memory);
        let below = SliceMemory::new(Spa::new(0), &mut copy);
        struct Guest;
        impl Ground for Guest {
            fn owner(&mut self, base: u64, _: u64) -> Owner {
                if base >= 0x10_0000 { Owner::Tables } else { Owner::Guest }
            }
            fn first_visit(&mut self, _: u64, _: u8) -> bool {
                true
            }
        }
        let mut ground =
            OverStage2 { stage2: &stage2, memory: below, regime: &regime, ground: Guest };
        let policy = Policy { write_xor_execute: true, ..Policy::default() };
        let mut findings = vec![];
        let mut guest = Nested::new(&stage2, &mut memory, &regime, &());
        let summary =
            audit(&stage1, &(), &mut guest, &regime, &policy, &mut ground, &mut |found| {
                findings.push(*found)
            });
        let summary = summary.unwrap();
        assert!(summary.complete);
        assert_eq!((summary.tables, summary.leaves), (3, 1));
        rules(&findings)
    };
    // The second stage maps the pages writable, none executable.
    assert_eq!(audit_stage1(None), []);
    // One of them both.
    let both = page(3 * PAGE) | 4;
    assert_eq!(audit_stage1(Some(both)), [(Rule::WritableExecutable, 0)]);
    // Executable and not writable.
    assert_eq!(audit_stage1(Some(both & !2)), []);
}

/// The second stage's page is old, and permits everything at the second attempt.
#[test]
fn both_below_in_a_page_that_is_old() {
    use slat::Stage;
    let processor = ArmProcessor { physical_bits: 40, ..ArmProcessor::default() };
    let format = Stage2::plain(Granule::Four, 40, &processor).unwrap();
    let cells: Vec<AtomicU64> = (0..16 * 512).map(|_| AtomicU64::new(0)).collect();
    let arena = Arena::<u64>::new(0, &cells).unwrap();
    let mut tables = Tables::<_, Gpa, Spa, _>::create(format, &arena, &arena).unwrap();
    for (at, permissions) in [(0, RWX), (PAGE, Permissions { execute: false, ..RWX })] {
        let mut attributes = arm64::Stage2Attributes::new(permissions, arm64::Memory::WRITE_BACK);
        attributes.accessed = false;
        let leaves = Leaves::new(&format, &attributes).unwrap();
        let (at, to) = (Gpa::new(at), Spa::new(GUEST + at));
        tables.fault::<_, Quiet>(&arena, at, to, 0, &leaves).unwrap();
    }
    let mut bytes: Vec<u8> =
        cells.iter().flat_map(|cell| cell.load(Ordering::Relaxed).to_le_bytes()).collect();
    let memory = SliceMemory::new(Spa::new(0), &mut bytes);
    let stage2: Stage<_, Gpa, Spa> = Stage::new(format, tables.root());
    let regime = Regime::default();
    let ground = Records::default();
    let mut over = OverStage2 { stage2: &stage2, memory, regime: &regime, ground };
    assert!(over.both_below(0, PAGE));
    assert!(!over.both_below(PAGE, PAGE));
}

/// A memory that counts how often it is read.
struct Counted<'a>(SliceMemory<'a, Spa>, u64);

impl slat::Memory for Counted<'_> {
    type Address = Spa;
    type Fault = <SliceMemory<'static, Spa> as slat::Memory>::Fault;

    fn read(
        &mut self,
        address: Spa,
        layout: EntryLayout,
        access: &slat::Access,
    ) -> Result<slat::Value, Self::Fault> {
        self.1 += 1;
        self.0.read(address, layout, access)
    }

    fn compare_exchange(
        &mut self,
        address: Spa,
        layout: EntryLayout,
        current: u64,
        new: u64,
        access: &slat::Access,
    ) -> Result<bool, Self::Fault> {
        self.0.compare_exchange(address, layout, current, new, access)
    }
}

/// One page of a guest's tables may be terabytes wide: the second stage is asked once for each of its
/// own entries, whether they permit or deny, and none of what lies behind is passed over.
#[test]
fn the_stage_below_is_asked_once_an_entry() {
    use slat::Stage;
    let (right, root) = right();
    let stage2: Stage<_, Gpa, Spa> = Stage::new(format(), root);
    let regime = Regime::default();
    let ask = |base: u64, bytes: u64, last: Option<(u64, u64)>| {
        let mut copy = right.clone();
        let mut memory = SliceMemory::new(Spa::new(0), &mut copy);
        if let Some((at, entry)) = last {
            memory.poke(Spa::new(at), EntryLayout::LE64, entry).unwrap();
        }
        let memory = Counted(memory, 0);
        let ground = Records::default();
        let mut over = OverStage2 { stage2: &stage2, memory, regime: &regime, ground };
        (over.both_below(base, bytes), over.memory.1)
    };
    // At most four walks of four levels for each: 512 pages, 511 entries of 2 MiB, 511 of 1 GiB.
    let (both, reads) = ask(0, 512 << 30, None);
    assert!(!both);
    assert!(reads <= 16 * (512 + 511 + 511), "{reads} reads");
    // The last 2 MiB of the first GiB are both, with nothing before them; from amid nothing, too.
    let table = address_of(BLOCK_LEAF) & !0xfff;
    let last = Some((table + 511 * 8, BLOCK_LEAF | 4));
    assert!(ask(0, 1 << 30, last).0);
    let (both, reads) = ask((512 - 3) * BLOCK + 7 * PAGE, 3 * BLOCK - 7 * PAGE, last);
    assert!(both);
    assert!(reads <= 16 * 3, "{reads} reads");
    assert!(!ask(0, (1 << 30) - BLOCK, last).0);
}

/// The bytes of a memory, for a second handle of it.
fn bytes_of(memory: &mut SliceMemory<'_, Spa>) -> Vec<u8> {
    use slat::Memory;
    (0..TABLES)
        .step_by(8)
        .flat_map(|at| {
            let read = memory.read(Spa::new(at), EntryLayout::LE64, &slat::Access::default());
            read.unwrap().value.to_le_bytes()
        })
        .collect()
}
