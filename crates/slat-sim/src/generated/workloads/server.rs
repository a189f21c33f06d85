//! Servers: a database of many processes, a Java server, one that waits for its network.

use slat_trace::Kind as Does;

use super::{Area, Backing, HEAP, Kind, SHARED, STACK, TEXT, Workload, program, stack};
use crate::generated::kernel::Kernel;
use crate::generated::parameter::{Values, parameter};
use crate::preset::Confidence;

/// A database server with a process a client.
pub(crate) const OLTP: Kind = Kind {
    name: "oltp",
    about: "a database of many processes that share a buffer cache and switch often",
    parameters: &[
        parameter("servers", 12, (1, 1_000), "server processes; not sourced"),
        parameter(
            "cache",
            64,
            (1, 16_384),
            "MiB of shared buffer cache, mapped by all; not sourced",
        ),
        parameter(
            "work",
            400_000,
            (1_000, 100_000_000),
            "instructions between two switches; not sourced: 2,000 to 7,000 switches a second",
        ),
        parameter(
            "pages",
            8,
            (0, 10_000),
            "private pages mapped, touched and unmapped a transaction of four switches; not sourced",
        ),
    ],
    density: 100,
    instructions: Confidence::Assumed,
    exposed: None,
    life: None,
    build: |values, kernel| Box::new(Oltp::new(values, kernel)),
};

/// A Java server.
pub(crate) const JBB: Kind = Kind {
    name: "jbb",
    about: "a Java server in one process: objects allocated in order, old ones read at random",
    parameters: &[
        parameter("heap", 512, (8, 16_384), "MiB of heap, all of it mapped"),
        parameter("huge", 0, (0, 1), "1: transparent huge pages in the guest"),
    ],
    density: 690,
    instructions: Confidence::Documented,
    exposed: None,
    life: None,
    build: |values, kernel| {
        let pages = values.get("heap") << 8;
        let areas = program(2, 3_000, 100, pages, values.get("huge") == 1);
        let process = kernel.spawn(&areas);
        areas.iter().for_each(|&area| kernel.populate(process, area));
        kernel.run_first(process);
        Box::new(Jbb { pages, next: 0 })
    },
};

/// One that mostly waits.
pub(crate) const IO: Kind = Kind {
    name: "io",
    about: "a server that answers one request after another and waits for the network between them",
    parameters: &[
        parameter(
            "wait",
            1_380,
            (0, 10_000_000),
            "microseconds waited a request; netperf TCP_RR at 710 a second takes 1,408 in all \
             (Xiao Guangrong 2011)",
        ),
        parameter(
            "work",
            20_000,
            (100, 100_000_000),
            "instructions of its own a request; not sourced",
        ),
    ],
    density: 690,
    instructions: Confidence::Assumed,
    exposed: None,
    life: None,
    build: |values, kernel| Box::new(Io::new(values, kernel)),
};

struct Oltp {
    servers: Vec<usize>,
    turn: usize,
    cache_pages: u64,
    work: u64,
    pages: u64,
    phase: u64,
}

impl Oltp {
    fn new(values: &Values, kernel: &mut Kernel) -> Oltp {
        let cache_pages = values.get("cache") << 8;
        let mut areas = program(2, 8_000, 400, 200, false);
        let own_stack = areas.pop().unwrap_or_else(|| unreachable!("a program has a stack"));
        areas.push(Area {
            start: SHARED,
            end: SHARED + (cache_pages << 12),
            backing: Backing::Shared { file: 9, first: 0 },
            writable: true,
            executable: false,
        });
        areas.push(own_stack);
        let servers: Vec<usize> = (0..values.get("servers"))
            .map(|_| {
                let process = kernel.spawn(&areas);
                areas.iter().for_each(|&area| kernel.populate(process, area));
                process
            })
            .collect();
        kernel.run_first(servers[0]);
        Oltp {
            servers,
            turn: 0,
            cache_pages,
            work: values.get("work"),
            pages: values.get("pages"),
            phase: 0,
        }
    }
}

/// Where work areas are mapped.
const WORK: u64 = 0x3000_0000_0000;

impl Workload for Oltp {
    fn step(&mut self, kernel: &mut Kernel) {
        let cache = self.cache_pages;
        kernel.compute(self.work, (TEXT, 2 << 20), |kernel| {
            let kind = if kernel.random.one_in(4) { Does::Store } else { Does::Load };
            let at = kernel.random.below(512) * 8;
            match kernel.random.below(10) {
                0..=4 => (kind, STACK - 4096 + at),
                5..=6 => (kind, HEAP + (kernel.random.skewed(200) << 12) + at),
                _ => (kind, SHARED + (kernel.random.skewed(cache) << 12) + at),
            }
        });
        self.phase += 1;
        if self.phase.is_multiple_of(4) && self.pages > 0 {
            let end = WORK + (self.pages << 12);
            let backing = Backing::Anonymous { huge: false };
            kernel.map(Area { start: WORK, end, backing, writable: true, executable: false });
            for page in 0..self.pages {
                kernel.access(Does::Store, WORK + (page << 12), 200);
            }
            kernel.unmap(WORK, end);
        }
        self.turn = (self.turn + 1 + kernel.random.below(3) as usize) % self.servers.len();
        kernel.switch(self.servers[self.turn]);
    }
}

struct Jbb {
    pages: u64,
    next: u64,
}

impl Workload for Jbb {
    fn step(&mut self, kernel: &mut Kernel) {
        let pages = self.pages;
        let mut next = self.next;
        kernel.compute(4_000, (TEXT, 4 << 20), |kernel| {
            let at = kernel.random.below(512) * 8;
            match kernel.random.below(20) {
                // New objects, one after the other, in the youngest quarter.
                0..=3 => {
                    next = (next + 24) % ((pages / 4) << 12);
                    (Does::Store, HEAP + next)
                }
                // Old ones: few are read often.
                4..=5 => (
                    Does::Load,
                    HEAP + ((pages / 4 + kernel.random.skewed(pages * 3 / 4)) << 12) + at,
                ),
                _ => (Does::Load, STACK - 4096 + at),
            }
        });
        self.next = next;
    }
}

struct Io {
    wait: u64,
    work: u64,
    server: usize,
    idle: usize,
}

impl Io {
    fn new(values: &Values, kernel: &mut Kernel) -> Io {
        let areas = program(2, 60, 20, 64, false);
        let mut make = || {
            let process = kernel.spawn(&areas);
            areas.iter().for_each(|&area| kernel.populate(process, area));
            process
        };
        let (server, idle) = (make(), make());
        kernel.populate(server, stack(&areas));
        kernel.run_first(server);
        Io { wait: values.get("wait"), work: values.get("work"), server, idle }
    }
}

impl Workload for Io {
    fn step(&mut self, kernel: &mut Kernel) {
        kernel.compute(self.work, (TEXT, 128 << 10), |kernel| {
            let at = kernel.random.below(512) * 8;
            (Does::Load, HEAP + (kernel.random.skewed(64) << 12) + at)
        });
        kernel.wait_for_device(self.wait * 1_000);
        // Another process runs for a moment: a daemon, or the kernel's own work.
        kernel.switch(self.idle);
        kernel.call(500);
        kernel.switch(self.server);
    }
}
