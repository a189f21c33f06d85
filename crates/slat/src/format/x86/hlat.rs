//! Intel hypervisor-managed linear-address translation (SDM 3A 5.5.5).
//!
//! Linear addresses under the HLAT prefix are walked from a root of the hypervisor's (`HLATP`); an
//! entry with bit 11 set sends the walk back to the ordinary root. Everything else is 4- or 5-level
//! paging.

use core::fmt;

use super::bits;
use super::long::Long;
use crate::access::{Access, Kind, Stage1Page};
use crate::fault::Cause;
use crate::format::{Decoded, Format, Found, Start};
use crate::memory::EntryLayout;
use crate::memory_type::{StageType, TypeBits};
use crate::regime::Regime;

/// Restart: the walk begins anew at CR3.
pub const RESTART: u64 = 1 << 11;

/// The two roots.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Root {
    /// The hypervisor's root.
    pub hlatp: u64,
    /// The guest's.
    pub cr3: u64,
}

/// 4- or 5-level paging with HLAT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hlat {
    long: Long,
    prefix_bits: u8,
    active: bool,
}

impl Hlat {
    /// HLAT in front of `long`. `prefix_bits` is the HLAT prefix size: addresses whose highest so
    /// many bits are all ones are walked from HLATP; 0 means all addresses.
    pub fn new(long: Long, prefix_bits: u8) -> Hlat {
        Hlat { long, prefix_bits: prefix_bits.min(63), active: true }
    }

    /// Whether this address is walked from HLATP.
    pub fn applies(&self, address: u64) -> bool {
        let prefix = u32::from(self.prefix_bits);
        self.active && (prefix == 0 || (!address).leading_zeros() >= prefix)
    }

    /// The ordinary paging.
    pub fn long(&self) -> &Long {
        &self.long
    }
}

impl Format for Hlat {
    type Root = Root;

    /// Bit 11 means a restart in the hypervisor's tables alone.
    const HALVES: bool = true;

    fn half(&self, input: u64) -> Self {
        Hlat { active: self.applies(input), ..*self }
    }

    fn name(&self) -> &'static str {
        self.long.name()
    }

    fn stage(&self) -> u8 {
        1
    }

    fn layout(&self) -> EntryLayout {
        EntryLayout::LE64
    }

    fn begin(
        &self,
        root: &Root,
        input: u64,
        access: &Access,
        regime: &Regime,
    ) -> Result<Start, (u8, Cause)> {
        let table = if self.applies(input) { root.hlatp } else { root.cr3 };
        self.long.begin(&table, input, access, regime)
    }

    fn shift(&self, level: u8) -> u32 {
        self.long.shift(level)
    }

    fn index_bits(&self, level: u8) -> u32 {
        self.long.index_bits(level)
    }

    fn decode(&self, entry: u64, level: u8) -> Decoded {
        match self.long.decode(entry, level) {
            // Reserved bits are checked first (SDM 3A 5.5.5 names the restart for entries in use).
            reserved @ (Decoded::Empty | Decoded::Reserved(_)) => reserved,
            _ if self.active && entry & RESTART != 0 => Decoded::Restart,
            decoded => decoded,
        }
    }

    fn check(&self, found: &Found, access: &Access, regime: &Regime) -> Result<(), Cause> {
        self.long.check(found, access, regime)
    }

    fn key(&self, found: &Found) -> Option<u8> {
        self.long.key(found)
    }

    fn touched(&self, entry: u64, level: u8, is_leaf: bool, access: &Access) -> u64 {
        self.long.touched(entry, level, is_leaf, access)
    }

    fn type_bits(&self, found: &Found) -> TypeBits {
        self.long.type_bits(found)
    }

    fn type_of(&self, bits: TypeBits, kind: Kind, regime: &Regime) -> StageType {
        self.long.type_of(bits, kind, regime)
    }

    fn arch_level(&self, level: u8) -> i8 {
        self.long.arch_level(level)
    }

    fn describe(&self, entry: u64, level: u8, f: &mut dyn fmt::Write) -> fmt::Result {
        self.long.describe(entry, level, f)?;
        if self.active && entry & (RESTART | bits::P) == RESTART | bits::P {
            f.write_str(" restart")?;
        }
        Ok(())
    }

    fn after_restart(&self) -> Option<Self> {
        self.active.then_some(Hlat { active: false, ..*self })
    }

    fn page(&self, found: &Found, regime: &Regime) -> Stage1Page {
        self.long.page(found, regime)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::x86::Controls;
    use crate::format::x86::long::Processor;
    use crate::{Gpa, Gva, References, SliceMemory, Spa, Stage, walk};

    /// One 1 GiB page a tree: HLATP at 0x1000 restarts at the PDPTE of its second gigabyte.
    fn memory(bytes: &mut [u8]) -> SliceMemory<'_, Spa> {
        let mut memory = SliceMemory::new(Spa::new(0), bytes);
        let mut set = |address: u64, entry: u64| {
            memory.poke(Spa::new(address), EntryLayout::LE64, entry).unwrap();
        };
        set(0x1000, 0x2003);
        set(0x2000, 0x4000_0083);
        set(0x2008, RESTART | 0x83);
        set(0x3000, 0x4003);
        set(0x4000, 0x8000_0083);
        set(0x4008, RESTART | 0xc000_0083);
        memory
    }

    fn translated(prefix_bits: u8, address: u64) -> (u64, u64) {
        let mut bytes = std::vec![0u8; 0x5000];
        let long = Long::four(Controls::default(), Processor::default());
        let root = Root { hlatp: 0x1000, cr3: 0x3000 };
        let stage = Stage::<_, Gva, Spa>::new(Hlat::new(long, prefix_bits), root);
        let counted = References::default();
        let regime = Regime::default();
        let mut memory = memory(&mut bytes);
        let access = Access::default();
        let found =
            walk(&stage, &mut memory, Gva::new(address), &access, &regime, &counted).unwrap();
        (found.output.raw(), counted.count())
    }

    /// SDM 3A 5.5.5: entries that are not present, or have reserved bits, fault in the first tree.
    #[test]
    fn entries_that_fault_do_not_restart() {
        let hlat = Hlat::new(Long::four(Controls::default(), Processor::default()), 0);
        assert_eq!(hlat.decode(RESTART, 1), Decoded::Empty);
        assert!(matches!(hlat.decode(RESTART | 1 | 1 << 63, 1), Decoded::Reserved(_)));
        assert_eq!(hlat.decode(RESTART | 1 | 0x1000, 1), Decoded::Restart);
    }

    #[test]
    fn the_hypervisors_tables_translate() {
        assert_eq!(translated(0, 0x123), (0x4000_0123, 2));
    }

    #[test]
    fn a_restart_reads_both_trees_and_ignores_bit_11_in_the_second() {
        assert_eq!(translated(0, 0x4000_0123), (0xc000_0123, 4));
    }

    #[test]
    fn addresses_outside_the_prefix_are_the_guests() {
        assert_eq!(translated(1, 0x123), (0x8000_0123, 2));
    }

    #[test]
    fn the_prefix_is_ones() {
        let long = Long::four(Controls::default(), Processor::default());
        let hlat = Hlat::new(long, 17);
        assert!(hlat.applies(0xffff_8000_0000_0000));
        assert!(!hlat.applies(0x7fff_8000_0000_0000));
        let _ = Gpa::new(0);
    }
}
