//! `slat walk IMAGE ADDRESS...`

use std::ffi::OsString;
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::process::ExitCode;

use anyhow::{Context, bail};
use slat::{Access, Flavor, Kind, Privilege};
use slat_image::explain::{Drawing, Explainer, load_registers};
use slat_image::spec::{Setup, number};
use slat_image::{Image, Options, Source};

use super::is_closed_pipe;

#[derive(clap::Args)]
#[command(
    about = "Explain one translation, step by step",
    long_about = "Walk the page tables in a memory image and explain every step: which entry was \
                  read, what its bits mean, and the address, fault or syndrome it ends in.",
    after_help = AFTER_HELP
)]
pub(crate) struct Args {
    /// Memory image: raw, zstd-compressed raw, or an ELF core; several as FILE@ADDR,FILE@ADDR
    image: OsString,

    /// Addresses to translate, 0x... or decimal; without any, they are read from standard input,
    /// one a line
    #[arg(value_name = "ADDRESS")]
    addresses: Vec<String>,

    /// The guest's own (or the machine's) tables: FORMAT[:ROOT][,key=value...]
    #[arg(long, value_name = "SPEC")]
    stage1: Option<String>,

    /// The hypervisor's tables: FORMAT[:ROOT][,key=value...]
    #[arg(long, value_name = "SPEC")]
    stage2: Option<String>,

    /// What is asked: r, w or x; rw is an atomic, which does both; hlvx is RISC-V's load of what may
    /// be executed
    #[arg(long, value_name = "KIND", default_value = "r")]
    access: AccessKind,

    /// Ask with user privilege (CPL 3, EL0, U-mode); default is supervisor
    #[arg(long)]
    user: bool,

    /// Also set the accessed and dirty bits that the processor would set, in a copy: setting one in
    /// a stage-1 entry is a write, which stage 2 may refuse
    #[arg(long)]
    update: bool,

    /// Physical address of a raw image's first byte
    #[arg(long, value_name = "ADDR", value_parser = parse_number)]
    base: Option<u64>,

    /// The most bytes that a compressed image may decompress to [default: 16 GiB]
    #[arg(long, value_name = "BYTES", value_parser = parse_number)]
    decompressed_limit: Option<u64>,

    /// One JSON object a line (docs/json.md)
    #[arg(long)]
    json: bool,
}

const AFTER_HELP: &str = "\
A SPEC names the format and its root, by the root table's address or by the root register's value:
  --stage2 ept4:0x6905000,ad=on        --stage2 ept4,eptp=0x690505e
  --stage1 x86-4:0x1000                --stage1 x86-4,cr3=0x1000,cr0=0x80010033,cr4=0x20
Stage-1 formats: x86-32 x86-pae x86-4 x86-5 arm-short arm-lpae arm64 sv32 sv39 sv48 sv57
Stage-2 formats: ept4 ept5 npt-32 npt-pae npt4 npt5 arm-lpae-s2 arm64-s2 sv32x4 sv39x4 sv48x4 sv57x4
Keys: registers (cr0 cr3 cr4 efer pat hpat pkru pkrs ac pdpte0..3 eptp ncr3 ttbr0 ttbr1 tcr ttbcr
mair sctlr dacr hcr httbr vttbr vtcr satp vsatp hgatp sum mxr vsmxr adue pbmte) and shorthands
(granule= t0sz= sl0= ipa= maxphyaddr= gigabyte= xonly= nxe= ad= vendor=intel|amd version=7|8
without=); a wrong key's error lists those that fit.

Examples:
  slat walk fixtures/ept-bochs.slice --stage1 x86-4:0x1000 --stage2 ept4:0x6905000 0x400000
  slat walk host.raw --stage2 npt4:0x4bb6000 --json 0xd0000000

Exit code: 0 every address translated, 1 some address faulted, 2 unusable input.";

#[derive(Clone, Copy, clap::ValueEnum)]
enum AccessKind {
    #[value(name = "r")]
    Read,
    #[value(name = "w")]
    Write,
    #[value(name = "x")]
    Execute,
    #[value(name = "rw")]
    Atomic,
    #[value(name = "hlvx")]
    Hlvx,
}

fn parse_number(text: &str) -> Result<u64, String> {
    number(text).ok_or_else(|| format!("`{text}` is not a number; write 0x... or decimal"))
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut setup = Setup::parse(args.stage1.as_deref(), args.stage2.as_deref())?;
    let image = open(&args)?;
    roots_are_inside(&setup, &image)?;
    load_registers(&mut setup, image.read_only()).map_err(anyhow::Error::msg)?;

    let (kind, flavor) = match args.access {
        AccessKind::Read => (Kind::Read, Flavor::Plain),
        AccessKind::Write => (Kind::Write, Flavor::Plain),
        AccessKind::Execute => (Kind::Execute, Flavor::Plain),
        AccessKind::Atomic => (Kind::Write, Flavor::Atomic),
        AccessKind::Hlvx => (Kind::Read, Flavor::Hlvx),
    };
    let privilege = if args.user { Privilege::User } else { Privilege::Supervisor };
    let explainer = Explainer::new(setup);
    let mut walker = Walker {
        explainer: if args.update { explainer.with_updates() } else { explainer },
        image: &image,
        access: Access::new(kind, privilege).with_flavor(flavor),
        json: args.json,
        out: io::BufWriter::new(io::stdout().lock()),
        faulted: false,
        unreadable: false,
        drawn: false,
    };
    match walker.all(&args.addresses) {
        // A reader that has seen enough, as `head` does, is no trouble of ours.
        Err(error) if is_closed_pipe(&error) => {}
        outcome => outcome?,
    }
    Ok(ExitCode::from(match (walker.unreadable, walker.faulted) {
        (true, _) => 2,
        (false, true) => 1,
        (false, false) => 0,
    }))
}

