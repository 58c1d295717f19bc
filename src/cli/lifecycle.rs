//! `flockctl up`, `down`, `start`, `stop`, `restart`: the handles, by way of PID 1.
//!
//! There is one way to start an agent: its handle. What `systemctl start flock@agent-1` does and
//! what `flockctl start agent-1` does is the same; this says more about what came of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use clap::Args;
use futures_util::{StreamExt as _, stream};

use crate::audit::What;
use crate::cli::{Failure, audit, logs, out, status};
use crate::config;
use crate::host::units::{Systemd, UnitError};
use crate::names::AgentId;
use crate::status::state::Verdict;
use crate::status::systemd::{TARGET, Units, enabled, list, look};
use crate::status::{Records, State, judge};
use crate::text::printable;

/// Agents that are started or stopped at the same time. Each start costs PID 1 some CPU.
const AT_ONCE: usize = 8;
/// How often PID 1 is asked whether the jobs of `up` and `down` are done.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// `up` and `down` stop waiting after this; the jobs go on.
const JOBS_TIME: Duration = Duration::from_secs(300);
/// Lines of the log under a failure.
const LOG_LINES: u32 = 3;

/// Agents by name, at least one.
#[derive(Args)]
pub struct Named {
    /// The agents.
    #[arg(value_name = "AGENT", required = true)]
    pub agents: Vec<AgentId>,
}

/// What to do with handles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Start, unless it is up.
    Start,
    /// Stop.
    Stop,
    /// Stop, then start.
    Restart,
}

impl Act {
    fn word(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
        }
    }

    fn what(self) -> What {
        match self {
            Self::Start => What::Start,
            Self::Stop => What::Stop,
            Self::Restart => What::Restart,
        }
    }

    /// Whether this state is what was asked for.
    fn is_met_by(self, state: State) -> bool {
        match self {
            Self::Stop => matches!(state, State::Stopped | State::Finished),
            Self::Start | Self::Restart => {
                matches!(state, State::Running | State::Finished | State::Frozen)
            }
        }
    }
}

/// Starts, stops or restarts agents, and says what came of it.
///
/// # Errors
/// When not run by root, when an agent is unknown, or when it does not get where it should.
pub fn run(act: Act, named: &Named, file: &Path) -> Result<(), Failure> {
    out::need_root(&format!("{} agents", act.word()))?;
    out::wait(async {
        let systemd = Systemd::connect().await.map_err(Failure::failed)?;
        let units = list(&systemd).await.map_err(Failure::failed)?;
        check_known(act, &named.agents, file, &units)?;
        let agents: BTreeSet<AgentId> = named.agents.iter().cloned().collect();
        audit::note(act.what(), &words(&agents), "");
        let errors = each(&systemd, act, &agents, &units).await;
        tell(&systemd, act, &agents, errors).await
    })
}

fn words(agents: &BTreeSet<AgentId>) -> String {
    agents.iter().map(AgentId::as_str).collect::<Vec<_>>().join(" ")
}

/// Stopping what is loaded always works; starting asks for a valid configuration.
fn check_known(
    act: Act,
    agents: &[AgentId],
    file: &Path,
    units: &BTreeMap<AgentId, Units>,
) -> Result<(), Failure> {
    if act == Act::Stop && agents.iter().all(|id| units.contains_key(id)) {
        return Ok(());
    }
    let config = config::load(file).map_err(Failure::config)?;
    let known: BTreeSet<AgentId> = config.agents.keys().cloned().collect();
    match agents.iter().find(|id| !known.contains(id)) {
        Some(id) => Err(status::unknown(id, &known)),
        None => Ok(()),
    }
}

/// A stop that breaks off a start leaves the handle as failed by that signal, which was the stop's.
async fn stop(systemd: &Systemd, handle: &str) -> Result<(), UnitError> {
    systemd.stop(handle).await?;
    let facts = systemd.facts(handle).await?;
    match (facts.text("ActiveState").as_str(), facts.text("Result").as_str()) {
        ("failed", "signal") => systemd.reset_failed(handle).await,
        _ => Ok(()),
    }
}

/// Acts on each handle; the errors by agent.
async fn each(
    systemd: &Systemd,
    act: Act,
    agents: &BTreeSet<AgentId>,
    units: &BTreeMap<AgentId, Units>,
) -> BTreeMap<AgentId, UnitError> {
    stream::iter(agents)
        .map(|id| async move {
            let handle = id.handle_unit();
            let result = match act {
                Act::Stop => stop(systemd, &handle).await,
                Act::Restart => systemd.restart(&handle).await,
                // A handle that is up without its agent would make a start do nothing.
                Act::Start if is_hollow(units.get(id)) => systemd.restart(&handle).await,
                Act::Start => systemd.start(&handle).await,
            };
            result.err().map(|error| (id.clone(), error))
        })
        .buffer_unordered(AT_ONCE)
        .filter_map(std::future::ready)
        .collect()
        .await
}

/// Whether the handle is up and the agent's processes are not, and nothing is under way.
fn is_hollow(units: Option<&Units>) -> bool {
    let Some(Units { unit, handle: Some(handle) }) = units else { return false };
    let ended = match unit {
        None => true,
        Some(row) => row.is_final_failure() || row.is_clean_end() || row.active == "inactive",
    };
    handle.is_settled_active() && ended
}

