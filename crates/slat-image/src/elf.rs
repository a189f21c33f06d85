//! ELF cores of whole machines: which part of the file is which physical memory.
//!
//! Sources: System V ABI, chapters 4 and 5 (ELF header, program headers, extended numbering); QEMU's
//! `dump-guest-memory`, Linux' `/proc/vmcore` and VirtualBox' `dumpvmcore` write such files. Both
//! classes and both byte orders are read; a segment's physical address (`p_paddr`) counts, never its
//! virtual one.

use crate::error::Problem;
use crate::layout::Claim;

/// `p_type` of a segment with content.
const PT_LOAD: u32 = 1;
/// `e_type` of a core.
const ET_CORE: u16 = 4;
/// `e_phnum` when there are more program headers than it can count: section 0 has the number.
const PN_XNUM: u16 = 0xffff;

/// What an ELF core says of itself.
pub(crate) struct Core {
    /// `e_machine`, the kind of processor.
    pub machine: u16,
    /// What its segments with content claim, in file order.
    pub segments: Vec<Claim>,
}

/// Does `bytes` begin like an ELF file?
pub(crate) fn is_elf(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF")
}

/// Reads the headers of the ELF core in `bytes`.
pub(crate) fn parse(bytes: &[u8]) -> Result<Core, Problem> {
    let ident = bytes.first_chunk::<16>().ok_or_else(|| bad(0, "the file ends inside it"))?;
    let wide = match ident[4] {
        1 => false,
        2 => true,
        class => return Err(bad(4, format!("unknown class {class}: damaged, or not an ELF file"))),
    };
    let big_endian = match ident[5] {
        1 => false,
        2 => true,
        order => {
            return Err(bad(5, format!("unknown byte order {order}: damaged, or not an ELF file")));
        }
    };
    let file = Fields { bytes, wide, big_endian };

    let kind = file.half(16)?;
    if kind != ET_CORE {
        return Err(bad(
            16,
            format!("type {kind} is not a core: give a memory dump (QEMU: dump-guest-memory)"),
        ));
    }
    let machine = file.half(18)?;
    // Offsets of the fields behind e_entry depend on the class.
    let at = |narrow: u64, wide_at: u64| if wide { wide_at } else { narrow };
    let headers_at = file.address(at(28, 32))?;
    let sections_at = file.address(at(32, 40))?;
    let header_size = file.half(at(42, 54))?;
    let expected_size = at(32, 56);
    let mut count = u64::from(file.half(at(44, 56))?);
    if count == u64::from(PN_XNUM) {
        // sh_info of section header 0.
        let info = match sections_at {
            0 => None,
            at_zero => at_zero.checked_add(at(28, 44)),
        };
        let info = info.ok_or_else(|| {
            bad(
                at(32, 40),
                format!(
                    "the number of program headers is in section header 0, and there is none at \
                     offset {sections_at:#x}: damaged"
                ),
            )
        })?;
        count = u64::from(file.word(info)?);
    }
    if count == 0 {
        return Err(bad(at(44, 56), "no program headers: not a memory dump"));
    }
    if u64::from(header_size) < expected_size {
        return Err(bad(
            at(42, 54),
            format!("program headers of {header_size} bytes, {expected_size} wanted: damaged"),
        ));
    }
    // Everything below is bounded by this: the headers are in the file.
    let end = u128::from(count) * u128::from(header_size) + u128::from(headers_at);
    if end > bytes.len() as u128 {
        return Err(bad(
            at(44, 56),
            format!(
                "{count} program headers at offset {headers_at:#x} do not fit into the file of {} \
                 bytes: damaged or cut short",
                bytes.len()
            ),
        ));
    }

    let mut segments = Vec::new();
    for index in 0..count {
        let header = headers_at + index * u64::from(header_size);
        if file.word(header)? != PT_LOAD {
            continue;
        }
        let segment = Claim {
            address: file.address(header + at(12, 24))?,
            offset: file.address(header + at(4, 8))?,
            // A core that leaves memory out says so by a p_filesz below p_memsz. The rest is a hole:
            // what was there is not known, so that it is not taken for zero.
            size: file.address(header + at(16, 32))?,
        };
        // /proc/kcore and its copies give all ones as the address of what is no memory.
        let no_memory = if wide { u64::MAX } else { u64::from(u32::MAX) };
        if segment.size == 0 || segment.address == no_memory {
            continue;
        }
        let end = u128::from(segment.offset) + u128::from(segment.size);
        if end > bytes.len() as u128 {
            return Err(Problem::CoreTruncated {
                segment: index,
                address: segment.address,
                end,
                size: bytes.len() as u64,
            });
        }
        if segment.address.checked_add(segment.size - 1).is_none() {
            return Err(bad(
                header + at(12, 24),
                format!(
                    "segment {index} of {:#x} bytes at physical address {:#x} runs past the end of \
                     the address space: damaged",
                    segment.size, segment.address
                ),
            ));
        }
        segments.push(segment);
    }
    match segments[..] {
        [] => Err(bad(
            headers_at,
            "no segment has memory content: not a memory dump, or an empty one",
        )),
        [_, _, ..] if segments.iter().all(|segment| segment.address == 0) => {
            Err(bad(headers_at, "no physical addresses: the core of a process, not of a machine"))
        }
        _ => Ok(Core { machine, segments }),
    }
}

/// An ELF header's complaint at an offset of the file.
fn bad(offset: u64, what: impl Into<String>) -> Problem {
    Problem::Elf { offset, what: what.into() }
}

/// Reads fields of one class and byte order.
struct Fields<'a> {
    bytes: &'a [u8],
    wide: bool,
    big_endian: bool,
}

impl Fields<'_> {
    /// The `N` bytes at `offset`, least significant first.
    fn read<const N: usize>(&self, offset: u64) -> Result<[u8; N], Problem> {
        let mut field = usize::try_from(offset)
            .ok()
            .and_then(|offset| self.bytes.get(offset..))
            .and_then(|rest| rest.first_chunk::<N>().copied())
            .ok_or_else(|| bad(offset, "lies outside the file: damaged or cut short"))?;
        if self.big_endian {
            field.reverse();
        }
        Ok(field)
    }

    /// A 2-byte field.
    fn half(&self, offset: u64) -> Result<u16, Problem> {
        self.read(offset).map(u16::from_le_bytes)
    }

    /// A 4-byte field.
    fn word(&self, offset: u64) -> Result<u32, Problem> {
        self.read(offset).map(u32::from_le_bytes)
    }

    /// An address, offset or size: 4 or 8 bytes by class.
    fn address(&self, offset: u64) -> Result<u64, Problem> {
        if self.wide {
            self.read(offset).map(u64::from_le_bytes)
        } else {
            self.word(offset).map(u64::from)
        }
    }
}
