//! From the words of the file to hosts and steps, each error with its line and field.

use std::fmt;
use std::ops::RangeInclusive;

use toml::Spanned;

use super::text::{HoleText, HostText, StepText, Word};
use super::{Do, MOST_GUEST_STEPS, MOST_STEPS, ScenarioError, Step};
use crate::host::migrate::Plan;
use crate::host::{HostSpec, MAX_BYTES, PartitionSpec, Policies};
use crate::hypervisor::Hypervisor;
use crate::preset::{PresetError, Processor};

/// The file under way: where a span begins, in lines.
pub(super) struct Source<'a> {
    pub(super) file: &'a str,
    pub(super) text: &'a str,
}

impl Source<'_> {
    fn line(&self, at: usize) -> usize {
        let before = self.text.as_bytes().get(..at).unwrap_or_default();
        before.iter().filter(|byte| **byte == b'\n').count() + 1
    }

    pub(super) fn wrong(&self, at: usize, field: &str, text: impl Into<String>) -> ScenarioError {
        ScenarioError::Field {
            file: self.file.to_owned(),
            line: self.line(at),
            field: field.to_owned(),
            text: text.into(),
        }
    }

    pub(super) fn host(&self, text: HostText) -> Result<HostSpec, ScenarioError> {
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
            let text = format!("1 to 64 nodes with {} in all", crate::host::size(MAX_BYTES));
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

    pub(super) fn step(
        &self,
        at: usize,
        text: StepText,
        hosts: &[&str],
    ) -> Result<Step, ScenarioError> {
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
                let count = fields.within("count", &text.count, 1, 1..=MOST_STEPS as u32)?;
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
                steps: fields.within("steps", &text.steps, 1000, 0..=MOST_GUEST_STEPS)?,
            },
            Word::Follow => Do::Follow {
                partition: partition(&mut fields)?,
                address: fields.need("address", &text.address)?.0,
            },
            Word::Save => Do::Save { partition: partition(&mut fields)? },
            Word::Restore => Do::Restore { partition: partition(&mut fields)? },
            Word::Parent => {
                Do::Parent { pages: fields.within("pages", &text.pages, 1, 0..=MAX_BYTES / 4096)? }
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
                        0..=1_000_000,
                    )?,
                    most_rounds: fields.within(
                        "most_rounds",
                        &text.most_rounds,
                        usual.most_rounds,
                        1..=1000,
                    )?,
                    pause_at: fields.within(
                        "pause_at",
                        &text.pause_at,
                        usual.pause_at,
                        0..=1 << 20,
                    )?,
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

pub(super) fn is_name(name: &str) -> bool {
    let fit = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    (1..=32).contains(&name.len()) && name.chars().all(fit)
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
        fit: RangeInclusive<T>,
    ) -> Result<T, ScenarioError> {
        match value {
            Some(value) if !fit.contains(value.get_ref()) => Err(self.source.wrong(
                value.span().start,
                field,
                format!("{} is not from {} to {}", value.get_ref(), fit.start(), fit.end()),
            )),
            Some(value) => Ok(*value.get_ref()),
            None => Ok(usual),
        }
    }
}
