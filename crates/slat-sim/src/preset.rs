//! Processor presets: what a processor has and what its events cost, one TOML file each.
//!
//! Every field has a value, a source and a confidence. A cost that nobody has published is marked
//! `assumed`, and widens the range of every result that depends on it.

use serde::{Deserialize, Serialize};
use slat_mmu::array::Geometry;
use slat_mmu::tlb::{BankConfig, TlbConfig};
use slat_mmu::walker::{PageWalkConfig, WalkCacheConfig, WalkerConfig};

/// How well a value is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Confidence {
    /// It was counted, one by one: there is nothing to be off.
    Counted,
    /// Somebody measured it and said how.
    Measured,
    /// The vendor or a standard text states it.
    Documented,
    /// Chosen for want of a source.
    Assumed,
}

impl Confidence {
    /// By how much a value may be off, as the factor by which it is divided and multiplied for the
    /// low and the high end: the project's own convention, stated wherever a range is printed.
    pub const fn factor(self) -> f64 {
        match self {
            Confidence::Counted => 1.0,
            Confidence::Measured => 1.1,
            Confidence::Documented => 1.2,
            Confidence::Assumed => 1.5,
        }
    }
}

/// A value, where it comes from, and how well it is known.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Param<T> {
    /// The value.
    pub value: T,
    /// Where it comes from.
    pub source: String,
    /// How well it is known.
    pub confidence: Confidence,
}

/// An array of entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entries {
    /// In all; 0 for none.
    pub entries: u32,
    /// A set.
    pub ways: u32,
}

impl Entries {
    fn geometry(self) -> Geometry {
        if self.entries == 0 { Geometry::NONE } else { Geometry::lru(self.entries, self.ways) }
    }
}

/// A data cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheSize {
    /// Size in KiB.
    pub kib: u32,
    /// Ways of a set.
    pub ways: u32,
    /// Cycles from a request to its data.
    pub cycles: u32,
}

/// Which second stage the processor has, or would have had.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SecondStage {
    /// None: hypervisors need shadow tables.
    None,
    /// Intel EPT.
    Ept,
    /// AMD NPT (RVI).
    Npt,
    /// Arm Stage-2.
    Arm,
}

/// A page size of a second stage, by the 4 KiB granule.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum PageSize {
    /// 4 KiB.
    #[serde(rename = "4K")]
    Small,
    /// 2 MiB.
    #[serde(rename = "2M")]
    Large,
    /// 1 GiB.
    #[serde(rename = "1G")]
    Huge,
}

impl PageSize {
    /// The level at which its leaves lie: 0 to 2.
    pub const fn level(self) -> u8 {
        self as u8
    }
}

/// The extension by which a processor runs virtual machines.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Extension {
    /// Intel VT-x.
    Vmx,
    /// AMD-V.
    Svm,
    /// The exception level EL2 (or Hyp mode) of Arm.
    Arm,
}

/// What a processor can do for virtual machines.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Virtualization {
    /// The extension.
    pub extension: Param<Extension>,
    /// Whether a guest may run without paging, in real mode as well. On Intel a control (Intel SDM
    /// 3C 25.6.2, "unrestricted guest"); AMD and Arm run such guests always.
    pub unrestricted_guest: Param<bool>,
    /// The largest page of the second stage; `4K` where there is none.
    pub largest_page: Param<PageSize>,
    /// Width of a system physical address.
    pub physical_bits: Param<u8>,
}

/// A processor.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Processor {
    /// Its name, such as `Skylake-SP`.
    pub name: String,
    /// The second stage it has.
    pub second_stage: Param<SecondStage>,
    /// Whether its second stage sets accessed and dirty flags.
    pub second_stage_dirty: Param<bool>,
    /// Whether its TLB is tagged by virtual machine (VPID, ASID, VMID).
    pub tagged_tlb: Param<bool>,
    /// What else hypervisors ask of it; a processor made up for a comparison may leave it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtualization: Option<Virtualization>,
    /// The TLBs.
    pub tlb: Tlbs,
    /// The caches of intermediate entries.
    pub walk_caches: WalkCaches,
    /// The data caches, which also hold table entries.
    pub caches: Caches,
    /// Cycles of events.
    pub cycles: Cycles,
}

