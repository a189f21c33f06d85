//! A disagreement for people.

use std::fmt::Write as _;
use std::path::Path;

use crate::engine::Disagreement;

/// What both sides say of a probe, its tables and state, and the `slat walk` lines that show the walker's
/// side; the image that these need is written into `folder` under `name`.
///
/// # Errors
/// Where the image cannot be written.
pub fn report(
    count: u64,
    disagreement: &Disagreement,
    folder: &Path,
    name: &str,
) -> anyhow::Result<String> {
    let Disagreement { variant, case, seen, explanation, reproducer } = disagreement;
    let mut text = format!("\n{count} like this on {variant}\n  {explanation}\n");
    // Writing into a String cannot fail.
    let _ = writeln!(text, "  walker  {:x?}", case.expected);
    let _ = writeln!(text, "  machine {:x?}", seen.outcome);
    for (i, (address, before, after)) in case.compared.iter().enumerate() {
        let made = if case.probe.words.iter().any(|(at, _)| at == address) { "*" } else { " " };
        let got = seen.words.get(i).copied().unwrap_or(0);
        let differs = if got == *after { "" } else { "  <-- differs" };
        let _ = writeln!(
            text,
            "  {made} {address:#010x}: {before:#018x}  walker {after:#018x}  machine {got:#018x}{differs}"
        );
    }
    for line in reproducer.write(folder, name)? {
        let _ = writeln!(text, "  {line}");
    }
    Ok(text)
}
