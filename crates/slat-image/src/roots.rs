//! Finding the roots of second stages in the memory of a host, without being told where.
//!
//! Structure decides: a page is taken for a table when every one of its entries is one that a
//! hypervisor would write, and every table that it points at is such a table one level below, down to
//! the leaves. Tables are found from the leaves up, in one pass over the memory and some over what is
//! left of it, so that neither loops nor shared tables can make the search long. A root is a table of
//! a root's level that no table points at.
//!
//! Control blocks come second ([`blocks`]): a search for them alone finds many pages that only look
//! like one, but a page that names a root that was found is one.
//!
//! ```
//! use slat_image::roots::{Kind, find};
//! let image = slat_image::Image::from_raw(0, vec![0; 1 << 20]).unwrap();
//! assert!(find(&image, Kind::Ept).is_empty());
//! ```
//!
//! What it cannot know: whether a root is in use. The tables of a guest that was shut down stay in
//! memory until something else is written there, and a guest that is itself a host has tables that
//! look like a host's.

use std::collections::{HashMap, HashSet};

use crate::image::{Image, Machine};

mod block;
mod look;

pub use block::{Block, blocks};
use look::{Look, Looker};

/// What a second stage is encoded as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// Intel EPT, 4 or 5 levels.
    Ept,
    /// AMD NPT (RVI) under a host with 4 or 5 levels.
    Npt,
    /// Arm Stage-2, AArch64, 4 KiB granule, starting at Arm level 0 or 1.
    Arm64,
}

impl Kind {
    /// The kinds that the machine of this image can have; all where the image does not say.
    pub fn of(image: &Image) -> &'static [Kind] {
        match image.machine() {
            Some(Machine::X86) => &[Kind::Ept, Kind::Npt],
            Some(Machine::Aarch64) => &[Kind::Arm64],
            Some(_) => &[],
            None => &[Kind::Ept, Kind::Npt, Kind::Arm64],
        }
    }

    /// The levels that a root can have, as this library counts them (0 has only leaves).
    fn root_levels(self) -> &'static [u8] {
        match self {
            Kind::Ept | Kind::Npt => &[3, 4],
            Kind::Arm64 => &[2, 3],
        }
    }
}

/// A root that was found, and what is below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Root {
    /// How it is encoded.
    pub kind: Kind,
    /// Physical address of the root table, the first if there are several.
    pub address: u64,
    /// How many levels the tables have.
    pub levels: u8,
    /// Concatenated root tables that have content (Arm; else 1).
    pub root_tables: u8,
    /// What is below it.
    pub content: Content,
}

/// What is below a table, itself included. A table that is used twice counts twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// Tables.
    pub tables: u64,
    /// Entries that translate.
    pub leaves: u64,
    /// Leaves of ordinary, cacheable memory, by what this stage says.
    pub normal: u64,
    /// Entries that translate nothing and are not empty: MMIO as KVM marks it, pages swapped out.
    pub marked: u64,
    /// Bytes that the leaves map.
    pub bytes: u64,
}

