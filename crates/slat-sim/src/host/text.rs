//! What came of a scenario, for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::played::{Event, Followed, HostReport, Moved, Outcome, PartitionReport, Played};
use super::{Shown, size};

/// The narrowest text whose columns have room for words, and the widest that reads well.
const WIDTH: (usize, usize) = (60, 96);
/// The SPA map shows so many parts of a host at most, and so many partitions.
const MOST_EXTENTS: usize = 32;

impl Played {
    /// The whole result as text, in lines of at most `width` columns or 96, whichever is less (60 if `width` is
    /// less still).
    pub fn text(&self, width: usize) -> String {
        let width = width.clamp(WIDTH.0, WIDTH.1);
        let mut text = String::new();
        let mut line = |line: String| {
            let _ = writeln!(text, "{}", line.trim_end());
        };
        for part in wrap(&format!("{}:", self.scenario), &self.about, 2, width) {
            line(part);
        }
        line(String::new());
        for host in &self.hosts {
            for part in host_lines(host, width) {
                line(part);
            }
        }
        line(String::new());
        let mut before = 0;
        for event in &self.events {
            let number = if event.step == before { String::new() } else { event.step.to_string() };
            before = event.step;
            for part in event_lines(&number, event, width) {
                line(part);
            }
        }
        for host in self.hosts.iter().filter(|host| host.refused.is_none()) {
            line(String::new());
            for part in map_lines(host, width) {
                line(part);
            }
        }
        let failed = self.events.iter().filter(|event| event.outcome == Outcome::Failed).count();
        if failed > 0 {
            line(String::new());
            line(format!("{failed} of {} events are not as the scenario says.", self.events.len()));
        }
        text
    }
}

/// Words in lines of at most `width`, the later ones indented.
fn wrap(first: &str, words: &str, indent: usize, width: usize) -> Vec<String> {
    let mut lines = vec![first.to_owned()];
    for word in words.split_whitespace() {
        let Some(last) = lines.last_mut() else { break };
        if last.trim_end().len() + 1 + word.len() > width && last.trim_end().len() > indent {
            lines.push(format!("{}{word}", " ".repeat(indent)));
        } else {
            let pad = last.is_empty() || last.ends_with(' ');
            let _ = write!(last, "{}{word}", if pad { "" } else { " " });
        }
    }
    lines
}

fn host_lines(host: &HostReport, width: usize) -> Vec<String> {
    let name = format!("host {:<10} ", host.name);
    match (&host.means, &host.refused) {
        (Some(means), _) => {
            let memory: u64 = host.spa.iter().filter(|e| e.owner != "hole").map(|e| e.bytes).sum();
            let nodes = host.spa.iter().filter_map(|extent| extent.node).max().unwrap_or(0) + 1;
            let nodes = if nodes > 1 { format!(" in {nodes} nodes") } else { String::new() };
            let how = match means.as_str() {
                "ept" => "EPT",
                "npt" => "NPT (RVI)",
                "stage-2" => "Stage-2",
                _ => "shadow tables",
            };
            let what = format!("{} on {}", host.hypervisor, host.processor);
            wrap(&name, &format!("{what}: {how}, {}{nodes}", size(memory)), 16, width)
        }
        (None, why) => {
            wrap(&name, &format!("REFUSED: {}", why.as_deref().unwrap_or_default()), 16, width)
        }
    }
}

fn event_lines(number: &str, event: &Event, width: usize) -> Vec<String> {
    let what = match &event.partition {
        Some(partition) => format!("{} {partition}", event.action),
        None => event.action.clone(),
    };
    let mark = match event.outcome {
        Outcome::Done => "",
        Outcome::Refused => "refused: ",
        Outcome::Failed => "FAILED: ",
    };
    let first = format!("{number:>3}  {:<10} {what:<18} ", event.host);
    let mut lines = wrap(&first, &format!("{mark}{}", event.text), 35, width);
    if let Some(moved) = &event.moved {
        lines.extend(moved_lines(moved, width));
    }
    if let Some(shown) = &event.unpaged {
        lines.extend(unpaged_lines(shown, width));
    }
    lines
}

