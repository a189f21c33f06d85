//! The source's side.

use std::io::{Read, Write};

use super::super::digest::Digest;
use super::super::wire::{CHUNK, Last, Message, PageOf, WireError};
use super::super::{Exits, Host, HostError, PAGE, WINDOW};
use super::ownership::{Ownership, Record, State};
use super::{MigrateError, PAUSE, Plan, Round, Watch, due, hear, run, tables, tell};

/// How a migration ended at the source.
#[derive(Debug)]
pub enum Departure {
    /// The destination has it.
    HandedOver {
        /// The rounds of copying; the last was sent while the guest was paused.
        rounds: Vec<Round>,
        /// The digest of what was handed over.
        digest: Digest,
        /// Whether the destination has said that it runs it; else the record did.
        confirmed: bool,
        /// What it left behind.
        left: Left,
    },
    /// It did not take place: the guest runs on here.
    Kept {
        /// Why.
        why: MigrateError,
    },
    /// The destination began to run it and died: the virtual machine is lost, as it would have been
    /// with any host that dies.
    LostThere {
        /// The destination.
        host: String,
    },
    /// It is paused here: who may run it is not known, or cannot be recorded. This host still has
    /// its state, and the lock where it had it; nobody runs it.
    Suspended {
        /// Why.
        why: MigrateError,
    },
}

/// What a partition leaves behind where it was.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Left {
    /// Where the first address of its guest's window led: guest-physical and system physical.
    pub window: Option<(u64, u64)>,
    /// Its exits there.
    pub exits: Exits,
}

/// Sends the partition of the name of `ownership`, whose lock this host holds, over `link`. The
/// guest runs meanwhile. Whatever goes wrong, the answer says whether it may run here.
pub fn send(
    host: &mut Host,
    ownership: &mut Ownership,
    link: &mut (impl Read + Write),
    plan: &Plan,
    watch: &mut impl Watch,
) -> Departure {
    let name = ownership.name().to_owned();
    let mut rounds = Vec::new();
    let copied = (|| -> Result<(u64, Vec<u64>, Last, Left), MigrateError> {
        let generation = ownership.read()?.map_or(0, |record| record.generation);
        copy(host, &name, generation, link, plan, watch, &mut rounds)?;
        // From here on the guest is paused. The pages of the last round are not sent yet.
        watch.step("source: paused");
        let failed = tables(host, &name);
        let (partition, memory) = host.both(&name)?;
        let left = partition.dirty(memory).map_err(failed)?;
        let window = partition.follow(memory, WINDOW);
        let behind = Left { window, exits: partition.exits.clone() };
        Ok((generation, left, partition.last(memory), behind))
    })();
    let (generation, left, last, behind) = match copied {
        Ok(copied) => copied,
        // Nothing is recorded: with the lock here, the guest goes on. Its log may stay on; that
        // costs time alone.
        Err(why) => {
            if let Ok((partition, memory)) = host.both(&name) {
                let _ = partition.stop_log(memory);
            }
            return Departure::Kept { why };
        }
    };
    let digest = last.digest;
    let paused =
        Record { generation, state: State::Paused { host: host.spec.name.clone(), digest } };
    // Where that fails, the destination has not got all.
    if let Err(why) = ownership.write(&paused) {
        return take_back(host, ownership, generation, why.into());
    }
    watch.step("source: recorded that it is paused");

    let handed = (|| -> Result<(), MigrateError> {
        let failed = tables(host, &name);
        let (partition, memory) = host.both(&name)?;
        partition.stop_log(memory).map_err(failed)?;
        rounds.push(pages(host, &name, &left, link, 0, watch)?);
        tell(link, &Message::Last(last))?;
        watch.step("source: sent the last of it");
        due(link, &Message::Ready)?;
        watch.step("source: heard that all has arrived");
        ownership.unlock()?;
        watch.step("source: let the lock go");
        tell(link, &Message::Go)?;
        watch.step("source: told the destination to take it");
        due(link, &Message::Running)?;
        // The record hands over, not who says so.
        match ownership.read()? {
            Some(Record { generation: of, state: State::Running { .. } }) if of > generation => {
                Ok(())
            }
            _ => Err(WireError::Format("it says that it runs, and has not recorded it").into()),
        }
    })();
    let over = |confirmed| Departure::HandedOver { rounds, digest, confirmed, left: behind };
    match handed {
        // The copy here is a stale one from the moment that the destination's record was there.
        Ok(()) => {
            watch.step("source: heard that it runs there");
            discard(host, &name);
            watch.step("source: discarded its copy");
            over(true)
        }
        Err(why) => settle(host, ownership, generation, over(false), why),
    }
}

