//! The smallest probe that still shows a disagreement.
//!
//! A probe is made smaller by asking again: each word that goes back to the template's, each bit of a word that
//! does, each bit of state that the probe can do without. What still disagrees in the same way is kept, until
//! nothing smaller does: whatever is left in a reproducer has a part in the disagreement.

use std::fmt;

use crate::deviations::Seen;
use crate::probe::{Case, Probe};
use crate::world::World;

/// How often a model is asked for the sake of one disagreement. A probe has a few hundred bits to drop; few need
/// more than a dozen questions.
const ROUNDS: u32 = 40;

/// Asks of each probe whether both sides still disagree, and if so what they say; `None` where they agree,
/// where a deviation explains it, or where the probe's answer would say nothing.
pub(crate) type Still<'a> =
    &'a mut dyn FnMut(&[Probe]) -> anyhow::Result<Vec<Option<(Case, Seen)>>>;

/// One step towards the template.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The word at this address is the template's.
    Word(u64),
    /// This bit of the word at this address is the template's.
    Bit(u64, u8),
    /// These bits of this register are clear.
    State(usize, u64),
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Step::Word(at) => write!(f, "word {at:#x}"),
            Step::Bit(at, bit) => write!(f, "bit {bit} of {at:#x}"),
            Step::State(register, bits) => write!(f, "bits {bits:#x} of state {register}"),
        }
    }
}

/// All steps from a probe, the longest first. `optional` are the bits of each register that it can do without,
/// `world` is the template.
fn steps(optional: &[(usize, u64)], world: &World, probe: &Probe) -> Vec<Step> {
    let words = probe.words.iter().map(|&(at, _)| Step::Word(at));
    let bits = probe.words.iter().flat_map(|&(at, value)| {
        let other = value ^ world.word(at).unwrap_or(0);
        (0..64).filter(move |bit| other >> bit & 1 != 0).map(move |bit| Step::Bit(at, bit))
    });
    let state = optional.iter().flat_map(|&(register, bits)| {
        let set = bits & probe.state.get(register).copied().unwrap_or(0);
        (0..64)
            .map(|bit| 1u64 << bit)
            .filter(move |bit| set & bit != 0)
            .map(move |bit| Step::State(register, bit))
    });
    words.chain(state).chain(bits).collect()
}

/// The probe after these steps.
fn taken(world: &World, probe: &Probe, steps: &[Step]) -> Probe {
    let mut probe = probe.clone();
    for step in steps {
        match *step {
            Step::Word(address) => probe.words.retain(|&(at, _)| at != address),
            Step::Bit(address, bit) => {
                let template = world.word(address).unwrap_or(0);
                if let Some((_, value)) = probe.words.iter_mut().find(|(at, _)| *at == address) {
                    *value ^= (*value ^ template) & 1 << bit;
                }
            }
            Step::State(register, bits) => probe.state[register] &= !bits,
        }
    }
    probe
}

