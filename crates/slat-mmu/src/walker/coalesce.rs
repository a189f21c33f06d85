//! Joining neighbouring pages to one entry of a TLB.

use slat::format::{Decoded, Format, Found};
use slat::{Access, Address, Flavor, Kind, Memory, Purpose};

/// log2 of the aligned range around the leaf of level 0 read at `at` that one entry may translate:
/// that of `2^pages` pages where their entries differ from the leaf in nothing but the address, and
/// name frames in a row; else the leaf's own.
///
/// The entries come with the line that the walk has read: they are no references of the walk, and are
/// read with [`Purpose::Final`], so that a memory that counts references can tell.
#[inline(never)]
pub(super) fn joined<F: Format, M: Memory>(
    format: &F,
    memory: &mut M,
    at: M::Address,
    found: Found,
    access: Access,
    pages: u8,
) -> u8 {
    let layout = format.layout();
    let bytes = layout.size.bytes();
    let count = 1u64 << pages;
    let own = (at.raw() / bytes) & (count - 1);
    // The frames are aligned as the pages are.
    if found.base >> found.shift & (count - 1) != own {
        return found.shift;
    }
    // As the walk leaves it: a neighbour that lacks its accessed or dirty bit must set it when used.
    let entry = format.touched(found.entry, found.level, true, &access);
    let first = at.raw() - own * bytes;
    let access = Access {
        kind: Kind::Read,
        purpose: Purpose::Final,
        flavor: Flavor::Plain,
        page: None,
        ..access
    };
    for n in (0..count).filter(|&n| n != own) {
        let Ok(read) = memory.read(M::Address::new(first + n * bytes), layout, &access) else {
            return found.shift;
        };
        let base = found.base - (own << found.shift) + (n << found.shift);
        let leaf = Decoded::Leaf { base, shift: found.shift };
        if format.decode(read.value, 0) != leaf || !alike(read.value, entry, own ^ n, found.shift) {
            return found.shift;
        }
    }
    found.shift + pages
}

/// Whether two leaves differ in the low bits of the frame number alone: formats hold it in place, or
/// from bit 10 on (RISC-V).
fn alike(one: u64, other: u64, frames: u64, shift: u8) -> bool {
    let differs = one ^ other;
    differs == frames << shift || differs == frames << (shift - 2)
}
