//! The report as text for a person, in lines of at most the given width.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};

use crate::processors::{Confidence, Known};
use crate::report::{Answer, Evidence, Report, Verdict};

/// What SLAT is, in one line.
pub const WHAT_SLAT_IS: &str =
    "SLAT is hardware that translates memory addresses for virtual machines.";

const WHAT_IT_IS_CALLED: &str = "(Second-level address translation: EPT on Intel, NPT or RVI on AMD, \
    stage 2 on Arm, G-stage on RISC-V. Without it software does that work, more slowly.)";

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();

/// The columns that a terminal without a known size has.
pub const USUAL_WIDTH: usize = 80;

/// The report of a machine, ready to print; styled, for a stream that knows what its terminal can show.
pub fn machine(report: &Report, width: usize) -> String {
    let mut page = Page::new(width);
    page.headline(report.in_use.answer, &report.headline);
    if let Some(remark) = &report.remark {
        page.paragraph("", remark);
    }
    page.what_slat_is();
    if let Some(name) = &report.processor_name {
        page.blank();
        page.paragraph("", &format!("Processor: {name}"));
    }
    page.blank();
    page.verdict("Does the processor have it?", &report.processor);
    page.verdict("Did the firmware leave it on?", &report.firmware);
    page.verdict("Does the running kernel use it?", &report.in_use);
    page.verdict("Is this a virtual machine?", &report.virtual_machine.verdict);
    if let Some(nested) = &report.virtual_machine.nested {
        page.verdict("Is SLAT offered inside it?", nested);
    }

    if !report.details.is_empty() {
        page.section(&format!("What this {} can do", report.technology.unwrap_or("SLAT")));
        let longest = report.details.iter().map(|detail| detail.name.len()).max().unwrap_or(0);
        for detail in &report.details {
            page.hanging(&format!("{:longest$}  ", detail.name), &detail.value, None);
        }
        let mut sources: Vec<&str> = Vec::new();
        for detail in &report.details {
            if !sources.contains(&detail.source.as_str()) {
                sources.push(&detail.source);
            }
        }
        page.aside(&format!("Read from {}.", sources.join("; ")));
    }

    if !report.hypervisors.is_empty() {
        page.section("Which hypervisors could run here, and which need SLAT");
        for hypervisor in &report.hypervisors {
            let remark = match &hypervisor.remark {
                Some(remark) => format!("; {remark}"),
                None => String::new(),
            };
            page.hanging(
                &format!("{:13}", hypervisor.name),
                &format!("{}{remark}", hypervisor.why),
                Some(hypervisor.here),
            );
        }
    }

    if !report.advice.is_empty() {
        page.section("What to do");
        for (at, advice) in report.advice.iter().enumerate() {
            page.hanging(&format!("{}. ", at + 1), advice, None);
        }
    }

    if !report.unread.is_empty() {
        page.section("What could not be read");
        for unread in &report.unread {
            page.evidence("  ", &unread.source, &unread.reason);
        }
    }
    page.text
}

/// What is known of a processor by its name, ready to print.
pub fn processor(known: &Known, width: usize) -> String {
    let mut page = Page::new(width);
    page.headline(known.slat, &known.headline());
    page.what_slat_is();
    page.blank();
    let mut rows = vec![("asked for", known.asked.clone())];
    let mut row = |name, value: Option<String>| {
        if let Some(value) = value {
            rows.push((name, value));
        }
    };
    row("family", known.family.map(str::to_string));
    row("first sold", known.since.map(|year| year.to_string()));
    if known.slat == Answer::Yes {
        row(
            "unrestricted guest",
            Some(
                match known.unrestricted_guest {
                    Answer::Yes => "yes: guests may run with paging off",
                    Answer::No => "no: guests with paging off must be emulated",
                    Answer::Unknown => "could not tell",
                }
                .to_string(),
            ),
        );
        row(
            "tagged TLB",
            Some(
                match known.tagged_tlb {
                    Answer::Yes => "yes: cached translations outlive a switch between machines",
                    Answer::No => "no: a switch between machines empties the TLB",
                    Answer::Unknown => "could not tell",
                }
                .to_string(),
            ),
        );
    }
    row("note", known.note.map(str::to_string));
    row("source", known.source.map(str::to_string));
    row(
        "confidence",
        known.confidence.filter(|_| known.slat != Answer::Unknown).map(|confidence| {
            match confidence {
                Confidence::High => "high: the maker says so for all of them",
                Confidence::Medium => "medium: the maker says so for those that were looked at",
            }
            .to_string()
        }),
    );
    for (name, value) in rows {
        page.hanging(&format!("{name:20}"), &value, None);
    }
    if known.family.is_none() {
        page.section("What to do");
        page.hanging(
            "- ",
            "Give the name as /proc/cpuinfo or a shop spells it, model number included, such as \
             \"Core i7-2600K\", \"Xeon X5570\", \"Opteron 2350\" or \"Cortex-A72\".",
            None,
        );
        page.hanging("- ", "On the machine itself, run \"slat check\".", None);
    }
    page.text
}

