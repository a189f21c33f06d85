//! `slat walk` on the tables of RISC-V and 32-bit Arm, from outside.

use std::fs;
use std::process::{Command, Output};

use serde_json::{Value, json};

/// An image of 64 KiB whose first byte is at 2 GiB, with these entries: address, size, value.
struct Image(Vec<u8>);

const BASE: u64 = 0x8000_0000;

impl Image {
    fn new(entries: &[(u64, usize, u64)]) -> Image {
        let mut bytes = vec![0; 1 << 16];
        for &(address, size, value) in entries {
            let at = (address - BASE) as usize;
            bytes[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
        }
        Image(bytes)
    }

    fn walk(&self, arguments: &[&str]) -> Output {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("image.raw"), &self.0).unwrap();
        Command::new(env!("CARGO_BIN_EXE_slat"))
            .args(["walk", "image.raw", "--base", "0x80000000", "--json"])
            .args(arguments)
            .current_dir(directory.path())
            .output()
            .expect("the command runs")
    }

    /// The one line of JSON, without its steps.
    fn answer(&self, code: i32, arguments: &[&str]) -> Value {
        let done = self.walk(arguments);
        let errors = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(code), "{errors}");
        let mut answer: Value = serde_json::from_slice(&done.stdout).expect("one object");
        answer.as_object_mut().unwrap().remove("steps");
        answer
    }
}

fn ppn(address: u64) -> u64 {
    address >> 12 << 10
}

#[test]
fn riscv_two_stages() {
    // G-stage: guest 0 to 2 MiB is the image from its start, by one 2 MiB page; VS-stage: Sv39 with
    // one 4 KiB page and one pointer to guest memory that is not there.
    let image = Image::new(&[
        (0x8000_4000, 8, ppn(0x8000_8000) | 1),
        (0x8000_8000, 8, ppn(0x8000_0000) | 0xdf),
        (0x8000_1000, 8, ppn(0x2000) | 1),
        (0x8000_2000, 8, ppn(0x3000) | 1),
        (0x8000_2008, 8, ppn(0x40_0000) | 1),
        (0x8000_3008, 8, 1 << 61 | ppn(0x5000) | 0x4b),
    ]);
    let stages = ["--stage1", "sv39,vsatp=0x8000000000000001", "--stage2", "sv39x4:0x80004000"];
    let ask = |rest: &[&'static str]| [&stages[..], rest].concat();

    let found = image.answer(0, &ask(&["0x1234"]));
    for (key, expected) in [
        ("gpa", json!("0x5234")),
        ("spa", json!("0x80005234")),
        ("page_size", json!(4096)),
        ("read", json!(true)),
        ("write", json!(false)),
        ("execute", json!(true)),
        ("memory_type", json!("NC")),
        // Three reads of VS-stage, two of the G-stage for each and for the page.
        ("references", json!(3 + 4 * 2)),
        ("fault", Value::Null),
    ] {
        assert_eq!(found[key], expected, "{key}: {found}");
    }
    let fault = &image.answer(1, &ask(&["--access", "w", "0x1234"]))["fault"];
    assert_eq!(fault["syndrome"]["scause"], json!(15), "{fault}");
    let fault = &image.answer(1, &ask(&["--access", "x", "0x201008"]))["fault"];
    let syndrome = &fault["syndrome"];
    assert_eq!((&fault["stage"], &fault["during"]), (&json!(2), &json!("table")), "{fault}");
    assert_eq!(syndrome["name"], json!("instruction guest-page fault"), "{fault}");
    assert_eq!((&syndrome["htval"], &syndrome["htinst"]), (&json!("0x100002"), &json!("0x3000")));

    let refused = image.walk(&["--stage2", "sv39x4,hgatp=0x7000000000080004", "0"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("MODE is reserved"));
    assert!(refused.stdout.is_empty());
}

#[test]
fn arm_short_descriptors_over_stage_2() {
    let page = 1 << 10 | 3 << 8 | 3 << 6 | 0xf << 2;
    let image = Image::new(&[
        // Stage 2: two concatenated roots, one 2 MiB block.
        (0x8000_4000, 8, 0x8000_8003),
        (0x8000_8000, 8, 0x8000_0000 | page | 1),
        // Stage 1: a table in domain 0 with a small page, a section of domain 3.
        (0x8000_c000, 4, 0x2001),
        (0x8000_c004, 4, 0x10_0c02 | 3 << 5),
        (0x8000_2014, 4, 0x5000 | 0x32),
    ]);
    let stages = ["--stage2", "arm-lpae-s2:0x80004000,version=7", "--stage1"];
    let ask = |stage1: &'static str, rest: &[&'static str]| [&stages[..], &[stage1], rest].concat();
    let registers = "arm-short,ttbr0=0xc000,dacr=0x1,version=7";

    let found = image.answer(0, &ask(registers, &["--user", "0x5678"]));
    for (key, expected) in [
        ("gpa", json!("0x5678")),
        ("spa", json!("0x80005678")),
        ("page_size", json!(4096)),
        ("write", json!(true)),
        // Two descriptors, and two of stage 2 for each and for the page.
        ("references", json!(2 + 3 * 2)),
    ] {
        assert_eq!(found[key], expected, "{key}: {found}");
    }
    // Domain 3 is not enabled: a domain fault of a section.
    let fault = &image.answer(1, &ask(registers, &["--access", "w", "0x100000"]))["fault"];
    assert_eq!(fault["syndrome"]["dfsr"], json!("0x839"), "{fault}");
    assert_eq!(fault["syndrome"]["dfar"], json!("0x100000"));
    // A manager of it passes stage 1, and stage 2's block covers the address.
    let manager = "arm-short,ttbr0=0xc000,dacr=0xc1,version=7";
    let found = image.answer(0, &ask(manager, &["--access", "w", "0x100000"]));
    assert_eq!(found["spa"], json!("0x80100000"));
    // Nothing translates guest physical 0x200000 and on: Hyp mode takes it.
    let fault = &image.answer(1, &ask("arm-lpae:0x200000", &["--access", "w", "0"]))["fault"];
    let syndrome = &fault["syndrome"];
    // Translation fault at the manual's level 2, on a stage-1 table, by a write.
    assert_eq!(syndrome["hsr"], json!("0x900000c6"), "{fault}");
    assert_eq!(syndrome["hpfar"], json!("0x2000"));

    let refused = image.walk(&ask("arm-lpae:0,ttbcr=0", &["0"]));
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("selects short descriptors"));
}

