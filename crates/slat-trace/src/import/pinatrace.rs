//! The text of Pin's `pinatrace` example tool: `0xIP: R 0xADDR` or `0xIP: W 0xADDR`, closed by `#eof`.

use super::text::{Accesses, Grammar, Line, hexadecimal};
use crate::Kind;

#[derive(Default)]
pub(crate) struct Pinatrace {
    last_ip: Option<u64>,
}

const EXPECTED: &str = "`0xIP: R|W 0xADDR` or `#eof`";

impl Grammar for Pinatrace {
    const LINES_ARE_CLOSED: bool = true;
    const HAS_LAST_LINE: bool = true;

    fn line(&mut self, line: &[u8], out: &mut Accesses<'_>) -> Line {
        if line == b"#eof" {
            return Line::Last;
        }
        if line.is_empty() {
            return Line::Good;
        }
        let Some((ip, kind, address)) = parse(line) else { return Line::Bad(EXPECTED) };
        // Several operands of one instruction are several lines with the same IP: one fetch.
        if self.last_ip != Some(ip) {
            out.add(Kind::Fetch, ip, 0);
            self.last_ip = Some(ip);
        }
        out.add(kind, address, 0);
        Line::Good
    }

    fn notes(&self) -> Vec<String> {
        vec![
            "pinatrace gives no sizes: no access crosses a page".to_owned(),
            "pinatrace names instructions that touch memory only: the fetches of all others are missing".to_owned(),
        ]
    }
}

fn parse(line: &[u8]) -> Option<(u64, Kind, u64)> {
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let ip = hexadecimal(words.next()?.strip_prefix(b"0x")?.strip_suffix(b":")?)?;
    let kind = match words.next()? {
        b"R" => Kind::Load,
        b"W" => Kind::Store,
        _ => return None,
    };
    let address = hexadecimal(words.next()?.strip_prefix(b"0x")?)?;
    words.next().is_none().then_some((ip, kind, address))
}
