//! The report on one agent: everything, one fact a line.

use std::fmt::Write as _;

use crate::status::report::{Agent, Report};
use crate::status::table::{amount, cpu, level, state};
use crate::text::{bytes, printable, span};

/// The block of one agent; ends with a line break. `log` holds the last lines of its journal.
#[must_use]
pub fn render(report: &Report, agent: &Agent, log: &[String]) -> String {
    let mut text = String::new();
    for (name, value) in facts(agent) {
        let _ = writeln!(text, "{name:>12}  {}", printable(&value));
    }
    for line in agent.warnings.iter().chain(&report.warnings) {
        let _ = writeln!(text, "{:>12}  {}", "warning", printable(line));
    }
    text.push('\n');
    for line in log {
        let _ = writeln!(text, "{line}");
    }
    let _ = writeln!(
        text,
        "the whole log: flockctl logs {}, or journalctl -u {}",
        agent.agent, agent.unit
    );
    text
}

fn facts(agent: &Agent) -> Vec<(&'static str, String)> {
    let mut facts = vec![("agent", agent.agent.to_string()), ("level", level(agent))];
    let mut put = |name, value: Option<String>| facts.extend(value.map(|value| (name, value)));
    let reason = agent.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    put("state", Some(format!("{}{reason}", state(agent))));
    put(
        "at boot",
        Some(if agent.enabled { "started by flock.target" } else { "not started" }.into()),
    );
    put("up for", agent.uptime_seconds.map(span));
    put("health", Some(agent.health.cell()));
    put("memory", Some(memory(agent)));
    put("cpu", Some(limited_cpu(agent)));
    put("tasks", Some(amount(agent.tasks, |n| n.to_string())));
    put("restarts", Some(agent.restarts.to_string()));
    put("egress", (!agent.egress.is_empty()).then(|| agent.egress.join(", ")));
    for line in &agent.loosened {
        put("loosened", Some(line.clone()));
    }
    put("unit", Some(agent.unit.clone()));
    put("handle", Some(agent.handle.clone()));
    put("slice", Some(agent.slice.clone()));
    put("cgroup", agent.cgroup.clone());
    put("user", agent.user.clone());
    put("main pid", agent.pid.map(|pid| pid.to_string()));
    put("invocation", agent.invocation.clone());
    put(
        "last end",
        agent
            .last_end
            .as_ref()
            .map(|end| format!("{} ({})", end.reason, end.at.strftime("%F %T UTC"))),
    );
    facts
}

fn memory(agent: &Agent) -> String {
    let now = amount(agent.memory, bytes);
    match agent.memory_peak {
        Some(peak) => format!("{now} (at most {})", bytes(peak)),
        None => now,
    }
}

fn limited_cpu(agent: &Agent) -> String {
    match agent.cpu_limit_percent {
        Some(percent) => format!("{}, limited to {percent} % of one core", cpu(agent)),
        None => cpu(agent),
    }
}
