//! The oracles that this machine can run.

use slat_setup::{Arch, Cache, Qemu, Tool};

use crate::contract::Machine;
use crate::deviations::Model;
use crate::engine::{Oracle, Variant};
use crate::launch::Launcher;
use crate::monitor::Monitor;
use crate::recipe::Recipe;
use crate::world::Beyond;
use crate::x86::Second;

/// What was found, and what is missing with what to do about it.
pub struct Found {
    /// Oracles that can be run.
    pub oracles: Vec<Oracle>,
    /// What cannot, each with its reason.
    pub missing: Vec<String>,
}

impl Found {
    /// Whether this tool is there; notes it as missing otherwise.
    fn has(&mut self, what: &str, tool: Tool) -> bool {
        let there = slat_setup::find(tool).is_some();
        if !there {
            self.missing.push(format!("{what}: no {} on the PATH", tool.program()));
        }
        there
    }
}

/// The distribution's own QEMU.
fn system_qemu(program: &str, tool: Tool) -> Option<Qemu> {
    let binary = slat_setup::find(tool)?.with_file_name(program);
    let output = std::process::Command::new(&binary).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text.split_whitespace().nth(3)?.to_owned();
    Some(Qemu { binary, lib_args: vec![], library_path: vec![], version })
}

/// Whether it is a release before 10: their deviations differ.
fn is_old(emulator: &Qemu) -> bool {
    let major = emulator.version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    major.is_some_and(|major| major < 10)
}

