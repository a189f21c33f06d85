//! A walk as a person would draw it: one line a step, then the result or the fault.

use std::fmt::{self, Write as _};

use slat::format::Format;
use slat::format::any::AnyFormat;

use super::{Explained, Size};
use crate::spec::Setup;

/// The drawing of one translation.
#[derive(Debug)]
pub struct Drawing<'a> {
    setup: &'a Setup,
    explained: &'a Explained,
}

impl<'a> Drawing<'a> {
    /// Draws `explained`, which was made with `setup`.
    pub fn new(setup: &'a Setup, explained: &'a Explained) -> Drawing<'a> {
        Drawing { setup, explained }
    }
}

impl fmt::Display for Drawing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Explained { input, gpa, spa, steps, fault, .. } = self.explained;
        let two_stages = self.setup.stage1.is_some() && self.setup.stage2.is_some();
        let space = if self.setup.stage1.is_some() { "GVA" } else { "GPA" };
        writeln!(f, "{space} {input:#x}")?;
        for step in steps {
            // Stage 2 hangs below the stage-1 entry that it finds a place for.
            let indent = if two_stages && step.stage == 2 { "    " } else { "  " };
            let name = format_name(self.setup, step.stage);
            let entry_space = if step.stage == 1 && two_stages { "GPA" } else { "SPA" };
            writeln!(
                f,
                "{indent}{name:<8} L{:<2} {entry_space} {:#014x}  {:#018x}  {}",
                step.arch_level, step.entry_address, step.entry, step.meaning
            )?;
        }
        if let Some(fault) = fault {
            folded(f, &format!("fault: {}", fault.text))?;
            if let Some(syndrome) = &fault.syndrome {
                let mut line = format!("reported as {}", syndrome.name);
                for (key, value) in &syndrome.values {
                    match value.as_str() {
                        Some(text) => write!(line, ", {key} {text}")?,
                        None => write!(line, ", {key} {value}")?,
                    }
                }
                if !syndrome.flags.is_empty() {
                    write!(line, " ({})", syndrome.flags.join(", "))?;
                }
                folded(f, &line)?;
            }
            return Ok(());
        }
        f.write_str("  ")?;
        match (gpa, spa) {
            (Some(gpa), Some(spa)) if two_stages => write!(f, "= GPA {gpa:#x} = SPA {spa:#x}")?,
            (_, Some(spa)) => write!(f, "= SPA {spa:#x}")?,
            (Some(gpa), None) => write!(f, "= GPA {gpa:#x}")?,
            (None, None) => f.write_str("= nothing")?,
        }
        if let Some(size) = self.explained.page_size {
            write!(f, ", {} page", Size(size))?;
        }
        let flag = |allowed: Option<bool>, letter| if allowed == Some(true) { letter } else { '-' };
        write!(
            f,
            ", {}{}{}",
            flag(self.explained.read, 'r'),
            flag(self.explained.write, 'w'),
            flag(self.explained.execute, 'x')
        )?;
        if let Some(memory_type) = &self.explained.memory_type {
            write!(f, ", {memory_type}")?;
        }
        let references = self.explained.references;
        writeln!(f, ", {references} reference{}", if references == 1 { "" } else { "s" })
    }
}

/// A sentence in lines of at most 100 columns, the later ones indented further.
fn folded(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    const WIDTH: usize = 100;
    let mut column = 1;
    f.write_char(' ')?;
    for word in text.split(' ') {
        if column > 2 && column + 1 + word.len() > WIDTH {
            f.write_str("\n     ")?;
            column = 5;
        }
        write!(f, " {word}")?;
        column += 1 + word.len();
    }
    writeln!(f)
}

fn format_name(setup: &Setup, stage: u8) -> &'static str {
    let named = if stage == 1 { &setup.stage1 } else { &setup.stage2 };
    named.as_ref().map_or("", |named| AnyFormat::name(&named.format))
}