/// Starts every agent that `flock.target` wants.
///
/// # Errors
/// When not run by root, or when an agent does not come up.
pub fn up() -> Result<(), Failure> {
    out::need_root("start the agents")?;
    out::wait(async {
        let systemd = Systemd::connect().await.map_err(Failure::failed)?;
        let agents = enabled(&systemd).await.map_err(Failure::failed)?;
        if agents.is_empty() {
            return Err(Failure::failed(format!(
                "no agent is enabled: run flockctl apply after adding agents to the \
                 configuration, or systemctl enable flock@ID; {TARGET} starts those"
            )));
        }
        let units = list(&systemd).await.map_err(Failure::failed)?;
        audit::note(What::Up, TARGET, &words(&agents));
        systemd.start(TARGET).await.map_err(Failure::failed)?;
        let hollow = agents.iter().filter(|id| is_hollow(units.get(*id))).cloned().collect();
        let errors = each(&systemd, Act::Restart, &hollow, &units).await;
        settle(&systemd, &agents).await?;
        tell(&systemd, Act::Start, &agents, errors).await
    })
}

/// Stops every agent, also those that were started by name.
///
/// # Errors
/// When not run by root, or when an agent does not stop.
pub fn down() -> Result<(), Failure> {
    out::need_root("stop the agents")?;
    out::wait(async {
        let systemd = Systemd::connect().await.map_err(Failure::failed)?;
        let units = list(&systemd).await.map_err(Failure::failed)?;
        let agents: BTreeSet<AgentId> = units.keys().cloned().collect();
        audit::note(What::Down, TARGET, &words(&agents));
        systemd.stop(TARGET).await.map_err(Failure::failed)?;
        let errors = each(&systemd, Act::Stop, &agents, &units).await;
        settle(&systemd, &agents).await?;
        if agents.is_empty() {
            return out::line("no agent was up");
        }
        tell(&systemd, Act::Stop, &agents, errors).await
    })
}

/// Waits until no job of these agents is left. A target is done before what it wants is.
async fn settle(systemd: &Systemd, agents: &BTreeSet<AgentId>) -> Result<(), Failure> {
    let begun = tokio::time::Instant::now();
    loop {
        let units = list(systemd).await.map_err(Failure::failed)?;
        let busy = |units: &Units| {
            [&units.unit, &units.handle].into_iter().flatten().any(|row| row.job)
                || units.handle.as_ref().is_some_and(|row| row.active == "activating")
        };
        let left = agents.iter().filter(|id| units.get(*id).is_some_and(busy)).count();
        if left == 0 {
            return Ok(());
        }
        if begun.elapsed() > JOBS_TIME {
            return Err(Failure::failed(format!(
                "{left} agents are still on their way: flockctl status, systemctl list-jobs"
            )));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// One line for each agent; the reason and the last lines of the log for each that is not there.
async fn tell(
    systemd: &Systemd,
    act: Act,
    agents: &BTreeSet<AgentId>,
    errors: BTreeMap<AgentId, UnitError>,
) -> Result<(), Failure> {
    let seen = look(systemd, &Records::default(), agents).await.map_err(Failure::failed)?;
    let mut failures = Vec::new();
    for (id, seen) in &seen {
        let verdict = judge(seen);
        match (errors.get(id), act.is_met_by(verdict.state)) {
            (None, true) => out::line(&good(id, &verdict))?,
            // A stop that reports an earlier failure has stopped the agent all the same.
            (Some(_), _) if act == Act::Stop && !verdict.state.is_up() => {
                out::line(&good(id, &verdict))?;
            }
            (error, _) => failures.push(bad(act, id, &verdict, error).await),
        }
    }
    match failures.is_empty() {
        true => Ok(()),
        false => Err(Failure::failed(failures.join("\n"))),
    }
}

fn good(id: &AgentId, verdict: &Verdict) -> String {
    match verdict.state {
        State::Running => format!("{id}  running  (its log: flockctl logs -f {id})"),
        state => match &verdict.reason {
            Some(reason) => format!("{id}  {}: {}", state.word(), printable(reason)),
            None => format!("{id}  {}", state.word()),
        },
    }
}

async fn bad(act: Act, id: &AgentId, verdict: &Verdict, error: Option<&UnitError>) -> String {
    let why = match (&verdict.reason, error) {
        (Some(reason), _) => printable(reason),
        (None, Some(error)) => error.to_string(),
        (None, None) => "it did not stay as asked".to_owned(),
    };
    let mut text = format!("{} {id}: {}: {why}", act.word(), verdict.state.word());
    for line in logs::last(id, LOG_LINES).await {
        text.push_str("\n    ");
        text.push_str(&line.replace('\n', "\n    "));
    }
    text.push_str(&format!("\n    the whole log: flockctl logs {id}"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::facts::Row;

    #[test]
    fn a_handle_without_its_agent_is_restarted_and_never_one_with_a_job() {
        let row =
            |active: &str, sub: &str, job| Row { active: active.into(), sub: sub.into(), job };
        let up = || Some(row("active", "exited", false));
        let hollow = |unit, handle| is_hollow(Some(&Units { unit, handle }));
        assert!(hollow(None, up()));
        assert!(hollow(Some(row("failed", "failed", false)), up()));
        assert!(hollow(Some(row("active", "exited", false)), up()));
        assert!(!hollow(Some(row("active", "running", false)), up()));
        assert!(!hollow(Some(row("activating", "auto-restart", false)), up()));
        assert!(!hollow(Some(row("failed", "failed", true)), up()));
        assert!(!hollow(None, Some(row("active", "exited", true))));
        assert!(!hollow(None, Some(row("failed", "failed", false))));
        assert!(!is_hollow(None));
    }
}
