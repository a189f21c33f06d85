//! `cargo run --release [ROWS [TURNS [TABLES]]]` prints millions of translations a second and how many times
//! longer than the floor each takes, for one stage and for two, over real tables of KVM.
//!
//! All rows of a table take turns, and the fastest turn of each counts, so that other work on the
//! machine disturbs none of them alone. `ROWS` and `TABLES` select by a part of the name; few `TURNS`
//! are for counting instructions.

use std::hint::black_box;

use bench_walk::floor::{bare, bare_nested, checked};
use bench_walk::table::{Contender, Run, Turn};
use bench_walk::world::{World, streams};
use slat::format::Format;
use slat::format::any::AnyFormat;
use slat::format::ept::{Ept, Features};
use slat::format::npt::Npt;
use slat::format::x86::Controls;
use slat::format::x86::long::{Long, Processor};
use slat::{
    Access, Gpa, Gva, Kind, Observer, Privilege, Regime, Spa, Stage, Steps, translate, walk,
};
use slat_image::Image;
use slat_image::explain::Explainer;
use slat_image::spec::Setup;

const GUEST_ROOT: u64 = 0x1000;
const NPT_ROOT: u64 = 0x4bb_6000;
const EPT_ROOT: u64 = 0x690_5000;

/// A user's read, which is what a nested access is.
const ACCESS: Access = Access::new(Kind::Read, Privilege::User);
/// The guests' own tables are the kernel's.
const KERNEL: Access = Access::new(Kind::Read, Privilege::Supervisor);

fn one_stage<'a, F: Format + 'a, W: Observer + 'a>(
    image: &'a Image,
    format: F,
    root: F::Root,
    observer: W,
    again: impl Fn(&W) + 'a,
) -> Turn<'a> {
    let stage = Stage::<F, Gpa, Spa>::new(format, root);
    let regime = Regime::default();
    let mut memory = image.read_only();
    Box::new(move |addresses| {
        addresses.iter().fold(0, |sum, &address| {
            again(&observer);
            let address = Gpa::new(black_box(address));
            let found = walk(&stage, &mut memory, address, &ACCESS, &regime, &observer);
            sum ^ found.map_or(0, |mapped| mapped.output.raw())
        })
    })
}

fn two_stages<'a, F1: Format + 'a, F2: Format + 'a, W: Observer + 'a>(
    image: &'a Image,
    (format1, root1): (F1, F1::Root),
    (format2, root2): (F2, F2::Root),
    observer: W,
    again: impl Fn(&W) + 'a,
) -> Turn<'a> {
    let stage1 = Stage::<F1, Gva, Gpa>::new(format1, root1);
    let stage2 = Stage::<F2, Gpa, Spa>::new(format2, root2);
    let regime = Regime::default();
    let mut memory = image.read_only();
    Box::new(move |addresses| {
        addresses.iter().fold(0, |sum, &address| {
            again(&observer);
            let gva = Gva::new(black_box(address));
            let found =
                translate(&stage1, &stage2, &mut memory, gva, &KERNEL, &regime, &observer);
            sum ^ found.map_or(0, |found| found.output().raw())
        })
    })
}

fn in_words<'a>(image: &'a Image, stage1: Option<&str>, stage2: Option<&str>) -> Turn<'a> {
    let explainer = Explainer::new(Setup::parse(stage1, stage2).expect("the stages parse"));
    Box::new(move |addresses| {
        addresses.iter().fold(0, |sum, &address| {
            let explained = explainer.explain(image.read_only(), black_box(address), &KERNEL);
            sum ^ explained.spa.unwrap_or(0)
        })
    })
}

fn memflow(flat: &[u8], root: u64) -> Turn<'_> {
    use memflow::prelude::v1::*;
    let mut map = MemoryMap::<&'static mut [u8]>::new();
    map.push(Address::from(0u64), flat.to_vec().leak());
    let mut memory = MappedPhysicalMemory::with_info(map);
    let arch = memflow::architecture::x86::x64::ARCH;
    let translator = memflow::architecture::x86::x64::new_translator(Address::from(root));
    Box::new(move |addresses| {
        let mut dma = VirtualDma::new(memory.forward_mut(), arch, translator);
        addresses.iter().fold(0, |sum, &address| {
            let found = dma.virt_to_phys(Address::from(black_box(address)));
            sum ^ found.map_or(0, |found| found.address().to_umem())
        })
    })
}

fn floor<'a>(mut walk: impl FnMut(u64) -> Option<u64> + 'a) -> Turn<'a> {
    Box::new(move |addresses| {
        addresses.iter().fold(0, |sum, &address| sum ^ walk(black_box(address)).unwrap_or(0))
    })
}

/// The rows that every format has: plain, watched, and chosen at run time.
fn rows<'a, F: Format + 'a>(
    image: &'a Image,
    format: F,
    root: F::Root,
    any: AnyFormat,
) -> [Contender<'a>; 4] {
    let keep = Steps::<64>::clear;
    [
        Contender { name: "slat", turn: one_stage(image, format, root, (), |()| ()) },
        Contender {
            name: "slat, every step kept",
            turn: one_stage(image, format, root, Steps::<64>::default(), keep),
        },
        Contender { name: "slat, any format", turn: one_stage(image, any, (), (), |()| ()) },
        Contender {
            name: "slat, any format, steps kept",
            turn: one_stage(image, any, (), Steps::<64>::default(), keep),
        },
    ]
}

