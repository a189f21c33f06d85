//! The claim that `slat` needs neither std, nor an allocator, nor a C library: a program that has
//! none of them is linked against it, and run.

use std::path::Path;
use std::process::Command;

#[test]
fn links_and_runs_without_std() {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        eprintln!("skipped: the freestanding program is for Linux on x86-64");
        return;
    }
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/freestanding/Cargo.toml");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("freestanding");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--offline", "--manifest-path"])
        .arg(&manifest)
        .arg("--target-dir")
        .arg(&target)
        .status()
        .expect("cargo runs");
    assert!(built.success(), "it does not link");
    let ran = Command::new(target.join("debug/slat-freestanding")).status().expect("it starts");
    assert_eq!(ran.code(), Some(0), "1: a wrong translation; 101: a panic");
}
