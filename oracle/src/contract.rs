//! What a monitor and the harness say to each other: memory in, memory out.
//!
//! All of it is little-endian 64-bit words in the guest machine's RAM.
//!
//! * **Header** (4 KiB at [`Machine::header`]): +0 the magic `SLATCMD1`, +8 number of commands, +16
//!   address of the first, +24 address of the first answer, +32 the host mode that the monitor
//!   enters, +40 status (1 started, 2 done, 0xE0 and above failed), +48 to +215 what the monitor
//!   found: CPUID, ID registers, capability registers, +0xD8 commands not yet begun. Where the harness cannot write into RAM, the
//!   image comes from a disk: +0xE0 first sector and +0xE8 number of sectors that take the answers,
//!   +0xF0 end of RAM, +0xF8 number of segments, +0x100 segments of three words each: address,
//!   first sector, sectors.
//! * **Command**: word 0 is the operation with the number of touched words in its upper half, words
//!   1 to 15 are the state, then two words, address and value, for each touched word. The monitor
//!   writes these values, runs the operation, reads the words back and restores what they held
//!   before, so that one run cannot disturb the next.
//! * **Answer**: 16 words of registers, then the touched words as the run left them.
//!
//! Success is status 2, never the emulator's exit code.

use std::ops::Range;

use anyhow::{Context, ensure};

const MAGIC: &[u8; 8] = b"SLATCMD1";
/// Bytes of the header.
pub const HEADER: u64 = 0x1000;
/// Bytes of a disk sector.
pub const SECTOR: u64 = 512;
/// Words of state in a command.
pub const STATE: usize = 15;
/// Words of registers in an answer.
pub const REGISTERS: usize = 16;
/// The most words that one command may touch: the monitors keep the old values in a fixed place.
pub const MOST_TOUCHED: usize = 256;

/// Where things lie in the RAM of a guest machine.
///
/// The tables and pages of the probes lie in the arena. Its address differs from those of the
/// monitor and the queue in at least two bits, so that no single flipped bit of a probe's entry can
/// reach them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// RAM.
    pub ram: Range<u64>,
    /// Where the monitor's binary goes; none where it is a ROM.
    pub monitor: Option<u64>,
    /// The header.
    pub header: u64,
    /// Commands, followed by answers.
    pub queue: Range<u64>,
    /// What probes may use.
    pub arena: Range<u64>,
    /// Where devices answer, or a ROM.
    pub devices: [Range<u64>; 2],
}

impl Machine {
    /// A PC.
    pub const X86: Machine = Machine {
        ram: 0..0x400_0000,
        monitor: None,
        header: 0x10_0000,
        queue: 0x11_0000..0x100_0000,
        arena: 0x300_0000..0x380_0000,
        devices: [0xC000_0000..0x1_0000_0000, 0..0],
    };
    /// A guest of KVM: its own program, then what probes use.
    pub const KVM: Machine = Machine {
        ram: 0..0x40_0000,
        monitor: None,
        header: 0x1_0000,
        queue: 0x2_0000..0x8_0000,
        arena: 0x8_0000..0x40_0000,
        devices: [0..0, 0..0],
    };
    /// QEMU's `virt` machine for Arm without high memory: RAM begins with the device tree.
    pub const ARM: Machine = Machine {
        ram: 0x4000_0000..0x4800_0000,
        monitor: Some(0x4020_0000),
        header: 0x4040_0000,
        queue: 0x4041_0000..0x4100_0000,
        arena: 0x4300_0000..0x4380_0000,
        devices: [0..0x4000_0000, 0..0],
    };
    /// QEMU's `virt` machine for RISC-V: RAM ends with the device tree.
    pub const RISCV: Machine = Machine {
        ram: 0x8000_0000..0x8800_0000,
        monitor: Some(0x8000_0000),
        header: 0x8040_0000,
        queue: 0x8041_0000..0x8100_0000,
        arena: 0x8300_0000..0x8380_0000,
        devices: [0..0x8000_0000, 0x3_0000_0000..0x8_0000_0000],
    };

    /// Whether a device or a ROM answers at `address`.
    #[must_use]
    pub fn is_device(&self, address: u64) -> bool {
        self.devices.iter().any(|range| range.contains(&address))
    }

    /// Bytes of RAM.
    #[must_use]
    pub fn ram_bytes(&self) -> u64 {
        self.ram.end - self.ram.start
    }
}