fn moved_lines(moved: &Moved, width: usize) -> Vec<String> {
    let below = " ".repeat(35);
    let mut lines = Vec::new();
    if let Some(Followed { gva, gpa, spa }) = &moved.followed {
        let when = if moved.rounds.is_empty() { "on arrival" } else { "at the pause" };
        let text = format!("{when} GVA {gva} -> GPA {gpa} -> SPA {spa}");
        lines.extend(wrap(&below, &text, 35, width));
    }
    if moved.rounds.is_empty() {
        return lines;
    }
    let header = format!("{:>40}{:>8}{:>10}{:>14}", "round", "pages", "of zeros", "guest steps");
    lines.push(header);
    let last = moved.rounds.len();
    for (number, round) in moved.rounds.iter().enumerate() {
        let name = if number + 1 == last { "paused".to_owned() } else { (number + 1).to_string() };
        lines.push(format!(
            "{name:>40}{:>8}{:>10}{:>14}",
            round.pages, round.zero_pages, round.guest_steps
        ));
    }
    if let Some(logged) = &moved.logged_by {
        let text = format!("writes logged by {}", logged.replace('-', " "));
        lines.extend(wrap(&below, &text, 35, width));
    }
    if let Some(exits) = &moved.exits {
        lines.extend(wrap(&below, &format!("exits here: {}", exits_text(exits)), 35, width));
    }
    lines
}

fn unpaged_lines(shown: &Shown, width: usize) -> Vec<String> {
    let mut lines = vec![format!("{:>6}{:<14}{:<16}{}", "", "mode", "run", "instructions")];
    for stretch in &shown.stretches {
        let why = stretch.why.as_ref().map(|why| format!("({why})")).unwrap_or_default();
        let first = format!(
            "{:>6}{:<14}{:<16}{:>4}  ",
            "", stretch.mode, stretch.how, stretch.instructions
        );
        lines.extend(wrap(&first, &why, 42, width));
    }
    lines
}

fn map_lines(host: &HostReport, width: usize) -> Vec<String> {
    let mut lines = vec![format!("System physical memory of host {}, by owner", host.name)];
    let parse = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap_or(0);
    for extent in host.spa.iter().take(MOST_EXTENTS) {
        let start = parse(&extent.start);
        let last = start + extent.bytes - 1;
        let node = extent.node.map(|node| format!("node {node}")).unwrap_or_default();
        lines.push(format!(
            "  {start:#012x} - {last:#012x}  {:>9}  {node:<7}  {}",
            size(extent.bytes),
            extent.owner
        ));
    }
    if let Some(more) = host.spa.len().checked_sub(MOST_EXTENTS).filter(|more| *more > 0) {
        lines.push(format!("  and {more} more; --json has all"));
    }
    lines.push(format!(
        "  tables: {} of {} used",
        size(host.table_bytes_used),
        size(host.table_bytes)
    ));
    if host.parent.paged_out > 0 {
        let parent = &host.parent;
        let text = format!(
            "{} of its {} pages in memory; {} written to its file so far, {} read back",
            parent.resident, parent.pages, parent.paged_out, parent.paged_in
        );
        lines.extend(wrap("  parent:", &text, 10, width));
    }
    for partition in host.partitions.iter().take(MOST_EXTENTS) {
        lines.extend(partition_lines(partition, width));
    }
    if let Some(more) = host.partitions.len().checked_sub(MOST_EXTENTS).filter(|more| *more > 0) {
        lines.push(format!("  and {more} more; --json has all"));
    }
    lines
}

fn exits_text(exits: &BTreeMap<String, u64>) -> String {
    let exits: Vec<String> =
        exits.iter().map(|(cause, count)| format!("{count} {cause}")).collect();
    if exits.is_empty() { "none".to_owned() } else { exits.join(", ") }
}

fn partition_lines(partition: &PartitionReport, width: usize) -> Vec<String> {
    let exits = exits_text(&partition.exits);
    let shadow = match partition.shadow_tables {
        Some(tables) => format!(", {tables} shadow tables"),
        None => String::new(),
    };
    wrap(
        &format!("  {:<10} ", partition.name),
        &format!(
            "{}; {}{shadow}; {} guest steps; exits: {exits}",
            partition.pages_text(),
            partition.translation,
            partition.guest_steps
        ),
        13,
        width,
    )
}
