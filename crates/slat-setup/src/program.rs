//! Whether a program of this machine can run in the minimal guest.

use std::fs;
use std::io::Read;
use std::path::Path;

use crate::{Arch, Error, Result, io};

/// The largest part of a file that is looked at: headers are at its beginning.
const LOOKED_AT: u64 = 1 << 16;

/// Refuses an ELF program of another architecture, and one that needs shared libraries, which the
/// guest does not have; anything else (a script, say) is the guest's to judge.
///
/// # Errors
///
/// [`Error::Program`] with the remedy, or [`Error::Io`].
pub fn check_program(path: &Path, arch: Arch) -> Result<()> {
    let mut head = Vec::new();
    let file = fs::File::open(path).map_err(io(path))?;
    file.take(LOOKED_AT).read_to_end(&mut head).map_err(io(path))?;
    let why = match look(&head) {
        Some(Elf { machine, .. }) if machine != machine_of(arch) => {
            format!("is not a program for {arch}; give --arch, or compile it for {arch}")
        }
        Some(Elf { interpreter: Some(name), .. }) => format!(
            "needs shared libraries ({name}), which the guest does not have: link it with -static, \
             or put it into a folder together with its libraries and give that with --root"
        ),
        _ => return Ok(()),
    };
    Err(Error::Program { path: path.into(), why })
}

fn machine_of(arch: Arch) -> u16 {
    match arch {
        Arch::X86_64 => 62,
        Arch::Aarch64 => 183,
        Arch::Riscv64 => 243,
    }
}

struct Elf {
    machine: u16,
    /// The dynamic loader that the program names, if it names one.
    interpreter: Option<String>,
}

/// Reads the headers of a 64-bit little-endian ELF file; None for anything else.
fn look(head: &[u8]) -> Option<Elf> {
    let bytes = |at: usize, len: usize| head.get(at..)?.get(..len);
    let half = |at| Some(u16::from_le_bytes(bytes(at, 2)?.try_into().ok()?));
    let long = |at| Some(u64::from_le_bytes(bytes(at, 8)?.try_into().ok()?));
    if bytes(0, 6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (machine, table) = (half(18)?, long(32)?);
    let (size, count) = (usize::from(half(54)?), usize::from(half(56)?));
    const INTERPRETER: &[u8] = &[3, 0, 0, 0];
    let interpreter = (0..count).find_map(|index| {
        let at = usize::try_from(table).ok()?.checked_add(index * size)?;
        let is_one = bytes(at, 4)? == INTERPRETER;
        let (from, len) = (long(at.checked_add(8)?)?, long(at.checked_add(32)?)?);
        let name = bytes(usize::try_from(from).ok()?, usize::try_from(len).ok()?)?;
        is_one.then(|| String::from_utf8_lossy(name).trim_end_matches('\0').to_owned())
    });
    Some(Elf { machine, interpreter })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::marker;

    #[test]
    fn static_programs_and_what_is_no_program_pass() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("program");
        fs::write(&path, marker::program(Arch::X86_64, true)).unwrap();
        check_program(&path, Arch::X86_64).unwrap();
        let error = check_program(&path, Arch::Aarch64).unwrap_err().to_string();
        assert!(error.contains("is not a program for aarch64"), "{error}");
        fs::write(&path, "#!/bin/sh\n").unwrap();
        check_program(&path, Arch::X86_64).unwrap();
        assert!(check_program(&place.path().join("none"), Arch::X86_64).is_err());
    }

    #[test]
    fn a_program_with_a_loader_is_refused_with_the_remedy() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("program");
        let mut file = marker::program(Arch::X86_64, true);
        // The one program header becomes that of an interpreter, named at the end of the file.
        let name = b"/lib64/ld.so\0";
        let at = file.len() as u64;
        file[64..68].copy_from_slice(&[3, 0, 0, 0]);
        file[72..80].copy_from_slice(&at.to_le_bytes());
        file[96..104].copy_from_slice(&(name.len() as u64).to_le_bytes());
        file.extend_from_slice(name);
        fs::write(&path, &file).unwrap();
        let error = check_program(&path, Arch::X86_64).unwrap_err().to_string();
        assert!(error.contains("/lib64/ld.so") && error.contains("-static"), "{error}");
    }

    #[test]
    fn headers_that_lie_are_no_program() {
        let mut file = marker::program(Arch::X86_64, true);
        file[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(look(&file).is_some_and(|elf| elf.interpreter.is_none()));
        for len in 0..file.len() {
            let _ = look(&file[..len]);
        }
    }
}
