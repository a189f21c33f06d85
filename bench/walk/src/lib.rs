//! What the benchmark of walks compares: a floor that checks nothing, and memflow.

use slat_image::{Image, Options};

/// The image that is walked, as one flat range: the fixture's ranges in their places, zeros between.
pub fn flat_image(path: &str) -> Vec<u8> {
    let image = Options::new().open(path).expect("the fixture opens");
    let end = image.ranges().last().expect("it has a range").end() + 1;
    let mut flat = vec![0; end as usize];
    for range in image.ranges() {
        let (start, last) = (*range.start() as usize, *range.end() as usize);
        assert!(image.read(start as u64, &mut flat[start..=last]), "a range is whole");
    }
    flat
}

/// The image opened as one range.
pub fn open(flat: Vec<u8>) -> Image {
    Options::new().open_bytes("flat", flat).expect("it opens")
}

const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

#[inline]
fn entry(memory: &[u8], address: u64) -> Option<u64> {
    let bytes = memory.get(address as usize..)?.first_chunk::<8>()?;
    Some(u64::from_le_bytes(*bytes))
}

/// The floor: four levels, present bit and page size, nothing else.
#[inline]
pub fn floor(memory: &[u8], root: u64, address: u64) -> Option<u64> {
    let mut table = root;
    let mut shift = 39;
    loop {
        let entry = entry(memory, table + (address >> shift & 0x1ff) * 8)?;
        if entry & 1 == 0 {
            return None;
        }
        if shift == 12 || entry & 0x80 != 0 {
            let offset = (1u64 << shift) - 1;
            return Some(entry & ADDRESS & !offset | address & offset);
        }
        table = entry & ADDRESS;
        shift -= 9;
    }
}

/// The floor for two stages.
#[inline]
pub fn floor_nested(memory: &[u8], nested: u64, root: u64, address: u64) -> Option<u64> {
    let mut table = root;
    let mut shift = 39;
    loop {
        let at = floor(memory, nested, table + (address >> shift & 0x1ff) * 8)?;
        let entry = entry(memory, at)?;
        if entry & 1 == 0 {
            return None;
        }
        if shift == 12 || entry & 0x80 != 0 {
            let offset = (1u64 << shift) - 1;
            return floor(memory, nested, entry & ADDRESS & !offset | address & offset);
        }
        table = entry & ADDRESS;
        shift -= 9;
    }
}
