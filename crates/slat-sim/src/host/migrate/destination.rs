//! The destination's side.

use std::io::{Read, Write};
use std::path::Path;

use super::super::digest::Digest;
use super::super::wire::{Hello, Last, Message, WireError};
use super::super::{Host, WINDOW};
use super::ownership::{Ownership, Record, State};
use super::{LOOKS, MigrateError, PAUSE, Watch, due, tell};

/// How a migration ended at the destination.
#[derive(Debug)]
pub enum Arrival {
    /// The partition runs here: this process holds its lock.
    Here {
        /// Its lock and record.
        ownership: Ownership,
        /// The digest of what arrived.
        digest: Digest,
        /// Whether every translation of the guest's is the same as at the source.
        translations: bool,
        /// Whether the source was gone by then.
        source_lost: bool,
        /// Where the first address of its guest's window leads: guest-physical, system physical.
        window: Option<(u64, u64)>,
    },
    /// It stayed with the source, which runs it.
    StayedThere {
        /// Why.
        why: MigrateError,
    },
    /// The source died with it, before the hand-over: it is lost, as it would have been without a
    /// migration.
    SourceLost {
        /// The partition.
        name: String,
        /// The source.
        host: String,
    },
}

/// Which partition comes over a link that another host has just opened.
///
/// # Errors
/// Of the link, and where something else comes.
pub fn announced(link: &mut impl Read) -> Result<Hello, WireError> {
    match Message::read(link)? {
        Message::Hello(hello) => Ok(hello),
        got => Err(WireError::Unexpected { due: "hello", got: got.name() }),
    }
}

/// Receives the partition that was [`announced`] over `link`, whose lock and record are in
/// `directory`.
///
/// # Errors
/// Only where it cannot be known who has it: of the record.
pub fn receive(
    host: &mut Host,
    directory: &Path,
    hello: Hello,
    link: &mut (impl Read + Write),
    watch: &mut impl Watch,
) -> Result<Arrival, MigrateError> {
    let mut ownership = Ownership::open(directory, &hello.name)?;
    watch.step("destination: heard what comes");
    if let Err(error) = host.create_from(&hello) {
        let _ = tell(link, &Message::Refuse(error.to_string()));
        return Ok(Arrival::StayedThere { why: error.into() });
    }
    let filled = fill(host, &hello, link, watch);
    let outcome = match filled {
        Ok(last) => claim(host, &hello, &last, &mut ownership, link, watch),
        Err(why) => gone(&hello, &mut ownership, why),
    };
    match outcome {
        Ok(Claimed::Here { digest, translations, source_lost }) => {
            let window = host.follow(&hello.name, WINDOW)?;
            Ok(Arrival::Here { ownership, digest, translations, source_lost, window })
        }
        Ok(Claimed::StayedThere(why)) => {
            host.stop(&hello.name)?;
            Ok(Arrival::StayedThere { why })
        }
        Ok(Claimed::SourceLost) => {
            host.stop(&hello.name)?;
            Ok(Arrival::SourceLost { name: hello.name, host: hello.host })
        }
        Err(error) => {
            host.stop(&hello.name)?;
            Err(error)
        }
    }
}

enum Claimed {
    Here { digest: Digest, translations: bool, source_lost: bool },
    StayedThere(MigrateError),
    SourceLost,
}

/// Takes the content in, until all of it is there.
fn fill(
    host: &mut Host,
    hello: &Hello,
    link: &mut (impl Read + Write),
    watch: &mut impl Watch,
) -> Result<Last, MigrateError> {
    tell(link, &Message::Accept)?;
    loop {
        let wrong = match super::hear(link)? {
            Message::Pages(pages) => match host.put_pages(&hello.name, &pages) {
                Ok(()) => continue,
                Err(error) => error.to_string(),
            },
            Message::RoundEnd(_) => {
                watch.step("destination: ended a round");
                continue;
            }
            Message::Last(last) => {
                watch.step("destination: has the last of it");
                if host.finish(&hello.name, &last)? {
                    return Ok(last);
                }
                "what arrived is not what was sent: the digests differ".to_owned()
            }
            got => format!("pages were due, and {} came", got.name()),
        };
        let _ = tell(link, &Message::Refuse(wrong.clone()));
        return Err(MigrateError::Refused(wrong));
    }
}

/// The link ended, or brought something wrong, before all was there.
fn gone(
    hello: &Hello,
    ownership: &mut Ownership,
    why: MigrateError,
) -> Result<Claimed, MigrateError> {
    // A process that dies lets its link go before its lock.
    for _ in 0..LOOKS {
        if ownership.try_lock()? {
            let lost = match ownership.read()? {
                Some(Record {
                    generation,
                    state: State::Running { .. } | State::Paused { .. },
                }) => {
                    let state = State::Lost { host: hello.host.clone() };
                    ownership.write(&Record { generation, state })?;
                    true
                }
                // It went on, and was switched off or saved since.
                _ => false,
            };
            ownership.unlock()?;
            return Ok(if lost { Claimed::SourceLost } else { Claimed::StayedThere(why) });
        }
        std::thread::sleep(PAUSE);
        // A source that lives and goes on says so in the record, or has never paused.
        if matches!(why, MigrateError::Refused(_)) {
            break;
        }
    }
    Ok(Claimed::StayedThere(why))
}

/// All is there: takes the partition, once the source lets it go or is gone.
fn claim(
    host: &mut Host,
    hello: &Hello,
    last: &Last,
    ownership: &mut Ownership,
    link: &mut (impl Read + Write),
    watch: &mut impl Watch,
) -> Result<Claimed, MigrateError> {
    let here = host.spec.name.clone();
    watch.step("destination: found the digest right");
    let told = tell(link, &Message::Ready);
    watch.step("destination: said that all has arrived");
    let told = told.and_then(|()| due(link, &Message::Go));
    watch.step("destination: was told to take it, or the source is gone");
    let digest = last.digest;
    loop {
        let locked = ownership.try_lock()?;
        match ownership.read()? {
            Some(Record { generation, state: State::Paused { digest: of, .. } })
                if generation == hello.generation && of == digest =>
            {
                if locked {
                    break;
                }
                std::thread::sleep(PAUSE);
            }
            _ => {
                ownership.unlock()?;
                let why = told.err().unwrap_or_else(|| {
                    MigrateError::Refused("the source went on with it".to_owned())
                });
                return Ok(Claimed::StayedThere(why));
            }
        }
    }
    watch.step("destination: has the lock");
    let running = Record { generation: hello.generation + 1, state: State::Running { host: here } };
    // From this record on it runs here and nowhere else; without it, the source takes it back. Which
    // of the two, after an error, is for the record to say.
    if let Err(error) = ownership.write(&running)
        && ownership.read()?.as_ref() != Some(&running)
    {
        ownership.unlock()?;
        let _ = tell(link, &Message::Refuse(error.to_string()));
        return Ok(Claimed::StayedThere(error.into()));
    }
    watch.step("destination: recorded that it runs it");
    let told = told.and_then(|()| tell(link, &Message::Running));
    let (partition, memory) = host.both(&hello.name)?;
    let translations = partition.translations_digest(memory) == last.translations;
    Ok(Claimed::Here { digest, translations, source_lost: told.is_err() })
}
