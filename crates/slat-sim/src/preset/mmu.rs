//! A preset's TLBs and walk caches, as the software MMU takes them.

use slat_mmu::array::Geometry;
use slat_mmu::tlb::{BankConfig, TlbConfig};
use slat_mmu::walker::{Design, PageWalkConfig, WalkCacheConfig, WalkerConfig};

use super::{Confidence, Entries, Param, Processor, WalkCaches};

impl Entries {
    pub(super) fn geometry(self) -> Geometry {
        if self.entries == 0 { Geometry::NONE } else { Geometry::lru(self.entries, self.ways) }
    }
}

impl Processor {
    /// The TLBs, for the software MMU.
    pub fn tlb_config(&self) -> TlbConfig {
        let tlb = &self.tlb;
        let bank =
            |param: &Param<Entries>, sizes: &[u8]| BankConfig::new(param.value.geometry(), sizes);
        let load = if tlb.data_shared.value {
            vec![bank(&tlb.data_4k, &[12, 21, 30])]
        } else {
            vec![bank(&tlb.data_4k, &[12]), bank(&tlb.data_2m, &[21]), bank(&tlb.data_1g, &[30])]
        };
        let fetch = if tlb.fetch_2m.value.entries == 0 {
            vec![bank(&tlb.fetch_4k, &[12, 21, 30])]
        } else {
            vec![bank(&tlb.fetch_4k, &[12]), bank(&tlb.fetch_2m, &[21])]
        };
        let sizes: &[u8] = if tlb.second_holds_2m.value { &[12, 21] } else { &[12] };
        let mut second = vec![bank(&tlb.second, sizes), bank(&tlb.second_1g, &[30])];
        second.extend(tlb.second_2m.as_ref().map(|param| bank(param, &[21])));
        let holds_1g = tlb.data_shared.value || tlb.data_1g.value.entries > 0;
        let largest = if holds_1g { 30 } else { 21 };
        TlbConfig { fetch, load, second, largest, ..TlbConfig::default() }
    }

    /// The caches of intermediate entries, for the software MMU.
    pub fn walker_config(&self) -> WalkerConfig {
        let WalkCaches { pde, pdpte, pml4e, nested_tlb, second_stage, page_walk, page_walk_nested } =
            &self.walk_caches;
        let levels = [pde, pdpte, pml4e].map(|param| param.value.geometry());
        let cache = WalkCacheConfig::by_level([levels[0], levels[1], levels[2], Geometry::NONE]);
        let kept = second_stage.as_ref().is_none_or(|kept| kept.value);
        WalkerConfig {
            stage1: cache,
            stage2: if kept { cache } else { WalkCacheConfig::NONE },
            nested_tlb: BankConfig::new(nested_tlb.value.geometry(), &[12]),
            page_walk: page_walk.as_ref().map_or(PageWalkConfig::NONE, |param| PageWalkConfig {
                geometry: param.value.geometry(),
                nested: page_walk_nested.as_ref().is_none_or(|kept| kept.value),
            }),
            ..WalkerConfig::NONE
        }
    }

    /// This processor with the walk caches of one of Bhargava et al.'s designs (ASPLOS 2008): 24
    /// entries by physical address, and 16 nested translations where the design has them.
    #[must_use]
    pub fn with_design(&self, design: Design) -> Processor {
        fn of<T>(value: T) -> Param<T> {
            let source = "a design of Bhargava et al., ASPLOS 2008".to_owned();
            Param { value, source, confidence: Confidence::Assumed }
        }
        let entries = |entries: u32| of(Entries { entries, ways: entries.max(1) });
        let nested_tlb = if design == Design::TwoDNestedTlb { 16 } else { 0 };
        Processor {
            walk_caches: WalkCaches {
                pde: entries(0),
                pdpte: entries(0),
                pml4e: entries(0),
                nested_tlb: entries(nested_tlb),
                second_stage: None,
                page_walk: Some(entries(24)),
                page_walk_nested: Some(of(design != Design::OneD)),
            },
            ..self.clone()
        }
    }
}
