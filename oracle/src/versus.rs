//! Two models of one format asked the same questions, and compared with each other.

use crate::contract::{Info, Job};
use crate::deviations::{Model, Seen};
use crate::engine::{
    Disagreement, Drafts, Oracle, Question, Tally, Variant, Verdict, accessed_aside, answer,
    astray, judge, see,
};
use crate::launch::{Launcher, Station};
use crate::probe::{Case, Subject, again, complete};
use crate::recipe::Recipe;
use crate::world::World;
use crate::x86::X86;

/// One machine's answer to a probe, with what it takes to judge it by the walker's. `world` is the template.
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
    /// They differ, and a deviation of one machine explains its own.
    Masked(&'static str),
    /// They differ, and nothing explains the answer of this one.
    Lost(usize),
}

/// Compares two machines' answers to the same probe with each other.
fn settle(views: &mut [View<'_>; 2]) -> Settled {
    let [x, y] = &views;
    if x.seen == y.seen || accessed_aside(x.subject.accessed_bits(), x.case, x.seen, y.seen) {
        return Settled::Agree;
    }
    let mut masked = None;
    for (side, view) in views.iter_mut().enumerate() {
        match judge(view.model, view.subject, view.world, view.case, view.seen) {
            Verdict::Disagree => return Settled::Lost(side),
            Verdict::Masked(deviation) => masked = masked.or(Some(deviation.name)),
            Verdict::Agree => (),
        }
    }
    // Where both agree with the walker, and yet not with each other, they differ where the manual leaves it
    // open.
    masked.map_or(Settled::Lost(0), Settled::Masked)
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
            let Some(case) = complete(&a, &mut world_a, probe, steps) else { continue };
            // What the models may differ in by themselves: memory that is not there, features.
            let Some(twin) = again(&b, &mut world_b, &case) else { continue };
            if twin.expected != case.expected || twin.compared != case.compared {
                continue;
            }
            // Both machines run what a deviation of either may have written.
            let (mut case, mut twin) = (case, twin);
            let deviants = [(&lost_a, &mut world_a), (&lost_b, &mut world_b)]
                .map(|(subject, world)| again(subject.as_ref(), world, &case));
            let [Some(one), Some(other)] = deviants else { continue };
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
        let words: Vec<u64> = case.compared.iter().map(|&(_, _, after)| after).collect();
        let [x, y] = answers.map(|outcome| Seen { outcome, words: words.clone() });
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
                assert_eq!(ask([absent, right]), Settled::Masked("reserved-without-present"));
                assert_eq!(ask([right, absent]), Settled::Lost(1));
                unlike += 1;
            }
        }
        assert!(unlike > 2, "only {unlike} probes met reserved bits");
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
