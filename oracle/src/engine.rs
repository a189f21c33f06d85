//! Running probes through an oracle and comparing.

use std::collections::BTreeMap;

use crate::contract::{Answer, Command, Info, Job, Machine, Segment};
use crate::deviations::{self, Deviation, Seen, Shows};
use crate::draft::{Coverage, Draft, Flip};
use crate::launch::{Launcher, Station};
use crate::monitor::Monitor;
use crate::probe::{Case, Outcome, PassedOver, Probe, Subject, again, complete};
use crate::random::Random;
use crate::recipe::Recipe;
use crate::reproduce::Reproducer;
use crate::shrink::shrink;
use crate::world::World;

/// One processor of one emulator, with one monitor and one host mode.
#[derive(Clone)]
pub struct Variant {
    /// What it is called in tables.
    pub name: String,
    /// How it is started.
    pub launcher: Launcher,
    /// What runs on it.
    pub monitor: Monitor,
    /// Its memory map.
    pub machine: &'static Machine,
    /// The host mode.
    pub mode: u64,
    /// What the subject is.
    pub recipe: Recipe,
    /// Its share of the oracle's probes.
    pub share: u64,
}

impl Variant {
    /// The seed of its questions in a run with this seed: no two variants are asked the same ones.
    #[must_use]
    pub fn seed(&self, model: deviations::Model, seed: u64) -> u64 {
        // The host mode tells apart what has the same name otherwise.
        let mode = self.mode.to_string();
        Random::derive(seed, &[model.name(), &self.name, &mode])
    }
}

/// A hardware model that answers for one second stage.
pub struct Oracle {
    /// The second stage, as `--format` names it.
    pub format: &'static str,
    /// The model, with its version.
    pub name: String,
    /// The key by which deviations name it.
    pub model: deviations::Model,
    /// Its processors.
    pub variants: Vec<Variant>,
}

/// A probe on which the two sides differ.
#[derive(Clone, Debug)]
pub struct Disagreement {
    /// The variant.
    pub variant: String,
    /// The probe and the walker's answer.
    pub case: Case,
    /// The machine's answer.
    pub seen: Seen,
    /// The state in words.
    pub explanation: String,
    /// What shows the walker's answer by itself.
    pub reproducer: Reproducer,
}

impl Disagreement {
    /// The disagreement over a case. `world` is the template.
    #[must_use]
    pub fn new(
        variant: &str,
        subject: &dyn Subject,
        world: &mut World,
        case: &Case,
        seen: Seen,
    ) -> Disagreement {
        Disagreement {
            variant: variant.to_owned(),
            case: case.clone(),
            seen,
            explanation: subject.explain(&case.probe),
            reproducer: Reproducer::new(subject, world, &case.probe),
        }
    }
}

/// What came of an oracle's probes.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Probes that were answered.
    pub probes: u64,
    /// Those on which both sides agree.
    pub agree: u64,
    /// Those that deviations explain, by the [names](names) of these.
    pub masked: BTreeMap<String, u64>,
    /// One of those that deviations explain, by the names of these.
    pub examples: BTreeMap<String, Disagreement>,
    /// How many drafts were not asked, by the reason.
    pub passed_over: BTreeMap<PassedOver, u64>,
    /// One of each kind of the others, with how many are of that kind.
    pub disagreements: Vec<(u64, Disagreement)>,
    /// How many others there are.
    pub disagree: u64,
}

impl Tally {
    /// Adds another tally to this one.
    pub fn add(&mut self, other: Tally) {
        self.probes += other.probes;
        self.agree += other.agree;
        self.disagree += other.disagree;
        for (name, count) in other.masked {
            *self.masked.entry(name).or_default() += count;
        }
        for (name, example) in other.examples {
            self.examples.entry(name).or_insert(example);
        }
        for (reason, count) in other.passed_over {
            *self.passed_over.entry(reason).or_default() += count;
        }
        self.disagreements.extend(other.disagreements);
    }

    pub(crate) fn disagree(&mut self, disagreement: Disagreement) {
        self.disagree += 1;
        let alike = |other: &Disagreement| {
            other.variant == disagreement.variant
                && other.seen.outcome.likeness() == disagreement.seen.outcome.likeness()
                && other.case.expected.likeness() == disagreement.case.expected.likeness()
        };
        if let Some((count, kept)) = self.disagreements.iter_mut().find(|(_, d)| alike(d)) {
            *count += 1;
            // The fewest words make the easiest reading.
            if disagreement.case.compared.len() < kept.case.compared.len() {
                *kept = disagreement;
            }
        } else if self.disagreements.len() < KEPT {
            self.disagreements.push((1, disagreement));
        }
    }

