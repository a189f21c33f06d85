//! Hypervisor presets: what each needs and does, one TOML file each, every fact with its source.
//!
//! A preset is one version. Which products need SLAT today is [`slat check`]'s business; the field
//! `slat.required_since` says the same of a product's history, and a test of the command compares
//! the two.
//!
//! [`slat check`]: https://docs.rs/slat-check

mod refusal;

use serde::{Deserialize, Serialize};
use slat_mmu::shadow::Discipline;

use crate::preset::{
    Cycles, Extension, PageSize, Param, PresetError, Processor, SecondStage, from_toml, unknown,
};

pub use self::refusal::Refusal;

/// How a hypervisor shadows page tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shadowing {
    /// It cannot.
    None,
    /// Every store to a guest table exits.
    TrapAll,
    /// Tables of level 0 go out of sync, and are compared at CR3 loads and INVLPG.
    OutOfSync,
}

/// A version of a hypervisor.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hypervisor {
    /// What users call it, such as `KVM of Linux 2.6.26`.
    pub name: String,
    /// The product, as `slat check` names it.
    pub product: String,
    /// Year and month.
    pub released: Param<String>,
    /// Its use of SLAT.
    pub slat: Slat,
    /// What else it does with memory.
    pub paging: Paging,
    /// Cycles of its exit handlers, the exits themselves excluded.
    pub cycles: Handlers,
}

/// A hypervisor's use of SLAT.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slat {
    /// Whether this version does not run without.
    pub requires: Param<bool>,
    /// From which version on the product does not run without on x86, or `never`.
    pub required_since: Param<String>,
    /// Whether this version uses EPT.
    pub ept: Param<bool>,
    /// The first that did.
    pub ept_since: Param<String>,
    /// Whether this version uses RVI, which is NPT.
    pub rvi: Param<bool>,
    /// The first that did.
    pub rvi_since: Param<String>,
    /// Whether this version uses Arm's Stage-2.
    pub arm: Param<bool>,
    /// The first that did.
    pub arm_since: Param<String>,
}

/// What a hypervisor does with memory.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Paging {
    /// Its shadow tables, for x86.
    pub shadow: Param<Shadowing>,
    /// The largest pages that it backs partitions with, where the processor has them.
    pub largest_page: Param<PageSize>,
    /// Whether it gives VPIDs on Intel.
    pub vpid: Param<bool>,
    /// Whether it gives ASIDs on AMD, VMIDs on Arm.
    pub asid: Param<bool>,
    /// Whether it uses Intel's unrestricted guest where that is.
    pub unrestricted_guest: Param<bool>,
}

/// Cycles of exit handlers.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Handlers {
    /// A second-stage violation: a page is found and mapped.
    pub handle_violation: Param<u32>,
    /// A guest's store to a shadowed table, emulated.
    pub handle_table_write: Param<u32>,
    /// A shadow entry filled, or the fault found to be the guest's.
    pub handle_shadow_fault: Param<u32>,
    /// A guest's CR3 load.
    pub handle_cr3: Param<u32>,
    /// INVLPG.
    pub handle_invlpg: Param<u32>,
    /// One instruction emulated, as of a guest in a state that the processor cannot enter.
    pub handle_emulation: Param<u32>,
}

/// How a hypervisor translates for its guests on one processor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Means {
    /// By the processor's second stage: EPT, NPT or Stage-2, never `None`.
    SecondStage(SecondStage),
    /// By shadow tables.
    Shadow(Discipline),
}

