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
        // An array of 4 KiB pages also holds entries that join some, and these sizes.
        let of_4k = |param: &Param<Entries>, larger: &[u8]| {
            let joined = (self.joins() > 0).then_some(12 + self.joins());
            let sizes: Vec<u8> = [12].into_iter().chain(joined).chain(larger.to_vec()).collect();
            bank(param, &sizes)
        };
        // What a shared array of the first level keeps beside 4 KiB: the pages of the 4 KiB granule, or
        // pieces of them.
        let shared: &[u8] = match tlb.first_largest.as_ref().map(|largest| largest.value.shift()) {
            None => &[21, 30],
            Some(12) => &[],
            Some(16) => &[16],
            Some(20) => &[20],
            Some(21) => &[21],
            Some(_) => &[21, 29],
        };
        let load = if tlb.data_shared.value {
            vec![of_4k(&tlb.data_4k, shared)]
        } else {
            vec![of_4k(&tlb.data_4k, &[]), bank(&tlb.data_2m, &[21]), bank(&tlb.data_1g, &[30])]
        };
        let fetch = if tlb.fetch_2m.value.entries == 0 {
            vec![of_4k(&tlb.fetch_4k, shared)]
        } else {
            vec![of_4k(&tlb.fetch_4k, &[]), bank(&tlb.fetch_2m, &[21])]
        };
        let store = tlb.store.as_ref().map(|param| vec![of_4k(param, shared)]);
        let second_holds_1g = tlb.second_holds_1g.as_ref().is_some_and(|holds| holds.value);
        let sizes = [(21, tlb.second_holds_2m.value), (30, second_holds_1g)];
        let sizes: Vec<u8> =
            sizes.into_iter().filter(|(_, held)| *held).map(|(size, _)| size).collect();
        let mut second = vec![of_4k(&tlb.second, &sizes), bank(&tlb.second_1g, &[30])];
        second.extend(tlb.second_2m.as_ref().map(|param| bank(param, &[21])));
        let holds_1g = tlb.data_shared.value || tlb.data_1g.value.entries > 0;
        TlbConfig {
            fetch,
            load,
            store,
            second,
            largest: if holds_1g { 30 } else { 21 },
            first_smashes: tlb.first_largest.is_some(),
            second_smashes: tlb.second_smashes.as_ref().is_some_and(|smashes| smashes.value),
        }
    }

    /// log2 of how many neighbouring pages one entry may join.
    fn joins(&self) -> u8 {
        self.tlb.joins.as_ref().map_or(0, |joins| joins.value.max(1).ilog2() as u8)
    }

    /// The caches of intermediate entries, for the software MMU.
    pub fn walker_config(&self) -> WalkerConfig {
        let WalkCaches {
            pde,
            pdpte,
            pml4e,
            nested_tlb,
            nested_tlb_sizes,
            nested_tlb_final,
            second_stage,
            page_walk,
            page_walk_nested,
            reads_skip_l1: _,
        } = &self.walk_caches;
        let levels = [pde, pdpte, pml4e].map(|param| param.value.geometry());
        let cache = WalkCacheConfig::by_level([levels[0], levels[1], levels[2], Geometry::NONE]);
        let sizes = nested_tlb_sizes
            .as_ref()
            .map_or(vec![12], |sizes| sizes.value.iter().map(|size| size.shift()).collect());
        let kept = second_stage.as_ref().is_none_or(|kept| kept.value);
        WalkerConfig {
            stage1: cache,
            stage2: if kept { cache } else { WalkCacheConfig::NONE },
            nested_tlb: BankConfig::new(nested_tlb.value.geometry(), &sizes),
            nested_tlb_holds_final: nested_tlb_final.as_ref().is_some_and(|serves| serves.value),
            page_walk: page_walk.as_ref().map_or(PageWalkConfig::NONE, |param| PageWalkConfig {
                geometry: param.value.geometry(),
                nested: page_walk_nested.as_ref().is_none_or(|kept| kept.value),
            }),
            coalesces: self.joins(),
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
                nested_tlb_sizes: None,
                nested_tlb_final: None,
                second_stage: None,
                page_walk: Some(entries(24)),
                page_walk_nested: Some(of(design != Design::OneD)),
                reads_skip_l1: self.walk_caches.reads_skip_l1.clone(),
            },
            ..self.clone()
        }
    }
}