fn bochs_version(program: &std::path::Path) -> String {
    // Debian's Bochs has no --version; its help text begins with one.
    let output = std::process::Command::new(program).arg("--help").output();
    let text = output.map(|o| [o.stdout, o.stderr].concat()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let version = text.split_whitespace().skip_while(|word| *word != "Emulator").nth(1);
    version.unwrap_or("of unknown version").to_owned()
}

fn x86(
    name: &str,
    launcher: Launcher,
    second: Second,
    amd: bool,
    share: u64,
    beyond: Beyond,
) -> Variant {
    Variant {
        name: name.to_owned(),
        launcher,
        monitor: Monitor::X86,
        machine: &Machine::X86,
        mode: second.mode(),
        recipe: Recipe::X86 { second, amd, beyond },
        share,
    }
}

fn arm64(emulator: Qemu, new: bool) -> Oracle {
    let on = |cpu: &str, share| Variant {
        name: cpu.to_owned(),
        launcher: Launcher::Qemu {
            emulator: emulator.clone(),
            machine: "virt,virtualization=on,gic-version=3,highmem=off",
            cpu: cpu.to_owned(),
        },
        monitor: Monitor::Aarch64,
        machine: &Machine::ARM,
        mode: 0,
        recipe: Recipe::Arm64 { new },
        share,
    };
    let last = if new { on("neoverse-v1", 1) } else { on("cortex-a57", 1) };
    Oracle {
        format: "stage2",
        name: format!("QEMU {}", emulator.version),
        model: if new { Model::Qemu10Aarch64 } else { Model::QemuAarch64 },
        variants: vec![on("max", 5), on("neoverse-n1", 2), last],
    }
}

/// ARMv7 on the emulator of 64-bit machines, and AArch32 of Armv8 on `narrow`, that of 32-bit machines.
fn arm32(emulator: Qemu, new: bool, narrow: Option<Qemu>) -> Oracle {
    let on = |emulator: &Qemu, cpu: &str, v8, share| Variant {
        name: cpu.to_owned(),
        launcher: Launcher::Qemu {
            emulator: emulator.clone(),
            machine: "virt,virtualization=on,gic-version=2,highmem=off",
            cpu: cpu.to_owned(),
        },
        monitor: Monitor::Armv7,
        machine: &Machine::ARM,
        mode: 0,
        recipe: Recipe::Arm32 { v8, new },
        share,
    };
    // The emulator of 64-bit machines has the 32-bit processors as well, but for `max`; that of
    // 32-bit machines keeps 32 bits of too many addresses (7.2 of tables' too).
    let mut variants = vec![on(&emulator, "cortex-a15", false, 3)];
    variants.extend(narrow.iter().map(|emulator| on(emulator, "max", true, 3)));
    Oracle {
        format: "stage2-v7",
        name: format!("QEMU {}", emulator.version),
        model: if new { Model::Qemu10Arm } else { Model::QemuArm },
        variants,
    }
}

fn riscv(emulator: Qemu) -> Oracle {
    let name = format!("QEMU {}", emulator.version);
    let cpu = "rv64,h=true,svadu=true,svade=true,svnapot=true,svpbmt=true".to_owned();
    let variant = Variant {
        name: "rv64".to_owned(),
        launcher: Launcher::Qemu { emulator, machine: "virt", cpu },
        monitor: Monitor::Riscv64,
        machine: &Machine::RISCV,
        mode: 0,
        recipe: Recipe::Riscv,
        share: 1,
    };
    Oracle { format: "gstage", name, model: Model::QemuRiscv, variants: vec![variant] }
}

/// Looks for emulators.
#[must_use]
pub fn find() -> Found {
    let mut found = Found { oracles: Vec::new(), missing: Vec::new() };
    let nasm = found.has("x86 oracles", Tool::Nasm);
    let bochs = nasm && found.has("EPT and NPT on Bochs", Tool::Bochs);
    let qemu = nasm && found.has("NPT on QEMU", Tool::QemuX86);
    if bochs && let Some(program) = slat_setup::find(Tool::Bochs) {
        let version = bochs_version(&program);
        let on = |model: &str, second, amd, share| {
            let launcher = Launcher::Bochs { program: program.clone(), model: model.to_owned() };
            x86(model, launcher, second, amd, share, Beyond::Ones)
        };
        found.oracles.push(Oracle {
            format: "ept",
            name: format!("Bochs {version}"),
            model: Model::Bochs,
            variants: vec![
                on("corei7_skylake_x", Second::Ept, false, 5),
                on("corei7_haswell_4770", Second::Ept, false, 2),
                on("corei7_sandy_bridge_2600k", Second::Ept, false, 2),
                on("corei5_lynnfield_750", Second::Ept, false, 1),
            ],
        });
        found.oracles.push(Oracle {
            format: "npt",
            name: format!("Bochs {version}"),
            model: Model::Bochs,
            variants: vec![
                on("ryzen", Second::Npt4, true, 4),
                on("phenom_8650_toliman", Second::Npt4, true, 2),
                on("ryzen", Second::NptPae, true, 1),
                on("ryzen", Second::Npt32, true, 1),
            ],
        });
    }
    let emulator = system_qemu("qemu-system-x86_64", Tool::QemuX86);
    if qemu && emulator.is_none() {
        found.missing.push("NPT on QEMU: its version is not to be had".into());
    }
    if qemu && let Some(emulator) = emulator {
        let on = |name: &str, cpu: &str, second, share| {
            let cpu = format!("max,+svm,+npt{cpu}");
            let launcher = Launcher::Qemu { emulator: emulator.clone(), machine: "pc", cpu };
            x86(name, launcher, second, true, share, Beyond::Zero)
        };
        found.oracles.push(Oracle {
            format: "npt",
            name: format!("QEMU {}", emulator.version),
            model: Model::QemuX86,
            variants: vec![
                on("max", "", Second::Npt4, 4),
                on("max,la57", ",+la57", Second::Npt5, 4),
                on("max,phys-bits=52", ",+la57,phys-bits=52", Second::Npt4, 2),
                on("max,pae-host", "", Second::NptPae, 1),
            ],
        });
    }
    if found.has("Stage-2 on QEMU", Tool::AsAarch64) {
        let own = system_qemu("qemu-system-aarch64", Tool::QemuArm).filter(is_old);
        match own {
            Some(emulator) => found.oracles.push(arm64(emulator, false)),
            None => found.missing.push("Stage-2 on QEMU: no QEMU 7 to 9 for AArch64".into()),
        }
        let new = Cache::new().ok().and_then(|c| slat_setup::find_qemu10(&c, Arch::Aarch64));
        match new {
            Some(emulator) => found.oracles.push(arm64(emulator, true)),
            None => found.missing.push("Stage-2 on QEMU: no QEMU 10 or later for AArch64".into()),
        }
    }
    if found.has("ARMv7 stage 2 on QEMU", Tool::AsArm) {
        let own = system_qemu("qemu-system-aarch64", Tool::QemuArm).filter(is_old);
        match own {
            Some(emulator) => found.oracles.push(arm32(emulator, false, None)),
            None => found.missing.push("ARMv7 stage 2 on QEMU: no QEMU 7 to 9 for AArch64".into()),
        }
        let new = Cache::new().ok().and_then(|c| slat_setup::find_qemu10(&c, Arch::Aarch64));
        match new {
            Some(emulator) => {
                // It comes with the emulator of 64-bit machines.
                let binary = emulator.binary.with_file_name("qemu-system-arm");
                let narrow = binary.is_file().then(|| Qemu { binary, ..emulator.clone() });
                if narrow.is_none() {
                    found.missing.push("Armv8 stage 2 of AArch32: no QEMU 10 for Arm".into());
                }
                found.oracles.push(arm32(emulator, true, narrow));
            }
            None => found.missing.push("ARMv7 stage 2 on QEMU: no QEMU 10 for AArch64".into()),
        }
    }
    if found.has("G-stage on QEMU", Tool::AsRiscv64) {
        let qemu = Cache::new().ok().and_then(|c| slat_setup::find_qemu10(&c, Arch::Riscv64));
        match qemu {
            Some(emulator) => found.oracles.push(riscv(emulator)),
            None => found.missing.push("G-stage on QEMU: no QEMU 10 or later for RISC-V".into()),
        }
    }
    found
}
