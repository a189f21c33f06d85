//! The first pass over a trace: which pages it touches, by whom, and how many accesses there are.

use std::collections::HashMap;

use super::encoding::Encoding;
use super::frames::Frames;
use super::{Pages, Policy};
use crate::import::{Cause, ImportError, Place, Reference, References, Trace};
use crate::{Arch, Kind};

/// 4 KiB pages of a 2 MiB region.
pub(super) const REGION_PAGES: u64 = 512;

/// The most vCPUs that a stream can have.
const MOST_VCPUS: usize = 255;

/// What is known of a 2 MiB region of one address space.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Region {
    touched: [u64; 8],
    /// Whether an instruction is fetched from it.
    pub(super) fetched: bool,
    /// Whether it gets one 2 MiB page, if there is a block for it.
    pub(super) huge: bool,
}

impl Region {
    fn first(&self) -> u64 {
        let word = self.touched.iter().position(|&word| word != 0).unwrap_or(0);
        word as u64 * 64 + u64::from(self.touched[word].trailing_zeros())
    }

    fn last(&self) -> u64 {
        let word = self.touched.iter().rposition(|&word| word != 0).unwrap_or(0);
        word as u64 * 64 + 63 - u64::from(self.touched[word].leading_zeros())
    }

    fn pages(&self) -> u64 {
        self.touched.iter().map(|word| u64::from(word.count_ones())).sum()
    }
}

/// How many accesses a trace has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Data reads.
    pub loads: u64,
    /// Data writes.
    pub stores: u64,
    /// Instruction fetches.
    pub fetches: u64,
}

impl Counts {
    /// Counts one more.
    pub(super) fn add(&mut self, kind: Kind) {
        match kind {
            Kind::Load => self.loads += 1,
            Kind::Store => self.stores += 1,
            Kind::Fetch => self.fetches += 1,
        }
    }

    /// All of them.
    #[must_use]
    pub fn accesses(&self) -> u64 {
        self.loads + self.stores + self.fetches
    }
}

/// What the first pass found.
#[derive(Debug)]
pub(super) struct Survey {
    pub(super) encoding: Encoding,
    /// The first address space of each lane.
    pub(super) lanes: Vec<u16>,
    pub(super) spaces: Vec<HashMap<u64, Region>>,
    pub(super) counts: Counts,
    /// Where the trace ends early, if that was to be accepted.
    pub(super) damage: Option<ImportError>,
    /// Blocks of 2 MiB that the guest's memory needs.
    pub(super) blocks: u64,
}

/// Reads the whole trace.
pub(super) fn survey(
    trace: &mut Trace,
    policy: &Policy,
    until_damage: bool,
) -> Result<Survey, ImportError> {
    let mut walk = Walk {
        levels: 4,
        arch: Arch::X86_64,
        lanes: Vec::new(),
        spaces: Vec::new(),
        counts: Counts::default(),
        recent: vec![None; RECENT].into_boxed_slice(),
        regions: 0,
        most_regions: policy.memory >> 13,
    };
    let mut references = References::default();
    let mut damage = None;
    loop {
        let more = match trace.next(&mut references) {
            Ok(more) => more,
            Err(error) if until_damage => {
                damage = Some(error);
                false
            }
            Err(error) => return Err(error),
        };
        walk.arch = trace.arch().unwrap_or(Arch::X86_64);
        let mut references = references.as_slice().iter();
        if let Some(cause) = references.find_map(|reference| walk.take(reference).err()) {
            let place = Place::Access(walk.counts.accesses());
            let error = ImportError { path: trace.path().to_owned(), place, cause };
            // What is too much for the guest that was asked for is no damage.
            if !until_damage || !matches!(error.cause, Cause::Malformed(_)) {
                return Err(error);
            }
            damage = Some(error);
            break;
        }
        if !more {
            break;
        }
    }
    let Walk { levels, arch, lanes, mut spaces, counts, .. } = walk;
    let encoding = Encoding { arch, levels };
    if policy.pages == Pages::Transparent {
        spaces.iter_mut().for_each(choose);
    }
    let blocks = spaces
        .iter()
        .map(|space| blocks(space, levels))
        .fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    let blocks = Frames::blocks_for(blocks.0, blocks.1, policy.fragmentation);
    Ok(Survey { encoding, lanes, spaces, counts, damage, blocks })
}

/// Pages that need no second look; a power of two.
const RECENT: usize = 1 << 12;

struct Walk {
    levels: u8,
    arch: Arch,
    lanes: Vec<u16>,
    spaces: Vec<HashMap<u64, Region>>,
    counts: Counts,
    /// Page, space and whether fetched of what was entered lately.
    recent: Box<[Option<(u64, u16, bool)>]>,
    regions: u64,
    most_regions: u64,
}

