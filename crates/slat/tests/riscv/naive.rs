//! The translation process as the manual's numbered steps give it, for one hart with both stages:
//! written from the text, to be compared with the walker over made-up memory.

use proptest::prelude::*;
use slat::format::riscv::{Features, Mask, Scheme, Sv};
use slat::regime::riscv::State;
use slat::syndrome::riscv::{Registers, Reports, Trapped};
use slat::{
    Access, Flavor, Gpa, Gva, Kind, Privilege, References, Regime, Spa, Stage, Updates, translate,
};

use crate::ram::Ram;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    Allowed,
    PageFault,
    AccessFault,
}

/// Steps 6 to 9 for a leaf, the write of A and D excepted. `explicit` is false for the walks of
/// VS-stage tables.
pub(crate) fn permission(
    pte: u64,
    g_stage: bool,
    features: &Features,
    access: &Access,
    state: &State,
    explicit: bool,
) -> Outcome {
    let [_, r, w, x, u, _, a, d] = std::array::from_fn(|bit| pte >> bit & 1 == 1);
    let user_mode = g_stage || access.privilege == Privilege::User;
    let shadow_stack_instruction = access.flavor == Flavor::ShadowStack;

    // 6: U, SUM.
    if user_mode && !u {
        return Outcome::PageFault;
    }
    if !user_mode && u && (access.kind == Kind::Execute || !state.sum) {
        return Outcome::PageFault;
    }
    // 7: shadow-stack memory protection, which the G-stage does not have.
    let shadow_stack_page = !g_stage && features.shadow_stacks && (r, w, x) == (false, true, false);
    if !g_stage && shadow_stack_instruction {
        if (r, w, x) == (true, false, false) {
            return Outcome::PageFault;
        }
        if !shadow_stack_page {
            return Outcome::AccessFault;
        }
    } else if shadow_stack_page && access.kind != Kind::Read {
        return Outcome::AccessFault;
    }
    // 8: R, W, X.
    let mxr = explicit && (state.mxr || !g_stage && state.vsmxr);
    let allowed = if shadow_stack_page {
        access.flavor != Flavor::Hlvx
    } else if shadow_stack_instruction {
        r && w
    } else if access.flavor == Flavor::Hlvx {
        x
    } else {
        match access.kind {
            Kind::Read => r || mxr && x,
            Kind::Write => w,
            Kind::Execute => x,
        }
    };
    // 9: A, D.
    let stale = !a || access.kind == Kind::Write && !d;
    if !allowed || stale && !features.hardware_ad {
        return Outcome::PageFault;
    }
    Outcome::Allowed
}

struct Hart<'a> {
    ram: &'a mut Ram,
    vs: (Scheme, Features, u64),
    g: (Scheme, Features, u64),
    state: State,
    reads: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Trap {
    Page,
    Access,
    /// The guest physical address, and whether VS-stage read or wrote a table entry there.
    GuestPage(u64, Option<Kind>),
}

fn levels(scheme: Scheme) -> i64 {
    match scheme {
        Scheme::Bare => 0,
        Scheme::Sv32 => 2,
        Scheme::Sv39 => 3,
        Scheme::Sv48 => 4,
        Scheme::Sv57 => 5,
    }
}

