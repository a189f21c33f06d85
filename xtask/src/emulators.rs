//! `cargo xtask emulators`: what the oracles and the recorder run.

use std::process::ExitCode;

use slat_setup::{Arch, Cache, Tool};

/// Every program of the distribution that an oracle needs.
const TOOLS: [Tool; 7] = [
    Tool::QemuX86,
    Tool::QemuArm,
    Tool::Bochs,
    Tool::Nasm,
    Tool::AsAarch64,
    Tool::AsArm,
    Tool::AsRiscv64,
];

/// Installs the distribution's emulators and assemblers, and puts QEMU 10 beside them.
///
/// On Debian and its derivatives, as root. What is there already is left as it is; QEMU 10 goes into
/// the user's cache folder and replaces nothing.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only say what is there and what is missing
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let missing: Vec<Tool> =
        TOOLS.into_iter().filter(|tool| slat_setup::find(*tool).is_none()).collect();
    if !missing.is_empty() && !args.check {
        let packages: Vec<&str> =
            missing.iter().flat_map(|tool| tool.packages()).copied().collect();
        anstream::println!("installing {}", packages.join(" "));
        if let Err(error) = slat_setup::install(&missing) {
            anstream::eprintln!(
                "error: {error}\n\
                 This task installs with apt-get, as root. Elsewhere, install by other means:\n\
                 QEMU for x86-64 and Arm, Bochs 2.7 or later with VMX and SVM, NASM, and GNU \
                 binutils for AArch64, 32-bit Arm and RISC-V."
            );
            return Ok(ExitCode::from(2));
        }
    }
    let mut complete = true;
    for tool in TOOLS {
        match slat_setup::find(tool) {
            Some(path) => anstream::println!("{:<24} {}", tool.program(), path.display()),
            None => {
                complete = false;
                anstream::println!("{:<24} missing: {}", tool.program(), tool.packages().join(" "));
            }
        }
    }
    let cache = Cache::new()?;
    for arch in [Arch::Riscv64, Arch::Aarch64] {
        let name = format!("qemu-system-{arch}");
        let qemu10 = if args.check {
            slat_setup::find_qemu10(&cache, arch)
        } else {
            Some(slat_setup::find_or_fetch_qemu10(&cache, arch)?)
        };
        match qemu10 {
            Some(qemu) => {
                anstream::println!("{name:<24} {} ({})", qemu.binary.display(), qemu.version);
            }
            None => {
                complete = false;
                anstream::println!("{name:<24} missing: QEMU 10 or later");
            }
        }
    }
    Ok(ExitCode::from(u8::from(!complete)))
}
