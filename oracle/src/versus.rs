//! Two models of one format asked the same questions, and compared with each other.

use crate::contract::{Info, Job};
use crate::deviations::Seen;
use crate::engine::{
    Disagreement, Drafts, Oracle, Tally, Variant, Verdict, accessed_aside, answer, astray, judge,
    see,
};
use crate::launch::{Launcher, Station};
use crate::probe::{Subject, again, complete};
use crate::recipe::Recipe;
use crate::x86::X86;

/// How many probes are made up before they are asked.
const BATCH: usize = 8192;

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
        let want = (probes - tally.probes).min(BATCH as u64) as usize;
        let mut cases = Vec::new();
        while cases.len() < want {
            let (_, probe) = drafts.next(&world_a);
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
            cases.push((case, twin));
        }
        let commands: Vec<_> = cases.iter().map(|(case, _)| case.command()).collect();
        let answers_a = answer(&mut left.station, &left.variant, &memory[0], &commands)?;
        let answers_b = answer(&mut right.station, &right.variant, &memory[1], &commands)?;
        for ((case, twin), (x, y)) in cases.into_iter().zip(answers_a.iter().zip(&answers_b)) {
            tally.probes += 1;
            let (x, y): (Seen, Seen) = (see(&a, &case, x), see(&b, &twin, y));
            if x == y || accessed_aside(a.accessed_bits(), &case, &x, &y) {
                tally.agree += 1;
                continue;
            }
            let verdicts = [
                (judge(left.oracle.model, &a, &mut world_a, &case, &x), &x),
                (judge(right.oracle.model, &b, &mut world_b, &twin, &y), &y),
            ];
            let lost = verdicts.iter().find(|(v, _)| matches!(v, Verdict::Disagree));
            let names = format!("{} against {}", left.variant.name, right.variant.name);
            let mut detail =
                |seen: &Seen| Disagreement::new(&names, &a, &mut world_a, &case, seen.clone());
            match lost {
                Some((_, seen)) => tally.disagree(detail(seen)),
                // Both agree with the walker, and yet not with each other: they differ where the
                // manual leaves it open.
                None => {
                    let name = verdicts.iter().find_map(|(verdict, _)| match verdict {
                        Verdict::Masked(deviation) => Some(deviation.name),
                        _ => None,
                    });
                    match name {
                        Some(name) => *tally.masked.entry(name).or_default() += 1,
                        None => tally.disagree(detail(&x)),
                    }
                }
            }
        }
    }
    Ok(tally)
}
