//! The three texts that Ramulator 1 and 2 read.
//!
//! `LD ADDR` / `ST ADDR` (load/store traces of Ramulator 2), `ADDR R` / `ADDR W` (memory traces of
//! Ramulator 1) and `BUBBLES LOAD [WRITEBACK]` (instruction traces of both: that many instructions
//! without memory, then a load and, when given, a write-back). Addresses in decimal, or in
//! hexadecimal with `0x`.

use super::text::{Accesses, Grammar, Line, decimal, either};
use crate::Kind;

/// Which of the three texts; a file has one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    LoadStore,
    Memory,
    Instructions,
}

#[derive(Default)]
pub(crate) struct Ramulator {
    style: Option<Style>,
}

const EXPECTED: &str =
    "one of `LD|ST ADDR`, `ADDR R|W` and `BUBBLES LOAD [WRITEBACK]`, the same on every line";

impl Grammar for Ramulator {
    const LINES_ARE_CLOSED: bool = false;
    const HAS_LAST_LINE: bool = false;

    fn line(&mut self, line: &[u8], out: &mut Accesses<'_>) -> Line {
        let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        let Some(first) = words.next() else { return Line::Good };
        if first.starts_with(b"#") {
            return Line::Good;
        }
        let (second, third) = (words.next(), words.next());
        if words.next().is_some() {
            return Line::Bad(EXPECTED);
        }
        let Some((style, accesses)) = parse(first, second, third) else {
            return Line::Bad(EXPECTED);
        };
        if *self.style.get_or_insert(style) != style {
            return Line::Bad(EXPECTED);
        }
        for (kind, address) in accesses.into_iter().flatten() {
            out.add(kind, address, 0);
        }
        Line::Good
    }

    fn notes(&self) -> Vec<String> {
        vec![
            "Ramulator traces give no sizes and no fetches: no access crosses a page".to_owned(),
            "Ramulator traces hold what caches let through, often physical addresses: they are taken as virtual"
                .to_owned(),
        ]
    }
}

type Accessed = [Option<(Kind, u64)>; 2];

fn parse(first: &[u8], second: Option<&[u8]>, third: Option<&[u8]>) -> Option<(Style, Accessed)> {
    let second = second?;
    let two_words = |style, kind, address| match third {
        None => Some((style, [Some((kind, either(address)?)), None])),
        Some(_) => None,
    };
    match (first, second) {
        (b"LD", address) => two_words(Style::LoadStore, Kind::Load, address),
        (b"ST", address) => two_words(Style::LoadStore, Kind::Store, address),
        (address, b"R") => two_words(Style::Memory, Kind::Load, address),
        (address, b"W") => two_words(Style::Memory, Kind::Store, address),
        (bubbles, load) => {
            decimal(bubbles)?;
            let write_back = match third {
                None => None,
                Some(address) => Some((Kind::Store, either(address)?)),
            };
            Some((Style::Instructions, [Some((Kind::Load, either(load)?)), write_back]))
        }
    }
}
