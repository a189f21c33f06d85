//! What `slat host` plays: hosts and steps, from a TOML file.

use super::migrate::Plan;
use super::{HostSpec, PartitionSpec};

mod read;
mod text;

use read::{Source, is_name};
use text::ScenarioText;

/// The most hosts of a scenario.
const MOST_HOSTS: usize = 8;
/// The most steps of a scenario, and partitions that one of them starts.
const MOST_STEPS: usize = 1000;
/// The most steps that a guest runs at a time.
const MOST_GUEST_STEPS: u64 = 50_000_000;

/// Hosts, and what happens on them.
#[derive(Clone, PartialEq, Debug)]
pub struct Scenario {
    /// Its name.
    pub name: String,
    /// What it shows, in a sentence.
    pub about: String,
    /// The hosts.
    pub hosts: Vec<HostSpec>,
    /// What happens, in order.
    pub steps: Vec<Step>,
}

/// One thing that happens.
#[derive(Clone, PartialEq, Debug)]
pub struct Step {
    /// Its line in the file, from 1.
    pub line: usize,
    /// The host; `None` is whichever has the partition.
    pub host: Option<String>,
    /// What happens.
    pub what: Do,
    /// It is there to be refused.
    pub refused: bool,
}

/// What happens.
#[derive(Clone, PartialEq, Debug)]
pub enum Do {
    /// Partitions start: `count` of them, numbered if it is more than one.
    Start {
        /// The partition.
        spec: PartitionSpec,
        /// How many.
        count: u32,
    },
    /// A partition stops.
    Stop {
        /// The partition.
        partition: String,
    },
    /// A guest runs.
    Run {
        /// The partition.
        partition: String,
        /// For so many steps.
        steps: u64,
    },
    /// One address is followed.
    Follow {
        /// The partition.
        partition: String,
        /// The guest virtual address.
        address: u64,
    },
    /// A partition is saved and stopped.
    Save {
        /// The partition.
        partition: String,
    },
    /// A partition that was saved starts again.
    Restore {
        /// The partition.
        partition: String,
    },
    /// The parent uses its first pages.
    Parent {
        /// How many.
        pages: u64,
    },
    /// A guest is asked to give memory back.
    Balloon {
        /// The partition.
        partition: String,
        /// How much.
        bytes: u64,
    },
    /// Pages of the same content are shared.
    Share,
    /// A running partition moves to another host.
    Migrate {
        /// The partition.
        partition: String,
        /// The destination.
        to: String,
        /// How.
        plan: Plan,
    },
    /// A guest goes from real mode to protected mode and back, and to paging.
    RealMode {
        /// The partition.
        partition: String,
    },
}

impl Do {
    /// Its word in a scenario.
    pub const fn name(&self) -> &'static str {
        match self {
            Do::Start { .. } => "start",
            Do::Stop { .. } => "stop",
            Do::Run { .. } => "run",
            Do::Follow { .. } => "follow",
            Do::Save { .. } => "save",
            Do::Restore { .. } => "restore",
            Do::Parent { .. } => "parent",
            Do::Balloon { .. } => "balloon",
            Do::Share => "share",
            Do::Migrate { .. } => "migrate",
            Do::RealMode { .. } => "real-mode",
        }
    }

    /// The partition that it is about.
    pub fn partition(&self) -> Option<&str> {
        match self {
            Do::Start { spec, .. } => Some(&spec.name),
            Do::Stop { partition }
            | Do::Run { partition, .. }
            | Do::Follow { partition, .. }
            | Do::Save { partition }
            | Do::Restore { partition }
            | Do::Balloon { partition, .. }
            | Do::Migrate { partition, .. }
            | Do::RealMode { partition } => Some(partition),
            Do::Parent { .. } | Do::Share => None,
        }
    }
}

/// A scenario that cannot be played.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// Not this file's format; the text names line and field.
    #[error("{file}: {error}")]
    Toml {
        /// The file.
        file: String,
        /// What is wrong with it.
        error: Box<toml::de::Error>,
    },
    /// A field whose value makes no scenario.
    #[error("{file}, line {line}: {field}: {text}")]
    Field {
        /// The file.
        file: String,
        /// The line, from 1.
        line: usize,
        /// The field.
        field: String,
        /// What is wrong with it.
        text: String,
    },
    /// No scenario of this name.
    #[error("no scenario `{name}`; there are {choices}, or give a TOML file")]
    Unknown {
        /// The name that was asked for.
        name: String,
        /// All names.
        choices: String,
    },
}

/// Bundled scenarios: name and text.
const BUNDLED: &[(&str, &str)] = &[
    ("power-on", include_str!("../../scenarios/power-on.toml")),
    ("parent-paging", include_str!("../../scenarios/parent-paging.toml")),
    ("migrate", include_str!("../../scenarios/migrate.toml")),
    ("real-mode", include_str!("../../scenarios/real-mode.toml")),
    ("requires-slat", include_str!("../../scenarios/requires-slat.toml")),
    ("many-partitions", include_str!("../../scenarios/many-partitions.toml")),
    ("policies", include_str!("../../scenarios/policies.toml")),
];

impl Scenario {
    /// The bundled scenario of this name.
    ///
    /// # Errors
    /// Names the choices.
    pub fn bundled(name: &str) -> Result<Scenario, ScenarioError> {
        match BUNDLED.iter().find(|(key, _)| *key == name) {
            Some((key, text)) => Scenario::parse(key, text),
            None => Err(ScenarioError::Unknown {
                name: name.to_owned(),
                choices: Scenario::names().collect::<Vec<_>>().join(", "),
            }),
        }
    }

