//! Processor presets: what a processor has and what its events cost, one TOML file each.
//!
//! Every field has a value, a source and a confidence. A cost that nobody has published is marked
//! `assumed`, and widens the range of every result that depends on it.

mod bundled;
mod check;
mod errors;
mod mmu;

use serde::{Deserialize, Serialize};

pub use self::errors::PresetError;
pub(crate) use self::errors::{from_toml, unknown};

/// How well a value is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Confidence {
    /// It was counted, one by one: there is nothing to be off. Not of a preset's values.
    #[serde(skip_deserializing)]
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

    /// log2 of its bytes.
    pub const fn shift(self) -> u8 {
        12 + 9 * self.level()
    }
}

/// The largest page that a first-level TLB keeps whole.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum KeptSize {
    /// 4 KiB.
    #[serde(rename = "4K")]
    K4,
    /// 64 KiB.
    #[serde(rename = "64K")]
    K64,
    /// 1 MiB.
    #[serde(rename = "1M")]
    M1,
    /// 2 MiB.
    #[serde(rename = "2M")]
    M2,
    /// 512 MiB.
    #[serde(rename = "512M")]
    M512,
}

impl KeptSize {
    /// log2 of its bytes.
    pub const fn shift(self) -> u8 {
        match self {
            KeptSize::K4 => 12,
            KeptSize::K64 => 16,
            KeptSize::M1 => 20,
            KeptSize::M2 => 21,
            KeptSize::M512 => 29,
        }
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
    /// The exception level EL2 of Armv8.
    Arm,
    /// Hyp mode of ARMv7's virtualization extensions: guests and Stage-2 have AArch32's long
    /// descriptors.
    Armv7,
}

impl Extension {
    /// Whether it is one of Arm's.
    pub fn is_arm(self) -> bool {
        matches!(self, Extension::Arm | Extension::Armv7)
    }
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
    /// First level, stores, all sizes, where they have an array of their own: the `data` arrays are those
    /// of loads then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<Param<Entries>>,
    /// The largest page that the first level keeps whole: of a larger one it keeps the piece of this size
    /// that was used; left out, all are kept whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_largest: Option<Param<KeptSize>>,
    /// How many neighbouring 4 KiB pages whose frames are in a row one entry may join: 2, 4 or 8, in both
    /// levels; left out, none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joins: Option<Param<u32>>,
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
    /// Whether the array `second` holds 1 GiB pages as well, and `second_1g` is empty; left out, it does
    /// not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub second_holds_1g: Option<Param<bool>>,
    /// Whether the second level keeps the piece that was used of a page for whose size it has no array;
    /// left out, such a page passes it by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub second_smashes: Option<Param<bool>>,
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
    /// Whole second-stage translations (a nested TLB, Arm's IPA cache).
    pub nested_tlb: Param<Entries>,
    /// The pages of the second stage that it keeps; left out, 4 KiB, of larger ones the piece that was
    /// used. Pages smaller than all of these pass it by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nested_tlb_sizes: Option<Param<Vec<PageSize>>>,
    /// Whether it also serves the final address of a walk; left out, addresses of tables alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nested_tlb_final: Option<Param<bool>>,
    /// Whether the second stage's own intermediate entries are kept too; left out, they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub second_stage: Option<Param<bool>>,
    /// Table entries of all levels by physical address (AMD's page walk cache); left out, none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page_walk: Option<Param<Entries>>,
    /// Whether those of nested tables are kept there too; left out, they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page_walk_nested: Option<Param<bool>>,
    /// Whether table entries are read from the second level of the data caches on, and the first is
    /// neither asked nor filled; left out, they pass all levels as data does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reads_skip_l1: Option<Param<bool>>,
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
    /// The hypervisor's work to run another virtual machine on the core instead.
    pub handle_switch: Param<u32>,
    /// A switch to another process, where the machines that share cores are not virtual; left out, as
    /// `handle_switch`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process_switch: Option<Param<u32>>,
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

impl Processor {
    /// Reads a preset; `file` is its name for errors.
    ///
    /// # Errors
    /// Names the line and the field.
    pub fn parse(file: &str, text: &str) -> Result<Processor, PresetError> {
        let processor: Processor = from_toml(file, text)?;
        processor.check(file, text)?;
        Ok(processor)
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
    fn a_switch_of_machines_on_arm_takes_what_was_measured_of_it() {
        let mut seen = 0;
        for name in Processor::names() {
            let processor = Processor::bundled(name).unwrap();
            if processor.second_stage.value == SecondStage::Arm {
                // 10,387 cycles, the exit of the preset among them.
                let cycles = &processor.cycles;
                let all = cycles.exit.value + cycles.handle_switch.value;
                assert!(all.abs_diff(10_387) < 100, "{name}: {all}");
                seen += 1;
            }
        }
        assert_eq!(seen, 8);
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
    fn what_a_preset_says_of_shapes_reaches_the_arrays() {
        let of = |name: &str| Processor::bundled(name).unwrap();
        // Stores have an array, and the first level keeps pieces of 4 KiB; the second all sizes.
        let a15 = of("cortex-a15").tlb_config();
        assert_eq!(a15.load[0].shifts, [12, 0, 0, 0]);
        assert_eq!(a15.store.unwrap()[0].geometry.entries, 32);
        assert!(a15.first_smashes && a15.second[0].shifts == [12, 21, 30, 0]);
        assert_eq!(of("cortex-a57").tlb_config().load[0].shifts, [12, 20, 0, 0]);
        // Four neighbours make 16 KiB, in both levels.
        let zen = of("zen-4");
        assert_eq!(zen.walker_config().coalesces, 2);
        assert_eq!(zen.tlb_config().load[0].shifts, [12, 14, 21, 30]);
        assert_eq!(zen.tlb_config().second[0].shifts, [12, 14, 21, 0]);
        assert!(of("zen-2").tlb_config().second_smashes);
        // Second-stage blocks, for tables and data.
        let a76 = of("cortex-a76").walker_config();
        assert_eq!(a76.nested_tlb.shifts, [21, 30, 0, 0]);
        assert!(a76.nested_tlb_holds_final && !zen.walker_config().nested_tlb_holds_final);
    }

    #[test]
    fn shapes_that_contradict_each_other_are_refused() {
        let zen = include_str!("../presets/zen-4.toml");
        let zen_2 = include_str!("../presets/zen-2.toml");
        let param = |name, value| {
            format!("{name} = {{ value = {value}, source = \"s\", confidence = \"assumed\" }}\n")
        };
        for (text, table, name, value, field) in [
            (SKYLAKE, "tlb", "joins", "3", "tlb.joins"),
            (zen, "tlb", "second_holds_1g", "true", "tlb.second_1g"),
            (SKYLAKE, "tlb", "first_largest", "\"4K\"", "tlb.first_largest"),
            (SKYLAKE, "walk_caches", "nested_tlb_sizes", "[\"2M\", \"4K\"]", "nested_tlb_sizes"),
            (SKYLAKE, "walk_caches", "nested_tlb_sizes", "[]", "nested_tlb_sizes"),
            (zen_2, "tlb", "store", "{ entries = 9, ways = 2 }", "tlb.store"),
            (SKYLAKE, "tlb", "first_largest", "\"3M\"", "first_largest"),
        ] {
            let head = format!("[{table}]\n");
            let text = text.replacen(&head, &format!("{head}{}", param(name, value)), 1);
            let error = Processor::parse("mine.toml", &text).unwrap_err().to_string();
            assert!(error.contains("line ") && error.contains(field), "{name}: {error}");
        }
        let whole =
            zen.replacen("[tlb]\n", &format!("[tlb]\n{}", param("second_smashes", "true")), 1);
        Processor::parse("mine.toml", &whole).unwrap();
    }

    #[test]
    fn arrays_that_nothing_would_reach_are_refused() {
        let with = |from: &str, to: &str| {
            assert!(SKYLAKE.contains(from), "{from}");
            Processor::parse("mine.toml", &SKYLAKE.replacen(from, to, 1)).unwrap_err().to_string()
        };
        let line = |start: &str| SKYLAKE.lines().find(|line| line.starts_with(start)).unwrap();
        let shared = line("data_shared");
        let error = with(shared, &shared.replace("value = false", "value = true"));
        assert!(error.contains("tlb.data_2m") && error.contains("line "), "{error}");
        let own = line("data_1g");
        let none = "data_1g = { value = { entries = 0, ways = 1 }, source = \"none\", confidence = \"assumed\" }";
        let error = with(own, none);
        assert!(error.contains("tlb.second_1g") && error.contains("line "), "{error}");
    }

    #[test]
    fn intels_of_2021_on_have_one_second_level_of_2048_whatever_the_sizes() {
        for name in ["ice-lake", "sapphire-rapids"] {
            let config = Processor::bundled(name).unwrap().tlb_config();
            let all: u32 = config.second.iter().map(|bank| bank.geometry.entries).sum();
            assert_eq!(all, 2048, "{name}");
            // 4K pages alone may have all of it.
            assert_eq!(config.second[0].geometry.entries, 2048, "{name}");
            assert_eq!(config.second[0].shifts, [12, 21, 30, 0], "{name}");
        }
    }

    #[test]
    fn what_is_taken_as_another_cores_is_the_same() {
        let [a57, a72] = ["cortex-a57", "cortex-a72"].map(|name| Processor::bundled(name).unwrap());
        let first = |processor: &Processor| processor.tlb_config().load[0].shifts;
        assert_eq!(first(&a72), first(&a57));
        // The same article's two latencies, read alike.
        for (name, all) in [("sandy-bridge", 11), ("haswell", 12)] {
            let processor = Processor::bundled(name).unwrap();
            assert_eq!(
                processor.cycles.second_tlb_hit.value + processor.caches.l1.value.cycles,
                all
            );
        }
    }

    #[test]
    fn a_wrong_field_is_named_with_its_line() {
        let text = SKYLAKE.replace("base_cpi", "base_cpj");
        let error = Processor::parse("mine.toml", &text).unwrap_err().to_string();
        assert!(error.contains("mine.toml") && error.contains("base_cpj"), "{error}");
        assert!(error.contains("line"), "{error}");
    }

    #[test]
    fn a_third_level_that_is_not_refused_can_be_built() {
        let with = |kib: u32| {
            let l3 = format!("kib = {kib}, ways = 16");
            Processor::parse("mine.toml", &SKYLAKE.replacen("kib = 1408, ways = 11", &l3, 1))
        };
        // 96 MiB are those of a stacked third level.
        let processor = with(96 << 10).unwrap();
        crate::memory::Physical::new(&processor.caches, false, 12, 0, 1, 0..1 << 30).unwrap();
        let most = with(1 << 20).unwrap().caches.l3.value.kib;
        assert_eq!(most * 16, slat_mmu::array::MAX_ENTRIES);
    }

    #[test]
    fn an_impossible_array_is_refused() {
        let text = SKYLAKE.replace("entries = 1536, ways = 12", "entries = 1536, ways = 11");
        let error = Processor::parse("mine.toml", &text).unwrap_err().to_string();
        let line = 1 + SKYLAKE.lines().position(|line| line.starts_with("second =")).unwrap();
        assert!(error.contains(&format!("mine.toml: line {line}: tlb.second:")), "{error}");
    }

    #[test]
    fn every_wrong_value_is_named_with_file_line_and_field() {
        let of =
            |start: &str| 1 + SKYLAKE.lines().position(|line| line.starts_with(start)).unwrap();
        for (field, line, from, to) in [
            ("caches.l2", of("l2 ="), "kib = 1024, ways = 16", "kib = 1024, ways = 0"),
            ("caches.l3", of("l3 ="), "kib = 1408, ways = 11", "kib = 1048592, ways = 16"),
            (
                "cycles.exposed",
                of("exposed ="),
                "exposed = { value = 0.6",
                "exposed = { value = nan",
            ),
            ("cycles.walkers", of("walkers ="), "walkers = { value = 2", "walkers = { value = 0"),
            ("value", of("memory ="), "memory = { value = 200", "memory = { value = -1"),
            (
                "confidence",
                of("exit ="),
                "exit = { value = 1200",
                "exit = { confidense = 1, value = 1",
            ),
        ] {
            assert!(SKYLAKE.contains(from), "{from}");
            let error = Processor::parse("mine.toml", &SKYLAKE.replacen(from, to, 1)).unwrap_err();
            let error = error.to_string();
            assert!(
                error.contains("mine.toml") && error.contains(&format!("line {line}")),
                "{error}"
            );
            assert!(error.contains(field) || error.contains("confidense"), "{field}: {error}");
        }
        // Nothing of a processor is counted one by one.
        let text = SKYLAKE.replacen("\"measured\"", "\"counted\"", 1).replacen(
            "confidence = \"documented\"",
            "confidence = \"counted\"",
            1,
        );
        assert!(Processor::parse("mine.toml", &text).is_err());
    }
}
