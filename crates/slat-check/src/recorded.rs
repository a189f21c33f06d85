//! A machine's state as one readable text, for another day or another machine.
//!
//! ```text
//! slat check state 1
//! system linux x86
//! === file /proc/cpuinfo
//! vendor_id : GenuineIntel
//! flags     : fpu vmx ept
//! === kvm ! permission denied
//! === msr 0x3a ! permission denied
//! ```
//!
//! A section opens with `=== SOURCE`, or `=== SOURCE ! REASON` when it could not be read. What is not
//! there does not exist on that machine. Content lines that start with `=` or `\` carry a `\` before it.

use std::cell::RefCell;
use std::collections::BTreeMap;

use crate::machine::{Machine, Source, System, Unread};

const FIRST_LINE: &str = "slat check state 1";

/// The state of some machine, held in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    system: System,
    sections: BTreeMap<String, Result<String, Unread>>,
}

/// Where and why a text is not a recorded state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct StateError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong with it and what belongs there.
    pub what: String,
}

impl Recorded {
    /// The most bytes that a state may have; real ones stay under 100 KiB.
    pub const MOST_BYTES: usize = 16 << 20;

    /// A machine of which nothing is known but its system.
    pub fn new(system: System) -> Recorded {
        Recorded { system, sections: BTreeMap::new() }
    }

    /// Adds what `source` says.
    #[must_use]
    pub fn with(mut self, source: Source<'_>, content: impl Into<String>) -> Recorded {
        self.sections.insert(key(source), Ok(content.into()));
        self
    }

    /// Adds that `source` cannot be read, and why.
    #[must_use]
    pub fn without(mut self, source: Source<'_>, why: Unread) -> Recorded {
        self.sections.insert(key(source), Err(why));
        self
    }

    /// Asks `machine` everything that a check asks, and keeps the answers.
    pub fn record(machine: &dyn Machine) -> Recorded {
        struct Recorder<'m> {
            machine: &'m dyn Machine,
            sections: RefCell<BTreeMap<String, Result<String, Unread>>>,
        }
        impl Machine for Recorder<'_> {
            fn system(&self) -> System {
                self.machine.system()
            }
            fn read(&self, source: Source<'_>) -> Result<String, Unread> {
                let answer = self.machine.read(source);
                self.sections.borrow_mut().insert(key(source), answer.clone());
                answer
            }
        }
        let recorder = Recorder { machine, sections: RefCell::default() };
        let _ = crate::examine(&recorder);
        Recorded { system: machine.system(), sections: recorder.sections.into_inner() }
    }

    /// Reads a text that [`Recorded::to_text`] wrote, or a person.
    ///
    /// # Errors
    /// [`StateError`] names the line.
    pub fn parse(text: &str) -> Result<Recorded, StateError> {
        let wrong = |line, what: &str| StateError { line, what: what.to_string() };
        if text.len() > Recorded::MOST_BYTES {
            return Err(wrong(1, "longer than 16 MiB, so this is not a recorded state"));
        }
        let mut lines = text.lines().enumerate().map(|(at, line)| (at + 1, line));
        if lines.next().map(|(_, line)| line.trim_end()) != Some(FIRST_LINE) {
            return Err(wrong(1, "a recorded state starts with \"slat check state 1\""));
        }
        let system = lines
            .next()
            .and_then(|(_, line)| System::parse(line.strip_prefix("system ")?))
            .ok_or_else(|| wrong(2, "expected \"system OS ARCH\", such as \"system linux x86\""))?;
        let mut recorded = Recorded::new(system);
        let mut section: Option<(String, String)> = None;
        for (at, line) in lines {
            if let Some(header) = line.strip_prefix("=== ") {
                if let Some((name, content)) = section.take() {
                    recorded.sections.insert(name, Ok(content));
                }
                match header.split_once(" ! ") {
                    Some((name, why)) => {
                        let why = match why.trim() {
                            "does not exist" => Unread::Absent,
                            "permission denied" => Unread::Denied,
                            other => Unread::Failed(other.to_string()),
                        };
                        recorded.sections.insert(known(name, at)?, Err(why));
                    }
                    None => section = Some((known(header, at)?, String::new())),
                }
            } else if let Some((_, content)) = &mut section {
                content.push_str(line.strip_prefix('\\').unwrap_or(line));
                content.push('\n');
            } else if !line.trim().is_empty() {
                return Err(wrong(
                    at,
                    "text before the first section; sections open with \"=== \"",
                ));
            }
        }
        if let Some((name, content)) = section {
            recorded.sections.insert(name, Ok(content));
        }
        Ok(recorded)
    }

    /// The state as the text that [`Recorded::parse`] reads.
    pub fn to_text(&self) -> String {
        let mut text = format!("{FIRST_LINE}\nsystem {}\n", self.system);
        for (name, answer) in &self.sections {
            match answer {
                Ok(content) => {
                    text.push_str(&format!("=== {name}\n"));
                    for line in content.lines() {
                        if line.starts_with(['=', '\\']) {
                            text.push('\\');
                        }
                        text.push_str(line);
                        text.push('\n');
                    }
                }
                Err(Unread::Absent) => {}
                Err(why) => {
                    // A reason is one line; an error message of the system could be more.
                    let why = why.to_string().replace(['\n', '\r'], " ");
                    text.push_str(&format!("=== {name} ! {why}\n"));
                }
            }
        }
        text
    }
}

