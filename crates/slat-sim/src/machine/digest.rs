//! What the accesses of a batch come to, as far as that is alike for every machine that runs them.
//!
//! In most stretches of a recording every access hits the first level of the TLB, and nearly every one
//! the first data cache. Of such a stretch a machine need not run each access. Hits change nothing but
//! the order in which translations were last used, and only the last use of each page counts for that;
//! a hit of the cache's filter marks its line, whatever comes before or behind it. So a digest says of
//! each stretch which pages it looks up, in the order of their last use, and which lines of them. Where
//! a page turns out not to be held, or not with the rights that are asked for, the machine runs the
//! stretch access by access, and the result is the same, to the last bit of a TLB's order.

use slat::Kind;
use slat_mmu::tlb::Asked;
use slat_trace::{Access, Batch};

/// The most accesses of a stretch. In longer ones more lookups share a page, and fewer have no miss.
const ACCESSES: usize = 512;
/// The most lookups: each access may cross a page.
pub(super) const LOOKUPS: usize = 2 * ACCESSES;
/// As many pages end a stretch: where there are so many, some are likely to miss.
const ENOUGH_PAGES: usize = 48;
/// The most pages: the last access may cross to one more.
pub(super) const PAGES: usize = ENOUGH_PAGES + 1;

/// A page that a stretch looks up in one first-level TLB of one core.
#[derive(Clone, Copy, Debug)]
pub(super) struct Page {
    /// Page number, core, and in the low bits the TLB.
    key: u64,
    /// Which of its lines are accessed, as bits.
    pub(super) lines: u64,
    /// The number of the last lookup, among those of the stretch.
    last: u16,
    /// Kinds and privileges of its lookups, as bits: see [`ASKED`].
    who: u8,
}

impl Page {
    /// First byte.
    pub(super) fn va(&self) -> u64 {
        self.key >> 10 << 12
    }

    /// On which core.
    pub(super) fn vcpu(&self) -> usize {
        (self.key >> 2 & 0xff) as usize
    }

    /// What all lookups of it ask.
    pub(super) fn asked(&self) -> Asked {
        ASKED[usize::from(self.who) % ASKED.len()]
    }

    /// By what kind of access its TLB is chosen.
    pub(super) fn kind(&self) -> Kind {
        if self.key & 1 == 0 { Kind::Read } else { Kind::Execute }
    }
}

/// One lookup: a page of its stretch, and a line of the page.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lookup(u16);

impl Lookup {
    /// The number of the page among those of the stretch.
    pub(super) fn page(self) -> usize {
        usize::from(self.0 >> 6)
    }

    /// The number of the line in the page.
    pub(super) fn line(self) -> u64 {
        u64::from(self.0 & 63)
    }
}

/// Where a stretch ends: in the batch, and in the lists of the digest.
#[derive(Clone, Copy, Debug, Default)]
struct End {
    access: u32,
    page: u32,
    lookup: u32,
}

/// Accesses without an event between them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stretch<'a> {
    /// Index of the first access in the batch.
    pub(super) start: usize,
    /// Index behind the last.
    pub(super) end: usize,
    /// The pages, in the order of their first lookups.
    pub(super) pages: &'a [Page],
    /// Their numbers, in the order of their last lookups.
    pub(super) by_last: &'a [u16],
    /// All lookups, in order.
    pub(super) lookups: &'a [Lookup],
}

/// The stretches of a batch. Made anew for each batch, it keeps its memory.
#[derive(Debug)]
pub struct Digest {
    ends: Vec<End>,
    pages: Vec<Page>,
    by_last: Vec<u16>,
    lookups: Vec<Lookup>,
    current: Box<Current>,
}

/// Room for pages, and for places of theirs: powers of two, so that a mask is a bound.
const PAGES_ROOM: usize = PAGES.next_power_of_two();
const PLACES: usize = 4 * PAGES_ROOM;

/// The pages and lookups of the stretch that is being digested.
#[derive(Debug)]
struct Current {
    pages: [Page; PAGES_ROOM],
    lookups: [Lookup; LOOKUPS],
    /// Which of `pages` has a key, by a hash of it: one of those that share a place. Another is listed
    /// once more, which does no harm.
    places: [u8; PLACES],
    /// How many pages there are.
    count: usize,
    /// How many lookups.
    done: usize,
}

