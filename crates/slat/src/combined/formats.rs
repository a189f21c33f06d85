//! How each second stage combines with another of its kind.

use super::compose::{Combine, Rights, choose};
use crate::access::{Access, Kind};
use crate::edit::{arm64, ept, riscv, x86};
use crate::format::arm64::{Stage2, bits};
use crate::format::ept::Ept;
use crate::format::npt::{Npt, Options};
use crate::format::riscv::Sv;
use crate::format::{Format, Found, Path};
use crate::memory_type::StageType;
use crate::memory_type::arm::{Attributes, Cache, Device, Hints, Memory, Shareability};
use crate::memory_type::riscv::{Pbmt, under_g_stage};
use crate::memory_type::x86::{Type, guest_and_host_pat, mtrr_and_pat, pat_entry};
use crate::regime::Regime;

/// The types that a guest's PAT gives.
const PAT: [Type; 6] = [Type::Uc, Type::UcMinus, Type::Wc, Type::Wt, Type::Wp, Type::Wb];

/// How cached a type is; WT and WP are neither more nor less than the other.
fn rank(memory_type: Type) -> u32 {
    match memory_type {
        Type::Uc => 0,
        Type::UcMinus => 1,
        Type::Wc => 2,
        Type::Wt | Type::Wp => 3,
        Type::Wb => 4,
    }
}

/// The type of one EPT leaf that stands for `upper` over `lower` (each with whether it ignores the
/// PAT), by Intel SDM 3C 30.3.7.2 applied twice.
fn of_two_epts(upper: (Type, bool), lower: (Type, bool)) -> ept::Memory {
    let ((upper, upper_ignores), (lower, lower_ignores)) = (upper, lower);
    if lower_ignores {
        return ept::Memory { memory_type: lower, ignore_pat: true };
    }
    if upper_ignores {
        return ept::Memory { memory_type: mtrr_and_pat(lower, upper), ignore_pat: true };
    }
    let candidates = [Type::Wb, Type::Wp, Type::Wt, Type::Wc, Type::Uc];
    let memory_type = choose(
        candidates.into_iter(),
        &PAT,
        |guest| mtrr_and_pat(lower, mtrr_and_pat(upper, guest)),
        mtrr_and_pat,
        rank,
    );
    ept::Memory { memory_type: memory_type.unwrap_or(Type::Uc), ignore_pat: false }
}

impl Combine for Ept {
    /// With accessed and dirty flags an access to a guest's tables counts as a write: that the
    /// processor counts as the guest hypervisor expects, the flags must be its.
    fn conforms(&self, upper: &Ept, lower: &Ept) -> Result<(), &'static str> {
        let (own, upper, lower) = (self.features(), upper.features(), lower.features());
        let special = |features: &crate::format::ept::Features| {
            features.guest_paging_verification
                || features.supervisor_shadow_stack
                || features.paging_write
                || features.sub_page
        };
        if special(own) || special(upper) || special(lower) {
            return Err("guest-paging verification, shadow stacks, paging-write and sub-page \
                        permissions do not combine");
        }
        if own.accessed_dirty != upper.accessed_dirty {
            return Err(
                "accessed and dirty flags must be enabled as the guest hypervisor has them",
            );
        }
        if own.mode_based_execute != (upper.mode_based_execute || lower.mode_based_execute) {
            return Err("mode-based execute control must be on where one of both has it");
        }
        if !own.execute_only && (upper.execute_only || lower.execute_only) {
            return Err("execute-only pages of a part need execute-only pages");
        }
        Ok(())
    }

    fn lowered(&self, access: &Access) -> Access {
        if self.counts_as_write(access) { access.as_kind(Kind::Write) } else { *access }
    }

    fn memory(&self, upper: StageType, lower: StageType, _: &Regime) -> ept::Memory {
        let of = |stage| match stage {
            StageType::Ept { memory_type, ignore_pat } => (memory_type, ignore_pat),
            _ => (Type::Wb, false),
        };
        of_two_epts(of(upper), of(lower))
    }

    /// #VE is suppressed: whether the guest hypervisor's leaf asks for one is decided when the
    /// violation is served ([`Ept::converts_to_ve`]).
    fn attributes_of(&self, rights: &Rights, memory: ept::Memory) -> ept::Attributes {
        ept::Attributes {
            permissions: rights.permissions,
            user_execute: rights.user_execute,
            memory,
            suppress_ve: true,
            accessed: true,
            dirty: true,
            software: 0,
        }
    }
}

