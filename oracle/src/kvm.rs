//! KVM as one more oracle, for stage 1: its own walker by `KVM_TRANSLATE`, and accesses that a guest makes at
//! CPL 0 and at CPL 3.
//!
//! Each round makes a machine with random tables, and asks many addresses of them. What the walker expects to
//! leave the tables or to arrive outside the guest's data is not asked: KVM would take that for a device.
//! After a round the tables are compared as well: accessed bits may be set by speculation (Intel SDM 3A 5.8),
//! all else must be as the walker left it.
//!
//! `KVM_TRANSLATE` asks as a supervisor's read does and checks no permission.

use std::collections::BTreeSet;

use slat_kvm::prober::DATA;
use slat_kvm::{Translator, Unavailable};

use crate::engine::{SHRUNK, Tally};
use crate::random::Random;

mod mode;
mod round;
mod smaller;
mod tables;

use mode::Mode;
use round::{Asker, Round};

/// How KVM is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By `KVM_TRANSLATE`, of a processor that never runs.
    Translate,
    /// By a guest at CPL 0.
    Supervisor,
    /// By a guest at CPL 3.
    User,
}

impl Way {
    /// All of them.
    pub const ALL: [Way; 3] = [Way::Translate, Way::Supervisor, Way::User];

    /// What it is called in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Way::Translate => "KVM_TRANSLATE",
            Way::Supervisor => "KVM guest, CPL 0",
            Way::User => "KVM guest, CPL 3",
        }
    }
}

/// What came of asking KVM.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// The answers.
    pub tally: Tally,
    /// Modes that this KVM does not have, each with what it did.
    pub skipped: BTreeSet<String>,
}

/// Whether there is a KVM that makes machines.
///
/// # Errors
/// Why not.
pub fn there() -> Result<(), Unavailable> {
    Translator::new(DATA.end).map(|_| ())
}

/// Questions of one machine.
const ROUND: u64 = 2000;

/// Asks at least `probes` questions, where KVM has any mode to ask them in.
///
/// # Errors
/// Where KVM fails.
pub fn ask(way: Way, probes: u64, seed: u64) -> anyhow::Result<Asked> {
    let seed = Random::derive(seed, &[way.name()]);
    let mut asked = Asked::default();
    let mut idle = 0;
    for round in 0.. {
        let before = asked.tally.probes;
        if before >= probes {
            break;
        }
        let seed = Random::new(seed.wrapping_add(round)).bits();
        let mut random = Random::new(seed);
        let mode = Mode::choose(way, &mut random);
        Round::new(way, mode, &mut random)?.ask(
            ROUND.min(probes - before),
            &mut random,
            &mut asked,
        )?;
        idle = if asked.tally.probes == before { idle + 1 } else { 0 };
        if idle > 50 {
            // No mode is kept.
            break;
        }
    }
    for (_, kept) in asked.tally.disagreements.iter_mut().take(SHRUNK) {
        if let Some(smaller) = smaller::smaller(way, kept, &mut || Asker::new(way))? {
            *kept = smaller;
        }
    }
    Ok(asked)
}
