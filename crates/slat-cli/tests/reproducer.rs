//! The command lines that `cargo xtask oracle` prints for a disagreement show the walker's answer.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use slat_oracle::deviations::Seen;
use slat_oracle::engine::Disagreement;
use slat_oracle::golden::questions;
use slat_oracle::probe::{Case, Outcome};
use slat_oracle::report::report;

/// What a printed line shows.
struct Shown {
    code: i32,
    json: Value,
}

impl Shown {
    fn number(&self, path: &str) -> Option<u64> {
        let text = self.json.pointer(path)?.as_str()?;
        u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
    }
}

/// Runs a line as a person would paste it, `slat` on the PATH.
fn run(line: &str, more: &str) -> (i32, String) {
    let slat = Path::new(env!("CARGO_BIN_EXE_slat")).parent().unwrap();
    let path = format!("{}:{}", slat.display(), std::env::var("PATH").unwrap());
    let line = format!("{line}{more}");
    let output = Command::new("sh").args(["-c", &line]).env("PATH", path).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

/// What the first access that faults shows, or the last.
fn show(lines: &[&str]) -> Shown {
    let mut shown = None;
    for line in lines {
        let (code, text) = run(line, " --json");
        let json = if code == 2 { Value::Null } else { serde_json::from_str(&text).unwrap() };
        shown = Some(Shown { code, json });
        if code != 0 {
            break;
        }
    }
    shown.expect("a report has at least one line")
}

/// Whether that is the walker's answer.
fn is_shown(case: &Case, shown: &Shown) -> bool {
    let stage = shown.json.pointer("/fault/stage").and_then(Value::as_u64);
    let cause = shown.json.pointer("/fault/cause").and_then(Value::as_str);
    let syndrome = |key: &str| shown.number(&format!("/fault/syndrome/{key}"));
    let spa = shown.number("/spa");
    match case.expected {
        Outcome::Done { value } => {
            let arrived = match case.reached {
                Some(reached) => spa == Some(reached),
                // PAR's address.
                None => spa.is_some_and(|spa| (spa ^ value) & 0xF_FFFF_FFFF_F000 == 0),
            };
            shown.code == 0 && arrived
        }
        Outcome::Stage1 { syndrome: expected, .. } => {
            let code = syndrome("error_code").is_none_or(|code| code == expected);
            let esr = syndrome("esr").is_none_or(|esr| {
                case.probe.operation != 1 || (esr ^ expected) & !(0x7FF << 14) == 0
            });
            shown.code == 1 && stage == Some(1) && code && esr
        }
        Outcome::Stage2 { syndrome: expected, .. } => {
            let info = syndrome("exitinfo1").or(syndrome("exit_qualification"));
            let esr = syndrome("esr").is_none_or(|esr| {
                case.probe.operation != 1 || (esr ^ expected) & !(0x7FF << 14) == 0
            });
            shown.code == 1 && stage == Some(2) && info.is_none_or(|info| info == expected) && esr
        }
        Outcome::Misconfigured { address } => {
            cause == Some("misconfiguration") && shown.number("/fault/address") == Some(address)
        }
        Outcome::General => cause == Some("non-canonical"),
        Outcome::Refused => shown.code == 2,
        // Of a table, or of what the translation leads to. Bits 5:2 of an AArch64 root register are address bits
        // 51:48: no memory lies so high, and `slat walk` takes such a root for a mistake.
        Outcome::Bus { .. } => {
            let is_high = case.probe.state[8] & 0x3C != 0;
            cause == Some("not-in-image") || shown.code == 0 || is_high && shown.code == 2
        }
        Outcome::Other(_) => false,
    }
}

#[test]
fn the_lines_of_a_disagreement_show_the_walkers_answer() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../oracle/golden");
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("what is needed");
    let mut kinds = [0; 8];
    for entry in std::fs::read_dir(golden).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "zst") {
            continue;
        }
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let (subject, cases) = questions(&std::fs::read(&path).unwrap(), 24).unwrap();
        let mut world = subject.template();
        for (i, case) in cases.iter().enumerate() {
            // A machine that disagrees with everybody.
            let seen = Seen { outcome: Outcome::Other([1, 2, 3, 4]), words: vec![] };
            let subject = subject.as_ref();
            let made_up = Disagreement::new("made up", subject, &mut world, case, seen);
            let text = report(1, &made_up, &folder, &format!("{name}-{i}.elf")).unwrap();
            let lines: Vec<&str> =
                text.lines().map(str::trim).filter(|line| line.starts_with("slat walk ")).collect();
            let shown = show(&lines);
            assert!(is_shown(case, &shown), "{name} {i}: {}\n{text}", shown.json);
            kinds[usize::from(case.expected.kind())] += 1;
            if i == 0 {
                let (code, drawing) = run(lines[0], "");
                assert!(code == 2 || !drawing.is_empty(), "{text}");
            }
        }
    }
    // Translations and faults of both stages are among them.
    assert!(kinds[..3].iter().all(|count| *count > 10), "{kinds:?}");
}