impl Hart<'_> {
    /// One stage, steps 1 to 10. `Err(Outcome)` is this stage's own fault.
    fn stage(
        &mut self,
        g_stage: bool,
        va: u64,
        access: &Access,
        explicit: bool,
    ) -> Result<u64, Result<Outcome, Trap>> {
        let (scheme, features, root) = if g_stage { self.g } else { self.vs };
        if scheme == Scheme::Bare {
            return if !g_stage && access.flavor == Flavor::ShadowStack {
                Err(Ok(Outcome::AccessFault))
            } else {
                Ok(va)
            };
        }
        let narrow = scheme == Scheme::Sv32;
        let (pte_size, vpn_bits) = if narrow { (4, 10) } else { (8, 9) };
        let top = levels(scheme) - 1;
        let vpn = |i: i64| {
            let field = va >> (12 + vpn_bits * i);
            // The G-stage's root has two bits more.
            field % (1 << (vpn_bits + if g_stage && i == top { 2 } else { 0 }))
        };
        let mut a = root;
        let mut i = top;
        loop {
            let pte_address = a + vpn(i) * pte_size;
            let pte = self.load(g_stage, pte_address, pte_size, access)?;
            let page_fault = Err(Ok(Outcome::PageFault));
            // 3
            let [v, r, w, x] = std::array::from_fn(|bit| pte >> bit & 1 == 1);
            let ss = features.shadow_stacks && !g_stage && w && !r && !x;
            if !v || w && !r && !ss {
                return page_fault;
            }
            let (reserved, rsw, pbmt, n) = if narrow {
                (0, 0, 0, 0)
            } else {
                (pte >> 54 & 0x1f, pte >> 59 & 3, pte >> 61 & 3, pte >> 63)
            };
            if reserved != 0
                || rsw != 0 && !features.software_bits
                || pbmt != 0 && !features.memory_types
                || pbmt == 3
                || n != 0 && !features.napot
            {
                return page_fault;
            }
            let ppn = if narrow { pte >> 10 } else { pte >> 10 & 0xfff_ffff_ffff };
            // 4
            if !r && !x && !ss {
                let (u, accessed, dirty) = (pte >> 4 & 1, pte >> 6 & 1, pte >> 7 & 1);
                i -= 1;
                if i < 0 || u + accessed + dirty + pbmt + n > 0 {
                    return page_fault;
                }
                a = ppn << 12;
                continue;
            }
            // 5
            let mut ppn = ppn;
            if n == 1 {
                if i > 0 || ppn & 0xf != 0x8 {
                    return page_fault;
                }
                ppn = ppn & !0xf | va >> 12 & 0xf;
            }
            let low = (1 << (vpn_bits * i)) - 1;
            if i > 0 && ppn & low != 0 {
                return page_fault;
            }
            // 6 to 9
            let outcome = permission(pte, g_stage, &features, access, &self.state, explicit);
            if outcome != Outcome::Allowed {
                return Err(Ok(outcome));
            }
            let mut touched = pte | 0x40;
            if access.kind == Kind::Write {
                touched |= 0x80;
            }
            // A table that maps itself may change under its own walk: "if the comparison fails,
            // return to step 2", from where the walk would reach the same entries again.
            if touched != pte
                && !self.replace(g_stage, pte_address, pte_size, pte, touched, access)?
            {
                (a, i) = (root, top);
                continue;
            }
            // 10
            return Ok((ppn | va >> 12 & low) << 12 | va & 0xfff);
        }
    }

    fn load(
        &mut self,
        g_stage: bool,
        address: u64,
        size: u64,
        access: &Access,
    ) -> Result<u64, Result<Outcome, Trap>> {
        let address = self.implicit(g_stage, address, Kind::Read, access)?;
        let entry = self.ram.get(address, size).ok_or(Err(Trap::Access))?;
        self.reads += 1;
        Ok(entry)
    }

    fn replace(
        &mut self,
        g_stage: bool,
        address: u64,
        size: u64,
        old: u64,
        new: u64,
        access: &Access,
    ) -> Result<bool, Result<Outcome, Trap>> {
        let address = self.implicit(g_stage, address, Kind::Write, access)?;
        let same = self.ram.get(address, size).ok_or(Err(Trap::Access))? == old;
        if same {
            self.ram.set(address, size, new);
        }
        Ok(same)
    }

    /// VS-stage's tables lie in guest physical memory, which the G-stage translates.
    fn implicit(
        &mut self,
        g_stage: bool,
        address: u64,
        kind: Kind,
        access: &Access,
    ) -> Result<u64, Result<Outcome, Trap>> {
        if g_stage {
            return Ok(address);
        }
        let implicit = Access::new(kind, access.privilege);
        self.guest_physical(address, &implicit, Some(kind)).map_err(Err)
    }

    fn guest_physical(
        &mut self,
        gpa: u64,
        access: &Access,
        implicit: Option<Kind>,
    ) -> Result<u64, Trap> {
        let width = match self.g.0 {
            Scheme::Bare => 64,
            Scheme::Sv32 => 34,
            Scheme::Sv39 => 41,
            Scheme::Sv48 => 50,
            Scheme::Sv57 => 59,
        };
        if width < 64 && gpa >= 1 << width {
            return Err(Trap::GuestPage(gpa, implicit));
        }
        self.stage(true, gpa, access, implicit.is_none()).map_err(|failed| match failed {
            Ok(_) => Trap::GuestPage(gpa, implicit),
            Err(trap) => trap,
        })
    }

    fn translate(&mut self, va: u64, access: &Access) -> Result<u64, Trap> {
        let sign = |bits: u32| {
            let top = va >> (bits - 1);
            top == 0 || top == u64::MAX >> (bits - 1)
        };
        let valid = match self.vs.0 {
            Scheme::Bare => true,
            Scheme::Sv32 => va < 1 << 32,
            Scheme::Sv39 => sign(39),
            Scheme::Sv48 => sign(48),
            Scheme::Sv57 => sign(57),
        };
        if !valid {
            return Err(Trap::Page);
        }
        let gpa = self.stage(false, va, access, true).map_err(|failed| match failed {
            Ok(Outcome::AccessFault) => Trap::Access,
            Ok(_) => Trap::Page,
            Err(trap) => trap,
        })?;
        self.guest_physical(gpa, access, None)
    }
}

