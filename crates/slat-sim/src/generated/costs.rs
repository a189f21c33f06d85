//! How many instructions a guest kernel's operations take.
//!
//! Counted in the recordings that come with the project (`fork.slat` and `compiler.slat`: Linux
//! 6.1 on x86-64), between an exception or system call and the return from it. They were fixed
//! before any result that depends on them was looked at, and no result changes them.

/// A count, and where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// Instructions.
    pub instructions: u64,
    /// What they do.
    pub name: &'static str,
    /// Where the count comes from.
    pub source: &'static str,
}

const fn path(name: &'static str, instructions: u64, source: &'static str) -> Path {
    Path { instructions, name, source }
}

/// A page fault that maps a zeroed page, the zeroing included.
pub const FAULT_ANONYMOUS: Path =
    path("page fault, new page", 2_840, "compiler.slat: median of 652 faults with one table store");
/// A page fault on a mapped file, up to 16 neighbours mapped with it.
pub const FAULT_FILE: Path =
    path("page fault, file", 6_850, "fork.slat: mean of 332 faults with 15.6 stores each");
/// A page fault that copies a page shared since fork.
pub const FAULT_COPY: Path = path(
    "page fault, copy on write",
    3_900,
    "fork.slat: mean of 127 faults with two stores and an INVLPG",
);
/// A page fault that ends in a signal: the handler's entry, the frame, and the return from it.
pub const FAULT_SIGNAL: Path = path(
    "page fault, signal delivered",
    4_000,
    "not recorded: a minor fault's 1,430, and two system calls' 655 with a frame of 1 KiB written \
     and read",
);
/// A system call that does next to nothing.
pub const SYSTEM_CALL: Path =
    path("system call", 655, "fork.slat: mean of 227 calls without a table store");
/// fork, without its copies of entries.
pub const FORK: Path = path("fork", 13_900, "fork.slat: ten forks of a shell with 18 stores each");
/// An entry that fork copies.
pub const FORK_ENTRY: Path =
    path("an entry that fork copies", 60, "not recorded alone; read off copy_present_pte's code");
/// execve, without what it unmaps and the faults that follow.
pub const EXEC: Path = path("exec", 230_000, "fork.slat: 265,000 less 200 entries at 150");
/// exit and wait, without what is unmapped.
pub const EXIT: Path = path("exit and wait", 120_000, "fork.slat: 176,000 less 375 entries at 150");
/// An entry that is unmapped, and its page freed.
pub const UNMAP_ENTRY: Path =
    path("an entry unmapped", 150, "not recorded alone; read off zap_pte_range's code");
/// mmap or munmap, without what is unmapped.
pub const MAP: Path = path("mmap or munmap", 7_500, "fork.slat: mean of 11 calls with stores");
/// A switch to another process, from one system call to the other's return.
pub const SWITCH: Path = path(
    "process switch",
    2_000,
    "not recorded alone; a pipe's write, the scheduler, and a pipe's read",
);
/// A request to the virtual disk or network and its interrupt.
pub const IO: Path = path(
    "request to a device",
    12_000,
    "compiler.slat: a system call with one doorbell is 8,700 on average, an interrupt 6,800; \
     less the reading of the data",
);
/// A page taken from its process to be swapped out.
pub const RECLAIM: Path = path("a page reclaimed", 3_000, "not recorded; an unmap and a swap slot");

/// All of them, for listings.
pub const ALL: &[Path] = &[
    FAULT_ANONYMOUS,
    FAULT_FILE,
    FAULT_COPY,
    FAULT_SIGNAL,
    SYSTEM_CALL,
    FORK,
    FORK_ENTRY,
    EXEC,
    EXIT,
    UNMAP_ENTRY,
    MAP,
    SWITCH,
    IO,
    RECLAIM,
];
