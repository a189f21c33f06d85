//! What a check finds, ready to be printed as text or as JSON.

use serde::Serialize;

use crate::machine::System;

/// Yes, no, or could not tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// Yes, and the evidence says so.
    Yes,
    /// No, and the evidence says so.
    No,
    /// Could not tell; the reason says why.
    Unknown,
}

impl Answer {
    /// The exit code for this answer: 0 yes, 1 no, 2 could not tell.
    pub fn exit_code(self) -> u8 {
        match self {
            Answer::Yes => 0,
            Answer::No => 1,
            Answer::Unknown => 2,
        }
    }
}

impl From<bool> for Answer {
    fn from(yes: bool) -> Answer {
        if yes { Answer::Yes } else { Answer::No }
    }
}

/// One answer with its reason and what it rests on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The answer.
    pub answer: Answer,
    /// Why, as one sentence without a full stop.
    pub reason: String,
    /// What was read, most trusted first.
    pub evidence: Vec<Evidence>,
}

/// One thing that a source said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Evidence {
    /// Where it was read.
    pub source: String,
    /// What stood there.
    pub says: String,
}

impl Verdict {
    pub(crate) fn new(answer: Answer, reason: impl Into<String>, evidence: Vec<Evidence>) -> Self {
        Verdict { answer, reason: reason.into(), evidence }
    }
}

pub(crate) fn evidence(source: impl ToString, says: impl Into<String>) -> Evidence {
    Evidence { source: source.to_string(), says: says.into() }
}

/// Everything that a check of a machine finds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The answer in one plain sentence.
    pub headline: String,
    /// A second sentence where the first alone would mislead.
    pub remark: Option<String>,
    /// What was checked.
    pub system: System,
    /// The processor's name as it gives it.
    pub processor_name: Option<String>,
    /// What this processor's vendor calls its second-level address translation.
    pub technology: Option<&'static str>,
    /// Does the processor have it?
    pub processor: Verdict,
    /// Did the firmware leave it on?
    pub firmware: Verdict,
    /// Does the running kernel use it? This is the answer that the exit code gives.
    pub in_use: Verdict,
    /// Is this a virtual machine?
    pub virtual_machine: VirtualMachine,
    /// What could be read of the translation's features.
    pub details: Vec<Detail>,
    /// Which hypervisors need SLAT and which could run here.
    pub hypervisors: Vec<Hypervisor>,
    /// What to do next, most useful first.
    pub advice: Vec<String>,
    /// What could not be read, and why.
    pub unread: Vec<Unreadable>,
}

impl Report {
    /// The exit code of `slat check`: 0 when SLAT is in use, 1 when it is not, 2 when that could not be told.
    pub fn exit_code(&self) -> u8 {
        self.in_use.answer.exit_code()
    }
}

/// Whether the machine is itself a virtual one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VirtualMachine {
    /// The answer, its reason and evidence.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// The hypervisor below, when it gave its name. A parent partition has one too.
    pub hypervisor: Option<String>,
    /// Whether the hypervisor offers SLAT to hypervisors inside; `None` on a physical machine.
    pub nested: Option<Verdict>,
    /// Whether the hypervisor below says that it uses SLAT for this very system (Hyper-V alone does).
    pub slat_below: Option<bool>,
}

/// One feature of the translation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Detail {
    /// What it is.
    pub name: &'static str,
    /// `yes`, `no`, or the value.
    pub value: String,
    /// Where it was read.
    pub source: String,
}

/// A hypervisor: does it need SLAT, and could it run here?
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hypervisor {
    /// Its name.
    pub name: &'static str,
    /// Whether it refuses to work without SLAT.
    pub requires_slat: bool,
    /// Why, or what it does without.
    pub why: &'static str,
    /// Whether it could run on this machine.
    pub here: Answer,
    /// What makes it so.
    pub because: String,
    /// What of it says more than that SLAT is here or not; the text leaves the rest out.
    #[serde(skip)]
    pub(crate) remark: Option<String>,
}

/// A source that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unreadable {
    /// The source.
    pub source: String,
    /// Why not.
    pub reason: String,
}