    pub(crate) fn pass_over(&mut self, reason: PassedOver) {
        *self.passed_over.entry(reason).or_default() += 1;
    }

    /// How many probes deviations explain.
    #[must_use]
    pub fn masked_total(&self) -> u64 {
        self.masked.values().sum()
    }
}

/// How a case ended.
#[derive(Clone)]
pub enum Verdict {
    /// Both sides say the same.
    Agree,
    /// They differ, and these together are why: none of those that show in the walk can be left out.
    Masked(Vec<&'static Deviation>),
    /// They differ.
    Disagree,
}

/// The names of deviations that show together.
#[must_use]
pub fn names(deviations: &[&'static Deviation]) -> String {
    let names: Vec<&str> = deviations.iter().map(|deviation| deviation.name).collect();
    names.join(" + ")
}

/// The subject with all deviations of a model that show in the walk.
pub(crate) fn astray(model: deviations::Model, subject: &dyn Subject) -> Box<dyn Subject> {
    let names: Vec<&'static str> = in_walk(model).map(|deviation| deviation.name).collect();
    subject.deviating(&names)
}

/// The deviations of a model that show in the walk.
fn in_walk(model: deviations::Model) -> impl Iterator<Item = &'static Deviation> {
    deviations::all().filter(move |d| d.models.contains(&model) && matches!(d.shows, Shows::InWalk))
}

/// Compares a machine's answer with the walker's. `world` is the template.
#[must_use]
pub fn judge(
    model: deviations::Model,
    subject: &dyn Subject,
    world: &mut World,
    case: &Case,
    seen: &Seen,
) -> Verdict {
    if same(case, seen) {
        return Verdict::Agree;
    }
    let mut undone = seen.clone();
    let reported = deviations::undo(model, case, &mut undone);
    if !reported.is_empty() && same(case, &undone) {
        return Verdict::Masked(reported);
    }
    let mut explains = |set: &[&'static Deviation]| {
        let names: Vec<&'static str> = set.iter().map(|deviation| deviation.name).collect();
        let deviating = subject.deviating(&names);
        // What comes of the access may not be known with one deviation alone; with all it is.
        let deviant = again(deviating.as_ref(), world, case)?;
        let known = deviant.compared.iter().take(case.compared.len());
        if deviant.expected == case.expected && known.eq(&case.compared) {
            return None;
        }
        if same(&deviant, seen) {
            return Some(set.to_vec());
        }
        let mut undone = seen.clone();
        let reported = deviations::undo(model, &deviant, &mut undone);
        same(&deviant, &undone).then(|| [set, &reported].concat())
    };
    let in_walk: Vec<&'static Deviation> = in_walk(model).collect();
    if let Some(found) = in_walk.chunks(1).find_map(&mut explains) {
        return Verdict::Masked(found);
    }
    let Some(mut found) = explains(&in_walk) else { return Verdict::Disagree };
    let mut needed = in_walk.clone();
    for deviation in in_walk {
        let fewer: Vec<_> = needed.iter().copied().filter(|d| d.name != deviation.name).collect();
        if let Some(enough) = explains(&fewer) {
            (needed, found) = (fewer, enough);
        }
    }
    Verdict::Masked(found)
}

/// Whether outcome and memory are the same. When accessed bits are written is left open where the access
/// fails (Intel SDM 3A 5.8, AMD APM 2 5.4.2, Arm ARM D8.5.2); each model does it in one way, and the walker is
/// told to do likewise ([`slat::Updates`]).
fn same(case: &Case, seen: &Seen) -> bool {
    let words = case.compared.iter().zip(&seen.words);
    seen.outcome == case.expected && words.into_iter().all(|(&(_, _, after), &got)| got == after)
}

/// Whether two machines gave the same answer to a probe, where it failed apart from accessed bits that
/// one of them set on its way. `walked` is the case as it is expected where bits are set as the walk goes:
/// nothing else may have changed.
pub(crate) fn accessed_aside(walked: &Case, one: &Seen, other: &Seen) -> bool {
    let only_accessed = |(&(_, before, after), (&x, &y)): (&(u64, u64, u64), (&u64, &u64))| {
        [x, y].into_iter().all(|got| (got ^ before) & !(after ^ before) == 0)
    };
    let words = one.words.iter().zip(&other.words);
    !walked.expected.is_done()
        && one.outcome == other.outcome
        && one.words.len() == other.words.len()
        && walked.compared.iter().zip(words).all(only_accessed)
}

/// The questions of a seed, one after another: they depend on the seed, the generator and the machine's answers,
/// not on what the walker says of them.
pub(crate) struct Drafts<'a> {
    subject: &'a dyn Subject,
    seed: u64,
    made: u64,
    coverage: Coverage,
    /// What was answered since the last time that the generator learnt.
    answers: Vec<(Vec<Flip>, Outcome)>,
    /// After how many answers it learns again.
    batch: usize,
}

