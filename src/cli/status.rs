//! `flockctl status`: what the agents are doing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;

use crate::cli::{Failure, logs, out};
use crate::config::{self, Config};
use crate::control::{Client, ClientError, Request, Response};
use crate::host::quota;
use crate::host::units::Systemd;
use crate::host::users::Ledger;
use crate::names::{AgentId, LIB_DIR};
use crate::plan::{self, Plan};
use crate::status::health::View;
use crate::status::report::{Report, Sources, report};
use crate::status::{Records, State, detail, systemd, table};
use crate::text::printable_json;

/// flockd may be busy; status does not wait longer for what only flockd knows.
const FLOCKD_TIME: Duration = Duration::from_secs(3);
/// Lines of the log under the block of one agent.
const LOG_LINES: u32 = 10;

/// The command line of `status`.
#[derive(Args)]
#[command(
    after_help = "Exit status: 1 when an agent that is shown has failed, or systemd does not say \
                        what it does; 0 otherwise."
)]
pub struct Status {
    /// The agents; none means all of them. One is shown in full.
    #[arg(value_name = "AGENT")]
    pub agents: Vec<AgentId>,
    /// One JSON object for programs; its form is stable.
    #[arg(long)]
    pub json: bool,
}

/// Prints the report.
///
/// # Errors
/// When PID 1 does not answer, an agent is unknown, or an agent is not as it should be.
pub fn run(args: &Status, file: &Path) -> Result<(), Failure> {
    out::wait(async {
        let report = collect(&args.agents, file).await?;
        match (&report.agents[..], args.json) {
            (_, true) => {
                let json = serde_json::to_string(&report).map_err(Failure::failed)?;
                out::line(&printable_json(&json))?;
            }
            ([agent], false) if !args.agents.is_empty() => {
                let log = logs::last(&agent.agent, LOG_LINES).await;
                out::bytes(detail::render(&report, agent, &log).as_bytes())?;
            }
            _ => out::bytes(table::render(&report).as_bytes())?,
        }
        verdict(&report)
    })
}

/// Reads everything. What cannot be read is said in the report, except PID 1.
pub(super) async fn collect(agents: &[AgentId], file: &Path) -> Result<Report, Failure> {
    let (config, unread) = match config::load(file) {
        Ok(config) => (Some(config), None),
        Err(faults) => (None, Some(first_line(&faults.to_string()))),
    };
    let pid1 = Systemd::connect().await.map_err(Failure::failed)?;
    let loaded = systemd::list(&pid1).await.map_err(Failure::failed)?;
    let mut known: BTreeSet<AgentId> = loaded.into_keys().collect();
    known.extend(config.iter().flat_map(|config| config.agents.keys().cloned()));
    let wanted = wanted(agents, known)?;
    let seen = systemd::look(&pid1, &Records::default(), &wanted).await.map_err(Failure::failed)?;
    let enabled = systemd::enabled(&pid1).await.map_err(Failure::failed)?;
    let view = ask_flockd().await;
    Ok(report(&Sources {
        config: config.as_ref(),
        unread: unread.as_deref(),
        seen: &seen,
        enabled: &enabled,
        view: view.as_ref().map_err(String::as_str),
        missing_controllers: &missing_controllers(),
        unheld: &config.as_ref().map(unheld).unwrap_or_default(),
        program_since: program_since(),
        now: Timestamp::now(),
    }))
}

/// Of a long message; `flockctl check` says the rest.
fn first_line(text: &str) -> String {
    let first = text.lines().next().unwrap_or_default();
    format!("{} (flockctl check says more)", first.trim_end_matches(':'))
}

/// Those asked for, or all.
fn wanted(agents: &[AgentId], known: BTreeSet<AgentId>) -> Result<BTreeSet<AgentId>, Failure> {
    if agents.is_empty() {
        return Ok(known);
    }
    match agents.iter().find(|id| !known.contains(id)) {
        Some(id) => Err(unknown(id, &known)),
        None => Ok(agents.iter().cloned().collect()),
    }
}

/// A name that no agent has.
#[must_use]
pub fn unknown(id: &AgentId, known: &BTreeSet<AgentId>) -> Failure {
    let names: Vec<_> = known.iter().map(AgentId::as_str).collect();
    Failure::usage(match names.is_empty() {
        true => format!("no agent is called {id}; there is none"),
        false => format!("no agent is called {id}; there are: {}", names.join(", ")),
    })
}

/// What only flockd knows, or why it did not say.
async fn ask_flockd() -> Result<View, String> {
    let answer = async {
        let mut client = Client::ask(&Request::Status).await?;
        client.next().await
    };
    match tokio::time::timeout(FLOCKD_TIME, answer).await {
        Ok(Ok(Some(Response::Status(view)))) => Ok(view),
        Ok(Ok(_)) => Err(out::garbled().message),
        Ok(Err(ClientError::NotRunning)) => {
            Err("flockd is not running (the agents do not need it)".to_owned())
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("flockd does not answer".to_owned()),
    }
}

/// The controllers that limits need and this host does not have in cgroup v2.
fn missing_controllers() -> Vec<&'static str> {
    let found = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    let found: Vec<&str> = found.split_whitespace().collect();
    ["cpu", "io", "memory", "pids"].into_iter().filter(|name| !found.contains(name)).collect()
}

/// The agents with a limit on disk that a file system does not hold. Without the ledger of user ids
/// there is no plan to ask about.
fn unheld(config: &Config) -> BTreeMap<AgentId, String> {
    let Ok(ledger) = Ledger::load() else { return BTreeMap::new() };
    let plans = config.agents.keys().filter_map(|id| plan::plan(config, ledger.uids(), id));
    let held = |plan: Plan| Some((quota::enforced(&plan).err()?.to_string(), plan.agent));
    plans.filter_map(held).map(|(why, id)| (id, why)).collect()
}

/// When dpkg put the installed `flock-agent` in its place. Not its time of change, which is the
/// build's.
fn program_since() -> Option<Timestamp> {
    let file = fs::metadata(Path::new(LIB_DIR).join("flock-agent")).ok()?;
    Timestamp::new(file.ctime(), i32::try_from(file.ctime_nsec()).ok()?).ok()
}

/// Whether all is as it should be.
fn verdict(report: &Report) -> Result<(), Failure> {
    let names: Vec<_> = report
        .agents
        .iter()
        .filter(|agent| matches!(agent.state, State::Failed | State::Unknown))
        .map(|agent| format!("{} ({})", agent.agent, agent.state.word()))
        .collect();
    match names.is_empty() {
        true => Ok(()),
        false => Err(Failure::failed(format!("not as it should be: {}", names.join(", ")))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_agent_is_answered_with_those_that_exist() {
        let id = |text| AgentId::parse(text).unwrap();
        let known = BTreeSet::from([id("a"), id("b")]);
        let error = wanted(&[id("a"), id("c")], known.clone()).unwrap_err();
        assert_eq!(
            (error.code, error.message.as_str()),
            (2, "no agent is called c; there are: a, b")
        );
        assert_eq!(wanted(&[], known.clone()).unwrap(), known);
        assert_eq!(wanted(&[id("b")], known).unwrap(), BTreeSet::from([id("b")]));
    }
}
