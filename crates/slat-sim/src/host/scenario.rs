//! What `slat host` plays: hosts and steps, from a TOML file.

use std::fmt;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer};
use toml::Spanned;

use super::migrate::Plan;
use super::{HostSpec, MAX_BYTES, PartitionSpec, Policies};
use crate::hypervisor::Hypervisor;
use crate::preset::{PresetError, Processor};

/// The most hosts of a scenario.
const MOST_HOSTS: usize = 8;
/// The most steps of a scenario, and partitions that one of them starts.
const MOST_STEPS: usize = 1000;
/// The most steps that a guest runs at a time.
const MOST_GUEST_STEPS: u64 = 50_000_000;

/// Hosts, and what happens on them.
#[derive(Clone, PartialEq, Debug)]
pub struct Scenario {
    /// Its name.
    pub name: String,
    /// What it shows, in a sentence.
    pub about: String,
    /// The hosts.
    pub hosts: Vec<HostSpec>,
    /// What happens, in order.
    pub steps: Vec<Step>,
}

/// One thing that happens.
#[derive(Clone, PartialEq, Debug)]
pub struct Step {
    /// Its line in the file, from 1.
    pub line: usize,
    /// The host; `None` is whichever has the partition.
    pub host: Option<String>,
    /// What happens.
    pub what: Do,
    /// It is there to be refused.
    pub refused: bool,
}

/// What happens.
#[derive(Clone, PartialEq, Debug)]
pub enum Do {
    /// Partitions start: `count` of them, numbered if it is more than one.
    Start {
        /// The partition.
        spec: PartitionSpec,
        /// How many.
        count: u32,
    },
    /// A partition stops.
    Stop {
        /// The partition.
        partition: String,
    },
    /// A guest runs.
    Run {
        /// The partition.
        partition: String,
        /// For so many steps.
        steps: u64,
    },
    /// One address is followed.
    Follow {
        /// The partition.
        partition: String,
        /// The guest virtual address.
        address: u64,
    },
    /// A partition is saved and stopped.
    Save {
        /// The partition.
        partition: String,
    },
    /// A partition that was saved starts again.
    Restore {
        /// The partition.
        partition: String,
    },
    /// The parent uses its first pages.
    Parent {
        /// How many.
        pages: u64,
    },
    /// A guest is asked to give memory back.
    Balloon {
        /// The partition.
        partition: String,
        /// How much.
        bytes: u64,
    },
    /// Pages of the same content are shared.
    Share,
    /// A running partition moves to another host.
    Migrate {
        /// The partition.
        partition: String,
        /// The destination.
        to: String,
        /// How.
        plan: Plan,
    },
    /// A guest goes from real mode to protected mode and back, and to paging.
    RealMode {
        /// The partition.
        partition: String,
    },
}

impl Do {
    /// Its word in a scenario.
    pub const fn name(&self) -> &'static str {
        match self {
            Do::Start { .. } => "start",
            Do::Stop { .. } => "stop",
            Do::Run { .. } => "run",
            Do::Follow { .. } => "follow",
            Do::Save { .. } => "save",
            Do::Restore { .. } => "restore",
            Do::Parent { .. } => "parent",
            Do::Balloon { .. } => "balloon",
            Do::Share => "share",
            Do::Migrate { .. } => "migrate",
            Do::RealMode { .. } => "real-mode",
        }
    }

    /// The partition that it is about.
    pub fn partition(&self) -> Option<&str> {
        match self {
            Do::Start { spec, .. } => Some(&spec.name),
            Do::Stop { partition }
            | Do::Run { partition, .. }
            | Do::Follow { partition, .. }
            | Do::Save { partition }
            | Do::Restore { partition }
            | Do::Balloon { partition, .. }
            | Do::Migrate { partition, .. }
            | Do::RealMode { partition } => Some(partition),
            Do::Parent { .. } | Do::Share => None,
        }
    }
}

/// A scenario that cannot be played.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// Not this file's format; the text names line and field.
    #[error("{file}: {error}")]
    Toml {
        /// The file.
        file: String,
        /// What is wrong with it.
        error: Box<toml::de::Error>,
    },
    /// A field whose value makes no scenario.
    #[error("{file}, line {line}: {field}: {text}")]
    Field {
        /// The file.
        file: String,
        /// The line, from 1.
        line: usize,
        /// The field.
        field: String,
        /// What is wrong with it.
        text: String,
    },
    /// No scenario of this name.
    #[error("no scenario `{name}`; there are {choices}, or give a TOML file")]
    Unknown {
        /// The name that was asked for.
        name: String,
        /// All names.
        choices: String,
    },
}

