//! One probe: the words that make up its tables, the state of the machine, and what came of it.

use std::cell::{Cell, RefCell};

use slat::observe::{Observer, Step};

use crate::contract::{Answer, Command, STATE};
use crate::draft::{Coverage, Draft};
use crate::random::Random;
use crate::reproduce::Walk;
use crate::world::World;

/// A question: these words in memory, this state, this operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The monitor's operation.
    pub operation: u32,
    /// The registers.
    pub state: [u64; STATE],
    /// Aligned words and what they hold, beyond those of the template.
    pub words: Vec<(u64, u64)>,
}

/// What came of a probe, in a form in which a walker and a machine can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The access was made. `value` is what a load brought, what `AT` put into `PAR_EL1`, or zero.
    Done {
        /// See there.
        value: u64,
    },
    /// The guest's own tables deny it.
    Stage1 {
        /// The error code, ESR or cause.
        syndrome: u64,
        /// The address reported with it.
        address: u64,
    },
    /// The hypervisor's tables deny it.
    Stage2 {
        /// Exit qualification, `EXITINFO1`, ESR or cause.
        syndrome: u64,
        /// The guest physical address reported.
        address: u64,
        /// The guest virtual address reported, or zero.
        origin: u64,
    },
    /// An EPT misconfiguration.
    Misconfigured {
        /// The guest physical address reported.
        address: u64,
    },
    /// #GP: the address is not canonical.
    General,
    /// The machine does not enter the guest at all.
    Refused,
    /// The bus did not answer (external abort, access fault).
    Bus {
        /// The syndrome reported.
        syndrome: u64,
    },
    /// Something else, or no answer; the first registers of the answer.
    Other([u64; 4]),
}

impl Outcome {
    /// No answer came.
    pub const NONE: Outcome = Outcome::Other([u64::MAX; 4]);

    /// The walker refuses the registers.
    pub const REGISTERS: Outcome = Outcome::Other([1, 0, 0, 0]);

    /// A small number for what kind of outcome it is.
    #[must_use]
    pub fn kind(&self) -> u8 {
        match self {
            Outcome::Done { .. } => 0,
            Outcome::Stage1 { .. } => 1,
            Outcome::Stage2 { .. } => 2,
            Outcome::Misconfigured { .. } => 3,
            Outcome::General => 4,
            Outcome::Refused => 5,
            Outcome::Bus { .. } => 6,
            Outcome::Other(_) => 7,
        }
    }

    /// Kind and syndrome: outcomes alike in both are worth one look.
    #[must_use]
    pub fn likeness(&self) -> (u8, u64) {
        let syndrome = match *self {
            Outcome::Stage1 { syndrome, .. }
            | Outcome::Stage2 { syndrome, .. }
            | Outcome::Bus { syndrome } => syndrome,
            Outcome::Other([first, ..]) => first,
            _ => 0,
        };
        (self.kind(), syndrome)
    }

    /// What there is beside the kind.
    #[must_use]
    pub fn words(&self) -> Vec<u64> {
        match *self {
            Outcome::Done { value } => vec![value],
            Outcome::Stage1 { syndrome, address } => vec![syndrome, address],
            Outcome::Stage2 { syndrome, address, origin } => vec![syndrome, address, origin],
            Outcome::Misconfigured { address } => vec![address],
            Outcome::General | Outcome::Refused => vec![],
            Outcome::Bus { syndrome } => vec![syndrome],
            Outcome::Other(words) => words.to_vec(),
        }
    }

    /// The outcome of this kind with the words that `next` brings.
    ///
    /// # Errors
    /// Those of `next`, and where there is no such kind.
    pub fn from_words(
        kind: u8,
        mut next: impl FnMut() -> anyhow::Result<u64>,
    ) -> anyhow::Result<Outcome> {
        Ok(match kind {
            0 => Outcome::Done { value: next()? },
            1 => Outcome::Stage1 { syndrome: next()?, address: next()? },
            2 => Outcome::Stage2 { syndrome: next()?, address: next()?, origin: next()? },
            3 => Outcome::Misconfigured { address: next()? },
            4 => Outcome::General,
            5 => Outcome::Refused,
            6 => Outcome::Bus { syndrome: next()? },
            7 => Outcome::Other([next()?, next()?, next()?, next()?]),
            _ => anyhow::bail!("there is no outcome of kind {kind}"),
        })
    }

    /// Whether the tables let the access pass, wherever it arrived.
    #[must_use]
    pub fn is_passed(&self) -> bool {
        matches!(self, Outcome::Done { .. } | Outcome::Bus { .. })
    }

    /// Whether the second stage denies the access.
    #[must_use]
    pub fn is_stage2(&self) -> bool {
        matches!(self, Outcome::Stage2 { .. })
    }

    /// Whether the access was made.
    #[must_use]
    pub fn is_done(&self) -> bool {
        matches!(self, Outcome::Done { .. })
    }
}

