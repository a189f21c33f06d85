//! The machine that QEMU is told to be, and its run.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use super::recipe::Recipe;
use crate::{Arch, Result, io};

/// A path as a value among QEMU's options, where a comma is written twice.
pub(super) fn option_value(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// The processor of a recipe. Without RDRAND nothing is random in an x86-64 machine, and its seed is without
/// effect; an AArch64 machine gives the guest a seed in its device tree.
pub(super) fn cpu(recipe: &Recipe) -> &str {
    match (&recipe.cpu, recipe.arch) {
        (Some(cpu), _) => cpu,
        (None, Arch::Aarch64) => "cortex-a72",
        (None, _) if recipe.seed == Recipe::SEED => "qemu64",
        (None, _) => "qemu64,+rdrand",
    }
}

/// A file in memory, if the system has such a place, that goes away with this value.
pub(super) fn guest_memory() -> Result<tempfile::TempPath> {
    let shared = Path::new("/dev/shm");
    let folder = if shared.is_dir() { shared.to_owned() } else { std::env::temp_dir() };
    let file = tempfile::Builder::new().prefix("slat-guest-").tempfile_in(&folder);
    file.map(tempfile::NamedTempFile::into_temp_path).map_err(io(folder))
}

/// What QEMU is told to be.
pub(super) struct Machine<'a> {
    pub(super) recipe: &'a Recipe,
    pub(super) image: &'a Path,
    pub(super) initrd: Option<&'a Path>,
    pub(super) memory: &'a Path,
    pub(super) console: &'a Path,
}

impl Machine<'_> {
    pub(super) fn describe(&self, command: &mut Command) {
        let Recipe { arch, memory, vcpus, append, seed, .. } = self.recipe;
        let (machine, terminal) = match arch {
            Arch::Aarch64 => ("virt", "ttyAMA0"),
            _ => ("pc", "ttyS0"),
        };
        // One thread for all vCPUs, time from the instructions alone, everything random from the
        // seed: the same input gives the same recording, byte for byte.
        command.args(["-accel", "tcg,thread=single", "-icount", "shift=2,sleep=off"]);
        command.args(["-seed", &seed.to_string(), "-rtc", "base=2026-01-01T00:00:00,clock=vm"]);
        command.args(["-smp", &vcpus.to_string(), "-m", &format!("{memory}M")]);
        command.args(["-cpu", cpu(self.recipe)]);
        let backend = format!(
            "memory-backend-file,id=ram,size={memory}M,mem-path={},share=on",
            option_value(self.memory)
        );
        command.args(["-object", &backend, "-machine", &format!("{machine},memory-backend=ram")]);
        command.arg("-kernel").arg(self.image);
        if let Some(initrd) = self.initrd {
            command.arg("-initrd").arg(initrd);
        }
        let line = format!("console={terminal} nokaslr quiet panic=-1 {append}");
        command.args(["-append", line.trim_end()]);
        command.args(["-display", "none", "-nodefaults", "-no-reboot", "-monitor", "none"]);
        command.arg("-serial").arg(format!("file:{}", self.console.display()));
        // QEMU is asked to end through this, so that the recorder can close its file.
        command.args(["-qmp", "stdio"]);
    }
}

/// QEMU, which is ended with this value.
pub(super) struct Running(pub(super) Child);

impl Running {
    pub(super) fn quit(&mut self) {
        if let Some(mut input) = self.0.stdin.take() {
            // If it is ending already, there is nobody to hear it.
            let _ = input.write_all(b"{\"execute\":\"qmp_capabilities\"}{\"execute\":\"quit\"}\n");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// What is appended to a file.
pub(super) struct Tail {
    path: PathBuf,
    read: u64,
}

impl Tail {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.into(), read: 0 }
    }

    pub(super) fn read(&mut self) -> String {
        let mut bytes = Vec::new();
        if let Ok(mut file) = fs::File::open(&self.path)
            && file.seek(SeekFrom::Start(self.read)).is_ok()
            && file.read_to_end(&mut bytes).is_ok()
        {
            self.read += bytes.len() as u64;
        }
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }
}

#[cfg(test)]
mod tests {
    use super::super::recipe::Guest;
    use super::*;

    #[test]
    fn another_seed_has_something_to_decide() {
        let guest = Guest::Own { kernel: "vmlinuz".into(), initrd: None };
        let recipe = |arch, seed| Recipe { seed, ..Recipe::new(arch, guest.clone()) };
        assert_eq!(cpu(&recipe(Arch::X86_64, 1)), "qemu64");
        assert_eq!(cpu(&recipe(Arch::X86_64, 2)), "qemu64,+rdrand");
        assert_eq!(cpu(&recipe(Arch::Aarch64, 2)), "cortex-a72");
        let named = Recipe { cpu: Some("max".into()), ..recipe(Arch::X86_64, 2) };
        assert_eq!(cpu(&named), "max");
    }

    #[test]
    fn commas_in_paths_do_not_end_an_option() {
        assert_eq!(option_value(Path::new("/a,b/c")), "/a,,b/c");
    }

    #[test]
    fn a_tail_gives_each_part_once() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("console");
        let mut tail = Tail::new(&path);
        assert_eq!(tail.read(), "");
        fs::write(&path, "one\r\n").unwrap();
        assert_eq!(tail.read(), "one\n");
        fs::write(&path, "one\r\ntwo").unwrap();
        assert_eq!(tail.read(), "two");
        assert_eq!(tail.read(), "");
    }
}
