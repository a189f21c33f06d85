//! Plain text, the format to write when nothing else fits: `R|W|I ADDR[,SIZE]`.
//!
//! One access a line: `R` a load, `W` a store, `I` a fetch; the address in hexadecimal, with or without
//! `0x`; the size in bytes in decimal, which may be left out. Empty lines and lines that begin with `#`
//! mean nothing.

use super::text::{Accesses, Grammar, Line, hexadecimal, size};
use crate::Kind;

#[derive(Default)]
pub(crate) struct Plain;

const EXPECTED: &str = "`R|W|I ADDR[,SIZE]` (hexadecimal, decimal), as in `W 0x7f001000,8`";

impl Grammar for Plain {
    const LINES_ARE_CLOSED: bool = false;
    const HAS_LAST_LINE: bool = false;

    fn line(&mut self, line: &[u8], out: &mut Accesses<'_>) -> Line {
        let line = line.trim_ascii();
        let (kind, rest) = match line {
            [] | [b'#', ..] => return Line::Good,
            [b'R', b' ' | b'\t', rest @ ..] => (Kind::Load, rest),
            [b'W', b' ' | b'\t', rest @ ..] => (Kind::Store, rest),
            [b'I', b' ' | b'\t', rest @ ..] => (Kind::Fetch, rest),
            _ => return Line::Bad(EXPECTED),
        };
        let rest = rest.trim_ascii_start();
        let (digits, bytes) = match memchr::memchr(b',', rest) {
            None => (rest, Some(0)),
            Some(comma) => (&rest[..comma], size(rest[comma + 1..].trim_ascii())),
        };
        let digits = digits.strip_prefix(b"0x").unwrap_or(digits);
        let (Some(address), Some(bytes)) = (hexadecimal(digits), bytes) else {
            return Line::Bad(EXPECTED);
        };
        out.add(kind, address, bytes);
        Line::Good
    }

    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
}
