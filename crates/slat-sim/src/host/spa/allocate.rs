//! Giving memory to partitions, in the largest pages that fit, and taking it back.

use super::{Backing, Node, NotEnough, Owner, PAGE, SHIFTS, SystemMemory};

impl SystemMemory {
    /// An unused run of whole pages of this level on this node: start and size.
    fn run(&self, node: Node, level: u8) -> Option<(u64, u64)> {
        let page = 1u64 << SHIFTS[usize::from(level)];
        self.extents.range(node.start..node.start + node.bytes).find_map(
            |(&start, &(bytes, owner))| {
                let first = start.next_multiple_of(page);
                let end = (start + bytes) & !(page - 1);
                (owner == Owner::Unused && first < end).then(|| (first, end - first))
            },
        )
    }

    /// Gives `owner` memory for the guest-physical `ranges` (start and size), in the largest pages
    /// up to `largest` (a level) that fit: at each place, node by node with `home` first, the
    /// largest page for which there is an aligned run.
    ///
    /// # Errors
    /// Where the unused memory is not enough; nothing has changed then.
    pub(in crate::host) fn allocate(
        &mut self,
        owner: Owner,
        ranges: &[(u64, u64)],
        largest: u8,
        home: usize,
    ) -> Result<Vec<Backing>, NotEnough> {
        let wanted = ranges.iter().map(|(_, bytes)| bytes).sum();
        let unused = self.owned(Owner::Unused);
        if wanted > unused {
            return Err(NotEnough { wanted, unused });
        }
        let mut order: Vec<Node> = self.nodes.clone();
        if home < order.len() {
            order.rotate_left(home);
        }
        let mut backings: Vec<Backing> = Vec::new();
        for &(start, bytes) in ranges {
            let (mut gpa, end) = (start, start + bytes);
            while gpa < end {
                let fits = |level: u8| {
                    let page = 1u64 << SHIFTS[usize::from(level)];
                    gpa & (page - 1) == 0 && end - gpa >= page
                };
                let found = order.iter().find_map(|&node| {
                    let levels = (0..=largest).rev().filter(|&level| fits(level));
                    levels
                        .into_iter()
                        .find_map(|level| self.run(node, level).map(|run| (level, run)))
                });
                let Some((level, (spa, run))) = found else {
                    // The count above was of whole pages.
                    unreachable!("unused memory is in whole pages");
                };
                let page = 1u64 << SHIFTS[usize::from(level)];
                let mut bytes = run.min((end - gpa) & !(page - 1));
                // Up to where a larger page could begin.
                if level < largest {
                    let larger = 1u64 << SHIFTS[usize::from(level) + 1];
                    bytes = bytes.min(larger - (gpa & (larger - 1)));
                }
                self.assign(spa, bytes, owner);
                match backings.last_mut() {
                    Some(last)
                        if last.level == level
                            && last.gpa + last.bytes == gpa
                            && last.spa + last.bytes == spa =>
                    {
                        last.bytes += bytes;
                    }
                    _ => backings.push(Backing { gpa, spa, bytes, level }),
                }
                gpa += bytes;
            }
        }
        Ok(backings)
    }

    /// Takes memory back: what it held is gone.
    pub(in crate::host) fn release(&mut self, spa: u64, bytes: u64) {
        for frame in spa / PAGE..(spa + bytes) / PAGE {
            if let Some(frame) = self.frames.get_mut(frame as usize) {
                *frame = None;
            }
        }
        self.assign(spa, bytes, Owner::Unused);
    }

    /// One more partition's page has its content in this page.
    pub(in crate::host) fn join_share(&mut self, spa: u64) {
        self.assign(spa, PAGE, Owner::Shared);
        *self.shares.entry(spa).or_default() += 1;
    }

    /// One partition's page less has; the last one's leaving gives the page back.
    pub(in crate::host) fn leave_share(&mut self, spa: u64) {
        let left = self.shares.get(&spa).map_or(0, |users| users.saturating_sub(1));
        if left == 0 {
            self.shares.remove(&spa);
            self.release(spa, PAGE);
        } else {
            self.shares.insert(spa, left);
        }
    }
}