/// One operation of a monitor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// What to do: 1 runs a guest; the monitors' sources list the others.
    pub operation: u32,
    /// The registers; their order is each monitor's own.
    pub state: [u64; STATE],
    /// Address and value of each word that is written before and read back after.
    pub touched: Vec<(u64, u64)>,
}

impl Command {
    fn bytes(&self) -> u64 {
        8 * (1 + STATE as u64 + 2 * self.touched.len() as u64)
    }

    fn answer_bytes(&self) -> u64 {
        8 * (REGISTERS + self.touched.len()) as u64
    }
}

/// What a monitor says of one command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The registers; their order is each monitor's own.
    pub registers: [u64; REGISTERS],
    /// The touched words after the operation.
    pub touched: Vec<u64>,
}

/// What the monitor found out about the machine: the header's words from +48 on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info(Vec<u8>);

impl Info {
    /// The words as bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The words from their bytes; `None` where there are too few.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Info> {
        (bytes.len() == 0xE0 - 48).then(|| Info(bytes.to_vec()))
    }

    /// The 64-bit word at this offset from the header's +48.
    #[must_use]
    pub fn word(&self, offset: usize) -> u64 {
        u64::from(self.half(offset)) | u64::from(self.half(offset + 4)) << 32
    }

    /// The 32-bit word at this offset from the header's +48.
    #[must_use]
    pub fn half(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.0[offset..offset + 4]);
        u32::from_le_bytes(bytes)
    }
}

/// A stretch of memory that a job starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it goes.
    pub address: u64,
    /// What it holds.
    pub bytes: Vec<u8>,
}

/// One launch of a monitor.
#[derive(Clone, Debug)]
pub struct Job<'a> {
    /// The memory map.
    pub machine: &'a Machine,
    /// The host mode that the monitor enters.
    pub mode: u64,
    /// What memory holds at first.
    pub memory: &'a [Segment],
    /// What to do.
    pub commands: &'a [Command],
}