impl Machine for Recorded {
    fn system(&self) -> System {
        self.system
    }

    fn read(&self, source: Source<'_>) -> Result<String, Unread> {
        self.sections.get(&key(source)).cloned().unwrap_or(Err(Unread::Absent))
    }
}

/// The name of a section.
fn key(source: Source<'_>) -> String {
    match source {
        Source::File(path) => format!("file {path}"),
        Source::Modules => "modules".to_string(),
        Source::Cpuid => "cpuid".to_string(),
        Source::KernelLog => "kernel-log".to_string(),
        Source::Kvm => "kvm".to_string(),
        Source::Msr(index) => format!("msr {index:#x}"),
        Source::Sysctl(name) => format!("sysctl {name}"),
        Source::ProcessorFeatures => "processor-features".to_string(),
    }
}

/// Checks a section's name, so that a misspelt one is an error and not silence.
fn known(name: &str, line: usize) -> Result<String, StateError> {
    let name = name.trim_end();
    let fits = match name.split_once(' ') {
        Some(("file", path)) => path.starts_with('/'),
        Some(("msr", index)) => index
            .strip_prefix("0x")
            .is_some_and(|hex| u32::from_str_radix(hex, 16).is_ok_and(|_| !hex.starts_with('+'))),
        Some(("sysctl", name)) => !name.is_empty(),
        Some(_) => false,
        None => ["modules", "cpuid", "kernel-log", "kvm", "processor-features"].contains(&name),
    };
    if fits {
        Ok(name.to_string())
    } else {
        Err(StateError {
            line,
            what: format!(
                "unknown section {name:?}; known are file /PATH, modules, cpuid, kernel-log, kvm, \
                 msr 0xINDEX, sysctl NAME and processor-features"
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{Arch, Os};

    const SYSTEM: System = System { os: Os::Linux, arch: Arch::X86 };

    #[test]
    fn what_is_written_is_read_back() {
        let recorded = Recorded::new(SYSTEM)
            .with(Source::File("/proc/cpuinfo"), "flags : vmx\n=== not a header\n\\ backslash\n")
            .with(Source::Kvm, "api 12\n")
            .without(Source::Msr(0x3a), Unread::Denied)
            .without(Source::KernelLog, Unread::Failed("a\nb".into()));
        let again = Recorded::parse(&recorded.to_text()).unwrap();
        assert_eq!(
            again.read(Source::File("/proc/cpuinfo")).unwrap(),
            "flags : vmx\n=== not a header\n\\ backslash\n"
        );
        assert_eq!(again.read(Source::Msr(0x3a)), Err(Unread::Denied));
        assert_eq!(again.read(Source::KernelLog), Err(Unread::Failed("a b".into())));
        assert_eq!(again.read(Source::Modules), Err(Unread::Absent));
        assert_eq!(again.to_text(), Recorded::parse(&again.to_text()).unwrap().to_text());
    }

    #[test]
    fn a_wrong_text_names_its_line() {
        for (text, line) in [
            ("", 1),
            ("something\n", 1),
            ("slat check state 1\n", 2),
            ("slat check state 1\nsystem dos x86\n", 2),
            ("slat check state 1\nsystem linux x86\nstray\n", 3),
            ("slat check state 1\nsystem linux x86\n\n=== fil /proc/cpuinfo\n", 4),
            ("slat check state 1\nsystem linux x86\n=== msr 3a\n", 3),
        ] {
            assert_eq!(Recorded::parse(text).unwrap_err().line, line, "{text:?}");
        }
    }
}
