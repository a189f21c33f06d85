//! `slat check`

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use slat_check::{Recorded, Report, ThisMachine, examine, processors, text};

use super::print;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  slat check                                  this machine
  slat check --json                           the same for a program
  slat check --cpu 'Core i7-2600K'            a processor by its name
  slat check --save state.txt                 keep what was read, to be looked at elsewhere
  slat check --state state.txt                judge what --save kept on another machine

Exit codes: 0 SLAT is in use (with --cpu: the processor has it), 1 it is not, 2 could not tell.")]
pub(crate) struct Args {
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
    /// Answer for the processor of this name, as /proc/cpuinfo or a shop spells it
    #[arg(long, value_name = "NAME", conflicts_with_all = ["state", "save"])]
    cpu: Option<String>,
    /// Judge the machine whose state --save wrote to this file
    #[arg(long, value_name = "FILE", conflicts_with = "save")]
    state: Option<PathBuf>,
    /// Write what is read of this machine to this file too (text, without serial numbers or host names)
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    if let Some(name) = &args.cpu {
        let known = processors::look_up(name);
        if args.json {
            print(&json(&known)?)?;
        } else {
            print(&text::processor(&known, width()))?;
        }
        return Ok(ExitCode::from(known.slat.exit_code()));
    }
    let report = match (&args.state, &args.save) {
        (Some(file), _) => examine(&read_state(file)?),
        (None, Some(file)) => {
            let recorded = Recorded::record(&ThisMachine);
            write_whole(file, &recorded.to_text())?;
            examine(&recorded)
        }
        (None, None) => examine(&ThisMachine),
    };
    if args.json {
        print(&json(&report)?)?;
    } else {
        print(&text::machine(&report, width()))?;
    }
    Ok(ExitCode::from(report.exit_code()))
}

/// The verdict on this machine, for the greeting of `slat` without a subcommand.
pub(crate) fn this_machine() -> Report {
    examine(&ThisMachine)
}

fn json(value: &impl serde::Serialize) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

fn width() -> usize {
    super::width().unwrap_or(text::USUAL_WIDTH)
}

fn read_state(file: &Path) -> anyhow::Result<Recorded> {
    let mut content = Vec::new();
    std::fs::File::open(file)
        .and_then(|file| file.take(Recorded::MOST_BYTES as u64 + 1).read_to_end(&mut content))
        .with_context(|| format!("cannot read {}", file.display()))?;
    Recorded::parse(&String::from_utf8_lossy(&content))
        .with_context(|| format!("{} is not a state that slat check --save wrote", file.display()))
}

/// Writes a file whole or not at all.
pub(super) fn write_whole(file: &Path, content: &str) -> anyhow::Result<()> {
    super::may_replace(file, &[])?;
    let directory = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let write = || -> std::io::Result<()> {
        let mut builder = tempfile::Builder::new();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        let mut temporary = builder.tempfile_in(directory)?;
        temporary.write_all(content.as_bytes())?;
        temporary.persist(file)?;
        Ok(())
    };
    write().with_context(|| format!("cannot write {}", file.display()))
}
