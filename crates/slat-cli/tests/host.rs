//! `slat host` from outside: what it prints, and that a migration survives the death of either host
//! at every step of its protocol.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn slat(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_slat")).arg("host").args(args).output().expect("slat runs")
}

fn json(args: &[&str]) -> Value {
    let output = slat(&[args, &["--json"]].concat());
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

#[test]
fn every_bundled_scenario_goes_as_it_says() {
    for name in slat_sim::host::scenario::Scenario::names() {
        let played = json(&[name]);
        assert_eq!(played["scenario"], name);
        let events = played["events"].as_array().unwrap();
        assert!(events.iter().all(|event| event["outcome"] != "failed"), "{name}: {events:?}");
    }
}

#[test]
fn a_migration_there_and_back_is_told_as_the_documentation_says() {
    let played = json(&["migrate"]);
    let events = played["events"].as_array().unwrap();
    let moved: Vec<&Value> = events.iter().filter(|e| e["action"] == "migrate").collect();
    assert_eq!(moved.len(), 4, "two sides, twice");
    for pair in moved.chunks(2) {
        let (from, to) = (&pair[0]["moved"], &pair[1]["moved"]);
        assert_eq!(from["digest"], to["digest"]);
        assert_eq!(from["followed"]["gpa"], to["followed"]["gpa"]);
        assert_eq!(to["translations_identical"], true);
        let rounds = from["rounds"].as_array().unwrap();
        assert!(rounds.len() > 2);
        assert!(rounds[0]["guest_steps"].as_u64() > Some(0), "it ran meanwhile");
        assert_eq!(rounds[rounds.len() - 1]["guest_steps"], 0, "and paused for the last");
    }
    assert_eq!(moved[0]["moved"]["logged_by"], "dirty-flags");
    assert_eq!(moved[2]["moved"]["logged_by"], "shadow-write-protection");
    let exits = moved[2]["moved"]["exits"].as_object().unwrap();
    assert!(exits["hidden-fault"].as_u64() > Some(0));
}

#[test]
fn a_scenario_that_goes_otherwise_exits_with_1() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mine.toml");
    let text = String::from_utf8(slat(&["power-on", "--print"]).stdout).unwrap();
    fs::write(&file, text.replace("refused = true\n", "")).unwrap();
    let output = slat(&[file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("FAILED: partition mail does not start"), "{text}");
}

#[test]
fn unusable_scenarios_exit_with_2_and_name_line_and_field() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mine.toml");
    let text = String::from_utf8(slat(&["power-on", "--print"]).stdout).unwrap();
    fs::write(&file, text.replace("\"nehalem\"", "\"nehalm\"")).unwrap();
    let output = slat(&[file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("mine.toml, line 6: processor: no processor preset"), "{error}");
    for wrong in [&["nope"][..], &["nope.toml"], &["power-on", "--only", "b", "--directory", "x"]] {
        assert_eq!(slat(wrong).status.code(), Some(2), "{wrong:?}");
    }
    let _ = fs::remove_dir_all(Path::new("x"));
}

/// A migration whose processes are stopped at every step of the protocol, and killed there.
#[cfg(unix)]
mod killed {
    use std::collections::BTreeMap;
    use std::fs;
    use std::io::{BufRead, BufReader, Write};
    use std::path::Path;
    use std::process::{Child, ChildStdin, Command, Stdio};
    use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
    use std::thread;
    use std::time::Duration;

    use serde_json::Value;
    use slat_sim::host::migrate::ownership::{Ownership, State};
    use slat_sim::host::scenario::{Do, Scenario};
    use slat_sim::host::{Host, LEAST};

    const SCENARIO: &str = r#"
        name = "killed"
        about = "a host is killed at a step of the protocol"
        [[host]]
        name = "a"
        processor = "FROM"
        hypervisor = "kvm-3.0"
        memory = ["16M"]
        [[host]]
        name = "b"
        processor = "TO"
        hypervisor = "kvm-3.0"
        memory = ["16M"]
        [[step]]
        do = "start"
        host = "a"
        partition = "vm"
        memory = "8M"
        [[step]]
        do = "run"
        partition = "vm"
        steps = 300
        [[step]]
        do = "migrate"
        host = "a"
        partition = "vm"
        to = "b"
        most_rounds = 3
        steps_per_chunk = 5
        [[step]]
        do = "run"
        partition = "vm"
        steps = 300
    "#;

    const HOSTS: [&str; 2] = ["a", "b"];
    /// Longer than any host needs between two steps, here.
    const PATIENCE: Duration = Duration::from_secs(60);
    /// So long without a step, and the other host waits for this one.
    const QUIET: Duration = Duration::from_millis(150);

    struct Side {
        child: Child,
        input: ChildStdin,
        /// Steps that it has done, in order.
        steps: Vec<String>,
        report: Option<Value>,
        ended: bool,
    }

    impl Side {
        fn start(folder: &Path, index: usize, lines: Sender<(usize, Option<String>)>) -> Side {
            let mut child = Command::new(env!("CARGO_BIN_EXE_slat"))
                .arg("host")
                .arg(folder.join("scenario.toml"))
                .args(["--part", "--stepwise", "--only", HOSTS[index]])
                .arg("--directory")
                .arg(folder)
                .arg("--journal")
                .arg(folder.join("journal"))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("slat runs");
            let output = BufReader::new(child.stdout.take().unwrap());
            let input = child.stdin.take().unwrap();
            thread::spawn(move || {
                for line in output.lines().map_while(Result::ok) {
                    let _ = lines.send((index, Some(line)));
                }
                let _ = lines.send((index, None));
            });
            Side { child, input, steps: Vec::new(), report: None, ended: false }
        }

        fn go_on(&mut self) {
            let _ = writeln!(self.input);
        }
    }

    struct Run {
        sides: [Side; 2],
        folder: tempfile::TempDir,
    }

    /// Runs the migration; kills `victim` when it has done its nth step.
    fn run(scenario: &str, victim: Option<(usize, usize)>) -> Run {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("scenario.toml"), scenario).unwrap();
        let (sender, receiver) = channel();
        let start = |index| Side::start(folder.path(), index, sender.clone());
        let mut sides = [start(0), start(1)];
        let mut killed = false;
        while !sides.iter().all(|side| side.ended) {
            let (index, line) = receiver.recv_timeout(PATIENCE).expect("neither host hangs");
            if take(&mut sides[index], line) {
                let step = sides[index].steps.len() - 1;
                if victim == Some((index, step)) && !killed {
                    killed = true;
                    settle(&mut sides, index, &receiver);
                    sides[index].child.kill().unwrap();
                } else {
                    sides[index].go_on();
                }
            }
        }
        for side in &mut sides {
            side.child.wait().unwrap();
        }
        Run { sides, folder }
    }

    /// Takes a line; says whether the side waits at a step.
    fn take(side: &mut Side, line: Option<String>) -> bool {
        match line {
            None => side.ended = true,
            Some(line) => {
                if let Some(step) = line.strip_prefix("step ") {
                    side.steps.push(step.to_owned());
                    return true;
                }
                if let Some(report) = line.strip_prefix("report ") {
                    side.report = Some(serde_json::from_str(report).unwrap());
                }
            }
        }
        false
    }

    /// Lets the other host go on as far as it can.
    fn settle(sides: &mut [Side; 2], victim: usize, receiver: &Receiver<(usize, Option<String>)>) {
        loop {
            match receiver.recv_timeout(QUIET) {
                Ok((index, line)) => {
                    assert_ne!(index, victim, "it waits");
                    if take(&mut sides[index], line) {
                        sides[index].go_on();
                    }
                }
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => unreachable!("the senders are here"),
            }
        }
    }

    /// Steps and digest of the partition that a host reports to have, if any.
    fn has(side: &Side) -> Option<(u64, String)> {
        let report = side.report.as_ref()?;
        let partition = report["hosts"][0]["partitions"].get(0)?;
        let steps = partition["guest_steps"].as_u64()?;
        Some((steps, partition["digest"].as_str()?.to_owned()))
    }

    /// What the same guest leaves after as many steps, never moved.
    fn alone(scenario: &Scenario, steps: u64) -> String {
        let mut host = Host::start(scenario.hosts[0].clone()).unwrap();
        let Do::Start { spec, .. } = &scenario.steps[0].what else { unreachable!() };
        assert_eq!(spec.bytes, LEAST);
        host.power_on(spec).unwrap();
        host.run("vm", steps).unwrap();
        host.partition("vm").unwrap().digest(&host.memory).to_string()
    }

    /// One line of history: whoever runs goes on where the last one stopped, and never two at once.
    fn check_journal(folder: &Path) {
        let journal = fs::read_to_string(folder.join("journal")).unwrap();
        let mut at = 0;
        for line in journal.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let [what, host, steps] = words[..] else { panic!("{line}") };
            let steps: u64 = steps.parse().unwrap();
            match what {
                "from" => assert_eq!(steps, at, "{host} went on from an older state:\n{journal}"),
                "to" => at = steps,
                _ => panic!("two copies ran:\n{journal}"),
            }
        }
    }

    fn every_step(from: &str, to: &str) {
        let text = SCENARIO.replace("FROM", from).replace("TO", to);
        let scenario = Scenario::parse("killed", &text).unwrap();
        let whole = run(&text, None);
        assert!(has(&whole.sides[0]).is_none() && has(&whole.sides[1]).is_some());
        check_journal(whole.folder.path());
        let mut digests: BTreeMap<u64, String> = BTreeMap::new();
        let (mut lost, mut survived) = (0, 0);
        for victim in 0..2 {
            let steps = whole.sides[victim].steps.clone();
            assert!(steps.len() >= 9, "{steps:?}");
            for (nth, step) in steps.iter().enumerate() {
                let Run { sides, folder } = run(&text, Some((victim, nth)));
                check_journal(folder.path());
                assert!(sides[victim].report.is_none(), "{step}: it was killed");
                let survivor = &sides[1 - victim];
                let done = |what: &str| survivor.steps.iter().any(|step| step.contains(what));
                // Whether the surviving host has, at the crash or on its way to it, everything. What the
                // source has once the destination's record is there is a copy of the past.
                let holds_all = match victim {
                    0 => done("destination: found the digest right"),
                    _ => !sides[1].steps.iter().any(|step| step.contains("recorded that it runs")),
                };
                let report = survivor.report.as_ref().unwrap().to_string();
                let now = has(survivor);
                assert_eq!(now.is_some(), holds_all, "{step}: {report}");
                let record = Ownership::open(folder.path(), "vm").unwrap().read().unwrap();
                let state = record.unwrap().state;
                if let Some((steps, digest)) = now {
                    survived += 1;
                    let host = HOSTS[1 - victim].to_owned();
                    assert_eq!(state, State::Running { host }, "{step}");
                    assert!(report.contains("300 steps"), "{step}: it runs on: {report}");
                    let right = digests.entry(steps).or_insert_with(|| alone(&scenario, steps));
                    assert_eq!(digest, *right, "{step}");
                } else {
                    lost += 1;
                    if victim == 0 {
                        assert_eq!(state, State::Lost { host: "a".to_owned() }, "{step}");
                        assert!(report.contains("vm is lost: host a went down"), "{report}");
                    } else {
                        // Which of the two depends on whether the lock was seen to be free.
                        let told = ["went down with host b", "recorded that it runs it"];
                        assert!(told.iter().any(|text| report.contains(text)), "{report}");
                    }
                }
                // A source that had sent everything was survived by its machine.
                if victim == 0 {
                    let sent = sides[0].steps.iter().any(|step| step.contains("sent the last"));
                    assert_eq!(holds_all, sent, "{step}");
                }
            }
        }
        assert!(lost >= 4 && survived >= 10, "{lost} lost, {survived} survived");
    }

    #[test]
    fn from_slat_to_shadow_at_every_step() {
        every_step("haswell", "core-2");
    }

    #[test]
    fn from_shadow_to_slat_at_every_step() {
        every_step("core-2", "nehalem");
    }
}
