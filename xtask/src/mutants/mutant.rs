//! A mutant as cargo-mutants lists it: one place of one file, and what stands there instead.

use serde::Deserialize;

/// A place in a file; lines and columns count from 1, columns in characters.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, PartialOrd)]
pub(super) struct Place {
    pub(super) line: usize,
    pub(super) column: usize,
}

/// What of a file a mutant replaces.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Span {
    pub(super) start: Place,
    pub(super) end: Place,
}

/// One small change of the code.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Mutant {
    /// Below the top of the repository, with slashes.
    pub(super) file: String,
    /// With file, line and column in front.
    pub(super) name: String,
    pub(super) span: Span,
    pub(super) replacement: String,
    /// The function that it is in.
    pub(super) function: Option<Function>,
}

/// A function, from its attributes to the end of its body.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Function {
    pub(super) span: Span,
}

impl Mutant {
    /// What it does, wherever it is.
    pub(super) fn change(&self) -> &str {
        // "file:line:column: what"
        self.name.splitn(4, ':').nth(3).unwrap_or(&self.name).trim_start()
    }

    /// The file with the change made.
    pub(super) fn of(&self, text: &str) -> String {
        let Span { start, end } = self.span;
        let (mut before, mut after) = (String::new(), String::new());
        let mut at = Place { line: 1, column: 1 };
        for c in text.chars() {
            if at < start {
                before.push(c);
            } else if at >= end {
                after.push(c);
            }
            at = match c {
                '\n' => Place { line: at.line + 1, column: 1 },
                _ => Place { line: at.line, column: at.column + 1 },
            };
        }
        before + &self.replacement + &after
    }

    /// The line that it makes of one of the file's, without its indentation; `None` of more than one.
    pub(super) fn makes(&self, text: &str) -> Option<String> {
        let Span { start, end } = self.span;
        let made = self.of(text);
        let line = made.lines().nth(start.line.checked_sub(1)?)?;
        (start.line == end.line).then(|| line.trim().to_owned())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) const TEXT: &str = "fn f(a: u8, b: u8) -> u8 {\n    (a | b) | a | 1\n}\n";

    /// One that makes `|` of the second line `^`.
    pub(crate) fn mutant(column: usize) -> Mutant {
        Mutant {
            file: "f.rs".into(),
            name: format!("f.rs:2:{column}: replace | with ^ in f"),
            span: Span {
                start: Place { line: 2, column },
                end: Place { line: 2, column: column + 1 },
            },
            replacement: "^".into(),
            function: None,
        }
    }

    #[test]
    fn changes_are_made_where_they_are_said_to_be() {
        let one = mutant(13);
        assert_eq!(one.change(), "replace | with ^ in f");
        assert_eq!(one.of(TEXT), TEXT.replace(") |", ") ^"));
        assert_eq!(one.makes(TEXT).as_deref(), Some("(a | b) ^ a | 1"));
        // A body of several lines.
        let end = Place { line: 3, column: 1 };
        let span = Span { start: Place { line: 1, column: 27 }, end };
        let body = Mutant { span, replacement: "0".into(), ..one };
        assert_eq!(body.of(TEXT), "fn f(a: u8, b: u8) -> u8 {0}\n");
        assert_eq!(body.makes(TEXT), None);
    }
}
