//! A guest before paging: in real mode and in protected mode with paging off.
//!
//! AMD's processors run such a guest directly, and Intel's with the control "unrestricted guest". An
//! Intel processor without it enters a guest only with `CR0.PE` and `CR0.PG` set (Intel SDM 3C
//! 28.3.1.1). A hypervisor then runs protected mode on the *identity map*, a table that maps every
//! address to itself; and real mode in virtual-8086 mode on the same table. Where the guest's
//! segment registers do not fit what the entry checks (28.3.1.2), it emulates instructions until
//! they do.
//!
//! Without a second stage paging must be on on any processor, since the shadow is all that keeps the
//! guest in its own memory. The identity map is shadowed then like a guest's own tables; AMD's
//! processors run real mode on it as it is (*paged real mode*, AMD APM 2 15.19).

use std::fmt;

use slat::format::x86::Controls;
use slat::format::x86::identity::identity_map;
use slat::format::x86::legacy::Legacy;
use slat::{Access, Gpa, Gva, Kind, Privilege, Stage, Updates};

use super::exits::Cause;
use super::partition::{Partition, Translation};
use super::spa::{Owner, PAGE, SystemMemory};
use super::{Host, PartitionSpec};
use crate::hypervisor::{BeforePaging, Means};
use crate::preset::SecondStage;

mod cpu;
mod program;
mod segment;
mod shown;

use cpu::{Bus, Cpu, Stopped};
pub use segment::{Segment, Unfit};
pub use shown::{Shown, Stretch};

/// Where hypervisors put the identity map: above any memory of the guest's that it could use
/// before paging, below the firmware at the end of 4 GiB.
pub const IDENTITY_MAP: u64 = 0xfffb_c000;
/// The memory of the guest that is shown.
const BYTES: u64 = 8 << 20;
/// A program of ours ends long before.
const MOST_INSTRUCTIONS: u64 = 100_000;

/// How the guest's next instruction is run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum How {
    /// By the processor, in the guest's own mode.
    Directly,
    /// By the processor, in protected mode on the identity map.
    IdentityMap,
    /// By the processor, in real mode on the identity map.
    PagedReal,
    /// By the processor, in virtual-8086 mode on the identity map.
    Virtual8086,
    /// By the hypervisor.
    Emulated(Reason),
}

/// Why the hypervisor runs an instruction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Reason {
    /// The processor cannot enter the guest.
    Unfit(Unfit),
    /// It raises #GP in virtual-8086 mode, which is privilege level 3 (Intel SDM 2, LGDT and MOV of
    /// control registers; 3C 22.2).
    Privileged,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Unfit(unfit) => unfit.fmt(f),
            Reason::Privileged => f.write_str("privileged, and virtual-8086 mode is level 3"),
        }
    }
}

impl How {
    fn name(&self) -> &'static str {
        match self {
            How::Directly => "directly",
            How::IdentityMap => "identity map",
            How::PagedReal => "paged real mode",
            How::Virtual8086 => "virtual-8086",
            How::Emulated(_) => "emulated",
        }
    }
}

/// How the next instruction, which begins with these bytes, is run where the processor has these
/// means.
fn how(means: BeforePaging, cpu: &Cpu, code: [u8; 2]) -> How {
    match means {
        BeforePaging::Directly => How::Directly,
        BeforePaging::PagedReal if !cpu.is_protected() => How::PagedReal,
        BeforePaging::PagedReal if cpu.is_paged() => How::Directly,
        BeforePaging::PagedReal => How::IdentityMap,
        BeforePaging::Virtual8086 => without_unrestricted_guest(cpu, code),
    }
}

/// What a processor without unrestricted guest can do with this state.
fn without_unrestricted_guest(cpu: &Cpu, code: [u8; 2]) -> How {
    if cpu.is_protected() {
        return match segment::fits_protected(&cpu.segments) {
            Err(unfit) => How::Emulated(Reason::Unfit(unfit)),
            Ok(()) if cpu.is_paged() => How::Directly,
            Ok(()) => How::IdentityMap,
        };
    }
    match segment::fits_virtual_8086(&cpu.segments) {
        Err(unfit) => How::Emulated(Reason::Unfit(unfit)),
        // LGDT, MOV from and to control registers, HLT.
        Ok(()) if matches!(code, [0x0f, 0x01 | 0x20 | 0x22] | [0xf4, _]) => {
            How::Emulated(Reason::Privileged)
        }
        Ok(()) => How::Virtual8086,
    }
}

