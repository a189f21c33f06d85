//! Just enough of a 386 to boot: segment registers with their hidden parts, CR0, CR3, the GDT, and
//! a score of instructions, fetched from memory and decoded.
//!
//! Sources: Intel SDM 2 (encodings), 3A 3.4 (segmentation), 11.9 (mode switching), 22.1 (real mode).

use std::fmt;

use slat::Kind;

use super::segment::{CS, DS, ES, SS, Segment};

/// Protection enable, paging.
const PE: u32 = 1;
const PG: u32 = 1 << 31;

/// Memory at linear addresses.
pub(super) trait Bus {
    /// A byte, loaded or fetched.
    fn read(&mut self, linear: u32, kind: Kind) -> Option<u8>;

    /// Stores the bytes of one instruction.
    fn write(&mut self, linear: u32, values: &[u8]) -> Option<()>;
}

/// Why the processor stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stopped {
    /// HLT.
    Halted,
    /// An offset beyond a segment's limit.
    Limit,
    /// Nothing, or nothing permitted, at a linear address.
    Memory(u32),
    /// A selector whose descriptor is not there or not of use.
    Selector(u16),
    /// An instruction that this processor has not.
    Opcode(u8),
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stopped::Halted => f.write_str("halted"),
            Stopped::Limit => f.write_str("an offset beyond its segment's limit"),
            Stopped::Memory(linear) => write!(f, "no memory at linear address {linear:#x}"),
            Stopped::Selector(selector) => write!(f, "no segment for selector {selector:#x}"),
            Stopped::Opcode(opcode) => write!(f, "an unknown instruction, {opcode:#04x}"),
        }
    }
}

/// The processor's state.
#[derive(Clone, Debug)]
pub(super) struct Cpu {
    /// ES, CS, SS, DS.
    pub(super) segments: [Segment; 4],
    /// The accumulator.
    pub(super) ax: u32,
    /// Offset of the next instruction.
    pub(super) ip: u32,
    pub(super) cr0: u32,
    pub(super) cr3: u32,
    /// Whether the last instruction loaded CR3, with whatever value.
    pub(super) loaded_cr3: bool,
    /// The GDT: base and limit.
    gdt: (u32, u16),
}

impl Cpu {
    /// In real mode, as firmware leaves it, with code at this linear address below 64 KiB.
    pub(super) fn at_boot(start: u16) -> Cpu {
        Cpu {
            segments: [Segment::real(0); 4],
            ax: 0,
            ip: u32::from(start),
            cr0: 0,
            cr3: 0,
            loaded_cr3: false,
            gdt: (0, 0),
        }
    }

    pub(super) fn is_protected(&self) -> bool {
        self.cr0 & PE != 0
    }

    pub(super) fn is_paged(&self) -> bool {
        self.cr0 & (PE | PG) == PE | PG
    }