#[test]
fn aarch64_asks_an_atomic_for_both_rights() {
    let block = |rights: u64| 0x8000_0000 | 1 << 10 | 3 << 8 | rights << 6 | 0xf << 2 | 1;
    for (rights, kind, code, writes) in [
        (0b10, "w", 0, None),
        (0b10, "rw", 1, Some(false)),
        (0b01, "rw", 1, Some(true)),
        (0b01, "w", 1, Some(true)),
        (0b11, "rw", 0, None),
    ] {
        let image = Image::new(&[(0x8000_4000, 8, block(rights))]);
        let stage2 = "arm64-s2:0x80004000,ipa=32";
        let answer = image.answer(code, &["--stage2", stage2, "--access", kind, "0x1000"]);
        let esr = answer["fault"]["syndrome"]["esr"].as_str();
        let esr = esr.map(|esr| u64::from_str_radix(&esr[2..], 16).unwrap());
        assert_eq!(esr.map(|esr| esr & 1 << 6 != 0), writes, "{rights:#b} {kind}: {answer}");
    }
}

/// The length of a 32-bit guest's instruction is not known, and shown as 0 (`ESR_EL2.IL`). With 32 bits
/// of IPA the walk begins at the manual's level 2.
#[test]
fn a_32_bit_guest_of_an_aarch64_hypervisor() {
    let image = Image::new(&[
        (0x8000_4000, 8, 0x8000_0000 | 1 << 10 | 3 << 8 | 3 << 6 | 0xf << 2 | 1),
        (0x8000_c004, 4, 0x4000_0c02),
    ]);
    let (stage2, stage1) = ("arm64-s2:0x80004000,ipa=32", "arm-short,ttbr0=0xc000,dacr=0x1");
    let answer = image.answer(1, &["--stage2", stage2, "--stage1", stage1, "0x100000"]);
    assert_eq!(answer["fault"]["syndrome"]["esr"], json!("0x90000006"), "{answer}");
}

#[test]
fn a_guest_is_no_wider_than_its_hypervisor() {
    let image = Image::new(&[]);
    let both = ["--stage1", "sv39:0x80001000", "--stage2", "sv32x4:0x80004000", "0"];
    let refused = image.walk(&both);
    assert_eq!(refused.status.code(), Some(2));
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(told.contains("sv32x4 cannot be the second stage of sv39"), "{told}");
}
