//! One run, from the first canary to the last.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt as _};
use jiff::Timestamp;

use super::matrix::{
    Cell, Controls, Evidence, Matrix, Measured, Reported, Trace, cells, inventories,
};
use super::scene::{Actor, order};
use super::stage::{self, Stage};
use super::verdict::Verdict;
use super::{VerifyError, approved, machine, probes};
use crate::bus::hub::Hub;
use crate::bus::{identity, subject};
use crate::config::Config;
use crate::host::cgroup;
use crate::host::units::{Systemd, UnitFacts};
use crate::names::{AgentId, Level, identity_dir};
use crate::plan::{self, Plan, Property};
use crate::probe::wire::Outcome;
use crate::steps::lock::Lock;
use crate::steps::{apply, fence, launch};

/// So many probes run at the same time for each processor.
const FOR_EACH_CPU: usize = 3;
/// Between the starts of two probes: to set up many sandboxes at once would be felt by all others.
const PAUSE: Duration = Duration::from_millis(150);
/// The least priority, see nice(2).
const LEAST: i32 = 19;
/// The user without any rights.
pub(super) const NOBODY: u32 = 65_534;

/// Why nothing is known of streams.
const NO_BUS: &str = "the bus did not answer";
/// What `apply` makes for it is not as it should be.
const UNPREPARED: &str = "it is not prepared: flockctl apply";

/// Measures these agents against each other and against the host.
///
/// # Errors
/// When nothing can be measured at all. What fails for one agent stands in its row.
pub async fn verify(
    config: &Config,
    agents: &[AgentId],
    all_levels: bool,
) -> Result<Matrix, VerifyError> {
    let (began, clock) = (Timestamp::now().to_string(), Instant::now());
    // Agents and their neighbours come first. The probes without a sandbox inherit it; who may not
    // give way may go on as well.
    let _ = rustix::process::nice(LEAST);
    let _lock = Lock::verify()?;
    // Whoever held the lock before us is gone.
    stage::sweep(&[]);
    let systemd = Systemd::connect().await.map_err(VerifyError::Unit)?;
    let mut measured = Vec::new();
    let mut plans = Vec::new();
    {
        // Not in the middle of an apply.
        let _machine = Lock::machine().await?;
        for id in agents {
            match apply::ready(config, id) {
                Ok(Some(plan)) => plans.push(plan),
                Ok(None) => measured.push(unmeasured(config, id, UNPREPARED)),
                Err(error) => measured.push(unmeasured(config, id, &error.to_string())),
            }
        }
    }
    measured.extend(staged(config, &systemd, &plans).await?);
    measured.sort_by(|a, b| a.agent.cmp(&b.agent));
    let mut lower = Vec::new();
    for level in Level::ALL.into_iter().filter(|_| all_levels) {
        let plans: Vec<Plan> =
            plans.iter().filter_map(|plan| plan::lowered(config, plan, level)).collect();
        lower.extend(staged(config, &systemd, &plans).await?);
    }
    lower.sort_by(|a, b| (a.level, &a.agent).cmp(&(b.level, &b.agent)));
    let millis = u64::try_from(clock.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(Matrix { began, millis, agents: measured, lower })
}

/// With everything that is attacked made before and removed after.
async fn staged(
    config: &Config,
    systemd: &Systemd,
    plans: &[Plan],
) -> Result<Vec<Measured>, VerifyError> {
    if plans.is_empty() {
        return Ok(Vec::new());
    }
    let mut stage = Stage::make(systemd, plans).await?;
    let found = measure(config, systemd, &mut stage, plans).await;
    stage.clear();
    found
}

fn unmeasured(config: &Config, id: &AgentId, fault: &str) -> Measured {
    let level = config.agents.get(id).map_or(Level::Workspace, |a| a.level);
    Measured { fault: Some(fault.to_owned()), ..Measured::new(id, level, false) }
}

/// What was found of one agent.
struct Found<'a> {
    plan: &'a Plan,
    agent: Option<UnitFacts>,
    probe: Option<UnitFacts>,
    sandbox: Reported,
    user: Reported,
}

