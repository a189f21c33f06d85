//! Values that no processor has.

use slat_mmu::array::Geometry;

use super::{CacheSize, PresetError, Processor, Tlbs, Virtualization, WalkCaches};

/// The largest data cache: 1 GiB.
const MOST_KIB: u32 = 1 << 20;

impl Processor {
    /// `text` is what was read, for the lines of errors.
    pub(super) fn check(&self, file: &str, text: &str) -> Result<(), PresetError> {
        let wrong = |field, what| PresetError::value(file, text, field, what);
        let Tlbs { fetch_4k, fetch_2m, data_4k, data_2m, data_1g, second, second_1g, .. } =
            &self.tlb;
        let WalkCaches { pde, pdpte, pml4e, nested_tlb, .. } = &self.walk_caches;
        let arrays = [
            ("tlb.fetch_4k", fetch_4k),
            ("tlb.fetch_2m", fetch_2m),
            ("tlb.data_4k", data_4k),
            ("tlb.data_2m", data_2m),
            ("tlb.data_1g", data_1g),
            ("tlb.second", second),
            ("tlb.second_1g", second_1g),
            ("walk_caches.pde", pde),
            ("walk_caches.pdpte", pdpte),
            ("walk_caches.pml4e", pml4e),
            ("walk_caches.nested_tlb", nested_tlb),
        ];
        let own_2m = self.tlb.second_2m.as_ref().map(|param| ("tlb.second_2m", param));
        if own_2m.is_some() && self.tlb.second_holds_2m.value {
            return Err(wrong(
                "tlb.second_2m",
                "2 MiB pages have an array of their own, so second_holds_2m must be false"
                    .to_owned(),
            ));
        }
        let holds_1g = self.tlb.second_holds_1g.as_ref().is_some_and(|holds| holds.value);
        if holds_1g && second_1g.value.entries > 0 {
            return Err(wrong(
                "tlb.second_1g",
                "1 GiB pages are in the array `second` (second_holds_1g), so that they can have none \
                 of their own"
                    .to_owned(),
            ));
        }
        for (field, param) in [("tlb.data_2m", data_2m), ("tlb.data_1g", data_1g)] {
            if self.tlb.data_shared.value && param.value.entries > 0 {
                return Err(wrong(
                    field,
                    "all sizes are in data_4k (data_shared), so that this one can have no array of its own"
                        .to_owned(),
                ));
            }
        }
        let first_1g = self.tlb.data_shared.value || data_1g.value.entries > 0;
        if !first_1g && (holds_1g || second_1g.value.entries > 0) {
            return Err(wrong(
                if holds_1g { "tlb.second_holds_1g" } else { "tlb.second_1g" },
                "the first level has no place for 1 GiB pages (data_1g is empty), so that they are kept in \
                 pieces of 2 MiB and none reaches the second"
                    .to_owned(),
            ));
        }
        if let Some(joins) = &self.tlb.joins
            && ![2, 4, 8].contains(&joins.value)
        {
            return Err(wrong(
                "tlb.joins",
                format!("an entry joins 2, 4 or 8 pages, not {}", joins.value),
            ));
        }
        let apart = !self.tlb.data_shared.value || fetch_2m.value.entries > 0;
        if self.tlb.first_largest.is_some() && apart {
            return Err(wrong(
                "tlb.first_largest",
                "pieces are kept in arrays of all sizes: data_shared = true and an empty fetch_2m \
                 are due"
                    .to_owned(),
            ));
        }
        if let Some(sizes) = &self.walk_caches.nested_tlb_sizes
            && (sizes.value.is_empty() || !sizes.value.is_sorted_by(|one, next| one < next))
        {
            return Err(wrong(
                "walk_caches.nested_tlb_sizes",
                "some of 4K, 2M and 1G are due, in this order".to_owned(),
            ));
        }
        let store = self.tlb.store.as_ref().map(|param| ("tlb.store", param));
        let page_walk = self.walk_caches.page_walk.as_ref();
        let page_walk = page_walk.map(|param| ("walk_caches.page_walk", param));
        for (field, param) in arrays.into_iter().chain(own_2m).chain(store).chain(page_walk) {
            if param.value.entries > 1 << 20 {
                return Err(wrong(field, format!("{} entries are no TLB", param.value.entries)));
            }
            param.value.geometry().check().map_err(|bad| wrong(field, bad.to_string()))?;
        }
        let caches = &self.caches;
        for (field, param) in
            [("caches.l1", &caches.l1), ("caches.l2", &caches.l2), ("caches.l3", &caches.l3)]
        {
            let CacheSize { kib, ways, .. } = param.value;
            if kib == 0 || kib > MOST_KIB {
                return Err(wrong(field, format!("{kib} KiB are not in 1 to {MOST_KIB}")));
            }
            Geometry::lru(kib * 16, ways)
                .check()
                .map_err(|bad| wrong(field, format!("as lines of 64 bytes, {bad}")))?;
        }
        if let Some(Virtualization { physical_bits, .. }) = &self.virtualization
            && !(32..=52).contains(&physical_bits.value)
        {
            return Err(wrong(
                "virtualization.physical_bits",
                format!("{} is not in 32..=52", physical_bits.value),
            ));
        }
        let cycles = &self.cycles;
        for (field, value, low, high) in [
            ("cycles.base_cpi", cycles.base_cpi.value, 0.05, 100.0),
            ("cycles.exposed", cycles.exposed.value, 0.01, 1.0),
            ("cycles.walkers", f64::from(cycles.walkers.value), 1.0, 64.0),
            ("cycles.frequency_ghz", cycles.frequency_ghz.value, 0.01, 20.0),
        ] {
            if !(low..=high).contains(&value) {
                return Err(wrong(field, format!("{value} is not in {low} to {high}")));
            }
        }
        Ok(())
    }
}
