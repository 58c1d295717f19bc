//! `flockctl task send`: gives agents something to do, and shows what came of it.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};

use clap::Args;
use futures_util::FutureExt as _;
use jiff::SignedDuration;

use crate::bus::hub::Hub;
use crate::bus::identity;
use crate::bus::message::{Address, Status, TaskId};
use crate::bus::server_conf::MAX_PAYLOAD;
use crate::cli::task::progress::Progress;
use crate::cli::task::result::{for_people, json, outcome};
use crate::cli::{Failure, out};
use crate::config;
use crate::control::request::{SendTask, WAIT_MAX_SECONDS};
use crate::control::response::Sent;
use crate::control::{Client, ClientError, Request, Response};
use crate::names::{AgentId, identity_dir};
use crate::tasks::{self, Heard, Results, SendError};
use crate::text::printable;

/// The command line of `task send`.
#[derive(Args)]
#[command(
    after_help = "Without --to and --all the task is done by one agent, whichever is free.\n\
    With --wait, one result and standard output that is no terminal, the output is printed byte for \
    byte and nothing else. Ctrl-C ends the wait, not the task.\n\
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
    /// Wait at most this long [default: as long as the task can live, at most a day]; an agent that
    /// has not begun by then does not begin, and what runs is ended.
    #[arg(long, value_name = "D", value_parser = seconds)]
    pub timeout: Option<u64>,
    /// After this time no agent begins, and what runs is ended.
    #[arg(long, value_name = "D", value_parser = seconds, conflicts_with = "timeout")]
    pub deadline: Option<u64>,
    /// Sent again with the same receiver and key, the task is not done twice.
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// A variable for the command; can be given several times.
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    pub env: Vec<(String, String)>,
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

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("use NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Sends the task; with `--wait` prints the results.
///
/// # Errors
/// When it cannot be sent, or a result is not `done`, or not there in time.
pub fn run(args: &Send, file: &Path) -> Result<(), Failure> {
    let environment: BTreeMap<String, String> = args.env.iter().cloned().collect();
    if environment.len() < args.env.len() {
        return Err(Failure::usage("--env: a variable is given twice"));
    }
    let deadline = args.timeout.or(args.deadline);
    let order = SendTask {
        deadline_seconds: deadline,
        // An agent may have begun at the last moment.
        wait_seconds: args.wait.then(|| args.timeout.unwrap_or(WAIT_MAX_SECONDS)),
        key: args.key.clone(),
        environment,
        ..SendTask::new(address(args), text(args)?)
    };
    out::wait(async {
        let (sent, mut answers) = submit(order, file).await?;
        for line in &sent.refused {
            eprintln!("flockctl: {}", printable(line));
        }
        if sent.duplicate {
            let task = &sent.task;
            eprintln!("flockctl: task {task} was sent before with this key; it is not sent again");
        }
        match args.wait {
            true => until_interrupted(&sent.task, collect(args, &sent, &mut answers)).await?,
            false => out::line(&show_sent(args.json, &sent)?)?,
        }
        match sent.refused.is_empty() {
            true => Ok(()),
            false => Err(Failure::failed("not every agent could get the task")),
        }
    })
}

/// Root needs no flockd; with a key flockd is asked first, because its history knows all keys.
async fn submit(order: SendTask, file: &Path) -> Result<(Sent, Answers), Failure> {
    if !out::is_root() {
        return by_flockd(order).await.map_err(|error| out::by_flockd(&error));
    }
    if order.key.is_some() {
        match by_flockd(order.clone()).await {
            Err(ClientError::NotRunning) => eprintln!(
                "flockctl: flockd is not running: only tasks of the last hour are compared with the key"
            ),
            answer => return answer.map_err(|error| out::by_flockd(&error)),
        }
    }
    by_bus(order, file).await
}

/// The task goes on when the wait is ended.
async fn until_interrupted(
    task: &TaskId,
    work: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    tokio::select! {
        end = work => end,
        Ok(()) = tokio::signal::ctrl_c() => Err(Failure::failed(format!(
            "the wait is over, the task goes on: flockctl task show {task}, flockctl task cancel {task}"
        ))),
    }
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
    let wait = order.wait_seconds;
    let fault = |error| match error {
        SendError::Unknown { .. } => Failure::usage(error),
        SendError::Variable(_) | SendError::Key => Failure::usage(error),
        error => Failure::failed(error),
    };
    let task = tasks::task(order, out::real_uid(), &everyone).map_err(fault)?;
    // The bus alone says how it ends; flockd, if it runs, announces it there.
    let look: tasks::Look = Box::new(|_| std::future::ready(Vec::new()).boxed());
    let (sent, results) = tasks::send(&hub, &everyone, &task, wait, look).await.map_err(fault)?;
    Ok((sent, Answers::Bus(results)))
}

async fn by_flockd(order: SendTask) -> Result<(Sent, Answers), ClientError> {
    let mut client = Client::ask(&Request::TaskSend(order)).await?;
    match client.next().await? {
        Some(Response::Sent(sent)) => Ok((sent, Answers::Flockd(client))),
        _ => Err(ClientError::Garbled("another answer".to_owned())),
    }
}

impl Answers {
    /// What is heard next; `None` when all results are there.
    async fn next(&mut self) -> Result<Option<Heard>, Failure> {
        match self {
            Self::Bus(None) => Ok(None),
            Self::Bus(Some(results)) => results.next().await.map_err(Failure::failed),
            Self::Flockd(client) => match client.next().await.map_err(|e| out::by_flockd(&e))? {
                Some(Response::Begun { agent }) => Ok(Some(Heard::Begun(agent))),
                Some(Response::Result(result)) => Ok(Some(Heard::Result(Box::new(result)))),
                Some(_) => Err(out::garbled()),
                None => Ok(None),
            },
        }
    }
}

/// What was sent, in one line.
pub(super) fn show_sent(as_json: bool, sent: &Sent) -> Result<String, Failure> {
    if as_json {
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
    while let Some(heard) = progress.during(answers.next()).await? {
        let result = match heard {
            Heard::Result(result) => result,
            Heard::Begun(agent) => {
                progress.begun(&agent);
                continue;
            }
        };
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

    #[test]
    fn a_variables_value_may_have_an_equals_sign() {
        assert_eq!(variable("A=b=c"), Ok(("A".to_owned(), "b=c".to_owned())));
        assert!(variable("A").is_err());
    }
}