/// A question, with its number.
pub(crate) struct Question {
    pub(crate) number: u64,
    pub(crate) probe: Probe,
    pub(crate) flips: Vec<Flip>,
}

impl<'a> Drafts<'a> {
    pub(crate) fn new(subject: &'a dyn Subject, seed: u64) -> Self {
        let (coverage, answers) = (Coverage::default(), Vec::new());
        Drafts { subject, seed, made: 0, coverage, answers, batch: FIRST }
    }

    /// The next question. `world` is the template.
    pub(crate) fn next(&mut self, world: &World) -> Question {
        let seed = Random::new(self.seed.wrapping_add(self.made)).bits();
        let draft = self.subject.generate(world, &mut Random::new(seed), &mut self.coverage);
        self.made += 1;
        let Draft { operation, state, words, flips, .. } = draft;
        Question { number: self.made - 1, probe: Probe { operation, state, words }, flips }
    }

    /// How many questions are to be asked at once, before the generator learns from their answers.
    pub(crate) fn batch(&self) -> usize {
        self.batch
    }

    /// Notes the machine's answer to a question with these flips. Batches come to their end at the same
    /// places, however many answers are noted at a time.
    pub(crate) fn answered(&mut self, flips: Vec<Flip>, outcome: Outcome) {
        self.answers.push((flips, outcome));
        if self.answers.len() == self.batch {
            for (flips, outcome) in self.answers.drain(..) {
                self.coverage.learn(&flips, &outcome);
            }
            self.batch = (2 * self.batch).min(BATCH);
        }
    }
}

/// How many probes are made up before they are asked: at first few, since there is most to learn.
const FIRST: usize = 1024;
const BATCH: usize = 16384;
/// How many kinds of disagreement are kept with all their detail.
const KEPT: usize = 24;
/// Of how many of them the smallest probe is looked for, which takes some launches each.
pub(crate) const SHRUNK: usize = 6;

/// Receives each answered case with the number of its draft, for those who keep golden vectors.
pub type Keep<'a> = &'a mut dyn FnMut(u64, &Case, &Seen);

/// Asks a variant `probes` questions.
///
/// # Errors
/// Where the emulator cannot be run at all.
pub fn ask(
    oracle: &Oracle,
    variant: &Variant,
    probes: u64,
    seed: u64,
    begin: &mut dyn FnMut(&Variant, &Info),
    keep: Keep<'_>,
) -> anyhow::Result<Tally> {
    let mut station = Station::new(variant.launcher.clone(), variant.monitor)?;
    let info = {
        let job = Job { machine: variant.machine, mode: variant.mode, memory: &[], commands: &[] };
        station.run(&job)?.info
    };
    let subject = variant.recipe.subject(&info);
    let subject = subject.as_ref();
    let astray = astray(oracle.model, subject);
    let mut drafts = Drafts::new(subject, seed);
    let mut world = subject.template();
    begin(variant, &info);
    let memory = world.segments();
    let mut tally = Tally::default();
    let mut cases: Vec<(Question, Case)> = Vec::new();
    while tally.probes < probes {
        cases.clear();
        let want = (probes - tally.probes).min(drafts.batch() as u64) as usize;
        while cases.len() < want {
            let question = drafts.next(&world);
            match usable(subject, astray.as_ref(), &mut world, question.probe.clone()) {
                Ok(case) => cases.push((question, case)),
                Err(reason) => tally.pass_over(reason),
            }
        }
        let commands: Vec<Command> = cases.iter().map(|(_, case)| case.command()).collect();
        let answers = answer(&mut station, variant, &memory, &commands)?;
        for ((question, case), answer) in cases.iter_mut().zip(&answers) {
            let seen = see(subject, case, answer);
            tally.probes += 1;
            keep(question.number, case, &seen);
            drafts.answered(std::mem::take(&mut question.flips), seen.outcome);
            let verdict = judge(oracle.model, subject, &mut world, case, &seen);
            let mut detail =
                |seen| Disagreement::new(&variant.name, subject, &mut world, case, seen);
            match verdict {
                Verdict::Agree => tally.agree += 1,
                Verdict::Masked(deviations) => {
                    let names = names(&deviations);
                    *tally.masked.entry(names.clone()).or_default() += 1;
                    tally.examples.entry(names).or_insert_with(|| detail(seen));
                }
                Verdict::Disagree => tally.disagree(detail(seen)),
            }
        }
    }
    let template = subject.template();
    for (_, kept) in tally.disagreements.iter_mut().take(SHRUNK) {
        let found = (kept.case.clone(), kept.seen.clone());
        let (case, seen) = shrink(subject.optional(), &template, found, &mut |probes| {
            let cases: Vec<Option<Case>> = probes
                .iter()
                .map(|probe| usable(subject, astray.as_ref(), &mut world, probe.clone()).ok())
                .collect();
            let commands: Vec<Command> = cases.iter().flatten().map(Case::command).collect();
            let mut answers = answer(&mut station, variant, &memory, &commands)?.into_iter();
            let still = |case: Option<Case>| {
                let case = case?;
                let seen = see(subject, &case, &answers.next()?);
                let verdict = judge(oracle.model, subject, &mut world, &case, &seen);
                matches!(verdict, Verdict::Disagree).then_some((case, seen))
            };
            Ok(cases.into_iter().map(still).collect())
        })?;
        *kept = Disagreement::new(&variant.name, subject, &mut world, &case, seen);
    }
    Ok(tally)
}