/// A number of bytes: `4096`, `"64K"`, `"16M"`, `"1G"`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Bytes(u64);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
        from.deserialize_any(Sized { what: "a size such as \"16M\"" }).map(Bytes)
    }
}

/// An address: a number, or `"0x40000000"`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Address(u64);

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Address, D::Error> {
        from.deserialize_any(Sized { what: "an address such as \"0x40000000\"" }).map(Address)
    }
}

struct Sized {
    what: &'static str,
}

impl Visitor<'_> for Sized {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<u64, E> {
        u64::try_from(value).map_err(|_| E::invalid_value(de::Unexpected::Signed(value), &self))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<u64, E> {
        let value = if let Some(digits) = text.strip_prefix("0x") {
            u64::from_str_radix(&digits.replace('_', ""), 16).ok()
        } else {
            let (digits, shift) = match text.as_bytes().last() {
                Some(b'K') => (&text[..text.len() - 1], 10),
                Some(b'M') => (&text[..text.len() - 1], 20),
                Some(b'G') => (&text[..text.len() - 1], 30),
                _ => (text, 0),
            };
            let number = digits.parse::<u64>().ok();
            number.and_then(|number| number.checked_mul(1 << shift))
        };
        value.ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ScenarioText {
    name: String,
    about: String,
    host: Vec<Spanned<HostText>>,
    #[serde(default)]
    step: Vec<Spanned<StepText>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HostText {
    name: String,
    processor: Spanned<String>,
    hypervisor: Spanned<String>,
    memory: Spanned<Vec<Bytes>>,
    #[serde(default)]
    holes: Vec<HoleText>,
    tables: Option<Bytes>,
    parent: Option<Bytes>,
    #[serde(default)]
    parent_paging: bool,
    #[serde(default)]
    policies: PoliciesText,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HoleText {
    start: Address,
    bytes: Bytes,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct PoliciesText {
    overcommit: bool,
    balloon: bool,
    share: bool,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Word {
    Start,
    Stop,
    Run,
    Follow,
    Save,
    Restore,
    Parent,
    Balloon,
    Share,
    Migrate,
    RealMode,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StepText {
    r#do: Word,
    host: Option<Spanned<String>>,
    partition: Option<Spanned<String>>,
    memory: Option<Spanned<Bytes>>,
    holes: Option<Vec<HoleText>>,
    node: Option<Spanned<usize>>,
    seed: Option<Spanned<u64>>,
    count: Option<Spanned<u32>>,
    steps: Option<Spanned<u64>>,
    address: Option<Spanned<Address>>,
    pages: Option<Spanned<u64>>,
    to: Option<Spanned<String>>,
    steps_per_chunk: Option<Spanned<u64>>,
    most_rounds: Option<Spanned<u32>>,
    pause_at: Option<Spanned<usize>>,
    #[serde(default)]
    refused: bool,
}

/// Bundled scenarios: name and text.
const BUNDLED: &[(&str, &str)] = &[
    ("power-on", include_str!("../../scenarios/power-on.toml")),
    ("parent-paging", include_str!("../../scenarios/parent-paging.toml")),
    ("migrate", include_str!("../../scenarios/migrate.toml")),
    ("real-mode", include_str!("../../scenarios/real-mode.toml")),
    ("requires-slat", include_str!("../../scenarios/requires-slat.toml")),
    ("many-partitions", include_str!("../../scenarios/many-partitions.toml")),
    ("policies", include_str!("../../scenarios/policies.toml")),
];

/// The file under way: where a span begins, in lines.
struct Source<'a> {
    file: &'a str,
    text: &'a str,
}

impl Source<'_> {
    fn line(&self, at: usize) -> usize {
        let before = self.text.as_bytes().get(..at).unwrap_or_default();
        before.iter().filter(|byte| **byte == b'\n').count() + 1
    }

    fn wrong(&self, at: usize, field: &str, text: impl Into<String>) -> ScenarioError {
        ScenarioError::Field {
            file: self.file.to_owned(),
            line: self.line(at),
            field: field.to_owned(),
            text: text.into(),
        }
    }
}

impl Scenario {
    /// The bundled scenario of this name.
    ///
    /// # Errors
    /// Names the choices.
    pub fn bundled(name: &str) -> Result<Scenario, ScenarioError> {
        match BUNDLED.iter().find(|(key, _)| *key == name) {
            Some((key, text)) => Scenario::parse(key, text),
            None => Err(ScenarioError::Unknown {
                name: name.to_owned(),
                choices: Scenario::names().collect::<Vec<_>>().join(", "),
            }),
        }
    }

    /// The names of all bundled scenarios.
    pub fn names() -> impl Iterator<Item = &'static str> {
        BUNDLED.iter().map(|(name, _)| *name)
    }

    /// The text of a bundled scenario, to begin one's own with.
    pub fn text(name: &str) -> Option<&'static str> {
        BUNDLED.iter().find(|(key, _)| *key == name).map(|(_, text)| *text)
    }

    /// Reads a scenario; `file` is its name for errors.
    ///
    /// # Errors
    /// Names the line and the field.
    pub fn parse(file: &str, text: &str) -> Result<Scenario, ScenarioError> {
        let read: ScenarioText = toml::from_str(text).map_err(|error| ScenarioError::Toml {
            file: file.to_owned(),
            error: Box::new(error),
        })?;
        let source = Source { file, text };
        let mut hosts: Vec<HostSpec> = Vec::new();
        if read.host.is_empty() || read.host.len() > MOST_HOSTS {
            let text = format!("from 1 to {MOST_HOSTS} hosts make a scenario");
            return Err(source.wrong(0, "host", text));
        }
        for host in read.host {
            let at = host.span().start;
            let spec = source.host(host.into_inner())?;
            if !is_name(&spec.name) {
                return Err(source.wrong(at, "name", "letters, digits, - and _ make a name"));
            }
            if hosts.iter().any(|other| other.name == spec.name) {
                return Err(source.wrong(at, "name", format!("there are two hosts {}", spec.name)));
            }
            hosts.push(spec);
        }
        if read.step.len() > MOST_STEPS {
            return Err(source.wrong(0, "step", format!("at most {MOST_STEPS} steps are played")));
        }
        let names: Vec<&str> = hosts.iter().map(|host| host.name.as_str()).collect();
        let steps = read.step.into_iter().map(|step| {
            let at = step.span().start;
            source.step(at, step.into_inner(), &names)
        });
        let steps = steps.collect::<Result<Vec<Step>, ScenarioError>>()?;
        Ok(Scenario { name: read.name, about: read.about, hosts, steps })
    }

    /// Whether partitions move between hosts, so that each host has a process of its own.
    pub fn migrates(&self) -> bool {
        self.steps.iter().any(|step| matches!(step.what, Do::Migrate { .. }))
    }
}

fn is_name(name: &str) -> bool {
    let fit = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    (1..=32).contains(&name.len()) && name.chars().all(fit)
}

impl Source<'_> {
    fn host(&self, text: HostText) -> Result<HostSpec, ScenarioError> {
        let preset = |field: &str, name: &Spanned<String>, error: PresetError| {
            self.wrong(name.span().start, field, error.to_string())
        };
        let processor = Processor::bundled(text.processor.get_ref())
            .map_err(|error| preset("processor", &text.processor, error))?;
        let hypervisor = Hypervisor::bundled(text.hypervisor.get_ref())
            .map_err(|error| preset("hypervisor", &text.hypervisor, error))?;
        let nodes: Vec<u64> = text.memory.get_ref().iter().map(|bytes| bytes.0).collect();
        let total = nodes.iter().try_fold(0u64, |sum, bytes| sum.checked_add(*bytes));
        let at = text.memory.span().start;
        if nodes.is_empty() || nodes.len() > 64 || total.is_none_or(|total| total > MAX_BYTES) {
            let text = format!("1 to 64 nodes with {} in all", super::size(MAX_BYTES));
            return Err(self.wrong(at, "memory", text));
        }
        Ok(HostSpec {
            name: text.name,
            processor,
            hypervisor,
            nodes,
            holes: holes(&text.holes),
            tables: text.tables.map(|bytes| bytes.0.min(MAX_BYTES)),
            parent: text.parent.map_or(0, |bytes| bytes.0),
            parent_paging: text.parent_paging,
            policies: Policies {
                overcommit: text.policies.overcommit,
                balloon: text.policies.balloon,
                share: text.policies.share,
            },
        })
    }

    fn step(&self, at: usize, text: StepText, hosts: &[&str]) -> Result<Step, ScenarioError> {
        let known = |field: &str, name: &Spanned<String>| {
            let there = hosts.contains(&name.get_ref().as_str());
            let text = || format!("there is no host {}", name.get_ref());
            if there { Ok(()) } else { Err(self.wrong(name.span().start, field, text())) }
        };
        if let Some(host) = &text.host {
            known("host", host)?;
        }
        let mut fields = Fields { source: self, at, word: word_name(text.r#do) };
        let partition = |fields: &mut Fields<'_>| -> Result<String, ScenarioError> {
            let name = fields.need("partition", &text.partition)?;
            if !is_name(name) {
                let at = text.partition.as_ref().map_or(at, |name| name.span().start);
                return Err(self.wrong(at, "partition", "letters, digits, - and _ make a name"));
            }
            Ok(name.clone())
        };
        let what = match text.r#do {
            Word::Start => {
                let bytes = fields.need("memory", &text.memory)?.0;
                let count = fields.within("count", &text.count, 1, MOST_STEPS as u32)?;
                let spec = PartitionSpec {
                    name: partition(&mut fields)?,
                    bytes,
                    holes: holes(text.holes.as_deref().unwrap_or_default()),
                    node: text.node.as_ref().map_or(0, |node| *node.get_ref()),
                    seed: text.seed.as_ref().map_or(1, |seed| *seed.get_ref()),
                };
                Do::Start { spec, count }
            }
            Word::Stop => Do::Stop { partition: partition(&mut fields)? },
            Word::Run => Do::Run {
                partition: partition(&mut fields)?,
                steps: fields.within("steps", &text.steps, 1000, MOST_GUEST_STEPS)?,
            },
            Word::Follow => Do::Follow {
                partition: partition(&mut fields)?,
                address: fields.need("address", &text.address)?.0,
            },
            Word::Save => Do::Save { partition: partition(&mut fields)? },
            Word::Restore => Do::Restore { partition: partition(&mut fields)? },
            Word::Parent => {
                Do::Parent { pages: fields.within("pages", &text.pages, 1, MAX_BYTES / 4096)? }
            }
            Word::Balloon => Do::Balloon {
                partition: partition(&mut fields)?,
                bytes: fields.need("memory", &text.memory)?.0,
            },
            Word::Share => Do::Share,
            Word::Migrate => {
                let to = fields.need("to", &text.to)?.clone();
                if let Some(name) = &text.to {
                    known("to", name)?;
                }
                if text.host.as_ref().is_none_or(|host| *host.get_ref() == to) {
                    return Err(self.wrong(
                        at,
                        "host",
                        "a partition moves from one host to another",
                    ));
                }
                let usual = Plan::default();
                let plan = Plan {
                    steps_per_chunk: fields.within(
                        "steps_per_chunk",
                        &text.steps_per_chunk,
                        usual.steps_per_chunk,
                        1_000_000,
                    )?,
                    most_rounds: fields.within(
                        "most_rounds",
                        &text.most_rounds,
                        usual.most_rounds,
                        1000,
                    )?,
                    pause_at: fields.within("pause_at", &text.pause_at, usual.pause_at, 1 << 20)?,
                };
                Do::Migrate { partition: partition(&mut fields)?, to, plan }
            }
            Word::RealMode => Do::RealMode { partition: partition(&mut fields)? },
        };
        self.no_other(at, &text, &what)?;
        let host = text.host.map(Spanned::into_inner);
        let anywhere =
            matches!(what, Do::Run { .. } | Do::Follow { .. } | Do::Stop { .. } | Do::Save { .. });
        if host.is_none() && !anywhere {
            let word = fields.word;
            return Err(self.wrong(at, "host", format!("do = \"{word}\" needs it")));
        }
        Ok(Step { line: self.line(at), host, what, refused: text.refused })
    }

    /// A field that a step of another kind has is a mistake.
    fn no_other(&self, at: usize, text: &StepText, what: &Do) -> Result<(), ScenarioError> {
        let start = matches!(what, Do::Start { .. });
        let migrate = matches!(what, Do::Migrate { .. });
        let stray = [
            ("memory", text.memory.is_some() && !start && !matches!(what, Do::Balloon { .. })),
            ("holes", text.holes.is_some() && !start),
            ("node", text.node.is_some() && !start),
            ("seed", text.seed.is_some() && !start),
            ("count", text.count.is_some() && !start),
            ("steps", text.steps.is_some() && !matches!(what, Do::Run { .. })),
            ("address", text.address.is_some() && !matches!(what, Do::Follow { .. })),
            ("pages", text.pages.is_some() && !matches!(what, Do::Parent { .. })),
            ("to", text.to.is_some() && !migrate),
            ("steps_per_chunk", text.steps_per_chunk.is_some() && !migrate),
            ("most_rounds", text.most_rounds.is_some() && !migrate),
            ("pause_at", text.pause_at.is_some() && !migrate),
        ];
        match stray.iter().find(|(_, stray)| *stray) {
            Some((field, _)) => {
                Err(self.wrong(at, field, format!("do = \"{}\" has no such field", what.name())))
            }
            None => Ok(()),
        }
    }
}

fn holes(text: &[HoleText]) -> Vec<(u64, u64)> {
    text.iter().map(|hole| (hole.start.0, hole.bytes.0)).collect()
}

fn word_name(word: Word) -> &'static str {
    match word {
        Word::Start => "start",
        Word::Stop => "stop",
        Word::Run => "run",
        Word::Follow => "follow",
        Word::Save => "save",
        Word::Restore => "restore",
        Word::Parent => "parent",
        Word::Balloon => "balloon",
        Word::Share => "share",
        Word::Migrate => "migrate",
        Word::RealMode => "real-mode",
    }
}

