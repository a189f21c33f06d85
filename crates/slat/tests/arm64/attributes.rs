//! Memory attributes: MAIR bytes, and what two stages make of each other.

use slat::Kind;
use slat::memory_type::arm::{Attributes, Cache, Device, Memory, Shareability, Stage2};
use slat::regime::arm::{State, hcr};

fn mair(byte: u8) -> Attributes {
    Attributes::from_mair(u64::from(byte) << 16, 2, Shareability::Inner)
}

#[test]
fn every_defined_mair_byte_reads_back() {
    for byte in 0..=0xffu8 {
        let defined = match (byte >> 4, byte & 15) {
            // Device, bit 0 being XS; bit 1 is UNPREDICTABLE.
            (0, low) => low & 2 == 0,
            (4, 0) | (10, 0) | (15, 0) => true,
            (_, 0) => false,
            _ => true,
        };
        if defined {
            assert_eq!(mair(byte).encoding(), byte, "{byte:#x}");
        }
    }
    assert_eq!(mair(0x04).memory, Memory::Device(Device::nGnRE));
    assert_eq!(mair(0x44).memory, Memory::NON_CACHEABLE);
    assert_eq!(mair(0xff).memory, Memory::WRITE_BACK);
    assert!(mair(0xf0).tagged && mair(0xf0).memory == Memory::WRITE_BACK);
    assert_eq!(mair(0x44).effective().shareability, Shareability::Outer);
    assert_eq!(mair(0xff).effective().shareability, Shareability::Inner);
}

#[test]
fn words() {
    assert_eq!(mair(0xff).to_string(), "Normal WB RWA, ISH");
    assert_eq!(mair(0x44).effective().to_string(), "Normal NC, OSH");
    assert_eq!(mair(0x00).effective().to_string(), "Device-nGnRnE, OSH");
    assert_eq!(mair(0x4f).to_string(), "Normal outer NC inner WB RWA, ISH");
    assert_eq!(mair(0x7f).to_string(), "Normal outer WB RWA transient inner WB RWA, ISH");
}

fn kind(memory: Memory) -> String {
    let cache = |cache| match cache {
        Cache::NonCacheable => "NC",
        Cache::WriteThrough(_) => "WT",
        Cache::WriteBack(_) => "WB",
    };
    match memory {
        Memory::Device(device) => format!("{device:?}"),
        Memory::Normal { outer, inner } => format!("{}/{}", cache(outer), cache(inner)),
    }
}

fn combined(byte: u8, mem_attr: u8, access: Kind, bits: u64) -> String {
    let state = State::new(0, bits);
    let stage2 = Stage2::new(mem_attr, Shareability::Non, false, access, &state);
    kind(stage2.combined_with(mair(byte)).memory)
}

/// Without FWB the more restrictive of both: device before Normal, and each cache by itself.
#[test]
fn without_forced_write_back() {
    let rank = ["nGnRnE", "nGnRE", "nGRE", "GRE"];
    for (first, name1) in rank.iter().enumerate() {
        for (second, name2) in rank.iter().enumerate() {
            let both = combined((first << 2) as u8, second as u8, Kind::Read, 0);
            assert_eq!(both, rank[first.min(second)]);
            assert_eq!(combined(0xff, second as u8, Kind::Read, 0), *name2);
            assert_eq!(combined((first << 2) as u8, 0xf, Kind::Read, 0), *name1);
        }
    }
    // MAIR nibbles and MemAttr codes of NC, WT, WB.
    let caches = [("NC", 0x4u8, 1u8), ("WT", 0xb, 2), ("WB", 0xf, 3)];
    for (i, (_, outer1, _)) in caches.iter().enumerate() {
        for (j, (_, inner1, _)) in caches.iter().enumerate() {
            for (k, (.., outer2)) in caches.iter().enumerate() {
                for (l, (.., inner2)) in caches.iter().enumerate() {
                    let both = combined(outer1 << 4 | inner1, outer2 << 2 | inner2, Kind::Read, 0);
                    let expected = format!("{}/{}", caches[i.min(k)].0, caches[j.min(l)].0);
                    assert_eq!(both, expected);
                }
            }
        }
    }
}

#[test]
fn with_forced_write_back() {
    let fwb = |byte, mem_attr| combined(byte, mem_attr, Kind::Read, hcr::FWB);
    // 0b110 forces write-back, device or not; 0b111 leaves stage 1's; 0b101 takes caches away.
    for byte in [0x00, 0x0c, 0x44, 0xbb, 0xff] {
        assert_eq!(fwb(byte, 6), "WB/WB");
        assert_eq!(fwb(byte, 7), kind(mair(byte).memory));
        let uncached = if byte < 0x10 { kind(mair(byte).memory) } else { "NC/NC".to_owned() };
        assert_eq!(fwb(byte, 5), uncached);
    }
    assert_eq!(fwb(0xff, 1), "nGnRE");
    assert_eq!(fwb(0x0c, 1), "nGnRE");
    assert_eq!(fwb(0x00, 1), "nGnRnE");
    // Stage 1's hints survive being forced.
    let state = State::new(0, hcr::FWB);
    let stage2 = Stage2::new(6, Shareability::Non, false, Kind::Read, &state);
    assert_eq!(stage2.combined_with(mair(0xee)).encoding(), 0xee);
    assert_eq!(stage2.combined_with(mair(0x44)).encoding(), 0xff);
}

#[test]
fn caches_off_by_kind_of_access() {
    for (bits, data, fetch) in
        [(hcr::CD, "NC/NC", "WB/WB"), (hcr::ID, "WB/WB", "NC/NC"), (0, "WB/WB", "WB/WB")]
    {
        assert_eq!(combined(0xff, 0xf, Kind::Read, bits), data);
        assert_eq!(combined(0xff, 0xf, Kind::Write, bits), data);
        assert_eq!(combined(0xff, 0xf, Kind::Execute, bits), fetch);
    }
    assert_eq!(combined(0xff, 1, Kind::Read, hcr::CD), "nGnRE", "a device stays one");
    assert_eq!(combined(0xff, 1, Kind::Execute, 0), "NC/NC", "fetched from as from memory");
    assert_eq!(combined(0x04, 6, Kind::Read, hcr::FWB | hcr::CD), "NC/NC");
}

/// The wider shareability acts; what is not cached is outer shareable.
#[test]
fn shareability() {
    use Shareability::{Inner, Non, Outer};
    let both = |first, second, mem_attr| {
        let attributes = Attributes::new(Memory::WRITE_BACK, first);
        let state = State::default();
        let stage2 = Stage2::new(mem_attr, second, false, Kind::Read, &state);
        stage2.combined_with(attributes).shareability
    };
    for (first, second, wider) in [
        (Non, Non, Non),
        (Non, Inner, Inner),
        (Inner, Non, Inner),
        (Inner, Outer, Outer),
        (Outer, Non, Outer),
    ] {
        assert_eq!(both(first, second, 0xf), wider);
        assert_eq!(both(first, second, 0x5), Outer, "non-cacheable");
        assert_eq!(both(first, second, 0x0), Outer, "device");
    }
}
