//! Control blocks: the pages that a processor reads a root from.

use std::collections::HashMap;

use super::{Kind, Root};
use crate::image::Image;

/// A control block that names a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Block {
    /// An AMD VMCB (AMD APM 2 appendix B).
    Vmcb {
        /// Its physical address.
        address: u64,
        /// The guest's address-space identifier, at 0x58.
        asid: u32,
        /// The guest's CR3, at 0x550.
        cr3: u64,
    },
    /// An Intel VMCS (Intel SDM 3C 26.2). Where its fields are is each processor's own; the place of
    /// the EPT pointer is learnt from the page itself.
    Vmcs {
        /// Its physical address.
        address: u64,
        /// The revision identifier, at 0.
        revision: u32,
        /// The EPT pointer.
        eptp: u64,
        /// Where in the page it is.
        eptp_offset: u16,
    },
}

/// The control blocks that name one of `roots`, by address, each with the root it names.
///
/// An Arm root is in a register (VTTBR_EL2), and in no block that a processor reads.
pub fn blocks(image: &Image, roots: &[Root]) -> Vec<(Root, Block)> {
    let mut found = Vec::new();
    let by_address: HashMap<(Kind, u64), &Root> =
        roots.iter().map(|root| ((root.kind, root.address), root)).collect();
    let named = |kind: Kind, value: u64| by_address.get(&(kind, value & !0xfff)).copied();
    if !roots.iter().any(|root| matches!(root.kind, Kind::Npt | Kind::Ept)) {
        return found;
    }
    for (address, page) in super::pages(image) {
        let (words, _) = page.as_chunks::<8>();
        let word = |offset: usize| u64::from_le_bytes(words[offset / 8]);
        // N_CR3 at 0xb0, NP_ENABLE in bit 0 of 0x90.
        if word(0x90) & 1 == 1
            && let Some(root) = named(Kind::Npt, word(0xb0))
        {
            let block = Block::Vmcb { address, asid: word(0x58) as u32, cr3: word(0x550) };
            found.push((*root, block));
        }
        // A revision, no abort, and a pointer of the right shape.
        let head = word(0);
        if head == 0 || head >> 32 != 0 {
            continue;
        }
        for (index, value) in words.iter().enumerate().skip(1) {
            let eptp = u64::from_le_bytes(*value);
            if matches!(eptp & 7, 0 | 6)
                && let Some(root) = named(Kind::Ept, eptp)
                && is_eptp(eptp, root.levels)
            {
                let revision = head as u32 & 0x7fff_ffff;
                let eptp_offset = index as u16 * 8;
                found.push((*root, Block::Vmcs { address, revision, eptp, eptp_offset }));
                break;
            }
        }
    }
    found
}

/// Whether the low bits of an EPT pointer are right for tables of `levels` (Intel SDM 3C 26.6.11):
/// write-back or uncacheable, levels less one, accessed/dirty free, the rest zero.
fn is_eptp(eptp: u64, levels: u8) -> bool {
    matches!(eptp & 7, 0 | 6) && eptp >> 3 & 7 == u64::from(levels) - 1 && eptp & 0xf80 == 0
}
