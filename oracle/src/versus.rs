//! Two models of one format asked the same questions, and compared with each other.

use crate::contract::{Info, Job};
use crate::deviations::{Model, Seen};
use crate::engine::{
    Disagreement, Drafts, Oracle, Question, Tally, Variant, Verdict, accessed_aside, answer,
    astray, judge, names, see,
};
use crate::launch::{Launcher, Station};
use crate::probe::{Case, PassedOver, Subject, again, complete};
use crate::random::Random;
use crate::recipe::Recipe;
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

struct Side<'a> {
    oracle: &'a Oracle,
    variant: Variant,
    station: Station,
    info: Info,
}

impl<'a> Side<'a> {
    fn new(oracle: &'a Oracle, variant: Variant) -> anyhow::Result<Self> {
        let mut station = Station::new(variant.launcher.clone(), variant.monitor)?;
        let job = Job { machine: variant.machine, mode: variant.mode, memory: &[], commands: &[] };
        let info = station.run(&job)?.info;
        Ok(Side { oracle, variant, station, info })
    }

    fn subject(&self) -> Option<X86> {
        let Recipe::X86 { second, amd, beyond } = self.variant.recipe else { return None };
        Some(X86::new(&self.info, second, amd, beyond))
    }
}

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
    let mut right = Side::new(bochs, other.clone())?;
    let mut variant = one.clone();
    let width = right.subject().map_or(40, |subject| subject.features.physical_bits);
    if let Launcher::Qemu { cpu, .. } = &mut variant.launcher {
        // Which bits are reserved depends on it.
        *cpu = format!("{cpu},phys-bits={width}");
    }
    let mut left = Side::new(qemu, variant)?;
    let mut tally = Tally::default();
    let (Some(mut a), Some(b)) = (left.subject(), right.subject()) else { return Ok(tally) };
    a.features.cr4 &= b.features.cr4;
    a.features.nx &= b.features.nx;
    let seed = Random::derive(seed, &["against", &qemu.name, &one.name, &other.name]);
    let mut drafts = Drafts::new(&a, seed);
    let (lost_a, lost_b) = (astray(left.oracle.model, &a), astray(right.oracle.model, &b));
    let steps = &mut Vec::new();
    let (mut world_a, mut world_b) = (a.template(), b.template());
    let memory = [world_a.segments(), world_b.segments()];
    while tally.probes < probes {
        let want = (probes - tally.probes).min(drafts.batch() as u64) as usize;
        let mut cases = Vec::new();
        while cases.len() < want {
            let Question { probe, flips, .. } = drafts.next(&world_a);
            let case = match complete(&a, &mut world_a, probe, steps) {
                Ok(case) => case,
                Err(reason) => {
                    tally.pass_over(reason);
                    continue;
                }
            };
            // What the models may differ in by themselves: memory that is not there, features.
            let twin = again(&b, &mut world_b, &case).filter(|twin| alike(&case, twin));
            let Some(twin) = twin else {
                tally.pass_over(PassedOver::Unlike);
                continue;
            };
            // Both machines run what a deviation of either may have written.
            let (mut case, mut twin) = (case, twin);
            let deviants = [(&lost_a, &mut world_a), (&lost_b, &mut world_b)]
                .map(|(subject, world)| again(subject.as_ref(), world, &case));
            let [Some(one), Some(other)] = deviants else {
                tally.pass_over(PassedOver::Deviant);
                continue;
            };
            for deviant in [one, other] {
                case.restore_too(&deviant);
                twin.restore_too(&deviant);
            }
            cases.push((case, twin, flips));
        }
        let commands: Vec<_> = cases.iter().map(|(case, ..)| case.command()).collect();
        let answers_a = answer(&mut left.station, &left.variant, &memory[0], &commands)?;
        let answers_b = answer(&mut right.station, &right.variant, &memory[1], &commands)?;
        let answers = answers_a.iter().zip(&answers_b);
        for ((case, twin, flips), (x, y)) in cases.into_iter().zip(answers) {
            tally.probes += 1;
            let (x, y): (Seen, Seen) = (see(&a, &case, x), see(&b, &twin, y));
            drafts.answered(flips, x.outcome);
            let mut views = [
                View {
                    model: left.oracle.model,
                    subject: &a,
                    world: &mut world_a,
                    case: &case,
                    seen: &x,
                },
                View {
                    model: right.oracle.model,
                    subject: &b,
                    world: &mut world_b,
                    case: &twin,
                    seen: &y,
                },
            ];
            match settle(&mut views) {
                Settled::Agree => tally.agree += 1,
                Settled::Masked(name) => *tally.masked.entry(name).or_default() += 1,
                Settled::Lost(side) => {
                    let names = format!("{} against {}", left.variant.name, right.variant.name);
                    let seen = views[side].seen.clone();
                    tally.disagree(Disagreement::new(&names, &a, &mut world_a, &case, seen));
                }
            }
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
