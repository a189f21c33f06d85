//! The three walk caches of Bhargava et al. (ASPLOS 2008), and large host pages, on every bundled
//! recording: each step shortens the time that walks take. Where it does not, the stream is listed here.

use std::path::Path;

use slat_sim::compare::{Options, Outcome, Scheme, compare};
use slat_sim::preset::{Confidence, Entries, Param, Processor};
use slat_trace::Arch;
use slat_trace::recording::{self, Recording};

/// Accesses of each stream.
const ACCESSES: u64 = 1_000_000;

fn param<T>(value: T) -> Param<T> {
    let source = "a design of Bhargava et al., ASPLOS 2008".to_owned();
    Param { value, source, confidence: Confidence::Assumed }
}

fn entries(entries: u32) -> Param<Entries> {
    param(Entries { entries, ways: entries.max(1) })
}

/// Barcelona with 24 entries of page walk cache, for the nested dimension too or not, and a nested TLB.
fn design(nested: bool, nested_tlb: u32) -> Processor {
    let mut processor = Processor::bundled("barcelona").unwrap();
    let caches = &mut processor.walk_caches;
    (caches.pde, caches.pdpte, caches.pml4e) = (entries(0), entries(0), entries(0));
    (caches.page_walk, caches.page_walk_nested) = (Some(entries(24)), Some(param(nested)));
    caches.nested_tlb = entries(nested_tlb);
    processor
}

fn outcome(recording: &Recording, processor: &Processor, scheme: Scheme) -> Outcome {
    let mut reader = recording.reader(&recording::Options::default()).unwrap();
    let options = Options { schemes: Some(vec![scheme]), ..Options::default() };
    let mut outcomes = compare(&mut reader, processor, &options, |done| done < ACCESSES).unwrap();
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
fn each_step_shortens_walks_on_every_recording() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recordings");
    let mut names: Vec<String> = std::fs::read_dir(&folder)
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
        .filter(|name| name.ends_with(".slat"))
        .collect();
    names.sort();
    assert!(names.len() >= 9);
    let mut failing = Vec::new();
    println!(
        "{:<22}{:>9}{:>9}{:>9}   walks' time, each step; gain in all",
        "", "2D", "NT", "large"
    );
    for name in &names {
        let recording = Recording::open(folder.join(name)).unwrap();
        let scheme = |shift| match recording.machine().arch {
            Arch::X86_64 => Scheme::Npt(shift),
            Arch::Aarch64 => Scheme::Arm(shift),
        };
        let steps = [
            outcome(&recording, &design(false, 0), scheme(12)),
            outcome(&recording, &design(true, 0), scheme(12)),
            outcome(&recording, &design(true, 16), scheme(12)),
            outcome(&recording, &design(true, 16), scheme(21)),
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
