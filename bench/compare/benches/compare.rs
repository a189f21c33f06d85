//! `cargo bench` in this folder. Criterion's throughput line is recorded accesses per second: loads,
//! stores and fetches before any compaction. Each scheme runs alone on one thread and decodes the
//! recording itself, so that `decode` is the floor that is in every figure.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use slat_mmu::shadow::Discipline;
use slat_sim::compare::{Options, Scheme, compare};
use slat_sim::preset::Processor;
use slat_trace::recording::{self, Reader, Recording};
use slat_trace::{Batch, Source};

fn reader(name: &str) -> (Reader, u64) {
    let path = format!("{}/../../recordings/{name}.slat", env!("CARGO_MANIFEST_DIR"));
    let recording = Recording::open(path).expect("it is bundled");
    let reader = recording.reader(&recording::Options::default()).expect("it is readable");
    (reader, recording.accesses())
}

fn one(c: &mut Criterion, name: &str) {
    let mut group = c.benchmark_group(name);
    group.sample_size(10);
    group.throughput(Throughput::Elements(reader(name).1));
    group.bench_function("decode", |b| {
        b.iter(|| {
            let (mut reader, _) = reader(name);
            let mut batch = Batch::default();
            let mut count = 0;
            while reader.next(&mut batch).expect("it is whole") {
                count += batch.accesses.len();
            }
            black_box(count)
        });
    });
    let processor = Processor::bundled("skylake-sp").expect("it is bundled");
    let pool = rayon_pool();
    for scheme in [
        Scheme::Native,
        Scheme::Shadow(Discipline::OutOfSync),
        Scheme::Ept(12),
        Scheme::Ept(21),
        Scheme::Npt(21),
    ] {
        let options = Options { schemes: Some(vec![scheme]), ..Options::default() };
        let page = scheme.host_shift().map_or(String::new(), |shift| format!(" 2^{shift}"));
        group.bench_function(format!("{}{page}", scheme.name()), |b| {
            b.iter(|| {
                let (mut reader, _) = reader(name);
                pool.install(|| compare(&mut reader, &processor, &options, |_| true))
                    .expect("the recording runs")
            });
        });
    }
    // Nine schemes of x86, and what the command runs: two transcribed ones and two what-ifs besides.
    let command = Options { transcribed: true, what_ifs: true, ..Options::default() };
    for (what, options) in [("nine at once", Options::default()), ("thirteen at once", command)] {
        group.bench_function(what, |b| {
            b.iter(|| {
                let (mut reader, _) = reader(name);
                pool.install(|| compare(&mut reader, &processor, &options, |_| true))
                    .expect("the recording runs")
            });
        });
    }
    group.finish();
}

fn rayon_pool() -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread starts")
}

fn benches(c: &mut Criterion) {
    for name in ["sqlite", "chase-4k"] {
        one(c, name);
    }
}

criterion_group!(all, benches);
criterion_main!(all);
