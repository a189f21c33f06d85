//! What an entry permits beside the access that filled it: no more than a walk would.

use slat::format::arm32::short::Short;
use slat::format::arm64::{self, Granule, Stage1, Stage2, TranslationRegime};
use slat::format::ept::{self, Ept};
use slat::format::flat::Flat;
use slat::format::x86::Controls;
use slat::format::x86::long::{Long, Processor};
use slat::format::{Format, arm32};
use slat::{EntryLayout, Gpa, Gva, Kind, Regime, SliceMemory, Spa, Stage, Updates};
use slat_mmu::array::Geometry;
use slat_mmu::tlb::{Asked, BankConfig, Entry, Rights, Served, Space, Tag, Tlb, TlbConfig};
use slat_mmu::walker::{Caches, Context, Globals, WalkerConfig};

const PAGE: u64 = 4096;

/// Two stages over a little memory, with a nested TLB that holds final translations too.
struct Machine<F1: Format, F2: Format> {
    bytes: Vec<u8>,
    stage1: Stage<F1, Gva, Gpa>,
    stage2: Stage<F2, Gpa, Spa>,
    caches: Caches,
}

impl<F1: Format, F2: Format> Machine<F1, F2> {
    fn new(format1: F1, root1: F1::Root, format2: F2, root2: F2::Root) -> Self {
        let nested_tlb = BankConfig::new(Geometry::full(16), &[12]);
        let config =
            WalkerConfig { nested_tlb, nested_tlb_holds_final: true, ..WalkerConfig::NONE };
        Machine {
            bytes: vec![0; 16 * PAGE as usize],
            stage1: Stage::new(format1, root1).with_updates(Updates::OnSuccess),
            stage2: Stage::new(format2, root2).with_updates(Updates::OnSuccess),
            caches: Caches::new(&config).unwrap(),
        }
    }

    fn poke(&mut self, layout: EntryLayout, entries: &[(u64, u64)]) {
        let mut memory = SliceMemory::new(Spa::new(0), &mut self.bytes);
        for &(at, entry) in entries {
            memory.poke(Spa::new(at), layout, entry).unwrap();
        }
    }

    /// What a TLB keeps after this access; `None` where it faults.
    fn fill(&mut self, va: u64, kind: Kind, user: bool) -> Option<Rights> {
        self.fill_in(&Regime::default(), va, kind, user)
    }

    fn fill_in(&mut self, regime: &Regime, va: u64, kind: Kind, user: bool) -> Option<Rights> {
        let tag = Tag::new(1).unwrap();
        let context = Context {
            stage1: &self.stage1,
            stage2: &self.stage2,
            regime,
            space: Space { own: tag, global: tag },
            vm: tag,
            globals: Globals::None,
            dirty_tracked: true,
        };
        let mut memory = SliceMemory::new(Spa::new(0), &mut self.bytes);
        let walked = self.caches.walk(&context, &mut memory, Gva::new(va), kind, user, &());
        walked.ok().map(|walked| walked.entry.rights)
    }
}

/// Intel SDM 3C table 30-7, bit 58: walks may write the guest's tables there, and nobody else.
#[test]
fn a_paging_write_page_is_not_writable_to_others() {
    let features = ept::Features { paging_write: true, ..ept::Features::default() };
    let long = Long::four(Controls::default(), Processor::default());
    let mut machine = Machine::new(long, PAGE, Ept::four(features), 5 * PAGE);
    // The guest's tables at pages 1 to 4, which 0x4000 maps: readable with paging-write access.
    let mut entries = vec![(0x1000, 0x2003), (0x2000, 0x3003), (0x3000, 0x4003)];
    entries.extend((0..8).map(|page| (0x4000 + 8 * page, (page * PAGE) | 3)));
    entries.extend([(0x5000, 0x6007), (0x6000, 0x7007), (0x7000, 0x8007)]);
    for page in 0..8 {
        let rights = if page < 5 { 1 | 1 << 58 } else { 7 };
        entries.push((0x8000 + 8 * page, (page * PAGE) | (6 << 3) | rights));
    }
    machine.poke(EntryLayout::LE64, &entries);
    // The walk sets accessed flags in the tables by paging-write accesses.
    assert!(machine.fill(5 * PAGE, Kind::Read, false).is_some());
    assert_ne!(machine.bytes[0x4028] & 1 << 5, 0);
    assert!(machine.fill(4 * PAGE, Kind::Read, false).is_some());
    assert_eq!(machine.fill(4 * PAGE, Kind::Write, false), None);
    assert!(machine.fill(6 * PAGE, Kind::Write, false).is_some());
}

