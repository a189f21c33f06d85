//! Generated guests: a small guest kernel and workloads on it, as a stream like a recording's.
//!
//! A workload is asked for as `gen:NAME` or `gen:NAME,key=value,...`; [`list`] says what there is.
//! The same specification gives the same stream, byte for byte. Nothing is kept of what was given
//! out: a stream of any length needs the memory of its guest's tables.
//!
//! ```
//! use slat_sim::generated::Generated;
//! use slat_trace::{Batch, Source};
//!
//! let mut guest = Generated::open("gen:fcw,pages=20,seed=7", 10_000)?;
//! let mut batch = Batch::default();
//! let mut accesses = 0;
//! while guest.next(&mut batch)? {
//!     accesses += batch.accesses.len();
//! }
//! assert!(accesses >= 10_000);
//! # Ok::<(), slat_sim::generated::GeneratedError>(())
//! ```

pub mod costs;
mod kernel;
pub mod parameter;
mod random;
mod workloads;

use std::fmt::Write as _;

use slat_trace::{Arch, Batch, Machine, Source};

use self::kernel::Kernel;
use self::parameter::{COMMON, Parameter, Values};
use self::workloads::{Kind, Workload};
use crate::cost::Facts;

/// What a specification begins with.
pub const PREFIX: &str = "gen:";

/// A guest that cannot be generated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GeneratedError {
    /// No workload of this name.
    #[error("no generated workload `{name}`; there are {choices} (see `slat compare --list`)")]
    NoWorkload {
        /// The name.
        name: String,
        /// All names.
        choices: String,
    },
    /// No such parameter.
    #[error("this workload has no parameter `{key}`; it has {choices}")]
    NoParameter {
        /// The name.
        key: String,
        /// All names.
        choices: String,
    },
    /// A parameter that is given more than once.
    #[error("{key} is given twice")]
    Twice {
        /// The parameter.
        key: &'static str,
    },
    /// No `=`.
    #[error("`{text}` is no parameter; write key=value")]
    NoValue {
        /// What was given.
        text: String,
    },
    /// A value that the parameter cannot have.
    #[error(
        "{key}={text}: give a whole number from {low} to {high} (k and M stand for 1,000 and 1,000,000)"
    )]
    Value {
        /// The parameter.
        key: &'static str,
        /// What was given.
        text: String,
        /// The least.
        low: u64,
        /// The greatest.
        high: u64,
    },
    /// Nothing was left to reclaim.
    #[error("the guest ran out of its {mebibytes} MiB of memory; give it more with memory=MiB")]
    OutOfMemory {
        /// What it had.
        mebibytes: u64,
    },
}

/// A generated guest, from its beginning.
pub struct Generated {
    name: String,
    kind: &'static Kind,
    values: Values,
    kernel: Kernel,
    workload: Box<dyn Workload>,
    machine: Machine,
    begun: bool,
    given: u64,
    wanted: u64,
}

impl std::fmt::Debug for Generated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Generated").field("name", &self.name).finish_non_exhaustive()
    }
}

/// All parameters of a workload: its own, then what all have.
fn parameters(kind: &Kind) -> Vec<Parameter> {
    kind.parameters.iter().chain(COMMON).copied().collect()
}

impl Generated {
    /// The guest of a specification (`gen:` may be left out), which ends with the piece of work in
    /// which it has given `accesses`.
    ///
    /// # Errors
    /// Where there is no such workload or parameter, or a value is out of its range.
    pub fn open(specification: &str, accesses: u64) -> Result<Generated, GeneratedError> {
        let text = specification.strip_prefix(PREFIX).unwrap_or(specification);
        let mut parts = text.split(',').filter(|part| !part.is_empty());
        let name = parts.next().unwrap_or_default();
        let Some(kind) = workloads::ALL.iter().find(|kind| kind.name == name) else {
            return Err(GeneratedError::NoWorkload {
                name: name.to_owned(),
                choices: names().collect::<Vec<_>>().join(", "),
            });
        };
        let values = Values::parse(&parameters(kind), parts)?;
        let memory = values.get("memory").next_multiple_of(2) << 20;
        let mut kernel = Kernel::new(memory, kind.density, values.get("seed"));
        let workload = (kind.build)(&values, &mut kernel);
        let machine =
            Machine { arch: Arch::X86_64, vcpus: 1, tables: true, memory: Some(0..memory) };
        Ok(Generated {
            name: text.to_owned(),
            kind,
            values,
            kernel,
            workload,
            machine,
            begun: false,
            given: 0,
            wanted: accesses,
        })
    }

