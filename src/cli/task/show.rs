//! `flockctl task show`: everything about one task.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};
use std::path::PathBuf;

use clap::Args;
use jiff::tz::TimeZone;

use super::{result, words};
use crate::bus::message::TaskId;
use crate::cli::past::{self, Place};
use crate::cli::{Failure, out};
use crate::history::Record;
use crate::names::shared_dir;
use crate::text::{bytes, printable};

/// So many lines of a text or an output are shown, unless all is asked for.
const LINES: usize = 20;

/// The command line of `task show`.
#[derive(Args)]
#[command(after_help = "The fields of --json: man 7 flock.")]
pub struct Show {
    /// The task's id, or the beginning of it, at least 6 characters.
    #[arg(value_name = "TASK", value_parser = |text: &str| TaskId::parse(text))]
    pub task: TaskId,
    /// One JSON object a line: one for each agent that has the task.
    #[arg(long)]
    pub json: bool,
    /// Only what the agents printed, as they did; made harmless on a terminal.
    #[arg(long, conflicts_with = "json")]
    pub output: bool,
    /// Where to read.
    #[command(flatten)]
    pub place: Place,
}

/// Prints the task.
///
/// # Errors
/// When there is no such task, flockd refuses, or the history cannot be read.
pub fn run(args: &Show) -> Result<(), Failure> {
    let records = past::show(&args.place, &args.task)?;
    if args.json {
        return records.iter().try_for_each(|record| out::line(&result::json(record)?));
    }
    if args.output {
        return records.iter().try_for_each(output);
    }
    let Some(first) = records.first() else { return Err(out::garbled()) };
    let zone = TimeZone::system();
    let mut text = task(first, &zone);
    for record in &records {
        text.push('\n');
        text.push_str(&place(record, &zone));
    }
    out::bytes(text.as_bytes())
}

/// As it was on a pipe; line by line and harmless on a terminal.
fn output(record: &Record) -> Result<(), Failure> {
    let output = record.output.as_deref().unwrap_or_default();
    match io::stdout().is_terminal() {
        false => out::bytes(output.as_bytes()),
        true => output.lines().try_for_each(|line| out::line(&printable(line))),
    }
}

/// One fact a line, the names in a column of their own; what is not known is left out.
struct Facts(String);

impl Facts {
    fn put(&mut self, name: &str, value: impl Into<Option<String>>) {
        if let Some(value) = value.into() {
            let _ = writeln!(self.0, "{name:>12}  {}", printable(&value));
        }
    }

    /// Lines of somebody else's text, indented so that they cannot pass for facts.
    fn block(&mut self, name: &str, text: &str) {
        if text.is_empty() {
            return;
        }
        let _ = writeln!(self.0, "{name:>12}");
        let mut lines = text.lines();
        for line in lines.by_ref().take(LINES) {
            let _ = writeln!(self.0, "{:>14}| {}", "", printable(line));
        }
        match lines.count() {
            0 => {}
            more => {
                let _ = writeln!(self.0, "{:>14}({more} more lines)", "");
            }
        }
    }
}

/// What was asked for, the same for all who do it.
fn task(record: &Record, zone: &TimeZone) -> String {
    let time = |at| words::time(at, zone);
    let mut facts = Facts(String::new());
    facts.put("task", record.task.to_string());
    facts.put("to", record.to.to_string());
    facts.put("sent", format!("{} by {}", time(record.created), person(record.sender)));
    facts.put("deadline", record.deadline.map(time));
    facts.put("key", record.key.clone());
    facts.put("retry of", record.retry_of.as_ref().map(ToString::to_string));
    facts.put("environment", environment(&record.environment));
    if record.place.is_none() {
        facts.put("note", "only its result was found; what was asked for is not known".to_owned());
    }
    facts.block("text", &record.text);
    facts.0
}

fn environment(variables: &BTreeMap<String, String>) -> Option<String> {
    let pairs: Vec<_> = variables.iter().map(|(name, value)| format!("{name}={value}")).collect();
    (!pairs.is_empty()).then(|| pairs.join(" "))
}

fn person(uid: u32) -> String {
    match nix::unistd::User::from_uid(uid.into()) {
        Ok(Some(user)) => user.name,
        _ => format!("uid {uid}"),
    }
}

/// What became of it in one place.
fn place(record: &Record, zone: &TimeZone) -> String {
    let time = |at| words::time(at, zone);
    let mut facts = Facts(String::new());
    facts.put("agent", words::holder(record.agent.as_ref()));
    let why = words::why(record.reason.as_deref(), record.exit, record.signal);
    facts.put(
        "state",
        match why.is_empty() {
            true => record.state.word().to_owned(),
            false => format!("{}: {why}", record.state),
        },
    );
    facts.put("attempt", (record.attempt > 0).then(|| record.attempt.to_string()));
    facts.put("queued", time(record.queued));
    facts.put("started", record.started.map(time));
    facts.put("finished", record.finished.map(time));
    let waited = words::between(Some(record.queued), record.started);
    let took = words::between(record.started, record.finished);
    let known = record.started.and(record.finished).is_some();
    facts.put("took", known.then(|| format!("{took}, after waiting {waited}")));
    facts.put("exit", record.exit.map(|exit| exit.to_string()));
    facts.put("signal", record.signal.map(|signal| signal.to_string()));
    facts.put(
        "cpu",
        record.usage.map(|used| {
            let (user, system) =
                (words::duration(used.user_usec), words::duration(used.system_usec));
            format!("{user} user, {system} system")
        }),
    );
    facts.put("memory", record.usage.map(|used| format!("{} at most", bytes(used.memory_peak))));
    facts.put("command", record.command.as_ref().map(|words| words.join(" ")));
    facts.put("result", record.result_path.as_deref().map(on_host));
    facts.block("output", record.output.as_deref().unwrap_or_default());
    if record.truncated {
        facts.put("", "the output is cut here; all of it is in the result's file".to_owned());
    }
    facts.0
}

/// The agent's word for where its result is, as the host sees it.
fn on_host(path: &str) -> String {
    match path.strip_prefix("/shared/") {
        Some(rest) => shared_dir().join(PathBuf::from(rest)).display().to_string(),
        None => path.to_owned(),
    }
}
