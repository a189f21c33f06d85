//! A probe as files and command lines that show the walker's answer to it.
//!
//! The image is an ELF core of the pages that the walk reads, nothing else; each access of the probe is one
//! `slat walk` line, in the order in which the guest makes them. The walker's answer is that of the first
//! access that faults, or of the last.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context;

use crate::contract::Segment;
use crate::probe::{Probe, Subject, Watcher};
use crate::world::{Beyond, World};

const PAGE: u64 = 0x1000;

/// One access of a probe, as `slat walk` takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    /// `--stage1`.
    pub stage1: String,
    /// `--stage2`, where there is one.
    pub stage2: Option<String>,
    /// `--access`: `r`, `w`, `x` or `hlvx`.
    pub access: &'static str,
    /// `--user`.
    pub user: bool,
    /// The address.
    pub address: u64,
}

impl Walk {
    /// The command line, for an image at this path.
    #[must_use]
    pub fn line(&self, image: &Path) -> String {
        let user = if self.user { " --user" } else { "" };
        let stage2 = match &self.stage2 {
            Some(stage2) => format!(" --stage2 {stage2}"),
            None => String::new(),
        };
        format!(
            "slat walk {} --update --stage1 {}{stage2} --access {}{user} {:#x}",
            quoted(&image.to_string_lossy()),
            self.stage1,
            self.access,
            self.address
        )
    }
}

/// What a shell takes for this one word.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// `,key=on` where a processor has what few lack, `,key=off` where it lacks what most have, or nothing.
pub(crate) fn unless(text: &mut String, usual: bool, is: bool, key: &str) {
    if usual != is {
        let _ = write!(text, ",{key}={}", if is { "on" } else { "off" });
    }
}

/// A probe with all that it takes to ask `slat walk`.
#[derive(Clone, Debug)]
pub struct Reproducer {
    /// Its accesses.
    pub walks: Vec<Walk>,
    /// The memory that they read.
    pub memory: Vec<Segment>,
    /// The number of the processor's architecture in an ELF header.
    machine: u16,
}

impl Reproducer {
    /// The reproducer of one walk on x86, in this memory.
    pub(crate) fn of(walks: Vec<Walk>, memory: Vec<Segment>) -> Reproducer {
        Reproducer { walks, memory, machine: crate::x86::ELF_MACHINE }
    }

    /// The reproducer of a probe. `world` is the template.
    pub(crate) fn new(subject: &dyn Subject, world: &mut World, probe: &Probe) -> Reproducer {
        let load = |world: &mut World| {
            world.reset();
            for &(address, value) in &probe.words {
                world.poke(address, value);
            }
        };
        load(world);
        let reached = subject.expect(probe, world, &Watcher::default()).reached;
        // `slat walk` takes a root that is not in the image for a mistake.
        let root = subject.second_root(probe);
        let words = world.seen().iter().copied().chain(reached).chain([root]);
        let pages: BTreeSet<u64> = words.map(|at| at & !(PAGE - 1)).collect();
        load(world);
        let mut memory: Vec<Segment> = Vec::new();
        for page in pages {
            // Where there is no memory at all, the image has none either.
            if world.beyond() == Beyond::Abort && !world.machine().ram.contains(&page) {
                continue;
            }
            let words = (page..page + PAGE).step_by(8).map(|at| world.word(at).unwrap_or(0));
            let bytes = words.flat_map(u64::to_le_bytes);
            match memory.last_mut() {
                Some(last) if last.address + last.bytes.len() as u64 == page => {
                    last.bytes.extend(bytes);
                }
                _ => memory.push(Segment { address: page, bytes: bytes.collect() }),
            }
        }
        world.reset();
        Reproducer { walks: subject.walks(probe), memory, machine: subject.elf_machine() }
    }

    /// The image: an ELF core of its memory (System V ABI, chapters 4 and 5).
    #[must_use]
    pub fn image(&self) -> Vec<u8> {
        const CORE: u16 = 4;
        const LOAD: u32 = 1;
        const HEADER: u16 = 64;
        const ENTRY: u16 = 56;
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        let halves = |file: &mut Vec<u8>, values: &[u16]| {
            file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        };
        halves(&mut file, &[CORE, self.machine]);
        file.extend(1u32.to_le_bytes());
        for word in [0, u64::from(HEADER), 0] {
            file.extend(u64::to_le_bytes(word));
        }
        file.extend(0u32.to_le_bytes());
        halves(&mut file, &[HEADER, ENTRY, self.memory.len() as u16, 0, 0, 0]);
        let mut offset = u64::from(HEADER) + u64::from(ENTRY) * self.memory.len() as u64;
        for segment in &self.memory {
            let bytes = segment.bytes.len() as u64;
            file.extend([LOAD.to_le_bytes(), 4u32.to_le_bytes()].concat());
            for word in [offset, 0, segment.address, bytes, bytes, 1] {
                file.extend(word.to_le_bytes());
            }
            offset += bytes;
        }
        for segment in &self.memory {
            file.extend(&segment.bytes);
        }
        file
    }

    /// Writes the image as `name` into `folder`, and returns the command lines.
    ///
    /// # Errors
    /// Where the folder or the file cannot be written.
    pub fn write(&self, folder: &Path, name: &str) -> anyhow::Result<Vec<String>> {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        let path = folder.join(name);
        std::fs::write(&path, self.image())
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(self.walks.iter().map(|walk| walk.line(&path)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_takes_a_quoted_word_for_one() {
        for (word, shown) in
            [("/a/b-1.elf", "/a/b-1.elf"), ("a b", "'a b'"), ("it's", r"'it'\''s'")]
        {
            assert_eq!(quoted(word), shown);
        }
    }
}
