//! One model of what the agents are doing, for the table and for JSON. Pure.
//!
//! The JSON form is stable: `format` changes when a key changes its meaning or goes away; new keys
//! may come at any time. Sizes are bytes, times are seconds unless the key says otherwise,
//! points in time are RFC 3339 in UTC, and `null` means "not known" or "does not apply".

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Serialize;

use crate::config::{AgentConfig, Config, Egress, Mode};
use crate::history::Counts;
use crate::names::{AgentId, Level, WORKSPACE_USER};
use crate::plan;
use crate::status::ending::Ending;
use crate::status::facts::Facts;
use crate::status::health::{Health, View};
use crate::status::state::{Seen, State, Verdict, judge};

/// The number of this JSON form.
const FORMAT: u32 = 1;

/// Everything `flockctl status` says.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The number of the JSON form.
    pub format: u32,
    /// What flockd says of itself; null when it is not running.
    pub flockd: Option<Daemon>,
    /// How many tasks wait, run and failed; null when it is not known.
    pub tasks: Option<Counts>,
    /// What concerns the host or flock as a whole.
    pub warnings: Vec<String>,
    /// The agents, by id.
    pub agents: Vec<Agent>,
}

/// flockd's condition.
#[derive(Clone, Debug, Serialize)]
pub struct Daemon {
    /// Its version.
    pub version: String,
    /// When it was started.
    pub since: Timestamp,
    /// Whether it is connected to the bus.
    pub bus: bool,
    /// Whether the egress table holds.
    pub egress: bool,
}

/// One agent.
#[derive(Clone, Debug, Serialize)]
pub struct Agent {
    /// Its id.
    pub agent: AgentId,
    /// The number of its level: as it runs, else as configured.
    pub level: Option<u8>,
    /// The honest word for that level.
    pub boundary: Option<&'static str>,
    /// What it is doing.
    pub state: State,
    /// Why, for `failed`, `finished`, `restarting` and `unknown`.
    pub reason: Option<String>,
    /// Whether `flock.target` starts it, now and at boot.
    pub enabled: bool,
    /// Whether it stands in the configuration.
    pub configured: bool,
    /// Its sign of life.
    pub health: Health,
    /// Bytes of memory.
    pub memory: Amount,
    /// The most memory it had in this start.
    pub memory_peak: Option<u64>,
    /// CPU time in nanoseconds, and the limit in microseconds per second.
    pub cpu_time_ns: Option<u64>,
    /// CPU limit in percent of one core.
    pub cpu_limit_percent: Option<u64>,
    /// Processes and threads.
    pub tasks: Amount,
    /// Restarts by PID 1 since it was started.
    pub restarts: u32,
    /// When it last became active.
    pub since: Option<Timestamp>,
    /// Seconds since then, while it is up.
    pub uptime_seconds: Option<u64>,
    /// The unit with its processes.
    pub unit: String,
    /// The unit that people start and stop.
    pub handle: String,
    /// Its slice.
    pub slice: String,
    /// Its cgroup.
    pub cgroup: Option<String>,
    /// The Unix user it runs as.
    pub user: Option<String>,
    /// Its main process.
    pub pid: Option<u32>,
    /// Names this start in the journal and in audit records.
    pub invocation: Option<String>,
    /// Whether it runs a `flock-agent` that an upgrade has replaced since.
    pub outdated: bool,
    /// Where it may connect to: `bus`, `host:port`, or `unrestricted`.
    pub egress: Vec<String>,
    /// What the configuration loosens, one line each.
    pub loosened: Vec<String>,
    /// What does not fit, and what to do.
    pub warnings: Vec<String>,
    /// How it last ended.
    pub last_end: Option<Ending>,
}

/// How much there is, and how much there may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// In use.
    pub used: Option<u64>,
    /// The limit.
    pub max: Option<u64>,
}

