//! Several virtual machines on the same cores: they take turns, and share TLBs and caches.

use slat_trace::{Batch, Source};

use super::run::Run;
use super::{CompareError, Facts, Options, Outcome, Scheme};
use crate::machine::Part;
use crate::preset::Processor;

/// A guest that takes turns with others.
struct Turn {
    run: Run,
    batch: Batch,
    /// Accesses of the batch that have run.
    done: usize,
    ended: bool,
}

/// Runs several guests on the same cores under every scheme: each runs `slice` accesses, then the
/// next, each switch an exit of each core of the guest that has run. Entries of one are never another's:
/// tagged, they stay in the TLB while the others run, and nothing that those do drops them; untagged, each
/// switch drops them. Natively a switch is one of processes, which keeps global entries and those of
/// address spaces that have numbers. A guest that has ended leaves the cores to the others. Schemes that
/// transcribe are left out. One list of outcomes a guest.
///
/// # Errors
/// As [`super::compare`], where the guests differ in architecture or in the number of vCPUs, and where a scheme is asked for by
/// name that transcribes.
pub fn share<S: Source>(
    sources: &mut [S],
    slice: usize,
    processor: &Processor,
    options: &Options,
    facts: impl Fn(&S) -> Facts,
    mut progress: impl FnMut(u64) -> bool,
) -> Result<Vec<Vec<Outcome>>, CompareError> {
    let options = Options { transcribed: false, what_ifs: false, ..options.clone() };
    let arch = sources.first().map(|source| source.machine().arch);
    if sources.iter().any(|source| Some(source.machine().arch) != arch) {
        return Err(CompareError::Mixed);
    }
    // Each core's TLB goes from one guest to the next: none may be without a vCPU there.
    let vcpus = |source: &S| source.machine().vcpus;
    let first = sources.first().map_or(0, vcpus);
    if let Some(other) = sources.iter().map(vcpus).find(|&count| count != first) {
        return Err(CompareError::Cores(first, other));
    }
    let mut wanted = options.schemes.iter().flatten();
    let transcribes = |scheme: &&Scheme| arch.is_some_and(|arch| scheme.target(arch).is_some());
    if let Some(&scheme) = wanted.find(transcribes) {
        return Err(CompareError::Shared(scheme));
    }
    let mut turns = Vec::new();
    for (vm, source) in sources.iter().enumerate() {
        let run = Run::new(source, processor, &options, vm as u8)?;
        turns.push(Turn { run, batch: Batch::default(), done: 0, ended: false });
    }
    let mut done = 0;
    let mut last: Option<usize> = None;
    while turns.iter().any(|turn| !turn.ended) {
        for vm in 0..turns.len() {
            if turns[vm].ended {
                continue;
            }
            if let Some(before) = last.filter(|&before| before != vm) {
                hand_over(&mut turns, before, vm);
            }
            last = Some(vm);
            let mut left = slice.max(1);
            while left > 0 && !turns[vm].ended {
                let ran = advance(&mut turns[vm], &mut sources[vm], left)?;
                left -= ran;
                done += ran as u64;
            }
            if !progress(done) {
                turns.iter_mut().for_each(|turn| turn.ended = true);
            }
        }
    }
    if done == 0 {
        return Err(CompareError::Empty);
    }
    Ok(turns
        .iter_mut()
        .zip(sources.iter())
        .map(|(turn, source)| turn.run.outcomes(processor, &facts(source)))
        .collect())
}

/// Gives TLBs and caches of each scheme's machine to the next guest's: an exit of the one that has
/// run, unless it has ended.
fn hand_over(turns: &mut [Turn], before: usize, vm: usize) {
    let Turn { run, ended, .. } = &mut turns[before];
    run.machines.iter_mut().for_each(|machine| machine.switch_out(*ended));
    let (low, high) = (before.min(vm), before.max(vm));
    let (first, second) = turns.split_at_mut(high);
    let (one, other) = (&mut first[low].run.machines, &mut second[0].run.machines);
    for (one, other) in one.iter_mut().zip(other) {
        one.shared().exchange(other.shared());
    }
}

/// Runs at most `most` accesses of the guest; how many that were, at least one unless it has ended.
fn advance<S: Source>(turn: &mut Turn, source: &mut S, most: usize) -> Result<usize, CompareError> {
    if turn.done == turn.batch.accesses.len() {
        turn.done = 0;
        let failed = |error: S::Error| CompareError::Source(Box::new(error));
        if !source.next(&mut turn.batch).map_err(failed)? {
            turn.ended = true;
            return Ok(0);
        }
    }
    let end = (turn.done + most).min(turn.batch.accesses.len());
    let part = Part::of(&turn.batch).slice(turn.done, end);
    for machine in &mut turn.run.machines {
        machine.run(&part)?;
    }
    let ran = end - turn.done;
    turn.done = end;
    Ok(ran)
}
