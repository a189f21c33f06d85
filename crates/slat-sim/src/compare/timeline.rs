//! TLB misses over time, in bounded memory.

/// The most points that are kept.
const POINTS: usize = 256;

/// Walks of each scheme after so many accesses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timeline {
    /// Accesses so far, and by scheme the walks so far.
    points: Vec<(u64, Vec<u64>)>,
    /// Only each so many batches are kept.
    every: usize,
    seen: usize,
    /// Accesses before the first point's stretch.
    from: u64,
}

impl Timeline {
    /// Nothing yet; so many accesses came before.
    pub(super) fn after(from: u64) -> Timeline {
        Timeline { from, ..Timeline::default() }
    }

    /// Accesses before the first stretch: the warm-up.
    pub fn from(&self) -> u64 {
        self.from
    }

    /// Only these schemes, in this order, are left.
    pub(super) fn keep(&mut self, schemes: &[usize]) {
        for (_, walks) in &mut self.points {
            *walks = schemes.iter().filter_map(|&nth| walks.get(nth).copied()).collect();
        }
    }

    /// One more point; when there are too many, each second one goes.
    pub(super) fn add(&mut self, accesses: u64, walks: impl Iterator<Item = u64>) {
        self.every = self.every.max(1);
        self.seen += 1;
        if !self.seen.is_multiple_of(self.every) {
            return;
        }
        self.points.push((accesses, walks.collect()));
        if self.points.len() > POINTS {
            let mut nth = 0;
            self.points.retain(|_| {
                nth += 1;
                nth % 2 == 0
            });
            self.every *= 2;
        }
    }

    /// Misses a thousand accesses of one scheme, stretch by stretch: accesses at its end, and the rate.
    pub fn rates(&self, scheme: usize) -> Vec<(u64, f64)> {
        let mut before = (self.from, 0);
        self.points
            .iter()
            .filter_map(|(accesses, walks)| {
                let walks = *walks.get(scheme)?;
                let (from, walked) = std::mem::replace(&mut before, (*accesses, walks));
                let stretch = accesses - from;
                (stretch > 0).then(|| (*accesses, 1e3 * (walks - walked) as f64 / stretch as f64))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_stays_bounded_and_the_rates_true() {
        let mut timeline = Timeline::default();
        for batch in 1..=10_000u64 {
            timeline.add(batch * 1_000, [batch * 5].into_iter());
        }
        assert!(timeline.points.len() <= POINTS);
        let rates = timeline.rates(0);
        assert!(rates.len() > POINTS / 3);
        assert!(rates.iter().all(|(_, rate)| (rate - 5.0).abs() < 1e-9));
    }
}