/// What a report is made of.
pub struct Sources<'a> {
    /// The configuration, unless the caller may not read it.
    pub config: Option<&'a Config>,
    /// Why the configuration was not read.
    pub unread: Option<&'a str>,
    /// What PID 1 and the records say.
    pub seen: &'a BTreeMap<AgentId, Seen>,
    /// The agents that `flock.target` starts.
    pub enabled: &'a BTreeSet<AgentId>,
    /// What flockd says, or why it says nothing.
    pub view: Result<&'a View, &'a str>,
    /// Controllers that this host lacks.
    pub missing_controllers: &'a [&'static str],
    /// Agents with a limit on disk that nothing holds, and why.
    pub unheld: &'a BTreeMap<AgentId, String>,
    /// When the installed `flock-agent` was put in its place.
    pub program_since: Option<Timestamp>,
    /// The moment.
    pub now: Timestamp,
}

/// Makes the report.
#[must_use]
pub fn report(sources: &Sources<'_>) -> Report {
    let daemon = sources.view.ok().map(|view| Daemon {
        version: view.version.clone(),
        since: view.since,
        bus: view.bus.ok,
        egress: view.egress.ok,
    });
    let agents = sources.seen.iter().map(|(id, seen)| agent(sources, id, seen)).collect();
    let tasks = sources.view.ok().and_then(|view| view.tasks);
    Report { format: FORMAT, flockd: daemon, tasks, warnings: warnings(sources), agents }
}

/// What concerns all agents.
fn warnings(sources: &Sources<'_>) -> Vec<String> {
    let mut lines = Vec::new();
    match sources.view {
        Err(why) => lines.push(format!("health unknown: {why}")),
        Ok(view) => {
            let parts = [
                ("the bus", &view.bus),
                ("egress", &view.egress),
                ("systemd", &view.systemd),
                ("the configuration", &view.config),
                ("the history of tasks", &view.history),
            ];
            for (name, part) in parts.into_iter().filter(|(_, part)| !part.ok) {
                lines.push(format!("{name}: {}", part.note.as_deref().unwrap_or("not in order")));
            }
            match view.asks {
                0 => {}
                1 => lines.push("1 call of a tool waits for you: flockctl asks".to_owned()),
                n => lines.push(format!("{n} calls of tools wait for you: flockctl asks")),
            }
        }
    }
    if let Some(fault) = sources.unread {
        lines.push(format!("levels and loosened settings are not known: {fault}"));
    }
    if !sources.missing_controllers.is_empty() {
        let names = sources.missing_controllers.join(", ");
        lines.push(format!("this host does not enforce limits of: {names} (no cgroup controller)"));
    }
    lines
}

fn agent(sources: &Sources<'_>, id: &AgentId, seen: &Seen) -> Agent {
    let Verdict { state, reason, warning } = judge(seen);
    let nothing = Facts::default();
    let facts = seen.unit.as_ref().map_or(&nothing, |(_, facts)| facts);
    let config = sources.config.and_then(|config| config.agents.get(id));
    let up = state.is_up();
    let level = level(facts, config);
    let since = stamp(facts.active_since_usec);
    let age = |at: Timestamp| u64::try_from(sources.now.as_second() - at.as_second()).ok();
    let outdated = up && is_outdated(sources, config, since);
    let mut warnings: Vec<String> = warning.into_iter().collect();
    warnings.extend(oddities(sources, id, config, level, up));
    warnings.extend(boundary(sources, id).filter(|_| up));
    warnings.extend(sources.unheld.get(id).map(|why| format!("nothing holds it to {why}")));
    warnings.extend(outdated.then(|| {
        format!(
            "it runs the flock-agent of before an upgrade: flockctl restart {id} when it is idle"
        )
    }));
    Agent {
        agent: id.clone(),
        level: level.map(Level::number),
        boundary: level.map(Level::word),
        state,
        reason,
        enabled: sources.enabled.contains(id),
        configured: config.is_some(),
        health: if up { Health::of(id, sources.view.ok(), sources.now) } else { Health::UNKNOWN },
        memory: Amount { used: facts.usage.memory.filter(|_| up), max: facts.usage.memory_max },
        memory_peak: facts.usage.memory_peak,
        cpu_time_ns: facts.usage.cpu_nsec,
        cpu_limit_percent: facts.usage.cpu_quota_usec.map(|usec| usec / 10_000),
        tasks: Amount { used: facts.usage.tasks.filter(|_| up), max: facts.usage.tasks_max },
        // The unit of one that gave up is gone; how often it was started again is on record.
        restarts: match &seen.last {
            Some(end) if !up => facts.restarts.max(end.restarts),
            _ => facts.restarts,
        },
        since,
        uptime_seconds: since.filter(|_| up).and_then(age),
        unit: id.agent_unit(),
        handle: id.handle_unit(),
        slice: id.slice(),
        cgroup: text(&facts.cgroup),
        user: text(&facts.user),
        pid: (facts.main_pid != 0).then_some(facts.main_pid),
        invocation: text(&facts.invocation),
        outdated,
        egress: config.map(egress).unwrap_or_default(),
        loosened: loosened(sources, config),
        warnings,
        last_end: seen.last.clone(),
    }
}

