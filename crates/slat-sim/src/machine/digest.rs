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
const ACCESSES: usize = 2048;
/// The most lookups: each access may cross a page.
pub(super) const LOOKUPS: usize = 2 * ACCESSES;
/// As many pages end a stretch: where there are so many, some are likely to miss.
const ENOUGH_PAGES: usize = 64;
/// The most pages: the last access may cross to one more.
pub(super) const PAGES: usize = ENOUGH_PAGES + 1;

/// A page that a stretch looks up in one first-level TLB of one core.
#[derive(Clone, Copy, Debug)]
pub(super) struct Page {
    /// The page's address, and in the low bits the core and the TLB: [`Page::FETCHES`].
    key: u64,
    /// Which of its lines are accessed, as bits.
    pub(super) lines: u64,
    /// Classes of its lookups, as bits: see [`ASKED`].
    who: u8,
}

impl Page {
    /// In a key: the TLB is that of fetches.
    const FETCHES: u64 = 1 << 9;

    /// First byte.
    pub(super) fn va(&self) -> u64 {
        self.key & !0xfff
    }

    /// On which core.
    pub(super) fn vcpu(&self) -> usize {
        (self.key & 0xff) as usize
    }

    /// What all lookups of it ask.
    pub(super) fn asked(&self) -> Asked {
        ASKED[usize::from(self.who) % ASKED.len()]
    }

    /// By what kind of access its TLB is chosen.
    pub(super) fn kind(&self) -> Kind {
        if self.key & Page::FETCHES == 0 { Kind::Read } else { Kind::Execute }
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
    /// Those of the batch, and behind them what is left of others.
    lookups: Vec<Lookup>,
    /// How many are of the batch.
    looked_up: usize,
    current: Box<Current>,
}

/// Room for pages, and for places of theirs: powers of two, so that a mask is a bound.
const PAGES_ROOM: usize = PAGES.next_power_of_two();
/// Two of a few dozen pages seldom share one of so many.
const PLACES: usize = 16 * PAGES_ROOM;

/// The pages of the stretch that is being digested, by number.
///
/// What each lookup adds to is kept twice, for even lookups and for odd ones: one that follows another of
/// the same page need not wait for what that one has stored.
#[derive(Debug)]
struct Current {
    keys: [u64; PAGES_ROOM],
    lines: [[u64; PAGES_ROOM]; 2],
    who: [[u8; PAGES_ROOM]; 2],
    lasts: [u16; PAGES_ROOM],
    /// Which page has a key, by a hash of it: one of those that share a place. Another is listed once
    /// more, which does no harm.
    places: [u8; PLACES],
    /// How many pages there are.
    count: usize,
}

/// What is asked by the lookups of a set: bit n is that of those of [`Access::class`] n.
const ASKED: [Asked; 128] = {
    let kinds = [Kind::Read, Kind::Write, Kind::Execute];
    let mut all = [Asked::NOTHING; 128];
    let mut set = 0;
    while set < 128 {
        let mut class = 0;
        while class < 7 {
            if set >> class & 1 != 0 && class & 3 != 3 {
                all[set] = all[set].and(Asked::new(kinds[class & 3], class & 4 != 0));
            }
            class += 1;
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
            looked_up: 0,
            current: Box::new(Current {
                keys: [0; PAGES_ROOM],
                lines: [[0; PAGES_ROOM]; 2],
                who: [[0; PAGES_ROOM]; 2],
                lasts: [0; PAGES_ROOM],
                places: [0; PLACES],
                count: 0,
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
        self.looked_up = 0;
        let most = 2 * batch.accesses.len() + LOOKUPS;
        if self.lookups.len() < most {
            self.lookups.resize(most, Lookup::default());
        }
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
                    lookup: self.looked_up as u32,
                });
            }
        }
    }

    /// Digests the first of some accesses as one stretch, and says how many.
    fn stretch(&mut self, accesses: &[Access]) -> usize {
        let current = &mut *self.current;
        current.count = 0;
        let Some(lookups) = self.lookups[self.looked_up..].first_chunk_mut::<LOOKUPS>() else {
            unreachable!(
                "there is room for two lookups of each access, and for a stretch behind them"
            )
        };
        let (mut done, mut looked_up) = (0, 0);
        for access in accesses {
            lookups[looked_up % LOOKUPS] = current.lookup(access, access.va, looked_up);
            looked_up += 1;
            if access.crosses() {
                let next = (access.va | 0xfff).wrapping_add(1);
                lookups[looked_up % LOOKUPS] = current.lookup(access, next, looked_up);
                looked_up += 1;
            }
            done += 1;
            if current.count >= ENOUGH_PAGES {
                break;
            }
        }
        let mut lasts = [0u64; LOOKUPS / 64];
        self.pages.extend((0..current.count.min(PAGES_ROOM)).map(|page| {
            let last = current.lasts[page];
            lasts[usize::from(last / 64) % lasts.len()] |= 1 << (last % 64);
            Page {
                key: current.keys[page],
                lines: current.lines[0][page] | current.lines[1][page],
                who: current.who[0][page] | current.who[1][page],
            }
        }));
        for (of_word, mut left) in lookups.chunks(64).zip(lasts) {
            while left != 0 {
                self.by_last.push(of_word[left.trailing_zeros() as usize].page() as u16);
                left &= left - 1;
            }
        }
        self.looked_up += looked_up;
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
    /// The lookup of this number looks up `va` for an access.
    #[inline(always)]
    fn lookup(&mut self, access: &Access, va: u64, nth: usize) -> Lookup {
        let class = u64::from(access.class());
        // A fetch's class has bit 1.
        let key = va & !0xfff | class << 8 & Page::FETCHES | u64::from(access.vcpu);
        let who = 1 << class;
        let line = va >> 6 & 63;
        let place = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - PLACES.ilog2());
        let place = &mut self.places[place as usize % PLACES];
        let mut page = usize::from(*place) % PAGES_ROOM;
        if page >= self.count || self.keys[page] != key {
            page = self.count % PAGES_ROOM;
            *place = page as u8;
            self.keys[page] = key;
            (self.lines[0][page], self.lines[1][page]) = (0, 0);
            (self.who[0][page], self.who[1][page]) = (0, 0);
            self.count += 1;
        }
        self.lines[nth % 2][page] |= 1 << line;
        self.who[nth % 2][page] |= who;
        self.lasts[page] = nth as u16;
        Lookup((page << 6) as u16 | line as u16)
    }
}