impl Combine for Npt {
    fn conforms(&self, upper: &Npt, lower: &Npt) -> Result<(), &'static str> {
        let special = |npt: &Npt| Options { read_only_guest_tables: false, ..*npt.options() };
        if [self, upper, lower].into_iter().any(|npt| special(npt) != Options::default()) {
            return Err("the guest mode execute trap and shadow-stack restrictions do not combine");
        }
        if self.options() != upper.options() {
            return Err("read-only guest tables must be as the guest hypervisor has them");
        }
        if !self.nxe() && (upper.nxe() || lower.nxe()) {
            return Err("pages that may not be executed need EFER.NXE");
        }
        Ok(())
    }

    fn lowered(&self, access: &Access) -> Access {
        access.as_kind(self.checked_kind(access))
    }

    /// The guest's PAT and the guest hypervisor's combine by AMD APM 2 table 15-19, and the result
    /// with the host's likewise. That a PAT has every type makes exact entries likelier: the reset value
    /// lacks WC and WP.
    fn memory(&self, upper: StageType, lower: StageType, regime: &Regime) -> x86::Pat {
        let of = |stage| match stage {
            StageType::HostPat(memory_type) => memory_type,
            _ => Type::Wb,
        };
        let (upper, lower) = (of(upper), of(lower));
        let entry = |index| pat_entry(regime.x86.host_pat, index);
        let index = choose(
            0..8,
            &PAT,
            |guest| guest_and_host_pat(guest_and_host_pat(guest, upper), lower),
            |index, guest| guest_and_host_pat(guest, entry(index)),
            rank,
        );
        // A PAT without an uncached entry: the least cached one.
        let least = || (0..8).min_by_key(|&index| rank(entry(index))).unwrap_or(0);
        x86::Pat(index.unwrap_or_else(least))
    }

    fn attributes_of(&self, rights: &Rights, memory: x86::Pat) -> x86::Attributes {
        x86::Attributes {
            user: true,
            pat: memory,
            accessed: true,
            dirty: true,
            ..x86::Attributes::new(rights.permissions)
        }
    }
}

/// Types that a guest's stage 1 may give, one of each kind that stage 2 treats apart.
const ARM: [Attributes; 7] = {
    const fn both(cache: Cache) -> Memory {
        Memory::Normal { outer: cache, inner: cache }
    }
    let hints = Hints::ALLOCATE;
    [
        Attributes::new(Memory::Device(Device::nGnRnE), Shareability::Outer),
        Attributes::new(Memory::Device(Device::GRE), Shareability::Outer),
        Attributes::new(both(Cache::NonCacheable), Shareability::Outer),
        Attributes::new(both(Cache::WriteThrough(hints)), Shareability::Non),
        Attributes::new(both(Cache::WriteBack(hints)), Shareability::Non),
        Attributes::new(both(Cache::WriteBack(hints)), Shareability::Inner),
        Attributes::new(
            Memory::Normal { outer: Cache::NonCacheable, inner: Cache::WriteBack(hints) },
            Shareability::Non,
        ),
    ]
};

fn arm_rank(attributes: Attributes) -> u32 {
    let cache = |cache| match cache {
        Cache::NonCacheable => 0,
        Cache::WriteThrough(_) => 1,
        Cache::WriteBack(_) => 2,
    };
    let memory = match attributes.memory {
        Memory::Device(device) => device as u32,
        Memory::Normal { outer, inner } => 8 + 3 * cache(outer) + cache(inner),
    };
    // A wider shareability demands more of the caches: it counts as less cached.
    4 * memory + (3 - attributes.shareability as u32)
}

/// What a leaf with these attributes says of memory.
fn stage_type(format: &Stage2, memory: arm64::Memory, regime: &Regime) -> StageType {
    let entry = u64::from(memory.attributes) << bits::MEM_ATTR_SHIFT
        | if format.geometry().is_lpa2() {
            0
        } else {
            u64::from(memory.shareability) << bits::SH_SHIFT
        };
    let found = Found {
        entry,
        level: 0,
        base: 0,
        shift: 12,
        path: Path::START,
        input: 0,
        kind: Kind::Read,
    };
    format.memory_type(&found, regime)
}

