//! Many mutants in one build: each function that some of them change looks up which of them is asked for.
//!
//! A build takes longer than the tests that tell most mutants. What can be asked while a program runs is asked
//! then: bodies of functions. Constants and what constants call cannot; nor can what does not compile.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use serde::Deserialize;

use super::mutant::{Mutant, Place, Span};

/// The variable of the environment that says which mutant is asked for, by its number; without it, none is.
pub(super) const VARIABLE: &str = "SLAT_MUTANT";

/// The library's main file, which gets the function that looks the number up.
pub(super) const MAIN: &str = "crates/slat/src/lib.rs";
const LOOK_UP: &str = "
/// The number of the mutant that is asked for, 0 for none.
pub(crate) fn mutant() -> u32 {
    extern crate std;
    static ASKED: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    let number = || std::env::var(\"SLAT_MUTANT\").ok()?.parse().ok();
    *ASKED.get_or_init(|| number().unwrap_or(0))
}
";

/// The lines of a file that come from a mutant, or from a function with all of its mutants.
struct Origin {
    lines: Range<usize>,
    mutants: Vec<usize>,
}

/// Has the `sources`, by their names, hold as many of the mutants as can be, and says which, by their places in the
/// list; a mutant's number is one more. `check` puts files where they are compiled, and returns what the
/// compiler says of them, as JSON; the last files are those that it finds no fault with.
///
/// # Errors
/// Where `check` fails, or what it says cannot be due to mutants.
pub(super) fn hold(
    mutants: &[Mutant],
    sources: &BTreeMap<String, String>,
    check: &mut dyn FnMut(&BTreeMap<String, String>) -> anyhow::Result<String>,
) -> anyhow::Result<BTreeSet<usize>> {
    let mut held: BTreeSet<usize> = (0..mutants.len()).collect();
    loop {
        let mut files = BTreeMap::new();
        let mut origins: BTreeMap<&str, Vec<Origin>> = BTreeMap::new();
        for (name, text) in sources {
            let of_file = held.iter().map(|&n| (n, &mutants[n]));
            let of_file: Vec<_> = of_file.filter(|(_, mutant)| mutant.file == *name).collect();
            let (text, of_text) = switched(text, &of_file);
            let end = if name == MAIN { LOOK_UP } else { "" };
            files.insert(name.clone(), text + end);
            origins.insert(name, of_text);
        }
        held = origins.values().flatten().flat_map(|origin| &origin.mutants).copied().collect();
        let wrong = errors(&check(&files)?);
        if wrong.is_empty() {
            return Ok(held);
        }
        let before = held.len();
        for (file, line) in &wrong {
            let of_file = origins.get(file.as_str()).into_iter().flatten();
            // The smallest part of the file: a mutant before its function.
            let parts = of_file.filter(|origin| origin.lines.contains(line));
            if let Some(part) = parts.min_by_key(|origin| origin.lines.len()) {
                held.retain(|n| !part.mutants.contains(n));
            }
        }
        ensure!(held.len() < before, "no mutant is where the compiler finds errors: {wrong:?}");
    }
}

/// A file whose functions hold these mutants, and which lines are whose. It does not hold those outside of
/// functions, those in functions that constants may call, and those in functions within others that hold some.
fn switched(text: &str, mutants: &[(usize, &Mutant)]) -> (String, Vec<Origin>) {
    let mut functions: BTreeMap<(usize, usize), Vec<(usize, &Mutant)>> = BTreeMap::new();
    for &(n, mutant) in mutants {
        if let Some(function) = mutant.function {
            let Span { start, end } = function.span;
            let (start, end) = (offset(text, start), offset(text, end));
            functions.entry((start, end)).or_default().push((n, mutant));
        }
    }
    let (mut out, mut origins, mut done) = (String::new(), Vec::new(), 0);
    for ((start, end), mutants) in functions {
        let Some(body) = body(text, start, end).filter(|_| start >= done) else { continue };
        out.push_str(&text[done..body.start]);
        done = body.end;
        let mut all = Origin { lines: line(&out)..0, mutants: vec![] };
        out.push_str("{ match crate::mutant() {\n");
        for (n, mutant) in mutants {
            let (from, to) = (offset(text, mutant.span.start), offset(text, mutant.span.end));
            if from < body.start || to > body.end {
                continue;
            }
            let first = line(&out);
            let (before, after) = (&text[body.start..from], &text[to..body.end]);
            out.push_str(&format!("{} => {{{before}{}{after}}}\n", n + 1, mutant.replacement));
            origins.push(Origin { lines: first..line(&out), mutants: vec![n] });
            all.mutants.push(n);
        }
        out.push_str(&format!("_ => {}\n}} }}", &text[body]));
        all.lines.end = line(&out) + 1;
        origins.push(all);
    }
    (out + &text[done..], origins)
}

/// The number of a text's last line.
fn line(text: &str) -> usize {
    text.matches('\n').count() + 1
}

/// Where a place of a text is, in bytes.
fn offset(text: &str, place: Place) -> usize {
    let before = text.split_inclusive('\n').take(place.line - 1).map(str::len).sum::<usize>();
    let rest = text[before..].char_indices().nth(place.column - 1);
    rest.map_or(text.len(), |(at, _)| before + at)
}

/// The body of the function between `start` and `end`, with its braces; `None` of one that constants may call.
fn body(text: &str, start: usize, end: usize) -> Option<Range<usize>> {
    let function = text.get(start..end)?;
    let mut code = String::new();
    let mut depth = 0;
    let mut rest = function;
    while let Some(c) = rest.chars().next() {
        let skipped = match c {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/")? + 2,
            '"' => closing_quote(rest)?,
            '{' if depth == 0 => {
                let at = end - rest.len();
                let found = !code.contains("const fn") && function.ends_with('}');
                return found.then_some(at..end);
            }
            '(' | '[' => {
                depth += 1;
                1
            }
            ')' | ']' => {
                depth -= 1;
                1
            }
            _ => c.len_utf8(),
        };
        code.push(c);
        rest = &rest[skipped..];
    }
    None
}

/// Bytes of the string that begins here.
fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    let end = text.char_indices().skip(1).find(|&(_, c)| {
        let closes = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        closes
    });
    end.map(|(at, _)| at + 1)
}

