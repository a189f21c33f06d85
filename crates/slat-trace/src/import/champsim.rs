//! ChampSim: an array of records, one an instruction, without header.
//!
//! | offset | 64-byte record | offset | cloudsuite record, 96 bytes |
//! |---|---|---|---|
//! | 0 | u64 instruction pointer | 0 | the same |
//! | 8 | u8 is a branch | 8 | the same |
//! | 9 | u8 branch taken | 9 | the same |
//! | 10 | u8 written registers, 2 | 10 | 4 |
//! | 12 | u8 read registers, 4 | 14 | 4 |
//! | 16 | u64 stored-to addresses, 2 | 24 | 4 |
//! | 32 | u64 loaded-from addresses, 4 | 56 | 4 |
//! | | | 88 | u8 address-space number, 2, then 6 unused |
//!
//! An address 0 means no operand. Little-endian. No access has a size.

use super::error::{Cause, ImportError};
use super::input::Input;
use super::{Reader, Reference, References};
use crate::Kind;

/// Which of the two records a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    size: usize,
    stores: (usize, usize),
    loads: (usize, usize),
}

/// ChampSim's own 64-byte record.
pub(crate) const CHAMPSIM: Layout = Layout { size: 64, stores: (16, 2), loads: (32, 4) };

/// The 96-byte record of the cloudsuite traces.
pub(crate) const CLOUDSUITE: Layout = Layout { size: 96, stores: (24, 4), loads: (56, 4) };

fn word(record: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(record[at..at + 8].try_into().expect("eight bytes"))
}

impl Layout {
    fn addresses(record: &[u8], (at, count): (usize, usize)) -> impl Iterator<Item = u64> + '_ {
        (0..count).map(move |i| word(record, at + 8 * i)).filter(|&address| address != 0)
    }

    /// Whether the two flags are flags.
    fn flags_are_flags(record: &[u8]) -> bool {
        record[8] <= 1 && record[9] <= 1
    }

    /// Whether every whole record in `head` could be one of this layout.
    ///
    /// There is no magic number; a record that passes has sane flags, an instruction pointer, and
    /// addresses that are canonical within 57 bits, which random bytes do with a chance below 2^-35.
    pub(crate) fn fits(&self, head: &[u8]) -> bool {
        let canonical = |address: u64| ((address as i64) << 7 >> 7) as u64 == address;
        head.len() >= self.size
            && head.chunks_exact(self.size).all(|record| {
                let ip = word(record, 0);
                Layout::flags_are_flags(record)
                    && ip != 0
                    && canonical(ip)
                    && Layout::addresses(record, self.stores).all(canonical)
                    && Layout::addresses(record, self.loads).all(canonical)
            })
    }
}

/// Reads the records.
pub(crate) struct ChampSim {
    input: Input,
    layout: Layout,
}

impl ChampSim {
    pub(crate) fn new(input: Input, layout: Layout) -> Self {
        ChampSim { input, layout }
    }
}

impl Reader for ChampSim {
    fn fill(&mut self, batch: &mut References) -> Result<bool, ImportError> {
        let Layout { size, stores, loads } = self.layout;
        while !batch.is_full() {
            if !self.input.ensure(size)? {
                let left = self.input.data().len();
                if left == 0 {
                    return Ok(false);
                }
                let what = format!("{left} bytes of a {size}-byte record");
                let error = self.input.error(0, Cause::Truncated(what));
                self.input.consume(left);
                return Err(error);
            }
            let mut used = 0;
            for record in self.input.data().chunks_exact(size) {
                if !Layout::flags_are_flags(record) {
                    break;
                }
                let mut add = |kind, address| {
                    batch.list.push(Reference { address, size: 0, lane: 0, space: 0, kind });
                };
                add(Kind::Fetch, word(record, 0));
                Layout::addresses(record, loads).for_each(|address| add(Kind::Load, address));
                Layout::addresses(record, stores).for_each(|address| add(Kind::Store, address));
                used += size;
                if batch.is_full() {
                    break;
                }
            }
            self.input.consume(used);
            if used == 0 {
                let record = self.input.data();
                let what = format!(
                    "not a ChampSim record: the branch flags are {} and {}, they must be 0 or 1",
                    record[8], record[9]
                );
                return Err(self.input.error(8, Cause::Malformed(what)));
            }
        }
        Ok(true)
    }

    fn notes(&self) -> Vec<String> {
        vec!["ChampSim traces give no sizes: no access crosses a page".to_owned()]
    }
}