impl Found<'_> {
    /// Whether one of its probes says that it signalled a process of this user.
    fn has_signalled(&self, stage: &Stage, uid: u32) -> bool {
        let of_user = |target: &str| {
            stage.scene.targets.iter().any(|t| t.uid == uid && t.id.as_str() == target)
        };
        [&self.sandbox, &self.user].into_iter().flatten().flatten().any(|finding| {
            finding.check == "proc.signal"
                && finding.outcome == Outcome::Done
                && of_user(&finding.target)
        })
    }
}

async fn measure(
    config: &Config,
    systemd: &Systemd,
    stage: &mut Stage,
    plans: &[Plan],
) -> Result<Vec<Measured>, VerifyError> {
    let operator = operator();
    let set = &*stage;
    let control = |who, uid, environment| async move {
        let order = order(&set.scene, Actor::Control);
        let found = probes::bare(&order, uid, environment).await;
        found.map_err(|cause| VerifyError::Control { who, cause })
    };
    let (root, plain, table) = tokio::join!(
        control("root", 0, &operator[..]),
        control("nobody", NOBODY, &[]),
        fence::check(config),
    );
    let controls = Controls::new(root?, plain?);
    let table = table.map_err(|error| error.to_string());
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let turns = tokio::sync::Mutex::new(());
    let found: Vec<Found<'_>> = stream::iter(plans)
        .map(async |plan| {
            let turn = turns.lock().await;
            let pause = async {
                tokio::time::sleep(PAUSE).await;
                drop(turn);
            };
            tokio::join!(one(systemd, set, plan), pause).0
        })
        .buffer_unordered(cpus * FOR_EACH_CPU)
        .collect()
        .await;
    let results = results(plans).await;
    let traces = set.traces().await;
    let mut signalled = set.signalled();
    signalled.retain(|uid| !found.iter().any(|found| found.has_signalled(set, *uid)));
    let users = plans.iter().map(|p| (p.agent.to_string(), p.user.uid)).collect();
    let spoiled = stage.spoiled();
    let stage = &*stage;
    let judged = Judging {
        config,
        systemd,
        stage,
        controls,
        table,
        results,
        users,
        traces,
        signalled,
        spoiled,
    };
    Ok(found.into_iter().map(|found| judged.one(found)).collect())
}

/// The operator's identity, for the control at the bus. Without one that is not made.
fn operator() -> Vec<(&'static str, String)> {
    let Ok((identity, url)) = identity::operator(&identity_dir()) else { return Vec::new() };
    vec![
        ("NATS_URL", url),
        ("NATS_USER", identity.user().to_owned()),
        ("NATS_PASSWORD", identity.password().to_owned()),
    ]
}

/// Of each agent, which subjects the stream of its results takes; of none without a bus.
async fn results(plans: &[Plan]) -> BTreeMap<AgentId, Result<Vec<String>, String>> {
    let mut found = BTreeMap::new();
    let Ok((identity, url)) = identity::operator(&identity_dir()) else { return found };
    let Ok(hub) = Hub::connect(&identity, &url).await else { return found };
    for plan in plans {
        let taken = hub.taken_by(&subject::result_stream(&plan.agent)).await;
        found.insert(plan.agent.clone(), taken.map_err(|error| error.to_string()));
    }
    found
}

async fn one<'a>(systemd: &Systemd, stage: &Stage, plan: &'a Plan) -> Found<'a> {
    let id = &plan.agent;
    let agent = systemd.facts(&plan.unit.name).await.ok();
    let inside = async {
        let opening = match fence::opening(id) {
            Ok(opening) => opening,
            Err(error) => return (Err(error.to_string()), None),
        };
        let mut properties = launch::properties(plan, &opening);
        properties.push(Property::new("Nice", LEAST));
        let order = order(&stage.scene, Actor::Sandbox(id));
        let unit = id.probe_unit();
        probes::sandboxed(systemd, &order, &stage.folder, &unit, plan, &properties).await
    };
    let outside = order(&stage.scene, Actor::User(id));
    let (user, (sandbox, probe)) = tokio::join!(probes::bare(&outside, plan.user.uid, &[]), inside);
    leave_slice(systemd, plan).await;
    Found { plan, agent, probe, sandbox, user }
}

