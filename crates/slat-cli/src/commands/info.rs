//! `slat info RECORDING`

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;
use slat_trace::Arch;
use slat_trace::recording::Recording;

use super::import::grouped;
use super::print;

#[derive(clap::Args)]
#[command(
    about = "Tell what a recording is: its machine, who made it, how long it is",
    long_about = "Tell what a recording is, from its header and index alone: the machine, who made it and \
                  how, and how long it is. The content is checked by `slat replay`.",
    after_help = "Examples:\n  slat info recordings/fork.slat\n  slat info --json run.slat\n\n\
                  Exit codes: 0 not cut off, 2 damaged, cut off or no recording."
)]
pub(crate) struct Args {
    /// The recording
    recording: PathBuf,

    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let path = &args.recording;
    let recording =
        Recording::open(path).map_err(|error| anyhow::anyhow!("{}", error.in_file(path)))?;
    let machine = recording.machine();
    let arch = match machine.arch {
        Arch::X86_64 => "x86-64",
        Arch::Aarch64 => "AArch64",
    };
    let damage = recording.damage();
    let accesses = recording.accesses();
    if args.json {
        let provenance: serde_json::Map<String, serde_json::Value> = recording
            .provenance()
            .iter()
            .map(|(key, value)| (key.clone(), value.clone().into()))
            .collect();
        let (major, minor) = recording.version();
        let value = json!({
            "recording": path.display().to_string(),
            "format": [major, minor],
            "arch": arch,
            "vcpus": machine.vcpus,
            "memory": machine.memory.as_ref().map(|memory| [memory.start, memory.end]),
            "accesses": accesses,
            "instructions": recording.instructions(),
            "bytes": recording.size(),
            "blocks": recording.blocks().len(),
            "provenance": provenance,
            "damage": damage.as_ref().map(ToString::to_string),
        });
        print(&format!("{}\n", serde_json::to_string_pretty(&value)?))?;
    } else {
        let mut text = String::new();
        let mut line = |name: &str, value: &str| text.push_str(&format!("{name:<13} {value}\n"));
        line("recording", &path.display().to_string());
        let plural = if machine.vcpus == 1 { "vCPU" } else { "vCPUs" };
        let memory = machine.memory.as_ref().map_or(String::new(), |memory| {
            format!(", {} MiB from {:#x}", (memory.end - memory.start) >> 20, memory.start)
        });
        line("machine", &format!("{arch}, {} {plural}{memory}", machine.vcpus));
        line("accesses", &grouped(accesses));
        line("instructions", &grouped(recording.instructions()));
        let each = recording.size() as f64 / accesses.max(1) as f64;
        line("size", &format!("{} bytes, {each:.3} an access", grouped(recording.size())));
        let (major, minor) = recording.version();
        let blocks = recording.blocks().len();
        let plural = if blocks == 1 { "block" } else { "blocks" };
        line("format", &format!("version {major}.{minor}, {blocks} {plural}"));
        for (key, value) in recording.provenance().iter().filter(|(_, value)| !value.is_empty()) {
            line(key, value);
        }
        print(&text)?;
    }
    match damage {
        Some(damage) => anyhow::bail!("{}: {damage}", path.display()),
        None => Ok(ExitCode::SUCCESS),
    }
}
