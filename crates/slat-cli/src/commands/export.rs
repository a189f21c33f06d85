//! `slat export RECORDING`

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use slat_trace::export::{Exporter, Form, Part};
use slat_trace::recording::Recording;
use slat_trace::{Batch, Source, open, recording};

use super::{is_closed_pipe, may_replace};

#[derive(clap::Args)]
#[command(
    about = "Write the accesses of a recording for other programs",
    after_help = "Forms:\n  \
                  --csv   number,vcpu,what,va,gpa,len,user,value with a header; --events adds rows for \
                  events\n  \
                  --text  `R ADDR,SIZE`, `W ...`, `I ...`, a line an access, as `slat import` reads it\n  \
                  --parquet  the columns of the CSV, typed, compressed with zstd; only in a slat that was \
                  built with\n             `--features parquet`\n\n\
                  Examples:\n  slat export --csv recordings/fork.slat -o fork.csv\n  \
                  slat export --text --from 1000000 --count 100 run.slat\n  \
                  slat export --parquet --events run.slat -o run.parquet\n\n\
                  Exit codes: 0 done, 2 unusable input."
)]
pub(crate) struct Args {
    /// The recording, or a trace of another tool
    recording: PathBuf,

    #[command(flatten)]
    form: FormArgs,

    /// Rows for events too
    #[arg(long, conflicts_with = "text")]
    events: bool,

    /// The number of the first access to write, counted from 0
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    from: u64,

    /// How many accesses to write
    #[arg(long, value_name = "NUMBER")]
    count: Option<u64>,

    /// Where to write; standard output without it
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct FormArgs {
    /// Comma-separated values
    #[arg(long)]
    csv: bool,

    /// One line an access
    #[arg(long)]
    text: bool,

    /// A Parquet file
    #[arg(long, requires = "output")]
    parquet: bool,
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    match &args.output {
        None => {
            let out = BufWriter::new(std::io::stdout().lock());
            match write(&args, out) {
                // A reader that has seen enough, as `head` does, is no trouble of ours.
                Err(error) if is_closed_pipe(&error) => {}
                result => result?,
            }
        }
        Some(path) => {
            may_replace(path, &[&args.recording])?;
            let folder = match path.parent() {
                Some(folder) if !folder.as_os_str().is_empty() => folder,
                _ => Path::new("."),
            };
            let cannot = || format!("cannot write {}", path.display());
            let mut builder = tempfile::Builder::new();
            #[cfg(unix)]
            {
                use std::os::unix::fs::PermissionsExt;
                builder.permissions(std::fs::Permissions::from_mode(0o666));
            }
            let mut file = builder.tempfile_in(folder).with_context(cannot)?;
            let out = BufWriter::new(file.as_file_mut());
            if args.form.parquet {
                write_parquet(&args, out)?
            } else {
                write(&args, out)?
            }
            file.persist(path).map_err(|error| error.error).with_context(cannot)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn write(args: &Args, out: impl Write) -> anyhow::Result<()> {
    let form = match args.form.csv {
        true => Form::Csv { events: args.events },
        false => Form::Text,
    };
    let (stream, part) = open_part(args)?;
    let mut exporter = Exporter::new(out, form, part)?;
    each(stream, |batch| exporter.push(batch))?;
    exporter.finish()?;
    Ok(())
}

#[cfg(feature = "parquet")]
fn write_parquet(args: &Args, out: impl Write + Send) -> anyhow::Result<()> {
    let (stream, part) = open_part(args)?;
    let mut exporter = slat_trace::export::ParquetExporter::new(out, args.events, part)?;
    each(stream, |batch| exporter.push(batch))?;
    exporter.finish()?;
    Ok(())
}

#[cfg(not(feature = "parquet"))]
fn write_parquet(_: &Args, _: impl Write) -> anyhow::Result<()> {
    anyhow::bail!(
        "this slat was built without Parquet: build it with `--features parquet`, or use --csv"
    )
}

/// The stream from the block on that the first access is in, and the part of it that is asked for.
fn open_part(args: &Args) -> anyhow::Result<(open::Opened, Part)> {
    let end = args.count.map_or(u64::MAX, |count| args.from.saturating_add(count));
    let (mut block, mut first) = (0, 0);
    if args.from > 0
        && let Ok(recording) = Recording::open(&args.recording)
        && let Some(found) = recording.block_of(args.from)
    {
        (block, first) = (found, recording.blocks()[found].first_access);
    }
    let part = recording::Options { frames: !args.form.text, blocks: block..usize::MAX };
    let options = open::Options { recording: part, ..open::Options::default() };
    Ok((open::open(&args.recording, &options)?, Part::new(first, args.from, end)))
}

fn each(
    mut stream: open::Opened,
    mut push: impl FnMut(&Batch) -> std::io::Result<bool>,
) -> anyhow::Result<()> {
    let mut batch = Batch::default();
    loop {
        let result = stream.next(&mut batch);
        let more = push(&batch)?;
        if !result? || !more {
            return Ok(());
        }
    }
}