/// The probe may have brought the agent's slice up. It goes again if nobody is in it: stopping it
/// would stop an agent that was started meanwhile, or that waits for its next start.
async fn leave_slice(systemd: &Systemd, plan: &Plan) {
    let id = plan.agent.clone();
    // Held by each launch until the agent runs.
    let Ok(Ok(_lock)) = tokio::task::spawn_blocking(move || Lock::agent(&id)).await else { return };
    let Ok(agent) = systemd.facts(&plan.unit.name).await else { return };
    if matches!(agent.text("ActiveState").as_str(), "" | "inactive" | "failed") {
        let _ = systemd.stop(&plan.unit.slice).await;
    }
}

struct Judging<'a> {
    config: &'a Config,
    systemd: &'a Systemd,
    stage: &'a Stage,
    controls: Controls,
    table: Result<(), String>,
    results: BTreeMap<AgentId, Result<Vec<String>, String>>,
    users: BTreeMap<String, u32>,
    traces: Vec<Trace>,
    signalled: Vec<u32>,
    spoiled: BTreeSet<(&'static str, String)>,
}

impl Judging<'_> {
    fn one(&self, found: Found<'_>) -> Measured {
        let Found { plan, agent, probe, sandbox, user } = found;
        let tried = [Actor::Sandbox(&plan.agent), Actor::User(&plan.agent)]
            .map(|actor| order(&self.stage.scene, actor).attempts);
        let evidence = Evidence {
            plan,
            tried: [&tried[0], &tried[1]],
            found: [&sandbox, &user],
            users: &self.users,
            controls: &self.controls,
            traces: &self.traces,
            spoiled: &self.spoiled,
            enforced: !self.config.host.allow_unenforced_limits
                || cgroup::unenforced_limits().iter().all(|limit| *limit != "tasks"),
        };
        let lists = inventories(&sandbox);
        let mut all = cells(&evidence);
        self.signals(&mut all);
        all.extend(approved::cells(plan, &lists));
        let taken = self.results.get(&plan.agent).cloned();
        all.push(machine::copied(&plan.agent, taken.unwrap_or_else(|| Err(NO_BUS.to_owned()))));
        let pid = agent.as_ref().and_then(|facts| facts.number("MainPID"));
        let mut measured = Measured::new(&plan.agent, plan.level, pid.is_some_and(|pid| pid != 0));
        let configured = self.config.agents.get(&plan.agent).map(|agent| agent.level);
        if configured != Some(plan.level) {
            // There is no agent to be looked at from outside.
            (measured.lowered, measured.runs) = (true, false);
        } else if let Some(agent) = &agent {
            let accepted = self.config.host.allow_unenforced_limits;
            let table = &self.table;
            all.extend(machine::cells(self.systemd, plan, agent, probe.as_ref(), table, accepted));
        } else {
            measured.fault = Some("PID 1 does not show its unit".to_owned());
        }
        let faults = [("in its sandbox", sandbox), ("as its user", user)];
        let faults =
            faults.into_iter().filter_map(|(place, r)| Some(format!("{place}: {}", r.err()?)));
        let faults: Vec<String> = faults.chain(measured.fault.take()).collect();
        measured.fault = (!faults.is_empty()).then(|| faults.join("; "));
        measured.loosened.clone_from(&plan.loosened);
        measured.inventories = lists;
        measured.cells = all;
        measured
    }

    /// A signal arrived that nobody has reported: no word about signals to that user is believed.
    fn signals(&self, cells: &mut [Cell]) {
        let hit = |target: &String| {
            self.users.get(target).is_some_and(|uid| self.signalled.contains(uid))
        };
        for cell in cells.iter_mut().filter(|c| c.check.id == "proc.signal") {
            if cell.verdict == Verdict::Blocked && cell.targets.iter().any(hit) {
                cell.verdict = Verdict::Unknown;
                cell.evidence =
                    "a signal arrived there, and no probe says that it sent one".to_owned();
            }
        }
    }
}
