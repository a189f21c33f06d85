//! VMware's kernel microbenchmarks of 2009, by what their paper says of each: `segv`, `pcd`, `nps`
//! and `fcw`. Their sources were not published.

use slat_trace::Kind as Does;

use super::{DATA, Kind, LIBRARY, STACK, TEXT, Workload, program, stack};
use crate::generated::kernel::{Area, Kernel};
use crate::generated::parameter::{Parameter, Values, parameter};
use crate::preset::Confidence;

/// Pages of its own that a small C program under Linux has written: data, library data, stack.
const OWN: Parameter = parameter(
    "pages",
    40,
    (2, 100_000),
    "private pages of the parent, which fork shares; 40: a C program with the C library",
);
const TOUCHED: Parameter = parameter(
    "touched",
    8,
    (0, 100_000),
    "private pages that a child stores to; 8: stack, library data, exit handlers",
);

/// Repeated page faults that end in a signal.
pub(crate) const SEGV: Kind = Kind {
    name: "segv",
    about: "repeated page faults of a program's own, each delivered as a signal",
    parameters: &[],
    density: 690,
    instructions: Confidence::Documented,
    exposed: None,
    life: None,
    build: |_, kernel| {
        let areas = program(2, 16, 8, 0, false);
        start(kernel, &areas, 20);
        Box::new(Segv)
    },
};

/// Processes created and destroyed beside others.
pub(crate) const PCD: Kind = Kind {
    name: "pcd",
    about: "process creation and destruction with a set number of processes alive",
    parameters: &[
        OWN,
        TOUCHED,
        parameter(
            "alive",
            16,
            (1, 4_000),
            "children alive at any time; VMware's number is not known",
        ),
    ],
    density: 690,
    instructions: Confidence::Documented,
    exposed: None,
    life: None,
    build: |values, kernel| {
        let areas = parent(values, kernel);
        Box::new(Pcd {
            areas,
            touched: values.get("touched"),
            alive: values.get("alive") as usize,
            children: std::collections::VecDeque::new(),
        })
    },
};

/// Processes that take turns.
pub(crate) const NPS: Kind = Kind {
    name: "nps",
    about: "process switches: a token passed round a ring of processes",
    parameters: &[
        parameter(
            "processes",
            16,
            (2, 4_000),
            "processes in the ring; VMware's number is not known",
        ),
        parameter("touched", 4, (0, 10_000), "pages that each touches in its turn"),
    ],
    density: 690,
    instructions: Confidence::Documented,
    exposed: None,
    life: None,
    build: |values, kernel| {
        let pages = values.get("touched").max(1);
        let areas = program(2, 16, 8, pages, false);
        let processes: Vec<usize> = (0..values.get("processes"))
            .map(|_| {
                let process = kernel.spawn(&areas);
                areas.iter().for_each(|&area| kernel.populate(process, area));
                process
            })
            .collect();
        kernel.run_first(processes[0]);
        Box::new(Nps { processes, turn: 0, touched: values.get("touched") })
    },
};

/// Fork and wait.
pub(crate) const FCW: Kind = Kind {
    name: "fcw",
    about: "fork and wait: a child is forked, stores to a few pages, and exits",
    parameters: &[OWN, TOUCHED],
    density: 690,
    instructions: Confidence::Documented,
    exposed: None,
    life: None,
    build: |values, kernel| {
        let areas = parent(values, kernel);
        Box::new(Fcw { areas, touched: values.get("touched") })
    },
};

/// A process with these areas, so many of each mapped, that runs first.
fn start(kernel: &mut Kernel, areas: &[Area], mapped: u64) {
    let process = kernel.spawn(areas);
    for area in areas {
        let end = area.end.min(area.start + (mapped << 12));
        kernel.populate(process, Area { end, ..*area });
    }
    kernel.populate(process, Area { start: STACK - 4 * 4096, ..stack(areas) });
    kernel.run_first(process);
}

/// The parent of `pcd` and `fcw`: its private pages are its heap.
fn parent(values: &Values, kernel: &mut Kernel) -> Vec<Area> {
    let areas = program(2, 16, 8, values.get("pages"), false);
    start(kernel, &areas, values.get("pages"));
    areas
}

/// A child stores to its stack, the library's data, its own data and its heap, page after page.
fn touch(kernel: &mut Kernel, areas: &[Area], pages: u64) {
    for nth in 0..pages {
        let area = match nth % 4 {
            0 => Area { start: STACK - 4 * 4096, ..stack(areas) },
            1 => areas[4],
            2 => areas[1],
            _ => areas[2],
        };
        let page = (nth / 4) % area.pages();
        kernel.access(Does::Fetch, LIBRARY + ((nth * 37 % 450) << 12), 8);
        kernel.access(Does::Store, area.end - 4096 - (page << 12) + 64, 8);
    }
}

struct Segv;

impl Workload for Segv {
    fn step(&mut self, kernel: &mut Kernel) {
        kernel.access(Does::Fetch, TEXT, 8);
        kernel.access(Does::Load, DATA, 8);
        kernel.signalled(0x10, Does::Load);
        // The handler, and the return from the signal.
        kernel.access(Does::Fetch, TEXT + 0x400, 8);
        kernel.access(Does::Store, STACK - 0x800, 8);
    }
}

struct Fcw {
    areas: Vec<Area>,
    touched: u64,
}

impl Workload for Fcw {
    fn step(&mut self, kernel: &mut Kernel) {
        let parent = kernel.current();
        kernel.access(Does::Fetch, TEXT, 20);
        kernel.access(Does::Store, STACK - 0x800, 20);
        let child = kernel.fork();
        kernel.switch(child);
        touch(kernel, &self.areas, self.touched);
        kernel.exit_to(parent);
        touch(kernel, &self.areas, 4);
    }
}

struct Pcd {
    areas: Vec<Area>,
    touched: u64,
    alive: usize,
    children: std::collections::VecDeque<usize>,
}

impl Workload for Pcd {
    fn step(&mut self, kernel: &mut Kernel) {
        let parent = kernel.current();
        kernel.access(Does::Fetch, TEXT, 20);
        kernel.access(Does::Store, STACK - 0x800, 20);
        let child = kernel.fork();
        self.children.push_back(child);
        kernel.switch(child);
        touch(kernel, &self.areas, self.touched);
        kernel.switch(parent);
        touch(kernel, &self.areas, 2);
        if self.children.len() > self.alive
            && let Some(oldest) = self.children.pop_front()
        {
            kernel.switch(oldest);
            touch(kernel, &self.areas, 2);
            kernel.exit_to(parent);
        }
    }
}

struct Nps {
    processes: Vec<usize>,
    turn: usize,
    touched: u64,
}

impl Workload for Nps {
    fn step(&mut self, kernel: &mut Kernel) {
        kernel.access(Does::Fetch, TEXT, 20);
        kernel.access(Does::Store, STACK - 0x800, 20);
        for page in 0..self.touched {
            kernel.access(Does::Store, super::HEAP + (page << 12), 8);
        }
        self.turn = (self.turn + 1) % self.processes.len();
        kernel.switch(self.processes[self.turn]);
    }
}