/// Arm ARM D8.4.2.1: S2AP 0b10 lets software write and not read.
#[test]
fn a_write_does_not_prove_a_read() {
    let processor = arm64::Processor::default();
    let stage2 = Stage2::plain(Granule::Four, 39, &processor).unwrap();
    let mut machine = Machine::new(Flat::new("off", 1, 39), (), stage2, PAGE);
    let leaf = 3 | 0xf << 2 | 1 << 10;
    let entries = [(0x1000, 0x2003), (0x2000, 0x3003), (0x3000, leaf | 2 << 6)];
    machine.poke(EntryLayout::LE64, &entries);
    machine.poke(EntryLayout::LE64, &[(0x3008, 0x1000 | leaf | 3 << 6)]);
    let rights = machine.fill(0, Kind::Write, false).unwrap();
    assert!(rights.has(Rights::WRITE) && !rights.has(Rights::READ), "{rights:?}");
    assert_eq!(machine.fill(0, Kind::Read, false), None);
    let rights = machine.fill(PAGE, Kind::Write, false).unwrap();
    assert!(rights.has(Rights::WRITE) && rights.has(Rights::READ), "{rights:?}");
}

/// Arm ARM (AArch32) G5.6.1, short descriptors: AP 0b010 is read-only to users, and 0b011 is not.
#[test]
fn what_supervisors_alone_may_write_is_not_kept_as_a_users() {
    let registers = arm32::Registers { sctlr: 1, dacr: 1, ..arm32::Registers::default() };
    let short = Short::new(&registers, &arm32::Processor::default()).unwrap();
    let root = arm32::Root { ttbr0: 0x4000, ..arm32::Root::default() };
    let stage2 = Flat::new("off", 2, 40);
    for (user_writes, permissions) in [(false, 2 << 10), (true, 3 << 10)] {
        let mut machine = Machine::new(short, root, stage2, ());
        let layout = short.layout();
        machine.poke(layout, &[(0x4000, 2 | permissions)]);
        for kind in [Kind::Read, Kind::Write, Kind::Execute] {
            let rights = machine.fill(0x123, kind, false).unwrap();
            assert!(rights.has(Rights::READ) && rights.has(Rights::USER), "{kind:?}: {rights:?}");
            assert_eq!(rights.has(Rights::WRITE), user_writes, "{kind:?}: {rights:?}");
        }
        assert_eq!(machine.fill(0x123, Kind::Write, true).is_some(), user_writes);
    }
}

/// `SCTLR_EL1.EPAN` (FEAT_PAN3, Arm ARM D24.2): under PAN a privileged data access faults on pages that
/// users can only fetch from, as on those that they can read. What an entry serves, a walk permits.
#[test]
fn enhanced_pan_guards_pages_that_users_fetch_from() {
    const USER: u64 = 1 << 6;
    const READ_ONLY: u64 = 1 << 7;
    const UXN: u64 = 1 << 54;
    let processor = arm64::Processor::default();
    let accesses = || {
        let kinds = [Kind::Read, Kind::Write, Kind::Execute];
        kinds.into_iter().flat_map(|kind| {
            [(false, false), (false, true), (true, false), (true, true)]
                .map(|(user, pan)| (kind, user, pan))
        })
    };
    let under = |pan: bool| {
        let mut regime = Regime::default();
        regime.arm.pan = pan;
        regime
    };
    let (mut served, mut guarded) = (0, 0);
    for (epan, bits) in [false, true].into_iter().flat_map(|epan| {
        let pages = [0, USER].into_iter().flat_map(|user| [user, user | UXN]);
        pages.flat_map(move |page| [(epan, page), (epan, page | READ_ONLY)])
    }) {
        let sctlr = 1 | if epan { 1 << 57 } else { 0 };
        // 39 bits of input in either half, pages of 4 KiB, 40 bits of output.
        let tcr = 25 | 25 << 16 | 2 << 30 | 2 << 32;
        let stage1 = Stage1::new(TranslationRegime::El10, tcr, sctlr, 0, &processor).unwrap();
        let root = arm64::Root { ttbr0: PAGE, ttbr1: 0 };
        for (kind, user, pan) in accesses() {
            let mut machine = Machine::new(stage1, root, Flat::new("off", 2, 40), ());
            let leaf = 0x5000 | 3 | 3 << 8 | 1 << 10 | bits;
            machine.poke(EntryLayout::LE64, &[(0x1000, 0x2003), (0x2000, 0x3003), (0x3000, leaf)]);
            let Some(rights) = machine.fill_in(&under(pan), 0, kind, user) else { continue };
            for (kind, user, pan) in accesses() {
                let asked =
                    Asked::new(kind, user).not_of_user(pan && !user && kind != Kind::Execute);
                let walked = machine.fill_in(&under(pan), 0, kind, user).is_some();
                assert!(walked || !asked.of(rights), "{epan} {bits:#x} {kind:?} {user} {pan}");
                served += u32::from(asked.of(rights));
                let readable = rights.has(Rights::READ) && !rights.has(Rights::USER);
                guarded += u32::from(readable && kind == Kind::Read && !user && !walked);
            }
        }
    }
    assert!(served > 100 && guarded > 0, "{served} {guarded}");
}

