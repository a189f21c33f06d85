//! Stretches of nothing but hits, which need not be run access by access: see [`super::digest`].

use slat::format::Format;

use super::digest::{LOOKUPS, Stretch};
use super::{Machine, Part};
use crate::guest::Guest;

impl<G: Guest, F2: Format> Machine<G, F2> {
    /// Runs accesses of a part from `here` on, up to `end`, before which there is no event. Returns how
    /// far it came: to the end of a stretch, the `nth`, at most.
    #[inline]
    pub(super) fn run_some(
        &mut self,
        part: &Part<'_>,
        here: usize,
        end: usize,
        nth: &mut usize,
    ) -> usize {
        let first = part.first as usize;
        let stretch = part.digest.and_then(|digest| digest.stretch_of(first + here, nth));
        let mut until = end;
        if let Some(stretch) = &stretch {
            until = end.min(stretch.end - first);
            let whole = stretch.start == first + here && stretch.end == first + until;
            if whole && self.run_hits(stretch) {
                return until;
            }
        }
        for access in &part.accesses[here..until] {
            self.access(access);
        }
        until
    }

    /// Runs a stretch if all of it hits the first level of the TLB, and says whether it does. If not,
    /// nothing has changed.
    fn run_hits(&mut self, stretch: &Stretch<'_>) -> bool {
        // Lines are looked at together where all are of one core's caches.
        let Some(first) = stretch.pages.first().map(|page| page.vcpu()) else { return false };
        if self.cores.len() > 1 && stretch.pages.iter().any(|page| page.vcpu() != first) {
            return false;
        }
        for (page, place) in stretch.pages.iter().zip(self.places.iter_mut()) {
            let Some(core) = self.cores.get(page.vcpu()) else { return false };
            if core.tlb.keeps_stores_apart() {
                return false;
            }
            let va = page.va();
            match core.tlb.look(va, core.space, page.kind(), page.asked()) {
                Some(entry) => *place = entry.place(va),
                None => return false,
            }
        }
        // What would be found last is used last: that is all that the order of replacement is.
        for &nth in stretch.by_last {
            let page = &stretch.pages[usize::from(nth)];
            if let Some(core) = self.cores.get_mut(page.vcpu()) {
                core.tlb.find_for(page.va(), core.space, page.kind(), page.asked());
            }
        }
        self.counts.lookups += stretch.lookups.len() as u64;
        self.memory.on(first as u8);
        self.run_lines(stretch);
        true
    }

    /// The data accesses of a stretch whose pages lie at `self.places`.
    fn run_lines(&mut self, stretch: &Stretch<'_>) {
        let (mut missing, mut untouched) = (0, 0);
        for (page, &place) in stretch.pages.iter().zip(self.places.iter()) {
            let known = self.memory.look(place, page.lines);
            missing |= known.missing;
            untouched |= known.untouched;
        }
        // Lines that can meet one that is missing are accessed in order, those of other sets at once.
        let beside = if missing == 0 { 0 } else { self.memory.beside(missing) };
        if untouched & !beside != 0 {
            for (page, &place) in stretch.pages.iter().zip(self.places.iter()) {
                self.memory.touch(place, page.lines & !beside);
            }
        }
        if beside != 0 {
            // Copied together first, since none could foretell which.
            let mut count = 0;
            for &lookup in stretch.lookups {
                self.some[count % LOOKUPS] = lookup;
                count += (beside >> lookup.line() & 1) as usize;
            }
            for at in 0..count.min(LOOKUPS) {
                let lookup = self.some[at];
                self.memory.data(self.places[lookup.page()] | lookup.line() << 6);
            }
        }
    }
}
