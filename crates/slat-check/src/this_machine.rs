//! The machine that this program runs on.

use std::fs::File;
use std::io::{self, Read};
use std::process::{Command, Stdio};

use crate::machine::{Machine, Os, Source, System, Unread};

/// No file that is read here is longer on a real machine: `/proc/cpuinfo` of 1024 processors has 2 MiB.
const MOST_BYTES: u64 = 8 << 20;

/// The machine that this program runs on. Nothing on it is changed, and nothing needs root.
#[derive(Clone, Copy, Debug, Default)]
pub struct ThisMachine;

impl Machine for ThisMachine {
    fn system(&self) -> System {
        System::built_for()
    }

    fn read(&self, source: Source<'_>) -> Result<String, Unread> {
        match source {
            Source::File(path) => read_text(path),
            Source::Modules => modules(),
            Source::Cpuid => cpuid(),
            Source::KernelLog => kernel_log(),
            Source::Kvm => kvm(),
            Source::Msr(index) => msr(index),
            Source::Sysctl(name) if self.system().os == Os::Macos => {
                run("/usr/sbin/sysctl", &["-n", name])
            }
            Source::Sysctl(_) => Err(Unread::Absent),
            Source::ProcessorFeatures => processor_features(),
        }
    }
}

fn unread(error: io::Error) -> Unread {
    match error.kind() {
        io::ErrorKind::NotFound => Unread::Absent,
        io::ErrorKind::PermissionDenied => Unread::Denied,
        _ => Unread::Failed(error.to_string()),
    }
}

fn read_text(path: &str) -> Result<String, Unread> {
    let mut bytes = Vec::new();
    File::open(path).map_err(unread)?.take(MOST_BYTES).read_to_end(&mut bytes).map_err(unread)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The output of a program of the system; a missing program is [`Unread::Absent`].
fn run(program: &str, arguments: &[&str]) -> Result<String, Unread> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(unread)?;
    let mut bytes = Vec::new();
    if let Some(output) = child.stdout.take() {
        output.take(MOST_BYTES).read_to_end(&mut bytes).map_err(unread)?;
    }
    // Reading stopped at the limit or at the end; a program that still writes gets a closed pipe.
    if child.wait().map_err(unread)?.success() {
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    } else {
        Err(Unread::Failed(format!("{program} failed")))
    }
}

fn modules() -> Result<String, Unread> {
    let mut names: Vec<String> = std::fs::read_dir("/sys/module")
        .map_err(unread)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| {
            name == "kvm"
                || ["kvm_", "vbox", "vmmon", "mshv"].iter().any(|start| name.starts_with(start))
        })
        .collect();
    names.sort();
    Ok(names.iter().map(|name| format!("{name}\n")).collect())
}

#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
fn cpuid() -> Result<String, Unread> {
    use std::fmt::Write as _;

    let mut text = String::new();
    let mut print = |leaf: u32, subleaf: u32| {
        let answer = raw_cpuid::native_cpuid::cpuid_count(leaf, subleaf);
        let _ = writeln!(
            text,
            "{leaf:#010x} {subleaf:#04x}: eax={:#010x} ebx={:#010x} ecx={:#010x} edx={:#010x}",
            answer.eax, answer.ebx, answer.ecx, answer.edx
        );
        answer
    };
    print(0, 0);
    let features = print(1, 0);
    if features.ecx & 1 << 31 != 0 {
        // The hypervisors' range. Each interface takes a block of 0x100 leaves and says how far it
        // goes; past the last block a processor repeats other leaves, which carry no signature.
        for block in (0x4000_0000u32..0x4000_0400).step_by(0x100) {
            let last = print(block, 0).eax;
            if last < block || last > block + 0xff {
                continue;
            }
            for leaf in block + 1..=last.min(block + 0x0a) {
                print(leaf, 0);
            }
        }
    }
    let last = print(0x8000_0000, 0).eax;
    for leaf in [0x8000_0001, 0x8000_0002, 0x8000_0003, 0x8000_0004, 0x8000_0008, 0x8000_000a] {
        if leaf <= last {
            print(leaf, 0);
        }
    }
    Ok(text)
}

#[cfg(not(any(target_arch = "x86", target_arch = "x86_64")))]
fn cpuid() -> Result<String, Unread> {
    Err(Unread::Absent)
}

