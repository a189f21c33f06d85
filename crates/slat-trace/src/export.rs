//! Streams as text for other programs.
//!
//! CSV has one row an access, and on request one an event, with a header line; plain text has one
//! line an access (`R ADDR,SIZE`, `W`, `I`), which [`import`](crate::import) reads again.

use std::fmt::Write as _;
use std::io::{self, Write};

use crate::event::{Access, At, Batch, Event, Invalidation, Kind};

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

/// Writes a stream batch by batch.
#[derive(Debug)]
pub struct Exporter<W: Write> {
    out: W,
    form: Form,
    line: String,
    /// The number of the next access in the whole stream.
    number: u64,
    /// Accesses before this number are left out.
    from: u64,
    /// Accesses from this number on are left out.
    end: u64,
}

impl<W: Write> Exporter<W> {
    /// An exporter of the accesses `from..end`, for a stream whose first access is number `first`
    /// of the whole. Writes the header, where the form has one.
    ///
    /// # Errors
    ///
    /// Where `out` cannot be written.
    pub fn new(mut out: W, form: Form, first: u64, from: u64, end: u64) -> io::Result<Self> {
        if matches!(form, Form::Csv { .. }) {
            out.write_all(b"number,vcpu,what,va,gpa,len,user,value\n")?;
        }
        Ok(Self { out, form, line: String::new(), number: first, from, end })
    }

    /// Writes what of a batch is asked for; false when nothing after it can be.
    ///
    /// # Errors
    ///
    /// Where the output cannot be written.
    pub fn push(&mut self, batch: &Batch) -> io::Result<bool> {
        for run in batch.runs() {
            if self.number >= self.from && self.number < self.end {
                for at in run.events {
                    self.event(at)?;
                }
            }
            for access in run.accesses {
                if self.number >= self.end {
                    return Ok(false);
                }
                if self.number >= self.from {
                    self.access(access)?;
                }
                self.number += 1;
            }
        }
        Ok(self.number < self.end)
    }

    fn access(&mut self, access: &Access) -> io::Result<()> {
        let Access { va, vcpu, .. } = *access;
        let line = &mut self.line;
        line.clear();
        let written = match self.form {
            Form::Text => {
                let letter = match access.kind() {
                    Kind::Load => 'R',
                    Kind::Store => 'W',
                    Kind::Fetch => 'I',
                };
                writeln!(line, "{letter} {va:#x},{}", access.len())
            }
            Form::Csv { .. } => {
                let what = match access.kind() {
                    Kind::Load => "load",
                    Kind::Store => "store",
                    Kind::Fetch => "fetch",
                };
                let user = u8::from(access.user());
                write!(line, "{},{vcpu},{what},{va:#x},", self.number)
                    .and_then(|()| access.gpa().map_or(Ok(()), |gpa| write!(line, "{gpa:#x}")))
                    .and_then(|()| writeln!(line, ",{},{user},", access.len()))
            }
        };
        written.expect("a string takes it");
        self.out.write_all(self.line.as_bytes())
    }

    fn event(&mut self, at: &At) -> io::Result<()> {
        if self.form != (Form::Csv { events: true }) {
            return Ok(());
        }
        // What happened, the addresses it is about, and the value.
        let (mut va, mut gpa, mut value) = (None, None, None);
        let what = match at.event {
            Event::Root { root, value: written } => {
                value = Some(written);
                format!("root {root:?}").to_lowercase()
            }
            Event::Control { register, value: written } => {
                value = Some(written);
                format!("control {register:?}").to_lowercase()
            }
            Event::TablePage { gpa: page, level, .. } => {
                (gpa, value) = (Some(page), Some(level.into()));
                "table page".into()
            }
            Event::TableEntry { gpa: entry, value: content } => {
                (gpa, value) = (Some(entry), Some(content));
                "table entry".into()
            }
            Event::TableStore { gpa: entry, value: content } => {
                (gpa, value) = (Some(entry), Some(content));
                "table store".into()
            }
            Event::TableRelease { gpa: page } => {
                gpa = Some(page);
                "table release".into()
            }
            Event::Invalidate(Invalidation::Invlpg { va: page }) => {
                va = Some(page);
                "invlpg".into()
            }
            Event::Invalidate(Invalidation::Invpcid { kind, pcid, va: page }) => {
                (va, value) = (Some(page), Some(kind << 16 | pcid));
                "invpcid".into()
            }
            Event::Invalidate(Invalidation::Tlbi { operation, operand }) => {
                value = Some(operand);
                format!("tlbi {operation:#x}")
            }
            Event::Exception(exception) => {
                (va, value) = (Some(exception.fault_va), Some(exception.vector.into()));
                "exception".into()
            }
            Event::ExceptionReturn => "exception return".into(),
            Event::Mode { user } => {
                value = Some(user.into());
                "mode".into()
            }
            Event::Io { va: from, gpa: device, len, store } => {
                (va, gpa, value) = (Some(from), Some(device), Some(len.into()));
                if store { "io store".into() } else { "io load".into() }
            }
            Event::Msr { number, value: written } => {
                value = Some(written);
                format!("msr {number:#x}")
            }
        };
        let hex = |word: Option<u64>| word.map(|word| format!("{word:#x}")).unwrap_or_default();
        let (va, gpa, value) = (hex(va), hex(gpa), hex(value));
        writeln!(self.out, "{},{},{what},{va},{gpa},,,{value}", self.number, at.vcpu)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Root;

    fn export(form: Form, from: u64, end: u64) -> (String, bool) {
        let mut batch = Batch::default();
        batch.event(0, Event::Root { root: Root::Cr3, value: 0x1000 });
        batch.accesses.push(Access::new(Kind::Fetch, 0x40_0000, 12).with_frame(7));
        batch.accesses.push(Access::new(Kind::Load, 0x7000, 8).with_user(false));
        batch.event(1, Event::Mode { user: true });
        batch.accesses.push(Access::new(Kind::Store, 0x8000, 4).on(1));
        let mut exporter = Exporter::new(Vec::new(), form, 0, from, end).unwrap();
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
