//! Which format a trace is in, told by what it contains, never by its name.

use super::champsim::CHAMPSIM;
use super::error::Cause;
use super::input::{BUFFER, Input};
use super::lackey::Lackey;
use super::pinatrace::Pinatrace;
use super::plain::Plain;
use super::ramulator::Ramulator;
use super::text::{Accesses, Grammar, Line, shown};
use super::{Format, ImportError, drmemtrace, gem5};

/// ChampSim has no magic number: this many records must look right, or all if there are fewer.
const CHAMPSIM_RECORDS: usize = 16;

/// Lines of a text that are tried against each grammar.
const LINES: usize = 256;

/// Tells the format from the beginning of a stream, of which nothing is consumed.
///
/// # Errors
///
/// When the stream fails at once, is of a format that is refused on purpose, or of none that is known.
pub(crate) fn detect(input: &mut Input) -> Result<Format, ImportError> {
    if input.peek(BUFFER).is_empty() {
        input.ensure(1)?;
        return Err(input.error(0, Cause::Unknown("the trace is empty".into())));
    }
    let head = input.data();
    if head.starts_with(&gem5::MAGIC) {
        return Ok(Format::Gem5);
    }
    if drmemtrace::fits(head) {
        return Ok(Format::Drmemtrace);
    }
    if let Some(remedy) = refused(head) {
        return Err(input.error(0, Cause::Refused(remedy.into())));
    }
    let text = first_line(head);
    if text.is_some()
        && let Some(format) = text_format(head)
    {
        return Ok(format);
    }
    if CHAMPSIM.fits(&head[..head.len().min(CHAMPSIM_RECORDS * 64)]) {
        return Ok(Format::ChampSim);
    }
    let what = match text {
        Some(line) => format!("`{}` is no line of a known text format", shown(line)),
        None => "these bytes begin no known format".to_owned(),
    };
    let known = Format::ALL.map(Format::name).join(", ");
    Err(input.error(
        0,
        Cause::Unknown(format!("{what}; known are {known}; if it is one of them, name it")),
    ))
}

fn refused(head: &[u8]) -> Option<&'static str> {
    let known: [(&[u8], &str); 4] = [
        (b"SLATREC\0", "this is a recording already: it needs no import"),
        (b"SIFT", "SIFT traces (Sniper) are not read; record with drmemtrace or lackey instead"),
        (
            b"PERFILE2",
            "perf records samples, not every access; record with drmemtrace or lackey instead",
        ),
        (b"\x7fELF", "this is a program; record it first, with `slat record` or another tool"),
    ];
    known
        .iter()
        .find(|(magic, _)| head.starts_with(magic))
        .map(|&(_, remedy)| remedy)
        .or_else(|| drmemtrace::refused(head))
}

/// The first line that is not empty, if it is one of a text.
fn first_line(head: &[u8]) -> Option<&[u8]> {
    let line =
        head.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii).find(|line| !line.is_empty())?;
    let line = &line[..line.len().min(256)];
    line.iter().all(|&byte| byte == b'\t' || (b' '..0x7f).contains(&byte)).then_some(line)
}

/// The grammar that reads most accesses before the first line it does not understand.
///
/// So a text with a damaged line is read up to it, and the error names the line.
fn text_format(head: &[u8]) -> Option<Format> {
    let counts = [
        (Format::Lackey, accesses_of::<Lackey>(head)),
        (Format::Pinatrace, accesses_of::<Pinatrace>(head)),
        (Format::Plain, accesses_of::<Plain>(head)),
        (Format::Ramulator, accesses_of::<Ramulator>(head)),
    ];
    // The first of equals.
    let (format, count) = counts.into_iter().rev().max_by_key(|&(_, count)| count)?;
    (count > 0).then_some(format)
}

fn accesses_of<G: Grammar>(head: &[u8]) -> usize {
    let mut grammar = G::default();
    let mut references = Vec::new();
    for line in head.split(|&byte| byte == b'\n').take(LINES) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if grammar.line(line, &mut Accesses::new(&mut references)) != Line::Good {
            break;
        }
    }
    references.len()
}