/// The names of the kinds of outcome, by [`Outcome::kind`].
pub const KINDS: [&str; 8] =
    ["done", "stage 1", "stage 2", "misconfigured", "#GP", "refused", "bus", "other"];

/// A probe with what the walker says of it.
#[derive(Clone, Debug)]
pub struct Case {
    /// The question.
    pub probe: Probe,
    /// The words compared after the run: address, value before, value that the walker leaves.
    pub compared: Vec<(u64, u64, u64)>,
    /// The walker's answer.
    pub expected: Outcome,
    /// Where the final access arrived, if it did.
    pub reached: Option<u64>,
}

impl Case {
    /// The command that asks the monitor.
    #[must_use]
    pub fn command(&self) -> Command {
        Command {
            operation: self.probe.operation,
            state: self.probe.state,
            touched: self.compared.iter().map(|&(address, before, _)| (address, before)).collect(),
        }
    }
}

/// Collects the entries that a walk reads.
#[derive(Debug, Default)]
pub struct Watcher {
    steps: RefCell<Vec<Step>>,
    /// Of the walks that are no part of what the probe asks: those of a handler.
    aside: RefCell<Vec<Step>>,
    is_aside: Cell<bool>,
}

impl Watcher {
    /// The steps since the last call: those of the probe, and those taken aside.
    pub fn take(&self) -> (Vec<Step>, Vec<Step>) {
        (self.steps.take(), self.aside.take())
    }

    /// The steps of the probe since the last time that they were taken.
    pub(crate) fn steps(&self) -> Vec<Step> {
        self.steps.borrow().clone()
    }

    /// Whether what follows is no part of what the probe asks.
    pub fn set_aside(&self, aside: bool) {
        self.is_aside.set(aside);
    }
}

impl Observer for Watcher {
    fn step(&self, step: &Step) {
        let steps = if self.is_aside.get() { &self.aside } else { &self.steps };
        steps.borrow_mut().push(*step);
    }
}

/// What one oracle asks and understands: the architecture's side of it.
pub trait Subject: Send + Sync {
    /// What memory holds before each probe.
    fn template(&self) -> World;

    /// Makes a probe up.
    fn generate(&self, world: &World, random: &mut Random, coverage: &mut Coverage) -> Draft;

    /// What the walker says. `world` holds the probe's words; it is left as the walk leaves it.
    fn expect(&self, probe: &Probe, world: &mut World, watcher: &Watcher) -> Expectation;

    /// The pair of formats that a probe is about, as [`Coverage::set_class`] takes it.
    fn class(&self, probe: &Probe) -> u16;

    /// The name of such a pair.
    fn class_name(&self, class: u16) -> String;

    /// What the machine's registers say.
    fn read(&self, probe: &Probe, answer: &Answer) -> Outcome;

    /// Bits that the second stage itself sets in its entries of a level, and that do not change what they say.
    fn second_stage_bits(&self, level: u8) -> u64;

    /// The same subject with a walker that has these deviations, as far as they concern it.
    fn deviating(&self, deviations: &[&'static str]) -> Box<dyn Subject>;

    /// Whether the model would give no answer, where it gives this one and, with all its deviations,
    /// `astray`.
    fn is_hopeless(&self, _probe: &Probe, _expected: &Outcome, _astray: &Outcome) -> bool {
        false
    }

    /// Bits of registers that are clear where a probe is about something else: a smaller probe has none of
    /// them. Without them it must be as safe to run as with them.
    fn optional(&self) -> &'static [(usize, u64)];

    /// The kind of access that a probe makes: `read`, `write`, `execute`, or an instruction that asks for a
    /// translation.
    fn access(&self, probe: &Probe) -> &'static str;

    /// The probe in words: what the registers say.
    fn explain(&self, probe: &Probe) -> String;

    /// The probe's accesses in their order, as `slat walk` takes them.
    fn walks(&self, probe: &Probe) -> Vec<Walk>;

    /// Where the second stage's root table begins.
    fn second_root(&self, probe: &Probe) -> u64;

    /// The number that an ELF header has for the processor (System V ABI, `e_machine`).
    fn elf_machine(&self) -> u16;
}

/// The walker's answer to a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expectation {
    /// What came of it.
    pub outcome: Outcome,
    /// The word that the final access reached, where it reached one.
    pub reached: Option<u64>,
    /// Whether the machine's answer says nothing, for example because it would run on in memory that
    /// holds no trap.
    pub unusable: bool,
    /// Whether the machine never answers, because its guest faults for ever.
    pub endless: bool,
}

/// Why a draft is passed over: its answer would say nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PassedOver {
    /// The walker refuses the registers. Generators make none that the manual refuses, so that a run in
    /// which this happens has failed.
    Registers,
    /// It would reach the monitor, its queue, or a device.
    Strayed,
    /// The manual leaves open what comes of it, or the machine would run on in what holds no trap.
    Open,
    /// The guest would fault for ever.
    Endless,
    /// A guest table is a table of the second stage as well, and accessed bits change what that says.
    Tangled,
    /// With the deviations of the model it would be one of these.
    Deviant,
    /// The model would give no answer.
    Silent,
    /// Of two machines: they do different things by what they have, such as nothing where memory is not.
    Unlike,
}