fn word(answer: Answer) -> &'static str {
    match answer {
        Answer::Yes => "yes",
        Answer::No => "no",
        Answer::Unknown => "could not tell",
    }
}

fn colour(answer: Answer) -> Style {
    match answer {
        Answer::Yes => AnsiColor::Green,
        Answer::No => AnsiColor::Red,
        Answer::Unknown => AnsiColor::Yellow,
    }
    .on_default()
}

/// A page that fills up from the top.
struct Page {
    text: String,
    width: usize,
}

impl Page {
    fn new(width: usize) -> Page {
        // Narrower than this, hanging indents leave no room for words.
        Page { text: String::new(), width: width.clamp(60, 100) }
    }

    fn blank(&mut self) {
        self.text.push('\n');
    }

    fn line(&mut self, style: Style, line: &str) {
        let _ = writeln!(self.text, "{style}{line}{style:#}");
    }

    fn headline(&mut self, answer: Answer, headline: &str) {
        let style = colour(answer).bold();
        for line in wrapped(headline, self.width) {
            self.line(style, &line);
        }
    }

    fn what_slat_is(&mut self) {
        self.blank();
        self.paragraph("", WHAT_SLAT_IS);
        for line in wrapped(WHAT_IT_IS_CALLED, self.width) {
            self.line(DIM, &line);
        }
    }

    fn paragraph(&mut self, indent: &str, text: &str) {
        for line in wrapped(text, self.width - indent.len()) {
            let _ = writeln!(self.text, "{indent}{line}");
        }
    }

    fn section(&mut self, title: &str) {
        self.blank();
        self.line(BOLD, title);
    }

    fn verdict(&mut self, question: &str, verdict: &Verdict) {
        let style = colour(verdict.answer).bold();
        let answer = word(verdict.answer);
        let _ = writeln!(self.text, "{BOLD}{question:33}{BOLD:#}{style}{answer}{style:#}");
        self.paragraph("    ", &verdict.reason);
        for Evidence { source, says } in &verdict.evidence {
            self.evidence("    ", source, says);
        }
    }

    fn evidence(&mut self, indent: &str, source: &str, says: &str) {
        let lines = wrapped(&format!("{source}: {says}"), self.width - indent.len() - 2);
        for (at, line) in lines.iter().enumerate() {
            let mark = if at == 0 { "- " } else { "  " };
            let _ = writeln!(self.text, "{indent}{DIM}{mark}{line}{DIM:#}");
        }
    }

    /// Text behind a label, continued under itself; with an answer before the label if there is one.
    fn hanging(&mut self, label: &str, text: &str, answer: Option<Answer>) {
        let mut start = String::from("  ");
        let mut indent = 2 + label.len();
        if let Some(answer) = answer {
            let style = colour(answer);
            let short = match answer {
                Answer::Unknown => "?",
                known => word(known),
            };
            let _ = write!(start, "{style}{short:5}{style:#}");
            indent += 5;
        }
        start.push_str(label);
        for (at, line) in wrapped(text, self.width - indent).iter().enumerate() {
            if at == 0 {
                let _ = writeln!(self.text, "{start}{line}");
            } else {
                let _ = writeln!(self.text, "{:indent$}{line}", "");
            }
        }
    }

    fn aside(&mut self, text: &str) {
        for line in wrapped(text, self.width - 2) {
            let _ = writeln!(self.text, "  {DIM}{line}{DIM:#}");
        }
    }
}

/// The text in lines of at most `width` characters, broken between words; a longer word is cut.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let width = width.max(1);
    let mut lines = Vec::new();
    let mut line = String::new();
    let mut length = 0;
    let text: String = text.chars().map(|c| if moves_the_cursor(c) { ' ' } else { c }).collect();
    for word in text.split_ascii_whitespace() {
        let mut word: Vec<char> = word.chars().collect();
        if length > 0 && length + 1 + word.len() > width {
            lines.push(std::mem::take(&mut line));
            length = 0;
        }
        if length > 0 {
            line.push(' ');
            length += 1;
        }
        while word.len() > width {
            let rest = word.split_off(width);
            lines.push(word.into_iter().collect());
            word = rest;
        }
        length += word.len();
        line.extend(word);
    }
    if !line.is_empty() || lines.is_empty() {
        lines.push(line);
    }
    lines
}

/// Nothing that was read from a file may move the cursor or turn the writing around.
fn moves_the_cursor(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_says_what_slat_is() {
        assert!(WHAT_SLAT_IS.len() <= USUAL_WIDTH, "{}", WHAT_SLAT_IS.len());
    }

    #[test]
    fn lines_fit_and_lose_nothing() {
        for width in [1, 5, 20, 80] {
            let text =
                "a text with averyveryverylongword in it and /sys/module/kvm_intel/parameters/ept";
            let lines = wrapped(text, width);
            assert!(lines.iter().all(|line| line.chars().count() <= width), "{width}: {lines:?}");
            let letters = |text: &str| text.replace(' ', "");
            assert_eq!(letters(&lines.concat()), letters(text));
        }
        assert_eq!(wrapped("", 10), [""]);
        assert_eq!(wrapped("bell\u{7}and\u{1b}[31mred", 40), ["bell and [31mred"]);
    }
}