    /// The specification without `gen:`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The value of each parameter.
    pub fn values(&self) -> &Values {
        &self.values
    }

    /// How many accesses were asked for.
    pub fn wanted(&self) -> u64 {
        self.wanted
    }

    /// Accesses in which all that the workload does happens once, about: a terminal server's session from
    /// log-on to log-off. 0 where each stretch is like any other.
    pub fn life(&self) -> u64 {
        workloads::life_of(self.kind, &self.values)
    }

    /// The same guest, which gives so many accesses.
    #[must_use]
    pub fn with_accesses(self, accesses: u64) -> Generated {
        Generated { wanted: accesses, ..self }
    }

    /// What is known of the workload beside its stream, up to where it is.
    pub fn facts(&self) -> Facts {
        Facts {
            instructions: self.kind.instructions,
            exposed: self.kind.exposed,
            waited_ns: self.kernel.waited(),
        }
    }
}

impl Source for Generated {
    type Error = GeneratedError;

    fn machine(&self) -> &Machine {
        &self.machine
    }

    fn next(&mut self, batch: &mut Batch) -> Result<bool, GeneratedError> {
        // The guest writes into the caller's buffer, and keeps its own for the next time.
        batch.clear();
        std::mem::swap(batch, &mut self.kernel.out);
        if !self.begun && self.kernel.failed().is_none() {
            self.begun = true;
            self.kernel.begin();
        }
        if self.given < self.wanted {
            while self.kernel.out.accesses.len() < Batch::ACCESSES && self.kernel.failed().is_none()
            {
                self.workload.step(&mut self.kernel);
            }
        }
        std::mem::swap(batch, &mut self.kernel.out);
        self.given += batch.accesses.len() as u64;
        if self.kernel.failed().is_some() {
            return Err(GeneratedError::OutOfMemory { mebibytes: self.kernel.memory() >> 20 });
        }
        Ok(!batch.is_empty())
    }
}

/// The names of all workloads.
pub fn names() -> impl Iterator<Item = &'static str> {
    workloads::ALL.iter().map(|kind| kind.name)
}

/// All workloads with their parameters, for people, in lines of at most `width` columns (words that are longer
/// stand alone).
pub fn list(width: usize) -> String {
    let mut out = String::from("Generated guests, as gen:NAME or gen:NAME,key=value,...\n");
    for kind in workloads::ALL {
        out.push('\n');
        hang(&mut out, &format!("{:<10}", kind.name), kind.about, width);
        for parameter in kind.parameters {
            describe(&mut out, parameter, width);
        }
    }
    out.push_str("\nall       have these too\n");
    for parameter in COMMON {
        describe(&mut out, parameter, width);
    }
    out
}

fn describe(out: &mut String, parameter: &Parameter, width: usize) {
    let choice = format!("{}={}", parameter.key, parameter.default);
    hang(out, &format!("  {choice:<18}"), parameter.about, width);
}

/// A text behind its name, and below itself where it needs more lines than one.
fn hang(out: &mut String, name: &str, text: &str, width: usize) {
    let indent = name.chars().count();
    for (nth, line) in crate::text::wrapped(text, width.saturating_sub(indent)).iter().enumerate() {
        let head = if nth == 0 { name } else { "" };
        let _ = writeln!(out, "{head:<indent$}{line}");
    }
}