/// The bundled presets: file name and text, by age.
const BUNDLED: &[(&str, &str)] = &[
    ("xen-3.2", include_str!("../presets/hypervisors/xen-3.2.toml")),
    ("esx-3.5", include_str!("../presets/hypervisors/esx-3.5.toml")),
    ("hyper-v-2008", include_str!("../presets/hypervisors/hyper-v-2008.toml")),
    ("kvm-2.6.26", include_str!("../presets/hypervisors/kvm-2.6.26.toml")),
    ("virtualbox-2.0", include_str!("../presets/hypervisors/virtualbox-2.0.toml")),
    ("hyper-v-2008-r2", include_str!("../presets/hypervisors/hyper-v-2008-r2.toml")),
    ("parallels-5", include_str!("../presets/hypervisors/parallels-5.toml")),
    ("kvm-3.0", include_str!("../presets/hypervisors/kvm-3.0.toml")),
    ("hyper-v-windows-8", include_str!("../presets/hypervisors/hyper-v-windows-8.toml")),
    ("kvm-3.11", include_str!("../presets/hypervisors/kvm-3.11.toml")),
    ("bhyve-10.0", include_str!("../presets/hypervisors/bhyve-10.0.toml")),
    ("openbsd-5.9", include_str!("../presets/hypervisors/openbsd-5.9.toml")),
];

