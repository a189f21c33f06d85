//! The two smallest programs: they execute the recorder's marker and exit.

use crate::Arch;

const LOAD_AT: u64 = 0x40_0000;
const HEADERS: usize = 64 + 56;

/// x86-64: `mov eax, leaf; cpuid; mov eax, 60; xor edi, edi; syscall`.
fn x86_64(begin: bool) -> Vec<u8> {
    let leaf: u32 = if begin { 0x51a7_0001 } else { 0x51a7_0002 };
    let mut code = vec![0xb8];
    code.extend_from_slice(&leaf.to_le_bytes());
    code.extend_from_slice(&[0x0f, 0xa2, 0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05]);
    code
}

/// AArch64: `hint #0x7a or #0x7b; mov x0, #0; mov x8, #93; svc #0`.
fn aarch64(begin: bool) -> Vec<u8> {
    let hint: u32 = 0xd503_201f | if begin { 0x7a } else { 0x7b } << 5;
    [hint, 0xd280_0000, 0xd280_0ba8, 0xd400_0001].iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// A static ELF program for `arch` (x86-64 or AArch64) that begins or ends a recording.
pub(crate) fn program(arch: Arch, begin: bool) -> Vec<u8> {
    let (machine, code): (u16, _) = match arch {
        Arch::Aarch64 => (183, aarch64(begin)),
        _ => (62, x86_64(begin)),
    };
    let size = (HEADERS + code.len()) as u64;
    // The ELF header: 64 bits, little-endian, executable, one program header behind it.
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let half = |file: &mut Vec<u8>, values: &[u16]| {
        values.iter().for_each(|value| file.extend_from_slice(&value.to_le_bytes()));
    };
    let word = |file: &mut Vec<u8>, values: &[u32]| {
        values.iter().for_each(|value| file.extend_from_slice(&value.to_le_bytes()));
    };
    let long = |file: &mut Vec<u8>, values: &[u64]| {
        values.iter().for_each(|value| file.extend_from_slice(&value.to_le_bytes()));
    };
    half(&mut file, &[2, machine]);
    word(&mut file, &[1]);
    long(&mut file, &[LOAD_AT + HEADERS as u64, 64, 0]);
    word(&mut file, &[0]);
    half(&mut file, &[64, 56, 1, 64, 0, 0]);
    // The program header: load all of the file, readable and executable.
    word(&mut file, &[1, 5]);
    long(&mut file, &[0, LOAD_AT, LOAD_AT, size, size, 0x1000]);
    file.extend_from_slice(&code);
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_headers_are_as_long_as_they_say() {
        for arch in [Arch::X86_64, Arch::Aarch64] {
            let (begin, end) = (program(arch, true), program(arch, false));
            assert_eq!(begin.len(), end.len());
            assert_ne!(begin, end);
            let entry = u64::from_le_bytes(begin[24..32].try_into().unwrap());
            assert_eq!(entry, LOAD_AT + HEADERS as u64);
        }
    }

    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    #[test]
    fn the_programs_run_and_exit_on_any_processor() {
        use std::os::unix::fs::PermissionsExt;
        let place = tempfile::tempdir().unwrap();
        for begin in [true, false] {
            let path = place.path().join(format!("mark-{begin}"));
            std::fs::write(&path, program(Arch::X86_64, begin)).unwrap();
            let mode = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(&path, mode).unwrap();
            assert!(std::process::Command::new(&path).status().unwrap().success());
        }
    }
}