/// The guest's memory as the processor, or the hypervisor's emulator, reaches it.
struct Reach<'a> {
    partition: &'a mut Partition,
    memory: &'a mut SystemMemory,
    how: How,
    /// The guest's own CR3, where its paging is on.
    root: Option<u64>,
}

/// 32-bit paging as the processor walks it: `CR4.PSE` is set for the identity map's 4 MiB pages.
fn paging(root: u64, large_pages: bool) -> Stage<Legacy, Gva, Gpa> {
    let controls = Controls { write_protect: false, ..Controls::default() };
    Stage::new(Legacy::new(controls, large_pages, 32), root).with_updates(Updates::OnSuccess)
}

impl Reach<'_> {
    /// The guest-physical and the system physical address of a linear one.
    fn resolve(&mut self, linear: u32, kind: Kind) -> Option<(u64, u64)> {
        // Virtual-8086 mode is privilege level 3.
        let privilege = match self.how {
            How::Virtual8086 => Privilege::User,
            _ => Privilege::Supervisor,
        };
        let access = Access::new(kind, privilege);
        let linear = u64::from(linear);
        let (partition, memory) = (&mut *self.partition, &mut *self.memory);
        let found = match (self.root, &self.how) {
            (Some(root), _) => {
                partition.resolve_legacy(memory, &paging(root, false), linear, &access)
            }
            (None, How::IdentityMap | How::PagedReal | How::Virtual8086) => {
                let map = paging(IDENTITY_MAP, true);
                partition.resolve_legacy(memory, &map, linear, &access)
            }
            (None, How::Directly | How::Emulated(_)) => {
                partition.resolve_unpaged(memory, linear, &access)
            }
        };
        found.ok()
    }
}

impl Bus for Reach<'_> {
    fn read(&mut self, linear: u32, kind: Kind) -> Option<u8> {
        let (_, spa) = self.resolve(linear, kind)?;
        Some(self.memory.load(spa & !7).to_le_bytes()[(spa & 7) as usize])
    }

    fn write(&mut self, linear: u32, values: &[u8]) -> Option<()> {
        // All or nothing, as an instruction that faults stores nothing.
        let places: Vec<(u64, u64)> = (0..)
            .zip(values)
            .map(|(byte, _)| self.resolve(linear.wrapping_add(byte), Kind::Write))
            .collect::<Option<_>>()?;
        for ((_, spa), value) in places.iter().zip(values) {
            let mut bytes = self.memory.load(spa & !7).to_le_bytes();
            bytes[(spa & 7) as usize] = *value;
            self.memory.store(spa & !7, u64::from_le_bytes(bytes));
        }
        // One store of one instruction exits once for each table entry that it reaches.
        let mut entries: Vec<u64> = places.iter().map(|(gpa, _)| gpa & !3).collect();
        entries.dedup();
        for entry in entries {
            self.partition.stored_legacy(entry);
        }
        Some(())
    }
}

/// Starts a partition whose guest has only been loaded, and runs it from real mode to paging.
pub(super) fn show(host: &mut Host, name: &str) -> Result<Shown, String> {
    let means = host.spec.hypervisor.before_paging(&host.spec.processor);
    let spec =
        PartitionSpec { name: name.to_owned(), bytes: BYTES, holes: Vec::new(), node: 0, seed: 0 };
    if matches!(host.means, Means::SecondStage(SecondStage::Arm)) {
        return Err("the guest before paging that is shown is an x86 one".to_owned());
    }
    host.create(&spec).map_err(|error| error.to_string())?;
    let shown = boot(host, name, means);
    // One that did not get through its boot is not a partition of the host's.
    if shown.is_err() {
        host.stop(name).map_err(|error| error.to_string())?;
    }
    shown
}

