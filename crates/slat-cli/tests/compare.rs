//! `slat compare` as a person and a program see it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn slat(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_slat")).args(arguments).output().expect("slat starts")
}

fn recording(name: &str) -> String {
    let file: PathBuf =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recordings").join(format!("{name}.slat"));
    file.display().to_string()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("output is UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("messages are UTF-8")
}

#[test]
fn the_first_screen_fits_a_terminal_and_begins_with_the_answer() {
    // In any directory, with nothing but the command.
    let folder = tempfile::tempdir().expect("a folder");
    let output = Command::new(env!("CARGO_BIN_EXE_slat"))
        .arg("compare")
        .current_dir(&folder)
        .output()
        .expect("slat starts");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(stderr(&output), "");
    let text = stdout(&output);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.len() <= 24, "{} lines:\n{text}", lines.len());
    for line in &lines {
        assert!(line.chars().count() <= 80, "{line}");
    }
    assert!(lines[0].ends_with("M accesses) on Skylake-SP"), "{text}");
    assert!(lines[1].starts_with("In a VM with SLAT and 2M host pages it runs "), "{text}");
    for word in ["Why: ", "Try: ", "More: "] {
        assert!(lines.iter().any(|line| line.starts_with(word)), "{word}:\n{text}");
    }
}

#[test]
fn json_has_every_field_that_is_specified() {
    let output = slat(&["compare", &recording("clear-refs"), "--json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["version"], 1);
    assert_eq!(report["workload"], "clear-refs");
    assert_eq!(report["processor"], "Skylake-SP");
    assert_eq!(report["start"], "running");
    let names = |value: &Value| -> Vec<String> {
        value.as_object().expect("an object").keys().cloned().collect()
    };
    let sorted = |names: &[&str]| {
        let mut names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        names.sort();
        names
    };
    let causes = [
        "violation",
        "table-write",
        "cr3",
        "invlpg",
        "true-fault",
        "hidden-fault",
        "dirty",
        "emulation",
        "io",
        "switch",
    ];
    let schemes = report["schemes"].as_array().expect("schemes");
    assert_eq!(schemes.len(), 11);
    assert_eq!(schemes.iter().filter(|scheme| scheme["transcribed"] == true).count(), 2);
    let what_ifs: Vec<&Value> = report["what_ifs"].as_array().expect("what-ifs").iter().collect();
    let named: Vec<&Value> = what_ifs.iter().map(|what_if| &what_if["what_if"]).collect();
    assert_eq!(named, ["huge-pages", "pcid"]);
    for scheme in schemes {
        let mut held = names(scheme);
        held.sort();
        assert_eq!(
            held,
            sorted(&[
                "name",
                "transcribed",
                "what_if",
                "large_pages",
                "misses_over_time",
                "host_page_bytes",
                "time_vs_native",
                "cycles_per_access",
                "lacking",
                "accesses",
                "instructions",
                "lookups",
                "second_tlb_hits",
                "tlb_misses",
                "walks",
                "references",
                "grid",
                "served",
                "splintered",
                "unexplained",
                "exits",
                "process_switches",
                "cycles",
                "walk_duration",
                "table_bytes",
            ])
        );
        for end in ["value", "low", "high"] {
            assert!(scheme["time_vs_native"][end].is_f64(), "{scheme}");
        }
        let cells = scheme["grid"].as_array().expect("rows").iter();
        let cells = cells.flat_map(|row| row.as_array().expect("cells"));
        let sum: u64 = cells.map(|cell| cell.as_u64().expect("a count")).sum();
        assert_eq!(scheme["references"], sum);
        let mut held = names(&scheme["exits"]);
        held.sort();
        assert_eq!(held, sorted(&causes));
        let mut held = names(&scheme["cycles"]);
        held.sort();
        assert_eq!(
            held,
            sorted(&[
                "instructions",
                "data",
                "waiting",
                "second_tlb",
                "guest_walk",
                "host_walk",
                "process_switches",
                "exits"
            ])
        );
        assert_eq!(names(&scheme["table_bytes"]).len(), 2);
    }
    assert!(report["advice"].is_array() && report["notes"].is_array());
}

#[test]
fn csv_of_several_workloads_is_one_table() {
    let workloads = ["gen:btree,size=4,seed=2", "gen:gups,size=64"];
    let options = ["--accesses", "40000", "--csv", "--scheme", "native,ept", "--host-page", "2M"];
    let output = slat(&[&["compare"], &workloads[..], &options[..]].concat());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = stdout(&output);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 5, "a header, and two schemes each:\n{text}");
    assert!(lines[0].starts_with("workload,scheme,"), "{text}");
    let columns = lines[0].split(',').count();
    // A name with commas is quoted, and one field.
    assert!(lines[1].starts_with("\"btree,size=4,seed=2\",native,"), "{text}");
    let unquoted = |line: &str| line.replace("btree,size=4,seed=2", "").replace("gups,size=64", "");
    for line in &lines[1..] {
        assert_eq!(unquoted(line).split(',').count(), columns, "{line}");
    }
    assert!(lines[4].starts_with("\"gups,size=64\",ept,false,2097152,"), "{text}");
}

#[test]
fn the_same_command_gives_the_same_bytes_whatever_the_threads() {
    let run = |threads: &str| {
        Command::new(env!("CARGO_BIN_EXE_slat"))
            .args(["compare", &recording("clear-refs"), "--json"])
            .env("RAYON_NUM_THREADS", threads)
            .output()
            .expect("slat starts")
            .stdout
    };
    let one = run("1");
    assert!(!one.is_empty());
    assert_eq!(one, run("2"));
    assert_eq!(one, run("5"));
}

#[test]
fn a_page_is_written_whole_and_needs_no_network() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("out.html");
    let path = file.display().to_string();
    let output = slat(&["compare", &recording("clear-refs"), "--html", &path]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let page = std::fs::read_to_string(&file).expect("it was written");
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
    assert!(page.contains("prefers-color-scheme:dark"));
    for outside in ["http:", "https:", "src=", "@import", "url(", "<script"] {
        assert!(!page.contains(outside), "{outside}");
    }
    // Nothing is left beside it, and where it cannot be written nothing is.
    assert_eq!(std::fs::read_dir(&folder).expect("readable").count(), 1);
    let nowhere = folder.path().join("no/out.html").display().to_string();
    let output = slat(&["compare", &recording("clear-refs"), "--html", &nowhere]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("cannot write"), "{}", stderr(&output));
}

#[test]
fn perf_names_events_and_what_they_leave_out() {
    let output = slat(&["compare", "--perf"]);
    assert_eq!(output.status.code(), Some(0));
    let text = stdout(&output);
    assert!(text.starts_with("perf stat -e "), "{text}");
    assert!(text.contains("ept.walk_pending") && text.contains("left out"), "{text}");
}

#[test]
fn terms_are_explained() {
    let output = slat(&["compare", "--explain", "refs"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(stdout(&output).contains("24"), "{}", stdout(&output));
    for column in ["refs/walk", "time vs native", "hidden-fault", "range"] {
        let output = slat(&["compare", "--explain", column]);
        assert_eq!(output.status.code(), Some(0), "{column}");
    }
    let output = slat(&["compare", "--explain", "nonsense"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("tlb-miss"), "{}", stderr(&output));
}

#[test]
fn unusable_input_is_named() {
    let output = slat(&["compare", "/no/such/file.slat"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("/no/such/file.slat"), "{}", stderr(&output));

    let output = slat(&["compare", "--processor", "pentium"]);
    assert_eq!(output.status.code(), Some(2));
    let message = stderr(&output);
    assert!(message.contains("pentium") && message.contains("skylake-sp"), "{message}");

    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("mine.toml");
    let preset = Path::new(env!("CARGO_MANIFEST_DIR")).join("../slat-sim/presets/skylake-sp.toml");
    let text = std::fs::read_to_string(preset).expect("the preset is there");
    let line = 1 + text.lines().position(|line| line.starts_with("base_cpi")).expect("a line");
    std::fs::write(&file, text.replace("base_cpi", "base_cpj")).expect("it is written");
    let output = slat(&["compare", "--processor", &file.display().to_string()]);
    assert_eq!(output.status.code(), Some(2));
    let message = stderr(&output);
    assert!(message.contains("mine.toml") && message.contains("base_cpj"), "{message}");
    assert!(message.contains(&format!("line {line}")), "line {line}: {message}");
}

#[test]
fn generated_guests_are_listed_and_run() {
    let output = slat(&["compare", "--list"]);
    assert_eq!(output.status.code(), Some(0));
    let text = stdout(&output);
    for name in ["segv", "compile", "terminal", "skylake-sp", "kvm-3.0"] {
        assert!(text.contains(name), "{name}: {text}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    let output = slat(&["compare", "gen:fcw,pages=20", "--accesses", "50000", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["origin"], "generated");
    assert_eq!(report["workload"], "fcw,pages=20");
    let output = slat(&["compare", "gen:fwc"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("fcw"), "{}", stderr(&output));
}

#[test]
fn machines_that_share_cores_disturb_each_other() {
    let walks = |arguments: &[&str]| -> Vec<u64> {
        let output = slat(arguments);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let reports = stdout(&output);
        let walks = |line: &str| -> u64 {
            let report: Value = serde_json::from_str(line).expect("JSON");
            report["schemes"][0]["walks"].as_u64().expect("a count")
        };
        reports.lines().map(walks).collect()
    };
    let small = ["gen:btree,size=4", "gen:gups,size=64"];
    let common = ["--accesses", "100000", "--json", "--scheme", "native"];
    let alone = walks(&[&["compare"], &small[..], &common[..]].concat());
    let together = walks(&[&["compare"], &small[..], &common[..], &["--share", "2000"]].concat());
    let untagged =
        walks(&[&["compare"], &small[..], &common[..], &["--share", "2000", "--no-tags"]].concat());
    let spaces =
        walks(&[&["compare"], &small[..], &common[..], &["--share", "2000", "--pcid"]].concat());
    // Without virtualization a turn is a load of CR3: tags of virtual machines do not matter to it,
    // numbers of address spaces do.
    assert!(alone[0] < together[0], "{alone:?} {together:?}");
    assert_eq!(together, untagged);
    assert!(spaces[0] < together[0], "{spaces:?} {together:?}");
}

#[test]
fn each_switch_of_virtual_machines_is_an_exit() {
    let arguments = ["compare", "gen:btree,size=4", "gen:gups,size=64", "--accesses", "60000"];
    let options = ["--json", "--scheme", "ept", "--host-page", "2M", "--share", "10000"];
    let output = slat(&[&arguments[..], &options[..]].concat());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let mut switches = 0;
    for line in stdout(&output).lines() {
        let report: Value = serde_json::from_str(line).expect("JSON");
        let of = |nth: usize| report["schemes"][nth]["exits"]["switch"].as_u64().expect("a count");
        let native = &report["schemes"][0];
        assert_eq!((native["name"].as_str(), of(0)), (Some("native"), 0));
        // There each is a process switch, at the preset's price.
        assert_eq!(native["process_switches"].as_u64(), Some(of(1)));
        let cycles = &native["cycles"]["process_switches"]["value"];
        assert_eq!(cycles.as_f64(), Some(of(1) as f64 * 3500.0));
        assert_eq!(report["schemes"][1]["process_switches"].as_u64(), Some(0));
        let cycles = &report["schemes"][1]["cycles"]["exits"]["switch"]["value"];
        // Round trip and handler of the preset.
        assert_eq!(cycles.as_f64(), Some(of(1) as f64 * (1200.0 + 3500.0)));
        switches += of(1);
    }
    // Six turns each, and one more in which a guest finds that it has ended.
    assert!((10..=12).contains(&switches), "{switches}");
}

#[test]
fn sharing_refuses_schemes_that_transcribe() {
    let guests = ["compare", "gen:oltp", "gen:fcw", "--accesses", "60000", "--share", "20000"];
    let output = slat(&[&guests[..], &["--scheme", "ept,stage2", "--host-page", "2M"]].concat());
    assert_eq!(output.status.code(), Some(2), "{}", stdout(&output));
    let message = stderr(&output);
    assert!(message.contains("stage2") && message.contains("--scheme"), "{message}");
}

#[test]
fn pcids_are_said_of_x86_guests_alone() {
    let text = |workload: &str, scheme: &str| {
        let options = ["--scheme", scheme, "--host-page", "2M", "--accesses", "40000", "--pcid"];
        let output = slat(&[&["compare", workload][..], &options[..]].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        stdout(&output)
    };
    assert!(text("gen:fcw", "ept").contains("what if with PCIDs"));
    let arm = text(&recording("fork-aarch64"), "stage2");
    assert!(!arm.contains("what if with PCIDs") && arm.contains("ASIDs"), "{arm}");
}

#[test]
fn the_sentence_is_of_a_scheme_that_ran() {
    let sentence = |scheme: &str| {
        let guest = ["compare", "gen:gups,size=64", "--accesses", "40000", "--host-page", "2M"];
        let output = slat(&[&guest[..], &["--scheme", scheme]].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let text = stdout(&output);
        assert!(!text.contains("No run times"), "{text}");
        text.lines().skip(1).take(2).collect::<Vec<_>>().join(" ")
    };
    assert!(
        sentence("g-stage").starts_with("Under g-stage with 2M host pages, transcribed, it runs ")
    );
    assert!(
        sentence("stage2,g-stage").starts_with("Under stage2 with 2M host pages, transcribed,")
    );
    assert!(sentence("shadow").starts_with("Under shadow it runs "));
    assert!(sentence("native").starts_with("Only native was run"));
}

#[test]
fn what_the_processor_lacks_is_a_what_if_and_no_advice() {
    let text = |processor: &str, more: &[&str]| {
        let guest = ["compare", "gen:fcw", "--accesses", "60000", "--processor", processor];
        let output = slat(&[&guest[..], &["--advice"], more].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        stdout(&output).replace('\n', " ")
    };
    let core_2 = text("core-2", &[]);
    assert!(core_2.contains("In a VM with shadow paging it runs "), "{core_2}");
    assert!(core_2.contains("with SLAT, which this processor lacks,"), "{core_2}");
    assert!(core_2.contains("a processor with SLAT instead"), "{core_2}");
    assert!(
        !core_2.contains("the processor's SLAT") && !core_2.contains("--host-page"),
        "{core_2}"
    );
    let only = text("core-2", &["--scheme", "ept", "--host-page", "2M"]);
    assert!(only.contains("which this processor lacks, and 2M host pages it would run"), "{only}");
    let nehalem = text("nehalem", &[]);
    assert!(nehalem.contains("In a VM with SLAT and 2M host pages it runs"), "{nehalem}");
    assert!(nehalem.contains("--host-page 2M") && !nehalem.contains("--host-page 1G"), "{nehalem}");
    let huge = text("nehalem", &["--host-page", "1G"]);
    assert!(huge.contains("1G host pages, which this processor lacks, it would run"), "{huge}");
    assert!(text("westmere", &[]).contains("In a VM with SLAT and 2M host pages it runs"));
}

#[test]
fn a_warm_up_that_leaves_nothing_is_refused() {
    let output =
        slat(&["compare", "gen:btree,size=4", "--accesses", "5000", "--warm-up", "900000"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let message = stderr(&output);
    assert!(message.contains("warm-up") && message.contains("900000"), "{message}");
}

#[test]
fn a_hypervisor_says_what_it_does_on_the_processor() {
    let accesses = ["gen:fcw", "--accesses", "30000", "--json"];
    let schemes = |processor: &str, hypervisor: &str| -> Vec<String> {
        let chosen = ["compare", "--processor", processor, "--hypervisor", hypervisor];
        let output = slat(&[&chosen[..], &accesses[..]].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let schemes = report["schemes"].as_array().expect("schemes").iter();
        schemes.map(|scheme| scheme["name"].as_str().expect("a name").to_owned()).collect()
    };
    assert_eq!(schemes("core-2", "kvm-3.0"), ["native", "shadow"]);
    assert_eq!(schemes("barcelona", "esx-3.5"), ["native", "npt", "npt"]);
    // A scheme that is asked for has the host pages of the hypervisor, as the default has.
    let ept = |more: &[&str]| -> Vec<Option<u64>> {
        let chosen = ["compare", "--processor", "nehalem", "--hypervisor", "hyper-v-2008-r2"];
        let output = slat(&[&chosen[..], &accesses[..], &["--host-page", "1G"], more].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let schemes = report["schemes"].as_array().expect("schemes").iter();
        schemes.map(|scheme| scheme["host_page_bytes"].as_u64()).collect()
    };
    assert_eq!(ept(&["--scheme", "ept"]), [None, Some(2 << 20)]);
    assert_eq!(ept(&[]), [None, Some(2 << 20)]);
    // One that it does not have is refused.
    for other in ["shadow", "npt", "native,shadow-trap", "ept,g-stage"] {
        let output = slat(&["compare", "--hypervisor", "bhyve-10.0", "--scheme", other]);
        assert_eq!(output.status.code(), Some(2), "{other}");
        let message = stderr(&output);
        let name = other.split(',').next_back().expect("one");
        assert!(message.contains(name) && message.contains("ept"), "{message}");
    }
    let output = slat(&["compare", "--processor", "core-2", "--hypervisor", "hyper-v-windows-8"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("SLAT"), "{}", stderr(&output));
}

#[test]
fn numbers_of_accesses_have_k_and_m_behind_them() {
    let json = |arguments: &[&str]| -> Vec<Value> {
        let common = ["--json", "--scheme", "native"];
        let output = slat(&[&["compare"], arguments, &common[..]].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        stdout(&output).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    };
    let guest = "gen:gups,size=64,seed=7";
    let counted = |report: &Value| report["schemes"][0]["accesses"].as_u64().expect("a count");
    let all = counted(&json(&[guest, "--accesses", "40k"])[0]);
    assert!((40_000..140_000).contains(&all), "{all}");
    let left = counted(&json(&[guest, "--accesses", "40k", "--warm-up", "15k"])[0]);
    assert_eq!(left, all - 15_000);
    let shared = json(&[guest, "gen:btree,size=4", "--accesses", "40k", "--share", "10k"]);
    assert!(shared[0]["notes"].to_string().contains("turns of 10000 accesses"), "{}", shared[0]);
    for wrong in [["--accesses", "20X"], ["--share", "0"]] {
        let output = slat(&[&["compare", guest][..], &wrong].concat());
        assert_eq!(output.status.code(), Some(2), "{output:?}");
    }
}

#[test]
fn what_was_asked_for_and_is_not_so_is_noted() {
    let notes = |arguments: &[&str]| {
        let common = ["--json", "--accesses", "30k"];
        let output = slat(&[&["compare"], arguments, &common[..]].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        report["notes"].to_string()
    };
    let xen = ["gen:fcw", "--hypervisor", "xen-3.2", "--processor", "barcelona"];
    let note = notes(&[&xen[..], &["--host-page", "1G"]].concat());
    assert!(note.contains("4K") && note.contains("in place of 1G"), "{note}");
    assert_eq!(notes(&xen), "[]");
    // An Arm guest on the default processor, which is none of Arm's.
    let arm = recording("fork-aarch64");
    let note = notes(&[&arm, "--scheme", "stage2", "--host-page", "2M"]);
    assert!(note.contains("AArch64") && note.contains("neoverse-n1"), "{note}");
    let own = notes(&[&arm, "--scheme", "stage2", "--processor", "neoverse-n1"]);
    assert_eq!(own, "[]");
}

#[test]
fn a_strict_run_over_rows_that_hold_succeeds() {
    let strict = |rows: &str| {
        slat(&["reproduce", "--strict", "--row", rows]).status.code().expect("it ends")
    };
    // Those that are a matter of words among them.
    assert_eq!(strict("1,2,11,C12,C14,C15"), 0);
}
