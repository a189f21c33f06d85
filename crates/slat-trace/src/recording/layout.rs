//! The fixed parts of the file: header, block headers, index and end. `docs/recording-format.md` is
//! the specification.

use super::bytes::{Bytes, Short, put_varint};
use crate::event::{Arch, Machine};

pub(crate) const MAGIC: [u8; 8] = *b"SLATREC\0";
pub(crate) const BLOCK_MAGIC: [u8; 4] = *b"SBLK";
pub(crate) const INDEX_MAGIC: [u8; 4] = *b"SIDX";
pub(crate) const END_MAGIC: [u8; 8] = *b"SLATEND\0";

/// Readers refuse a higher major version and accept a higher minor one.
pub(crate) const MAJOR: u16 = 1;
pub(crate) const MINOR: u16 = 0;

/// Bounds that a reader holds a file to, so that its memory stays bounded whatever the file says.
pub(crate) const MAX_HEADER: u32 = 1 << 20;
pub(crate) const MAX_VCPUS: u8 = 64;
pub(crate) const MAX_SECTION: u32 = 1 << 26;
/// All sections of a block together, before compression.
pub(crate) const MAX_BLOCK: u64 = 1 << 28;
pub(crate) const MAX_DEFINITIONS: usize = 1 << 20;
/// Accesses in the shapes of all definitions together.
pub(crate) const MAX_DEFINED_ACCESSES: usize = 1 << 25;
/// Definitions that the models of all vCPUs have a place for, together.
pub(crate) const MAX_PLACES: usize = 1 << 22;
/// Accesses that the models of all vCPUs know an address of, together, in one block of the file.
pub(crate) const MAX_SITES: usize = 1 << 22;
/// Accesses of one execution of a block of instructions; the rest is a block of its own.
pub(crate) const MAX_SHAPE: usize = 256;

pub(crate) const PREAMBLE: usize = 16;
pub(crate) const BLOCK_HEADER: usize = 40;
pub(crate) const SECTION_ENTRY: usize = 16;
pub(crate) const INDEX_ENTRY: usize = 32;
pub(crate) const END: usize = 24;

/// Definitions start again at 0 with this block.
pub(crate) const RESTART: u16 = 1;

/// Who made a recording and how: pairs of key and value, in the order given.
///
/// Keys in use: `command`, `created-by`, `emulator`, `kernel`, `program`, `seed`, `cpu`, `level`; of
/// imported traces also `trace`, `format`, `tables` (that the guest's tables were made, and how) and
/// `note`.
/// A reader shows keys that it does not know.
pub type Provenance = Vec<(String, String)>;

/// What the file's header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) major: u16,
    pub(crate) minor: u16,
    pub(crate) machine: Machine,
    pub(crate) provenance: Provenance,
}

/// The first bytes of the file, up to the first block.
pub(crate) fn put_header(machine: &Machine, provenance: &Provenance) -> Vec<u8> {
    let mut body = vec![machine.arch as u8, machine.vcpus];
    let memory = machine.memory.clone().unwrap_or(0..0);
    put_varint(&mut body, memory.start);
    put_varint(&mut body, memory.end);
    put_varint(&mut body, provenance.len() as u64);
    for text in provenance.iter().flat_map(|(key, value)| [key, value]) {
        put_varint(&mut body, text.len() as u64);
        body.extend_from_slice(text.as_bytes());
    }
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&MAJOR.to_le_bytes());
    out.extend_from_slice(&MINOR.to_le_bytes());
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    out.extend_from_slice(&body);
    let sum = crc32fast::hash(&out);
    out.extend_from_slice(&sum.to_le_bytes());
    out
}

/// Reads the body of the header, between the preamble and the checksum.
pub(crate) fn get_header(major: u16, minor: u16, body: &[u8]) -> Result<Header, Short> {
    let mut bytes = Bytes::new(body);
    let arch = match bytes.byte()? {
        0 => Arch::X86_64,
        1 => Arch::Aarch64,
        _ => return Err(Short),
    };
    let vcpus = bytes.byte()?;
    if vcpus == 0 || vcpus > MAX_VCPUS {
        return Err(Short);
    }
    let memory = bytes.varint()?..bytes.varint()?;
    let memory = (!memory.is_empty()).then_some(memory);
    let pairs = bytes.varint()?;
    let mut text = || {
        let len = usize::try_from(bytes.varint()?).map_err(|_| Short)?;
        String::from_utf8(bytes.take(len)?.to_vec()).map_err(|_| Short)
    };
    let mut provenance = Vec::new();
    for _ in 0..pairs {
        provenance.push((text()?, text()?));
    }
    let machine = Machine { arch, vcpus, tables: true, memory };
    Ok(Header { major, minor, machine, provenance })
}

/// The streams of a block of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Section {
    /// Which vCPU runs for how many codes; absent with one vCPU.
    Turns = 0,
    /// Blocks of instructions seen for the first time.
    Definitions = 1,
    /// Events in their global order.
    Events = 2,
    /// One vCPU: one code an executed block of instructions or a group of events.
    Codes = 3,
    /// One vCPU: which block of instructions, where the prediction failed.
    Successors = 4,
    /// One vCPU: which accesses, where they differ from the last time.
    Shapes = 5,
    /// One vCPU: how each address differs, where not all are as predicted.
    Lengths = 6,
    /// One vCPU: the differences.
    Differences = 7,
    /// One vCPU: virtual pages of fetches, where they are not as known.
    FetchPages = 8,
    /// One vCPU: physical pages of accesses, where they are not as known.
    Frames = 9,
}