impl Job<'_> {
    /// How many of these commands fit into one launch.
    #[must_use]
    pub fn fitting(machine: &Machine, commands: &[Command]) -> usize {
        let room = machine.queue.end - machine.queue.start - HEADER;
        let mut used = 0;
        commands
            .iter()
            .take_while(|command| {
                used += command.bytes() + command.answer_bytes();
                used <= room
            })
            .count()
    }

    fn answers_at(&self) -> u64 {
        let bytes: u64 = self.commands.iter().map(Command::bytes).sum();
        (self.machine.queue.start + bytes).next_multiple_of(SECTOR)
    }

    fn answer_bytes(&self) -> u64 {
        self.commands.iter().map(Command::answer_bytes).sum()
    }

    fn header(&self) -> Vec<u8> {
        let mut header = vec![0; HEADER as usize];
        header[..8].copy_from_slice(MAGIC);
        let count = self.commands.len() as u64;
        let words = [count, self.machine.queue.start, self.answers_at(), self.mode];
        for (i, word) in words.into_iter().enumerate() {
            put(&mut header, 8 + 8 * i, word);
        }
        header
    }

    fn queue(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for command in self.commands {
            let first = u64::from(command.operation) | (command.touched.len() as u64) << 32;
            let pairs = command.touched.iter().flat_map(|&(address, value)| [address, value]);
            for word in std::iter::once(first).chain(command.state).chain(pairs) {
                bytes.extend(word.to_le_bytes());
            }
        }
        bytes
    }

    /// The job as segments for a RAM that the harness can write: header, queue, memory.
    #[must_use]
    pub fn segments(&self) -> Vec<Segment> {
        let mut all = vec![
            Segment { address: self.machine.header, bytes: self.header() },
            Segment { address: self.machine.queue.start, bytes: self.queue() },
        ];
        all.extend(self.memory.iter().cloned());
        all
    }

    /// The stretch of memory that holds the answers afterwards.
    #[must_use]
    pub fn answers(&self) -> Range<u64> {
        let at = self.answers_at();
        at..at + self.answer_bytes()
    }

    /// The job as a disk, and the offset on it at which the answers come back.
    #[must_use]
    pub fn disk(&self) -> (Vec<u8>, u64) {
        let mut disk = self.header();
        let parts = self.segments();
        let mut list = Vec::new();
        for part in &parts[1..] {
            let sectors = (part.bytes.len() as u64).div_ceil(SECTOR);
            list.push((part.address, disk.len() as u64 / SECTOR, sectors));
            disk.extend(&part.bytes);
            disk.resize(disk.len().next_multiple_of(SECTOR as usize), 0);
        }
        let back = disk.len() as u64;
        let sectors = self.answer_bytes().div_ceil(SECTOR);
        disk.resize(disk.len() + (sectors * SECTOR) as usize, 0);
        put(&mut disk, 0xE0, back / SECTOR);
        put(&mut disk, 0xE8, sectors);
        put(&mut disk, 0xF0, self.machine.ram.end);
        put(&mut disk, 0xF8, list.len() as u64);
        for (i, (address, sector, sectors)) in list.into_iter().enumerate() {
            for (j, word) in [address, sector, sectors].into_iter().enumerate() {
                put(&mut disk, 0x100 + 24 * i + 8 * j, word);
            }
        }
        (disk, back)
    }

    /// Reads the header and the answers that a monitor left. Where memory is `shared` and the monitor
    /// began a command and never came back, these are the answers to the commands before it.
    ///
    /// # Errors
    /// Where the monitor did not reach its end, or began no command.
    pub fn read_back(
        &self,
        header: &[u8],
        answers: &[u8],
        shared: bool,
    ) -> anyhow::Result<(Info, Vec<Answer>)> {
        let mut status = word(header, 40).context("the header is cut off")?;
        let mut count = self.commands.len();
        if shared && status == 1 {
            let left = word(header, 0xD8).context("the header is cut off")?;
            let begun = (count as u64).saturating_sub(left) as usize;
            ensure!(begun > 0, "the monitor did not come to its first command");
            count = begun - 1;
            status = 2;
        }
        let why = match status {
            2 => "",
            0 => "the monitor never started",
            1 => "the monitor did not come to its end",
            0xE0 => "the monitor found no header",
            0xE1 => "the machine offers no virtualization",
            0xE2 | 0xE3 => "the monitor could not enter VMX operation",
            0xE4 => "a VMCS field could not be written",
            0xE5 => "the monitor itself faulted",
            0xE6 => "the processor has no EPT",
            _ => "the monitor reports an unknown state",
        };
        ensure!(status == 2, "{why} (status {status:#x})");
        let info = Info(header.get(48..0xE0).context("the header is cut off")?.to_vec());
        let mut at = 0;
        let mut next = || {
            let value = word(answers, at);
            at += 8;
            value.context("the answers are cut off")
        };
        let mut all = Vec::with_capacity(count);
        for command in &self.commands[..count] {
            let mut registers = [0; REGISTERS];
            for register in &mut registers {
                *register = next()?;
            }
            let touched = command.touched.iter().map(|_| next()).collect::<Result<_, _>>()?;
            all.push(Answer { registers, touched });
        }
        Ok((info, all))
    }
}

fn put(bytes: &mut [u8], at: usize, word: u64) {
    bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at + 8)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_bits_lie_between_the_arena_and_what_it_must_not_reach() {
        for machine in [Machine::X86, Machine::ARM, Machine::RISCV] {
            let (first, last) = (machine.arena.start, machine.arena.end - 1);
            for bit in 0..64 {
                for address in [first, last] {
                    let flipped = address ^ 1 << bit;
                    assert!(!machine.queue.contains(&flipped), "{address:#x} bit {bit}");
                    assert!(flipped >= machine.header + HEADER || flipped < machine.ram.start);
                }
            }
        }
    }

    #[test]
    fn answers_read_back_in_the_order_of_the_commands() {
        let commands = [
            Command { operation: 1, state: [1; STATE], touched: vec![(8, 9)] },
            Command { operation: 16, state: [2; STATE], touched: vec![] },
        ];
        let job = Job { machine: &Machine::X86, mode: 3, memory: &[], commands: &commands };
        assert_eq!(Job::fitting(&Machine::X86, &commands), 2);
        let (mut disk, back) = job.disk();
        assert_eq!(word(&disk, 8), Some(2));
        assert_eq!(word(&disk, 32), Some(3));
        assert!(job.read_back(&disk, &disk[back as usize..], false).is_err());
        put(&mut disk, 40, 2);
        let answers: Vec<u8> = (0..33u64).flat_map(u64::to_le_bytes).collect();
        let (_, read) = job.read_back(&disk, &answers, false).unwrap();
        assert_eq!(read[0].touched, [16]);
        assert_eq!(read[1].registers[0], 17);
        assert!(job.read_back(&disk, &answers[8..], false).is_err());
    }
}
