//! `cargo bench` in this folder. One iteration translates 1024 random pages; criterion's
//! throughput line is translations per second.

use std::hint::black_box;

use bench_walk::{flat_image, floor, floor_nested, open};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use memflow::prelude::v1::*;
use slat::format::any::AnyFormat;
use slat::format::npt::Npt;
use slat::format::x86::Controls;
use slat::format::x86::long::{Long, Processor};
use slat::{Access, Gpa, Gva, Regime, Spa, Stage, Steps, translate, walk};
use slat_image::explain::Explainer;
use slat_image::spec::Setup;

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/npt-tdp.slice");
const NESTED_ROOT: u64 = 0x4bb_6000;
const GUEST_ROOT: u64 = 0x1000;
const BATCH: usize = 1024;

/// Pages of `start..start + pages * 4096` in a random order (xorshift, fixed seed).
fn pages(start: u64, pages: u64) -> Vec<u64> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    (0..BATCH)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            start + state % pages * 4096
        })
        .collect()
}

fn one_stage(c: &mut Criterion, name: &str, addresses: &[u64], flat: &[u8]) {
    let image = open(flat.to_vec());
    let regime = Regime::default();
    let access = Access::default();
    let npt = Npt::four(true, Processor::default());
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Elements(BATCH as u64));

    for &address in addresses {
        assert!(floor(flat, NESTED_ROOT, address).is_some(), "{address:#x} is mapped");
    }
    group.bench_function("floor (no checks)", |b| {
        b.iter(|| {
            for &address in addresses {
                black_box(floor(flat, NESTED_ROOT, black_box(address)));
            }
        });
    });
    let stage = Stage::<_, Gpa, Spa>::new(npt, NESTED_ROOT);
    group.bench_function("slat", |b| {
        let mut memory = image.read_only();
        b.iter(|| {
            for &address in addresses {
                let address = Gpa::new(black_box(address));
                let found = walk(&stage, &mut memory, address, &access, &regime, &());
                black_box(found.map(|mapped| mapped.output)).ok();
            }
        });
    });
    group.bench_function("slat with observer", |b| {
        let mut memory = image.read_only();
        let steps = Steps::<64>::default();
        b.iter(|| {
            for &address in addresses {
                steps.clear();
                let address = Gpa::new(black_box(address));
                let found = walk(&stage, &mut memory, address, &access, &regime, &steps);
                black_box(found.map(|mapped| mapped.output)).ok();
            }
            black_box(steps.count());
        });
    });
    let any = Stage::<_, Gpa, Spa>::new(AnyFormat::Npt(npt, NESTED_ROOT), ());
    group.bench_function("slat, format chosen at run time", |b| {
        let mut memory = image.read_only();
        b.iter(|| {
            for &address in addresses {
                let address = Gpa::new(black_box(address));
                let found = walk(&any, &mut memory, address, &access, &regime, &());
                black_box(found.map(|mapped| mapped.output)).ok();
            }
        });
    });
    let explainer = Explainer::new(Setup::parse(None, Some("npt4:0x4bb6000")).unwrap());
    group.bench_function("slat walk, in words", |b| {
        b.iter(|| {
            for &address in addresses {
                black_box(explainer.explain(image.read_only(), black_box(address), &access));
            }
        });
    });
    let mut copy = flat.to_vec();
    let len = copy.len() as umem;
    let map = MemoryMap::new();
    let mut map: MemoryMap<&mut [u8]> = {
        let mut map = map;
        map.push(Address::from(0u64), &mut copy[..]);
        map
    };
    let _ = len;
    let mut memory = MappedPhysicalMemory::with_info(map_from(&mut map));
    let translator = memflow::architecture::x86::x64::new_translator(Address::from(NESTED_ROOT));
    let mut virt = VirtualDma::new(
        memory.forward_mut(),
        memflow::architecture::x86::x64::ARCH,
        translator,
    );
    group.bench_function("memflow", |b| {
        b.iter(|| {
            for &address in addresses {
                black_box(virt.virt_to_phys(Address::from(black_box(address)))).ok();
            }
        });
    });
    group.finish();
}

fn map_from<'a>(map: &mut MemoryMap<&'a mut [u8]>) -> MemoryMap<&'a mut [u8]> {
    std::mem::take(map)
}

fn two_stages(c: &mut Criterion, name: &str, addresses: &[u64], flat: &[u8]) {
    let image = open(flat.to_vec());
    let regime = Regime::default();
    let access = Access::default();
    let stage2 = Stage::<_, Gpa, Spa>::new(Npt::four(true, Processor::default()), NESTED_ROOT);
    let long = Long::four(Controls { nxe: true, ..Controls::default() }, Processor::default());
    let stage1 = Stage::<_, Gva, Gpa>::new(long, GUEST_ROOT);
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Elements(BATCH as u64));
    for &address in addresses {
        let mapped = floor_nested(flat, NESTED_ROOT, GUEST_ROOT, address);
        assert!(mapped.is_some(), "{address:#x} is mapped");
    }
    group.bench_function("floor (no checks)", |b| {
        b.iter(|| {
            for &address in addresses {
                black_box(floor_nested(flat, NESTED_ROOT, GUEST_ROOT, black_box(address)));
            }
        });
    });
    group.bench_function("slat", |b| {
        let mut memory = image.read_only();
        b.iter(|| {
            for &address in addresses {
                let gva = Gva::new(black_box(address));
                let found = translate(&stage1, &stage2, &mut memory, gva, &access, &regime, &());
                black_box(found.map(|found| found.output())).ok();
            }
        });
    });
    group.bench_function("slat with observer", |b| {
        let mut memory = image.read_only();
        let steps = Steps::<64>::default();
        b.iter(|| {
            for &address in addresses {
                steps.clear();
                let gva = Gva::new(black_box(address));
                let found =
                    translate(&stage1, &stage2, &mut memory, gva, &access, &regime, &steps);
                black_box(found.map(|found| found.output())).ok();
            }
            black_box(steps.count());
        });
    });
    let setup = Setup::parse(Some("x86-4:0x1000"), Some("npt4:0x4bb6000")).unwrap();
    let explainer = Explainer::new(setup);
    group.bench_function("slat walk, in words", |b| {
        b.iter(|| {
            for &address in addresses {
                black_box(explainer.explain(image.read_only(), black_box(address), &access));
            }
        });
    });
    group.finish();
}

fn all(c: &mut Criterion) {
    let flat = flat_image(FIXTURE);
    // GPA 32 to 64 MiB is mapped by 4 KiB pages, 4 to 12 MiB by 2 MiB pages (see truth.json).
    one_stage(c, "one stage, 4K", &pages(32 << 20, 2048), &flat);
    one_stage(c, "one stage, 2M", &pages(4 << 20, 2048), &flat);
    two_stages(c, "two stages, 4K", &pages(32 << 20, 2048), &flat);
    two_stages(c, "two stages, 2M", &pages(4 << 20, 1024), &flat);
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = all
}
criterion_main!(benches);