/// The partition is another host's: what is here is no virtual machine any more.
fn discard(host: &mut Host, name: &str) {
    // It is there: nothing since has taken it away.
    let _ = host.stop(name);
}

/// Nobody else has run it, and with the lock here nobody will: it runs here again, once that is
/// recorded.
fn take_back(
    host: &mut Host,
    ownership: &mut Ownership,
    generation: u64,
    why: MigrateError,
) -> Departure {
    if let Ok((partition, memory)) = host.both(ownership.name()) {
        let _ = partition.stop_log(memory);
    }
    let running = State::Running { host: host.spec.name.clone() };
    let record = Record { generation: generation + 1, state: running.clone() };
    let Err(error) = ownership.write(&record) else { return Departure::Kept { why } };
    match ownership.read() {
        // What says so was never replaced, or was in spite of the error.
        Ok(Some(Record { state, .. })) if state == running => Departure::Kept { why },
        _ => Departure::Suspended { why: error.into() },
    }
}

/// After the pause, something went wrong: who has the virtual machine?
fn settle(
    host: &mut Host,
    ownership: &mut Ownership,
    generation: u64,
    over: Departure,
    why: MigrateError,
) -> Departure {
    let name = ownership.name().to_owned();
    loop {
        let seen = ownership.try_lock().and_then(|locked| Ok((locked, ownership.read()?)));
        let (locked, record) = match seen {
            Ok(seen) => seen,
            Err(error) => return Departure::Suspended { why: error.into() },
        };
        match record.map(|record| (record.generation, record.state)) {
            Some((of, State::Paused { .. })) if of == generation && locked => {
                return take_back(host, ownership, generation, why);
            }
            // The destination has the lock, and decides.
            Some((of, State::Paused { .. })) if of == generation => std::thread::sleep(PAUSE),
            Some((of, State::Running { host: there })) => {
                discard(host, &name);
                if !locked {
                    return over;
                }
                // It went down there. That this cannot be recorded changes nothing: the record says
                // `running`, and no process has the lock.
                let state = State::Lost { host: there.clone() };
                let _ = ownership.write(&Record { generation: of, state });
                let _ = ownership.unlock();
                return Departure::LostThere { host: there };
            }
            _ => {
                discard(host, &name);
                let _ = ownership.unlock();
                return over;
            }
        }
    }
}

/// Copies while the guest runs, until little is left.
fn copy(
    host: &mut Host,
    name: &str,
    generation: u64,
    link: &mut (impl Read + Write),
    plan: &Plan,
    watch: &mut impl Watch,
    rounds: &mut Vec<Round>,
) -> Result<(), MigrateError> {
    let hello = host.partition(name)?.hello(&host.spec.name, generation);
    tell(link, &Message::Hello(hello))?;
    watch.step("source: said what comes");
    match hear(link)? {
        Message::Accept => {}
        got => {
            let due = Message::Accept.name();
            return Err(WireError::Unexpected { due, got: got.name() }.into());
        }
    }
    let failed = tables(host, name);
    let (partition, memory) = host.both(name)?;
    partition.start_log(memory).map_err(&failed)?;
    let mut left: Vec<u64> = partition.pages().collect();
    for round in 0..plan.most_rounds {
        let steps = plan.steps_per_chunk;
        rounds.push(pages(host, name, &left, link, steps, watch)?);
        tell(link, &Message::RoundEnd(round))?;
        watch.step("source: ended a round");
        if round + 1 == plan.most_rounds {
            break;
        }
        let (partition, memory) = host.both(name)?;
        left = partition.dirty(memory).map_err(&failed)?;
        if left.len() <= plan.pause_at {
            // Marked again, since they are still to be sent.
            partition.mark(&left);
            break;
        }
    }
    Ok(())
}

/// Sends pages, the guest running so many steps after each message.
fn pages(
    host: &mut Host,
    name: &str,
    pages: &[u64],
    link: &mut impl Write,
    steps: u64,
    watch: &mut impl Watch,
) -> Result<Round, MigrateError> {
    let mut round = Round::default();
    for chunk in pages.chunks(CHUNK) {
        let partition = host.partition(name)?;
        let chunk: Vec<PageOf> =
            chunk.iter().map(|gpa| partition.page(&host.memory, *gpa & !(PAGE - 1))).collect();
        round.pages += chunk.len() as u64;
        round.zeros += chunk.iter().filter(|(_, content)| content.is_none()).count() as u64;
        Message::Pages(chunk).write(link).map_err(MigrateError::io)?;
        if steps > 0 {
            run(host, name, steps, watch).map_err(|error: HostError| MigrateError::Host(error))?;
            round.steps += steps;
        }
    }
    Ok(round)
}
