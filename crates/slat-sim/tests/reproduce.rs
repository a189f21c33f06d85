//! Rows of `slat reproduce` that must hold: exact counts, and orders that follow from the mechanism.
//! Bands of numbers never gate.

use std::path::Path;

use slat_sim::hypervisor::Hypervisor;
use slat_sim::preset::Processor;
use slat_sim::reproduce::{Effort, Report, ReproduceError, Row, Verdict, ids, reproduce};
use slat_trace::recording::{Error, Recording};

/// Short ones: the test runs unoptimized.
const USED: [&str; 2] = ["chase-4k", "chase-2m"];

fn recordings() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recordings")
}

/// The rows where no other recordings are there.
fn report(only: &[&str]) -> Result<Report, ReproduceError> {
    let mut open = |name: &str| -> Result<Option<Recording>, Error> {
        if !USED.contains(&name) {
            return Ok(None);
        }
        Recording::open(recordings().join(format!("{name}.slat"))).map(Some)
    };
    let effort = Effort { recorded: 1_000_000, generated: 150_000 };
    let only: Vec<String> = only.iter().map(|&id| id.to_owned()).collect();
    reproduce(&mut open, &only, effort, &mut |_| {})
}

fn row<'a>(report: &'a Report, id: &str) -> &'a Row {
    report.rows.iter().find(|row| row.id == id).unwrap()
}

#[test]
fn exact_rows_and_orders_hold_and_the_table_fits() {
    let report = report(&[]).unwrap();
    for id in ["1", "2", "11", "C14a", "C15"] {
        assert_eq!(row(&report, id).verdict, Verdict::InRange, "{id}");
    }
    // Levels double, references do not.
    assert_eq!(row(&report, "C14b").value.unwrap().value, 6.0);
    // Small pages: nested slower than shadow; large pages: the gap closes.
    let small = row(&report, "10a").value.unwrap().value;
    let large = row(&report, "10b").value.unwrap().value;
    assert!(small > 1.0, "{small}");
    assert!((large - 1.0).abs() < small - 1.0, "{large} beside {small}");
    // These have a verdict, whatever recordings are there.
    for id in ["7", "8", "9", "10a", "10b", "12"] {
        assert!(row(&report, id).value.is_some(), "{id}");
        assert_ne!(row(&report, id).verdict, Verdict::NotComparable, "{id}");
    }
    assert!(report.rows.iter().map(|row| row.id).eq(ids()), "each row has its place in the list");
    // Every row says what it is.
    for row in &report.rows {
        assert!(!row.claim.is_empty() && !row.source.is_empty() && !row.known.is_empty());
        assert!(!row.reading.is_empty(), "{}", row.id);
        let reasoned = matches!(row.verdict, Verdict::OutOfRange | Verdict::TooUncertain);
        assert_eq!(!row.reason.is_empty(), reasoned, "{}: {}", row.id, row.reason);
    }
    for text in [report.text(false), report.text(true)] {
        for line in text.lines() {
            let long_word = line.contains("https://");
            assert!(line.chars().count() <= 100 || long_word, "{line}");
        }
    }
    let json = report.json();
    assert_eq!(json["rows"].as_array().unwrap().len(), report.rows.len());
}

#[test]
fn rows_under_a_hypervisor_have_no_larger_host_pages_than_it() {
    // By what it says of processors without 1 GiB pages.
    let report = report(&["7", "9", "C8", "C10"]).unwrap();
    for (id, parts) in [
        ("7", &[("nehalem", "kvm-3.0")][..]),
        ("9", &[("nehalem", "kvm-3.0")]),
        ("C8", &[("barcelona", "xen-3.2")]),
        ("C10", &[("core-2", "hyper-v-2008"), ("nehalem", "hyper-v-2008-r2")]),
    ] {
        let row = row(&report, id);
        assert!(row.value.is_some(), "{id}");
        // One part of the set-up a hypervisor.
        let setups: Vec<&str> = row.setup.split("; ").collect();
        for (processor, hypervisor) in parts {
            let processor = Processor::bundled(processor).unwrap();
            let largest = Hypervisor::bundled(hypervisor).unwrap().largest_page(&processor);
            let from = setups.iter().position(|part| part.contains(&format!("under {hypervisor}")));
            let from = from.unwrap_or_else(|| panic!("{id}: {hypervisor} in {}", row.setup));
            let size = setups[from..].iter().find_map(|part| {
                ["4K", "2M", "1G"]
                    .into_iter()
                    .position(|size| part.contains(&format!("{size} host")))
            });
            let size = size.unwrap_or_else(|| panic!("{id}: {}", row.setup));
            assert!(size <= usize::from(largest.level()), "{id}: {}", row.setup);
        }
    }
}

#[test]
fn the_tag_is_tried_at_switches_between_two_guests() {
    let mut open = |_: &str| Recording::open(recordings().join("fork.slat")).map(Some);
    let effort = Effort { recorded: 600_000, generated: 150_000 };
    let report = reproduce(&mut open, &["C17".to_owned()], effort, &mut |_| {}).unwrap();
    let row = row(&report, "C17");
    let switches = row.reading.split(" switches").next().unwrap().split(' ').next_back().unwrap();
    assert!(switches.parse::<u64>().unwrap() >= 20, "{}", row.reading);
    assert!(row.value.unwrap().value > 1.0, "{}", row.reading);
    assert!(row.setup.contains("two guests"), "{}", row.setup);
}

#[test]
fn rows_are_chosen_by_id_or_by_number() {
    let chosen = |only: &[&str]| -> Vec<&str> {
        report(only).unwrap().rows.iter().map(|row| row.id).collect()
    };
    assert_eq!(chosen(&["11", "c12"]), ["C12", "11"]);
    assert_eq!(chosen(&["C14"]), ["C14a", "C14b"]);
    assert_eq!(chosen(&["C14b"]), ["C14b"]);
    // Rows that need not be comparable have their value all the same.
    let claims = report(&["C12", "C14b"]).unwrap();
    for (id, value) in [("C12", 0.98 / 0.90), ("C14b", 6.0)] {
        assert_eq!(row(&claims, id).value.unwrap().value, value);
        assert_eq!(row(&claims, id).verdict, Verdict::NotComparable);
        assert!(row(&claims, id).reading.starts_with("Not comparable: "));
    }
    assert!(!row(&claims, "C14b").source.contains("APM"));
    let error = report(&["1", "C99"]).unwrap_err().to_string();
    assert!(error.contains("`C99`") && error.contains("C1, C2") && error.contains("12"), "{error}");
}