impl PassedOver {
    /// In words.
    #[must_use]
    pub fn why(self) -> &'static str {
        match self {
            PassedOver::Registers => "the walker refuses the registers",
            PassedOver::Strayed => "reaches the monitor or a device",
            PassedOver::Open => "left open by the manual, or runs on without a trap",
            PassedOver::Endless => "faults for ever",
            PassedOver::Tangled => "tables of both stages in one place",
            PassedOver::Deviant => "one of these by the model's deviations",
            PassedOver::Silent => "the model never answers",
            PassedOver::Unlike => "two models have unlike machines",
        }
    }
}

/// Completes a draft: asks the walker, and finds the words to compare. `steps` are then those of the walk.
///
/// # Errors
/// Where the probe's answer would say nothing: why.
pub fn complete(
    subject: &dyn Subject,
    world: &mut World,
    probe: Probe,
    steps: &mut Vec<Step>,
) -> Result<Case, PassedOver> {
    let watcher = Watcher::default();
    world.reset();
    for &(address, value) in &probe.words {
        world.poke(address, value);
    }
    let expectation = subject.expect(&probe, world, &watcher);
    let strayed = world.strayed();
    let (asked, aside) = watcher.take();
    // A guest table that is a table of the second stage as well: when its accessed bits change what
    // the second stage says, the answer depends on what the processor keeps of a walk.
    let tangled = asked.iter().chain(&aside).filter(|step| step.stage == 2).any(|step| {
        let word = world.word(step.entry_address).unwrap_or(step.entry);
        let changed = word ^ step.entry;
        let half = step.entry >> 32 == 0 && word >> 32 != 0;
        !half && changed & !subject.second_stage_bits(step.level) != 0
    });
    let mut addresses: Vec<u64> = probe.words.iter().map(|(address, _)| *address).collect();
    for &address in world.seen().iter().chain(&expectation.reached.map(|at| at & !7)) {
        if !addresses.contains(&address) && world.machine().ram.contains(&address) {
            addresses.push(address);
        }
    }
    let after: Vec<u64> = addresses.iter().map(|&at| world.word(at).unwrap_or(0)).collect();
    world.reset();
    for &(address, value) in &probe.words {
        world.poke(address, value);
    }
    let compared = addresses
        .iter()
        .zip(after)
        .map(|(&at, after)| (at, world.word(at).unwrap_or(0), after))
        .collect();
    world.reset();
    let Expectation { outcome: expected, reached, unusable, endless } = expectation;
    let reasons = [
        (expected == Outcome::REGISTERS, PassedOver::Registers),
        (strayed, PassedOver::Strayed),
        (unusable, PassedOver::Open),
        (endless, PassedOver::Endless),
        (tangled, PassedOver::Tangled),
    ];
    if let Some((_, reason)) = reasons.into_iter().find(|(is, _)| *is) {
        return Err(reason);
    }
    *steps = asked;
    Ok(Case { probe, compared, expected, reached })
}

/// The same case as another subject expects it, or `None` where that subject finds it unusable.
pub(crate) fn again(subject: &dyn Subject, world: &mut World, case: &Case) -> Option<Case> {
    world.reset();
    for &(address, before, _) in &case.compared {
        world.poke(address, before);
    }
    let expectation = subject.expect(&case.probe, world, &Watcher::default());
    let strayed = world.strayed();
    let mut compared: Vec<(u64, u64, u64)> = case
        .compared
        .iter()
        .map(|&(at, before, _)| (at, before, world.word(at).unwrap_or(0)))
        .collect();
    // What this walk alone has reached.
    let further: Vec<u64> = world
        .seen()
        .iter()
        .copied()
        .chain(expectation.reached.map(|at| at & !7))
        .filter(|at| world.machine().ram.contains(at))
        .collect();
    let further: Vec<(u64, u64)> =
        further.into_iter().map(|at| (at, world.word(at).unwrap_or(0))).collect();
    world.reset();
    for (at, after) in further {
        if !compared.iter().any(|(known, ..)| *known == at) {
            compared.push((at, world.word(at).unwrap_or(0), after));
        }
    }
    (!strayed && !expectation.unusable).then(|| Case {
        probe: case.probe.clone(),
        compared,
        expected: if expectation.endless { Outcome::NONE } else { expectation.outcome },
        reached: expectation.reached,
    })
}

impl Case {
    /// Has the words restored as well that a deviating walk reaches and this one does not: what a machine
    /// writes there must not stay for the probes that follow.
    pub(crate) fn restore_too(&mut self, deviant: &Case) {
        for &(at, before, _) in deviant.compared.iter().skip(self.compared.len()) {
            self.compared.push((at, before, before));
        }
    }
}