impl Combine for Stage2 {
    fn conforms(&self, upper: &Stage2, lower: &Stage2) -> Result<(), &'static str> {
        if !self.is_enabled() {
            return Err("stage 2 is off");
        }
        if !self.tells_execution_apart()
            && (upper.tells_execution_apart() || lower.tells_execution_apart())
        {
            return Err("execution at EL0 alone needs FEAT_XNX");
        }
        Ok(())
    }

    /// Arm ARM D8.6 applied twice; without FWB the more restrictive attributes and the wider
    /// shareability.
    fn memory(&self, upper: StageType, lower: StageType, regime: &Regime) -> arm64::Memory {
        let by = |stage: StageType, first: Attributes| match stage {
            StageType::ArmStage2(second) => second.combined_with(first),
            _ => first,
        };
        let fixed = self.geometry().is_lpa2();
        let shareabilities: &[u8] = if fixed { &[0] } else { &[0, 3, 2] };
        let candidates = (0..16u8).rev().flat_map(|attributes| {
            shareabilities
                .iter()
                .map(move |&shareability| arm64::Memory { attributes, shareability })
        });
        // Hints and tags are stage 1's alone.
        let plain = |attributes: Attributes| Attributes { tagged: false, xs: false, ..attributes };
        let chosen = choose(
            candidates,
            &ARM,
            |first| plain(by(lower, by(upper, first))),
            |memory, first| plain(by(stage_type(self, memory, regime), first)),
            arm_rank,
        );
        chosen.unwrap_or(arm64::Memory { attributes: 0, shareability: 0 })
    }

    fn attributes_of(&self, rights: &Rights, memory: arm64::Memory) -> arm64::Stage2Attributes {
        arm64::Stage2Attributes {
            user_execute: rights.user_execute,
            ..arm64::Stage2Attributes::new(rights.permissions, memory)
        }
    }
}