/// The same for two stages.
fn nested_rows<'a, F1: Format + 'a, F2: Format + 'a>(
    image: &'a Image,
    one: (F1, F1::Root),
    two: (F2, F2::Root),
    any: [AnyFormat; 2],
) -> [Contender<'a>; 4] {
    let keep = Steps::<64>::clear;
    let any = any.map(|any| (any, ()));
    [
        Contender { name: "slat", turn: two_stages(image, one, two, (), |()| ()) },
        Contender {
            name: "slat, every step kept",
            turn: two_stages(image, one, two, Steps::<64>::default(), keep),
        },
        Contender {
            name: "slat, any format",
            turn: two_stages(image, any[0], any[1], (), |()| ()),
        },
        Contender {
            name: "slat, any format, steps kept",
            turn: two_stages(image, any[0], any[1], Steps::<64>::default(), keep),
        },
    ]
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let only = arguments.next().filter(|only| !only.is_empty());
    let turns = arguments.next().map_or(1000, |turns| turns.parse().expect("TURNS is a number"));
    let tables = arguments.next();
    let run = Run { turns, only, tables };
    println!("millions of translations a second; times the first row's time\n");

    let npt_world = World::open("npt-tdp");
    let (flat, image) = (&npt_world.flat[..], &npt_world.image);
    let ept_world = World::open("ept-bochs");
    let (ept_flat, ept_image) = (&ept_world.flat[..], &ept_world.image);
    let npt = Npt::four(true, Processor::default());
    let of_npt = streams(|address| bare(flat, NPT_ROOT, address));
    let of_ept = streams(|address| bare(ept_flat, EPT_ROOT, address));
    let ept = Ept::four(Features { accessed_dirty: true, ..Features::default() });
    let long = Long::four(Controls { nxe: true, ..Controls::default() }, Processor::default());

    let mut table = vec![
        Contender {
            name: "floor: present, page size",
            turn: floor(move |address| bare(flat, NPT_ROOT, address)),
        },
        Contender {
            name: "floor with rights, reserved bits",
            turn: floor(move |address| checked(flat, NPT_ROOT, address, 52)),
        },
    ];
    table.extend(rows(image, npt, NPT_ROOT, AnyFormat::Npt(npt, NPT_ROOT)));
    table.push(Contender {
        name: "slat walk, in words",
        turn: in_words(image, None, Some("npt4:0x4bb6000")),
    });
    table.push(Contender { name: "memflow", turn: memflow(flat, NPT_ROOT) });
    run.table("one stage, npt4", &of_npt, &mut table);

    // The same tables, read by the rules of stage 1: nested entries are user entries.
    let mut table = vec![Contender {
        name: "floor: present, page size",
        turn: floor(move |address| bare(flat, NPT_ROOT, address)),
    }];
    table.extend(rows(image, long, NPT_ROOT, AnyFormat::Long(long, NPT_ROOT)));
    run.table("one stage, x86-4", &of_npt, &mut table);

    let mut table = vec![Contender {
        name: "floor: present, page size",
        turn: floor(move |address| bare(ept_flat, EPT_ROOT, address)),
    }];
    table.extend(rows(ept_image, ept, EPT_ROOT, AnyFormat::Ept(ept, EPT_ROOT)));
    table.push(Contender {
        name: "slat walk, in words",
        turn: in_words(ept_image, None, Some("ept4,eptp=0x690505e")),
    });
    run.table("one stage, ept4", &of_ept, &mut table);

    let one = AnyFormat::Long(long, GUEST_ROOT);
    let mut table = vec![Contender {
        name: "floor: present, page size",
        turn: floor(move |address| bare_nested(flat, NPT_ROOT, GUEST_ROOT, address)),
    }];
    let any = [one, AnyFormat::Npt(npt, NPT_ROOT)];
    table.extend(nested_rows(image, (long, GUEST_ROOT), (npt, NPT_ROOT), any));
    table.push(Contender {
        name: "slat walk, in words",
        turn: in_words(image, Some("x86-4:0x1000"), Some("npt4:0x4bb6000")),
    });
    let nested = streams(|address| bare_nested(flat, NPT_ROOT, GUEST_ROOT, address));
    run.table("two stages, x86-4 over npt4", &nested, &mut table);

    let mut table = vec![Contender {
        name: "floor: present, page size",
        turn: floor(move |address| bare_nested(ept_flat, EPT_ROOT, GUEST_ROOT, address)),
    }];
    let any = [one, AnyFormat::Ept(ept, EPT_ROOT)];
    table.extend(nested_rows(ept_image, (long, GUEST_ROOT), (ept, EPT_ROOT), any));
    table.push(Contender {
        name: "slat walk, in words",
        turn: in_words(ept_image, Some("x86-4:0x1000"), Some("ept4,eptp=0x690505e")),
    });
    let nested = streams(|address| bare_nested(ept_flat, EPT_ROOT, GUEST_ROOT, address));
    run.table("two stages, x86-4 over ept4", &nested, &mut table);
}
