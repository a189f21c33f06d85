//! The parameters of the plugin, as QEMU hands them over: `name=value`.

use std::path::PathBuf;

/// How far an access goes through the recorder; anything short of `Full` is for measuring what each
/// part costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// Nothing is instrumented.
    Bare,
    /// The callbacks return at once.
    Callback,
    /// The physical address is asked for.
    Address,
    /// All is noted and thrown away.
    Note,
    /// A recording is made.
    Full,
}

#[derive(Clone, Debug)]
pub(crate) struct Parameters {
    /// The recording to write.
    pub(crate) output: PathBuf,
    /// The name of the file that backs the guest's memory.
    pub(crate) ram: String,
    /// Lines `key=value` for the header.
    pub(crate) provenance: Option<PathBuf>,
    /// Where to say how far it is.
    pub(crate) progress: Option<PathBuf>,
    /// Where to say how it ended.
    pub(crate) report: Option<PathBuf>,
    pub(crate) level: i32,
    pub(crate) most_accesses: u64,
    pub(crate) block_accesses: Option<u64>,
    pub(crate) stage: Stage,
}

impl Parameters {
    pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut parameters = Self {
            output: PathBuf::new(),
            ram: String::new(),
            provenance: None,
            progress: None,
            report: None,
            level: slat_trace::recording::Packer::<Vec<u8>>::LEVEL,
            most_accesses: u64::MAX,
            block_accesses: None,
            stage: Stage::Full,
        };
        for argument in arguments {
            let (name, value) = argument.split_once('=').unwrap_or((&argument, ""));
            let bad = |_| format!("{argument}: not a number");
            match name {
                "out" => parameters.output = value.into(),
                "ram" => parameters.ram = value.into(),
                "provenance" => parameters.provenance = Some(value.into()),
                "progress" => parameters.progress = Some(value.into()),
                "report" => parameters.report = Some(value.into()),
                "level" => parameters.level = value.parse().map_err(bad)?,
                "max-accesses" => parameters.most_accesses = value.parse().map_err(bad)?,
                "block-accesses" => {
                    parameters.block_accesses = Some(value.parse().map_err(bad)?);
                }
                "stage" => {
                    parameters.stage = match value {
                        "bare" => Stage::Bare,
                        "callback" => Stage::Callback,
                        "address" => Stage::Address,
                        "note" => Stage::Note,
                        "full" => Stage::Full,
                        _ => return Err(format!("{argument}: no such stage")),
                    }
                }
                _ => return Err(format!("{argument}: no such parameter")),
            }
        }
        if parameters.ram.is_empty() {
            return Err("ram=FILE is missing: the file that backs the guest's memory".into());
        }
        if parameters.output.as_os_str().is_empty() && parameters.stage == Stage::Full {
            return Err("out=FILE is missing: the recording to write".into());
        }
        Ok(parameters)
    }
}