impl Combine for Sv {
    fn conforms(&self, upper: &Sv, lower: &Sv) -> Result<(), &'static str> {
        if [self, upper, lower].into_iter().any(|sv| sv.stage() != 2) {
            return Err("only G-stages combine");
        }
        let types = |sv: &Sv| sv.features().memory_types;
        if !types(self) && (types(upper) || types(lower)) {
            return Err("memory types of a part need Svpbmt");
        }
        Ok(())
    }

    /// Privileged manual, "Svpbmt": a stage that requests something overrides those below it.
    fn memory(&self, upper: StageType, lower: StageType, _: &Regime) -> Pbmt {
        match (upper, lower) {
            (StageType::Pbmt(upper), StageType::Pbmt(lower)) => under_g_stage(upper, lower),
            (StageType::Pbmt(only), _) | (_, StageType::Pbmt(only)) => only,
            _ => Pbmt::Pma,
        }
    }

    fn attributes_of(&self, rights: &Rights, memory: Pbmt) -> riscv::Attributes {
        riscv::Attributes { memory, ..riscv::Attributes::new(rights.permissions) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edit::{Encode, x86 as edit_x86};
    use crate::format::arm64::{Granule, Processor};
    use crate::format::ept::Features;
    use crate::format::{riscv, x86};

    const TYPES: [Type; 5] = [Type::Uc, Type::Wc, Type::Wt, Type::Wp, Type::Wb];

    fn under(leaf: ept::Memory, guest: Type) -> Type {
        if leaf.ignore_pat { leaf.memory_type } else { mtrr_and_pat(leaf.memory_type, guest) }
    }

    /// Every pair and every PAT type: exact, but for guests that ask for UC- over WC or WP of one half
    /// and write-back of the other, whom no EPT type serves; they get the less cached.
    #[test]
    fn two_ept_types_make_what_they_make_one_after_the_other() {
        let mut inexact = 0;
        for upper in TYPES {
            for lower in TYPES {
                for (upper_ignores, lower_ignores) in
                    [(false, false), (true, false), (false, true), (true, true)]
                {
                    let leaf = of_two_epts((upper, upper_ignores), (lower, lower_ignores));
                    let memory = |memory_type, ignore_pat| ept::Memory { memory_type, ignore_pat };
                    for guest in PAT {
                        let between = under(memory(upper, upper_ignores), guest);
                        let wanted = under(memory(lower, lower_ignores), between);
                        let made = under(leaf, guest);
                        if made != wanted {
                            inexact += 1;
                            assert!(!upper_ignores && !lower_ignores);
                            assert!(rank(made) < rank(wanted), "{upper} {lower} {guest}");
                        }
                    }
                }
            }
        }
        assert!(inexact < 30, "{inexact} of 600");
        let leaf = of_two_epts((Type::Wb, false), (Type::Uc, true));
        assert_eq!(leaf, ept::Memory { memory_type: Type::Uc, ignore_pat: true });
    }

    #[test]
    fn two_nested_types_make_what_they_make_one_after_the_other() {
        let npt = Npt::four(true, x86::long::Processor::default());
        let mut regime = Regime::default();
        // WB, WC, UC-, UC, WB, WP, UC-, WT.
        regime.x86.host_pat = 0x0407_0506_0007_0106;
        for upper in PAT {
            for lower in PAT {
                let stage = StageType::HostPat;
                let edit_x86::Pat(index) = npt.memory(stage(upper), stage(lower), &regime);
                let leaf = pat_entry(regime.x86.host_pat, index);
                for guest in PAT {
                    let between = guest_and_host_pat(guest, upper);
                    let wanted = guest_and_host_pat(between, lower);
                    let made = guest_and_host_pat(guest, leaf);
                    assert!(
                        made == wanted || rank(made) < rank(wanted),
                        "{upper} {lower} {guest}: {made} for {wanted}"
                    );
                    if lower == Type::Wb || upper == Type::Wb {
                        assert!(
                            made == wanted || [upper, lower].iter().any(|t| matches!(t, Type::Wp)),
                            "{upper} {lower} {guest}: {made} for {wanted}"
                        );
                    }
                }
            }
        }
    }

    /// Every pair of `MemAttr`, with and without FWB in either half.
    #[test]
    fn two_arm_types_make_what_they_make_one_after_the_other() {
        let processor = Processor { physical_bits: 40, ..Processor::default() };
        let format = Stage2::plain(Granule::Four, 40, &processor).unwrap();
        let mut inexact = 0;
        for forced in 0..4 {
            let with = |force: bool| {
                let mut regime = Regime::default();
                regime.arm.force_write_back = force;
                regime
            };
            let (above, below) = (with(forced & 1 != 0), with(forced & 2 != 0));
            for pair in 0..=0xffu8 {
                let (upper, lower) = (pair & 0xf, pair >> 4);
                let memory = |attributes| arm64::Memory { attributes, shareability: 3 };
                let upper = stage_type(&format, memory(upper), &above);
                let lower = stage_type(&format, memory(lower), &below);
                let made = stage_type(&format, format.memory(upper, lower, &below), &below);
                let by = |stage: StageType, first: Attributes| match stage {
                    StageType::ArmStage2(second) => second.combined_with(first),
                    _ => unreachable!(),
                };
                for first in ARM {
                    let wanted = by(lower, by(upper, first));
                    let made = by(made, first);
                    if (made.memory, made.shareability) != (wanted.memory, wanted.shareability) {
                        inexact += 1;
                        assert!(arm_rank(made) < arm_rank(wanted), "{pair:#x} {first}");
                        assert!(forced != 0, "without FWB there is always an exact one: {pair:#x}");
                    }
                }
            }
        }
        assert!(inexact < 1000, "{inexact} of 7168");
    }

    /// What cannot be combined is refused.
    #[test]
    fn what_does_not_conform_is_refused() {
        let ept = |features| Ept::four(features);
        let plain = Features::default();
        let marked = Features { accessed_dirty: true, ..plain };
        let moded = Features { mode_based_execute: true, ..plain };
        assert!(ept(plain).conforms(&ept(plain), &ept(marked)).is_ok());
        assert!(ept(plain).conforms(&ept(marked), &ept(plain)).is_err());
        assert!(ept(marked).conforms(&ept(plain), &ept(plain)).is_err());
        assert!(ept(plain).conforms(&ept(moded), &ept(plain)).is_err());
        assert!(ept(moded).conforms(&ept(moded), &ept(plain)).is_ok());
        let bare = Features { execute_only: false, ..plain };
        assert!(ept(bare).conforms(&ept(plain), &ept(bare)).is_err());
        let sub_page = Features { sub_page: true, ..plain };
        assert!(ept(plain).conforms(&ept(sub_page), &ept(plain)).is_err());
        let npt = |nxe| Npt::four(nxe, x86::long::Processor::default());
        assert!(npt(false).conforms(&npt(true), &npt(false)).is_err());
        let trap = Options { guest_mode_execute_trap: true, ..Options::default() };
        assert!(npt(true).conforms(&npt(true).with_options(trap), &npt(true)).is_err());
        let sv = |memory_types| {
            let features = riscv::Features { memory_types, ..riscv::Features::default() };
            Sv::stage2(riscv::Scheme::Sv39, features)
        };
        assert!(sv(false).conforms(&sv(true), &sv(false)).is_err());
        assert!(sv(true).conforms(&sv(true), &sv(false)).is_ok());
        assert_eq!(sv(true).input_bits(), 41);
    }
}