/// A probe that a model can be asked, with the walker's answer.
fn usable(
    subject: &dyn Subject,
    astray: &dyn Subject,
    world: &mut World,
    probe: Probe,
) -> Result<Case, PassedOver> {
    let mut case = complete(subject, world, probe, &mut Vec::new())?;
    // Where the manual does not say what comes of the model's deviations, nothing could be compared: not
    // asked.
    let deviant = again(astray, world, &case).ok_or(PassedOver::Deviant)?;
    // Nor where the model would never answer, which takes all the patience there is.
    if deviant.expected == Outcome::NONE
        || subject.is_hopeless(&case.probe, &case.expected, &deviant.expected)
    {
        return Err(PassedOver::Silent);
    }
    case.restore_too(&deviant);
    Ok(case)
}

/// What the machine answered, in a form that can be compared.
pub(crate) fn see(subject: &dyn Subject, case: &Case, answer: &Option<Answer>) -> Seen {
    match answer {
        Some(answer) => {
            Seen { outcome: subject.read(&case.probe, answer), words: answer.touched.clone() }
        }
        None => Seen { outcome: Outcome::NONE, words: vec![] },
    }
}

/// Runs these commands in as few launches as hold them; no answer is one that never came.
pub(crate) fn answer(
    station: &mut Station,
    variant: &Variant,
    memory: &[Segment],
    commands: &[Command],
) -> anyhow::Result<Vec<Option<Answer>>> {
    let mut rest = commands;
    let mut answers = Vec::with_capacity(commands.len());
    while !rest.is_empty() {
        let fitting = Job::fitting(variant.machine, rest);
        let (machine, mode) = (variant.machine, variant.mode);
        let job = Job { machine, mode, memory, commands: &rest[..fitting] };
        answers.extend(run(station, &job)?);
        rest = &rest[fitting..];
    }
    Ok(answers)
}

/// Runs a job. A command at which the machine hangs or the emulator fails gets no answer; where the
/// emulator cannot say which one that was, the job is halved until it is alone.
fn run(station: &mut Station, job: &Job<'_>) -> anyhow::Result<Vec<Option<Answer>>> {
    match station.run(job) {
        Ok(report) => {
            let mut answers: Vec<_> = report.answers.into_iter().map(Some).collect();
            if answers.len() < job.commands.len() {
                // Asked once more alone, for the case that the host was at fault.
                let one = &job.commands[answers.len()..=answers.len()];
                let alone = (job.commands.len() > 1)
                    .then(|| station.run(&Job { commands: one, ..job.clone() }).ok())
                    .flatten();
                answers.push(alone.and_then(|report| report.answers.into_iter().next()));
                let rest = &job.commands[answers.len()..];
                if !rest.is_empty() {
                    answers.extend(run(station, &Job { commands: rest, ..job.clone() })?);
                }
            }
            Ok(answers)
        }
        Err(_) if job.commands.len() == 1 => Ok(vec![None]),
        Err(error) => {
            // An emulator that fails without any command is broken, not the command.
            station.run(&Job { commands: &[], ..job.clone() }).map_err(|_| error)?;
            let (first, second) = job.commands.split_at(job.commands.len() / 2);
            let mut answers = run(station, &Job { commands: first, ..job.clone() })?;
            answers.extend(run(station, &Job { commands: second, ..job.clone() })?);
            Ok(answers)
        }
    }
}
