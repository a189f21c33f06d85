//! Where output goes wrong, and inputs that must not: one line of error, exit 2, never a panic.
#![cfg(target_os = "linux")]

use std::fs::{self, File};
use std::process::{Command, Output, Stdio};

const RECORDING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/fork.slat");

fn slat(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slat"));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Exit 2, and one line that has this in it.
fn refuses(output: &Output, what: &str) -> String {
    let error = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(2), "{what}: {error}");
    assert_eq!(error.lines().count(), 1, "{what}: {error}");
    error
}

/// The commands that print a text when they are done.
const PRINTERS: &[&[&str]] = &[
    &[],
    &["info", RECORDING],
    &["info", "--json", RECORDING],
    &["replay", RECORDING],
    &["replay", "--json", RECORDING],
    &["compare", "--list"],
    &["compare", "--explain", "scheme"],
    &["compare", "--perf"],
    &["completions", "bash"],
    &["host", "power-on", "--print"],
    &["host", "power-on"],
    &["check", "--cpu", "Core i7-2600K"],
];

#[test]
fn a_full_disk_is_an_error_and_no_panic() {
    for &arguments in PRINTERS {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = slat(arguments).stdout(full).output().unwrap();
        let error = refuses(&output, &format!("{arguments:?}"));
        assert!(error.contains("cannot write to standard output"), "{arguments:?}: {error}");
    }
}

#[test]
fn a_reader_that_went_away_is_no_error() {
    for &arguments in PRINTERS {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = slat(arguments).stdout(writer).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{arguments:?}");
        assert!(matches!(output.status.code(), Some(0 | 1)), "{arguments:?}");
    }
}

#[test]
fn errors_that_nobody_can_read_still_exit_with_2() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let status = slat(&["info", "nope"]).stderr(full).status().unwrap();
    assert_eq!(status.code(), Some(2));
}

#[test]
fn a_missing_file_is_named_once() {
    for command in ["info", "replay", "compare"] {
        let error = refuses(&slat(&[command, "nope"]).output().unwrap(), command);
        assert_eq!(error.matches("nope").count(), 1, "{command}: {error}");
    }
}

#[test]
fn no_preset_is_longer_than_a_mebibyte() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("long.toml");
    fs::write(&file, vec![b'\n'; (1 << 20) + 1]).unwrap();
    for option in ["--processor", "--hypervisor"] {
        let output = slat(&["compare", RECORDING, option, file.to_str().unwrap()]).output();
        let error = refuses(&output.unwrap(), option);
        assert!(error.contains("longer than 1 MiB"), "{error}");
    }
}

#[test]
fn a_parameter_given_twice_is_refused() {
    let output = slat(&["compare", "gen:fcw,seed=1,pages=20,seed=2"]).output().unwrap();
    let error = refuses(&output, "gen:fcw");
    assert!(error.contains("seed is given twice"), "{error}");
}

#[test]
fn a_directory_too_long_for_sockets_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("d".repeat(120));
    fs::create_dir(&deep).unwrap();
    let output =
        slat(&["host", "migrate", "--directory", deep.to_str().unwrap()]).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("name a shorter --directory"), "{error}");
}

/// The most columns of any line that a command prints where `COLUMNS` is this.
fn widest(arguments: &[&str], columns: &str) -> usize {
    let output = slat(arguments).env("COLUMNS", columns).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| line.chars().count()).max().unwrap()
}

#[test]
fn lists_and_hosts_fit_the_terminal() {
    let hosts = slat_sim::host::scenario::Scenario::names().map(|name| vec!["host", name]);
    for arguments in hosts.chain([vec!["compare", "--list"]]) {
        let widest = widest(&arguments, "80");
        assert!((41..=80).contains(&widest), "{arguments:?}: {widest}");
    }
    for arguments in [["host", "power-on"], ["compare", "--list"]] {
        let widest = widest(&arguments, "300");
        assert!((81..=100).contains(&widest), "{arguments:?} has room: {widest}");
    }
}
