//! `flockctl task send`: gives agents something to do, and shows what came of it.

use std::io::{self, IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};

use clap::Args;
use jiff::SignedDuration;

use crate::bus::hub::Hub;
use crate::bus::identity;
use crate::bus::message::{Address, Status, TaskResult};
use crate::bus::server_conf::MAX_PAYLOAD;
use crate::cli::task::progress::Progress;
use crate::cli::task::result::{for_people, json, outcome};
use crate::cli::{Failure, out};
use crate::config;
use crate::control::request::SendTask;
use crate::control::response::Sent;
use crate::control::{Client, Request, Response};
use crate::names::{AgentId, identity_dir};
use crate::tasks::{self, Results, SendError};
use crate::text::printable;

/// How long `--wait` waits unless told otherwise.
const WAIT: &str = "1h";

/// The command line of `task send`.
#[derive(Args)]
#[command(
    after_help = "Without --to and --all the task is done by one agent, whichever is free.\n\
    With --wait, one result and standard output that is no terminal, the output is printed byte for \
    byte and nothing else.\n\
    Exit status: 0 when the task is stored, and with --wait when every result is done; 1 otherwise."
)]
pub struct Send {
    /// The agent that is to do it.
    #[arg(long, value_name = "AGENT", conflicts_with_all = ["all", "any"])]
    pub to: Option<AgentId>,
    /// Every agent does it.
    #[arg(long, conflicts_with = "any")]
    pub all: bool,
    /// One agent does it, whichever is free; this is the default.
    #[arg(long)]
    pub any: bool,
    /// Wait for the results and print them.
    #[arg(long)]
    pub wait: bool,
    /// Wait at most this long [default: 1h]; an agent that has not begun by then does not begin.
    #[arg(long, value_name = "D", value_parser = seconds)]
    pub timeout: Option<u64>,
    /// The text of the task is in this file.
    #[arg(long, value_name = "FILE", conflicts_with = "text")]
    pub file: Option<PathBuf>,
    /// One JSON object a line: each result with --wait, else what was sent.
    #[arg(long)]
    pub json: bool,
    /// The text of the task; - reads it from standard input.
    pub text: Option<String>,
}

fn seconds(text: &str) -> Result<u64, String> {
    let span: SignedDuration = text.parse().map_err(|_| "use for example 30s, 10min or 2h")?;
    u64::try_from(span.as_secs()).ok().filter(|n| *n > 0).ok_or_else(|| "at least 1s".to_owned())
}

/// Sends the task; with `--wait` prints the results.
///
/// # Errors
/// When it cannot be sent, or a result is not `done`, or not there in time.
pub fn run(args: &Send, file: &Path) -> Result<(), Failure> {
    let wait = seconds(WAIT).map_err(Failure::failed)?;
    let order = SendTask {
        to: address(args),
        text: text(args)?,
        deadline_seconds: args.timeout,
        wait_seconds: args.wait.then(|| args.timeout.unwrap_or(wait)),
    };
    out::wait(async {
        let (sent, mut answers) = match out::is_root() {
            true => by_bus(order, file).await?,
            false => by_flockd(order).await?,
        };
        for line in &sent.refused {
            eprintln!("flockctl: {}", printable(line));
        }
        match args.wait {
            true => collect(args, &sent, &mut answers).await?,
            false => out::line(&show_sent(args, &sent)?)?,
        }
        match sent.refused.is_empty() {
            true => Ok(()),
            false => Err(Failure::failed("not every agent could get the task")),
        }
    })
}

fn address(args: &Send) -> Address {
    match (&args.to, args.all) {
        (Some(id), _) => Address::Agent(id.clone()),
        (None, true) => Address::All,
        (None, false) => Address::Any,
    }
}

