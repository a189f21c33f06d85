//! What is walked: real tables of KVM, from the fixtures.

use std::ops::Range;

use slat_image::{Image, Options};

/// One image, twice: flat for the floors and memflow, opened for slat.
pub struct World {
    /// All memory from address 0 on, holes filled with zeros.
    pub flat: Vec<u8>,
    /// The same as one range.
    pub image: Image,
}

/// Addresses to translate, and what to call them.
pub struct Stream {
    /// The column's head.
    pub name: &'static str,
    /// The addresses, one for every page that is visited.
    pub addresses: Vec<u64>,
}

/// How many addresses a stream has.
pub const BATCH: usize = 1024;

impl World {
    /// The fixture of this name.
    pub fn open(name: &str) -> World {
        let path = format!("{}/../../fixtures/{name}.slice", env!("CARGO_MANIFEST_DIR"));
        let image = Options::new().open(&path).expect("the fixture opens");
        let end = image.ranges().last().expect("it has a range").end() + 1;
        let mut flat = vec![0; end as usize];
        for range in image.ranges() {
            let (start, last) = (*range.start() as usize, *range.end() as usize);
            assert!(image.read(start as u64, &mut flat[start..=last]), "a range is whole");
        }
        let image = Image::from_raw(0, flat.clone()).expect("it has memory");
        World { flat, image }
    }
}

/// `BATCH` addresses in the first `pages` of `range` that `walk` translates, in a random order (xorshift, fixed seed).
fn random(range: Range<u64>, pages: usize, walk: impl Fn(u64) -> Option<u64>) -> Vec<u64> {
    let mapped: Vec<u64> =
        range.step_by(4096).filter(|&page| walk(page).is_some()).take(pages).collect();
    assert_eq!(mapped.len(), pages, "the fixture maps enough of the range");
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    (0..BATCH)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            mapped[(state % pages as u64) as usize] + (state >> 50 & 0xff8)
        })
        .collect()
}

/// The four columns, of addresses that `walk` translates. In the guests of the fixtures, pages from
/// 32 MiB on are mapped by 4 KiB pages and 4 to 12 MiB by 2 MiB pages of stage 2.
pub fn streams(walk: impl Fn(u64) -> Option<u64>) -> [Stream; 4] {
    let small = (32 << 20)..(64 << 20);
    let large = (4 << 20)..(12 << 20);
    [
        Stream { name: "4K warm", addresses: random(small.clone(), 16, &walk) },
        Stream { name: "4K random", addresses: random(small, 2048, &walk) },
        Stream { name: "2M warm", addresses: random(large.clone(), 16, &walk) },
        Stream { name: "2M random", addresses: random(large, 2048, &walk) },
    ]
}
