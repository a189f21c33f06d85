//! `slat check` as a person and a program see it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn slat(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_slat")).args(arguments).output().expect("slat starts")
}

fn state(name: &str) -> String {
    let file: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../slat-check/tests/states")
        .join(format!("{name}.txt"));
    file.display().to_string()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("output is UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("messages are UTF-8")
}

#[test]
fn the_exit_code_is_the_verdict() {
    for (name, code, first_line) in [
        ("intel-on", 0, "Yes: this machine has SLAT (EPT), and KVM uses it."),
        ("amd-svm-off", 1, "No: the processor has SLAT, but its virtualization is switched off."),
        ("nothing-may-be-read", 2, "Could not tell whether SLAT is in use:"),
        ("garbage", 2, "Could not tell whether SLAT is in use:"),
    ] {
        let output = slat(&["check", "--state", &state(name)]);
        assert_eq!(output.status.code(), Some(code), "{name}: {output:?}");
        assert!(stdout(&output).starts_with(first_line), "{name}: {}", stdout(&output));
        assert_eq!(stderr(&output), "", "{name}");
    }
}

#[test]
fn json_says_the_same_as_the_text() {
    for name in ["intel-on", "kvm-that-shadows-in-software", "garbage", "windows-with-hyper-v"] {
        let text = slat(&["check", "--state", &state(name)]);
        let json = slat(&["check", "--json", "--state", &state(name)]);
        assert_eq!(text.status.code(), json.status.code(), "{name}");
        let value: serde_json::Value = serde_json::from_slice(&json.stdout).expect("valid JSON");
        let headline = value["headline"].as_str().expect("a headline");
        let joined = stdout(&text).replace('\n', " ");
        assert!(joined.starts_with(headline), "{name}: {headline}");
        let answer = value["in_use"]["answer"].as_str().expect("an answer");
        let code = ["yes", "no", "unknown"].iter().position(|known| *known == answer);
        assert_eq!(code.map(|code| code as i32), json.status.code(), "{name}");
    }
}

#[test]
fn a_file_is_no_terminal() {
    let output = slat(&["check", "--state", &state("intel-on")]);
    assert!(!stdout(&output).contains('\u{1b}'));
    assert!(stdout(&output).lines().all(|line| line.chars().count() <= 80));
}

#[test]
fn processors_by_name() {
    for (name, code, first_line) in [
        ("Intel(R) Core(TM) i7-2600K CPU @ 3.40GHz", 0, "Yes: this processor has SLAT (EPT)."),
        ("Core 2 Duo E8400", 1, "No: this processor has no SLAT."),
        ("Celeron", 2, "Unknown: this name alone does not tell."),
        ("no such thing", 2, "Unknown: this name is not in the table of this program."),
    ] {
        let output = slat(&["check", "--cpu", name]);
        assert_eq!(output.status.code(), Some(code), "{name}");
        assert_eq!(stdout(&output).lines().next(), Some(first_line), "{name}");
        let json = slat(&["check", "--json", "--cpu", name]);
        assert_eq!(json.status.code(), Some(code), "{name}");
        let value: serde_json::Value = serde_json::from_slice(&json.stdout).expect("valid JSON");
        assert_eq!(value["asked"], name);
    }
}

#[test]
fn unusable_input_is_named() {
    let output = slat(&["check", "--state", "no/such/file"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("no/such/file"), "{}", stderr(&output));
    assert_eq!(stdout(&output), "");

    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("state.txt");
    std::fs::write(&file, "slat check state 1\nsystem linux x86\n=== fiel /proc/cpuinfo\n")
        .expect("a file");
    let output = slat(&["check", "--state", &file.display().to_string()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("line 3"), "{}", stderr(&output));

    assert_eq!(slat(&["check", "--cpu", "i7", "--save", "x"]).status.code(), Some(2));
}

#[test]
fn what_is_saved_here_is_judged_alike_elsewhere() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("state.txt").display().to_string();
    let here = slat(&["check", "--json", "--save", &file]);
    let elsewhere = slat(&["check", "--json", "--state", &file]);
    assert_eq!(stdout(&here), stdout(&elsewhere));
    assert_eq!(here.status.code(), elsewhere.status.code());
    // Nothing but the state is left behind.
    assert_eq!(std::fs::read_dir(directory.path()).expect("a directory").count(), 1);

    let output = slat(&["check", "--save", "no/such/directory/state.txt"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("cannot write no/such/directory/state.txt"));
}

#[test]
fn slat_alone_greets_with_the_verdict() {
    let greeting = slat(&[]);
    assert_eq!(greeting.status.code(), Some(0));
    let json = slat(&["check", "--json"]);
    let value: serde_json::Value = serde_json::from_slice(&json.stdout).expect("valid JSON");
    let text = stdout(&greeting);
    assert_eq!(text.lines().next(), value["headline"].as_str());
    let commands: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("  slat ")).collect();
    assert_eq!(commands.len(), 3);
    for command in commands {
        let name = command.split_ascii_whitespace().next().expect("a command");
        if !name.starts_with('-') {
            assert_eq!(slat(&[name, "--help"]).status.code(), Some(0), "slat {name} exists");
        }
    }
}

/// A pipe that closes early, as `head -1` does, is no error.
#[cfg(unix)]
#[test]
fn a_reader_may_leave() {
    use std::process::Stdio;
    let mut child = Command::new(env!("CARGO_BIN_EXE_slat"))
        .args(["check", "--state", &state("intel-on")])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("slat starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("slat ends");
    assert_eq!(stderr(&output), "");
    assert_eq!(output.status.code(), Some(0));
}
