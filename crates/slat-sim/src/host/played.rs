//! What came of a scenario, as text and as JSON (`docs/json.md`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::migrate::{Left, Round};
use super::unpaged::Shown;
use super::{Digest, Exits, Host, HostError, HostSpec, Owner, Partition, WINDOW, page_bytes};

/// How a step ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was done.
    #[default]
    Done,
    /// It was refused, as it was to be.
    Refused,
    /// It was refused or failed, or was done where it was to be refused.
    Failed,
}

/// One address, followed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Followed {
    /// Guest virtual.
    pub gva: String,
    /// Guest physical.
    pub gpa: String,
    /// System physical.
    pub spa: String,
}

impl Followed {
    pub(super) fn new(gva: u64, gpa: u64, spa: u64) -> Followed {
        let hex = |value: u64| format!("{value:#x}");
        Followed { gva: hex(gva), gpa: hex(gpa), spa: hex(spa) }
    }
}

/// One side of a migration.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Moved {
    /// Rounds of copying, at the source; the last was while the guest was paused.
    pub rounds: Vec<RoundReport>,
    /// How writes were logged, at the source.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub logged_by: Option<String>,
    /// The digest of registers and memory.
    pub digest: String,
    /// Where the first address of the guest's window led at the pause, or leads on arrival.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub followed: Option<Followed>,
    /// Exits by cause on the host that it left.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub exits: Option<BTreeMap<String, u64>>,
    /// Whether every translation is the same, at the destination.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub translations_identical: Option<bool>,
}

/// One round of copying.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RoundReport {
    /// Pages sent.
    pub pages: u64,
    /// Of those, zeros, whose content was not sent.
    pub zero_pages: u64,
    /// Steps that the guest ran meanwhile.
    pub guest_steps: u64,
}

impl Moved {
    pub(super) fn sent(rounds: &[Round], digest: Digest, logged_by: &str, left: &Left) -> Moved {
        let report = |round: &Round| RoundReport {
            pages: round.pages,
            zero_pages: round.zeros,
            guest_steps: round.steps,
        };
        Moved {
            rounds: rounds.iter().map(report).collect(),
            logged_by: Some(logged_by.to_owned()),
            digest: digest.to_string(),
            followed: left.window.map(|(gpa, spa)| Followed::new(WINDOW, gpa, spa)),
            exits: Some(exits_by_name(&left.exits)),
            translations_identical: None,
        }
    }

    pub(super) fn received(
        digest: Digest,
        translations: bool,
        window: Option<(u64, u64)>,
    ) -> Moved {
        Moved {
            rounds: Vec::new(),
            logged_by: None,
            digest: digest.to_string(),
            followed: window.map(|(gpa, spa)| Followed::new(WINDOW, gpa, spa)),
            exits: None,
            translations_identical: Some(translations),
        }
    }
}

fn exits_by_name(exits: &Exits) -> BTreeMap<String, u64> {
    exits.iter().map(|(cause, count)| (cause.name().to_owned(), count)).collect()
}

/// What came of one step on one host.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Event {
    /// Which step, from 1.
    pub step: usize,
    /// Its line in the scenario.
    pub line: usize,
    /// The host.
    pub host: String,
    /// What was to be done.
    pub action: String,
    /// The partition.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub partition: Option<String>,
    /// How it ended.
    pub outcome: Outcome,
    /// In words.
    pub text: String,
    /// An address that was followed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub followed: Option<Followed>,
    /// A migration.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub moved: Option<Moved>,
    /// A guest before paging.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub unpaged: Option<Shown>,
}

impl Event {
    pub(super) fn done(text: impl Into<String>) -> Event {
        Event { text: text.into(), ..Event::default() }
    }
}

/// A part of the SPA space.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ExtentReport {
    /// First byte.
    pub start: String,
    /// Size.
    pub bytes: u64,
    /// Whose it is.
    pub owner: String,
    /// The NUMA node.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub node: Option<usize>,
}

/// A partition at the end.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PartitionReport {
    /// Its name.
    pub name: String,
    /// Its memory.
    pub bytes: u64,
    /// `ept4`, `npt4`, `arm64-s2`, `arm-lpae-s2` or `shadow`.
    pub translation: String,
    /// Pages that its memory consists of, by size in bytes.
    pub pages: BTreeMap<u64, u64>,
    /// Shadow tables that are live.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub shadow_tables: Option<u64>,
    /// Exits by cause.
    pub exits: BTreeMap<String, u64>,
    /// Times that its translations were invalidated by the hypervisor.
    pub invalidations: u64,
    /// Steps that its guest has run.
    pub guest_steps: u64,
    /// The digest of registers and memory.
    pub digest: String,
}

/// The parent partition at the end.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ParentReport {
    /// Pages that it uses.
    pub pages: u64,
    /// Of those, in memory.
    pub resident: u64,
    /// Pages written to the file so far.
    pub paged_out: u64,
    /// Pages read back so far.
    pub paged_in: u64,
}

