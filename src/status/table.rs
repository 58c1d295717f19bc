//! The report for people: one line for each agent, then what needs attention.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets};

use crate::history::Counts;
use crate::status::report::{Agent, Amount, Report};
use crate::status::state::State;
use crate::text::{bytes, printable, span};

const HEADER: [&str; 9] =
    ["AGENT", "LEVEL", "STATE", "HEALTH", "MEMORY", "CPU TIME", "TASKS", "RESTARTS", "UPTIME"];

/// The whole text; ends with a line break.
#[must_use]
pub fn render(report: &Report) -> String {
    let mut text = String::new();
    if report.agents.is_empty() {
        text.push_str(
            "no agents: flockctl agent add ID, or add [agents.ID] to /etc/flock/flock.toml\n",
        );
    } else {
        let _ = writeln!(text, "{}", table(&report.agents).trim_fmt());
    }
    if let Some(counts) = report.tasks {
        let _ = writeln!(text, "\n{}", work(counts));
    }
    let notes = notes(report);
    if !notes.is_empty() {
        let _ = writeln!(text, "\n{}", notes.join("\n"));
    }
    text
}

fn table(agents: &[Agent]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(HEADER);
    for agent in agents {
        table.add_row(row(agent));
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding(if index == 0 { (0, 1) } else { (1, 1) });
    }
    if let Some(column) = table.column_mut(7) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn row(agent: &Agent) -> [String; 9] {
    [
        agent.agent.to_string(),
        level(agent),
        state(agent),
        agent.health.cell(),
        amount(agent.memory, bytes),
        cpu(agent),
        amount(agent.tasks, |n| n.to_string()),
        agent.restarts.to_string(),
        agent.uptime_seconds.map_or_else(|| "-".to_owned(), span),
    ]
}

/// `1 process isolation`
#[must_use]
pub fn level(agent: &Agent) -> String {
    match (agent.level, agent.boundary) {
        (Some(level), Some(word)) => format!("{level} {word}"),
        _ => "-".to_owned(),
    }
}

/// The state, with the number that belongs to it.
#[must_use]
pub fn state(agent: &Agent) -> String {
    match agent.state {
        // PID 1 counts a restart when it begins; this one is still to come.
        State::Restarting => format!("restarting ({})", agent.restarts + 1),
        State::Finished => "finished (exit 0)".to_owned(),
        state => state.word().to_owned(),
    }
}

/// `12 MiB / 256 MiB`; a dash for what is not known.
#[must_use]
pub fn amount(amount: Amount, show: impl Fn(u64) -> String) -> String {
    match (amount.used, amount.max) {
        (None, None) => "-".to_owned(),
        (used, None) => used.map_or_else(|| "-".to_owned(), show),
        (used, Some(max)) => {
            format!("{} / {}", used.map_or_else(|| "-".to_owned(), &show), show(max))
        }
    }
}

/// CPU time for people: tenths of a second below a minute.
#[must_use]
pub fn cpu(agent: &Agent) -> String {
    match agent.cpu_time_ns {
        None => "-".to_owned(),
        Some(ns) if ns < 60_000_000_000 => {
            format!("{}.{}s", ns / 1_000_000_000, ns / 100_000_000 % 10)
        }
        Some(ns) => span(ns / 1_000_000_000),
    }
}

/// `work: 3 tasks waiting, 1 running, 2 failed in the last 24 h`
#[must_use]
pub fn work(counts: Counts) -> String {
    let Counts { queued, running, failed_last_day } = counts;
    format!(
        "work: {queued} tasks waiting, {running} running, {failed_last_day} failed in the last 24 h \
         (flockctl task list)"
    )
}

/// What does not fit into a cell.
fn notes(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    for agent in &report.agents {
        let id = &agent.agent;
        if let Some(reason) = agent.reason.as_ref().filter(|_| agent.state != State::Finished) {
            lines.push(format!("{id} {}: {}", agent.state.word(), printable(reason)));
        }
    }
    for agent in &report.agents {
        let id = &agent.agent;
        for line in agent.warnings.iter().chain(&agent.loosened) {
            lines.push(format!("warning: {id}: {}", printable(line)));
        }
    }
    lines.extend(report.warnings.iter().map(|line| format!("warning: {}", printable(line))));
    lines
}
