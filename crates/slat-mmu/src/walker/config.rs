//! Which caches a processor has behind its TLBs.

use crate::array::Geometry;
use crate::tlb::BankConfig;

/// The most levels whose tables a walk can pass.
pub(super) const LEVELS: usize = 5;

/// Caches of intermediate entries that are found by input address and tag, so that a hit skips all
/// levels above.
///
/// Intel keeps them by level and calls what they hold linear, guest-physical and combined mappings
/// (SDM 3A 5.10.3, 3C 30.4): of stage 1 without EPT, of EPT, and of stage 1 under EPT, the last with
/// the place that EPT gives the table. Arm's walk cache holds all levels in one memory and is tagged
/// by VMID and ASID; RISC-V leaves the matter to the implementation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WalkCacheConfig {
    /// By level of the entries kept, from level 1 (which name the smallest tables) up.
    pub levels: [Geometry; LEVELS - 1],
    /// One array for the levels that have none of their own in `levels`.
    pub shared: Geometry,
}

impl WalkCacheConfig {
    /// No cache.
    pub const NONE: WalkCacheConfig = WalkCacheConfig::by_level([Geometry::NONE; LEVELS - 1]);

    /// An array a level.
    pub const fn by_level(levels: [Geometry; LEVELS - 1]) -> WalkCacheConfig {
        WalkCacheConfig { levels, shared: Geometry::NONE }
    }

    /// One array for all levels.
    pub const fn shared(geometry: Geometry) -> WalkCacheConfig {
        WalkCacheConfig { shared: geometry, ..WalkCacheConfig::NONE }
    }
}

/// AMD's page walk cache: table entries by the system physical address they lie at.
///
/// A hit saves the read, and not the nested walk that found the address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageWalkConfig {
    /// The array.
    pub geometry: Geometry,
    /// Whether it also holds the nested tables' entries.
    pub nested: bool,
}

impl PageWalkConfig {
    /// No cache.
    pub const NONE: PageWalkConfig = PageWalkConfig { geometry: Geometry::NONE, nested: false };
}

/// The three designs of Bhargava et al. ("Accelerating Two-Dimensional Page Walks for Virtualized
/// Systems", ASPLOS 2008). None keeps leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Design {
    /// `1D_PWC`: the guest's entries that point at tables.
    OneD,
    /// `2D_PWC`: those and the nested tables'.
    TwoD,
    /// `2D_PWC+NT`: the same behind a nested TLB, which holds whole nested translations of the
    /// addresses of guest tables.
    TwoDNestedTlb,
}

impl Design {
    /// All, in the paper's order.
    pub const ALL: [Design; 3] = [Design::OneD, Design::TwoD, Design::TwoDNestedTlb];

    /// The paper's name.
    pub const fn name(self) -> &'static str {
        match self {
            Design::OneD => "1D_PWC",
            Design::TwoD => "2D_PWC",
            Design::TwoDNestedTlb => "2D_PWC+NT",
        }
    }
}

/// All caches behind the TLBs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WalkerConfig {
    /// Of stage 1's entries.
    pub stage1: WalkCacheConfig,
    /// Of stage 2's entries.
    pub stage2: WalkCacheConfig,
    /// Whole second-stage translations (a nested TLB; Arm's IPA cache): the array, and the sizes in
    /// which it keeps them.
    pub nested_tlb: BankConfig,
    /// Whether the nested TLB also serves the final guest physical address.
    pub nested_tlb_holds_final: bool,
    /// Table entries by physical address.
    pub page_walk: PageWalkConfig,
    /// log2 of how many neighbouring pages of the smallest size one TLB entry may join, where their
    /// entries lie in one aligned group, differ in nothing but the address, and name frames in a row;
    /// 0 for none. TLBs keep such entries in arrays that have a size for them (16 KiB for 2).
    pub coalesces: u8,
}

impl WalkerConfig {
    /// No caches: every walk is cold.
    pub const NONE: WalkerConfig = WalkerConfig {
        stage1: WalkCacheConfig::NONE,
        stage2: WalkCacheConfig::NONE,
        nested_tlb: BankConfig::NONE,
        nested_tlb_holds_final: false,
        page_walk: PageWalkConfig::NONE,
        coalesces: 0,
    };

    /// Intel's: the same arrays for linear or combined mappings and for guest-physical ones.
    pub const fn intel(levels: WalkCacheConfig) -> WalkerConfig {
        WalkerConfig { stage1: levels, stage2: levels, ..WalkerConfig::NONE }
    }

    /// AMD's, of this design: fully associative, with so many entries.
    pub fn amd(design: Design, page_walk: u32, nested_tlb: u32) -> WalkerConfig {
        let geometry = Geometry::full(page_walk);
        let nested_tlb = match design {
            Design::TwoDNestedTlb => BankConfig::new(Geometry::full(nested_tlb), &[12]),
            _ => BankConfig::NONE,
        };
        let page_walk = PageWalkConfig { geometry, nested: design != Design::OneD };
        WalkerConfig { nested_tlb, page_walk, ..WalkerConfig::NONE }
    }

    /// Arm's: a walk cache of stage 1 for all levels but the last, and an IPA cache of stage 2 that
    /// keeps translations in these sizes (log2) and serves tables and final addresses.
    pub fn arm(walk: Geometry, ipa: Geometry, sizes: &[u8]) -> WalkerConfig {
        WalkerConfig {
            stage1: WalkCacheConfig::shared(walk),
            nested_tlb: BankConfig::new(ipa, sizes),
            nested_tlb_holds_final: true,
            ..WalkerConfig::NONE
        }
    }
}
