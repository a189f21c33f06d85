//! Several traces as one: each on vCPUs and in address spaces of its own.

use std::collections::BTreeMap;

use super::error::{Cause, ImportError};
use super::{Lane, Reader, Reference, References, Trace};
use crate::Arch;

/// References that a trace gives before the next one's turn.
const TURN: usize = 1000;

/// One of several traces.
struct Part {
    trace: Trace,
    references: References,
    /// How many of these were given.
    given: usize,
    ended: bool,
}

/// Traces that take turns until all have ended.
pub(super) struct Mix {
    parts: Vec<Part>,
    turn: usize,
    /// Numbers of lanes and spaces by trace and number there, in order of appearance.
    lanes: BTreeMap<(usize, u16), u16>,
    spaces: BTreeMap<(usize, u16), u16>,
    order: Vec<(usize, u16)>,
}

impl Mix {
    pub(super) fn new(traces: Vec<Trace>) -> Self {
        let part =
            |trace| Part { trace, references: References::default(), given: 0, ended: false };
        Mix {
            parts: traces.into_iter().map(part).collect(),
            turn: 0,
            lanes: BTreeMap::new(),
            spaces: BTreeMap::new(),
            order: Vec::new(),
        }
    }

    /// Gives up to a turn of references of the trace whose turn it is.
    fn take_turn(&mut self, batch: &mut References) -> Result<(), ImportError> {
        let index = self.turn;
        self.turn = (self.turn + 1) % self.parts.len();
        let part = &mut self.parts[index];
        let mut left = TURN;
        while left > 0 && !part.ended {
            if part.given == part.references.list.len() {
                part.given = 0;
                part.ended = !part.trace.next(&mut part.references)?;
                continue;
            }
            let rest = &part.references.list[part.given..];
            let some = &rest[..rest.len().min(left)];
            for reference in some {
                let numbers = (
                    number(&mut self.lanes, (index, reference.lane)),
                    number(&mut self.spaces, (index, reference.space)),
                );
                let (Some(lane), Some(space)) = numbers else {
                    let what =
                        "more than 65535 threads or processes; import fewer traces at a time";
                    return Err(ImportError::whole(part.trace.path(), Cause::Refused(what.into())));
                };
                if usize::from(lane) == self.order.len() {
                    self.order.push((index, reference.lane));
                }
                batch.list.push(Reference { lane, space, ..*reference });
            }
            part.given += some.len();
            left -= some.len();
        }
        Ok(())
    }
}

fn number(numbers: &mut BTreeMap<(usize, u16), u16>, key: (usize, u16)) -> Option<u16> {
    let next = u16::try_from(numbers.len()).ok()?;
    Some(*numbers.entry(key).or_insert(next))
}

impl Reader for Mix {
    fn fill(&mut self, batch: &mut References) -> Result<bool, ImportError> {
        while !batch.is_full() {
            if self.parts.iter().all(|part| part.ended) {
                return Ok(false);
            }
            self.take_turn(batch)?;
        }
        Ok(true)
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = vec![format!(
            "{} traces take turns of {TURN} accesses, each with vCPUs and address spaces of its own",
            self.parts.len()
        )];
        for note in self.parts.iter().flat_map(|part| part.trace.notes()) {
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
        notes
    }

    fn arch(&self) -> Option<Arch> {
        self.parts.iter().find_map(|part| part.trace.arch())
    }

    fn lanes(&self) -> Vec<Lane> {
        let lanes: Vec<_> = self.parts.iter().map(|part| part.trace.lanes()).collect();
        self.order.iter().map(|&(part, lane)| lanes[part][usize::from(lane)]).collect()
    }
}
