//! The monitors, assembled when they are needed.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use slat_setup::Tool;

/// A monitor: the program that runs on the machine that is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Monitor {
    /// VMX with EPT, or SVM with nested paging, as a 64 KiB ROM.
    X86,
    /// AArch64, EL2.
    Aarch64,
    /// ARMv7-A, Hyp mode.
    Armv7,
    /// RISC-V, M-mode.
    Riscv64,
}

impl Monitor {
    /// The assembler that it needs.
    #[must_use]
    pub fn assembler(self) -> Tool {
        match self {
            Monitor::X86 => Tool::Nasm,
            Monitor::Aarch64 => Tool::AsAarch64,
            Monitor::Armv7 => Tool::AsArm,
            Monitor::Riscv64 => Tool::AsRiscv64,
        }
    }

    /// Its source, and what that includes.
    fn sources(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Monitor::X86 => &[
                ("x86.asm", include_str!("../monitors/x86.asm")),
                ("x86-ata.asm", include_str!("../monitors/x86-ata.asm")),
                ("x86-svm.asm", include_str!("../monitors/x86-svm.asm")),
                ("x86-vmx.asm", include_str!("../monitors/x86-vmx.asm")),
            ],
            Monitor::Aarch64 => &[("aarch64.S", include_str!("../monitors/aarch64.S"))],
            Monitor::Armv7 => &[("armv7.S", include_str!("../monitors/armv7.S"))],
            Monitor::Riscv64 => &[("riscv64.S", include_str!("../monitors/riscv64.S"))],
        }
    }

    /// Assembles it in `folder` and returns the binary.
    ///
    /// # Errors
    /// Where the assembler is missing or `folder` cannot be written.
    pub fn assemble(self, folder: &Path) -> anyhow::Result<Vec<u8>> {
        let tool = self.assembler();
        let assembler = slat_setup::find(tool)
            .with_context(|| format!("{} is not on the PATH", tool.program()))?;
        let binary = folder.join("monitor.bin");
        for (name, text) in self.sources() {
            let path = folder.join(name);
            std::fs::write(&path, text)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        let source = folder.join(self.sources()[0].0);
        if self == Monitor::X86 {
            let mut command = Command::new(&assembler);
            command.args(["-f", "bin", "-I"]).arg(folder.join(""));
            run(command.arg("-o").arg(&binary).arg(&source))?;
        } else {
            let object = folder.join("monitor.o");
            let linked = folder.join("monitor.elf");
            let mut command = Command::new(&assembler);
            if self == Monitor::Riscv64 {
                command.args(["-march=rv64imac_zicsr", "-mabi=lp64"]);
            }
            run(command.arg("-o").arg(&object).arg(&source))?;
            // The linker and objcopy come in the assembler's package and are named like it.
            let name = tool.program();
            let sibling = |program: &str| {
                let stem = name.strip_suffix("as").unwrap_or(name);
                Command::new(assembler.with_file_name(format!("{stem}{program}")))
            };
            let address = if self == Monitor::Riscv64 { "0x80000000" } else { "0x40200000" };
            run(sibling("ld").args(["-Ttext", address, "-o"]).arg(&linked).arg(&object))?;
            run(sibling("objcopy").args(["-O", "binary"]).arg(&linked).arg(&binary))?;
        }
        std::fs::read(&binary).with_context(|| format!("cannot read {}", binary.display()))
    }
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed: {errors}");
    Ok(())
}