/// From the command line, a file, or standard input; one byte more than fits is read, no more.
fn text(args: &Send) -> Result<String, Failure> {
    let stdin = io::stdin();
    let (source, name): (Box<dyn io::Read>, String) = match (&args.text, &args.file) {
        (Some(text), _) if text != "-" => return Ok(text.clone()),
        (None, Some(path)) => {
            let name = path.display().to_string();
            let file = std::fs::File::open(path);
            (Box::new(file.map_err(|e| Failure::failed(format!("open {name}: {e}")))?), name)
        }
        (None, None) if stdin.is_terminal() => {
            return Err(Failure::usage(
                "what is the task? give a text, --file, or - for standard input",
            ));
        }
        _ => (Box::new(stdin), "standard input".to_owned()),
    };
    let mut bytes = Vec::new();
    let read = source.take(MAX_PAYLOAD as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|e| Failure::failed(format!("read {name}: {e}")))?;
    if bytes.len() > MAX_PAYLOAD {
        return Err(Failure::failed(format!(
            "read {name}: a task has at most {MAX_PAYLOAD} bytes: put the data into the shared tree \
             and name it in the task"
        )));
    }
    String::from_utf8(bytes)
        .map_err(|_| Failure::failed(format!("read {name}: it is no UTF-8 text")))
}

/// Where the results come from.
enum Answers {
    Bus(Option<Results>),
    Flockd(Client),
}

/// Root reads the operator's identity and needs no flockd.
async fn by_bus(order: SendTask, file: &Path) -> Result<(Sent, Answers), Failure> {
    let config = config::load(file).map_err(Failure::config)?;
    let (identity, url) = identity::operator(&identity_dir()).map_err(Failure::failed)?;
    let hub = Hub::connect(&identity, &url).await.map_err(Failure::failed)?;
    let everyone: Vec<AgentId> = config.agents.keys().cloned().collect();
    match tasks::send(&hub, &everyone, order).await {
        Ok((sent, results)) => Ok((sent, Answers::Bus(results))),
        Err(error @ SendError::Unknown { .. }) => Err(Failure::usage(error)),
        Err(error) => Err(Failure::failed(error)),
    }
}

async fn by_flockd(order: SendTask) -> Result<(Sent, Answers), Failure> {
    let mut client =
        Client::ask(&Request::TaskSend(order)).await.map_err(|e| out::by_flockd(&e))?;
    match client.next().await.map_err(|e| out::by_flockd(&e))? {
        Some(Response::Sent(sent)) => Ok((sent, Answers::Flockd(client))),
        _ => Err(out::garbled()),
    }
}

impl Answers {
    /// The next result; `None` when all are there.
    async fn next(&mut self) -> Result<Option<TaskResult>, Failure> {
        match self {
            Self::Bus(None) => Ok(None),
            Self::Bus(Some(results)) => results.next().await.map_err(Failure::failed),
            Self::Flockd(client) => match client.next().await.map_err(|e| out::by_flockd(&e))? {
                Some(Response::Result(result)) => Ok(Some(result)),
                Some(_) => Err(out::garbled()),
                None => Ok(None),
            },
        }
    }
}

fn show_sent(args: &Send, sent: &Sent) -> Result<String, Failure> {
    if args.json {
        return json(sent);
    }
    let names: Vec<_> = sent.agents.iter().map(AgentId::as_str).collect();
    Ok(match names.is_empty() {
        true => format!("task {} waits in the shared queue", sent.task),
        false => format!("task {} sent to {}", sent.task, names.join(", ")),
    })
}

/// Prints each result as it comes.
async fn collect(args: &Send, sent: &Sent, answers: &mut Answers) -> Result<(), Failure> {
    let raw = !args.json && sent.results == 1 && !io::stdout().is_terminal();
    let mut progress = Progress::new(sent.results);
    let mut bad = Vec::new();
    while let Some(result) = progress.during(answers.next()).await? {
        match (args.json, raw) {
            (true, _) => out::line(&json(&result)?)?,
            (false, true) => out::bytes(result.output.as_bytes())?,
            (false, false) => out::bytes(for_people(&result).as_bytes())?,
        }
        if result.status != Status::Done {
            bad.push(format!("{}: {}", printable(&result.agent), outcome(&result)));
        }
        progress.one_more();
    }
    match bad.is_empty() {
        true => Ok(()),
        false => Err(Failure::failed(format!("task {}: {}", sent.task, bad.join("; ")))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        assert_eq!(
            (seconds("30s"), seconds("10min"), seconds("1h 30m")),
            (Ok(30), Ok(600), Ok(5400))
        );
        for bad in ["", "5", "-3s", "0s", "soon"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
