//! `flockctl logs`: the log of one agent, or what all agents wrote about one task.

use std::path::Path;

use clap::Args;
use jiff::tz::TimeZone;

use crate::cli::{Failure, out, status};
use crate::config;
use crate::control::{Client, ClientError, Request, Response};
use crate::journal::{Entry, Journal, JournalError, LINES_MAX, Query, TASK_MIN};
use crate::names::{AgentId, CONFIG_FILE};
use crate::text::printable;

/// What is shown when neither a number nor a time is given.
const LINES: u32 = 100;
/// The longest id of a task.
const TASK_MAX: usize = 64;

/// The command line of `logs`.
#[derive(Args)]
pub struct Logs {
    /// Whose log; with --task none means every agent's.
    #[arg(required_unless_present = "task")]
    pub agent: Option<AgentId>,
    /// Wait for more until Ctrl-C.
    #[arg(short, long)]
    pub follow: bool,
    /// At most this many entries, the newest [default: 100; all with --since, --until or --task].
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=i64::from(LINES_MAX)))]
    pub lines: Option<u32>,
    /// Not older than this: -1h, today, "2026-11-21 10:00".
    #[arg(long, value_name = "T", allow_hyphen_values = true)]
    pub since: Option<String>,
    /// Not newer than this.
    #[arg(long, value_name = "T", allow_hyphen_values = true, conflicts_with = "follow")]
    pub until: Option<String>,
    /// Only what belongs to this task; the first six characters of its id are enough.
    #[arg(long, value_name = "ID", value_parser = task)]
    pub task: Option<String>,
    /// One JSON object a line, as in /shared/logs: at, agent, source (agent, systemd, flock), level,
    /// pid, task, text.
    #[arg(long)]
    pub json: bool,
}

fn task(text: &str) -> Result<String, String> {
    let plain = |c: u8| c.is_ascii_alphanumeric() || c == b'_' || c == b'-';
    match (TASK_MIN..=TASK_MAX).contains(&text.len()) && text.bytes().all(plain) {
        true => Ok(text.to_owned()),
        false => Err(format!("at least {TASK_MIN} characters of the id that `task send` printed")),
    }
}

/// Prints the log until its end, or until Ctrl-C.
///
/// # Errors
/// When the journal cannot be read, or flockd refuses.
pub fn run(args: &Logs, file: &Path) -> Result<(), Failure> {
    let all = args.since.is_some() || args.until.is_some() || args.task.is_some();
    let query = Query {
        agent: args.agent.clone(),
        lines: args.lines.or((!all).then_some(LINES)),
        since: args.since.clone(),
        until: args.until.clone(),
        task: args.task.clone(),
        follow: args.follow,
    };
    out::wait(async {
        tokio::select! {
            result = print(&query, args.json, file) => match (result?, &query.agent) {
                (0, Some(agent)) => nothing(agent, file),
                _ => Ok(()),
            },
            _ = tokio::signal::ctrl_c() => Ok(()),
        }
    })
}

/// An empty log is right for an agent that never started, and wrong for one that does not exist.
fn nothing(agent: &AgentId, file: &Path) -> Result<(), Failure> {
    match config::load(file) {
        Ok(config) if !config.agents.contains_key(agent) => {
            Err(status::unknown(agent, &config.agents.into_keys().collect()))
        }
        _ => Ok(()),
    }
}

/// Prints the entries and counts them.
async fn print(query: &Query, json: bool, file: &Path) -> Result<usize, Failure> {
    let zone = TimeZone::system();
    let show = |entry: &Entry| match (json, &query.agent) {
        (true, _) => entry.json().map_err(Failure::failed),
        (false, Some(_)) => Ok(entry.render(&zone)),
        (false, None) => {
            let head = format!("{} ", printable(entry.agent.as_str()));
            Ok(head.clone() + &entry.render(&zone).replace('\n', &format!("\n{head}")))
        }
    };
    let mut source = Source::open(query, file).await?;
    let mut count = 0;
    while let Some(entry) = source.next().await? {
        out::line(&show(&entry)?)?;
        count += 1;
    }
    Ok(count)
}

/// Root reads the journal; anybody else asks flockd.
enum Source {
    Journal(Box<Journal>),
    Flockd(Box<Client>),
}

impl Source {
    async fn open(query: &Query, file: &Path) -> Result<Self, Failure> {
        if out::is_root() {
            let everyone = match query.agent {
                Some(_) => Vec::new(),
                None => {
                    let config = config::load(file).map_err(Failure::config)?;
                    config.agents.into_keys().collect()
                }
            };
            let journal = Journal::open(query, &everyone).map_err(failed)?;
            return Ok(Self::Journal(Box::new(journal)));
        }
        let client = Client::ask(&Request::Logs(query.clone())).await.map_err(refused)?;
        Ok(Self::Flockd(Box::new(client)))
    }

    async fn next(&mut self) -> Result<Option<Entry>, Failure> {
        match self {
            Self::Journal(journal) => journal.next().await.map_err(failed),
            Self::Flockd(client) => match client.next().await.map_err(refused)? {
                Some(Response::Log(entry)) => Ok(Some(entry)),
                Some(_) => Err(out::garbled()),
                None => Ok(None),
            },
        }
    }
}

fn failed(error: JournalError) -> Failure {
    match error {
        JournalError::Since(_) | JournalError::Task(_) => Failure::usage(error),
        _ => Failure::failed(error),
    }
}

fn refused(error: ClientError) -> Failure {
    match &error {
        ClientError::NotRunning => Failure::permission(
            "without root the log comes from flockd, which is not running: run it with sudo",
        ),
        _ => out::by_flockd(&error),
    }
}

/// The last entries for another verb, as lines; without root from flockd, and none if that fails.
pub async fn last(agent: &AgentId, lines: u32) -> Vec<String> {
    let zone = TimeZone::system();
    let mut shown = Vec::new();
    let query = Query::last(agent, lines);
    if let Ok(mut source) = Source::open(&query, Path::new(CONFIG_FILE)).await {
        while let Ok(Some(entry)) = source.next().await {
            shown.push(entry.render(&zone));
        }
    }
    shown
}
