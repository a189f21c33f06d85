//! The source's side.

use std::io::{Read, Write};

use super::super::digest::Digest;
use super::super::wire::{CHUNK, Message, PageOf};
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
        /// Whether the destination has said that it runs it.
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
/// guest runs meanwhile.
///
/// # Errors
/// Only where this host can neither run it nor know who does: of the record, or of its own tables.
pub fn send(
    host: &mut Host,
    ownership: &mut Ownership,
    link: &mut (impl Read + Write),
    plan: &Plan,
    watch: &mut impl Watch,
) -> Result<Departure, MigrateError> {
    let name = ownership.name().to_owned();
    let generation = ownership.read()?.map_or(0, |record| record.generation);
    let mut rounds = Vec::new();
    if let Err(why) = copy(host, &name, generation, link, plan, watch, &mut rounds) {
        let failed = tables(host, &name);
        let (partition, memory) = host.both(&name)?;
        partition.stop_log(memory).map_err(failed)?;
        return Ok(Departure::Kept { why });
    }
    // From here on the guest is paused. The pages of the last round are not sent yet.
    watch.step("source: paused");
    let failed = tables(host, &name);
    let (partition, memory) = host.both(&name)?;
    let left = partition.dirty(memory).map_err(&failed)?;
    partition.stop_log(memory).map_err(&failed)?;
    let last = partition.last(memory);
    let left_behind =
        Left { window: partition.follow(memory, WINDOW), exits: partition.exits.clone() };
    let digest = last.digest;
    let paused = State::Paused { host: host.spec.name.clone(), digest };
    // Where that fails, the destination has not got all: with the lock here, the guest goes on.
    if let Err(why) = ownership.write(&Record { generation, state: paused }) {
        let state = State::Running { host: host.spec.name.clone() };
        let _ = ownership.write(&Record { generation, state });
        return Ok(Departure::Kept { why: why.into() });
    }
    watch.step("source: recorded that it is paused");

    let mut discarded = false;
    let handed = (|| -> Result<(), MigrateError> {
        rounds.push(pages(host, &name, &left, link, 0, watch)?);
        tell(link, &Message::Last(last))?;
        watch.step("source: sent the last of it");
        due(link, &Message::Ready)?;
        watch.step("source: heard that all has arrived");
        ownership.unlock()?;
        watch.step("source: let the lock go");
        tell(link, &Message::Go)?;
        watch.step("source: told the destination to take it");
        due(link, &Message::Taken)?;
        watch.step("source: heard that it is taken");
        host.stop(&name)?;
        discarded = true;
        watch.step("source: discarded its copy");
        tell(link, &Message::Discarded)?;
        due(link, &Message::Running)
    })();
    match handed {
        Ok(()) => Ok(Departure::HandedOver { rounds, digest, confirmed: true, left: left_behind }),
        Err(why) => {
            let over =
                Departure::HandedOver { rounds, digest, confirmed: false, left: left_behind };
            if discarded { Ok(over) } else { settle(host, ownership, generation, over, why) }
        }
    }
}

/// After the pause, something went wrong: who has the virtual machine?
fn settle(
    host: &mut Host,
    ownership: &mut Ownership,
    generation: u64,
    over: Departure,
    why: MigrateError,
) -> Result<Departure, MigrateError> {
    let name = ownership.name().to_owned();
    loop {
        let locked = ownership.try_lock()?;
        let record = ownership.read()?;
        match record.map(|record| (record.generation, record.state)) {
            // Nobody has run it since, and with the lock here nobody will.
            Some((of, State::Paused { .. } | State::Taken { .. }))
                if of == generation && locked =>
            {
                let state = State::Running { host: host.spec.name.clone() };
                ownership.write(&Record { generation: generation + 1, state })?;
                return Ok(Departure::Kept { why });
            }
            // The destination has the lock, and decides.
            Some((of, State::Paused { .. } | State::Taken { .. })) if of == generation => {
                std::thread::sleep(PAUSE);
            }
            Some((_, State::Running { host: there })) => {
                host.stop(&name)?;
                if locked {
                    let state = State::Lost { host: there.clone() };
                    ownership.write(&Record { generation: generation + 1, state })?;
                    ownership.unlock()?;
                    return Ok(Departure::LostThere { host: there });
                }
                return Ok(over);
            }
            _ => {
                host.stop(&name)?;
                ownership.unlock()?;
                return Ok(over);
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
            return Err(super::WireError::Unexpected { due, got: got.name() }.into());
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
