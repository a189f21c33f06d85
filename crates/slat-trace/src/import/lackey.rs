//! Valgrind's lackey, `valgrind --tool=lackey --trace-mem=yes`.
//!
//! `I  ADDR,SIZE` a fetch, ` L ADDR,SIZE` a load, ` S ADDR,SIZE` a store, ` M ADDR,SIZE` a load and a
//! store of the same place by one instruction; addresses in hexadecimal without prefix, sizes in decimal.
//! Lines of Valgrind itself begin with `==PID==`.

use super::text::{Accesses, Grammar, Line, hexadecimal, size};
use crate::Kind;

#[derive(Default)]
pub(crate) struct Lackey;

const EXPECTED: &str = "`I  ADDR,SIZE`, ` L ADDR,SIZE`, ` S ADDR,SIZE`, ` M ADDR,SIZE` (hexadecimal, decimal) or `==PID==`; \
     if the program's own output is mixed in, record again with --log-file=FILE";

impl Grammar for Lackey {
    const LINES_ARE_CLOSED: bool = true;
    const HAS_LAST_LINE: bool = false;

    fn line(&mut self, line: &[u8], out: &mut Accesses<'_>) -> Line {
        let (kinds, rest): (&[Kind], _) = match line {
            [b'I', b' ', b' ', rest @ ..] => (&[Kind::Fetch], rest),
            [b' ', b'L', b' ', rest @ ..] => (&[Kind::Load], rest),
            [b' ', b'S', b' ', rest @ ..] => (&[Kind::Store], rest),
            [b' ', b'M', b' ', rest @ ..] => (&[Kind::Load, Kind::Store], rest),
            [] => return Line::Good,
            [b'=', b'=', rest @ ..] => return valgrinds_own(rest, b"=="),
            [b'-', b'-', rest @ ..] => return valgrinds_own(rest, b"--"),
            _ => return Line::Bad(EXPECTED),
        };
        let Some(comma) = memchr::memchr(b',', rest) else { return Line::Bad(EXPECTED) };
        let (Some(address), Some(size)) = (hexadecimal(&rest[..comma]), size(&rest[comma + 1..]))
        else {
            return Line::Bad(EXPECTED);
        };
        for &kind in kinds {
            out.add(kind, address, size);
        }
        Line::Good
    }

    fn notes(&self) -> Vec<String> {
        vec!["lackey does not say which thread made an access: all are one".to_owned()]
    }
}

/// `PID==` after `==`, or `PID--` after `--` (Valgrind's debug output).
fn valgrinds_own(rest: &[u8], closing: &[u8]) -> Line {
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if digits > 0 && rest[digits..].starts_with(closing) { Line::Good } else { Line::Bad(EXPECTED) }
}
