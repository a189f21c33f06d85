//! The memory under a walk: byte orders, holes, and stores that stay beside the image.

use proptest::prelude::*;
use slat::{Access, ByteOrder, EntryLayout, EntrySize, Gpa, Memory, Outside, Spa};
use slat_image::Image;

const LAYOUTS: [EntryLayout; 4] = [
    EntryLayout::LE64,
    EntryLayout::LE32,
    EntryLayout { size: EntrySize::Eight, order: ByteOrder::Big },
    EntryLayout { size: EntrySize::Four, order: ByteOrder::Big },
];

#[test]
fn entries_are_read_in_either_order_and_size() {
    let image = Image::from_raw(0x1000, (1..=16).collect()).unwrap();
    let expected = [0x100f_0e0d_0c0b_0a09, 0x0c0b_0a09, 0x090a_0b0c_0d0e_0f10, 0x090a_0b0c];
    for (layout, expected) in LAYOUTS.into_iter().zip(expected) {
        let access = Access::default();
        let value = image.read_only::<Spa>().read(Spa::new(0x1008), layout, &access).unwrap();
        assert_eq!(value.value, expected);
        let value = image.overlay::<Gpa>().read(Gpa::new(0x1008), layout, &access).unwrap();
        assert_eq!(value.value, expected);
        let address = Spa::new(0x1010);
        assert_eq!(
            image.read_only().read(address, layout, &access),
            Err(Outside { address, write: false })
        );
        assert_eq!(
            image.overlay().compare_exchange(address, layout, 0, 1, &access),
            Err(Outside { address, write: true })
        );
    }
}

/// Wherever the image begins, and whatever an address is a multiple of.
#[test]
fn every_address_reads_what_the_image_has_there() {
    let access = Access::default();
    for base in 0x1000..0x1009 {
        let image = Image::from_raw(base, (0..40).collect()).unwrap();
        let mut memory = image.read_only::<Spa>();
        for address in 0xff0..0x1040 {
            for (layout, expected) in [
                (EntryLayout::LE64, image.read_u64(address)),
                (EntryLayout::LE32, image.read_u32(address).map(u64::from)),
            ] {
                let read = memory.read(Spa::new(address), layout, &access);
                assert_eq!(read.ok().map(|read| read.value), expected, "{base:#x} {address:#x}");
            }
        }
        for address in [0, 7, u64::MAX - 8, u64::MAX] {
            assert!(memory.read(Spa::new(address), EntryLayout::LE64, &access).is_err());
        }
    }
}

proptest! {
    /// Any sequence of stores is seen as a plain array of bytes would show it.
    #[test]
    fn an_overlay_is_a_copy(
        stores in prop::collection::vec((0u64..8, 0usize..4, any::<u64>(), any::<bool>()), 1..40),
    ) {
        let mut plain: Vec<u8> = (0..64).map(|byte| byte * 3 + 1).collect();
        let image = Image::from_raw(0, plain.clone()).unwrap();
        let mut overlay = image.overlay::<Spa>();
        let access = Access::default();
        for (slot, layout, value, expect_right) in stores {
            let layout = LAYOUTS[layout];
            let size = layout.size.bytes() as usize;
            let at = slot as usize * 8 / size * size;
            let address = Spa::new(at as u64);
            let mut old = plain[at..at + size].to_vec();
            if layout.order == ByteOrder::Little {
                old.reverse();
            }
            let old = old.iter().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte));
            prop_assert_eq!(overlay.read(address, layout, &access).unwrap().value, old);
            let value = if size == 4 { value & 0xffff_ffff } else { value };
            let expected = if expect_right { old } else { !old };
            let stored = overlay.compare_exchange(address, layout, expected, value, &access);
            prop_assert_eq!(stored, Ok(expect_right));
            if expect_right {
                let bytes = value.to_be_bytes();
                let mut bytes = bytes[8 - size..].to_vec();
                if layout.order == ByteOrder::Little {
                    bytes.reverse();
                }
                plain[at..at + size].copy_from_slice(&bytes);
            }
        }
        for at in (0..64).step_by(4) {
            let read = overlay.read(Spa::new(at), EntryLayout::LE32, &access).unwrap().value as u32;
            prop_assert_eq!(&read.to_le_bytes()[..], &plain[at as usize..][..4]);
        }
        prop_assert_eq!(image.read_u64(0), Some(0x1613_100d_0a07_0401));
    }
}