/// The TLBs of a processor, by page size.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tlbs {
    /// First level, fetches, 4 KiB pages (and those of other sizes where `fetch_2m` is empty).
    pub fetch_4k: Param<Entries>,
    /// First level, fetches, 2 MiB pages.
    pub fetch_2m: Param<Entries>,
    /// First level, data, 4 KiB pages.
    pub data_4k: Param<Entries>,
    /// First level, data, 2 MiB pages.
    pub data_2m: Param<Entries>,
    /// First level, data, 1 GiB pages.
    pub data_1g: Param<Entries>,
    /// The first level's data array holds all sizes in `data_4k`.
    pub data_shared: Param<bool>,
    /// Second level, 4 KiB and, where `second_holds_2m`, 2 MiB pages.
    pub second: Param<Entries>,
    /// Whether the second level holds 2 MiB pages.
    pub second_holds_2m: Param<bool>,
    /// Second level, 2 MiB pages, where they have an array of their own; `second_holds_2m` is
    /// false then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub second_2m: Option<Param<Entries>>,
    /// Second level, 1 GiB pages.
    pub second_1g: Param<Entries>,
}

/// The caches of intermediate entries.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WalkCaches {
    /// Entries that name level-0 tables (PDEs).
    pub pde: Param<Entries>,
    /// Entries that name level-1 tables (PDPTEs).
    pub pdpte: Param<Entries>,
    /// Entries that name level-2 tables (PML4Es).
    pub pml4e: Param<Entries>,
    /// Whole second-stage translations of table addresses.
    pub nested_tlb: Param<Entries>,
    /// Whether the second stage's own intermediate entries are kept too; left out, they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub second_stage: Option<Param<bool>>,
    /// Table entries of all levels by physical address (AMD's page walk cache); left out, none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page_walk: Option<Param<Entries>>,
    /// Whether those of nested tables are kept there too; left out, they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page_walk_nested: Option<Param<bool>>,
}

/// The data caches.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Caches {
    /// First level.
    pub l1: Param<CacheSize>,
    /// Second level.
    pub l2: Param<CacheSize>,
    /// Last level, one core's share.
    pub l3: Param<CacheSize>,
    /// Cycles to memory.
    pub memory: Param<u32>,
}

/// Cycles of events.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cycles {
    /// A first-level miss that the second-level TLB serves, beyond a hit.
    pub second_tlb_hit: Param<u32>,
    /// Round trip of a VM exit and entry, without the hypervisor's work.
    pub exit: Param<u32>,
    /// The hypervisor's work for a second-stage violation (a page's first touch).
    pub handle_violation: Param<u32>,
    /// The hypervisor's work to emulate a guest's store to a shadowed table.
    pub handle_table_write: Param<u32>,
    /// The hypervisor's work to fill a shadow entry, or to tell that the fault is the guest's.
    pub handle_shadow_fault: Param<u32>,
    /// The hypervisor's work at a guest's CR3 load.
    pub handle_cr3: Param<u32>,
    /// The hypervisor's work at INVLPG.
    pub handle_invlpg: Param<u32>,
    /// The hypervisor's work for a guest's access to a device.
    pub handle_io: Param<u32>,
    /// Cycles an instruction takes where translation costs nothing and the first cache level holds
    /// all data.
    pub base_cpi: Param<f64>,
    /// The share of a wait for data, or for a walk, that is not hidden behind other work of a program
    /// in general.
    pub exposed: Param<f64>,
    /// Page walks that the core does at a time.
    pub walkers: Param<u32>,
    /// The clock of a common part, in GHz: turns waits for devices into cycles.
    pub frequency_ghz: Param<f64>,
}

