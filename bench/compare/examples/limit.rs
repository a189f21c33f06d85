//! Recorded accesses a second of one nested scheme beside its limit, in the same run: the tags of the
//! processor's TLBs and walk caches alone (`bench/probe`), asked by the same accesses from memory.
//!
//! `cargo run --release --example limit` does all in turns and prints the fastest of each: the decoder
//! alone; the scheme as `slat compare` runs it, from the file; the same with each access run by itself,
//! stretches of hits too; the first from batches that were decoded before; the limit; the limit with the
//! tags of the data caches, which the scheme keeps too; and with the lines of table entries in those, as
//! the scheme has them.

use std::error::Error;
use std::hint::black_box;
use std::time::Instant;

use slat_bench_probe::Probe;
use slat_sim::compare::{Options, Scheme, compare};
use slat_sim::memory::Physical;
use slat_sim::preset::Processor;
use slat_trace::recording::{self, Recording};
use slat_trace::{Access, Batch, Kind, Machine, Source};

const TURNS: u32 = 7;

/// Batches in memory, handed out without a copy.
struct Decoded {
    machine: Machine,
    batches: Vec<Batch>,
    next: usize,
}

impl Decoded {
    fn new<S: Source>(mut source: S) -> Result<Decoded, S::Error> {
        let mut batches = Vec::new();
        loop {
            let mut batch = Batch::default();
            if !source.next(&mut batch)? {
                return Ok(Decoded { machine: source.machine().clone(), batches, next: 0 });
            }
            batches.push(batch);
        }
    }

    fn rewind(&mut self) {
        self.next = 0;
    }
}

impl Source for Decoded {
    type Error = std::convert::Infallible;

    fn machine(&self) -> &Machine {
        &self.machine
    }

    fn next(&mut self, batch: &mut Batch) -> Result<bool, Self::Error> {
        // What was handed out last comes back.
        if let Some(last) = self.next.checked_sub(1) {
            std::mem::swap(&mut self.batches[last], batch);
        }
        let Some(next) = self.batches.get_mut(self.next) else { return Ok(false) };
        std::mem::swap(next, batch);
        self.next += 1;
        Ok(true)
    }
}

fn kind(access: &Access) -> slat::Kind {
    match access.kind() {
        Kind::Load => slat::Kind::Read,
        Kind::Store => slat::Kind::Write,
        Kind::Fetch => slat::Kind::Execute,
    }
}

/// Runs all accesses through the probe, and through `data` what else is done with each: with whether it
/// is the guest's, or a walk's.
fn limit(probe: &mut Probe, batches: &[Batch], mut data: impl FnMut(u64, bool)) -> u64 {
    let mut references = 0;
    for access in batches.iter().flat_map(|batch| &batch.accesses) {
        references += probe.access(access.va, kind(access), |entry| data(entry.address(), false));
        data(access.va, true);
        if access.crosses() {
            let va = (access.va | 0xfff).wrapping_add(1);
            references += probe.access(va, kind(access), |entry| data(entry.address(), false));
            data(va, true);
        }
    }
    references
}

/// The fastest turn so far, in seconds, of each thing that is measured.
struct Fastest([f64; 7]);

impl Fastest {
    fn turn<T>(&mut self, what: usize, run: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let made = black_box(run());
        self.0[what] = self.0[what].min(started.elapsed().as_secs_f64());
        made
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let processor = Processor::bundled("skylake-sp")?;
    let (tlb, walker) = (processor.tlb_config(), processor.walker_config());
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    println!(
        "{:<20}{:>8}{:>8}{:>12}{:>13}{:>8}{:>13}{:>13}",
        "M accesses/s",
        "decode",
        "scheme",
        "one by one",
        "from memory",
        "limit",
        "data caches",
        "table lines"
    );
    for name in ["chase-4k", "sqlite"] {
        let path = format!("{}/../../recordings/{name}.slat", env!("CARGO_MANIFEST_DIR"));
        let recording = Recording::open(path)?;
        let open = || recording.reader(&recording::Options::default());
        let mut decoded = Decoded::new(open()?)?;
        for shift in [12, 21] {
            let schemes = Some(vec![Scheme::Ept(shift)]);
            let options = Options { schemes, ..Options::default() };
            let mut fastest = Fastest([f64::INFINITY; 7]);
            for _ in 0..TURNS {
                fastest.turn(0, || {
                    let (mut reader, mut batch) = (open()?, Batch::default());
                    while reader.next(&mut batch)? {
                        black_box(batch.accesses.len());
                    }
                    Ok::<_, recording::Error>(())
                })?;
                fastest.turn(1, || {
                    let mut reader = open()?;
                    one.install(|| compare(&mut reader, &processor, &options, |_| true))?;
                    Ok::<_, Box<dyn Error>>(())
                })?;
                fastest.turn(2, || {
                    let mut reader = open()?;
                    let options = Options { one_by_one: true, ..options.clone() };
                    one.install(|| compare(&mut reader, &processor, &options, |_| true))?;
                    Ok::<_, Box<dyn Error>>(())
                })?;
                decoded.rewind();
                fastest.turn(3, || {
                    one.install(|| compare(&mut decoded, &processor, &options, |_| true))
                })?;
                let probe = || Probe::new(&tlb, &walker, shift).map_err(|error| error.to_string());
                let caches = || {
                    Physical::new(&processor.caches, false, shift, 0, 1, 0..1 << 40)
                        .map_err(|error| error.to_string())
                };
                let (mut probe, mut probe_of_data, mut probe_of_all) =
                    (probe()?, probe()?, probe()?);
                let (mut data, mut all) = (caches()?, caches()?);
                fastest.turn(4, || limit(&mut probe, &decoded.batches, |_, _| ()));
                fastest.turn(5, || {
                    let mut pass = |va, of_guest| {
                        if of_guest {
                            data.data(va)
                        }
                    };
                    limit(&mut probe_of_data, &decoded.batches, &mut pass);
                    data.data
                });
                fastest.turn(6, || {
                    limit(&mut probe_of_all, &decoded.batches, |va, _| all.data(va));
                    all.data
                });
            }
            let rate = |seconds: f64| recording.accesses() as f64 / seconds / 1e6;
            let [decode, scheme, single, memory, limit, data, all] = fastest.0.map(rate);
            println!(
                "{:<20}{decode:>8.1}{scheme:>8.1}{single:>12.1}{memory:>13.1}{limit:>8.1}{data:>13.1}{all:>13.1}",
                format!("{name}, ept 2^{shift}")
            );
        }
    }
    Ok(())
}