impl Content {
    /// Adds what is below another table.
    fn add(&mut self, other: &Content) {
        self.tables = self.tables.saturating_add(other.tables);
        self.leaves = self.leaves.saturating_add(other.leaves);
        self.normal = self.normal.saturating_add(other.normal);
        self.marked = self.marked.saturating_add(other.marked);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// Below this many leaves, structure alone says little: a handful of words that happen to look like
/// entries is a table too.
const ENOUGH_LEAVES: u64 = 64;

/// All roots of this kind whose structure says enough, those with the most leaves first.
///
/// The memory needed is about 100 bytes a table found.
pub fn find(image: &Image, kind: Kind) -> Vec<Root> {
    let found = Tables::find(image, kind);
    let mut roots = found.roots();
    roots.retain(|root| {
        // KVM's own EL2 tables look like a second stage of device memory: MemAttr is 0 in them.
        root.content.leaves >= ENOUGH_LEAVES && root.content.normal * 2 > root.content.leaves
    });
    roots
}

/// Everything in an image that is a table of one kind, by level.
struct Tables {
    kind: Kind,
    levels: Vec<HashMap<u64, Content>>,
    /// For each level, the tables that one of the level above points at.
    below: Vec<HashSet<u64>>,
}

impl Tables {
    fn find(image: &Image, kind: Kind) -> Tables {
        let looker = Looker::new(image, kind);
        let mut tables = Tables { kind, levels: vec![HashMap::new()], below: Vec::new() };
        // What can be a table above level 0, its children not yet looked at.
        let mut upper = Vec::new();
        for (address, page) in pages(image) {
            // Most of memory is empty: it is passed over as fast as it can be read.
            if *page == [0; 4096] {
                continue;
            }
            if let Some(content) = leaves_only(&looker, page) {
                tables.levels[0].insert(address, content);
            }
            if let Some(highest) = highest_level(&looker, page) {
                upper.push((address, highest));
            }
        }
        let top = kind.root_levels().iter().copied().max().unwrap_or(0);
        for level in 1..=top {
            let mut here = HashMap::new();
            let mut below = HashSet::new();
            for &(address, highest) in &upper {
                if level > highest {
                    continue;
                }
                let Some(page) = image.page(address) else { continue };
                let children = &tables.levels[usize::from(level) - 1];
                if let Some(content) = tables_and_leaves(image, &looker, page, level, children) {
                    here.insert(address, content);
                    below.extend(entries(page).filter_map(|entry| looker.table(entry, level)));
                }
            }
            tables.levels.push(here);
            tables.below.push(below);
        }
        tables.below.push(HashSet::new());
        tables
    }

    /// The tables of a root's level that no table points at, those with the most leaves first.
    fn roots(&self) -> Vec<Root> {
        let mut best: HashMap<u64, Root> = HashMap::new();
        for &level in self.kind.root_levels() {
            let level_index = usize::from(level);
            for (&address, &content) in &self.levels[level_index] {
                let is_child = self.below.iter().any(|below| below.contains(&address));
                let root =
                    Root { kind: self.kind, address, levels: level + 1, root_tables: 1, content };
                // A page may pass at two levels; the one that explains more of it is right.
                let known = best.get(&address).map_or(0, |root| root.content.leaves);
                if !is_child && content.leaves > known {
                    best.insert(address, root);
                }
            }
        }
        let mut roots: Vec<Root> = best.into_values().collect();
        if self.kind == Kind::Arm64 {
            join_concatenated(&mut roots);
        }
        roots.sort_by_key(|root| (std::cmp::Reverse(root.content.leaves), root.address));
        roots
    }
}

/// Makes one root of root tables that lie side by side (Arm ARM D8.2.9: up to 16, the first at a
/// multiple of their size together).
fn join_concatenated(roots: &mut Vec<Root>) {
    roots.sort_by_key(|root| root.address);
    let mut joined: Vec<Root> = Vec::with_capacity(roots.len());
    for root in roots.drain(..) {
        if let Some(first) = joined.last_mut() {
            let number = u64::from(first.root_tables);
            let size = (number + 1).next_power_of_two() * 4096;
            if first.levels == root.levels
                && root.address == first.address + number * 4096
                && number < 16
                && first.address.is_multiple_of(size)
            {
                first.root_tables += 1;
                first.content.add(&root.content);
                continue;
            }
        }
        joined.push(root);
    }
    *roots = joined;
}

/// Every whole 4 KiB page of the image, with its address.
fn pages(image: &Image) -> impl Iterator<Item = (u64, &[u8; 4096])> {
    image.ranges().flat_map(|range| {
        let content = image.contiguous(*range.start());
        let first = range.start().checked_next_multiple_of(4096).unwrap_or(u64::MAX);
        let skip = usize::try_from(first - range.start()).unwrap_or(usize::MAX);
        let (whole, _) = content.get(skip..).unwrap_or_default().as_chunks::<4096>();
        whole.iter().enumerate().map(move |(index, page)| (first + index as u64 * 4096, page))
    })
}

/// The 8-byte words of a page.
fn entries(page: &[u8; 4096]) -> impl Iterator<Item = u64> {
    let (words, _) = page.as_chunks::<8>();
    words.iter().map(|word| u64::from_le_bytes(*word))
}

/// Whether what was seen of a table is enough, and what was marked not too much.
fn plausible(used: u64, marked: u64) -> bool {
    // A table may hold nothing but KVM's mark for one device.
    (used > 0 || (1..=8).contains(&marked)) && marked <= used.max(8) * 2
}

/// What is in a page, if it can be a table of level 0.
fn leaves_only(looker: &Looker, page: &[u8; 4096]) -> Option<Content> {
    let mut content = Content { tables: 1, ..Content::default() };
    for entry in entries(page) {
        match looker.look(entry, 0) {
            Look::Empty => {}
            Look::Leaf { normal } => {
                content.leaves += 1;
                content.normal += u64::from(normal);
            }
            Look::Marked => content.marked += 1,
            Look::Table(_) | Look::Impossible => return None,
        }
    }
    content.bytes = content.leaves << 12;
    plausible(content.leaves, content.marked).then_some(content)
}

/// The highest level that a page can be a table of, if it has an entry that points at a table or is
/// a large leaf; its children are not looked at.
fn highest_level(looker: &Looker, page: &[u8; 4096]) -> Option<u8> {
    let mut highest = *looker.kind().root_levels().last()?;
    let mut used = false;
    for entry in entries(page) {
        loop {
            match looker.look(entry, highest) {
                Look::Empty | Look::Marked => break,
                Look::Table(_) | Look::Leaf { .. } => {
                    used = true;
                    break;
                }
                Look::Impossible if highest > 1 => highest -= 1,
                Look::Impossible => return None,
            }
        }
    }
    used.then_some(highest)
}

/// What is below a page, if it can be a table of `level` over these tables of the level below.
fn tables_and_leaves(
    image: &Image,
    looker: &Looker,
    page: &[u8; 4096],
    level: u8,
    children: &HashMap<u64, Content>,
) -> Option<Content> {
    let mut content = Content { tables: 1, ..Content::default() };
    let (mut used, mut marked, mut hollow) = (0, 0, 0);
    for entry in entries(page) {
        match looker.look(entry, level) {
            Look::Empty => {}
            Look::Leaf { normal } => {
                used += 1;
                content.leaves += 1;
                content.normal += u64::from(normal);
                content.bytes += 1 << (12 + 9 * level);
            }
            Look::Marked => marked += 1,
            Look::Impossible => return None,
            Look::Table(next) => match children.get(&next) {
                Some(child) => {
                    used += 1;
                    content.add(child);
                }
                // A table whose pages were all taken away may stay; one of many.
                None if is_hollow(image, looker, next) => hollow += 1,
                None => return None,
            },
        }
    }
    content.tables += hollow;
    content.marked += marked;
    (plausible(used, marked) && hollow <= used).then_some(content)
}

/// Whether the page at `address` has nothing but empty entries.
fn is_hollow(image: &Image, looker: &Looker, address: u64) -> bool {
    image
        .page(address)
        .is_some_and(|page| entries(page).all(|entry| looker.look(entry, 0) == Look::Empty))
}
