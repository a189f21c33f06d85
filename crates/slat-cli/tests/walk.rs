//! `slat walk` on x86 tables, from outside: the contract of its options, exit codes and JSON.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

/// Guest physical addresses are this far below system physical ones.
const GUEST: u64 = 0x20_0000;

/// Entries of one byte order and two sizes, by system physical address, in 4 MiB of memory.
fn memory() -> Vec<u8> {
    let mut bytes = vec![0; 4 << 20];
    let mut set = |address: u64, size: usize, value: u64| {
        let at = address as usize;
        bytes[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
    };
    // EPT: one 2 MiB page, writable; then one that is read-only, a reserved type, nothing, and
    // one that can be read and executed.
    set(0x1000, 8, 0x2007);
    set(0x2000, 8, 0x3007);
    set(0x3000, 8, GUEST | 0xb7);
    set(0x3008, 8, GUEST | 0xb1);
    set(0x3010, 8, GUEST | 0x97);
    set(0x3020, 8, GUEST | 0xb5);
    // EPT of five levels above it.
    set(0x4000, 8, 0x1007);
    // NPT: the same page; then one that is no user page, and a reserved bit.
    set(0x5000, 8, 0x6007);
    set(0x6000, 8, 0x7007);
    set(0x7000, 8, GUEST | 0xe7);
    set(0x7008, 8, GUEST | 0xe3);
    set(0x7010, 8, GUEST | 0x20e7);
    // The guest, four levels: a user page, a read-only supervisor page with XD, a table at 4 MiB and
    // nothing.
    set(GUEST + 0x1000, 8, 0x2007);
    set(GUEST + 0x2000, 8, 0x3007);
    set(GUEST + 0x3000, 8, 0x4007);
    set(GUEST + 0x3008, 8, 0x40_0007);
    set(GUEST + 0x4000, 8, 0x9007);
    set(GUEST + 0x4008, 8, 1 << 63 | 0xa001);
    // Five levels above it.
    set(GUEST + 0x5000, 8, 0x1007);
    // PAE: the same page directory for the second gigabyte.
    set(GUEST + 0x6028, 8, 0x3001);
    // 32-bit: a page and a 4 MiB page beyond 4 GiB (PSE-36).
    set(GUEST + 0x7000, 4, 0x8007);
    set(GUEST + 0x7004, 4, 1 << 13 | 0xc7);
    set(GUEST + 0x8000, 4, 0x9003);
    // PDPTEs that no processor loads.
    set(GUEST + 0x6040, 8, 0x3003);
    bytes
}

fn slat(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slat"));
    command.arg("walk").args(arguments).current_dir(directory);
    command
}

fn image() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("image.raw"), memory()).unwrap();
    directory
}

fn run(arguments: &[&str]) -> Output {
    let image = image();
    slat(image.path(), &[&["image.raw"][..], arguments].concat())
        .output()
        .expect("the command runs")
}

/// The one line of JSON that these arguments give with this exit code.
fn answer(code: i32, arguments: &[&str]) -> Value {
    let done = run(&[&["--json"][..], arguments].concat());
    let errors = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(code), "{arguments:?}: {errors}");
    assert!(errors.is_empty(), "{errors}");
    serde_json::from_slice(&done.stdout).expect("one object")
}