/// A preset that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PresetError {
    /// Not this file's format; the text names line and field.
    #[error("{file}: {error}")]
    Toml {
        /// The file.
        file: String,
        /// What is wrong with it.
        error: Box<toml::de::Error>,
    },
    /// A value that no processor has.
    #[error("{file}: {field}: {text}")]
    Value {
        /// The file.
        file: String,
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        text: String,
    },
    /// No preset of this name.
    #[error("no {kind} preset `{name}`; there are {choices}, or give a TOML file")]
    Unknown {
        /// Of what: `processor`, `hypervisor`.
        kind: &'static str,
        /// The name that was asked for.
        name: String,
        /// All names.
        choices: String,
    },
}

/// Reads a preset's text, before its values are checked.
pub(crate) fn from_toml<T: serde::de::DeserializeOwned>(
    file: &str,
    text: &str,
) -> Result<T, PresetError> {
    toml::from_str(text)
        .map_err(|error| PresetError::Toml { file: file.to_owned(), error: Box::new(error) })
}

/// No preset of this name, but these.
pub(crate) fn unknown(
    kind: &'static str,
    name: &str,
    names: impl Iterator<Item = &'static str>,
) -> PresetError {
    let choices = names.collect::<Vec<_>>().join(", ");
    PresetError::Unknown { kind, name: name.to_owned(), choices }
}

/// The bundled presets: file name and text, by maker and age.
const BUNDLED: &[(&str, &str)] = &[
    ("vt-x-2005", include_str!("../presets/vt-x-2005.toml")),
    ("core-2", include_str!("../presets/core-2.toml")),
    ("nehalem", include_str!("../presets/nehalem.toml")),
    ("westmere", include_str!("../presets/westmere.toml")),
    ("sandy-bridge", include_str!("../presets/sandy-bridge.toml")),
    ("haswell", include_str!("../presets/haswell.toml")),
    ("skylake-sp", include_str!("../presets/skylake-sp.toml")),
    ("ice-lake", include_str!("../presets/ice-lake.toml")),
    ("sapphire-rapids", include_str!("../presets/sapphire-rapids.toml")),
    ("amd-v-2006", include_str!("../presets/amd-v-2006.toml")),
    ("barcelona", include_str!("../presets/barcelona.toml")),
    ("bulldozer", include_str!("../presets/bulldozer.toml")),
    ("zen-1", include_str!("../presets/zen-1.toml")),
    ("zen-2", include_str!("../presets/zen-2.toml")),
    ("zen-3", include_str!("../presets/zen-3.toml")),
    ("zen-4", include_str!("../presets/zen-4.toml")),
    ("cortex-a15", include_str!("../presets/cortex-a15.toml")),
    ("cortex-a57", include_str!("../presets/cortex-a57.toml")),
    ("cortex-a72", include_str!("../presets/cortex-a72.toml")),
    ("cortex-a76", include_str!("../presets/cortex-a76.toml")),
    ("neoverse-n1", include_str!("../presets/neoverse-n1.toml")),
    ("neoverse-n2", include_str!("../presets/neoverse-n2.toml")),
    ("neoverse-v1", include_str!("../presets/neoverse-v1.toml")),
    ("neoverse-v2", include_str!("../presets/neoverse-v2.toml")),
];

impl Processor {
    /// The bundled preset of this name (as its file is called).
    ///
    /// # Errors
    /// Names the choices.
    pub fn bundled(name: &str) -> Result<Processor, PresetError> {
        let wanted = name.to_ascii_lowercase();
        match BUNDLED.iter().find(|(key, _)| *key == wanted) {
            Some((key, text)) => Processor::parse(key, text),
            None => Err(unknown("processor", name, Processor::names())),
        }
    }