/// Makes a disagreement smaller. `optional` are the bits of each register that a probe can do without, `world` is
/// the template.
///
/// # Errors
/// Where the machine cannot be asked any more.
pub(crate) fn shrink(
    optional: &[(usize, u64)],
    world: &World,
    (mut case, mut seen): (Case, Seen),
    still: Still<'_>,
) -> anyhow::Result<(Case, Seen)> {
    let kind = (case.expected.likeness(), seen.outcome.likeness());
    let mut ask = |probe: &Probe, choices: &[Vec<Step>]| -> anyhow::Result<Vec<_>> {
        let probes: Vec<Probe> = choices.iter().map(|steps| taken(world, probe, steps)).collect();
        let mut answers = still(&probes)?;
        for answer in &mut answers {
            let alike = |(case, seen): &mut (Case, Seen)| {
                (case.expected.likeness(), seen.outcome.likeness()) == kind
            };
            *answer = answer.take_if(alike);
        }
        Ok(answers)
    };
    for _ in 0..ROUNDS {
        let probe = case.probe.clone();
        let single: Vec<Vec<Step>> =
            steps(optional, world, &probe).into_iter().map(|step| vec![step]).collect();
        let answers = ask(&probe, &single)?;
        let (good, first): (Vec<Step>, Vec<_>) = single
            .into_iter()
            .flatten()
            .zip(answers)
            .filter_map(|(step, answer)| Some((step, answer?)))
            .unzip();
        let Some(first) = first.into_iter().next() else { break };
        // What goes one at a time may not go together: all of it, halves, quarters, down to pairs.
        let mut together: Vec<Vec<Step>> = Vec::new();
        let mut size = good.len();
        while size > 1 {
            together.extend(good.chunks(size).map(<[Step]>::to_vec));
            size = size.div_ceil(2).min(size - 1);
        }
        let answers = ask(&probe, &together)?;
        (case, seen) = answers.into_iter().flatten().next().unwrap_or(first);
    }
    Ok((case, seen))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::contract::STATE;
    use crate::deviations::Model;
    use crate::engine::{Verdict, judge};
    use crate::golden::questions;
    use crate::probe::{Outcome, Subject, complete};

    pub(crate) const SMEP: u64 = 1 << 20;

    /// A machine that knows nothing of SMEP, and is right in all else.
    pub(crate) fn machine(subject: &dyn Subject, world: &mut World, case: &Case) -> Option<Seen> {
        let mut asked = case.probe.clone();
        asked.state[5] &= !SMEP;
        let answer = complete(subject, world, asked, &mut Vec::new()).ok()?;
        let words = case.compared.iter().map(|&(at, before, _)| {
            let found = answer.compared.iter().find(|(other, ..)| *other == at);
            found.map_or(before, |&(_, _, after)| after)
        });
        Some(Seen { outcome: answer.expected, words: words.collect() })
    }

    fn disagreement(
        subject: &dyn Subject,
        world: &mut World,
        probe: &Probe,
    ) -> Option<(Case, Seen)> {
        let case = complete(subject, world, probe.clone(), &mut Vec::new()).ok()?;
        let seen = machine(subject, world, &case)?;
        let verdict = judge(Model::QemuX86, subject, world, &case, &seen);
        matches!(verdict, Verdict::Disagree).then_some((case, seen))
    }

    /// Of a probe about one bit, what has a part in it is left, and nothing else.
    #[test]
    fn what_is_left_has_a_part_in_the_disagreement() {
        let file = include_bytes!("../golden/npt-qemu7-0-max.zst");
        let (subject, cases) = questions(file, 500).unwrap();
        let subject = subject.as_ref();
        let world = &mut subject.template();
        let template = subject.template();
        let mut shrunk = 0;
        for case in cases {
            let Some(found) = disagreement(subject, world, &case.probe) else { continue };
            let before = found.0.clone();
            let kind = (before.expected.likeness(), found.1.outcome.likeness());
            let (mut asked, mut launches) = (0, 0);
            let (small, seen) = shrink(subject.optional(), &template, found, &mut |probes| {
                (asked, launches) = (asked + probes.len(), launches + 1);
                Ok(probes.iter().map(|p| disagreement(subject, world, p)).collect())
            })
            .unwrap();
            // It is the same disagreement: a fetch of the supervisor's that the walker alone denies.
            assert!(matches!(small.expected, Outcome::Stage1 { .. }), "{:x?}", small.expected);
            assert_eq!((small.expected.likeness(), seen.outcome.likeness()), kind);
            let again = disagreement(subject, world, &small.probe).expect("it disagrees");
            assert_eq!(again.1, seen);
            // Nothing that is left can go.
            for step in steps(subject.optional(), &template, &small.probe) {
                let probe = taken(&template, &small.probe, &[step]);
                let smaller = disagreement(subject, world, &probe);
                let alike = smaller.filter(|(case, seen)| {
                    (case.expected.likeness(), seen.outcome.likeness()) == kind
                });
                assert!(alike.is_none(), "{step:?} can go");
            }
            // Of what state can do without, SMEP alone has a part in it.
            let left = subject
                .optional()
                .iter()
                .map(|&(register, bits)| (register, small.probe.state[register] & bits));
            let left: Vec<_> = left.filter(|(_, bits)| *bits != 0).collect();
            assert_eq!(left, [(5, SMEP)]);
            let bits = |case: &Case| -> u32 {
                let words = case.probe.words.iter();
                words
                    .map(|&(at, value)| (value ^ template.word(at).unwrap_or(0)).count_ones())
                    .sum()
            };
            assert!(bits(&small) < bits(&before), "{} of {}", bits(&small), bits(&before));
            assert!(launches < 2 * ROUNDS, "{launches} launches, {asked} questions");
            shrunk += 1;
            if shrunk == 8 {
                break;
            }
        }
        assert_eq!(shrunk, 8, "too few probes meet the bit");
    }

    #[test]
    fn a_step_goes_to_the_template_and_no_further() {
        let file = include_bytes!("../golden/npt-qemu7-0-max.zst");
        let (subject, cases) = questions(file, 1).unwrap();
        let world = subject.template();
        let probe = &cases[0].probe;
        let all = steps(subject.optional(), &world, probe);
        let end = taken(&world, probe, &all);
        assert!(end.words.is_empty());
        let mut state = [0; STATE];
        state.copy_from_slice(&probe.state);
        for &(register, bits) in subject.optional() {
            state[register] &= !bits;
        }
        assert_eq!(end.state, state);
        let Some(&(at, value)) = probe.words.first() else { panic!("the probe has words") };
        let template = world.word(at).unwrap_or(0);
        let bit = (value ^ template).trailing_zeros() as u8;
        let step = taken(&world, probe, &[Step::Bit(at, bit)]);
        assert_eq!(step.words[0], (at, value ^ 1 << bit));
        assert_eq!(step.words[1..], probe.words[1..]);
    }
}
