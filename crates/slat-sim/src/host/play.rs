//! Plays a scenario. Where partitions move between hosts, each host has a process of its own, which
//! plays its part of the same scenario; the processes meet at each migration.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};

use super::migrate::ownership::{Ownership, State};
use super::migrate::{self, Arrival, Departure, Watch};
use super::played::{Event, Followed, HostReport, Moved, Outcome, Played};
use super::scenario::{Do, Scenario, Step};
use super::transport::{self, Door};
use super::{Host, PartitionSpec, size};

/// How a scenario is played.
#[derive(Debug, Default)]
pub struct Options {
    /// Only this host's part; `None` is all of it, in this process.
    pub only: Option<String>,
    /// Where saved partitions lie and, where partitions move, their locks, records and sockets.
    pub directory: PathBuf,
    /// Says each step of a migration on the standard output, and waits for a line on the standard
    /// input: tests stop and kill a host there.
    pub stepwise: bool,
    /// A file that each host appends to before and after its guest runs, behind a lock of its own,
    /// so that a test can see that no two copies ever did.
    pub journal: Option<PathBuf>,
}

/// Why a scenario is not played.
#[derive(Debug, thiserror::Error)]
pub enum PlayError {
    /// No host of this name.
    #[error("the scenario has no host {0}")]
    NoHost(String),
    /// The directory, or a process.
    #[error("{what}: {error}")]
    Io {
        /// What it was about.
        what: String,
        /// Why.
        error: io::Error,
    },
    /// Another host's process said something that is no report.
    #[error("the process of host {host} ended without a report ({status})")]
    NoReport {
        /// The host.
        host: String,
        /// How it ended.
        status: String,
    },
}

impl PlayError {
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> PlayError {
        move |error| PlayError::Io { what: what.into(), error }
    }
}

/// Sees migrations.
struct Eyes {
    stepwise: bool,
    journal: Option<(File, File)>,
}

impl Eyes {
    fn new(options: &Options) -> Result<Eyes, PlayError> {
        let open = |path: &Path| {
            let failed = PlayError::io(path.display().to_string());
            OpenOptions::new().create(true).append(true).open(path).map_err(failed)
        };
        let journal = match &options.journal {
            Some(path) => Some((open(path)?, open(&path.with_extension("lock"))?)),
            None => None,
        };
        Ok(Eyes { stepwise: options.stepwise, journal })
    }
}

impl Watch for Eyes {
    fn step(&mut self, name: &'static str) {
        if !self.stepwise {
            return;
        }
        // Who reads this decides when to go on; where nobody does, it goes on.
        let told = writeln!(io::stdout(), "step {name}").and_then(|()| io::stdout().flush());
        if told.is_ok() {
            let _ = io::stdin().lock().read_line(&mut String::new());
        }
    }

    fn running(&mut self, host: &str, steps: u64) {
        let Some((journal, lock)) = &mut self.journal else { return };
        if let Err(TryLockError::WouldBlock) = lock.try_lock() {
            let _ = writeln!(journal, "conflict {host} {steps}");
        }
        let _ = writeln!(journal, "from {host} {steps}");
    }

    fn ran(&mut self, host: &str, steps: u64) {
        let Some((journal, lock)) = &mut self.journal else { return };
        let _ = writeln!(journal, "to {host} {steps}");
        let _ = lock.unlock();
    }
}

/// One process's part of a play.
struct Player<'a> {
    scenario: &'a Scenario,
    options: &'a Options,
    /// Hosts, or why they did not start.
    hosts: BTreeMap<String, Result<Host, String>>,
    /// Where partitions move: the locks that are held here.
    owned: BTreeMap<String, Ownership>,
    door: Option<Door>,
    eyes: Eyes,
    events: Vec<Event>,
}

