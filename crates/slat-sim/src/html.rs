//! A comparison as one page for a browser: no network, readable in light and dark, at any width.
//!
//! Plots are boxes that CSS sizes, so that they scale with the window and need no script.

use std::fmt::Write as _;

use crate::compare::{Outcome, Shares};
use crate::machine::{Cause, GRID};
use crate::report::{FIXED, Report, exit_words, page_name};

/// Where cycles go: class of the colour, and words.
const PARTS: &[(&str, &str)] = &[
    ("p0", "instructions at base CPI"),
    ("p4", "waiting for data"),
    ("p5", "waiting for devices"),
    ("p1", "second-level TLB hits"),
    ("p2", "walks: the guest's entries"),
    ("p3", "walks: nested or shadow entries"),
    ("p6", "process switches"),
];

/// How much of the heat's colour lies under the hottest cell: what its number can still be read on.
const HOTTEST: f64 = 0.55;

const STYLE: &str = "
:root{color-scheme:light dark;--ink:#1c2024;--dim:#5b6470;--paper:#fff;--line:#d8dde3;--heat:20,92,170;
--p0:#b8c0c9;--p1:#e0a800;--p2:#2a7de1;--p3:#0b3d7a;--e0:#7b4fc4;--e1:#c62f2f;--e2:#e8762c;--e3:#b0832a;
--e4:#8f2060;--e5:#d9609a;--e6:#5f8f2f;--e7:#2b8a8a;--e8:#6e5a4a;--e9:#3f3f9f;--p4:#8f99a5;--p5:#d5dae0;--p6:#9c8fb0}
@media (prefers-color-scheme:dark){:root{--ink:#e6e9ed;--dim:#9aa4b0;--paper:#14171a;--line:#343b43;
--heat:90,165,255;--p0:#59626c;--p1:#e7b92f;--p2:#4d9bff;--p3:#9cc8ff;--e0:#a988ea;--e1:#f06a6a;
--e2:#f39a5c;--e3:#d8b25e;--e4:#d977ab;--e5:#f5a3c8;--e6:#9acb66;--e7:#5fc4c4;--e8:#b39d88;--e9:#8f8ff0;--p4:#7d8894;--p5:#3a4148;--p6:#7a6f8f}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:70rem;padding:1rem;background:var(--paper);color:var(--ink);
font:16px/1.45 system-ui,sans-serif}
h1{font-size:1.35rem;margin:.2rem 0}h2{font-size:1.1rem;margin:2rem 0 .5rem}
p{margin:.4rem 0}.dim,figcaption{color:var(--dim);font-size:.9rem}.lead{font-size:1.1rem}
figure{margin:0}.wide{overflow-x:auto}
.wide :is(th,td):first-child{position:sticky;left:0;background:var(--paper)}
table{border-collapse:separate;border-spacing:0;font-variant-numeric:tabular-nums;font-size:.9rem}
th,td{padding:.25rem .6rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th{font-weight:600;color:var(--dim)}th:first-child,td:first-child{text-align:left}
.row{display:grid;grid-template-columns:17rem 1fr;gap:.15rem .6rem;align-items:center;margin:.3rem 0}
.row>.name{font-size:.9rem}.bar{display:flex;align-items:center;gap:.4rem;min-width:0}
.stack{display:flex;height:1.2rem;min-width:1px}.stack i{display:block;height:100%}
.num{font-size:.85rem;color:var(--dim);white-space:nowrap}
.key{display:flex;flex-wrap:wrap;gap:.2rem 1rem;font-size:.85rem;margin:.4rem 0}
.key i{display:inline-block;width:.8rem;height:.8rem;margin-right:.35rem;vertical-align:-.05rem}
.p0{background:var(--p0)}.p1{background:var(--p1)}.p2{background:var(--p2)}.p3{background:var(--p3)}
.e0{background:var(--e0)}.e1{background:var(--e1)}.e2{background:var(--e2)}.e3{background:var(--e3)}
.e7{background:var(--e7)}.e8{background:var(--e8)}.e9{background:var(--e9)}.p4{background:var(--p4)}.p5{background:var(--p5)}.p6{background:var(--p6)}
.e4{background:var(--e4)}.e5{background:var(--e5)}.e6{background:var(--e6)}
.range{position:relative;flex:1;height:1.2rem;border-left:1px solid var(--line)}
.range i{position:absolute;top:.45rem;height:.3rem;background:var(--p2);opacity:.5}
.range b{position:absolute;top:.1rem;width:.25rem;height:1rem;background:var(--p2)}
.time{display:flex;flex:1;align-items:flex-end;height:2.2rem;border-bottom:1px solid var(--line);min-width:0}
.time i{display:block;flex:1 1 0;background:var(--p2)}
.time+.num{min-width:3.2rem;text-align:right}
.grids{display:grid;grid-template-columns:repeat(auto-fill,minmax(21rem,1fr));gap:1.2rem}
.grids td,.grids th{padding:.2rem .35rem;text-align:center;min-width:2.6rem;font-size:.8rem}
@media (max-width:37rem){body{padding:.7rem;font-size:15px}.row{grid-template-columns:1fr}
.grids{grid-template-columns:1fr}.key{gap:.2rem .7rem}
.wide table{font-size:.7rem}.wide :is(th,td){padding:.2rem .17rem}.wide th,.wide .wraps{white-space:normal}}
";

/// The whole page.
pub fn page(report: &Report) -> String {
    let mut out =
        String::from("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    out.push_str("<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n");
    let title = escaped(&report.title());
    let _ = write!(out, "<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n");
    let _ = writeln!(out, "<h1>{title}</h1>");
    let _ = writeln!(out, "<p class=\"lead\">{}</p>", escaped(&report.sentence()));
    if let Some(why) = report.why() {
        let _ = writeln!(out, "<p>Why: {}</p>", escaped(&why));
    }
    for advice in report.advice().iter().take(3) {
        let _ = writeln!(
            out,
            "<p>Try: {}, predicted {:.2} for {:.2}{}.</p>",
            escaped(&advice.text),
            advice.predicted,
            advice.from,
            advice.unit.words()
        );
    }
    for note in &report.notes {
        let _ = writeln!(out, "<p class=\"dim\">Note: {}</p>", escaped(note));
    }
    for refused in report.refused() {
        let _ = writeln!(out, "<p>{}</p>", escaped(&refused));
    }
    table(&mut out, report);
    counts(&mut out, report);
    stacked(&mut out, report, true);
    stacked(&mut out, report, false);
    page_sizes(&mut out, report);
    over_time(&mut out, report);
    grids(&mut out, report);
    let _ = write!(out, "<p class=\"dim\">{FIXED} ");
    out.push_str(
        "Ranges follow from how well each parameter of the processor is known: measured \
         1.1, documented 1.2, assumed 1.5 times either way.</p>\n</body>\n</html>\n",
    );
    out
}

fn name(outcome: &Outcome) -> String {
    let mark = if outcome.transcribed { " (transcribed)" } else { "" };
    match outcome.host_shift {
        Some(shift) => {
            format!("{}{mark}, {} host pages", outcome.scheme.name(), page_name(shift))
        }
        None => outcome.scheme.name().to_owned(),
    }
}

fn table(out: &mut String, report: &Report) {
    let timed = report.timed();
    let _ = write!(
        out,
        "<h2>Schemes</h2>\n<div class=\"wide\"><table>\n<tr><th>scheme</th><th>host page</th>\
         <th>{}</th><th>range</th><th>TLB miss %</th><th>refs/&#8203;walk</th>\
         <th title=\"a million accesses\">exits/&#8203;M acc</th><th>tables KiB</th></tr>\n",
        if timed { "time vs native" } else { "cycles/&#8203;access" }
    );
    for outcome in report.schemes() {
        let counts = outcome.counts();
        let shown = if timed { outcome.time } else { Some(outcome.per_access) };
        let (value, range) = shown.map_or(("-".to_owned(), String::new()), |time| {
            (format!("{:.3}", time.value), format!("{:.3} to&nbsp;{:.3}", time.low, time.high))
        });
        let _ = writeln!(
            out,
            "<tr><td>{}{}</td><td>{}</td><td>{value}</td><td class=\"wraps\">{range}</td><td>{:.3}</td>\
             <td>{:.2}</td><td>{:.0}</td><td>{}</td></tr>",
            outcome.scheme.name(),
            report.mark(outcome),
            outcome.host_shift.map_or("-", page_name),
            100.0 * counts.walks as f64 / counts.lookups.max(1) as f64,
            outcome.references_per_walk(),
            outcome.exits() as f64 * 1e6 / counts.accesses.max(1) as f64,
            (outcome.guest_table_bytes + outcome.host_table_bytes) / 1024,
        );
    }
    out.push_str("</table></div>\n");
    for mark in report.marks() {
        let _ = writeln!(out, "<p class=\"dim\">{mark}.</p>");
    }
}

/// The counts behind the first table: second-level hits, walks, exits by cause, the memory of tables.
fn counts(out: &mut String, report: &Report) {
    let used: Vec<Cause> = Cause::ALL
        .into_iter()
        .filter(|&cause| report.schemes().any(|o| o.counts().exits[cause as usize] > 0))
        .collect();
    out.push_str(
        "<h2>Counts</h2>\n<div class=\"wide\"><table>\n<tr><th>scheme</th><th>host page</th>\
         <th>second-&#8203;level hits</th><th>walks</th><th>splintered</th><th>guest's tables KiB</th>\
         <th>hypervisor's KiB</th>",
    );
    for cause in &used {
        let _ = write!(out, "<th>{}</th>", cause.name().replace('-', "-&#8203;"));
    }
    out.push_str("</tr>\n");
    for outcome in report.schemes() {
        let counts = outcome.counts();
        let _ = write!(
            out,
            "<tr><td>{}{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>",
            outcome.scheme.name(),
            report.mark(outcome),
            outcome.host_shift.map_or("-", page_name),
            counts.second_hits,
            counts.walks,
            counts.splintered,
            outcome.guest_table_bytes / 1024,
            outcome.host_table_bytes / 1024
        );
        for &cause in &used {
            let _ = write!(out, "<td>{}</td>", counts.exits[cause as usize]);
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table></div>\n");
    if !used.is_empty() {
        out.push_str("<p class=\"dim\">The columns behind the memory are exits by cause: ");
        let words: Vec<String> = used
            .iter()
            .map(|cause| format!("{}: {}", cause.name(), exit_words(cause.name())))
            .collect();
        let _ = writeln!(out, "{}.</p>", words.join("; "));
    }
}

/// Cycles of each part, in the order of the legend: [`PARTS`], then exits.
fn parts(cycles: &Shares) -> Vec<(String, &'static str, f64)> {
    let fixed = [
        &cycles.instructions,
        &cycles.data,
        &cycles.waiting,
        &cycles.second_tlb,
        &cycles.guest_walk,
        &cycles.host_walk,
        &cycles.process_switches,
    ];
    let mut all: Vec<_> = PARTS
        .iter()
        .zip(fixed)
        .map(|((class, words), estimate)| ((*class).to_owned(), *words, estimate.value))
        .collect();
    for (nth, (name, estimate)) in cycles.exits.iter().enumerate() {
        all.push((format!("e{nth}"), exit_words(name), estimate.value));
    }
    all
}

/// Cycles of the `whole` on one scale, or each row's shares of what is translation and exits, which
/// would be too small there.
fn stacked(out: &mut String, report: &Report, whole: bool) {
    // What is not translation comes first.
    let from = if whole { 0 } else { 3 };
    let all: Vec<_> = report.schemes().map(|o| (name(o), parts(&o.shares))).collect();
    let total =
        |parts: &[(String, &str, f64)]| parts[from..].iter().map(|part| part.2).sum::<f64>();
    let largest = all.iter().map(|(_, parts)| total(parts)).fold(0.0, f64::max);
    if largest <= 0.0 || whole && all.iter().all(|(_, parts)| parts[0].2 <= 0.0) {
        return;
    }
    let heading =
        if whole { "Cycles by cause" } else { "Cycles of translation and exits, by share" };
    let _ = write!(out, "<h2>{heading}</h2>\n<figure>\n<div class=\"key\">");
    for (nth, (class, words, _)) in all[0].1.iter().enumerate().skip(from) {
        if all.iter().any(|(_, parts)| parts[nth].2 > 0.0) {
            let _ = write!(out, "<span><i class=\"{class}\"></i>{words}</span>");
        }
    }
    out.push_str("</div>\n");
    for (name, parts) in &all {
        let own = total(parts);
        let _ =
            write!(out, "<div class=\"row\"><div class=\"name\">{name}</div><div class=\"bar\">");
        // The longest bar leaves room for its number.
        let width = 80.0 * if whole { own / largest } else { f64::from(u8::from(own > 0.0)) };
        let _ = write!(out, "<div class=\"stack\" style=\"width:{width:.3}%\">");
        for (class, words, cycles) in &parts[from..] {
            if *cycles > 0.0 {
                let share = 100.0 * cycles / own;
                let _ = write!(
                    out,
                    "<i class=\"{class}\" style=\"width:{share:.3}%\" title=\"{words}: {:.3} M, {share:.1} %\"></i>",
                    cycles / 1e6
                );
            }
        }
        let _ = writeln!(out, "</div><span class=\"num\">{} M</span></div></div>", millions(own));
    }
    out.push_str(if whole {
        "<figcaption>Millions of cycles; a part says its share when pointed at.</figcaption></figure>\n"
    } else {
        "<figcaption>Each bar is a whole, of as many millions of cycles as its number says; a part says its \
         own when pointed at.</figcaption></figure>\n"
    });
}

fn page_sizes(out: &mut String, report: &Report) {
    let timed: Vec<_> = report.schemes().filter_map(|o| o.time.map(|time| (o, time))).collect();
    let largest = timed.iter().map(|(_, time)| time.high).fold(0.0, f64::max);
    if largest <= 0.0 {
        return;
    }
    // What is left of native's mark would be empty: the axis begins there.
    let least = timed.iter().map(|(_, time)| time.low).fold(1.0, f64::min);
    let span = (largest - least).max(f64::MIN_POSITIVE);
    out.push_str("<h2>Run time relative to native, by host page size</h2>\n<figure>\n");
    for (outcome, time) in timed {
        let at = |value: f64| 97.0 * (value - least) / span;
        let _ = writeln!(
            out,
            "<div class=\"row\"><div class=\"name\">{}</div><div class=\"bar\"><div class=\"range\">\
             <i style=\"left:{:.3}%;width:{:.3}%\"></i><b style=\"left:{:.3}%\"></b></div>\
             <span class=\"num\">{:.3}</span></div></div>",
            name(outcome),
            at(time.low),
            at(time.high) - at(time.low),
            at(time.value),
            time.value
        );
    }
    let _ = writeln!(
        out,
        "<figcaption>The mark is the value, the band its range; the axis goes from {least:.2} to \
         {largest:.2} times native's time.</figcaption></figure>"
    );
}

/// TLB misses a thousand accesses over the recording, a row a scheme: columns that CSS sizes.
fn over_time(out: &mut String, report: &Report) {
    let all: Vec<(String, Vec<(u64, f64)>)> = report
        .outcomes
        .iter()
        .enumerate()
        .filter(|(_, outcome)| outcome.what_if.is_none())
        .map(|(nth, outcome)| (name(outcome), report.timeline.rates(nth)))
        .filter(|(_, rates)| rates.len() > 1)
        .collect();
    let largest =
        all.iter().flat_map(|(_, rates)| rates).map(|(_, rate)| *rate).fold(0.0, f64::max);
    if largest <= 0.0 {
        return;
    }
    out.push_str("<h2>TLB misses over time</h2>\n<figure>\n");
    for (name, rates) in &all {
        let peak = rates.iter().map(|(_, rate)| *rate).fold(0.0, f64::max);
        let _ = write!(
            out,
            "<div class=\"row\"><div class=\"name\">{name}</div><div class=\"bar\"><div class=\"time\">"
        );
        // What was run before counting began has no column.
        let mut from = report.timeline.from();
        for (until, rate) in rates {
            let _ = write!(
                out,
                "<i style=\"flex-grow:{};height:{:.2}%\" title=\"up to {:.1} M accesses: {rate:.3}\"></i>",
                until - from,
                // One burst must not flatten all else.
                100.0 * (rate / largest).sqrt(),
                *until as f64 / 1e6
            );
            from = *until;
        }
        let _ = writeln!(out, "</div><span class=\"num\">{peak:.2}</span></div></div>");
    }
    out.push_str(
        "<figcaption>Misses a thousand accesses, from the beginning on the left to the end; on the right \
         the highest. Heights grow with the square root, on one scale for all rows.</figcaption></figure>\n",
    );
}

fn grids(out: &mut String, report: &Report) {
    out.push_str(
        "<h2>Table entries read, per 1000 walks</h2>\n<p class=\"dim\">A row is what was translated: \
         the guest's table of that level, or the final guest-physical address (gPA). A column is \
         the level of the nested table read for it; G is the \
         guest's own entry, under shadow paging the shadow's.</p>\n\
         <div class=\"grids\">\n",
    );
    for outcome in report.schemes() {
        let grid = &outcome.counts().grid;
        let walks = outcome.counts().walks.max(1) as f64;
        let largest = grid.iter().flatten().copied().max().unwrap_or(0).max(1) as f64;
        let used = |column: usize| grid.iter().any(|row| row[column] > 0);
        let columns: Vec<usize> = [4, 3, 2, 1, 0, 5].into_iter().filter(|&c| used(c)).collect();
        let _ =
            write!(out, "<figure><figcaption>{}</figcaption><table>\n<tr><th></th>", name(outcome));
        for &column in &columns {
            if column == GRID - 1 {
                out.push_str("<th>G</th>");
            } else {
                let _ = write!(out, "<th>nL{}</th>", column + 1);
            }
        }
        out.push_str("</tr>\n");
        for row in (0..GRID - 1).rev().chain([GRID - 1]) {
            if grid[row].iter().all(|&cell| cell == 0) {
                continue;
            }
            let label = if row == GRID - 1 { "gPA".to_owned() } else { format!("gL{}", row + 1) };
            let _ = write!(out, "<tr><th>{label}</th>");
            for &column in &columns {
                let cell = grid[row][column] as f64;
                let heat = HOTTEST * (cell / largest).sqrt();
                let each = 1000.0 * cell / walks;
                let digits = if each >= 10.0 || cell == 0.0 { 0 } else { 1 };
                let _ = write!(
                    out,
                    "<td style=\"background:rgba(var(--heat),{heat:.2})\">{each:.digits$}</td>"
                );
            }
            out.push_str("</tr>\n");
        }
        out.push_str("</table></figure>\n");
    }
    out.push_str("</div>\n");
}

fn millions(cycles: f64) -> String {
    let value = cycles / 1e6;
    if value >= 100.0 {
        format!("{value:.0}")
    } else if value >= 1.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.3}")
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Relative luminance (WCAG 2.1).
    fn luminance(colour: [f64; 3]) -> f64 {
        let [red, green, blue] = colour.map(|part| {
            let part = part / 255.0;
            if part <= 0.04045 { part / 12.92 } else { ((part + 0.055) / 1.055).powf(2.4) }
        });
        0.2126 * red + 0.7152 * green + 0.0722 * blue
    }

    fn hex(text: &str) -> [f64; 3] {
        let digits = if text.len() == 3 {
            text.chars().flat_map(|digit| [digit, digit]).collect::<String>()
        } else {
            text.to_owned()
        };
        std::array::from_fn(|nth| {
            f64::from(u8::from_str_radix(&digits[2 * nth..2 * nth + 2], 16).unwrap())
        })
    }

    #[test]
    fn the_hottest_cell_can_be_read_in_light_and_dark() {
        for part in STYLE.split("--ink:#").skip(1) {
            let value = |name: &str| {
                let at = part.find(name).unwrap() + name.len();
                part[at..].split([';', '}']).next().unwrap()
            };
            let ink = hex(part.split(';').next().unwrap());
            let paper = hex(value("--paper:#"));
            let mut heat = value("--heat:").split(',').map(|part| part.parse::<f64>().unwrap());
            let cell = std::array::from_fn(|nth| {
                HOTTEST * heat.next().unwrap() + (1.0 - HOTTEST) * paper[nth]
            });
            let mut both = [luminance(ink), luminance(cell)];
            both.sort_by(f64::total_cmp);
            let contrast = (both[1] + 0.05) / (both[0] + 0.05);
            // AA for text of this size.
            assert!(contrast >= 4.5, "{contrast}");
        }
        assert_eq!(STYLE.matches("--ink:#").count(), 2);
    }
}
