//! A memory without end: every entry that was never stored is made from its address and a seed. Most
//! are plausible, so that walks get far; any may be anything.

use std::collections::HashMap;

use slat::{Access, ByteOrder, EntryLayout, Memory, Reached, Spa, Value};

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Infinite {
    pub(crate) seed: u64,
    /// Bits that most output addresses have.
    pub(crate) address_bits: u32,
    pub(crate) stored: HashMap<u64, u64>,
    pub(crate) reads: u64,
}

/// SplitMix64.
pub(crate) fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

impl Infinite {
    pub(crate) fn new(seed: u64, address_bits: u32) -> Infinite {
        Infinite { seed, address_bits, stored: HashMap::new(), reads: 0 }
    }

    pub(crate) fn get(&self, address: u64) -> u64 {
        if let Some(&entry) = self.stored.get(&address) {
            return entry;
        }
        let bits = mix(self.seed ^ mix(address));
        let dice = mix(bits);
        let rarely = |shift: u32, of: u64| (dice >> shift & 0xff) < of;
        if rarely(0, 3) {
            return bits;
        }
        // Valid table or page most of the time, with an address in range; then the attributes that
        // would otherwise end most walks.
        let mut entry = bits & !3 | if rarely(8, 25) { 1 } else { 3 };
        if !rarely(16, 5) {
            let address = 0xffff_ffff_f000 & !((1 << self.address_bits.min(47)) - 1);
            entry &= !(address | 3 << 48 | 0xf << 12);
        }
        if !rarely(24, 40) {
            entry |= 1 << 10;
        }
        if !rarely(32, 60) {
            entry |= 3 << 6;
        }
        if !rarely(40, 60) {
            entry &= !(3 << 53 | 0xf << 59);
        }
        entry
    }

    pub(crate) fn swap(&mut self, address: u64, current: u64, new: u64) -> bool {
        let same = self.get(address) == current;
        if same {
            self.stored.insert(address, new);
        }
        same
    }
}

/// An entry as the other byte order holds it reads as the same entry, so that what is compared is
/// whether the walk asks for the right order at all.
impl Memory for Infinite {
    type Address = Spa;
    type Fault = ();

    fn read(&mut self, address: Spa, layout: EntryLayout, _: &Access) -> Result<Value, ()> {
        assert_eq!(address.raw() % 8, 0, "entries are aligned");
        self.reads += 1;
        let value = self.get(address.raw());
        let value = if layout.order == ByteOrder::Big { value.swap_bytes() } else { value };
        Ok(Value { value, reached: Reached::DIRECTLY })
    }

    fn compare_exchange(
        &mut self,
        address: Spa,
        layout: EntryLayout,
        current: u64,
        new: u64,
        _: &Access,
    ) -> Result<bool, ()> {
        let order = |value: u64| match layout.order {
            ByteOrder::Big => value.swap_bytes(),
            ByteOrder::Little => value,
        };
        Ok(self.swap(address.raw(), order(current), order(new)))
    }
}