    /// The names of all bundled presets.
    pub fn names() -> impl Iterator<Item = &'static str> {
        BUNDLED.iter().map(|(name, _)| *name)
    }

    /// Reads a preset; `file` is its name for errors.
    ///
    /// # Errors
    /// Names the line and the field.
    pub fn parse(file: &str, text: &str) -> Result<Processor, PresetError> {
        let processor: Processor = from_toml(file, text)?;
        processor.check(file)?;
        Ok(processor)
    }

    fn check(&self, file: &str) -> Result<(), PresetError> {
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
            return Err(PresetError::Value {
                file: file.to_owned(),
                field: "tlb.second_2m",
                text: "2 MiB pages have an array of their own, so second_holds_2m must be false"
                    .to_owned(),
            });
        }
        let page_walk = self.walk_caches.page_walk.as_ref();
        let page_walk = page_walk.map(|param| ("walk_caches.page_walk", param));
        for (field, param) in arrays.into_iter().chain(own_2m).chain(page_walk) {
            let value = |text: String| PresetError::Value { file: file.to_owned(), field, text };
            if param.value.entries > 1 << 20 {
                return Err(value(format!("{} entries are no TLB", param.value.entries)));
            }
            param.value.geometry().check().map_err(|bad| value(bad.to_string()))?;
        }
        let caches = &self.caches;
        for (field, param) in
            [("caches.l1", &caches.l1), ("caches.l2", &caches.l2), ("caches.l3", &caches.l3)]
        {
            let CacheSize { kib, ways, .. } = param.value;
            let lines = u64::from(kib) * 16;
            if ways == 0 || kib == 0 || kib > 1 << 20 || !lines.is_multiple_of(u64::from(ways)) {
                return Err(PresetError::Value {
                    file: file.to_owned(),
                    field,
                    text: format!("{kib} KiB do not divide into sets of {ways} lines of 64 bytes"),
                });
            }
        }
        if let Some(Virtualization { physical_bits, .. }) = &self.virtualization
            && !(32..=52).contains(&physical_bits.value)
        {
            return Err(PresetError::Value {
                file: file.to_owned(),
                field: "virtualization.physical_bits",
                text: format!("{} is not in 32..=52", physical_bits.value),
            });
        }
        let cycles = &self.cycles;
        for (field, value, low, high) in [
            ("cycles.base_cpi", cycles.base_cpi.value, 0.05, 100.0),
            ("cycles.exposed", cycles.exposed.value, 0.01, 1.0),
            ("cycles.walkers", f64::from(cycles.walkers.value), 1.0, 64.0),
            ("cycles.frequency_ghz", cycles.frequency_ghz.value, 0.01, 20.0),
        ] {
            if !(low..=high).contains(&value) {
                return Err(PresetError::Value {
                    file: file.to_owned(),
                    field,
                    text: format!("{value} is not in {low} to {high}"),
                });
            }
        }
        Ok(())
    }

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
}

#[cfg(test)]
mod tests {
    use super::*;

    const SKYLAKE: &str = include_str!("../presets/skylake-sp.toml");

    #[test]
    fn every_bundled_preset_is_valid_and_named_as_its_file() {
        for name in Processor::names() {
            let processor = Processor::bundled(name).unwrap();
            assert_eq!(processor.name.to_ascii_lowercase().replace(' ', "-"), name);
        }
    }

    #[test]
    fn every_bundled_preset_builds_tlbs_and_walk_caches() {
        for name in Processor::names() {
            let processor = Processor::bundled(name).unwrap();
            slat_mmu::tlb::Tlb::new(&processor.tlb_config()).unwrap();
            slat_mmu::walker::Caches::new(&processor.walker_config()).unwrap();
        }
    }

    #[test]
    fn second_level_2m_pages_have_one_place() {
        let line = "second_2m = { value = { entries = 128, ways = 2 }, source = \"test\", \
                    confidence = \"assumed\" }\nsecond_1g";
        let text = SKYLAKE.replace("second_1g", line);
        let error = Processor::parse("mine.toml", &text).unwrap_err().to_string();
        assert!(error.contains("tlb.second_2m"), "{error}");
    }

    #[test]
    fn a_wrong_field_is_named_with_its_line() {
        let text = SKYLAKE.replace("base_cpi", "base_cpj");
        let error = Processor::parse("mine.toml", &text).unwrap_err().to_string();
        assert!(error.contains("mine.toml") && error.contains("base_cpj"), "{error}");
        assert!(error.contains("line"), "{error}");
    }

    #[test]
    fn an_impossible_array_is_refused() {
        let text = SKYLAKE.replace("entries = 1536, ways = 12", "entries = 1536, ways = 11");
        let error = Processor::parse("mine.toml", &text).unwrap_err().to_string();
        assert!(error.contains("tlb.second"), "{error}");
    }
}