    /// The names of all bundled scenarios.
    pub fn names() -> impl Iterator<Item = &'static str> {
        BUNDLED.iter().map(|(name, _)| *name)
    }

    /// The text of a bundled scenario, to begin one's own with.
    pub fn text(name: &str) -> Option<&'static str> {
        BUNDLED.iter().find(|(key, _)| *key == name).map(|(_, text)| *text)
    }

    /// Reads a scenario; `file` is its name for errors.
    ///
    /// # Errors
    /// Names the line and the field.
    pub fn parse(file: &str, text: &str) -> Result<Scenario, ScenarioError> {
        let read: ScenarioText = toml::from_str(text).map_err(|error| ScenarioError::Toml {
            file: file.to_owned(),
            error: Box::new(error),
        })?;
        let source = Source { file, text };
        let mut hosts: Vec<HostSpec> = Vec::new();
        if read.host.is_empty() || read.host.len() > MOST_HOSTS {
            let text = format!("from 1 to {MOST_HOSTS} hosts make a scenario");
            return Err(source.wrong(0, "host", text));
        }
        for host in read.host {
            let at = host.span().start;
            let spec = source.host(host.into_inner())?;
            if !is_name(&spec.name) {
                return Err(source.wrong(at, "name", "letters, digits, - and _ make a name"));
            }
            if hosts.iter().any(|other| other.name == spec.name) {
                return Err(source.wrong(at, "name", format!("there are two hosts {}", spec.name)));
            }
            hosts.push(spec);
        }
        if read.step.len() > MOST_STEPS {
            return Err(source.wrong(0, "step", format!("at most {MOST_STEPS} steps are played")));
        }
        let names: Vec<&str> = hosts.iter().map(|host| host.name.as_str()).collect();
        let steps = read.step.into_iter().map(|step| {
            let at = step.span().start;
            source.step(at, step.into_inner(), &names)
        });
        let steps = steps.collect::<Result<Vec<Step>, ScenarioError>>()?;
        Ok(Scenario { name: read.name, about: read.about, hosts, steps })
    }

    /// Whether partitions move between hosts, so that each host has a process of its own.
    pub fn migrates(&self) -> bool {
        self.steps.iter().any(|step| matches!(step.what, Do::Migrate { .. }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Scenario::parse("mine.toml", text).unwrap_err().to_string()
    }

    const HOST: &str = "name = \"x\"\nabout = \"y\"\n[[host]]\nname = \"a\"\n\
        processor = \"nehalem\"\nhypervisor = \"kvm-3.0\"\nmemory = [\"64M\"]\n";

    #[test]
    fn every_bundled_scenario_is_valid_and_named_as_its_file() {
        for name in Scenario::names() {
            assert_eq!(Scenario::bundled(name).unwrap().name, name);
        }
        assert!(Scenario::bundled("nope").unwrap_err().to_string().contains("power-on"));
    }

    #[test]
    fn errors_name_the_line_and_the_field() {
        let unknown = error(&format!("{HOST}memry = 3\n"));
        assert!(unknown.contains("line 8") && unknown.contains("memry"), "{unknown}");
        let preset = error(&HOST.replace("nehalem", "nehalm"));
        assert!(preset.starts_with("mine.toml, line 5: processor: no processor"), "{preset}");
        let size = error(&HOST.replace("64M", "64X"));
        assert!(size.contains("line 7") && size.contains("such as \"16M\""), "{size}");
        let step =
            error(&format!("{HOST}[[step]]\ndo = \"start\"\nhost = \"a\"\nmemory = \"8M\"\n"));
        assert_eq!(step, "mine.toml, line 8: partition: do = \"start\" needs it");
        let host = error(&format!("{HOST}[[step]]\ndo = \"share\"\nhost = \"b\"\n"));
        assert_eq!(host, "mine.toml, line 10: host: there is no host b");
        let many = format!(
            "{HOST}[[step]]\ndo = \"run\"\nhost = \"a\"\npartition = \"p\"\nsteps = 99999999999\n"
        );
        assert!(error(&many).starts_with("mine.toml, line 12: steps: "), "{}", error(&many));
        let rounds = format!(
            "{HOST}{}[[step]]\ndo = \"migrate\"\nhost = \"a\"\npartition = \"p\"\nto = \"b\"\n\
             most_rounds = 0\n",
            HOST[HOST.find("[[host]]").unwrap()..].replace("\"a\"", "\"b\"")
        );
        assert!(
            error(&rounds).ends_with("most_rounds: 0 is not from 1 to 1000"),
            "{}",
            error(&rounds)
        );
        let stray = format!("{HOST}[[step]]\ndo = \"share\"\nhost = \"a\"\nseed = 3\n");
        assert_eq!(error(&stray), "mine.toml, line 8: seed: do = \"share\" has no such field");
        let word = error(&format!("{HOST}[[step]]\ndo = \"fly\"\n"));
        assert!(word.contains("line 9") && word.contains("real-mode"), "{word}");
        let twice = format!("{HOST}{}", &HOST[HOST.find("[[host]]").unwrap()..]);
        assert!(error(&twice).contains("two hosts a"), "{}", error(&twice));
    }
}