/// What is asked by the lookups of a set: bit n is that of kind n / 2, by users if n is odd.
const ASKED: [Asked; 64] = {
    let kinds = [Kind::Read, Kind::Write, Kind::Execute];
    let mut all = [Asked::NOTHING; 64];
    let mut set = 0;
    while set < 64 {
        let mut bit = 0;
        while bit < 6 {
            if set >> bit & 1 != 0 {
                all[set] = all[set].and(Asked::new(kinds[bit / 2], bit % 2 == 1));
            }
            bit += 1;
        }
        set += 1;
    }
    all
};

impl Default for Digest {
    fn default() -> Self {
        Digest {
            ends: Vec::new(),
            pages: Vec::new(),
            by_last: Vec::new(),
            lookups: Vec::new(),
            current: Box::new(Current {
                pages: [Page { key: 0, lines: 0, last: 0, who: 0 }; PAGES_ROOM],
                lookups: [Lookup::default(); LOOKUPS],
                places: [0; PLACES],
                count: 0,
                done: 0,
            }),
        }
    }
}

impl Digest {
    /// Digests a batch, and forgets the one before.
    pub fn take(&mut self, batch: &Batch) {
        self.ends.clear();
        self.pages.clear();
        self.by_last.clear();
        self.lookups.clear();
        let mut start = 0;
        for run in batch.runs() {
            let mut left = run.accesses;
            while !left.is_empty() {
                let done = self.stretch(&left[..left.len().min(ACCESSES)]);
                left = &left[done..];
                start += done;
                self.ends.push(End {
                    access: start as u32,
                    page: self.pages.len() as u32,
                    lookup: self.lookups.len() as u32,
                });
            }
        }
    }

    /// Digests the first of some accesses as one stretch, and says how many.
    fn stretch(&mut self, accesses: &[Access]) -> usize {
        let current = &mut *self.current;
        (current.count, current.done) = (0, 0);
        let mut done = 0;
        for access in accesses {
            current.lookup(access, access.va);
            if access.crosses() {
                current.lookup(access, (access.va | 0xfff).wrapping_add(1));
            }
            done += 1;
            if current.count >= ENOUGH_PAGES {
                break;
            }
        }
        let (pages, lookups) = (&current.pages[..current.count], &current.lookups[..current.done]);
        let mut lasts = [0u64; LOOKUPS / 64];
        for page in pages {
            lasts[usize::from(page.last / 64)] |= 1 << (page.last % 64);
        }
        for (of_word, mut left) in lookups.chunks(64).zip(lasts) {
            while left != 0 {
                self.by_last.push(of_word[left.trailing_zeros() as usize].page() as u16);
                left &= left - 1;
            }
        }
        self.pages.extend_from_slice(pages);
        self.lookups.extend_from_slice(lookups);
        done
    }

    /// The stretch that holds an access of the batch, counted from `nth` of the stretches on, to which
    /// its own number is written.
    pub(super) fn stretch_of(&self, access: usize, nth: &mut usize) -> Option<Stretch<'_>> {
        while self.ends.get(*nth)?.access as usize <= access {
            *nth += 1;
        }
        let end = self.ends[*nth];
        let start = nth.checked_sub(1).map_or(End::default(), |before| self.ends[before]);
        let pages = start.page as usize..end.page as usize;
        Some(Stretch {
            start: start.access as usize,
            end: end.access as usize,
            pages: &self.pages[pages.clone()],
            by_last: &self.by_last[pages],
            lookups: &self.lookups[start.lookup as usize..end.lookup as usize],
        })
    }
}

impl Current {
    #[inline(always)]
    fn lookup(&mut self, access: &Access, va: u64) {
        let kind = access.kind() as usize;
        let key = va >> 12 << 10 | u64::from(access.vcpu) << 2 | (kind >> 1) as u64;
        let who = 1 << (2 * kind + usize::from(access.user()));
        let line = va >> 6 & 63;
        let last = self.done % LOOKUPS;
        let place = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - PLACES.ilog2());
        let place = &mut self.places[place as usize % PLACES];
        let mut at = usize::from(*place) % PAGES_ROOM;
        let page = &mut self.pages[at];
        if at < self.count && page.key == key {
            page.lines |= 1 << line;
            page.last = last as u16;
            page.who |= who;
        } else {
            at = self.count % PAGES_ROOM;
            *place = at as u8;
            self.pages[at] = Page { key, lines: 1 << line, last: last as u16, who };
            self.count += 1;
        }
        self.lookups[last] = Lookup((at << 6) as u16 | line as u16);
        self.done += 1;
    }
}
