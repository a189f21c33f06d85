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
    life: Some(life),
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
        let mut terminal = Terminal {
            manager: process,
            program: program(3, 4_000, 300, heap, false),
            sessions: (0..values.get("sessions"))
                .map(|_| Session { programs: Vec::new(), tasks: 0 })
                .collect(),
            turn: 0,
            programs: values.get("programs") as usize,
            start,
            tasks,
            work: values.get("work"),
            pages,
        };
        terminal.spread(kernel);
        terminal
    }

    /// Before the recording begins each session has come as far as it is in a server that has long been
    /// running: evenly spread over what happens from log-on to log-off.
    fn spread(&mut self, kernel: &mut Kernel) {
        let (sessions, life) = (self.sessions.len() as u64, self.programs as u64 + self.tasks + 1);
        for nth in 0..sessions {
            self.turn = nth as usize;
            for _ in 0..nth * life / sessions {
                self.one(kernel);
            }
        }
        kernel.run_first(self.manager);
    }

    /// What the session whose turn it is does next.
    fn one(&mut self, kernel: &mut Kernel) {
        let session = &self.sessions[self.turn];
        if session.tasks == 0 && session.programs.len() < self.programs {
            self.log_on(kernel);
        } else if session.tasks >= self.tasks {
            self.log_off(kernel);
        } else {
            self.task(kernel);
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
        self.one(kernel);
    }
}

/// Accesses in which as much happens as in a session from log-on to log-off: of several sessions each comes
/// a part as far.
fn life(values: &Values) -> u64 {
    let (tasks, programs) = (values.get("tasks"), values.get("programs"));
    // A page that is touched first: the fault's own accesses, and the lines that are cleared.
    let page = 100;
    let task = values.get("work") * TERMINAL.density / 1_000 + values.get("pages") * page;
    tasks * task + programs * values.get("start") * page
}

#[cfg(test)]
mod tests {
    use slat_trace::Event;

    use super::*;
    use crate::generated::workloads::life_of;

    /// A server with sessions that do little: page faults, instructions, log-ons, tasks and log-offs of so
    /// many accesses, after a third as many.
    fn counted(choices: &[&str], accesses: u64) -> (u64, u64, [u64; 3]) {
        let parameters: Vec<_> = TERMINAL
            .parameters
            .iter()
            .chain(crate::generated::parameter::COMMON)
            .copied()
            .collect();
        let values = Values::parse(&parameters, choices.iter().copied()).unwrap();
        let mut kernel = Kernel::new(256 << 20, TERMINAL.density, 1);
        let mut terminal = Terminal::new(&values, &mut kernel);
        kernel.begin();
        let (mut faults, mut instructions, mut done) = (0, 0, [0; 3]);
        let mut given = 0;
        while given < accesses + accesses / 3 {
            let turn = (terminal.turn + 1) % terminal.sessions.len();
            let before = (terminal.sessions[turn].programs.len(), terminal.sessions[turn].tasks);
            terminal.step(&mut kernel);
            let after = (terminal.sessions[turn].programs.len(), terminal.sessions[turn].tasks);
            if given >= accesses / 3 {
                instructions += kernel.out.instructions;
                let fault = |at: &&slat_trace::At| matches!(at.event, Event::Exception(_));
                faults += kernel.out.events.iter().filter(fault).count() as u64;
                let what = if after.0 > before.0 {
                    0
                } else if after.0 < before.0 {
                    2
                } else {
                    1
                };
                done[what] += 1;
            }
            given += kernel.out.accesses.len() as u64;
            kernel.out.clear();
        }
        assert!(kernel.failed().is_none());
        (faults, instructions, done)
    }

    #[test]
    fn whole_sessions_are_counted_and_fault_as_often_as_they_must() {
        let choices =
            ["sessions=8", "programs=2", "start=60", "tasks=40", "work=400000", "pages=4"];
        let parameters: Vec<_> = TERMINAL
            .parameters
            .iter()
            .chain(crate::generated::parameter::COMMON)
            .copied()
            .collect();
        let values = Values::parse(&parameters, choices.into_iter()).unwrap();
        // So short lives begin and end at the edges of what is counted: of four that makes little.
        let (faults, instructions, done) = counted(&choices, 4 * life_of(&TERMINAL, &values));
        let [on, tasks, off] = done;
        assert!(on >= 4 && off >= 2 && tasks >= 100, "{done:?}");
        // Of a whole session: a page of heap each, a file's pages sixteen at a time; and its instructions.
        let programs = 2.0;
        let session_faults = programs * (60.0 + 1.0) + 40.0 * 4.0;
        let starts = programs * 75.0 * 20_000.0;
        let session = starts + 40.0 * 400_000.0;
        let expected = session_faults / session;
        let found = faults as f64 / instructions as f64;
        assert!((found / expected - 1.0).abs() < 0.2, "{found:e} for {expected:e}, {done:?}");
    }

    #[test]
    fn sessions_begin_spread_over_their_lives() {
        let choices = ["sessions=4", "programs=2", "start=20", "tasks=30", "work=4000"];
        let parameters: Vec<_> = TERMINAL
            .parameters
            .iter()
            .chain(crate::generated::parameter::COMMON)
            .copied()
            .collect();
        let values = Values::parse(&parameters, choices.into_iter()).unwrap();
        let mut kernel = Kernel::new(256 << 20, TERMINAL.density, 1);
        let terminal = Terminal::new(&values, &mut kernel);
        assert!(kernel.out.is_empty(), "nothing of it is recorded");
        let at: Vec<_> =
            terminal.sessions.iter().map(|one| (one.programs.len(), one.tasks)).collect();
        assert_eq!(at, [(0, 0), (2, 6), (2, 14), (2, 22)]);
    }
}
