//! The three walk caches of Bhargava et al. (ASPLOS 2008), and large host pages, on every bundled
//! recording and on three generated servers, which were chosen before
//! any was run: each step shortens the time that walks take.

use std::path::Path;

use slat_mmu::walker::Design;
use slat_sim::compare::{Options, Outcome, Scheme, compare};
use slat_sim::generated::Generated;
use slat_sim::preset::Processor;
use slat_trace::recording::{self, Recording};
use slat_trace::{Arch, Source};

/// Accesses of each stream.
const ACCESSES: u64 = 1_000_000;

/// The generated servers.
const GENERATED: [&str; 3] = ["gen:oltp", "gen:jbb", "gen:terminal"];

/// A stream by its name: a generated guest's, or that of a file.
fn outcome(folder: &Path, name: &str, processor: &Processor, large: bool) -> Outcome {
    let shift = if large { 21 } else { 12 };
    if name.starts_with("gen:") {
        let mut guest = Generated::open(name, ACCESSES).unwrap();
        return run(&mut guest, processor, Scheme::Npt(shift));
    }
    let recording = Recording::open(folder.join(name)).unwrap();
    let scheme = match recording.machine().arch {
        Arch::X86_64 => Scheme::Npt(shift),
        Arch::Aarch64 => Scheme::Arm(shift),
    };
    run(&mut recording.reader(&recording::Options::default()).unwrap(), processor, scheme)
}

fn run(source: &mut impl Source, processor: &Processor, scheme: Scheme) -> Outcome {
    let options = Options { schemes: Some(vec![scheme]), ..Options::default() };
    let mut outcomes = compare(source, processor, &options, |done| done < ACCESSES).unwrap();
    outcomes.remove(0)
}

fn walks(outcome: &Outcome) -> f64 {
    outcome.cycles.walks()
}

/// All but exits: the paper's guests have touched their memory.
fn all(outcome: &Outcome) -> f64 {
    let cycles = &outcome.cycles;
    cycles.instructions + cycles.second_tlb + walks(outcome)
}

#[test]
fn each_step_shortens_walks_on_every_stream() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recordings");
    let mut names: Vec<String> = std::fs::read_dir(&folder)
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
        .filter(|name| name.ends_with(".slat"))
        .collect();
    names.sort();
    names.extend(GENERATED.map(str::to_owned));
    assert!(names.len() >= 12);
    let barcelona = Processor::bundled("barcelona").unwrap();
    let design = |design| barcelona.with_design(design);
    let mut failing = Vec::new();
    println!(
        "{:<22}{:>9}{:>9}{:>9}   walks' time, each step; gain in all",
        "", "2D", "NT", "large"
    );
    for name in &names {
        let steps = [
            outcome(&folder, name, &design(Design::OneD), false),
            outcome(&folder, name, &design(Design::TwoD), false),
            outcome(&folder, name, &design(Design::TwoDNestedTlb), false),
            outcome(&folder, name, &design(Design::TwoDNestedTlb), true),
        ];
        let of = |time: &dyn Fn(&Outcome) -> f64| -> Vec<f64> {
            steps.windows(2).map(|pair| time(&pair[0]) / time(&pair[1]) - 1.0).collect()
        };
        let (by_walks, in_all) = (of(&walks), of(&all));
        print!("{name:<22}");
        by_walks.iter().for_each(|gain| print!("{:>8.1}%", 100.0 * gain));
        println!("   {:.1?} %", in_all.iter().map(|gain| 100.0 * gain).collect::<Vec<_>>());
        if by_walks.iter().any(|&gain| gain <= 0.0) {
            failing.push(name.as_str());
        }
    }
    println!("published gains in all: 15 to 38 %, 3 to 7 %, 3 to 22 %");
    assert_eq!(failing, [""; 0], "the order fails on these");
}