impl Section {
    const ALL: [Self; 10] = [
        Self::Turns,
        Self::Definitions,
        Self::Events,
        Self::Codes,
        Self::Successors,
        Self::Shapes,
        Self::Lengths,
        Self::Differences,
        Self::FetchPages,
        Self::Frames,
    ];
    /// The streams that every vCPU has.
    pub(crate) const OF_VCPU: [Self; 7] = [
        Self::Codes,
        Self::Successors,
        Self::Shapes,
        Self::Lengths,
        Self::Differences,
        Self::FetchPages,
        Self::Frames,
    ];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SectionEntry {
    /// None for a section that this version does not know, which it skips.
    pub(crate) section: Option<Section>,
    pub(crate) vcpu: u8,
    pub(crate) raw: u32,
    pub(crate) stored: u32,
    pub(crate) sum: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BlockHeader {
    pub(crate) flags: u16,
    pub(crate) sections: u16,
    pub(crate) first_access: u64,
    pub(crate) accesses: u64,
    pub(crate) instructions: u64,
    pub(crate) stored: u32,
    pub(crate) sum: u32,
}

/// The header of a block with its table of sections, whose checksum covers both.
pub(crate) fn put_block_header(
    flags: u16,
    first_access: u64,
    accesses: u64,
    instructions: u64,
    sections: &[(Section, u8, u32, u32, u32)],
) -> Vec<u8> {
    let stored: u32 = sections.iter().map(|section| section.3).sum();
    let mut out = BLOCK_MAGIC.to_vec();
    out.extend_from_slice(&flags.to_le_bytes());
    out.extend_from_slice(&(sections.len() as u16).to_le_bytes());
    for word in [first_access, accesses, instructions] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.extend_from_slice(&stored.to_le_bytes());
    let mut table = Vec::with_capacity(sections.len() * SECTION_ENTRY);
    for &(section, vcpu, raw, stored, sum) in sections {
        table.extend_from_slice(&[section as u8, vcpu, 0, 0]);
        for word in [raw, stored, sum] {
            table.extend_from_slice(&word.to_le_bytes());
        }
    }
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&out);
    hasher.update(&table);
    out.extend_from_slice(&hasher.finalize().to_le_bytes());
    out.extend_from_slice(&table);
    out
}

pub(crate) fn get_block_header(bytes: &[u8; BLOCK_HEADER]) -> Result<BlockHeader, Short> {
    let mut bytes = Bytes::new(bytes);
    if bytes.array()? != BLOCK_MAGIC {
        return Err(Short);
    }
    Ok(BlockHeader {
        flags: bytes.u16()?,
        sections: bytes.u16()?,
        first_access: bytes.u64()?,
        accesses: bytes.u64()?,
        instructions: bytes.u64()?,
        stored: bytes.u32()?,
        sum: bytes.u32()?,
    })
}

pub(crate) fn get_section_entry(bytes: &mut Bytes<'_>) -> Result<SectionEntry, Short> {
    let [kind, vcpu, _, _] = bytes.array()?;
    let section = Section::ALL.get(usize::from(kind)).copied();
    Ok(SectionEntry { section, vcpu, raw: bytes.u32()?, stored: bytes.u32()?, sum: bytes.u32()? })
}

/// A block of the file, as the index lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockInfo {
    /// Where it begins in the file.
    pub offset: u64,
    /// How many accesses come before it.
    pub first_access: u64,
    /// How many accesses it holds.
    pub accesses: u64,
    /// How many instructions its fetches hold.
    pub instructions: u64,
}

/// The index and the end of the file, which begin at `offset`.
pub(crate) fn put_index(offset: u64, blocks: &[BlockInfo]) -> Vec<u8> {
    let mut out = INDEX_MAGIC.to_vec();
    out.extend_from_slice(&(blocks.len() as u32).to_le_bytes());
    for block in blocks {
        for word in [block.offset, block.first_access, block.accesses, block.instructions] {
            out.extend_from_slice(&word.to_le_bytes());
        }
    }
    let sum = crc32fast::hash(&out);
    out.extend_from_slice(&sum.to_le_bytes());
    out.extend_from_slice(&offset.to_le_bytes());
    let end = [offset.to_le_bytes(), END_MAGIC].concat();
    out.extend_from_slice(&crc32fast::hash(&end).to_le_bytes());
    out.extend_from_slice(&END_MAGIC);
    out
}

/// Reads the body of the index: all between its magic and its checksum.
pub(crate) fn get_index(body: &[u8]) -> Result<Vec<BlockInfo>, Short> {
    let mut bytes = Bytes::new(body);
    let mut blocks = Vec::with_capacity(body.len() / INDEX_ENTRY);
    while !bytes.is_empty() {
        blocks.push(BlockInfo {
            offset: bytes.u64()?,
            first_access: bytes.u64()?,
            accesses: bytes.u64()?,
            instructions: bytes.u64()?,
        });
    }
    Ok(blocks)
}