/// The one line of standard error with which these arguments are refused.
fn refusal(arguments: &[&str]) -> String {
    let done = run(arguments);
    let errors = String::from_utf8(done.stderr).unwrap();
    assert_eq!(done.status.code(), Some(2), "{arguments:?}: {errors}");
    assert!(done.stdout.is_empty(), "{arguments:?}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
    errors
}

#[track_caller]
fn assert_fields(found: &Value, expected: &[(&str, Value)]) {
    for (key, expected) in expected {
        assert_eq!(&found[key], expected, "{key}: {found}");
    }
}

const GUEST_4: &str = "x86-4,cr3=0x1000,cr0=0x80010001,cr4=0x20,efer=0xd00";

#[test]
fn every_field_of_a_translation() {
    let found = answer(0, &["--stage1", GUEST_4, "--stage2", "ept4:0x1000", "0x123"]);
    assert_fields(
        &found,
        &[
            ("input", json!("0x123")),
            ("gpa", json!("0x9123")),
            ("spa", json!("0x209123")),
            ("page_size", json!(4096)),
            ("read", json!(true)),
            ("write", json!(true)),
            ("execute", json!(true)),
            // EPT's type takes the place of the MTRRs'.
            ("memory_type", json!("WB")),
            ("references", json!(4 + 5 * 3)),
            ("fault", Value::Null),
        ],
    );
    let steps = found["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 19);
    let keys: Vec<&String> = steps[0].as_object().unwrap().keys().collect();
    assert_eq!(
        keys.len(),
        ["stage", "level", "arch_level", "for", "entry_address", "entry", "kind", "meaning"].len()
    );
    assert_fields(
        &steps[3],
        &[
            ("stage", json!(1)),
            ("level", json!(3)),
            ("arch_level", json!(4)),
            ("for", json!("data")),
            ("entry_address", json!("0x1000")),
            ("entry", json!("0x2007")),
            ("kind", json!("table")),
        ],
    );
    assert_fields(&steps[2], &[("for", json!("table")), ("kind", json!("leaf"))]);
    assert_fields(&steps[18], &[("for", json!("data")), ("level", json!(1))]);
}

/// Accessed bits are set through stage 2, where the processor sets them, and only in a copy.
#[test]
fn updates_are_made_where_they_are_asked_for() {
    let through = |root: &'static str, more: &[&'static str]| {
        let mut arguments = vec!["--stage2", "ept4:0x1000", "--stage1", root];
        arguments.extend(more);
        arguments.push("0");
        arguments
    };
    let plain = answer(0, &through("x86-4:0x1000", &[]));
    let updated = answer(0, &through("x86-4:0x1000", &["--update"]));
    for field in ["spa", "references", "write", "page_size"] {
        assert_eq!(plain[field], updated[field], "{field}");
    }
    // Its entries were not accessed: stage 2 is walked once more for each.
    let steps = |of: &Value| of["steps"].as_array().unwrap().len();
    assert_eq!(steps(&updated), steps(&plain) + 4 * 3);
    // The root lies where stage 2 permits no writes.
    answer(0, &through("x86-4:0x801000", &[]));
    let refused = answer(1, &through("x86-4:0x801000", &["--update"]));
    assert_fields(
        &refused["fault"],
        &[
            ("stage", json!(2)),
            ("during", json!("update")),
            ("cause", json!("permission")),
            ("address", json!("0x801000")),
        ],
    );
}

#[test]
fn one_stage_alone() {
    let native = answer(0, &["--base", "0x0", "--stage1", "x86-4:0x5000", "0x1"]);
    assert_fields(
        &native,
        &[
            ("gpa", json!("0x200001")),
            ("spa", Value::Null),
            ("page_size", json!(2 << 20)),
            ("memory_type", json!("WB before MTRRs")),
            ("references", json!(3)),
        ],
    );
    let second = answer(0, &["--stage2", "ept4:0x1000", "1"]);
    assert_fields(&second, &[("gpa", json!("0x1")), ("spa", json!("0x200001"))]);
}

#[test]
fn every_width() {
    for (stage1, stage2, address, references) in [
        ("x86-5:0x5000", "ept4:0x1000", "0x123", 5 + 6 * 3),
        (GUEST_4, "ept5:0x4000", "0x123", 4 + 5 * 4),
        (GUEST_4, "npt4:0x5000", "0x123", 4 + 5 * 3),
        // PDPTEs are registers natively and under EPT, and read on demand under NPT.
        ("x86-pae,cr3=0x6020", "ept4:0x1000", "0x40000123", 2 + 3 * 3),
        ("x86-pae,pdpte0=0,pdpte1=0x3001", "ept4:0x1000", "0x40000123", 2 + 3 * 3),
        ("x86-pae,cr3=0x6020", "npt4:0x5000", "0x40000123", 3 + 4 * 3),
        ("x86-32:0x7000,cr4=0x10", "ept4:0x1000", "0x123", 2 + 3 * 3),
    ] {
        let found = answer(0, &["--stage1", stage1, "--stage2", stage2, address]);
        let expected = [("spa", json!("0x209123")), ("references", json!(references))];
        assert_fields(&found, &expected);
    }
    // Without paging, whatever the mode is called: linear addresses are physical ones, of 32 bits.
    for stage1 in ["x86-32,cr3=0,cr0=0x10", "x86-pae,cr3=0,cr0=0x11", "x86-4,cr3=0,cr0=0x11"] {
        let unpaged = ["--stage1", stage1, "--stage2", "ept4:0x1000"];
        let found = answer(0, &[&unpaged[..], &["0x9123"]].concat());
        assert_fields(&found, &[("spa", json!("0x209123")), ("references", json!(3))]);
        let beyond = answer(1, &[&unpaged[..], &["0x100000000"]].concat());
        assert_eq!(beyond["fault"]["cause"], json!("input-size"));
    }
    let large = answer(0, &["--base", "0", "--stage1", "x86-32:0x207000", "0x400000"]);
    assert_fields(&large, &[("gpa", json!("0x100000000")), ("page_size", json!(4 << 20))]);
}

#[test]
fn faults_and_their_syndromes() {
    let fault = |stages: &[&str], rest: &[&str]| {
        let answered = answer(1, &[stages, rest].concat());
        assert_fields(&answered, &[("spa", Value::Null), ("page_size", Value::Null)]);
        answered["fault"].clone()
    };
    let ept = ["--stage1", GUEST_4, "--stage2", "ept4,eptp=0x105e"];
    let write = fault(&ept, &["--access", "w", "0x1008"]);
    assert_fields(
        &write,
        &[
            ("stage", json!(1)),
            ("level", json!(0)),
            ("cause", json!("permission")),
            ("during", json!("data")),
        ],
    );
    assert_eq!(write["syndrome"]["error_code"], json!("0x3"));
    assert_eq!(write["syndrome"]["cr2"], json!("0x1008"));
    let fetch = fault(&ept, &["--access", "x", "--user", "0x1008"]);
    assert_eq!(fetch["syndrome"]["error_code"], json!("0x15"));
    let absent = fault(&ept, &["0x2000"]);
    assert_eq!(absent["syndrome"]["error_code"], json!("0x0"));
    // A table at a GPA with a reserved memory type: a misconfiguration has no qualification.
    let table = fault(&ept, &["0x200000"]);
    assert_fields(
        &table,
        &[
            ("stage", json!(2)),
            ("cause", json!("misconfiguration")),
            ("during", json!("table")),
            ("address", json!("0x400000")),
        ],
    );
    assert!(table["syndrome"].get("exit_qualification").is_none());
    let gp = fault(&ept, &["0x800000000000"]);
    assert_eq!(gp["cause"], json!("non-canonical"));
    assert_eq!(gp["syndrome"]["name"], json!("#GP"));

    // Reads of guest tables are writes with EPT's A/D flags, so that the read-only page denies them;
    // the load of PDPTEs stays a read, of no linear address.
    let table = fault(&["--stage1", "x86-4:0x201000", "--stage2", "ept4:0x1000,ad=on"], &["0"]);
    assert_eq!(table["syndrome"]["exit_qualification"], json!("0x8b"));
    let pae = ["--stage1", "x86-pae,cr3=0x600000", "--stage2", "ept4:0x1000,ad=on"];
    let load = fault(&pae, &["0x40000000"]);
    assert_fields(&load, &[("stage", json!(2)), ("during", json!("pdpte-load"))]);
    assert_eq!(load["syndrome"]["exit_qualification"], json!("0x1"));
    // Neither is there a linear address without a stage 1.
    let alone = fault(&["--stage2", "ept4:0x1000"], &["--access", "w", "0x200000"]);
    assert_eq!(alone["syndrome"]["exit_qualification"], json!("0xa"));
    let wide = fault(&["--stage2", "ept4:0x1000"], &["--access", "x", "0x1000000000000"]);
    assert_eq!(wide["syndrome"]["exit_qualification"], json!("0x4"));

    // Every nested access is a user access; those to guest tables are writes.
    let npt = ["--stage1", "x86-4:0x200000", "--stage2", "npt4:0x5000"];
    let table = fault(&npt, &["0"]);
    assert_eq!(table["syndrome"]["exitinfo1"], json!("0x200000007"));
    let reserved = fault(&["--stage2", "npt4:0x5000"], &["--access", "x", "0x400000"]);
    assert_eq!(reserved["cause"], json!("reserved-bit"));
    assert_eq!(reserved["syndrome"]["exitinfo1"], json!("0x10000001d"));
    assert_eq!(reserved["syndrome"]["exitinfo2"], json!("0x400000"));
}

#[test]
fn registers_decide() {
    let allowed = |spec: &str, rest: &[&str]| {
        let answered =
            run(&[&["--json", "--stage1", spec, "--stage2", "ept4:0x1000"][..], rest].concat());
        assert!(answered.stderr.is_empty(), "{}", String::from_utf8_lossy(&answered.stderr));
        answered.status.code() == Some(0)
    };
    let guest = |registers: &str| format!("x86-4,cr3=0x1000,{registers}");
    // CR0.WP, SMEP, SMAP and AC, protection keys of page 0 (a user page with key 0).
    assert!(allowed(&guest("cr0=0x80000001"), &["--access", "w", "0x1000"]));
    assert!(!allowed(&guest("cr4=0x100020"), &["--access", "x", "0"]));
    assert!(!allowed(&guest("cr4=0x200020"), &["0"]));
    assert!(allowed(&guest("cr4=0x200020,ac=on"), &["0"]));
    assert!(allowed(&guest("cr4=0x400020,pkru=0xfffffffc,pkrs=0"), &["0"]));
    assert!(!allowed(&guest("cr4=0x400020,pkru=0x2"), &["--user", "--access", "w", "0"]));
    // Without NXE, XD is reserved; so are address bits beyond the processor's.
    assert!(!allowed(&guest("nxe=off"), &["0x1000"]));
    assert!(allowed(&guest("maxphyaddr=36,vendor=intel"), &["0x1000"]));
    // LAM: tags of user pointers; LASS: the supervisor executes no user addresses.
    assert!(!allowed("x86-4,cr3=0x1000", &["0x7000000000000000"]));
    assert!(allowed("x86-4,cr3=0x4000000000001000", &["0x7000000000000000"]));
    let lass = ["--stage1", "x86-4,cr3=0x1000,cr4=0x8000020", "--stage2", "ept4:0x1000", "0"];
    assert_fields(&answer(0, &lass), &[("read", json!(true)), ("execute", json!(false))]);

    // PAT entry 0 is WT in the guest; under NPT the host's entry 0 is UC.
    let pat = |stage2: &str| {
        let found = answer(0, &["--stage1", "x86-4:0x1000,pat=0x04", "--stage2", stage2, "0x123"]);
        found["memory_type"].clone()
    };
    assert_eq!(pat("ept4:0x1000"), json!("WT"));
    assert_eq!(pat("npt4,ncr3=0x5000,hpat=0x0"), json!("UC before MTRRs"));
}

#[test]
fn contradictions_are_refused() {
    let ept = "ept4:0x1000";
    for (stage1, stage2, says) in [
        ("x86-6:0x1000", ept, "x86-5"),
        ("ept4:0x1000", ept, "stage-2 format"),
        ("sv39:0x1000", ept, "cannot be the second stage of sv39"),
        ("x86-4:0x1000,crx=1", ept, "pkru"),
        ("x86-4:0x1000,pat", ept, "key=value"),
        ("x86-4:0x1000,pat=1,pat=1", ept, "twice"),
        ("x86-4:zero", ept, "not a number"),
        ("x86-4", ept, "cr3=0x..."),
        ("x86-4:0x1000,cr3=0x1000", ept, "given twice"),
        ("x86-4:0x1008", ept, "4096"),
        ("x86-4:0x4000000000001000", ept, "beyond"),
        ("x86-32:0x100000000", ept, "32 bits"),
        ("x86-pae:0x6008", ept, "32"),
        ("x86-pae:0x6020,pdpte0=1", ept, "given twice"),
        ("x86-pae,pdpte0=3", ept, "reserved bits 0x2"),
        ("x86-pae,cr3=0x6040", ept, "pdpte0= to pdpte3="),
        ("x86-pae,pdpte0=1", "npt4:0x5000", "on demand"),
        ("x86-32:0x1000,cr4=0x20", ept, "CR4.PAE"),
        ("x86-5:0x1000,cr4=0x20", ept, "CR4.LA57"),
        ("x86-4:0x1000,efer=0", ept, "EFER.LMA"),
        ("x86-4:0x1000,cr0=0x11,efer=0x500", ept, "CR0.PG"),
        ("x86-4:0x1000,efer=0xd00,nxe=off", ept, "nxe="),
        ("x86-4:0x1000,efer=0x100500", ept, "UAIE"),
        ("x86-4:0x1000,pat=0x02", ept, "entry 0 is 0x2"),
        ("x86-4:0x1000,ac=maybe", ept, "ac=on"),
        ("x86-4:0x1000,maxphyaddr=53", ept, "32 to 52"),
        ("x86-4:0x1000,vendor=amd", ept, "Intel's"),
        ("x86-4:0x1000,vendor=via", ept, "intel or amd"),
        ("x86-4:0x1000", "npt4:0x5000,vendor=intel", "AMD's"),
        ("x86-4:0x1000", "npt4:0x5000,cr4=0x1020", "CR4.LA57"),
        ("x86-4:0x1000", "npt4:0x5000,hpat=0x0300", "entry 1 is 0x3"),
        ("x86-4:0x1000", "npt-32:0x100005000", "32 bits"),
        ("x86-4:0x1000", "npt4:0x5000,maxphyaddr=32,ncr3=1", "given twice"),
        ("x86-4:0x1000", "ept4,eptp=0x1059,ad=on", "memory type 1"),
        ("x86-4:0x1000", "ept4,eptp=0x1026", "levels"),
        ("x86-4:0x1000", "ept4,eptp=0x101e,ad=on", "contradicts bit 6"),
        ("x86-4:0x1000", "ept4,eptp=0x111e", "reserved bits 0x100"),
        ("x86-4:0x1000", "ept4:0x8000000000001000", "beyond"),
        ("x86-4:0x1000", "ept4:0x40000000", "outside the image"),
    ] {
        let errors = refusal(&["--stage1", stage1, "--stage2", stage2, "0"]);
        assert!(errors.contains(says), "{stage1} {stage2}: {errors}");
    }
    assert!(refusal(&["0"]).contains("--stage2"));
}

#[test]
fn addresses_from_standard_input() {
    let image = image();
    let mut child = slat(image.path(), &["image.raw", "--stage2", "ept4:0x1000", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command runs");
    let mut lines = b"0x1\r\n\nfrog\n-1\n".to_vec();
    // A number that is cut short would be another number.
    lines.extend([b'0'; 5000]);
    lines.extend(b"1\n\xff\n  2  \n0x600000");
    child.stdin.take().unwrap().write_all(&lines).unwrap();
    let done = child.wait_with_output().unwrap();
    assert_eq!(done.status.code(), Some(2));
    let answers: Vec<Value> = String::from_utf8(done.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).expect("an object a line"))
        .collect();
    let inputs: Vec<&Value> = answers.iter().map(|answer| &answer["input"]).collect();
    assert_eq!(inputs, [&json!("0x1"), &json!("0x2"), &json!("0x600000")]);
    let errors = String::from_utf8(done.stderr).unwrap();
    let places: Vec<&str> = errors.lines().filter_map(|line| line.split(": ").nth(1)).collect();
    assert_eq!(places, ["line 3", "line 4", "line 5", "line 6"], "{errors}");
}

#[test]
fn answers_come_before_the_next_question() {
    use std::io::{BufRead, BufReader};
    let image = image();
    let mut child = slat(image.path(), &["image.raw", "--stage2", "ept4:0x1000", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the command runs");
    let mut questions = child.stdin.take().unwrap();
    let mut answers = BufReader::new(child.stdout.take().unwrap());
    for _ in 0..3 {
        let mut line = String::new();
        writeln!(questions, "1").unwrap();
        answers.read_line(&mut line).unwrap();
        assert!(line.starts_with(r#"{"input":"0x1""#), "{line}");
    }
    drop(questions);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let image = image();
    let many = vec!["1"; 4000];
    let mut child =
        slat(image.path(), &[&["image.raw", "--stage2", "ept4:0x1000"][..], &many[..]].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command runs");
    drop(child.stdout.take());
    let done = child.wait_with_output().unwrap();
    assert_eq!(done.status.code(), Some(0));
    assert!(done.stderr.is_empty(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn images_in_every_form_and_bad_ones() {
    let directory = image();
    let path = directory.path();
    let ask = |image: &str, rest: &[&str]| {
        let done =
            slat(path, &[&[image, "--json", "--stage2"][..], rest].concat()).output().unwrap();
        (done.status.code(), done.stdout, String::from_utf8(done.stderr).unwrap())
    };
    let memory = memory();
    fs::write(path.join("low"), &memory[..0x2000]).unwrap();
    fs::write(path.join("high"), &memory[0x2000..0x4000]).unwrap();
    let (code, stdout, errors) = ask("low@0,high@0x2000", &["ept4:0x1000", "1"]);
    assert_eq!(code, Some(0), "{errors}");
    assert!(stdout.starts_with(br#"{"input":"0x1","gpa":"0x1","spa":"0x200001""#));
    let (code, ..) = ask("image.raw", &["ept4:0x1000", "0x600000"]);
    assert_eq!(code, Some(1));
    // The first table is there and the second is not: a result, which no processor reports.
    let (code, stdout, _) = ask("low", &["ept4:0x1000", "1"]);
    let answer: Value = serde_json::from_slice(&stdout).unwrap();
    assert_eq!((code, &answer["fault"]["cause"]), (Some(1), &json!("not-in-image")));
    assert_eq!(answer["fault"]["syndrome"], Value::Null);

    fs::write(path.join("empty"), b"").unwrap();
    fs::write(path.join("magic"), b"\x28\xb5\x2f\xfd").unwrap();
    let slice = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/ept-bochs.slice");
    let mut slice = fs::read(slice).unwrap();
    fs::write(path.join("cut"), &slice[..slice.len() / 2]).unwrap();
    let middle = slice.len() / 2;
    slice[middle..middle + 64].fill(0xff);
    fs::write(path.join("corrupt"), &slice).unwrap();
    for (image, says) in [
        ("missing", "missing"),
        (".", "regular file"),
        ("empty", "is empty"),
        ("magic", "cut short"),
        ("cut", "cut short"),
        ("corrupt", "corrupt"),
        ("low@0,high@0x1000", "0x1000"),
    ] {
        let (code, stdout, errors) = ask(image, &["ept4:0x1000", "1"]);
        assert_eq!((code, stdout.len()), (Some(2), 0), "{image}: {errors}");
        assert!(errors.contains(says) && errors.lines().count() == 1, "{image}: {errors}");
    }
}

#[test]
fn drawings_are_plain_text_elsewhere_than_on_a_terminal() {
    let done = run(&["--stage1", GUEST_4, "--stage2", "ept4:0x1000", "0x123", "0x2000"]);
    assert_eq!(done.status.code(), Some(1));
    let text = String::from_utf8(done.stdout).unwrap();
    assert!(!text.contains('\x1b'));
    assert!(text.contains("GPA 0x9123 = SPA 0x209123, 4K page, rwx, WB, 19 references"), "{text}");
    assert!(text.contains("#PF"), "{text}");
}