fn boot(host: &mut Host, name: &str, means: BeforePaging) -> Result<Shown, String> {
    let failed = host.tables_error(name);
    let (partition, memory) = host.both(name).map_err(|error| error.to_string())?;
    if means != BeforePaging::Directly {
        // A page of memory that the guest does not know of.
        let page = (IDENTITY_MAP, PAGE);
        let got = memory
            .allocate(Owner::Partition(partition.number), &[page], 0, 0)
            .map_err(|short| short.to_string())?;
        partition.ranges.push(page);
        let spa = got[0].spa;
        if let Err(error) = partition.add(memory, got) {
            memory.release(spa, PAGE);
            return Err(failed(error).to_string());
        }
        let mut directory = [0u32; 1024];
        identity_map(&mut directory);
        for (index, pair) in directory.as_chunks::<2>().0.iter().enumerate() {
            let word = u64::from(pair[0]) | u64::from(pair[1]) << 32;
            partition.poke(memory, IDENTITY_MAP + index as u64 * 8, word);
        }
    }
    program::load(&mut |gpa, word| partition.poke(memory, gpa, word));
    run(partition, memory, means)
}

fn run(
    partition: &mut Partition,
    memory: &mut SystemMemory,
    means: BeforePaging,
) -> Result<Shown, String> {
    let mut cpu = Cpu::at_boot(program::START);
    let mut stretches: Vec<Stretch> = Vec::new();
    for _ in 0..MOST_INSTRUCTIONS {
        // Until paging is on, linear addresses are guest-physical.
        let at = u64::from(cpu.segments[segment::CS].base.wrapping_add(cpu.ip));
        let byte = |at| partition.peek(memory, at).map_or(0, |word| (word >> (at % 8 * 8)) as u8);
        let how = how(means, &cpu, [byte(at), byte(at + 1)]);
        let mode = cpu.mode();
        let why = match &how {
            How::Emulated(reason) => Some(reason.to_string()),
            _ => None,
        };
        match stretches.last_mut() {
            Some(last) if last.mode == mode && last.how == how.name() && last.why == why => {
                last.instructions += 1;
            }
            _ => stretches.push(Stretch {
                mode: mode.to_owned(),
                how: how.name().to_owned(),
                why,
                instructions: 1,
            }),
        }
        if matches!(how, How::Emulated(_)) {
            partition.exits.count(Cause::Emulation);
        }
        let emulated = matches!(how, How::Emulated(_));
        let root = cpu.is_paged().then_some(u64::from(cpu.cr3));
        let control = cpu.cr0;
        let outcome = cpu.step(&mut Reach { partition, memory, how, root });
        // Changes of PE and PG exit where the hypervisor has to change the mode for them.
        if means != BeforePaging::Directly && !emulated && control != cpu.cr0 {
            partition.exits.count(Cause::Cr0);
        }
        // So do loads of CR3 while it must go on leading to the identity map, or to a shadow: each, since
        // a load of the value that is there invalidates (Intel SDM 3A 5.10.4.1; 3C 27.1.3, "MOV to CR3").
        let shadowed = matches!(partition.translation, Translation::Shadow(_));
        let kept = shadowed || root.is_none();
        if means != BeforePaging::Directly && !emulated && cpu.loaded_cr3 && kept {
            partition.exits.count(Cause::Cr3);
        }
        if cpu.is_paged() && (root.is_none() || cpu.loaded_cr3) {
            partition.load_root_legacy(memory, &paging(u64::from(cpu.cr3), false));
        }
        match outcome {
            Ok(()) => {}
            Err(Stopped::Halted) => {
                let wrong = program::wrong(&|gpa| partition.peek(memory, gpa));
                if let Some(wrong) = wrong {
                    return Err(wrong);
                }
                let exits = partition.exits.total();
                return Ok(Shown { stretches, exits });
            }
            Err(stopped) => {
                return Err(format!(
                    "the guest stopped at {:#x} in {} mode: {stopped}",
                    cpu.ip,
                    cpu.mode()
                ));
            }
        }
    }
    Err("the guest does not end".to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::tests::host;
    use super::*;

    fn shown(processor: &str, hypervisor: &str) -> (Shown, Host) {
        let mut host = host(processor, hypervisor, &[32 << 20]);
        let shown = show(&mut host, "boot").unwrap();
        (shown, host)
    }

    #[test]
    fn without_unrestricted_guest_the_identity_map_is_walked() {
        let (shown, host) = shown("nehalem", "kvm-3.0");
        let ways: Vec<(&str, &str)> =
            shown.stretches.iter().map(|one| (one.mode.as_str(), one.how.as_str())).collect();
        assert_eq!(ways.first(), Some(&("real", "virtual-8086")));
        for way in [
            ("real", "emulated"),
            ("protected", "emulated"),
            ("protected", "identity map"),
            ("paged", "directly"),
        ] {
            assert!(ways.contains(&way), "{way:?} in {ways:?}");
        }
        let boot = host.partition("boot").unwrap();
        assert!(boot.exits.of(Cause::Emulation) > 0 && boot.exits.of(Cause::Cr0) > 0);
        // With paging on, EPT leaves CR3 to the guest.
        assert_eq!(boot.exits.of(Cause::Cr3), 1);
        // Of the first stretch three are privileged: LGDT, and a move from and one to CR0.
        let first: Vec<_> = shown.stretches.iter().take(2).collect();
        assert_eq!((first[0].instructions, first[0].how.as_str()), (8, "virtual-8086"));
        assert!(first[1].why.as_ref().unwrap().contains("privileged"));
        // The processor walked it: nobody else sets these. They were set from the start, as by
        // `identity_map`; what it maps is still itself.
        assert_eq!(boot.peek(&host.memory, IDENTITY_MAP + 8), Some(0x00c0_00e7_0080_00e7));
    }

    #[test]
    fn with_unrestricted_guest_and_on_amd_it_runs_directly() {
        for (processor, hypervisor) in [("westmere", "kvm-3.0"), ("barcelona", "xen-3.2")] {
            let (shown, host) = shown(processor, hypervisor);
            assert!(shown.stretches.iter().all(|one| one.how == "directly"));
            assert_eq!(host.partition("boot").unwrap().exits.total(), 0);
        }
    }

    #[test]
    fn without_a_second_stage_the_identity_map_is_shadowed() {
        for (processor, real) in [("vt-x-2005", "virtual-8086"), ("amd-v-2006", "paged real mode")]
        {
            let (shown, host) = shown(processor, "kvm-3.0");
            assert_eq!(shown.stretches[0].how, real);
            assert!(shown.run("identity map") > 0 && shown.run("directly") > 0);
            let privileged =
                |one: &&Stretch| one.why.as_ref().is_some_and(|why| why.contains("priv"));
            let emulated: u64 =
                shown.stretches.iter().filter(privileged).map(|one| one.instructions).sum();
            // AMD's processors run real mode at its own level.
            assert_eq!(emulated > 0, processor == "vt-x-2005");
            let boot = host.partition("boot").unwrap();
            assert_eq!(boot.translation.name(), "shadow");
            assert!(boot.exits.of(Cause::HiddenFault) > 0, "{processor}");
            // The guest's own page table is not writable behind the hypervisor's back.
            let of_tables = boot.exits.of(Cause::TableWrite) + boot.exits.of(Cause::Dirty);
            assert!(of_tables > 0, "{processor}: {:?}", boot.exits);
            // One load with paging still off, one of the same value, two of others.
            assert_eq!(boot.exits.of(Cause::Cr3), 4);
        }
    }

    /// Memory that is given at the first touch is the partition's, whoever walks to it.
    #[test]
    fn untouched_memory_is_given_under_a_shadow_as_well() {
        for processor in ["vt-x-2005", "amd-v-2006", "nehalem"] {
            let mut host = host(processor, "kvm-3.0", &[32 << 20]);
            host.spec.policies.overcommit = true;
            show(&mut host, "boot").unwrap_or_else(|why| panic!("{processor}: {why}"));
            let boot = host.partition("boot").unwrap();
            assert!(boot.exits.of(Cause::Violation) > 0, "{processor}");
            for gpa in [0x20_0000, 0x30_0000, 0x20_3008] {
                let (spa, _) = boot.locate(gpa).unwrap();
                assert_eq!(
                    host.memory.owner(spa),
                    Some(Owner::Partition(boot.number)),
                    "{processor}"
                );
            }
        }
    }

    #[test]
    fn what_the_guest_wrote_does_not_depend_on_how_it_ran() {
        let memory = |processor: &str| {
            let (_, host) = shown(processor, "kvm-3.0");
            let boot = host.partition("boot").unwrap();
            (0..BYTES).step_by(8).map(|gpa| boot.peek(&host.memory, gpa)).collect::<Vec<_>>()
        };
        let nehalem = memory("nehalem");
        for processor in ["westmere", "barcelona", "vt-x-2005", "amd-v-2006"] {
            assert!(nehalem == memory(processor), "{processor}");
        }
    }
}
