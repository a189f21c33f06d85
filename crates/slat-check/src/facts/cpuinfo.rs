//! `/proc/cpuinfo`.

use std::collections::BTreeSet;

/// What `/proc/cpuinfo` says of the first processor, and which Arm cores there are in all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CpuInfo {
    pub(crate) vendor: Option<String>,
    pub(crate) model_name: Option<String>,
    /// x86; `None` when there is no such line.
    pub(crate) flags: Option<BTreeSet<String>>,
    /// x86 with VMX, since Linux 5.6; `None` when there is no such line.
    pub(crate) vmx_flags: Option<BTreeSet<String>>,
    /// RISC-V.
    pub(crate) isa: Option<String>,
    /// Arm: (implementer, part) of each kind of core, in the order of their first appearance.
    pub(crate) arm_cores: Vec<(u32, u32)>,
}

/// No machine has more kinds of core; a hostile file could name any number.
const MOST_KINDS_OF_CORE: usize = 16;

impl CpuInfo {
    pub(crate) fn parse(text: &str) -> CpuInfo {
        let mut info = CpuInfo::default();
        let mut implementer = None;
        for line in text.lines() {
            let Some((name, value)) = line.split_once(':') else { continue };
            let (name, value) = (name.trim(), value.trim());
            match name {
                "vendor_id" => keep_first(&mut info.vendor, value),
                "model name" => keep_first(&mut info.model_name, value),
                // "isa" is what all processors share, "hart isa" what this one has.
                "isa" => keep_first(&mut info.isa, value),
                "flags" if info.flags.is_none() => {
                    // Every processor that runs 64-bit Linux has a floating-point unit: a list without
                    // it is not one.
                    info.flags = Some(words(value)).filter(|flags| flags.contains("fpu"));
                }
                "vmx flags" if info.vmx_flags.is_none() => info.vmx_flags = Some(words(value)),
                "CPU implementer" => implementer = super::number(value),
                "CPU part" => {
                    if let (Some(implementer), Some(part)) = (implementer, super::number(value)) {
                        let core = (implementer as u32, part as u32);
                        if !info.arm_cores.contains(&core)
                            && info.arm_cores.len() < MOST_KINDS_OF_CORE
                        {
                            info.arm_cores.push(core);
                        }
                    }
                }
                _ => {}
            }
        }
        info
    }

    /// Whether `flags` lists `name`; `None` when there is no such line to look at.
    pub(crate) fn flag(&self, name: &str) -> Option<bool> {
        self.flags.as_ref().map(|flags| flags.contains(name))
    }

    /// Whether `vmx flags` lists `name`; `None` when there is no such line to look at.
    pub(crate) fn vmx_flag(&self, name: &str) -> Option<bool> {
        self.vmx_flags.as_ref().map(|flags| flags.contains(name))
    }
}

fn keep_first(slot: &mut Option<String>, value: &str) {
    if slot.is_none() && !value.is_empty() {
        *slot = Some(value.to_string());
    }
}

fn words(value: &str) -> BTreeSet<String> {
    value.split_ascii_whitespace().map(str::to_string).collect()
}

/// Whether a RISC-V ISA string names the hypervisor extension.
///
/// RISC-V unprivileged manual, "ISA Extension Naming Conventions": single letters follow `rv32` or
/// `rv64` directly, may carry a version such as `2p0`, and end where the first multi-letter extension
/// (`z`, `s`, `x`) begins; underscores may separate any of them. Old emulators add `su` to the single letters.
pub(crate) fn isa_has_hypervisor(isa: &str) -> Option<bool> {
    let isa = isa.trim().to_ascii_lowercase();
    let letters = isa.strip_prefix("rv32").or_else(|| isa.strip_prefix("rv64"))?;
    for (at, extension) in letters.split('_').enumerate() {
        let mut letters = extension.chars().peekable();
        let mut previous_was_digit = false;
        while let Some(letter) = letters.next() {
            match letter {
                '0'..='9' => {
                    previous_was_digit = true;
                    continue;
                }
                // The point of a version number, not the extension P.
                'p' if previous_was_digit && letters.peek().is_some_and(char::is_ascii_digit) => {}
                'h' => return Some(true),
                's' if at == 0 && letters.peek() == Some(&'u') => {
                    letters.next();
                }
                'z' | 's' | 'x' => break,
                _ => {}
            }
            previous_was_digit = false;
        }
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_processor_counts_and_arm_cores_are_collected() {
        let info = CpuInfo::parse(
            "processor : 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu vmx\nvmx flags\t: ept vpid\n\n\
             processor : 1\nflags : fpu\nno colon here\n",
        );
        assert_eq!(info.flag("vmx"), Some(true));
        assert_eq!(info.flag("ept"), Some(false));
        assert_eq!(info.vmx_flag("ept"), Some(true));
        let arm = CpuInfo::parse(
            "CPU implementer : 0x41\nCPU part : 0xd05\n\nCPU implementer : 0x41\nCPU part : 0xd0b\n\
             CPU implementer : 0x41\nCPU part : 0xd0b\nCPU part : rubbish\n",
        );
        assert_eq!(arm.arm_cores, [(0x41, 0xd05), (0x41, 0xd0b)]);
        assert_eq!(arm.flag("vmx"), None);
    }

    #[test]
    fn the_hypervisor_letter_is_told_from_look_alikes() {
        for (isa, answer) in [
            ("rv64imafdch_zicsr_zifencei", Some(true)),
            ("rv64imafdcvh_zicbom", Some(true)),
            ("rv64i2p1m2p0a2p1f2p2d2p2h1p0", Some(true)),
            ("rv64ima_h", Some(true)),
            ("rv64imafdcsuh", Some(true)),
            ("rv64imafdcsu", Some(false)),
            ("rv64imafdc", Some(false)),
            ("rv64imafdc_zvfh_zvkgs_sha_shcounterenw", Some(false)),
            ("rv64imafdc_zfh", Some(false)),
            ("rv64imafdcsscofpmf_sh", Some(false)),
            ("RV64IMAFDCH", Some(true)),
            ("garbage", None),
            ("", None),
        ] {
            assert_eq!(isa_has_hypervisor(isa), answer, "{isa}");
        }
    }
}