/// The fields of one step.
struct Fields<'a> {
    source: &'a Source<'a>,
    at: usize,
    word: &'static str,
}

impl Fields<'_> {
    fn need<'t, T>(
        &self,
        field: &str,
        value: &'t Option<Spanned<T>>,
    ) -> Result<&'t T, ScenarioError> {
        let missing = || format!("do = \"{}\" needs it", self.word);
        value
            .as_ref()
            .map(Spanned::get_ref)
            .ok_or_else(|| self.source.wrong(self.at, field, missing()))
    }

    fn within<T: Copy + PartialOrd + fmt::Display>(
        &self,
        field: &str,
        value: &Option<Spanned<T>>,
        usual: T,
        most: T,
    ) -> Result<T, ScenarioError> {
        match value {
            Some(value) if *value.get_ref() > most => Err(self.source.wrong(
                value.span().start,
                field,
                format!("{} is more than {most}", value.get_ref()),
            )),
            Some(value) => Ok(*value.get_ref()),
            None => Ok(usual),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Scenario::parse("mine.toml", text).unwrap_err().to_string()
    }

    const HOST: &str = "name = \"x\"\nabout = \"y\"\n[[host]]\nname = \"a\"\n\
        processor = \"nehalem\"\nhypervisor = \"kvm-3.0\"\nmemory = [\"64M\"]\n";

    #[test]
    fn every_bundled_scenario_is_valid_and_named_as_its_file() {
        for name in Scenario::names() {
            assert_eq!(Scenario::bundled(name).unwrap().name, name);
        }
        assert!(Scenario::bundled("nope").unwrap_err().to_string().contains("power-on"));
    }

    #[test]
    fn errors_name_the_line_and_the_field() {
        let unknown = error(&format!("{HOST}memry = 3\n"));
        assert!(unknown.contains("line 8") && unknown.contains("memry"), "{unknown}");
        let preset = error(&HOST.replace("nehalem", "nehalm"));
        assert!(preset.starts_with("mine.toml, line 5: processor: no processor"), "{preset}");
        let size = error(&HOST.replace("64M", "64X"));
        assert!(size.contains("line 7") && size.contains("such as \"16M\""), "{size}");
        let step =
            error(&format!("{HOST}[[step]]\ndo = \"start\"\nhost = \"a\"\nmemory = \"8M\"\n"));
        assert_eq!(step, "mine.toml, line 8: partition: do = \"start\" needs it");
        let host = error(&format!("{HOST}[[step]]\ndo = \"share\"\nhost = \"b\"\n"));
        assert_eq!(host, "mine.toml, line 10: host: there is no host b");
        let many = format!(
            "{HOST}[[step]]\ndo = \"run\"\nhost = \"a\"\npartition = \"p\"\nsteps = 99999999999\n"
        );
        assert!(error(&many).starts_with("mine.toml, line 12: steps: "), "{}", error(&many));
        let stray = format!("{HOST}[[step]]\ndo = \"share\"\nhost = \"a\"\nseed = 3\n");
        assert_eq!(error(&stray), "mine.toml, line 8: seed: do = \"share\" has no such field");
        let word = error(&format!("{HOST}[[step]]\ndo = \"fly\"\n"));
        assert!(word.contains("line 9") && word.contains("real-mode"), "{word}");
        let twice = format!("{HOST}{}", &HOST[HOST.find("[[host]]").unwrap()..]);
        assert!(error(&twice).contains("two hosts a"), "{}", error(&twice));
    }
}
