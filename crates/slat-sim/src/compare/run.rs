//! The machines of one guest, and the streams that they run.

use std::ops::Range;

use rayon::prelude::*;
use slat_trace::{Arch, Batch, Source};

use super::build::{Runs, Setting};
use super::{CompareError, Facts, Options, Outcome, Scheme, WhatIf, outcome};
use crate::cost::Prices;
use crate::machine::{Digest, Part, Start};
use crate::memory::{MAX_MEMORY, MemoryError};
use crate::preset::Processor;
use crate::transcribe::{Rewrites, Target, rewriter};

/// One scheme, with or without a change, on its machine.
struct Line {
    scheme: Scheme,
    what_if: Option<WhatIf>,
    /// What its machine's events are rewritten into.
    target: Option<Target>,
}

/// The machines of one guest.
pub(super) struct Run {
    lines: Vec<Line>,
    pub(super) machines: Vec<Box<dyn Runs>>,
    rewriters: Vec<(Target, Box<dyn Rewrites>)>,
    /// `None` where each access is run by itself.
    digest: Option<Digest>,
    pub(super) notes: Vec<String>,
    /// Which lines have an outcome.
    pub(super) kept: Vec<usize>,
}

impl Run {
    /// `vm` tells guests apart that share a machine.
    pub(super) fn new<S: Source>(
        source: &S,
        processor: &Processor,
        options: &Options,
        vm: u8,
    ) -> Result<Run, CompareError> {
        let machine = source.machine();
        if !machine.tables {
            return Err(CompareError::NoTables);
        }
        let arch = machine.arch;
        let memory = machine.memory.clone().unwrap_or(0..1 << 30);
        if memory.end > MAX_MEMORY {
            return Err(MemoryError::TooMuch(memory.end - 1).into());
        }
        let setting = Setting {
            processor,
            arch,
            cores: machine.vcpus,
            start: Start {
                tagged: options.tagged.unwrap_or(processor.tagged_tlb.value),
                cold: options.cold_start,
                pcid: options.pcid && arch == Arch::X86_64,
                vm,
            },
            memory,
            shadow_page: options.shadow_page(),
        };
        let mut run = Run {
            lines: lines(options, arch, setting.start),
            machines: Vec::new(),
            rewriters: Vec::new(),
            digest: (!options.one_by_one).then(Digest::default),
            notes: Vec::new(),
            kept: Vec::new(),
        };
        run.lines.retain(|line| {
            let Some(target) = line.target else { return true };
            if run.rewriters.iter().any(|(held, _)| *held == target) {
                return true;
            }
            match rewriter(arch, target, setting.cores, &setting.memory) {
                Ok(made) => {
                    run.rewriters.push((target, made));
                    true
                }
                Err(why) => {
                    run.notes.push(format!("no {}: {why}", line.scheme.name()));
                    false
                }
            }
        });
        for line in &run.lines {
            let mut setting = setting.clone();
            match line.what_if {
                Some(WhatIf::Pcid) => setting.start.pcid = true,
                Some(WhatIf::Tags) => setting.start.tagged = true,
                Some(WhatIf::HugePages) | None => {}
            }
            let rewriter = run.rewriters.iter().find(|(target, _)| Some(*target) == line.target);
            if let Some((_, rewriter)) = rewriter {
                setting.memory.end = setting.memory.end.max(rewriter.memory().end);
            }
            run.machines.push(setting.machine(line.scheme)?);
        }
        Ok(run)
    }

    /// Takes a batch over, of which [`Run::part`] then runs parts in order.
    pub(super) fn take(&mut self, batch: &Batch) {
        for (_, rewriter) in &mut self.rewriters {
            rewriter.take(&batch.events);
        }
        if let Some(digest) = &mut self.digest {
            digest.take(batch);
        }
    }

    /// Runs these accesses of the batch that was taken over.
    pub(super) fn part(&mut self, batch: &Batch, range: Range<usize>) -> Result<(), MemoryError> {
        let own = Part { digest: self.digest.as_ref(), ..Part::of(batch) };
        let parts: Vec<Part<'_>> = self
            .lines
            .iter()
            .map(|line| {
                let rewriter = self.rewriters.iter().find(|(held, _)| Some(*held) == line.target);
                let events = rewriter.map_or(own.events, |(_, rewriter)| rewriter.events());
                Part { events, ..own }.slice(range.start, range.end)
            })
            .collect();
        self.machines.par_iter_mut().zip(&parts).try_for_each(|(machine, part)| machine.run(part))
    }

    /// What the schemes came to that could be run.
    pub(super) fn outcomes(&mut self, processor: &Processor, facts: &Facts) -> Vec<Outcome> {
        let prices = Prices::new(processor, facts);
        let mut outcomes = Vec::new();
        self.kept.clear();
        for (nth, (line, machine)) in self.lines.iter().zip(&self.machines).enumerate() {
            let rewriter = self.rewriters.iter().find(|(held, _)| Some(*held) == line.target);
            if let Some(why) = rewriter.and_then(|(_, rewriter)| rewriter.fails()) {
                if line.what_if.is_none() {
                    self.notes.push(format!("no {}: {why}", line.scheme.name()));
                }
                continue;
            }
            let mut outcome = Outcome::new(line.scheme, machine.as_ref(), &prices, facts);
            outcome.what_if = line.what_if;
            outcome.large_pages = rewriter.and_then(|(_, rewriter)| rewriter.large_pages());
            outcome.transcribed = line.what_if.is_none() && line.target.is_some();
            outcomes.push(outcome);
            self.kept.push(nth);
        }
        outcome::relate(&mut outcomes);
        outcomes
    }
}

/// What is run, in order.
fn lines(options: &Options, arch: Arch, start: Start) -> Vec<Line> {
    let mut schemes = Scheme::all(arch, &options.host_pages, options.transcribed);
    if let Some(wanted) = &options.schemes {
        // A scheme that transcribes is run where it is asked for by name.
        schemes.retain(|scheme| wanted.contains(scheme));
        for &scheme in wanted.iter().filter(|scheme| scheme.target(arch).is_some()) {
            if !schemes.contains(&scheme) {
                schemes.push(scheme);
            }
        }
    }
    let plain = |scheme: Scheme| Line { scheme, what_if: None, target: scheme.target(arch) };
    let mut all: Vec<Line> = schemes.iter().map(|&scheme| plain(scheme)).collect();
    // Their effect shows beside 2 MiB host pages, or else the smallest.
    let nested = schemes
        .iter()
        .copied()
        .filter(|scheme| scheme.target(arch).is_none())
        .filter(|scheme| !matches!(scheme, Scheme::Native | Scheme::Shadow(_)))
        .min_by_key(|scheme| (scheme.host_shift() != Some(21), scheme.host_shift()));
    if let Some(scheme) = nested.filter(|_| options.what_ifs) {
        let x86 = arch == Arch::X86_64;
        let target = Target::HugePages;
        for (what_if, wanted, target) in [
            (WhatIf::HugePages, x86, Some(target)),
            (WhatIf::Pcid, x86 && !start.pcid, None),
            (WhatIf::Tags, !start.tagged, None),
        ] {
            if wanted {
                all.push(Line { scheme, what_if: Some(what_if), target });
            }
        }
    }
    all
}
