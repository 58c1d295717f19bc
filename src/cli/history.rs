//! `flockctl history`: the tasks that have ended, in the order in which they did.

use std::collections::BTreeMap;

use clap::Args;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::cli::past::{self, Place};
use crate::cli::task::{result, words};
use crate::cli::{Failure, out, when};
use crate::history::query::LIMIT_MAX;
use crate::history::{Filter, State, Summary};
use crate::names::AgentId;
use crate::text::bytes;

/// The command line of `history`.
#[derive(Args)]
#[command(
    after_help = "A time is a point such as 2026-11-21, \"2026-11-21 10:00\" or 10:00, or an \
                        age such as 2h or 3d. How long tasks are remembered: [history] in \
                        flock.toml(5). The fields of --json: man 7 flock."
)]
pub struct History {
    /// Only tasks that this agent did.
    #[arg(long, value_name = "AGENT")]
    pub agent: Option<AgentId>,
    /// Only tasks that ended since.
    #[arg(long, value_name = "T", allow_hyphen_values = true, value_parser = when::point)]
    pub since: Option<Timestamp>,
    /// Only tasks that ended before.
    #[arg(long, value_name = "T", allow_hyphen_values = true, value_parser = when::point)]
    pub until: Option<Timestamp>,
    /// One JSON object a line, without the summary.
    #[arg(long)]
    pub json: bool,
    /// Where to read.
    #[command(flatten)]
    pub place: Place,
}

/// Prints the history.
///
/// # Errors
/// When flockd refuses, or the history cannot be read.
pub fn run(args: &History) -> Result<(), Failure> {
    let (agent, since, until) = (args.agent.clone(), args.since, args.until);
    let filter = Filter { agent, since, until, ended: true, ..Filter::default() };
    if args.json {
        return past::list(&args.place, filter, |task| out::line(&result::json(&task)?));
    }
    let mut tasks = Vec::new();
    past::list(&args.place, filter, |task| {
        tasks.push(task);
        Ok(())
    })?;
    if tasks.is_empty() {
        return out::line("no task has ended: flockctl task list shows those that wait or run");
    }
    out::bytes(render(&tasks, &TimeZone::system()).as_bytes())?;
    match tasks.len() >= LIMIT_MAX as usize {
        true => out::line(&format!("only the newest {LIMIT_MAX}: ask for less with --since")),
        false => Ok(()),
    }
}

fn render(tasks: &[Summary], zone: &TimeZone) -> String {
    let header = ["ENDED", "TASK", "AGENT", "STATE", "TOOK", "CPU TIME", "MEMORY", "WHAT"];
    let mut table = words::table(&header);
    let mut counts: BTreeMap<State, usize> = BTreeMap::new();
    let mut cpu: u64 = 0;
    for task in tasks {
        *counts.entry(task.state).or_default() += 1;
        let used = task.usage.map(|used| used.user_usec.saturating_add(used.system_usec));
        cpu = cpu.saturating_add(used.unwrap_or_default());
        let dash = || "-".to_owned();
        table.add_row([
            task.finished.map_or_else(dash, |at| words::time(at, zone)),
            task.task.to_string(),
            words::holder(task.agent.as_ref()),
            task.state.word().to_owned(),
            words::between(task.started, task.finished),
            used.map_or_else(dash, words::duration),
            task.usage.map_or_else(dash, |used| bytes(used.memory_peak)),
            words::remark(task),
        ]);
    }
    let counts: Vec<_> = counts.iter().map(|(state, n)| format!("{n} {state}")).collect();
    format!("{}\n{}; CPU time {}\n", words::render(table), counts.join(", "), words::duration(cpu))
}