fn open(args: &Args) -> anyhow::Result<Image> {
    let sources = Source::parse_list(&args.image)?;
    let mut options = Options::new();
    if let Some(base) = args.base {
        options = options.base(base);
    }
    if let Some(bytes) = args.decompressed_limit {
        options = options.decompressed_limit(bytes);
    }
    Ok(options.open_all(&sources)?)
}

/// A root outside the image is a mistake in the command, not a fault of the guest. Stage 1's root
/// is a GPA where there is a stage 2, so that only the outer stage's can be checked.
fn roots_are_inside(setup: &Setup, image: &Image) -> anyhow::Result<()> {
    let outer = setup.stage2.as_ref().or(setup.stage1.as_ref());
    if let Some((root, _)) = outer.and_then(|named| named.root)
        && image.read_u32(root).is_none()
    {
        let ranges: Vec<String> =
            image.ranges().take(3).map(|r| format!("{:#x}..={:#x}", r.start(), r.end())).collect();
        let more = if image.ranges().len() > 3 { ", ..." } else { "" };
        bail!(
            "the root {root:#x} is outside the image, which has {}{more} (is --base missing?)",
            ranges.join(", ")
        );
    }
    Ok(())
}

struct Walker<'a, W: Write> {
    explainer: Explainer,
    image: &'a Image,
    access: Access,
    json: bool,
    out: W,
    faulted: bool,
    unreadable: bool,
    drawn: bool,
}

impl<W: Write> Walker<'_, W> {
    /// These addresses, or those of standard input where there are none.
    fn all(&mut self, addresses: &[String]) -> anyhow::Result<()> {
        if addresses.is_empty() {
            self.standard_input()?;
        }
        for (number, address) in (1u64..).zip(addresses) {
            self.line(address, format_args!("address {number}"))?;
        }
        self.flush()
    }

    /// Addresses from standard input, one a line; empty lines are skipped.
    fn standard_input(&mut self) -> anyhow::Result<()> {
        let input = io::stdin();
        if input.is_terminal() {
            anstream::eprintln!("slat walk: reading addresses from the terminal, one a line");
        }
        let mut input = io::BufReader::new(input.lock());
        let mut line = Vec::new();
        for number in 1u64.. {
            line.clear();
            if input.buffer().is_empty() {
                // The answers are shown before the next question is waited for.
                self.flush()?;
            }
            // What is read of a line is bounded, so that no input takes all memory.
            let read = input
                .by_ref()
                .take(MAX_LINE)
                .read_until(b'\n', &mut line)
                .context("cannot read standard input")?;
            if read == 0 {
                break;
            }
            if read as u64 == MAX_LINE && line.last() != Some(&b'\n') {
                skip_rest(&mut input).context("cannot read standard input")?;
                self.refuse(format_args!("line {number}: longer than {MAX_LINE} bytes"));
                continue;
            }
            let text = String::from_utf8_lossy(&line);
            if !text.trim().is_empty() {
                self.line(text.trim(), format_args!("line {number}"))?;
            }
        }
        Ok(())
    }

    fn line(&mut self, text: &str, place: std::fmt::Arguments<'_>) -> anyhow::Result<()> {
        let Some(address) = number(text) else {
            let shown: String = text.chars().take(40).flat_map(char::escape_default).collect();
            self.refuse(format_args!("{place}: `{shown}` is not a number; write 0x... or decimal"));
            return Ok(());
        };
        let explained = self.explainer.explain(self.image.read_only(), address, &self.access);
        self.faulted |= explained.fault.is_some();
        let written = if self.json {
            serde_json::to_writer(&mut self.out, &explained)
                .map_err(io::Error::from)
                .and_then(|()| self.out.write_all(b"\n"))
        } else {
            // A blank line between drawings.
            let before = if std::mem::replace(&mut self.drawn, true) { "\n" } else { "" };
            write!(self.out, "{before}{}", Drawing::new(self.explainer.setup(), &explained))
        };
        written.context("cannot write the result")
    }

    /// Reports what is no address; the rest goes on.
    fn refuse(&mut self, why: std::fmt::Arguments<'_>) {
        // Where nobody reads the errors, the exit code still tells.
        let _ = writeln!(anstream::stderr(), "slat walk: {why}");
        self.unreadable = true;
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        self.out.flush().context("cannot write the result")
    }
}

/// The longest line that is looked at.
const MAX_LINE: u64 = 4096;

fn skip_rest(input: &mut impl BufRead) -> io::Result<()> {
    loop {
        let buffer = input.fill_buf()?;
        if buffer.is_empty() {
            return Ok(());
        }
        match buffer.iter().position(|&byte| byte == b'\n') {
            Some(end) => {
                input.consume(end + 1);
                return Ok(());
            }
            None => {
                let all = buffer.len();
                input.consume(all);
            }
        }
    }
}