/// Where the compiler found errors: file and line.
fn errors(said: &str) -> Vec<(String, usize)> {
    #[derive(Deserialize)]
    struct Line {
        message: Message,
    }
    #[derive(Deserialize)]
    struct Message {
        level: String,
        spans: Vec<Primary>,
    }
    #[derive(Deserialize)]
    struct Primary {
        file_name: String,
        line_start: usize,
        is_primary: bool,
    }
    let lines = said.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
    let errors = lines.filter(|line| line.message.level == "error");
    let spans = errors.flat_map(|line| line.message.spans).filter(|span| span.is_primary);
    spans.map(|span| (span.file_name.replace('\\', "/"), span.line_start)).collect()
}

/// What the compiler says of the library in this tree.
///
/// # Errors
/// Where it cannot be run.
pub(super) fn check(tree: &Path, target: &Path) -> anyhow::Result<String> {
    let output = Command::new("cargo")
        .args(["check", "--quiet", "--package", "slat", "--message-format", "json"])
        .current_dir(tree)
        .env("CARGO_TARGET_DIR", target)
        .output()
        .context("cannot run cargo")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success() || !errors(&said).is_empty(),
        "cargo check fails: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutants::mutant::Function;

    const TEXT: &str = "/// One { brace.\n\
                        fn f(a: [u8; 2], /* { */ b: u8) -> u8 {\n    a[0] | b\n}\n\
                        const fn g(a: u8) -> u8 {\n    a | 1\n}\n\
                        const H: u8 = 1 | 2;\n";

    /// What makes the `|` of this line something else.
    fn mutant(line: usize, lines: Option<(usize, usize)>, replacement: &str) -> Mutant {
        let text = TEXT.lines().nth(line - 1).unwrap();
        let column = text.find('|').unwrap() + 1;
        let span = Span { start: Place { line, column }, end: Place { line, column: column + 1 } };
        let function = lines.map(|(first, last)| Function {
            span: Span {
                start: Place { line: first, column: 1 },
                end: Place { line: last, column: 2 },
            },
        });
        let (file, replacement) = ("f.rs".to_owned(), replacement.to_owned());
        Mutant {
            name: format!("f.rs:{line}:{column}: {replacement}"),
            file,
            span,
            replacement,
            function,
        }
    }

    fn mutants() -> [Mutant; 4] {
        let f = |replacement| mutant(3, Some((1, 4)), replacement);
        [f("^"), f("no"), mutant(6, Some((5, 7)), "^"), mutant(8, None, "^")]
    }

    /// Functions hold those of their bodies; constants, and functions that are constant, hold none.
    #[test]
    fn bodies_hold_mutants_beside_what_they_were() {
        let mutants = mutants();
        let (text, origins) =
            switched(TEXT, &[(0, &mutants[0]), (2, &mutants[2]), (3, &mutants[3])]);
        let held = "-> u8 { match crate::mutant() {\n\
                    1 => {{\n    a[0] ^ b\n}}\n\
                    _ => {\n    a[0] | b\n}\n} }\nconst fn g";
        assert!(text.contains(held), "{text}");
        assert!(text.ends_with(&TEXT[TEXT.find("const fn").unwrap()..]), "{text}");
        let lines: Vec<_> = origins.into_iter().map(|o| (o.lines, o.mutants)).collect();
        assert_eq!(lines, [(3..6, vec![0]), (2..10, vec![0])]);
    }

    /// What does not compile is left out, and the last files are those that do.
    #[test]
    fn mutants_that_do_not_compile_are_not_held() {
        let sources = BTreeMap::from([("f.rs".to_owned(), TEXT.to_owned())]);
        let mut last = String::new();
        let held = hold(&mutants(), &sources, &mut |files| {
            last = files["f.rs"].clone();
            let message = |(at, _): (usize, &str)| {
                format!(
                    "{{\"reason\":\"compiler-message\",\"message\":{{\"level\":\"error\",\"spans\":[\
                     {{\"file_name\":\"f.rs\",\"line_start\":{},\"is_primary\":true}}]}}}}\n",
                    at + 1
                )
            };
            Ok(last
                .lines()
                .enumerate()
                .filter(|(_, line)| line.contains("no"))
                .map(message)
                .collect())
        });
        assert_eq!(held.unwrap(), BTreeSet::from([0]));
        assert!(last.contains("1 =>") && !last.contains("2 =>"), "{last}");
        // An error elsewhere is not a mutant's.
        let elsewhere = "{\"message\":{\"level\":\"error\",\"spans\":[\
                         {\"file_name\":\"g.rs\",\"line_start\":3,\"is_primary\":true}]}}";
        assert!(hold(&mutants(), &sources, &mut |_| Ok(elsewhere.to_owned())).is_err());
    }
}
