//! `slat import` from outside.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn slat(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_slat"))
        .args(arguments)
        .current_dir(directory)
        .output()
        .expect("the command runs")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

#[test]
fn a_text_trace_becomes_a_recording() {
    let directory = tempfile::tempdir().unwrap();
    let trace: String = (0..1000)
        .map(|i| format!("I {:x},4\nW {:x},8\n", 0x40_0000 + 4 * i, 0x1000_0000 + 4096 * i))
        .collect();
    fs::write(directory.path().join("trace.txt"), trace).unwrap();

    let done = slat(directory.path(), &["import", "trace.txt", "-o", "trace.slat"]);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    let printed = text(&done.stdout);
    assert!(printed.contains("2,000 (1,000 fetches, 0 loads, 1,000 stores)"), "{printed}");
    assert!(printed.contains("guest tables were made"), "{printed}");
    assert!(printed.lines().all(|line| line.len() <= 80), "{printed}");
    assert!(fs::read(directory.path().join("trace.slat")).unwrap().starts_with(b"SLATREC\0"));

    let arguments = ["import", "trace.txt", "-o", "2m.slat", "--pages", "thp", "--json"];
    let done = slat(directory.path(), &arguments);
    let json: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!((json["stores"].as_u64(), json["vcpus"].as_u64()), (Some(1000), Some(1)));
    assert!(json["notes"][0].as_str().unwrap().contains("2M pages"));
}

#[test]
fn the_same_import_gives_the_same_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let trace: String = (0..500).map(|i| format!("R {:x},8\n", (i * 7919) % 400 * 4096)).collect();
    fs::write(directory.path().join("trace.txt"), trace).unwrap();
    let made = |fragmentation: &str| {
        let arguments =
            ["import", "trace.txt", "-o", "trace.slat", "--fragmentation", fragmentation];
        assert_eq!(slat(directory.path(), &arguments).status.code(), Some(0));
        fs::read(directory.path().join("trace.slat")).unwrap()
    };
    assert_eq!(made("30"), made("30"));
    assert_ne!(made("30"), made("31"));
}

#[test]
fn a_damaged_trace_is_refused_or_taken_up_to_the_damage() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("trace.lk"), "I  00401000,4\n L 00500000,8\nhello\n").unwrap();
    let refused = slat(directory.path(), &["import", "trace.lk", "-o", "trace.slat"]);
    assert_eq!(refused.status.code(), Some(2));
    let error = text(&refused.stderr);
    assert!(
        error.contains("trace.lk: line 3: `hello`") && error.contains("--until-damage"),
        "{error}"
    );
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing was written");

    let taken =
        slat(directory.path(), &["import", "trace.lk", "-o", "trace.slat", "--until-damage"]);
    assert_eq!(taken.status.code(), Some(0));
    assert!(text(&taken.stdout).contains("2 (1 fetches, 1 loads, 0 stores)"));
}

#[test]
fn what_cannot_be_done_is_said_before_anything_is_written() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("notes.txt"), "dear diary\n").unwrap();
    fs::write(directory.path().join("trace.txt"), "R 1000\n").unwrap();
    for (arguments, says) in [
        (
            &["import", "notes.txt", "-o", "x.slat"][..],
            "`dear diary` is no line of a known text format",
        ),
        (&["import", "missing.gz", "-o", "x.slat"], "missing.gz: "),
        (&["import", "trace.txt", "-o", "no/such/x.slat"], "cannot write no/such/x.slat"),
        (&["import", "trace.txt"], "--output"),
        (&["import", "trace.txt", "-o", "x.slat", "--format", "sift"], "known are lackey"),
    ] {
        let refused = slat(directory.path(), arguments);
        assert_eq!(refused.status.code(), Some(2), "{arguments:?}");
        assert!(text(&refused.stderr).contains(says), "{}", text(&refused.stderr));
    }
    assert!(!directory.path().join("x.slat").exists());
}