impl Walk {
    fn take(&mut self, reference: &Reference) -> Result<(), Cause> {
        // Before anything is kept: what no table can translate must not shape the guest.
        let (first, levels) = self.normal(reference.address, self.levels)?;
        let last = reference.address.wrapping_add(u64::from(reference.size.max(1)) - 1);
        let (last, levels) = self.normal(last, levels)?;
        self.levels = levels;
        let lane = usize::from(reference.lane);
        if lane >= self.lanes.len() {
            // Lanes are numbered in order of appearance.
            self.lanes.push(reference.space);
            if self.lanes.len() > MOST_VCPUS {
                let what = format!(
                    "more than {MOST_VCPUS} threads; a machine has at most that many vCPUs: \
                     make a lane of each CPU, or one of the whole trace"
                );
                return Err(Cause::Refused(what));
            }
        }
        let space = usize::from(reference.space);
        while space >= self.spaces.len() {
            self.spaces.push(HashMap::new());
        }
        let fetched = reference.kind == Kind::Fetch;
        for page in first >> 12..=last.max(first) >> 12 {
            let entered = Some((page, reference.space, fetched));
            let recent = &mut self.recent[(page as usize ^ space) % RECENT];
            if *recent == entered {
                continue;
            }
            *recent = entered;
            let regions = &mut self.regions;
            let region = self.spaces[space].entry(page / REGION_PAGES).or_insert_with(|| {
                *regions += 1;
                Region::default()
            });
            region.touched[(page % REGION_PAGES / 64) as usize] |= 1 << (page % 64);
            region.fetched |= fetched;
            if self.regions > self.most_regions {
                let what = format!(
                    "the pages touched need more memory than the guest's {} MiB; give it more",
                    self.most_regions >> 7
                );
                return Err(Cause::Refused(what));
            }
        }
        self.counts.add(reference.kind);
        Ok(())
    }

    /// The address as tables of so many levels see it, or of more where it needs them.
    fn normal(&self, address: u64, levels: u8) -> Result<(u64, u8), Cause> {
        let normal = |levels| Encoding { arch: self.arch, levels }.normal(address);
        if let Some(address) = normal(levels) {
            return Ok((address, levels));
        }
        match self.arch {
            Arch::X86_64 => {
                let found = normal(5).ok_or_else(|| {
                    Cause::Malformed(format!(
                        "{address:#x} is no canonical address, not even with 57 bits"
                    ))
                })?;
                Ok((found, 5))
            }
            Arch::Aarch64 => {
                let what = format!(
                    "{address:#x} is no address of a program (48 bits, the top byte ignored)"
                );
                Err(Cause::Malformed(what))
            }
        }
    }
}

/// Decides which regions of a space get a 2 MiB page; the rule is on the front of [`super`].
fn choose(space: &mut HashMap<u64, Region>) {
    let mut numbers: Vec<u64> = space.keys().copied().collect();
    numbers.sort_unstable();
    let page = |number: u64, within: u64| number * REGION_PAGES + within;
    let mut rest = &numbers[..];
    while let Some(&first) = rest.first() {
        // A region without a touched page is a hole of 2 MiB; so is one across the border of two.
        let together = |pair: &[u64]| {
            let (before, after) =
                (page(pair[0], space[&pair[0]].last()), page(pair[1], space[&pair[1]].first()));
            after - before <= REGION_PAGES
        };
        let length = 1 + rest.windows(2).take_while(|pair| together(pair)).count();
        let (mapping, after) = rest.split_at(length);
        rest = after;
        let last = mapping[length - 1];
        let start = page(first, space[&first].first());
        let end = page(last, space[&last].last());
        for &number in mapping {
            let inside = start <= page(number, 0) && page(number, REGION_PAGES - 1) <= end;
            let region = space.get_mut(&number).expect("a key of the map");
            region.huge = inside && !region.fetched;
        }
    }
}

/// How many 2 MiB blocks and at most how many 4 KiB frames a space needs.
fn blocks(space: &HashMap<u64, Region>, levels: u8) -> (u64, u64) {
    let huge = space.values().filter(|region| region.huge).count() as u64;
    let pages: u64 = space.values().filter(|region| !region.huge).map(Region::pages).sum();
    let mut numbers: Vec<u64> = space.keys().copied().collect();
    let mut tables = 1;
    for _ in 1..levels {
        numbers.sort_unstable();
        numbers.dedup();
        tables += numbers.len() as u64;
        numbers.iter_mut().for_each(|number| *number >>= 9);
    }
    (huge, pages + tables)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(pages: &[u64], fetched: &[u64]) -> HashMap<u64, Region> {
        let mut space: HashMap<u64, Region> = HashMap::new();
        for &page in pages.iter().chain(fetched) {
            let region = space.entry(page / 512).or_default();
            region.touched[(page % 512 / 64) as usize] |= 1 << (page % 64);
            region.fetched |= fetched.contains(&page);
        }
        choose(&mut space);
        space
    }

    fn huge(space: &HashMap<u64, Region>) -> Vec<u64> {
        let mut all: Vec<_> =
            space.iter().filter(|(_, region)| region.huge).map(|(&number, _)| number).collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn a_region_is_huge_when_a_mapping_covers_it_whole() {
        // From the last page of region 0 to the first of region 3, never a hole of 2 MiB.
        assert_eq!(huge(&space(&[511, 512, 900, 1300, 1536], &[])), [1, 2]);
        // Its own first and last page are enough; one page less is not.
        assert_eq!(huge(&space(&[512, 1023], &[])), [1]);
        assert_eq!(huge(&space(&[513, 1023], &[])), [0; 0]);
        assert_eq!(huge(&space(&[512, 1022], &[])), [0; 0]);
    }

    #[test]
    fn a_hole_of_two_mebibytes_ends_a_mapping() {
        // 511 untouched pages between 512 and 1024 are no hole, 512 are.
        assert_eq!(huge(&space(&[0, 511, 1023, 1024], &[])), [0, 1]);
        assert_eq!(huge(&space(&[510, 1023, 1024], &[])), [0; 0]);
        assert_eq!(huge(&space(&[511, 1024], &[])), [0; 0], "512 pages between them");
    }

    #[test]
    fn code_stays_small() {
        assert_eq!(huge(&space(&[0, 511, 512, 1023], &[600])), [0]);
    }
}