    /// `real`, `protected` or `paged`.
    pub(super) fn mode(&self) -> &'static str {
        match (self.is_protected(), self.is_paged()) {
            (false, _) => "real",
            (true, false) => "protected",
            (true, true) => "paged",
        }
    }

    /// The linear address of `bytes` bytes at an offset into a segment.
    fn linear(&self, segment: usize, offset: u32, bytes: u32) -> Result<u32, Stopped> {
        let Segment { base, limit, .. } = self.segments[segment];
        let last = offset.checked_add(bytes - 1).filter(|last| *last <= limit);
        last.map(|_| base.wrapping_add(offset)).ok_or(Stopped::Limit)
    }

    fn load(
        &self,
        bus: &mut impl Bus,
        linear: u32,
        bytes: u32,
        kind: Kind,
    ) -> Result<u64, Stopped> {
        let mut value = 0;
        for byte in 0..bytes {
            let at = linear.wrapping_add(byte);
            value |= u64::from(bus.read(at, kind).ok_or(Stopped::Memory(at))?) << (8 * byte);
        }
        Ok(value)
    }

    /// Fetches the next bytes of the instruction.
    fn fetch(&mut self, bus: &mut impl Bus, bytes: u32) -> Result<u32, Stopped> {
        let linear = self.linear(CS, self.ip, bytes)?;
        let value = self.load(bus, linear, bytes, Kind::Execute)?;
        self.ip = self.ip.wrapping_add(bytes);
        Ok(value as u32)
    }

    /// Loads a segment register.
    fn load_segment(
        &mut self,
        bus: &mut impl Bus,
        register: usize,
        selector: u16,
    ) -> Result<(), Stopped> {
        if !self.is_protected() {
            // The base alone changes: limit and rights stay (SDM 3A 22.1.1 and 11.9.2).
            let segment = &mut self.segments[register];
            segment.selector = selector;
            segment.base = u32::from(selector) << 4;
            return Ok(());
        }
        let at = u32::from(selector & !7);
        let (base, limit) = self.gdt;
        if selector & 4 != 0 || at == 0 || at + 7 > u32::from(limit) {
            return Err(Stopped::Selector(selector));
        }
        let place = base.wrapping_add(at);
        let descriptor = self.load(bus, place, 8, Kind::Read)?;
        let segment = Segment::from_descriptor(selector, descriptor | 1 << 40);
        let is_code = segment.rights & 8 != 0;
        if !segment.is_present() || segment.rights & 1 << 4 == 0 || is_code != (register == CS) {
            return Err(Stopped::Selector(selector));
        }
        // The accessed bit of the descriptor.
        let byte = place.wrapping_add(5);
        bus.write(byte, &[(descriptor >> 40) as u8 | 1]).ok_or(Stopped::Memory(byte))?;
        self.segments[register] = segment;
        Ok(())
    }

    /// Executes one instruction.
    pub(super) fn step(&mut self, bus: &mut impl Bus) -> Result<(), Stopped> {
        self.loaded_cr3 = false;
        let mut operand = self.segments[CS].is_wide();
        let mut address = operand;
        let opcode = loop {
            match self.fetch(bus, 1)? as u8 {
                0x66 => operand = !self.segments[CS].is_wide(),
                0x67 => address = !self.segments[CS].is_wide(),
                opcode => break opcode,
            }
        };
        let size = if operand { 4 } else { 2 };
        let mask = if operand { u32::MAX } else { 0xffff };
        match opcode {
            // MOV eAX, imm
            0xb8 => {
                let value = self.fetch(bus, size)?;
                self.ax = self.ax & !mask | value;
            }
            // MOV eAX, [offset] and MOV [offset], eAX
            0xa1 | 0xa3 => {
                let offset = self.fetch(bus, if address { 4 } else { 2 })?;
                let linear = self.linear(DS, offset, size)?;
                if opcode == 0xa1 {
                    let value = self.load(bus, linear, size, Kind::Read)?;
                    self.ax = self.ax & !mask | value as u32;
                } else {
                    let values = &self.ax.to_le_bytes()[..size as usize];
                    bus.write(linear, values).ok_or(Stopped::Memory(linear))?;
                }
            }
            // INC eAX
            0x40 => self.ax = self.ax & !mask | self.ax.wrapping_add(1) & mask,
            // OR AL, imm8; AND AL, imm8; OR eAX, imm
            0x0c => self.ax |= self.fetch(bus, 1)?,
            0x24 => self.ax &= self.fetch(bus, 1)? | !0xff,
            0x0d => self.ax |= self.fetch(bus, size)?,
            // MOV ES, AX; MOV SS, AX; MOV DS, AX
            0x8e => {
                let register = match self.fetch(bus, 1)? as u8 {
                    0xc0 => ES,
                    0xd0 => SS,
                    0xd8 => DS,
                    other => return Err(Stopped::Opcode(other)),
                };
                self.load_segment(bus, register, self.ax as u16)?;
            }
            // JMP ptr16:16 or ptr16:32
            0xea => {
                let offset = self.fetch(bus, size)?;
                let selector = self.fetch(bus, 2)? as u16;
                self.load_segment(bus, CS, selector)?;
                self.ip = offset;
            }
            0xf4 => return Err(Stopped::Halted),
            0x0f => match (self.fetch(bus, 1)? as u8, self.fetch(bus, 1)? as u8) {
                // MOV EAX, CR0; MOV CR0, EAX; MOV CR3, EAX
                (0x20, 0xc0) => self.ax = self.cr0,
                (0x22, 0xc0) => self.cr0 = self.ax,
                (0x22, 0xd8) => (self.cr3, self.loaded_cr3) = (self.ax, true),
                // LGDT [offset16]
                (0x01, 0x16) => {
                    let offset = self.fetch(bus, 2)?;
                    let linear = self.linear(DS, offset, 6)?;
                    let limit = self.load(bus, linear, 2, Kind::Read)? as u16;
                    let base = self.load(bus, linear.wrapping_add(2), 4, Kind::Read)? as u32;
                    self.gdt = (base, limit);
                }
                (other, _) => return Err(Stopped::Opcode(other)),
            },
            other => return Err(Stopped::Opcode(other)),
        }
        Ok(())
    }
}
