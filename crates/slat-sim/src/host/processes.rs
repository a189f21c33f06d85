//! A process for each host of a scenario whose partitions move.

use std::io;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use super::play::PlayError;
use super::played::{Event, Outcome, Played};
use super::scenario::Scenario;

/// What a host's process prints before its report.
pub const REPORT: &str = "report ";

/// Plays a scenario by one process a host: `command` makes the program that plays one host's part
/// in the directory which all share, and prints [`REPORT`] and its result as JSON in a line.
///
/// # Errors
/// Where a process does not start, or ends without a result.
pub fn play_by_processes(
    scenario: &Scenario,
    directory: &Path,
    command: &dyn Fn(&str, &Path) -> Command,
) -> Result<Played, PlayError> {
    let mut children = Children(Vec::new());
    for host in &scenario.hosts {
        let failed = PlayError::io(format!("the process of host {}", host.name));
        let child = command(&host.name, directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        children.0.push((host.name.clone(), child));
    }
    let mut whole = Played {
        scenario: scenario.name.clone(),
        about: scenario.about.clone(),
        events: Vec::new(),
        hosts: Vec::new(),
    };
    // One after the other out of the guard: where one ends without a report, the others end with it.
    children.0.reverse();
    while let Some((host, child)) = children.0.pop() {
        let failed = PlayError::io(format!("the process of host {host}"));
        let output = child.wait_with_output().map_err(failed)?;
        let part = part(&output).ok_or_else(|| PlayError::NoReport {
            host: host.clone(),
            status: output.status.to_string(),
        })?;
        whole.events.extend(part.events);
        whole.hosts.extend(part.hosts);
    }
    // Each process tells its own part in order; a step comes from its host first.
    whole.events.sort_by_key(|event| event.step);
    for (index, step) in scenario.steps.iter().enumerate() {
        if !whole.events.iter().any(|event| event.step == index + 1) {
            let partition = step.what.partition().map(str::to_owned);
            whole.events.push(Event {
                step: index + 1,
                line: step.line,
                action: step.what.name().to_owned(),
                text: "no host has this partition".to_owned(),
                partition,
                outcome: if step.refused { Outcome::Refused } else { Outcome::Failed },
                ..Event::default()
            });
        }
    }
    whole.events.sort_by_key(|event| event.step);
    // The source of a migration before its destination.
    for (index, step) in scenario.steps.iter().enumerate() {
        if let Some(from) = &step.host {
            let of_step = whole.events.iter_mut().filter(|event| event.step == index + 1);
            let mut of_step: Vec<&mut Event> = of_step.collect();
            if let [first, second] = of_step.as_mut_slice()
                && second.host == *from
            {
                std::mem::swap(*first, *second);
            }
        }
    }
    Ok(whole)
}

fn part(output: &Output) -> Option<Played> {
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.strip_prefix(REPORT))?;
    serde_json::from_str(line).ok()
}

/// Processes that end with the play, however it ends.
struct Children(Vec<(String, Child)>);

impl Drop for Children {
    fn drop(&mut self) {
        for (_, child) in &mut self.0 {
            let ended: io::Result<()> = child.kill();
            if ended.is_ok() {
                let _ = child.wait();
            }
        }
    }
}
