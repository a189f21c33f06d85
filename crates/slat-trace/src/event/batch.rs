//! Consecutive accesses and events, and how to go through them.

use super::{Access, Event};

/// An event, and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct At {
    /// The event comes before `accesses[before]` of its batch, or after the last.
    pub before: u32,
    /// The virtual CPU that it happened on, from 0.
    pub vcpu: u8,
    /// What happened.
    pub event: Event,
}

/// A stretch of accesses with the events that come before them.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// The events, in order; they come before all accesses of this run.
    pub events: &'a [At],
    /// The accesses, in order, without any event between them.
    pub accesses: &'a [Access],
}

/// A buffer of consecutive accesses and events, owned by the consumer and reused.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// The accesses in their global order.
    pub accesses: Vec<Access>,
    /// The events in their order; `before` never decreases.
    pub events: Vec<At>,
    /// How many instructions the fetches of this batch hold, where the source knows. A block that
    /// an exception left early counts whole.
    pub instructions: u64,
}

impl Batch {
    /// How many accesses a source aims to put into one batch: enough to pay for the call, few
    /// enough to stay in a second-level cache.
    pub const ACCESSES: usize = 1 << 14;

    /// Empties the buffer and keeps its memory.
    pub fn clear(&mut self) {
        self.accesses.clear();
        self.events.clear();
        self.instructions = 0;
    }

    /// Appends an event after all accesses that are there.
    ///
    /// # Panics
    ///
    /// Where the batch holds 2^32 accesses or more.
    #[inline]
    pub fn event(&mut self, vcpu: u8, event: Event) {
        let before = u32::try_from(self.accesses.len()).expect("a batch of fewer than 2^32");
        self.events.push(At { before, vcpu, event });
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.accesses.is_empty() && self.events.is_empty()
    }

    /// The batch as runs of accesses without an event between them.
    #[must_use]
    pub fn runs(&self) -> Runs<'_> {
        Runs { batch: self, events: 0, accesses: 0 }
    }
}

/// The iterator of [`Batch::runs`].
#[derive(Clone, Debug)]
pub struct Runs<'a> {
    batch: &'a Batch,
    events: usize,
    accesses: usize,
}

impl<'a> Iterator for Runs<'a> {
    type Item = Run<'a>;

    fn next(&mut self) -> Option<Run<'a>> {
        let Batch { accesses, events, .. } = self.batch;
        if self.events == events.len() && self.accesses == accesses.len() {
            return None;
        }
        let here = self.accesses;
        let first = self.events;
        let due = |at: &At| at.before as usize <= here;
        self.events += events[first..].iter().take_while(|at| due(at)).count();
        let end = events.get(self.events).map_or(accesses.len(), |at| at.before as usize);
        // A `before` past the end is a mistake of the source; it must not end in a panic here.
        self.accesses = end.min(accesses.len());
        if end > accesses.len() {
            self.events = events.len();
        }
        Some(Run { events: &events[first..self.events], accesses: &accesses[here..self.accesses] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Kind, Root};

    #[test]
    fn runs_give_every_access_and_event_once_in_order() {
        let mut batch = Batch::default();
        assert!(batch.runs().next().is_none());
        let event = |value| Event::Root { root: Root::Cr3, value };
        batch.event(0, event(0));
        for va in 0..3 {
            batch.accesses.push(Access::new(Kind::Load, va, 1));
        }
        batch.event(0, event(1));
        batch.event(1, event(2));
        batch.accesses.push(Access::new(Kind::Store, 3, 1));
        batch.event(0, event(3));
        let shape: Vec<_> = batch.runs().map(|r| (r.events.len(), r.accesses.len())).collect();
        assert_eq!(shape, [(1, 3), (2, 1), (1, 0)]);
        let all: Vec<u64> = batch.runs().flat_map(|r| r.accesses).map(|a| a.va).collect();
        assert_eq!(all, [0, 1, 2, 3]);
    }

    #[test]
    fn an_event_past_the_end_ends_the_runs() {
        let mut batch = Batch::default();
        batch.accesses.push(Access::new(Kind::Load, 0, 1));
        batch.events.push(At { before: 9, vcpu: 0, event: Event::ExceptionReturn });
        let shape: Vec<_> = batch.runs().map(|r| (r.events.len(), r.accesses.len())).collect();
        assert_eq!(shape.iter().map(|s| s.1).sum::<usize>(), 1);
    }
}