/// What an operator should know of this agent although its state looks fine.
fn oddities(
    sources: &Sources<'_>,
    id: &AgentId,
    config: Option<&AgentConfig>,
    level: Option<Level>,
    up: bool,
) -> Vec<String> {
    let mut lines = Vec::new();
    if sources.config.is_some() && config.is_none() {
        lines.push("it is not in the configuration (any more)".to_owned());
    }
    if let (Some(config), Some(level), true) = (config, level, up)
        && config.level != level
    {
        let (is, wanted) = (level.number(), config.level.number());
        lines.push(format!(
            "it runs at level {is} and is configured for level {wanted}: flockctl restart {id}"
        ));
    }
    lines
}

/// What the last measurement found that should not be.
fn boundary(sources: &Sources<'_>, id: &AgentId) -> Option<String> {
    let standing = sources.view.ok()?.boundary.get(id)?;
    let first = standing.violations.first()?;
    let more = match standing.violations.len() {
        1 => String::new(),
        n => format!(" and {} more", n - 1),
    };
    let done = standing.done.as_deref().map(|done| format!("; {done}")).unwrap_or_default();
    Some(format!("its boundary does not hold: {first}{more}{done}: flockctl verify {id}"))
}

/// Goes by time: which file a process was started from is root's alone to read. A clock that was
/// set wrong at the start of the agent makes this wrong as well, and nothing else.
fn is_outdated(
    sources: &Sources<'_>,
    config: Option<&AgentConfig>,
    since: Option<Timestamp>,
) -> bool {
    let ours = config.is_some_and(|config| config.mode != Mode::Service);
    ours && matches!((since, sources.program_since), (Some(start), Some(file)) if start < file)
}

/// The level it runs at says more than the one that was configured since.
fn level(facts: &Facts, config: Option<&AgentConfig>) -> Option<Level> {
    match facts.user.as_str() {
        "" => config.map(|config| config.level),
        WORKSPACE_USER => Some(Level::Workspace),
        _ => Some(Level::Process),
    }
}

fn loosened(sources: &Sources<'_>, config: Option<&AgentConfig>) -> Vec<String> {
    match (sources.config, config) {
        (Some(_), Some(agent)) => plan::loosened(agent),
        _ => Vec::new(),
    }
}

fn egress(config: &AgentConfig) -> Vec<String> {
    match &config.egress {
        Egress::Bus => vec!["bus".to_owned()],
        Egress::Unrestricted => vec!["unrestricted".to_owned()],
        Egress::Hosts(hosts) => {
            let named = hosts.iter().map(|host| format!("{}:{}", host.host, host.port));
            ["bus".to_owned()].into_iter().chain(named).collect()
        }
    }
}

fn stamp(usec: u64) -> Option<Timestamp> {
    Timestamp::from_microsecond(i64::try_from(usec).ok().filter(|usec| *usec > 0)?).ok()
}

fn text(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}
