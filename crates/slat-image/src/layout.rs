//! Which byte of which file is at which physical address: many claims made one sorted, disjoint list.

use bytes::Bytes;

use crate::error::Problem;

/// A claim: these bytes of a file are the memory from `address` on.
pub(crate) struct Claim {
    /// Physical address of the first byte.
    pub address: u64,
    /// Where the first byte is in the file.
    pub offset: u64,
    /// Bytes, not 0; `address + (size - 1)` does not overflow.
    pub size: u64,
}

impl Claim {
    /// Physical address of the last byte.
    fn last(&self) -> u64 {
        self.address + (self.size - 1)
    }
}

/// Sorts the claims that one file makes and settles where they overlap.
///
/// Overlaps are ordinary in cores: QEMU's `dump-guest-memory -p` has a segment for each mapping of a
/// frame, all of them at the same place in the file, and `/proc/vmcore` has the kernel's text twice,
/// in two copies. Claims that agree become one; where two do not, neither can be believed.
pub(crate) fn settle(file: &[u8], mut claims: Vec<Claim>) -> Result<Vec<Claim>, Problem> {
    claims.sort_by_key(|claim| claim.address);
    // Copies are compared byte by byte. An honest file has few; a hostile one may ask for the same
    // bytes to be compared over and over.
    let mut budget = file.len() as u64;
    let mut settled: Vec<Claim> = Vec::with_capacity(claims.len());
    for mut claim in claims {
        // Only the tail of the list can reach up to here: its last claims were cut to be disjoint.
        let first = settled.partition_point(|other| other.last() < claim.address);
        for other in &settled[first..] {
            if other.address > claim.last() {
                break;
            }
            let from = other.address.max(claim.address);
            let size = other.last().min(claim.last()) - from + 1;
            let mine = claim.offset + (from - claim.address);
            let its = other.offset + (from - other.address);
            if mine == its {
                continue;
            }
            budget = budget.checked_sub(size).ok_or(Problem::Overlap {
                address: from,
                other: "another segment of the core".to_owned(),
                remedy: "more of the file overlaps than it holds; dump it again",
            })?;
            if slice(file, mine, size) != slice(file, its, size) {
                return Err(Problem::Overlap {
                    address: from,
                    other: "another segment of the core, with other content".to_owned(),
                    remedy: "the headers are damaged, or memory changed during the dump; dump again",
                });
            }
        }
        // What lies behind everything known is new. The known reaches without a gap from the claim's
        // start to there, or does not reach it at all, since claims come in order of their start.
        match settled.last_mut() {
            Some(known) if known.last() >= claim.last() => continue,
            Some(known) if known.last() >= claim.address => {
                let old = known.last() - claim.address + 1;
                claim.address += old;
                claim.offset += old;
                claim.size -= old;
            }
            _ => {}
        }
        match settled.last_mut() {
            // Neighbours in memory that are neighbours in the file are one range.
            Some(known)
                if known.last().checked_add(1) == Some(claim.address)
                    && known.offset + known.size == claim.offset =>
            {
                known.size += claim.size;
            }
            _ => settled.push(claim),
        }
    }
    Ok(settled)
}

/// The bytes of a claim that was checked to lie in the file.
fn slice(file: &[u8], offset: u64, size: u64) -> &[u8] {
    &file[offset as usize..][..size as usize]
}

/// A stretch of physical memory without a hole, and its content.
#[derive(Clone, Debug)]
pub(crate) struct Range {
    /// Physical address of the first byte.
    pub start: u64,
    /// The content, not empty; `start + (len - 1)` does not overflow.
    pub bytes: Bytes,
}

impl Range {
    /// The range that a settled claim stands for.
    pub(crate) fn of(file: &Bytes, claim: &Claim) -> Range {
        let from = claim.offset as usize;
        Range { start: claim.address, bytes: file.slice(from..from + claim.size as usize) }
    }

    /// Physical address of the last byte.
    pub(crate) fn last(&self) -> u64 {
        self.start + (self.bytes.len() as u64 - 1)
    }

    /// What the range holds from `address` on: nothing if that lies outside.
    #[inline(always)]
    pub(crate) fn from(&self, address: u64) -> &[u8] {
        // An address below the start wraps around and is past the end.
        match usize::try_from(address.wrapping_sub(self.start)) {
            Ok(offset) => self.bytes.get(offset..).unwrap_or_default(),
            Err(_) => &[],
        }
    }
}