/// SMAP (Intel SDM 3A 5.6.1) is a supervisor's matter: what its fetch leaves serves users' data.
#[test]
fn smap_takes_nothing_from_users() {
    let controls = Controls { smap: true, ..Controls::default() };
    let long = Long::four(controls, Processor::default());
    let mut machine = Machine::new(long, PAGE, Flat::new("off", 2, 40), ());
    let entries = [(0x1000, 0x2007), (0x2000, 0x3007), (0x3000, 0x4007), (0x4000, 0x5067)];
    machine.poke(EntryLayout::LE64, &entries);
    let rights = machine.fill(0, Kind::Execute, false).unwrap();
    let all = [Rights::READ, Rights::WRITE, Rights::USER, Rights::DIRTY];
    assert!(all.iter().all(|&right| rights.has(right)), "{rights:?}");
}

/// Mode-based execute control of EPT asks whether the page is a user's to stage 1 (Intel SDM 3C 30.3.2):
/// what a nested TLB keeps for a page of the one sort says nothing of fetches from one of the other.
#[test]
fn a_nested_tlb_lets_only_those_pages_be_fetched_from_that_ept_does() {
    const XU: u64 = 1 << 10;
    for (rights, of_users, of_supervisors) in
        [(3 | XU, true, false), (7, false, true), (7 | XU, true, true), (3, false, false)]
    {
        for user_first in [false, true] {
            let features = ept::Features { mode_based_execute: true, ..ept::Features::default() };
            let long = Long::four(Controls::default(), Processor::default());
            let mut machine = Machine::new(long, PAGE, Ept::four(features), 5 * PAGE);
            // Two pages of stage 1 lead to one guest frame: the second is a supervisor's.
            let mut entries = vec![(0x1000, 0x2007), (0x2000, 0x3007), (0x3000, 0x4007)];
            entries.extend([(0x4000, (9 * PAGE) | 0x67), (0x4008, (9 * PAGE) | 0x63)]);
            entries.extend([(0x5000, 0x6007 | XU), (0x6000, 0x7007 | XU), (0x7000, 0x8007 | XU)]);
            entries.extend((0..9).map(|page| (0x8000 + 8 * page, (page * PAGE) | (6 << 3) | 7)));
            entries.push((0x8048, (9 * PAGE) | (6 << 3) | rights));
            machine.poke(EntryLayout::LE64, &entries);
            let pages =
                if user_first { [(0, true), (PAGE, false)] } else { [(PAGE, false), (0, true)] };
            for (page, user) in pages {
                let kept = machine.fill(page, Kind::Read, user).unwrap();
                let right = if user { Rights::USER_EXECUTE } else { Rights::EXECUTE };
                let may = if user { of_users } else { of_supervisors };
                assert!(may || !kept.has(right), "{rights:#x}: {kept:?}");
                assert_eq!(machine.fill(page, Kind::Execute, user).is_some(), may, "{rights:#x}");
            }
        }
    }
}

/// Intel SDM 3A 5.10.2.2: a TLB keeps a page's protection key, and not what PKRU says of it. WRPKRU needs no
/// flush.
#[test]
fn keys_are_asked_at_each_access() {
    let controls = Controls { user_keys: true, write_protect: true, ..Controls::default() };
    let long = Long::four(controls, Processor::default());
    let (access_disable, write_disable) = (1u32 << (2 * 9), 2u32 << (2 * 9));
    let tag = Tag::new(1).unwrap();
    let space = Space { own: tag, global: tag };
    let sizes = BankConfig::new(Geometry::full(4), &[12]);
    let tlbs = TlbConfig { load: vec![sizes], largest: 12, ..TlbConfig::default() };
    for filled_with in [0, write_disable] {
        let mut machine = Machine::new(long, PAGE, Flat::new("off", 2, 40), ());
        let leaf = 0x5067 | 9 << 59;
        machine.poke(
            EntryLayout::LE64,
            &[(0x1000, 0x2007), (0x2000, 0x3007), (0x3000, 0x4007), (0x4000, leaf)],
        );
        let mut regime = Regime::default();
        regime.x86.pkru = filled_with;
        let rights = machine.fill_in(&regime, 0, Kind::Read, true).unwrap();
        let mut tlb = Tlb::new(&tlbs).unwrap();
        tlb.insert(0, space, Kind::Read, Entry { shift: 12, rights, ..Entry::default() });
        let mut serves = |kind, user, pkru, even_read_only| {
            let asked = Asked::new(kind, user).by_keys(kind, pkru, u32::MAX, even_read_only);
            tlb.find_for(0x10, space, kind, asked).0 == Served::First
        };
        for user in [false, true] {
            assert!(serves(Kind::Read, user, write_disable, false));
            assert!(serves(Kind::Write, user, 0, false));
            assert!(serves(Kind::Write, user, !(access_disable | write_disable), false));
            assert!(!serves(Kind::Write, user, write_disable, false));
            assert!(!serves(Kind::Read, user, access_disable, false));
        }
        assert!(serves(Kind::Write, false, write_disable, true));
        assert!(!serves(Kind::Write, false, access_disable, true));
    }
}
