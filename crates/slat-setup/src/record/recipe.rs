//! What is to be recorded, and how.

use std::path::PathBuf;

use crate::Arch;

/// What the guest is.
#[derive(Clone, Debug)]
pub enum Guest {
    /// A minimal Linux that runs one command and powers off; the recording is from the command's
    /// start to its end.
    Command {
        /// The command and its arguments, as seen in the guest.
        words: Vec<String>,
        /// What is put into the guest: files and folders of this machine, and their places there.
        files: Vec<(PathBuf, String)>,
        /// Shell lines to run before the recording begins.
        before: String,
        /// Whether the command executes the markers itself, for a recording of a part of it.
        marks: bool,
    },
    /// A system of the user's own, which executes the markers itself.
    Own {
        /// The kernel image.
        kernel: PathBuf,
        /// Its initial RAM disk.
        initrd: Option<PathBuf>,
    },
}

/// How far the recorder goes, to measure what each part of it costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Stage {
    /// Nothing is instrumented.
    Bare,
    /// The callbacks return at once.
    Callback,
    /// The physical address of each access is asked for.
    Address,
    /// All is noted, for another thread to encode, and thrown away.
    Note,
    /// A recording is made.
    #[default]
    Full,
}

impl Stage {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Callback => "callback",
            Self::Address => "address",
            Self::Note => "note",
            Self::Full => "full",
        }
    }
}

/// All that decides what a recording will be.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// The guest's architecture: x86-64 or AArch64.
    pub arch: Arch,
    /// What runs.
    pub guest: Guest,
    /// The guest's memory in MiB; at most 2048 for x86-64, whose memory above that lies elsewhere.
    pub memory: u32,
    /// The number of vCPUs, 1 to 64.
    pub vcpus: u8,
    /// QEMU's name of the processor model; None for a plain one of the architecture.
    pub cpu: Option<String>,
    /// Words to append to the kernel's command line.
    pub append: String,
    /// The seed of everything random in the machine. With another than [`SEED`](Self::SEED) the plain x86-64
    /// processor has RDRAND, without which nothing is.
    pub seed: u64,
    /// After so many accesses the recording ends.
    pub most_accesses: Option<u64>,
    /// After so many accesses a block of the file ends; None for the default.
    pub block_accesses: Option<u64>,
    /// The level of compression, 1 to 19.
    pub level: i32,
    /// The command to be named in the provenance.
    pub command: String,
    /// How far the recorder goes.
    pub stage: Stage,
}

impl Recipe {
    /// The seed where none is asked for.
    pub const SEED: u64 = 1;

    /// A recipe for a command in a minimal Linux of `arch`: 512 MiB, one vCPU, seed 1.
    #[must_use]
    pub fn new(arch: Arch, guest: Guest) -> Self {
        Self {
            arch,
            guest,
            memory: 512,
            vcpus: 1,
            cpu: None,
            append: String::new(),
            seed: Self::SEED,
            most_accesses: None,
            block_accesses: None,
            level: 3,
            command: String::new(),
            stage: Stage::Full,
        }
    }
}