/// Plays a scenario, or one host's part of it. `progress` is told what comes next.
///
/// # Errors
/// Where it cannot be played at all; what happens in it is in the result.
pub fn play(
    scenario: &Scenario,
    options: &Options,
    progress: &mut dyn FnMut(&str),
) -> Result<Played, PlayError> {
    if let Some(only) = &options.only
        && !scenario.hosts.iter().any(|host| host.name == *only)
    {
        return Err(PlayError::NoHost(only.clone()));
    }
    std::fs::create_dir_all(&options.directory)
        .map_err(PlayError::io(options.directory.display().to_string()))?;
    let door = match &options.only {
        Some(only) if scenario.migrates() => {
            let failed = PlayError::io(format!("the socket of host {only}"));
            Some(Door::open(&options.directory, only).map_err(failed)?)
        }
        _ => None,
    };
    let mut player = Player {
        scenario,
        options,
        hosts: BTreeMap::new(),
        owned: BTreeMap::new(),
        door,
        eyes: Eyes::new(options)?,
        events: Vec::new(),
    };
    for spec in &scenario.hosts {
        if options.only.as_ref().is_none_or(|only| *only == spec.name) {
            progress(&format!("starting host {}", spec.name));
            let started = Host::start(spec.clone()).map_err(|error| error.to_string());
            player.hosts.insert(spec.name.clone(), started);
        }
    }
    for (index, step) in scenario.steps.iter().enumerate() {
        let about = step.what.partition().unwrap_or_default();
        progress(&format!("{} {about}", step.what.name()));
        player.step(index + 1, step);
    }
    Ok(player.report())
}

