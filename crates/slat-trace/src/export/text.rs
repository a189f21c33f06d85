//! CSV and plain text.

use std::fmt::{self, Write as _};
use std::io::{self, Write};

use super::{Part, Row};
use crate::event::Batch;

/// How a stream is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Comma-separated values: `number,vcpu,what,va,gpa,len,user,value`, addresses as `0x...`.
    Csv {
        /// Whether events get rows too; `value` is theirs.
        events: bool,
    },
    /// `R|W|I ADDR,SIZE`, a line an access; events are left out.
    Text,
}

/// Writes a stream as text, batch by batch.
#[derive(Debug)]
pub struct Exporter<W: Write> {
    out: W,
    form: Form,
    line: String,
    part: Part,
}

impl<W: Write> Exporter<W> {
    /// An exporter of `part` of a stream. Writes the header, where the form has one.
    ///
    /// # Errors
    ///
    /// Where `out` cannot be written.
    pub fn new(mut out: W, form: Form, part: Part) -> io::Result<Self> {
        if matches!(form, Form::Csv { .. }) {
            out.write_all(b"number,vcpu,what,va,gpa,len,user,value\n")?;
        }
        Ok(Self { out, form, line: String::new(), part })
    }

    /// Writes what of a batch is asked for; false when nothing after it can be.
    ///
    /// # Errors
    ///
    /// Where the output cannot be written.
    pub fn push(&mut self, batch: &Batch) -> io::Result<bool> {
        let Self { out, form, line, part } = self;
        part.rows(batch, *form == (Form::Csv { events: true }), |row| {
            line.clear();
            let written = match form {
                Form::Text => put_text(line, &row),
                Form::Csv { .. } => put_csv(line, &row),
            };
            written.expect("a string takes it");
            out.write_all(line.as_bytes())
        })
    }

    /// Ends the output and returns it.
    ///
    /// # Errors
    ///
    /// Where the output cannot be written.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.flush()?;
        Ok(self.out)
    }
}

fn put_text(line: &mut String, row: &Row) -> fmt::Result {
    let letter = match &*row.what {
        "load" => 'R',
        "store" => 'W',
        _ => 'I',
    };
    writeln!(line, "{letter} {:#x},{}", row.va.unwrap_or(0), row.len.unwrap_or(0))
}

fn put_csv(line: &mut String, row: &Row) -> fmt::Result {
    let hex = |line: &mut String, value: Option<u64>| match value {
        Some(value) => write!(line, "{value:#x},"),
        None => write!(line, ","),
    };
    write!(line, "{},{},{},", row.number, row.vcpu, row.what)?;
    hex(line, row.va)?;
    hex(line, row.gpa)?;
    match row.len {
        Some(len) => write!(line, "{len},")?,
        None => line.push(','),
    }
    match row.user {
        Some(user) => write!(line, "{},", u8::from(user))?,
        None => line.push(','),
    }
    row.value.map_or(Ok(()), |value| write!(line, "{value:#x}"))?;
    writeln!(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Access, Event, Kind, Root};

    fn export(form: Form, from: u64, end: u64) -> (String, bool) {
        let mut batch = Batch::default();
        batch.event(0, Event::Root { root: Root::Cr3, value: 0x1000 });
        batch.accesses.push(Access::new(Kind::Fetch, 0x40_0000, 12).with_frame(7));
        batch.accesses.push(Access::new(Kind::Load, 0x7000, 8).with_user(false));
        batch.event(1, Event::Mode { user: true });
        batch.accesses.push(Access::new(Kind::Store, 0x8000, 4).on(1));
        let mut exporter = Exporter::new(Vec::new(), form, Part::new(0, from, end)).unwrap();
        let more = exporter.push(&batch).unwrap();
        (String::from_utf8(exporter.finish().unwrap()).unwrap(), more)
    }

    #[test]
    fn rows_say_what_the_stream_says() {
        let (text, more) = export(Form::Csv { events: true }, 0, u64::MAX);
        let expected = "number,vcpu,what,va,gpa,len,user,value\n\
            0,0,root cr3,,,,,0x1000\n\
            0,0,fetch,0x400000,0x7000,12,1,\n\
            1,0,load,0x7000,,8,0,\n\
            2,1,mode,,,,,0x1\n\
            2,1,store,0x8000,,4,1,\n";
        assert_eq!(text, expected);
        assert!(more);
    }

    #[test]
    fn a_part_is_cut_out_by_number() {
        let (text, more) = export(Form::Text, 1, 2);
        assert_eq!(text, "R 0x7000,8\n");
        assert!(!more);
        let (text, _) = export(Form::Csv { events: false }, 2, 9);
        assert_eq!(text.lines().nth(1), Some("2,1,store,0x8000,,4,1,"));
    }
}
