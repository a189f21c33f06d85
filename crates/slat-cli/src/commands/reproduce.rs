//! `slat reproduce`

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use indicatif::ProgressBar;
use slat_sim::reproduce::{Effort, Verdict, reproduce};
use slat_trace::recording::{Error, Recording};

#[derive(clap::Args)]
#[command(
    about = "The published results on memory virtualization, each beside ours",
    long_about = "Run the bundled recordings on the processors of the published results (VMware 2009, \
                  Red Hat 2007, Microsoft 2009, and papers whose numbers are public), and put each \
                  claim beside our value, its range, and a verdict. Parameters are those of the \
                  processor presets: none is fitted to a claim.",
    after_help = "Examples:\n  slat reproduce\n  slat reproduce --row C10,3 --details\n  \
                  slat reproduce --recordings ~/slat/recordings --json\n\n\
                  Exit code: 0 completed, 1 with --strict where a row is out of range, \
                  2 unusable input."
)]
pub(crate) struct Args {
    /// Where recordings lie that are not built in (compiler.slat, sqlite.slat); rows that need one
    /// that is not there say so
    #[arg(long, value_name = "DIR", default_value = "recordings")]
    recordings: PathBuf,

    /// Only these rows, such as C10 or 3a; a number without its letter is all rows of it (3: 3a, 3b, 3c)
    #[arg(long, value_name = "ROW", value_delimiter = ',')]
    row: Vec<String>,

    /// Also print each row's source, set-up and reading
    #[arg(long, conflicts_with = "json")]
    details: bool,

    /// Exit with 1 where any row is out of range
    #[arg(long)]
    strict: bool,

    /// One JSON object (docs/json.md)
    #[arg(long)]
    json: bool,
}

/// The recordings that are small enough to be built in.
const BUNDLED: &[(&str, &[u8])] = &[
    ("fork", include_bytes!("../../data/fork.slat")),
    ("chase-4k", include_bytes!("../../data/chase-4k.slat")),
    ("chase-2m", include_bytes!("../../data/chase-2m.slat")),
];

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(Duration::from_millis(200));
    let mut open = |name: &str| -> Result<Option<Recording>, Error> {
        if let Some((_, bytes)) = BUNDLED.iter().find(|(bundled, _)| *bundled == name) {
            return Recording::from_bytes(*bytes).map(Some);
        }
        let path = args.recordings.join(format!("{name}.slat"));
        if path.exists() { Recording::open(path).map(Some) } else { Ok(None) }
    };
    let mut progress = |what: &str| bar.set_message(what.to_owned());
    let report = reproduce(&mut open, &args.row, Effort::default(), &mut progress)?;
    bar.finish_and_clear();
    let text = if args.json {
        format!("{}\n", serde_json::to_string(&report.json())?)
    } else {
        report.text(args.details)
    };
    super::print(&text)?;
    let out_of_range = report.count(Verdict::OutOfRange) > 0;
    Ok(if args.strict && out_of_range { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
