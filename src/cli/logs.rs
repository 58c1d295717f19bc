//! `flockctl logs`: the log of one agent.

use std::path::Path;

use clap::Args;
use jiff::tz::TimeZone;

use crate::cli::{Failure, out, status};
use crate::config;
use crate::control::{Client, ClientError, Request, Response};
use crate::journal::{Entry, Journal, JournalError, LINES_MAX, Query};
use crate::names::AgentId;
use crate::text::printable_json;

/// What is shown when neither a number nor a time is given.
const LINES: u32 = 100;

/// The command line of `logs`.
#[derive(Args)]
pub struct Logs {
    /// Whose log.
    pub agent: AgentId,
    /// Wait for more until Ctrl-C.
    #[arg(short, long)]
    pub follow: bool,
    /// At most this many entries, the newest [default: 100; all with --since].
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=i64::from(LINES_MAX)))]
    pub lines: Option<u32>,
    /// Not older than this: -1h, today, "2026-11-21 10:00".
    #[arg(long, value_name = "T", allow_hyphen_values = true)]
    pub since: Option<String>,
    /// One JSON object a line: at, source (agent, systemd, flock), level, pid, text.
    #[arg(long)]
    pub json: bool,
}

/// Prints the log until its end, or until Ctrl-C.
///
/// # Errors
/// When the journal cannot be read, or flockd refuses.
pub fn run(args: &Logs, file: &Path) -> Result<(), Failure> {
    let lines = args.lines.or_else(|| args.since.is_none().then_some(LINES));
    let (agent, since) = (args.agent.clone(), args.since.clone());
    let query = Query { agent, lines, since, follow: args.follow };
    out::wait(async {
        tokio::select! {
            result = print(&query, args.json) => match result? {
                0 => nothing(&query.agent, file),
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
async fn print(query: &Query, json: bool) -> Result<usize, Failure> {
    let zone = TimeZone::system();
    let show = |entry: &Entry| match json {
        true => to_json(entry),
        false => Ok(entry.render(&zone)),
    };
    let mut source = Source::open(query).await?;
    let mut count = 0;
    while let Some(entry) = source.next().await? {
        out::line(&show(&entry)?)?;
        count += 1;
    }
    Ok(count)
}

fn to_json(entry: &Entry) -> Result<String, Failure> {
    serde_json::to_string(entry).map(|json| printable_json(&json)).map_err(Failure::failed)
}

/// Root reads the journal; anybody else asks flockd.
enum Source {
    Journal(Box<Journal>),
    Flockd(Box<Client>),
}

impl Source {
    async fn open(query: &Query) -> Result<Self, Failure> {
        if out::is_root() {
            return Ok(Self::Journal(Box::new(Journal::open(query).map_err(failed)?)));
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
        JournalError::Since(_) => Failure::usage(error),
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
    if let Ok(mut source) = Source::open(&Query::last(agent, lines)).await {
        while let Ok(Some(entry)) = source.next().await {
            shown.push(entry.render(&zone));
        }
    }
    shown
}
