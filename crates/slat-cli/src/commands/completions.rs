//! `slat completions SHELL`

use std::process::ExitCode;

#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  slat completions bash > ~/.local/share/bash-completion/completions/slat"
)]
pub(crate) struct Args {
    /// The shell to complete for
    shell: clap_complete::Shell,
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut crate::definition(), "slat", &mut script);
    super::print(&String::from_utf8(script)?)?;
    Ok(ExitCode::SUCCESS)
}
