//! `flockctl task list`: what the tasks are doing.

use clap::Args;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::{result, words};
use crate::cli::past::{self, Place};
use crate::cli::{Failure, out, when};
use crate::history::query::LIMIT_MAX;
use crate::history::{Filter, State, Summary};
use crate::names::AgentId;

/// What is shown when nothing is said.
const LIMIT: u32 = 20;

/// The command line of `task list`.
#[derive(Args)]
#[command(
    after_help = "A time is a point such as 2026-11-21, \"2026-11-21 10:00\" or 10:00, or an \
                        age such as 2h or 3d. The fields of --json: man 7 flock."
)]
pub struct List {
    /// Only tasks that this agent has or had.
    #[arg(long, value_name = "AGENT")]
    pub agent: Option<AgentId>,
    /// Only tasks in this state: queued, running, done, failed, expired, cancelled. May be repeated.
    #[arg(long = "state", value_name = "STATE")]
    pub states: Vec<State>,
    /// Only tasks that were sent since.
    #[arg(long, value_name = "T", allow_hyphen_values = true, value_parser = when::point)]
    pub since: Option<Timestamp>,
    /// At most this many, the newest [default: 20; all with --since].
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(LIMIT_MAX)))]
    pub limit: Option<u32>,
    /// One JSON object a line.
    #[arg(long)]
    pub json: bool,
    /// Where to read.
    #[command(flatten)]
    pub place: Place,
}

/// Prints the list.
///
/// # Errors
/// When flockd refuses, or the history cannot be read.
pub fn run(args: &List) -> Result<(), Failure> {
    let limit = args.limit.or_else(|| args.since.is_none().then_some(LIMIT));
    let filter = Filter {
        agent: args.agent.clone(),
        states: args.states.clone(),
        since: args.since,
        limit,
        ..Filter::default()
    };
    if args.json {
        return past::list(&args.place, filter, |task| out::line(&result::json(&task)?));
    }
    let mut tasks = Vec::new();
    past::list(&args.place, filter.clone(), |task| {
        tasks.push(task);
        Ok(())
    })?;
    if tasks.is_empty() {
        return out::line(nothing(&filter));
    }
    out::bytes(render(&tasks, Timestamp::now(), &TimeZone::system()).as_bytes())?;
    match args.limit.is_none() && limit.is_some_and(|limit| tasks.len() >= limit as usize) {
        true => out::line(&format!("\nthe newest {LIMIT}; more with --limit N or --since T")),
        false => Ok(()),
    }
}

fn nothing(filter: &Filter) -> &'static str {
    let narrow = filter.agent.is_some() || !filter.states.is_empty() || filter.since.is_some();
    match narrow {
        true => "no task of that kind is in the history",
        false => "no tasks yet: flockctl task send --to AGENT TEXT",
    }
}

fn render(tasks: &[Summary], now: Timestamp, zone: &TimeZone) -> String {
    let mut table = words::table(&["TASK", "AGENT", "STATE", "SENT", "TOOK", "WHAT"]);
    for task in tasks {
        let end = match task.state {
            State::Running => Some(now),
            _ => task.finished,
        };
        table.add_row([
            task.task.to_string(),
            words::holder(task.agent.as_ref()),
            task.state.word().to_owned(),
            words::time(task.queued, zone),
            words::between(task.started, end),
            words::remark(task),
        ]);
    }
    words::render(table)
}
