//! Two models of one format asked the same questions, and compared with each other.

use std::rc::Rc;

use crate::contract::{Answer, Command, Info, Job, Segment};
use crate::deviations::{Model, Seen};
use crate::engine::{
    Disagreement, Drafts, Oracle, SHRUNK, Tally, Variant, Verdict, accessed_aside, answer, astray,
    judge, names, see,
};
use crate::launch::{Launcher, Station};
use crate::probe::{Case, PassedOver, Probe, Subject, again, complete};
use crate::random::Random;
use crate::recipe::Recipe;
use crate::shrink::shrink;
use crate::world::World;
use crate::x86::X86;

/// One machine's answer to a probe, with what it takes to judge it by the walker's. `world` is the template.
/// The first of two sets accessed bits as it walks, the other when the access has succeeded.
struct View<'a> {
    model: Model,
    subject: &'a dyn Subject,
    world: &'a mut World,
    case: &'a Case,
    seen: &'a Seen,
}

/// What comes of two machines' answers.
#[derive(Debug, PartialEq, Eq)]
enum Settled {
    /// They are the same.
    Agree,
    /// They differ, and deviations of one machine explain its own.
    Masked(String),
    /// They differ, and nothing explains the answer of this one.
    Lost(usize),
}

/// Compares two machines' answers to the same probe with each other.
fn settle(views: &mut [View<'_>; 2]) -> Settled {
    let [x, y] = &views;
    if x.seen == y.seen || accessed_aside(x.case, x.seen, y.seen) {
        return Settled::Agree;
    }
    let mut masked = None;
    for (side, view) in views.iter_mut().enumerate() {
        match judge(view.model, view.subject, view.world, view.case, view.seen) {
            Verdict::Disagree => return Settled::Lost(side),
            Verdict::Masked(deviations) => masked = masked.or_else(|| Some(names(&deviations))),
            Verdict::Agree => (),
        }
    }
    // Where both agree with the walker, and yet not with each other, they differ where the manual leaves it
    // open.
    masked.map_or(Settled::Lost(0), Settled::Masked)
}

/// Whether two machines are expected to do the same; when they set accessed bits aside, where the access fails.
fn alike(case: &Case, twin: &Case) -> bool {
    let done = case.expected.is_done();
    let same = |(x, y): (&(u64, u64, u64), &(u64, u64, u64))| {
        (x.0, x.1) == (y.0, y.1) && (!done || x.2 == y.2)
    };
    case.expected == twin.expected
        && case.compared.len() == twin.compared.len()
        && case.compared.iter().zip(&twin.compared).all(same)
}

struct Side {
    variant: Variant,
    station: Station,
    info: Info,
}

impl Side {
    fn new(variant: Variant) -> anyhow::Result<Self> {
        let mut station = Station::new(variant.launcher.clone(), variant.monitor)?;
        let job = Job { machine: variant.machine, mode: variant.mode, memory: &[], commands: &[] };
        let info = station.run(&job)?.info;
        Ok(Side { variant, station, info })
    }

    fn subject(&self) -> Option<X86> {
        let Recipe::X86 { second, amd, beyond } = self.variant.recipe else { return None };
        Some(X86::new(&self.info, second, amd, beyond))
    }

    fn answer(
        &mut self,
        memory: &[Segment],
        commands: &[Command],
    ) -> anyhow::Result<Vec<Option<Answer>>> {
        answer(&mut self.station, &self.variant, memory, commands)
    }
}

/// What is expected of two machines.
struct Pair {
    models: [Model; 2],
    subjects: [Rc<dyn Subject>; 2],
    /// The same with all deviations of each model.
    astray: [Box<dyn Subject>; 2],
    /// The templates.
    worlds: [World; 2],
}

/// A probe that both machines can be asked, as each of them is expected to answer it.
type Both = [Case; 2];

impl Pair {
    fn new(models: [Model; 2], subjects: [Rc<dyn Subject>; 2]) -> Pair {
        let astray = [0, 1].map(|side| astray(models[side], subjects[side].as_ref()));
        let worlds = subjects.each_ref().map(|subject| subject.template());
        Pair { models, subjects, astray, worlds }
    }

    /// Completes a probe for both machines.
    fn usable(&mut self, probe: Probe) -> Result<Both, PassedOver> {
        let ([a, b], [world_a, world_b]) = (&self.subjects, &mut self.worlds);
        let mut case = complete(a.as_ref(), world_a, probe, &mut Vec::new())?;
        // What the models may differ in by themselves: memory that is not there, features.
        let twin = again(b.as_ref(), world_b, &case).filter(|twin| alike(&case, twin));
        let mut twin = twin.ok_or(PassedOver::Unlike)?;
        // Both machines run what a deviation of either may have written.
        let deviants =
            [0, 1].map(|side| again(self.astray[side].as_ref(), &mut self.worlds[side], &case));
        let [Some(one), Some(other)] = deviants else { return Err(PassedOver::Deviant) };
        for deviant in [one, other] {
            case.restore_too(&deviant);
            twin.restore_too(&deviant);
        }
        Ok([case, twin])
    }

    /// The machines' answers as they can be compared.
    fn see(&self, cases: &Both, answers: [&Option<Answer>; 2]) -> [Seen; 2] {
        [0, 1].map(|side| see(self.subjects[side].as_ref(), &cases[side], answers[side]))
    }

    fn settle(&mut self, cases: &Both, seen: &[Seen; 2]) -> Settled {
        let [world_a, world_b] = &mut self.worlds;
        let view = |side: usize, world| View {
            model: self.models[side],
            subject: self.subjects[side].as_ref(),
            world,
            case: &cases[side],
            seen: &seen[side],
        };
        settle(&mut [view(0, world_a), view(1, world_b)])
    }

    /// Makes the probe of a disagreement smaller: the answer of the same side stays unexplained, and each
    /// machine answers in the same way as before. `ask` has both machines answer.
    ///
    /// # Errors
    /// Where a machine cannot be asked any more.
    fn shrink(&mut self, probe: &Probe, ask: Ask<'_>) -> anyhow::Result<Option<(Case, Seen)>> {
        // Nothing can be told by a disagreement that does not come again.
        let Ok(cases) = self.usable(probe.clone()) else { return Ok(None) };
        let Some(seen) = ask(self, std::slice::from_ref(&cases))?.pop() else { return Ok(None) };
        let Settled::Lost(side) = self.settle(&cases, &seen) else { return Ok(None) };
        let other = seen[1 - side].outcome.likeness();
        let found = first(cases, seen, side);
        let (subject, template) = (Rc::clone(&self.subjects[0]), self.subjects[0].template());
        let small = shrink(subject.optional(), &template, found, &mut |probes| {
            let usable: Vec<Option<Both>> =
                probes.iter().map(|probe| self.usable(probe.clone()).ok()).collect();
            let cases: Vec<Both> = usable.iter().flatten().cloned().collect();
            let mut answers = ask(self, &cases)?.into_iter();
            let still = |cases: Option<Both>| {
                let cases = cases?;
                let seen = answers.next()?;
                let same = self.settle(&cases, &seen) == Settled::Lost(side)
                    && seen[1 - side].outcome.likeness() == other;
                same.then(|| first(cases, seen, side))
            };
            Ok(usable.into_iter().map(still).collect())
        })?;
        Ok(Some(small))
    }
}

/// The case as the first machine has it, and the answer of one side.
fn first([case, _]: Both, [x, y]: [Seen; 2], side: usize) -> (Case, Seen) {
    (case, if side == 0 { x } else { y })
}

/// Has both machines answer these.
type Ask<'a> = &'a mut dyn FnMut(&Pair, &[Both]) -> anyhow::Result<Vec<[Seen; 2]>>;

/// Pairs of x86 variants, QEMU's and Bochs's, that model the same second stage.
#[must_use]
pub fn pairs(oracles: &[Oracle]) -> Vec<(&Oracle, &Variant, &Oracle, &Variant)> {
    let mut pairs: Vec<(&Oracle, &Variant, &Oracle, &Variant)> = Vec::new();
    let second = |variant: &Variant| match variant.recipe {
        Recipe::X86 { second, amd: true, .. } => Some(second),
        _ => None,
    };
    let is_bochs = |variant: &Variant| matches!(variant.launcher, Launcher::Bochs { .. });
    for a in oracles {
        for one in a.variants.iter().filter(|v| !is_bochs(v) && second(v).is_some()) {
            for b in oracles {
                let other = b.variants.iter().find(|v| is_bochs(v) && second(v) == second(one));
                let new = !pairs.iter().any(|(_, known, ..)| second(known) == second(one));
                if let Some(other) = other
                    && new
                {
                    pairs.push((a, one, b, other));
                }
            }
        }
    }
    pairs
}

/// Asks both sides of a pair. `agree` counts the probes to which both gave the same answer, `masked`
/// those where one of them has a deviation that explains its own.
///
/// # Errors
/// Where an emulator cannot be run at all.
pub fn compare(
    pair: (&Oracle, &Variant, &Oracle, &Variant),
    probes: u64,
    seed: u64,
) -> anyhow::Result<Tally> {
    let (qemu, one, bochs, other) = pair;
    let mut right = Side::new(other.clone())?;
    let mut variant = one.clone();
    let width = right.subject().map_or(40, |subject| subject.features.physical_bits);
    if let Launcher::Qemu { cpu, .. } = &mut variant.launcher {
        // Which bits are reserved depends on it.
        *cpu = format!("{cpu},phys-bits={width}");
    }
    let mut left = Side::new(variant)?;
    let mut tally = Tally::default();
    let (Some(mut a), Some(b)) = (left.subject(), right.subject()) else { return Ok(tally) };
    a.features.cr4 &= b.features.cr4;
    a.features.nx &= b.features.nx;
    let seed = Random::derive(seed, &["against", &qemu.name, &one.name, &other.name]);
    let subject: Rc<dyn Subject> = Rc::new(a);
    let mut drafts = Drafts::new(subject.as_ref(), seed);
    let mut pair = Pair::new([qemu.model, bochs.model], [Rc::clone(&subject), Rc::new(b)]);
    let memory = pair.worlds.each_mut().map(|world| world.segments());
    let mut ask = |pair: &Pair, cases: &[Both]| -> anyhow::Result<Vec<[Seen; 2]>> {
        let commands: Vec<_> = cases.iter().map(|[case, _]| case.command()).collect();
        let answers_a = left.answer(&memory[0], &commands)?;
        let answers_b = right.answer(&memory[1], &commands)?;
        let answers = answers_a.iter().zip(&answers_b);
        Ok(cases.iter().zip(answers).map(|(both, (x, y))| pair.see(both, [x, y])).collect())
    };
    let names = format!("{} against {}", one.name, other.name);
    while tally.probes < probes {
        let want = (probes - tally.probes).min(drafts.batch() as u64) as usize;
        let (mut cases, mut flips) = (Vec::new(), Vec::new());
        while cases.len() < want {
            let question = drafts.next(&pair.worlds[0]);
            match pair.usable(question.probe) {
                Ok(both) => {
                    cases.push(both);
                    flips.push(question.flips);
                }
                Err(reason) => tally.pass_over(reason),
            }
        }
        let seen = ask(&pair, &cases)?;
        for ((both, seen), flips) in cases.iter().zip(seen).zip(flips) {
            tally.probes += 1;
            drafts.answered(flips, seen[0].outcome);
            match pair.settle(both, &seen) {
                Settled::Agree => tally.agree += 1,
                Settled::Masked(name) => *tally.masked.entry(name).or_default() += 1,
                Settled::Lost(side) => {
                    let (case, seen) = (&both[0], seen[side].clone());
                    let world = &mut pair.worlds[0];
                    let lost = Disagreement::new(&names, subject.as_ref(), world, case, seen);
                    tally.disagree(lost);
                }
            }
        }
    }
    for (_, kept) in tally.disagreements.iter_mut().take(SHRUNK) {
        if let Some((case, seen)) = pair.shrink(&kept.case.probe, &mut ask)? {
            let world = &mut pair.worlds[0];
            *kept = Disagreement::new(&names, subject.as_ref(), world, &case, seen);
        }
    }
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::Machine;
    use crate::golden::questions;
    use crate::monitor::Monitor;
    use crate::probe::Outcome;
    use crate::shrink::tests::{SMEP, machine as without_smep};
    use crate::world::Beyond;
    use crate::x86::Second;

    /// What two machines answer to a question, as it is settled.
    fn settled(case: &Case, subject: &dyn Subject, answers: [Outcome; 2]) -> Settled {
        let words = words(case, |_, after| after);
        let answers = answers.map(|outcome| Seen { outcome, words: words.clone() });
        between(case, subject, answers)
    }

    /// The same for answers with what they left in memory.
    fn between(case: &Case, subject: &dyn Subject, [x, y]: [Seen; 2]) -> Settled {
        let (mut one, mut other) = (subject.template(), subject.template());
        settle(&mut [
            View { model: Model::QemuX86, subject, world: &mut one, case, seen: &x },
            View { model: Model::Bochs, subject, world: &mut other, case, seen: &y },
        ])
    }

    #[test]
    fn models_are_held_to_each_other() {
        let file = include_bytes!("../golden/npt-qemu7-0-max.zst");
        let (subject, cases) = questions(file, 400).unwrap();
        let mut unlike = 0;
        for case in &cases {
            let right = case.expected;
            let ask = |answers| settled(case, subject.as_ref(), answers);
            assert_eq!(ask([right, right]), Settled::Agree);
            let Outcome::Stage2 { syndrome, address, origin } = right else { continue };
            let wrong = Outcome::Stage2 { syndrome, address: address ^ 1 << 13, origin };
            assert_eq!(ask([right, wrong]), Settled::Lost(1));
            assert_eq!(ask([wrong, right]), Settled::Lost(0));
            // QEMU's way to report a reserved bit; Bochs has no such excuse.
            if syndrome & 9 == 9 {
                let absent = Outcome::Stage2 { syndrome: syndrome & !1, address, origin };
                assert_eq!(
                    ask([absent, right]),
                    Settled::Masked("reserved-without-present".into())
                );
                assert_eq!(ask([right, absent]), Settled::Lost(1));
                unlike += 1;
            }
        }
        assert!(unlike > 2, "only {unlike} probes met reserved bits");
    }

    /// What the words of a case hold: of what they held before, and after by the walker's word.
    fn words(case: &Case, which: fn(u64, u64) -> u64) -> Vec<u64> {
        case.compared.iter().map(|&(_, before, after)| which(before, after)).collect()
    }

    /// Where an access fails, one machine may have set accessed bits on its way that the other sets at its end.
    #[test]
    fn accessed_bits_of_failed_accesses_may_differ_and_nothing_else() {
        const DIRTY: u64 = 1 << 6;
        let file = include_bytes!("../golden/npt-qemu7-0-max.zst");
        let (subject, cases) = questions(file, 400).unwrap();
        let mut compared = 0;
        for case in cases.iter().filter(|case| !case.expected.is_done()) {
            let set = |&(_, before, after): &(u64, u64, u64)| before != after;
            let Some(place) = case.compared.iter().position(set) else { continue };
            let outcome = case.expected;
            let walked = Seen { outcome, words: words(case, |_, after| after) };
            let at_end = Seen { outcome, words: words(case, |before, _| before) };
            let mut dirtied = at_end.clone();
            dirtied.words[place] ^= DIRTY & !walked.words[place];
            let ask =
                |other: &Seen| between(case, subject.as_ref(), [walked.clone(), other.clone()]);
            assert_eq!(ask(&walked), Settled::Agree);
            assert_eq!(ask(&at_end), Settled::Agree);
            if dirtied != at_end {
                assert_eq!(ask(&dirtied), Settled::Lost(1));
            }
            compared += 1;
        }
        assert!(compared > 20, "only {compared} probes set bits on their way to a fault");
    }

    /// Two machines of which one knows nothing of SMEP: what is left of a disagreement is about that.
    #[test]
    fn what_two_machines_disagree_over_is_made_smaller() {
        let file = include_bytes!("../golden/npt-qemu7-0-max.zst");
        let (subject, cases) = questions(file, 300).unwrap();
        let subject: Rc<dyn Subject> = Rc::from(subject);
        let subjects = || [Rc::clone(&subject), Rc::clone(&subject)];
        for wrong in [0, 1] {
            let mut pair = Pair::new([Model::QemuX86, Model::Bochs], subjects());
            let template = subject.template();
            let mut ask = |_: &Pair, cases: &[Both]| {
                let both = |both: &Both| {
                    let mut seen = both.each_ref().map(|case| Seen {
                        outcome: case.expected,
                        words: words(case, |_, after| after),
                    });
                    let world = &mut subject.template();
                    if let Some(other) = without_smep(subject.as_ref(), world, &both[wrong]) {
                        seen[wrong] = other;
                    }
                    seen
                };
                Ok(cases.iter().map(both).collect())
            };
            let mut shrunk = 0;
            for case in &cases {
                let Some((small, seen)) = pair.shrink(&case.probe, &mut ask).unwrap() else {
                    continue;
                };
                // A fetch of the supervisor's that one machine denies.
                assert!(matches!(small.expected, Outcome::Stage1 { .. }), "{:x?}", small.expected);
                assert_ne!(seen.outcome.likeness(), small.expected.likeness());
                let both = pair.usable(small.probe.clone()).unwrap();
                let answers = ask(&pair, std::slice::from_ref(&both)).unwrap().remove(0);
                assert_eq!(pair.settle(&both, &answers), Settled::Lost(wrong));
                assert_eq!(answers[wrong], seen);
                let left: Vec<(usize, u64)> = subject
                    .optional()
                    .iter()
                    .map(|&(register, bits)| (register, small.probe.state[register] & bits))
                    .filter(|(_, bits)| *bits != 0)
                    .collect();
                assert_eq!(left, [(5, SMEP)]);
                let bits = |probe: &Probe| -> u32 {
                    let other = |&(at, value): &(u64, u64)| value ^ template.word(at).unwrap_or(0);
                    probe.words.iter().map(|word| other(word).count_ones()).sum()
                };
                assert!(bits(&small.probe) <= bits(&case.probe));
                shrunk += 1;
                if shrunk == 3 {
                    break;
                }
            }
            assert_eq!(shrunk, 3, "too few probes meet the bit");
        }
    }

    #[test]
    fn each_second_stage_that_both_model_makes_a_pair() {
        let variant = |second: Second, bochs: bool| Variant {
            name: format!("{second:?}"),
            launcher: if bochs {
                Launcher::Bochs { program: "bochs".into(), model: "ryzen".into() }
            } else {
                let emulator = slat_setup::Qemu {
                    binary: "qemu-system-x86_64".into(),
                    lib_args: vec![],
                    library_path: vec![],
                    version: "7.2.0".into(),
                };
                Launcher::Qemu { emulator, machine: "pc", cpu: "max".into() }
            },
            monitor: Monitor::X86,
            machine: &Machine::X86,
            mode: 0,
            recipe: Recipe::X86 { second, amd: second != Second::Ept, beyond: Beyond::Zero },
            share: 1,
        };
        let oracle = |model, bochs, seconds: &[Second]| Oracle {
            format: "npt",
            name: format!("{model:?}"),
            model,
            variants: seconds.iter().map(|second| variant(*second, bochs)).collect(),
        };
        let oracles = [
            oracle(Model::Bochs, true, &[Second::Ept]),
            oracle(Model::Bochs, true, &[Second::Npt4, Second::NptPae, Second::Npt4]),
            oracle(
                Model::QemuX86,
                false,
                &[Second::Npt4, Second::Npt5, Second::Npt4, Second::NptPae],
            ),
        ];
        let names: Vec<(&str, &str)> =
            pairs(&oracles).iter().map(|(_, one, _, other)| (&*one.name, &*other.name)).collect();
        assert_eq!(names, [("Npt4", "Npt4"), ("NptPae", "NptPae")]);
    }
}