/// The "ignore" transformation, from its two Verilog listings.
fn ignore(va: u64, bits: u32, bare: bool) -> u64 {
    if bits == 0 {
        return va;
    }
    let kept = va & (u64::MAX >> bits);
    let sign = va >> (63 - bits) & 1;
    if bare || sign == 0 { kept } else { kept | !(u64::MAX >> bits) }
}

/// A made-up memory: most words are entries that lead on.
pub(crate) fn invent(seed: u64, address: u64) -> u32 {
    let narrow = seed & 1 == 1;
    let slot = if narrow { address } else { address & !7 };
    // A 64-bit mix of seed and slot (SplitMix64's finalizer).
    let mut z = slot.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed;
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    let pick = |shift: u32, bits: u32| z >> shift & ((1 << bits) - 1);
    let pointer = pick(0, 3) < 6;
    // Pages that tables lie in are anywhere low; leaves are mostly aligned for every level.
    let small = pick(3, 4);
    let frame = match pick(7, 4) {
        _ if pointer => small,
        0..9 => 0,
        9 | 10 => small << 9,
        11 => (small & 7) << 18,
        12 => (small & 1) << 27,
        13 | 14 => small << 4 | 8,
        _ => pick(20, 44),
    };
    let flags = match pick(11, 6) {
        0 => pick(17, 8) | 1,
        _ if pointer => 0x01,
        1..36 => 0xdf,
        36..44 => 0xcf,
        // Neither accessed nor dirty; read-only.
        44..50 => 0x1f,
        50..56 => 0xdb,
        // One bit of the rights, U, A or D is wrong.
        damaged => 0xdf ^ 2 << (damaged & 7),
    };
    let high = match pick(25, 6) {
        0 => pick(31, 3) << 61,
        1 => 1 << (54 + pick(31, 3)),
        _ if pointer => 0,
        2..8 => pick(31, 2) << 61,
        _ if frame & 0xf == 8 => 1 << 63,
        _ => 0,
    };
    let entry = frame << 10 | flags | high;
    if !narrow && address & 4 != 0 { (entry >> 32) as u32 } else { entry as u32 }
}

fn features() -> impl Strategy<Value = Features> {
    let mask = prop_oneof![Just(Mask::Off), Just(Mask::Seven), Just(Mask::Sixteen)];
    (any::<[bool; 5]>(), mask.clone(), mask).prop_map(|(on, supervisor_mask, user_mask)| Features {
        hardware_ad: on[0],
        napot: on[1],
        memory_types: on[2],
        shadow_stacks: on[3],
        software_bits: on[4],
        supervisor_mask,
        user_mask,
        ..Features::default()
    })
}

fn access() -> impl Strategy<Value = Access> {
    let kind = prop_oneof![
        4 => Just((Kind::Read, Flavor::Plain)),
        4 => Just((Kind::Write, Flavor::Plain)),
        2 => Just((Kind::Execute, Flavor::Plain)),
        1 => Just((Kind::Read, Flavor::Hlvx)),
        1 => Just((Kind::Read, Flavor::ShadowStack)),
        1 => Just((Kind::Write, Flavor::ShadowStack)),
    ];
    (kind, any::<bool>()).prop_map(|((kind, flavor), user)| {
        let privilege = if user { Privilege::User } else { Privilege::Supervisor };
        Access::new(kind, privilege).with_flavor(flavor)
    })
}

