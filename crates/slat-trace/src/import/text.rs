//! Texts with one thing a line: what the text formats share.

use super::error::{Cause, ImportError, Place};
use super::input::{Input, LineError};
use super::{Reader, Reference, References};
use crate::Kind;

/// What a line of a text meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// It was understood, whether it held accesses or not.
    Good,
    /// It ends the trace; what follows is not read.
    Last,
    /// It means nothing in this format; the text says what a line must look like.
    Bad(&'static str),
}

/// One text format: what each line means.
pub(crate) trait Grammar: Default + Send {
    /// Reads one line and adds its accesses, in the order in which they happened.
    fn line(&mut self, line: &[u8], out: &mut Accesses<'_>) -> Line;

    /// Whether a last line without a newline must be one that was cut, as nobody writes this by hand.
    const LINES_ARE_CLOSED: bool;

    /// Whether a complete text has a [`Line::Last`].
    const HAS_LAST_LINE: bool;

    /// What the reader of the result must know about this format.
    fn notes(&self) -> Vec<String>;
}

/// Takes the accesses of a line.
pub(crate) struct Accesses<'a> {
    out: &'a mut Vec<Reference>,
}

impl<'a> Accesses<'a> {
    pub(crate) fn new(out: &'a mut Vec<Reference>) -> Self {
        Accesses { out }
    }

    /// Adds an access of the one lane that a text has.
    pub(crate) fn add(&mut self, kind: Kind, address: u64, size: u16) {
        self.out.push(Reference { address, size, lane: 0, space: 0, kind });
    }
}

/// Reads a text by its grammar.
pub(crate) struct TextReader<G> {
    input: Input,
    grammar: G,
    lines: u64,
    ended: bool,
}

impl<G: Grammar> TextReader<G> {
    pub(crate) fn new(input: Input) -> Self {
        TextReader { input, grammar: G::default(), lines: 0, ended: false }
    }

    fn at_line(&self, cause: Cause) -> ImportError {
        ImportError { path: self.input.path().to_owned(), place: Place::Line(self.lines), cause }
    }
}

impl<G: Grammar> Reader for TextReader<G> {
    fn fill(&mut self, batch: &mut References) -> Result<bool, ImportError> {
        while !self.ended && !batch.is_full() {
            let line = match self.input.line() {
                Ok(Some((line, closed))) => {
                    self.lines += 1;
                    if !closed && G::LINES_ARE_CLOSED {
                        self.ended = true;
                        let what = format!("`{}` is cut", shown(line));
                        return Err(self.at_line(Cause::Truncated(what)));
                    }
                    line
                }
                Ok(None) => {
                    self.ended = true;
                    if G::HAS_LAST_LINE {
                        self.lines += 1;
                        let what = "its closing line is missing".to_owned();
                        return Err(self.at_line(Cause::Truncated(what)));
                    }
                    break;
                }
                Err(LineError::Stream(error)) => {
                    self.ended = true;
                    return Err(error);
                }
                Err(LineError::TooLong) => {
                    self.lines += 1;
                    self.ended = true;
                    let what =
                        "the line is longer than 64 KiB; this is not a trace in text".to_owned();
                    return Err(self.at_line(Cause::Malformed(what)));
                }
            };
            let meaning = self.grammar.line(line, &mut Accesses::new(&mut batch.list));
            match meaning {
                Line::Good => {}
                Line::Last => self.ended = true,
                Line::Bad(expected) => {
                    self.ended = true;
                    let shown = shown(line);
                    let what = format!("`{shown}` is not understood; expected {expected}");
                    return Err(self.at_line(Cause::Malformed(what)));
                }
            }
        }
        Ok(!self.ended)
    }

    fn notes(&self) -> Vec<String> {
        self.grammar.notes()
    }
}

/// A line as an error can show it: cut, and without anything a terminal would obey.
pub(crate) fn shown(line: &[u8]) -> String {
    let head = &line[..line.len().min(60)];
    let mut text: String = String::from_utf8_lossy(head)
        .chars()
        .map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c })
        .collect();
    if head.len() < line.len() {
        text.push_str("...");
    }
    text
}

/// A hexadecimal number without prefix; none when empty, longer than 64 bits or something else.
pub(crate) fn hexadecimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 16 {
        return None;
    }
    digits.iter().try_fold(0, |value, &digit| {
        let nibble = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            b'A'..=b'F' => digit - b'A' + 10,
            _ => return None,
        };
        Some(value << 4 | u64::from(nibble))
    })
}

/// A decimal number; none when empty, beyond 64 bits or something else.
pub(crate) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |value, &digit| {
        if !digit.is_ascii_digit() {
            return None;
        }
        value.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
    })
}

/// `0x` and a hexadecimal number, or a decimal one.
pub(crate) fn either(digits: &[u8]) -> Option<u64> {
    match digits {
        [b'0', b'x' | b'X', rest @ ..] => hexadecimal(rest),
        _ => decimal(digits),
    }
}

/// A size of an access in bytes: decimal, 1 to 65535.
pub(crate) fn size(digits: &[u8]) -> Option<u16> {
    decimal(digits).and_then(|size| u16::try_from(size).ok()).filter(|&size| size > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_whole_or_nothing() {
        assert_eq!(hexadecimal(b"0401aB70"), Some(0x401_ab70));
        assert_eq!(hexadecimal(b"ffffffffffffffff"), Some(u64::MAX));
        for bad in [&b""[..], b"1ffffffffffffffff", b"0x1", b"-1", b"+1", b"g"] {
            assert_eq!(hexadecimal(bad), None);
        }
        assert_eq!(decimal(b"18446744073709551615"), Some(u64::MAX));
        for bad in [&b""[..], b"18446744073709551616", b"+1", b" 1", b"1a"] {
            assert_eq!(decimal(bad), None);
        }
        assert_eq!((either(b"0x10"), either(b"10")), (Some(16), Some(10)));
        assert_eq!((size(b"65535"), size(b"65536"), size(b"0")), (Some(65535), None, None));
    }

    #[test]
    fn a_shown_line_is_short_and_harmless() {
        assert_eq!(shown(b"\x1b[31mred"), "\u{fffd}[31mred");
        assert!(shown(&[b'x'; 1000]).len() < 70);
    }
}