impl Hypervisor {
    /// The bundled preset of this name (as its file is called).
    ///
    /// # Errors
    /// Names the choices.
    pub fn bundled(name: &str) -> Result<Hypervisor, PresetError> {
        let wanted = name.to_ascii_lowercase();
        match BUNDLED.iter().find(|(key, _)| *key == wanted) {
            Some((key, text)) => Hypervisor::parse(key, text),
            None => Err(unknown("hypervisor", name, Hypervisor::names())),
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
    pub fn parse(file: &str, text: &str) -> Result<Hypervisor, PresetError> {
        let preset: Hypervisor = from_toml(file, text)?;
        if preset.slat.requires.value && preset.paging.shadow.value != Shadowing::None {
            return Err(PresetError::value(
                file,
                text,
                "paging.shadow",
                "a hypervisor that requires SLAT has no shadow tables".to_owned(),
            ));
        }
        Ok(preset)
    }

    /// How it translates for guests on this processor.
    ///
    /// # Errors
    /// Where it does not start there.
    pub fn means(&self, processor: &Processor) -> Result<Means, Refusal> {
        let names = || (self.name.clone(), processor.name.clone());
        let Some(can) = &processor.virtualization else {
            return Err(Refusal::Unstated { processor: processor.name.clone() });
        };
        let arm = can.extension.value.is_arm();
        if arm && !self.slat.arm.value {
            let (hypervisor, processor) = names();
            let since = since(&self.slat.arm_since.value, "");
            return Err(Refusal::OtherArchitecture {
                hypervisor,
                processor,
                architecture: "Arm",
                since,
            });
        }
        let second_stage = processor.second_stage.value;
        let (known, first, called) = match second_stage {
            SecondStage::None => (false, None, ""),
            SecondStage::Ept => (self.slat.ept.value, Some(&self.slat.ept_since), "EPT"),
            SecondStage::Npt => (self.slat.rvi.value, Some(&self.slat.rvi_since), "RVI (NPT)"),
            SecondStage::Arm => (self.slat.arm.value, Some(&self.slat.arm_since), "Stage-2"),
        };
        if known {
            return Ok(Means::SecondStage(second_stage));
        }
        match self.paging.shadow.value {
            Shadowing::TrapAll if !arm => return Ok(Means::Shadow(Discipline::TrapAll)),
            Shadowing::OutOfSync if !arm => return Ok(Means::Shadow(Discipline::OutOfSync)),
            _ => {}
        }
        let (hypervisor, processor) = names();
        Err(match first {
            None => Refusal::NeedsSlat {
                hypervisor,
                processor,
                names: if arm {
                    ": Stage-2 of the Virtualization Extensions"
                } else {
                    ": Intel calls it EPT, AMD RVI or nested paging"
                },
                remedy: if arm {
                    "Use a processor with the Virtualization Extensions (ARMv7ve, ARMv8)."
                } else {
                    "Use a processor that has it (Intel from Nehalem on, sold as Core i3, i5 and i7; \
                     AMD from Barcelona on), or a hypervisor that shadows page tables in software, \
                     such as KVM, Xen or VirtualBox, which is slower."
                },
            },
            Some(first) => Refusal::UnknownSlat {
                hypervisor,
                processor,
                second_stage: called,
                since: since(&first.value, "; "),
            },
        })
    }

    /// Whether guests' TLB entries are tagged on this processor, so that they survive exits.
    pub fn tags(&self, processor: &Processor) -> bool {
        let used = match processor.virtualization.as_ref().map(|can| can.extension.value) {
            Some(Extension::Vmx) => self.paging.vpid.value,
            Some(Extension::Svm | Extension::Arm | Extension::Armv7) => self.paging.asid.value,
            None => false,
        };
        used && processor.tagged_tlb.value
    }

    /// The largest pages that it backs partitions with on this processor. Shadow tables are limited
    /// by what it does alone.
    pub fn largest_page(&self, processor: &Processor) -> PageSize {
        let own = self.paging.largest_page.value;
        match (self.means(processor), &processor.virtualization) {
            (Ok(Means::SecondStage(_)), Some(can)) => own.min(can.largest_page.value),
            _ => own.min(PageSize::Large),
        }
    }

    /// How guests before paging run on this processor.
    pub fn before_paging(&self, processor: &Processor) -> BeforePaging {
        let second = matches!(self.means(processor), Ok(Means::SecondStage(_)));
        let Some(can) = &processor.virtualization else { return BeforePaging::Virtual8086 };
        match can.extension.value {
            // Arm ARM D8.2, ARMv7-A B3.2: stage 1 may be off.
            Extension::Arm | Extension::Armv7 => BeforePaging::Directly,
            // AMD APM 2 15.25.5: with nested paging CR0.PG may be clear.
            Extension::Svm if second => BeforePaging::Directly,
            Extension::Svm => BeforePaging::PagedReal,
            // The control needs EPT (Intel SDM 3C 28.2.1.1).
            Extension::Vmx
                if second
                    && can.unrestricted_guest.value
                    && self.paging.unrestricted_guest.value =>
            {
                BeforePaging::Directly
            }
            Extension::Vmx => BeforePaging::Virtual8086,
        }
    }

    /// A processor's cycles, with this hypervisor's handlers in place of the preset's own.
    #[must_use]
    pub fn cycles(&self, processor: &Cycles) -> Cycles {
        let own = self.cycles.clone();
        Cycles {
            handle_violation: own.handle_violation,
            handle_table_write: own.handle_table_write,
            handle_shadow_fault: own.handle_shadow_fault,
            handle_cr3: own.handle_cr3,
            handle_invlpg: own.handle_invlpg,
            ..processor.clone()
        }
    }
}

/// How a processor runs a guest whose paging is off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BeforePaging {
    /// As it is.
    Directly,
    /// Real mode as it is but with paging on (AMD APM 2 15.19, paged real mode), protected mode on
    /// the identity map.
    PagedReal,
    /// Real mode in virtual-8086 mode, protected mode as it is, both on the identity map.
    Virtual8086,
}

/// "it came with ...", unless it never did.
fn since(version: &str, before: &str) -> String {
    match version {
        "never" => String::new(),
        version if before.is_empty() => format!("; support came with version {version}"),
        version => format!("{before}support came with version {version}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn means(hypervisor: &str, processor: &str) -> Result<Means, Refusal> {
        let processor = Processor::bundled(processor).unwrap();
        Hypervisor::bundled(hypervisor).unwrap().means(&processor)
    }

    #[test]
    fn every_bundled_preset_is_valid() {
        for name in Hypervisor::names() {
            let preset = Hypervisor::bundled(name).unwrap();
            // Where a version does not use SLAT, it has a way without.
            assert!(
                preset.slat.ept.value
                    || preset.slat.rvi.value
                    || preset.paging.shadow.value != Shadowing::None,
                "{name}"
            );
        }
    }

    #[test]
    fn what_requires_slat_is_refused_without() {
        for hypervisor in ["hyper-v-windows-8", "bhyve-10.0", "openbsd-5.9"] {
            for processor in ["vt-x-2005", "core-2", "amd-v-2006"] {
                let refused = means(hypervisor, processor).unwrap_err();
                assert!(matches!(refused, Refusal::NeedsSlat { .. }), "{refused}");
            }
            assert_eq!(
                means(hypervisor, "nehalem"),
                Ok(Means::SecondStage(SecondStage::Ept)),
                "{hypervisor}"
            );
        }
        let words = means("hyper-v-windows-8", "core-2").unwrap_err().to_string();
        for word in ["Hyper-V of Windows 8", "Core 2", "SLAT", "EPT", "RVI", "Nehalem", "Barcelona"]
        {
            assert!(words.contains(word), "{words}");
        }
    }

    #[test]
    fn ept_and_rvi_are_apart() {
        // VirtualBox 2.0 and ESX 3.5 know RVI alone, OpenBSD 5.9 EPT alone.
        for hypervisor in ["virtualbox-2.0", "esx-3.5"] {
            let shadow = Means::Shadow(Discipline::TrapAll);
            assert_eq!(means(hypervisor, "nehalem"), Ok(shadow));
            let npt = Means::SecondStage(SecondStage::Npt);
            assert_eq!(means(hypervisor, "barcelona"), Ok(npt));
        }
        let refused = means("openbsd-5.9", "barcelona").unwrap_err();
        assert!(refused.to_string().contains("RVI") && refused.to_string().contains("6.1"));
    }

    #[test]
    fn shadow_tables_serve_old_processors() {
        assert_eq!(means("kvm-2.6.26", "core-2"), Ok(Means::Shadow(Discipline::TrapAll)));
        assert_eq!(means("kvm-3.0", "amd-v-2006"), Ok(Means::Shadow(Discipline::OutOfSync)));
        assert_eq!(means("hyper-v-2008", "westmere"), Ok(Means::Shadow(Discipline::OutOfSync)));
    }

    #[test]
    fn arm_has_its_own_hypervisors() {
        assert_eq!(means("kvm-3.11", "cortex-a57"), Ok(Means::SecondStage(SecondStage::Arm)));
        let refused = means("kvm-2.6.26", "cortex-a15").unwrap_err().to_string();
        assert!(refused.contains("Arm") && refused.contains("3.9"), "{refused}");
    }

    #[test]
    fn unrestricted_guest_needs_the_processor_and_the_hypervisor() {
        let means = |hypervisor: &str, processor: &str| {
            let processor = Processor::bundled(processor).unwrap();
            Hypervisor::bundled(hypervisor).unwrap().before_paging(&processor)
        };
        let runs = |hypervisor, processor| means(hypervisor, processor) == BeforePaging::Directly;
        assert!(!runs("kvm-3.0", "nehalem"));
        assert!(runs("kvm-3.0", "westmere"));
        assert!(!runs("kvm-2.6.26", "westmere"));
        assert!(runs("kvm-2.6.26", "barcelona"));
        // The control needs EPT.
        assert!(!runs("hyper-v-2008", "westmere"));
        // Without nested paging AMD's processors need paging, too.
        assert_eq!(means("kvm-3.0", "amd-v-2006"), BeforePaging::PagedReal);
        assert_eq!(means("kvm-3.0", "vt-x-2005"), BeforePaging::Virtual8086);
    }

    #[test]
    fn a_wrong_field_is_named_with_its_line() {
        let text = include_str!("../presets/hypervisors/xen-3.2.toml").replace("rvi =", "rvy =");
        let error = Hypervisor::parse("mine.toml", &text).unwrap_err().to_string();
        assert!(error.contains("mine.toml") && error.contains("rvy"), "{error}");
        assert!(error.contains("line"), "{error}");
    }

    #[test]
    fn no_hypervisor_both_requires_slat_and_shadows() {
        let text = include_str!("../presets/hypervisors/bhyve-10.0.toml")
            .replace("shadow = { value = \"none\"", "shadow = { value = \"trap-all\"");
        let error = Hypervisor::parse("mine.toml", &text).unwrap_err().to_string();
        let line = 1 + text.lines().position(|line| line.starts_with("shadow =")).unwrap();
        assert!(error.contains(&format!("mine.toml: line {line}: paging.shadow")), "{error}");
    }
}