impl Player<'_> {
    fn step(&mut self, number: usize, step: &Step) {
        if let Do::Migrate { partition, to, plan } = &step.what {
            let from = step.host.clone().unwrap_or_default();
            if self.hosts.contains_key(&from) {
                let done = self.depart(&from, partition, to, plan);
                self.note(number, step, &from, done);
            }
            if self.hosts.contains_key(to) {
                let done = self.arrive(to, partition);
                self.note(number, step, to, done);
            }
            return;
        }
        let host = match &step.host {
            Some(host) => Some(host.clone()),
            None => self.whose(step.what.partition().unwrap_or_default()),
        };
        let Some(host) = host.filter(|host| self.hosts.contains_key(host)) else { return };
        let done = match self.hosts.get(&host) {
            Some(Err(_)) => Err(format!("host {host} did not start")),
            _ => self.act(&host, &step.what),
        };
        self.note(number, step, &host, done);
    }

    /// The host here that has this partition.
    fn whose(&self, partition: &str) -> Option<String> {
        let has = |host: &Result<Host, String>| {
            host.as_ref().is_ok_and(|host| host.partition(partition).is_ok())
        };
        self.hosts.iter().find(|(_, host)| has(host)).map(|(name, _)| name.clone())
    }

    fn note(&mut self, number: usize, step: &Step, host: &str, done: Result<Event, String>) {
        let event = match done {
            Ok(event) if step.refused => Event {
                outcome: Outcome::Failed,
                text: format!("it was to be refused, and was not: {}", event.text),
                ..event
            },
            Ok(event) => event,
            Err(text) => {
                let outcome = if step.refused { Outcome::Refused } else { Outcome::Failed };
                Event { outcome, text, ..Event::default() }
            }
        };
        self.events.push(Event {
            step: number,
            line: step.line,
            host: host.to_owned(),
            action: step.what.name().to_owned(),
            partition: step.what.partition().map(str::to_owned),
            ..event
        });
    }

    fn host(&mut self, name: &str) -> Result<&mut Host, String> {
        match self.hosts.get_mut(name) {
            Some(Ok(host)) => Ok(host),
            Some(Err(_)) => Err(format!("host {name} did not start")),
            None => Err(format!("host {name} is not here")),
        }
    }

    fn act(&mut self, name: &str, what: &Do) -> Result<Event, String> {
        let directory = self.options.directory.clone();
        let saved = |partition: &str| directory.join(format!("{partition}.saved"));
        match what {
            Do::Start { spec, count } => return self.start(name, spec, *count),
            Do::Stop { partition } => {
                let host = self.host(name)?;
                host.stop(partition).map_err(|error| error.to_string())?;
                if let Some(mut ownership) = self.owned.remove(partition) {
                    ownership.end().map_err(|error| error.to_string())?;
                }
                return Ok(Event::done("its memory is the parent's again"));
            }
            Do::Run { partition, steps } => {
                let (partition, steps) = (partition.clone(), *steps);
                let Some(Ok(host)) = self.hosts.get_mut(name) else {
                    return Err(format!("host {name} is not here"));
                };
                let exits = |host: &Host| {
                    host.partition(&partition).map_or(0, |partition| partition.exits.total())
                };
                let before = exits(host);
                migrate::run(host, &partition, steps, &mut self.eyes)
                    .map_err(|error| error.to_string())?;
                let left = exits(host) - before;
                return Ok(Event::done(format!("{steps} steps, {left} exits")));
            }
            _ => {}
        }
        let host = self.host(name)?;
        let done = match what {
            Do::Follow { partition, address } => {
                let found = host.follow(partition, *address).map_err(|error| error.to_string())?;
                let (gpa, spa) =
                    found.ok_or_else(|| format!("GVA {address:#x} is not mapped by the guest"))?;
                let followed = Followed::new(*address, gpa, spa);
                return Ok(Event {
                    text: format!("GVA {address:#x} -> GPA {gpa:#x} -> SPA {spa:#x}"),
                    followed: Some(followed),
                    ..Event::default()
                });
            }
            Do::Save { partition } => {
                host.save(partition, &saved(partition)).map_err(|error| error.to_string())?;
                "saved to a file, and stopped".to_owned()
            }
            Do::Restore { partition } => {
                let name = host.restore(&saved(partition)).map_err(|error| error.to_string())?;
                format!("{name} is as it was saved: digests are equal")
            }
            Do::Parent { pages } => {
                let (memory, parent) = (&mut host.memory, &mut host.parent);
                let pages = (*pages).min(parent.pages());
                let (in_before, out_before) = (parent.paged_in, parent.paged_out);
                for page in 0..pages {
                    let right = parent.touch(memory, page).map_err(|error| error.to_string())?;
                    if !right {
                        return Err(format!("page {page} of the parent has lost its content"));
                    }
                }
                let (came, went) = (parent.paged_in - in_before, parent.paged_out - out_before);
                format!("{pages} pages used, {came} read back from the file, {went} written to it")
            }
            Do::Balloon { partition, bytes } => {
                let got = host.balloon(partition, *bytes).map_err(|error| error.to_string())?;
                format!("{} given back", size(got))
            }
            Do::Share => {
                let shared = host.share().map_err(|error| error.to_string())?;
                format!(
                    "{} of {} pages came free, {}",
                    shared.freed,
                    shared.scanned,
                    size(shared.freed * super::PAGE)
                )
            }
            Do::RealMode { partition } => {
                let shown = super::unpaged::show(host, partition)?;
                return Ok(Event {
                    text: shown.summary(),
                    unpaged: Some(shown),
                    ..Event::default()
                });
            }
            Do::Start { .. } | Do::Stop { .. } | Do::Run { .. } | Do::Migrate { .. } => {
                unreachable!("done above")
            }
        };
        Ok(Event::done(done))
    }

    fn start(&mut self, name: &str, spec: &PartitionSpec, count: u32) -> Result<Event, String> {
        let migrates = self.scenario.migrates();
        let directory = self.options.directory.clone();
        for number in 1..=count {
            let mut spec = spec.clone();
            if count > 1 {
                spec.name = format!("{}-{number}", spec.name);
            }
            if migrates {
                let mut ownership =
                    Ownership::open(&directory, &spec.name).map_err(|error| error.to_string())?;
                let before = ownership.begin(name).map_err(|error| error.to_string())?;
                if let Some(State::Running { host } | State::Lost { host }) =
                    before.map(|record| record.state)
                {
                    self.events.push(Event {
                        host: name.to_owned(),
                        action: "start".to_owned(),
                        partition: Some(spec.name.clone()),
                        text: format!("its last life was lost with host {host}"),
                        ..Event::default()
                    });
                }
                self.owned.insert(spec.name.clone(), ownership);
            }
            let host = self.host(name)?;
            host.power_on(&spec).map_err(|error| error.to_string())?;
        }
        let host = self.host(name)?;
        let last = if count > 1 { format!("{}-{count}", spec.name) } else { spec.name.clone() };
        let report = HostReport::partition(host, &last).map_err(|error| error.to_string())?;
        let each = if count > 1 { format!("{count} partitions, each ") } else { String::new() };
        // Overcommitted memory comes at the first touch.
        let there: u64 = report.pages.iter().map(|(bytes, count)| bytes * count).sum();
        let so_far = if there < report.bytes { ", so far" } else { "" };
        Ok(Event::done(format!(
            "{each}{}{so_far} in {}, {}",
            size(spec.bytes),
            report.pages_text(),
            report.translation
        )))
    }

    fn depart(
        &mut self,
        from: &str,
        partition: &str,
        to: &str,
        plan: &migrate::Plan,
    ) -> Result<Event, String> {
        let mut link = transport::reach(&self.options.directory, to)
            .map_err(|error| format!("host {to} is not reached: {error}"))?;
        let Some(mut ownership) = self.owned.remove(partition) else {
            return Err(format!("host {from} has no partition {partition}"));
        };
        let Some(Ok(host)) = self.hosts.get_mut(from) else {
            return Err(format!("host {from} is not here"));
        };
        let log = host.partition(partition).map(|one| one.logged_by().name());
        let departure = migrate::send(host, &mut ownership, &mut link, plan, &mut self.eyes)
            .map_err(|error| error.to_string())?;
        match departure {
            Departure::HandedOver { rounds, digest, confirmed, left } => {
                let (last, copied) =
                    rounds.split_last().map_or((0, 0), |(last, before)| (last.pages, before.len()));
                let mut text = format!(
                    "to host {to}: {copied} rounds while it ran, {last} pages while it was paused"
                );
                if !confirmed {
                    text.push_str("; the destination has not said since that it runs it");
                }
                let moved = Moved::sent(&rounds, digest, log.unwrap_or_default(), &left);
                Ok(Event { text, moved: Some(moved), ..Event::default() })
            }
            Departure::Kept { why } => {
                self.owned.insert(partition.to_owned(), ownership);
                Err(format!("it stays on host {from} and runs: {why}"))
            }
            Departure::LostThere { host } => {
                Err(format!("it was handed over, and went down with host {host}"))
            }
        }
    }

    fn arrive(&mut self, to: &str, partition: &str) -> Result<Event, String> {
        let Some(door) = &self.door else {
            return Err("partitions move between processes only".to_owned());
        };
        let mut link = door.wait().map_err(|error| format!("no host came: {error}"))?;
        let directory = self.options.directory.clone();
        let Some(Ok(host)) = self.hosts.get_mut(to) else {
            return Err(format!("host {to} did not start"));
        };
        let arrival = migrate::receive(host, &directory, &mut link, &mut self.eyes)
            .map_err(|error| error.to_string())?;
        match arrival {
            Arrival::Here { ownership, digest, translations, source_lost, window } => {
                self.owned.insert(ownership.name().to_owned(), ownership);
                let mut text = format!("runs on host {to}: contents identical");
                text.push_str(if translations {
                    ", translations identical"
                } else {
                    ", TRANSLATIONS DIFFER"
                });
                if source_lost {
                    text.push_str("; the source is gone");
                }
                let moved = Moved::received(digest, translations, window);
                if !translations {
                    return Err(text);
                }
                Ok(Event { text, moved: Some(moved), ..Event::default() })
            }
            Arrival::StayedThere { why, .. } => Err(format!("{partition} did not come: {why}")),
            Arrival::SourceLost { name, host } => {
                Err(format!("{name} is lost: host {host} went down with it before the hand-over"))
            }
        }
    }

    fn report(self) -> Played {
        let hosts = self
            .scenario
            .hosts
            .iter()
            .filter_map(|spec| {
                let host = self.hosts.get(&spec.name)?;
                Some(HostReport::new(spec, host.as_ref().map_err(String::as_str)))
            })
            .collect();
        Played {
            scenario: self.scenario.name.clone(),
            about: self.scenario.about.clone(),
            hosts,
            events: self.events,
        }
    }
}