fn schemes() -> impl Strategy<Value = (Scheme, Scheme)> {
    let wide = || {
        prop_oneof![
            1 => Just(Scheme::Bare),
            3 => Just(Scheme::Sv39),
            2 => Just(Scheme::Sv48),
            2 => Just(Scheme::Sv57)
        ]
    };
    let narrow = || prop_oneof![1 => Just(Scheme::Bare), 4 => Just(Scheme::Sv32)];
    prop_oneof![1 => (narrow(), narrow()), 3 => (wide(), wide())]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn walks_as_the_numbered_steps_do(
        seed: u64,
        (vs, g) in schemes(),
        vs_features in features(),
        g_features in features(),
        access in access(),
        bits: [bool; 3],
        va: u64,
        canonical in prop_oneof![1 => Just(64u32), 6 => Just(38u32)],
    ) {
        let narrow = vs == Scheme::Sv32 || g == Scheme::Sv32;
        let seed = seed & !1 | u64::from(narrow);
        let va = if narrow { va >> 32 } else { va & u64::MAX >> (64 - canonical) };
        let state = State { sum: bits[0], mxr: bits[1], vsmxr: bits[2] };
        let ram = Ram { range: 0..1 << 50, words: Default::default(), fill: invent, seed };
        let (vs_root, g_root) = (0x3000, 0x8000);

        let stage1 = Stage::<_, Gva, Gpa>::new(Sv::stage1(vs, vs_features), vs_root)
            .with_updates(Updates::OnSuccess);
        let stage2 = Stage::<_, Gpa, Spa>::new(Sv::stage2(g, g_features), g_root)
            .with_updates(Updates::OnSuccess);
        let regime = Regime { riscv: state.clone(), ..Regime::default() };
        let counted = References::default();
        let mut ours = ram.clone();
        let walked =
            translate(&stage1, &stage2, &mut ours, Gva::new(va), &access, &regime, &counted);

        let mut theirs = ram;
        let mut hart = Hart {
            ram: &mut theirs,
            vs: (vs, vs_features, vs_root),
            g: (g, g_features, g_root),
            state: state.clone(),
            reads: 0,
        };
        let masked = match access.privilege {
            _ if access.kind == Kind::Execute || access.flavor == Flavor::Hlvx => 0,
            _ if state.mxr || state.vsmxr || vs == Scheme::Sv32 => 0,
            Privilege::Supervisor => vs_features.supervisor_mask.bits(),
            Privilege::User => vs_features.user_mask.bits(),
        };
        let transformed = ignore(va, masked, vs == Scheme::Bare);
        let expected = hart.translate(transformed, &access);
        let reads = hart.reads;

        let trapped = Trapped {
            address: Gva::new(va),
            access: &access,
            stage1: &stage1.format,
            regime: &regime,
            transformed: None,
        };
        let row = match access.kind {
            Kind::Execute => 0,
            Kind::Read if access.flavor != Flavor::ShadowStack => 1,
            _ => 2,
        };
        match (expected, walked) {
            (Ok(spa), Ok(found)) => prop_assert_eq!(spa, found.output().raw()),
            (Err(trap), Err(failure)) => {
                let registers = trapped.of_two_stages(&failure).unwrap().registers(Reports::ALL);
                let write = if narrow { (0x2000, 0x2020) } else { (0x3000, 0x3020) };
                let (scause, htval, htinst) = match trap {
                    Trap::Page => ([12, 13, 15][row], 0, 0),
                    Trap::Access => ([1, 5, 7][row], 0, 0),
                    Trap::GuestPage(gpa, implicit) => ([20, 21, 23][row], gpa / 4, match implicit {
                        None => 0,
                        Some(Kind::Write) => write.1,
                        Some(_) => write.0,
                    }),
                };
                prop_assert_eq!(registers, Registers { scause, stval: transformed, htval, htinst });
            }
            (expected, walked) => prop_assert!(false, "{:?} but {:?}", expected, walked),
        }
        prop_assert_eq!(reads, counted.count());
        prop_assert_eq!(ours.words, theirs.words);
    }
}
