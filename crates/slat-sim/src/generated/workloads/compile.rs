//! A build: one process after another, each a compiler that maps itself and its memory page by page.

use slat_trace::Kind as Does;

use super::{DATA, HEAP, Kind, TEXT, Workload, program};
use crate::generated::kernel::{Area, Kernel};
use crate::generated::parameter::{Values, parameter};
use crate::preset::Confidence;

/// A build with a process a file.
pub(crate) const COMPILE: Kind = Kind {
    name: "compile",
    about: "a build: processes forked and executed, each mapping its memory page by page",
    parameters: &[
        parameter(
            "faults",
            1_080,
            (10, 100_000),
            "page faults a process; a Linux 4.13 build has 31,486,712 in 29,135 processes \
             (perf.mvermeulen.com, phoronix/build-linux-kernel)",
        ),
        parameter(
            "work",
            90_000,
            (100, 10_000_000),
            "instructions a page fault; the same build: 1,120 s x 3.1 to 3.9 GHz x 0.728 \
             instructions a cycle / 31.5 M",
        ),
        parameter(
            "file",
            26,
            (0, 100),
            "percent of its faults that map a file; compiler.slat has 26",
        ),
        parameter(
            "copies",
            8,
            (0, 100),
            "percent of its faults that copy a page of data; compiler.slat has 8",
        ),
    ],
    density: 20,
    instructions: Confidence::Documented,
    exposed: None,
    life: None,
    build: |values, kernel| Box::new(Compile::new(values, kernel)),
};

const TEXT_PAGES: u64 = 6_000;
const DATA_PAGES: u64 = 400;
const CC: u32 = 3;

struct Compile {
    faults: u64,
    work: u64,
    file: u64,
    copies: u64,
    make: usize,
    compiler: Vec<Area>,
    /// Of the compiler that runs: faults done, and pages of text, data and heap so far.
    done: Option<Progress>,
}

#[derive(Default)]
struct Progress {
    faults: u64,
    text: u64,
    data: u64,
    heap: u64,
}

impl Compile {
    fn new(values: &Values, kernel: &mut Kernel) -> Compile {
        let make = program(2, 60, 20, 300, false);
        let process = kernel.spawn(&make);
        make.iter().for_each(|&area| kernel.populate(process, area));
        kernel.run_first(process);
        Compile {
            faults: values.get("faults"),
            work: values.get("work"),
            file: values.get("file"),
            copies: values.get("copies"),
            make: process,
            compiler: program(CC, TEXT_PAGES, DATA_PAGES, values.get("faults"), false),
            done: None,
        }
    }

    fn compute(&self, kernel: &mut Kernel, progress: &Progress) {
        let (heap, data) = (progress.heap.max(1), progress.data.max(1));
        // The text that runs now: the last quarter MiB that was mapped, and what is hot of all.
        let text = (TEXT, ((progress.text.max(1) * 16) << 12).min(512 << 10));
        kernel.compute(self.work, text, |kernel| {
            let kind = if kernel.random.one_in(3) { Does::Store } else { Does::Load };
            let at = kernel.random.below(512) * 8;
            match kernel.random.below(10) {
                0..=4 => (kind, super::STACK - 4096 + at),
                5..=8 => {
                    // Recent memory is used most: compilers allocate and walk what they built.
                    let back = kernel.random.skewed(heap);
                    (kind, HEAP + ((heap - 1 - back) << 12) + at)
                }
                _ => (Does::Load, DATA + (kernel.random.skewed(data) << 12) + at),
            }
        });
    }
}

impl Workload for Compile {
    fn step(&mut self, kernel: &mut Kernel) {
        let Some(mut progress) = self.done.take() else {
            let child = kernel.fork();
            kernel.switch(child);
            kernel.exec(&self.compiler);
            self.done = Some(Progress::default());
            return;
        };
        let chance = kernel.random.below(100);
        if chance < self.file && progress.text * 16 < TEXT_PAGES {
            kernel.access(Does::Fetch, TEXT + ((progress.text * 16) << 12), 8);
            progress.text += 1;
        } else if chance < self.file + self.copies && progress.data < DATA_PAGES {
            // The load maps its neighbours too, so that later copies find a page to copy.
            kernel.access(Does::Load, DATA + (progress.data << 12), 8);
            kernel.access(Does::Store, DATA + (progress.data << 12), 8);
            progress.data += 1;
        } else {
            kernel.access(Does::Store, HEAP + (progress.heap << 12), 8);
            progress.heap += 1;
        }
        progress.faults += 1;
        self.compute(kernel, &progress);
        if progress.faults >= self.faults {
            kernel.exit_to(self.make);
            return;
        }
        self.done = Some(progress);
    }
}
