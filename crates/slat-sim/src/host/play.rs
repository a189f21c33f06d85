//! Plays a scenario. Where partitions move between hosts, each host has a process of its own, which
//! plays its part of the same scenario; the processes meet at each migration.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};

use super::migrate::ownership::{Ownership, OwnershipError, State};
use super::migrate::{self, Arrival, Departure, Watch};
use super::played::{Event, Followed, HostReport, Moved, Outcome, Played};
use super::scenario::{Do, Scenario, Step};
use super::transport::{self, Door, Link};
use super::{Hello, Host, PartitionSpec, size};

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
    /// Partitions that are paused here since a migration failed, each with its access to its lock
    /// and the reason.
    suspended: BTreeMap<String, (Ownership, String)>,
    door: Option<Door>,
    /// Partitions that other hosts brought before it was their turn.
    early: Vec<(Hello, Link)>,
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
        suspended: BTreeMap::new(),
        door,
        early: Vec::new(),
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
                // What is suspended here is for the record to say, not for this host to end.
                self.suspended.remove(partition);
                if let Some(mut ownership) = self.owned.remove(partition) {
                    ownership.end().map_err(|error| error.to_string())?;
                }
                return Ok(Event::done("its memory is the parent's again"));
            }
            Do::Run { partition, steps } => {
                let (partition, steps) = (partition.clone(), *steps);
                self.may_run(&partition)?;
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
            Do::Save { partition } => return self.save(name, partition, &saved(partition)),
            Do::Restore { partition } => return self.restore(name, partition, &saved(partition)),
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
            Do::Start { .. }
            | Do::Stop { .. }
            | Do::Run { .. }
            | Do::Save { .. }
            | Do::Restore { .. }
            | Do::Migrate { .. } => {
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
            if !migrates {
                self.host(name)?.power_on(&spec).map_err(|error| error.to_string())?;
                continue;
            }
            let mut ownership =
                Ownership::open(&directory, &spec.name).map_err(|error| error.to_string())?;
            // Recorded once it has its memory, and before it runs: a start that is refused leaves the
            // lock and the record as they were.
            if !ownership.try_lock().map_err(|error| error.to_string())? {
                return Err(OwnershipError::Held(spec.name).to_string());
            }
            self.host(name)?.power_on(&spec).map_err(|error| error.to_string())?;
            let before = match ownership.begin(name) {
                Ok(before) => before,
                Err(error) => {
                    self.host(name)?.stop(&spec.name).map_err(|error| error.to_string())?;
                    return Err(error.to_string());
                }
            };
            let text = match before.map(|record| record.state) {
                Some(State::Running { host } | State::Lost { host }) => {
                    Some(format!("its last life was lost with host {host}"))
                }
                Some(State::Saved { host, .. }) => {
                    Some(format!("what host {host} saved of it is given up"))
                }
                _ => None,
            };
            if let Some(text) = text {
                self.events.push(Event {
                    host: name.to_owned(),
                    action: "start".to_owned(),
                    partition: Some(spec.name.clone()),
                    text,
                    ..Event::default()
                });
            }
            self.owned.insert(spec.name.clone(), ownership);
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

    /// Where partitions move, one runs under its lock alone.
    fn may_run(&self, partition: &str) -> Result<(), String> {
        if !self.scenario.migrates() || self.owned.contains_key(partition) {
            return Ok(());
        }
        Err(match self.suspended.get(partition) {
            Some((_, why)) => why.clone(),
            None => format!("partition {partition} is not in this host's hands"),
        })
    }

    /// Saves a partition. Where partitions move, its record says from then on that whoever restores
    /// this state may run it, once.
    fn save(&mut self, name: &str, partition: &str, path: &Path) -> Result<Event, String> {
        self.may_run(partition)?;
        let host = self.host(name)?;
        let digest = host.save(partition, path).map_err(|error| error.to_string())?;
        if let Some(mut ownership) = self.owned.remove(partition) {
            ownership.saved(name, digest).map_err(|error| error.to_string())?;
        }
        Ok(Event::done("saved to a file, and stopped"))
    }

    fn restore(&mut self, name: &str, partition: &str, path: &Path) -> Result<Event, String> {
        if !self.scenario.migrates() {
            let restored = self.host(name)?.restore(path).map_err(|error| error.to_string())?;
            return Ok(Event::done(format!("{restored} is as it was saved: digests are equal")));
        }
        let mut ownership = Ownership::open(&self.options.directory, partition)
            .map_err(|error| error.to_string())?;
        let due = ownership.claim_saved().map_err(|error| error.to_string())?;
        let host = self.host(name)?;
        let restored = host.restore(path).map_err(|error| error.to_string())?;
        let found = host.partition(&restored).map(|one| one.digest(&host.memory));
        let wrong = match found {
            Ok(found) if found == due && restored == partition => match ownership.begin(name) {
                Ok(_) => None,
                Err(error) => Some(error.to_string()),
            },
            _ => Some(format!("{} is not what was last saved of {partition}", path.display())),
        };
        if let Some(wrong) = wrong {
            host.stop(&restored).map_err(|error| error.to_string())?;
            return Err(wrong);
        }
        self.owned.insert(restored.clone(), ownership);
        Ok(Event::done(format!("{restored} is as it was saved: digests are equal")))
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
        match migrate::send(host, &mut ownership, &mut link, plan, &mut self.eyes) {
            Departure::HandedOver { rounds, digest, confirmed, left } => {
                let (last, copied) =
                    rounds.split_last().map_or((0, 0), |(last, before)| (last.pages, before.len()));
                let mut text = format!(
                    "to host {to}: {copied} rounds while it ran, {last} pages while it was paused"
                );
                if !confirmed {
                    text.push_str("; it recorded that it runs it, and has not said so");
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
            Departure::Suspended { why } => {
                let text = format!("it is paused on host {from}, and runs nowhere: {why}");
                self.suspended.insert(partition.to_owned(), (ownership, text.clone()));
                Err(text)
            }
        }
    }

    fn arrive(&mut self, to: &str, partition: &str) -> Result<Event, String> {
        let Some(door) = &self.door else {
            return Err("partitions move between processes only".to_owned());
        };
        // Others may come before: each waits for its turn.
        let early = self.early.iter().position(|(hello, _)| hello.name == *partition);
        let (hello, mut link) = match early {
            Some(index) => self.early.swap_remove(index),
            None => loop {
                let mut link = door.wait().map_err(|error| format!("no host came: {error}"))?;
                let hello = migrate::announced(&mut link)
                    .map_err(|error| format!("{partition} did not come: {error}"))?;
                if hello.name == *partition {
                    break (hello, link);
                }
                self.early.push((hello, link));
            },
        };
        let directory = self.options.directory.clone();
        let Some(Ok(host)) = self.hosts.get_mut(to) else {
            return Err(format!("host {to} did not start"));
        };
        let arrival = migrate::receive(host, &directory, hello, &mut link, &mut self.eyes)
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
            Arrival::StayedThere { why } => Err(format!("{partition} did not come: {why}")),
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

#[cfg(all(test, unix))]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::host::migrate::ownership::Record;

    /// Plays one host's part of a scenario of which `steps` are the steps, and in which partitions move.
    fn part(directory: &Path, only: &str, steps: &str) -> Vec<Event> {
        let mut text = "name = \"part\"\nabout = \"x\"\n".to_owned();
        for host in ["a", "b", "c", "d", "e"] {
            text += &format!(
                "[[host]]\nname = \"{host}\"\nprocessor = \"haswell\"\nhypervisor = \"kvm-3.0\"\n\
                 memory = [\"32M\"]\n"
            );
        }
        text += steps;
        text += "[[step]]\ndo = \"migrate\"\nhost = \"d\"\npartition = \"z\"\nto = \"e\"\n";
        let scenario = Scenario::parse("part", &text).unwrap();
        let options = Options {
            only: Some(only.to_owned()),
            directory: directory.to_owned(),
            ..Options::default()
        };
        play(&scenario, &options, &mut |_| {}).unwrap().events
    }

    fn step(what: &str, host: &str, more: &str) -> String {
        format!("[[step]]\ndo = \"{what}\"\nhost = \"{host}\"\npartition = \"p\"\n{more}\n")
    }

    fn record(directory: &Path) -> Option<Record> {
        Ownership::open(directory, "p").unwrap().read().unwrap()
    }

    #[test]
    fn what_was_saved_is_restored_once() {
        let folder = tempfile::tempdir().unwrap();
        let (dir, size) = (folder.path(), "memory = \"8M\"");
        let life = [
            step("start", "a", size),
            step("run", "a", ""),
            step("save", "a", ""),
            step("restore", "a", ""),
            step("restore", "a", "refused = true"),
            step("run", "a", ""),
            step("save", "a", ""),
            // It runs nowhere now.
            step("run", "a", "refused = true"),
        ];
        let events = part(dir, "a", &life.concat());
        assert!(events.iter().all(|event| event.outcome != Outcome::Failed), "{events:?}");
        assert!(matches!(record(dir).unwrap().state, State::Saved { .. }));
        let older = std::fs::read(dir.join("p.saved")).unwrap();
        let there = [step("restore", "b", ""), step("run", "b", ""), step("save", "b", "")];
        let events = part(dir, "b", &there.concat());
        assert!(events.iter().all(|event| event.outcome == Outcome::Done), "{events:?}");
        // An older state than the last is not gone on with, nor is one that another host runs.
        std::fs::write(dir.join("p.saved"), older).unwrap();
        let events = part(dir, "a", &step("restore", "a", "refused = true"));
        assert!(events[0].text.contains("is not what was last saved"), "{events:?}");
        let mut other = Ownership::open(dir, "p").unwrap();
        other.begin("c").unwrap();
        let events = part(dir, "a", &step("restore", "a", "refused = true"));
        assert!(events[0].text.contains("in the hands of another host"), "{events:?}");
        drop(other);
        let events = part(dir, "a", &step("restore", "a", "refused = true"));
        assert!(events[0].text.contains("was not saved, or has run since"), "{events:?}");
    }

    #[test]
    fn a_start_that_is_refused_leaves_lock_and_record() {
        let folder = tempfile::tempdir().unwrap();
        let refused = [
            step("start", "a", "memory = \"64M\"\nrefused = true"),
            step("start", "a", "memory = \"8M\""),
            step("stop", "a", ""),
            step("start", "a", "memory = \"64M\"\nrefused = true"),
        ];
        let events = part(folder.path(), "a", &refused.concat());
        assert!(events.iter().all(|event| event.outcome != Outcome::Failed), "{events:?}");
        assert_eq!(record(folder.path()), Some(Record { generation: 1, state: State::Stopped }));
    }

    #[test]
    fn each_migration_takes_the_partition_that_it_is_about() {
        let folder = tempfile::tempdir().unwrap();
        let steps = [
            step("start", "a", "memory = \"8M\""),
            step("start", "b", "memory = \"8M\"").replace("\"p\"", "\"q\""),
            step("migrate", "a", "to = \"c\""),
            step("migrate", "b", "to = \"c\"").replace("\"p\"", "\"q\""),
        ]
        .concat();
        let (dir, steps) = (folder.path(), steps.as_str());
        thread::scope(|scope| {
            // The second to be taken comes first.
            let second = scope.spawn(move || part(dir, "b", steps));
            let both = scope.spawn(move || part(dir, "c", steps));
            thread::sleep(Duration::from_millis(300));
            let first = part(dir, "a", steps);
            for events in [first, second.join().unwrap(), both.join().unwrap()] {
                for event in &events {
                    assert_eq!(event.outcome, Outcome::Done, "{events:?}");
                    let due = if event.step == 1 || event.step == 3 { "p" } else { "q" };
                    assert_eq!(event.partition.as_deref(), Some(due));
                }
            }
        });
    }
}
