//! A terminal server: sessions that log on, work in several programs, and log off.

use slat_trace::Kind as Does;

use super::{Area, HEAP, Kind, STACK, TEXT, Workload, program};
use crate::generated::kernel::Kernel;
use crate::generated::parameter::{Values, parameter};
use crate::preset::Confidence;

/// A terminal server.
pub(crate) const TERMINAL: Kind = Kind {
    name: "terminal",
    about: "a terminal server: sessions log on, work in several programs, and log off",
    parameters: &[
        parameter("sessions", 8, (1, 500), "sessions at a time; not sourced"),
        parameter("programs", 4, (1, 64), "programs a session starts; not sourced"),
        parameter(
            "start",
            1_500,
            (10, 100_000),
            "pages that a program touches while it starts; not sourced: 6 MiB",
        ),
        parameter(
            "tasks",
            400,
            (1, 1_000_000),
            "tasks from log-on to log-off, each in one program; not sourced",
        ),
        parameter(
            "work",
            2_700_000,
            (1_000, 1_000_000_000),
            "instructions a task, after which another process runs; 1,000 switches a second, \
             VMware's figure for busy guests (100 to 1,000)",
        ),
        parameter("pages", 8, (0, 10_000), "new pages a task touches; not sourced"),
    ],
    density: 10,
    instructions: Confidence::Assumed,
    exposed: None,
    build: |values, kernel| Box::new(Terminal::new(values, kernel)),
};

struct Session {
    /// Its processes, and how many pages of the heap each has touched.
    programs: Vec<(usize, u64)>,
    tasks: u64,
}

struct Terminal {
    manager: usize,
    program: Vec<Area>,
    sessions: Vec<Session>,
    turn: usize,
    programs: usize,
    start: u64,
    tasks: u64,
    work: u64,
    pages: u64,
}

impl Terminal {
    fn new(values: &Values, kernel: &mut Kernel) -> Terminal {
        let manager = program(2, 60, 20, 100, false);
        let process = kernel.spawn(&manager);
        manager.iter().for_each(|&area| kernel.populate(process, area));
        kernel.run_first(process);
        let (start, tasks, pages) = (values.get("start"), values.get("tasks"), values.get("pages"));
        let heap = start + (tasks + 1) * pages + 1;
        Terminal {
            manager: process,
            program: program(3, 4_000, 300, heap, false),
            // Sessions do not all begin at once.
            sessions: (0..values.get("sessions"))
                .map(|nth| Session {
                    programs: Vec::new(),
                    tasks: nth * tasks / values.get("sessions").max(1),
                })
                .collect(),
            turn: 0,
            programs: values.get("programs") as usize,
            start,
            tasks,
            work: values.get("work"),
            pages,
        }
    }

    /// Starts one more program of the session.
    fn log_on(&mut self, kernel: &mut Kernel) {
        kernel.switch(self.manager);
        let child = kernel.fork();
        kernel.switch(child);
        kernel.exec(&self.program);
        for page in 0..self.start / 4 {
            // A quarter of what it touches is text and data of its file, in fault-around's pieces.
            kernel.access(Does::Fetch, TEXT + ((page % 4_000) << 12), 20_000);
        }
        for page in 0..self.start {
            kernel.access(Does::Store, HEAP + (page << 12), 20_000);
        }
        self.sessions[self.turn].programs.push((child, self.start));
    }

    fn log_off(&mut self, kernel: &mut Kernel) {
        for (process, _) in std::mem::take(&mut self.sessions[self.turn].programs) {
            kernel.switch(process);
            kernel.exit_to(self.manager);
        }
        self.sessions[self.turn].tasks = 0;
    }

    fn task(&mut self, kernel: &mut Kernel) {
        let session = &mut self.sessions[self.turn];
        session.tasks += 1;
        let nth = kernel.random.below(session.programs.len() as u64) as usize;
        let (process, pages) = &mut session.programs[nth];
        kernel.switch(*process);
        for _ in 0..self.pages {
            kernel.access(Does::Store, HEAP + (*pages << 12), 1_000);
            *pages += 1;
        }
        let heap = *pages;
        kernel.compute(self.work, (TEXT, 1 << 20), |kernel| {
            let kind = if kernel.random.one_in(3) { Does::Store } else { Does::Load };
            let at = kernel.random.below(512) * 8;
            match kernel.random.below(10) {
                0..=4 => (kind, STACK - 4096 + at),
                _ => (kind, HEAP + ((heap - 1 - kernel.random.skewed(heap)) << 12) + at),
            }
        });
    }
}

impl Workload for Terminal {
    fn step(&mut self, kernel: &mut Kernel) {
        self.turn = (self.turn + 1) % self.sessions.len();
        let session = &self.sessions[self.turn];
        if session.programs.len() < self.programs {
            self.log_on(kernel);
        } else if session.tasks >= self.tasks {
            self.log_off(kernel);
        } else {
            self.task(kernel);
        }
    }
}