/// A host at the end.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct HostReport {
    /// Its name.
    pub name: String,
    /// Its processor.
    pub processor: String,
    /// Its hypervisor.
    pub hypervisor: String,
    /// `ept`, `npt`, `stage-2` or `shadow`; absent where it did not start.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub means: Option<String>,
    /// Why it did not start.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub refused: Option<String>,
    /// The SPA space.
    pub spa: Vec<ExtentReport>,
    /// The hypervisor's memory for tables, and how much of it is used.
    pub table_bytes: u64,
    /// How much of that is used.
    pub table_bytes_used: u64,
    /// The parent.
    pub parent: ParentReport,
    /// The partitions.
    pub partitions: Vec<PartitionReport>,
}

/// What came of a scenario.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Played {
    /// Its name.
    pub scenario: String,
    /// What it shows.
    pub about: String,
    /// What happened.
    pub events: Vec<Event>,
    /// The hosts at the end.
    pub hosts: Vec<HostReport>,
}

impl PartitionReport {
    fn new(host: &Host, partition: &Partition) -> PartitionReport {
        let mut pages: BTreeMap<u64, u64> = BTreeMap::new();
        for backing in partition.backing() {
            let bytes = page_bytes(backing.level);
            *pages.entry(bytes).or_default() += backing.bytes / bytes;
        }
        let shadow_tables = match &partition.translation {
            super::Translation::Shadow(shadow) => Some(shadow.live() as u64),
            super::Translation::SecondStage(_) => None,
        };
        PartitionReport {
            name: partition.name.clone(),
            bytes: partition.bytes(),
            translation: partition.translation.name().to_owned(),
            pages,
            shadow_tables,
            exits: exits_by_name(&partition.exits),
            invalidations: partition.invalidations(),
            guest_steps: partition.vcpu.steps,
            digest: partition.digest(&host.memory).to_string(),
        }
    }

    /// Its pages in words.
    pub fn pages_text(&self) -> String {
        let words: Vec<String> = self
            .pages
            .iter()
            .rev()
            .map(|(bytes, count)| match count {
                1 => format!("1 page of {}", super::size(*bytes)),
                _ => format!("{count} pages of {}", super::size(*bytes)),
            })
            .collect();
        if words.is_empty() { "no page yet".to_owned() } else { words.join(", ") }
    }
}

impl HostReport {
    pub(super) fn partition(host: &Host, name: &str) -> Result<PartitionReport, HostError> {
        Ok(PartitionReport::new(host, host.partition(name)?))
    }

    pub(super) fn new(spec: &HostSpec, host: Result<&Host, &str>) -> HostReport {
        let mut report = HostReport {
            name: spec.name.clone(),
            processor: spec.processor.name.clone(),
            hypervisor: spec.hypervisor.name.clone(),
            means: None,
            refused: None,
            spa: Vec::new(),
            table_bytes: 0,
            table_bytes_used: 0,
            parent: ParentReport::default(),
            partitions: Vec::new(),
        };
        let host = match host {
            Ok(host) => host,
            Err(why) => {
                report.refused = Some(why.to_owned());
                return report;
            }
        };
        let names: BTreeMap<u32, &str> =
            host.partitions().map(|one| (one.number, one.name.as_str())).collect();
        report.means = Some(host.means_name().to_owned());
        report.spa = host
            .memory
            .extents()
            .map(|extent| ExtentReport {
                start: format!("{:#x}", extent.start),
                bytes: extent.bytes,
                owner: match extent.owner {
                    Owner::Unused => "parent, unused".to_owned(),
                    Owner::Parent => "parent".to_owned(),
                    Owner::Hypervisor => "hypervisor".to_owned(),
                    Owner::Shared => "shared".to_owned(),
                    Owner::Hole => "hole".to_owned(),
                    Owner::Partition(number) => {
                        format!("partition {}", names.get(&number).copied().unwrap_or("?"))
                    }
                },
                node: host.memory.node_of(extent.start).filter(|_| extent.owner != Owner::Hole),
            })
            .collect();
        report.table_bytes = host.memory.pool().bytes();
        report.table_bytes_used = host.memory.pool().used();
        report.parent = ParentReport {
            pages: host.parent.pages(),
            resident: host.parent.resident(),
            paged_out: host.parent.paged_out,
            paged_in: host.parent.paged_in,
        };
        // In the order in which they came.
        let mut partitions: Vec<&Partition> = host.partitions().collect();
        partitions.sort_by_key(|partition| partition.number);
        report.partitions =
            partitions.iter().map(|partition| PartitionReport::new(host, partition)).collect();
        report
    }
}

impl Played {
    /// Whether everything went as the scenario says.
    pub fn as_said(&self) -> bool {
        self.events.iter().all(|event| event.outcome != Outcome::Failed)
    }

    /// One JSON object.
    ///
    /// # Errors
    /// Never, but for the serializer's type.
    pub fn json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }
}