#[cfg(target_os = "linux")]
fn kernel_log() -> Result<String, Unread> {
    use std::os::unix::fs::OpenOptionsExt as _;

    /// Linux: with it, reading past the last record fails instead of waiting for the next.
    const O_NONBLOCK: i32 = 0o4000;
    /// A ring buffer holds far fewer; without a bound a chattering kernel could keep this reading.
    const MOST_RECORDS: usize = 200_000;

    let from_device = || -> Result<String, Unread> {
        let mut device = File::options()
            .read(true)
            .custom_flags(O_NONBLOCK)
            .open("/dev/kmsg")
            .map_err(unread)?;
        let mut text = String::new();
        let mut record = [0; 8192];
        for _ in 0..MOST_RECORDS {
            match device.read(&mut record) {
                Ok(0) => break,
                // "priority,sequence,time,flags;message", then lines of properties.
                Ok(length) => {
                    let record = String::from_utf8_lossy(&record[..length]);
                    if let Some((_, message)) = record.split_once(';') {
                        text.push_str(message.lines().next().unwrap_or_default());
                        text.push('\n');
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // EPIPE: the record was overwritten while it was being read; the next one is not.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => continue,
                Err(error) => return Err(unread(error)),
            }
        }
        Ok(text)
    };
    from_device()
        .or_else(|why| {
            // What the system's own log kept for the groups adm and systemd-journal.
            run("journalctl", &["-k", "-b", "-q", "--no-pager", "-o", "cat"])
                .ok()
                .filter(|text| !text.trim().is_empty())
                .ok_or(why)
        })
        .map(|text| crate::facts::kernel_log::relevant(&text))
}

#[cfg(not(target_os = "linux"))]
fn kernel_log() -> Result<String, Unread> {
    Err(Unread::Absent)
}

#[cfg(target_os = "linux")]
fn kvm() -> Result<String, Unread> {
    use std::fmt::Write as _;

    let probe = slat_kvm::probe().map_err(|why| match why {
        slat_kvm::Unavailable::Absent => Unread::Absent,
        slat_kvm::Unavailable::Denied => Unread::Denied,
        other => Unread::Failed(other.to_string()),
    })?;
    let mut text = format!("api {}\n", probe.api_version);
    match probe.create_vm {
        Ok(()) => text.push_str("create-vm yes\n"),
        Err(why) => {
            let _ = writeln!(text, "create-vm no {why}");
        }
    }
    for (capability, value) in probe.capabilities {
        let _ = writeln!(text, "cap {} {value}", capability.number());
    }
    for (index, value) in probe.vmx_msrs {
        let _ = writeln!(text, "msr {index:#x} {value:#x}");
    }
    Ok(text)
}

#[cfg(not(target_os = "linux"))]
fn kvm() -> Result<String, Unread> {
    Err(Unread::Absent)
}

/// The `msr` driver: the register's index is the file offset.
#[cfg(target_os = "linux")]
fn msr(index: u32) -> Result<String, Unread> {
    use std::os::unix::fs::FileExt as _;

    let mut value = [0; 8];
    File::open("/dev/cpu/0/msr")
        .and_then(|device| device.read_exact_at(&mut value, index.into()))
        .map_err(unread)?;
    Ok(format!("{:#x}\n", u64::from_le_bytes(value)))
}

#[cfg(not(target_os = "linux"))]
fn msr(_index: u32) -> Result<String, Unread> {
    Err(Unread::Absent)
}

#[cfg(windows)]
#[allow(unsafe_code)]
fn processor_features() -> Result<String, Unread> {
    use windows_sys::Win32::System::Threading::{
        IsProcessorFeaturePresent, PF_SECOND_LEVEL_ADDRESS_TRANSLATION, PF_VIRT_FIRMWARE_ENABLED,
    };

    Ok([PF_SECOND_LEVEL_ADDRESS_TRANSLATION, PF_VIRT_FIRMWARE_ENABLED]
        .map(|feature| {
            // SAFETY: the function takes a number by value, touches no memory of ours and answers
            // FALSE for numbers that it does not know.
            let present = unsafe { IsProcessorFeaturePresent(feature) } != 0;
            format!("feature {feature} {}\n", if present { "yes" } else { "no" })
        })
        .concat())
}

#[cfg(not(windows))]
fn processor_features() -> Result<String, Unread> {
    Err(Unread::Absent)
}
