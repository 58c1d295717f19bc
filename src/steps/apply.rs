//! Everything that must exist before an agent can start, for all agents in one batch.
//!
//! Each part reads first and writes only what differs, so that a second run changes nothing.

use std::path::PathBuf;

use crate::bus;
use crate::bus::identity;
use crate::bus::server_conf;
use crate::config::Config;
use crate::fail::{self, Point};
use crate::host::files::{Dir, FilesError};
use crate::host::units::{Systemd, UnitError};
use crate::host::users::{self, Ledger, UsersError};
use crate::host::{quota, root, tree};
use crate::names::{
    AgentId, Level, RUN_DIR, STATE_DIR, WORKSPACE_USER, bus_dir, identity_dir, shared_dir,
};
use crate::plan::{self, Plan, UserPlan};
use crate::status::{RecordError, Records};
use crate::steps::bus_files::{self, BusFiles};
pub use crate::steps::bus_files::{members, settings, talk};
use crate::steps::fence::{self, FenceError};
use crate::steps::lock::{Lock, LockError};

/// The daemon, which has to learn of new agents.
const DAEMON_UNIT: &str = "flockd.service";
/// The unit of the message bus.
const BUS_UNIT: &str = "flock-bus.service";

/// Why the machine could not be made as configured. What was done before stays, and is right.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The lock.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Unix users.
    #[error(transparent)]
    Users(#[from] UsersError),
    /// The shared tree.
    #[error(transparent)]
    Tree(#[from] tree::TreeError),
    /// What agents may keep on disk.
    #[error(transparent)]
    Quota(#[from] quota::QuotaError),
    /// The agents' roots.
    #[error(transparent)]
    Root(#[from] root::RootError),
    /// A directory of flock's own.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// Bus identities.
    #[error(transparent)]
    Identity(#[from] identity::Error),
    /// The bus's configuration.
    #[error(transparent)]
    ServerConf(#[from] server_conf::Error),
    /// The bus's program.
    #[error(transparent)]
    Server(#[from] bus::version::Error),
    /// The egress table.
    #[error(transparent)]
    Fence(#[from] FenceError),
    /// What is known of agents' ends.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// PID 1.
    #[error(transparent)]
    Unit(#[from] UnitError),
}

/// What a run of `apply` found and did, one line each for people.
#[derive(Debug, Default)]
pub struct Applied {
    /// The configuration that was applied, when it is not the one that was given: the files were
    /// changed while it waited for its turn.
    pub newer: Option<Config>,
    /// What was changed; empty when everything stood as configured.
    pub changes: Vec<String>,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// Makes the machine as configured: users, tree, roots, identities, bus, egress, handles. What the
/// files say by now counts: who made the change may have applied it before, and what is not configured
/// is taken away.
///
/// # Errors
/// At the first part that cannot be made. A later run goes on from there.
pub async fn apply(config: &Config) -> Result<Applied, ApplyError> {
    let systemd = Systemd::connect().await?;
    let mut done = Applied::default();
    let lock = Lock::machine().await?;
    let newer = config.newer();
    let config = newer.as_ref().unwrap_or(config);
    sweep(&mut done)?;
    let plans = plans(config)?;
    let accounts: Vec<UserPlan> = unix_users(&plans);
    for name in users::ensure(&accounts)? {
        done.changes.push(format!("made the user {name}"));
    }
    done.changes.extend(tree::ensure(&plans)?);
    let quotas = quota::ensure(&plans)?;
    done.changes.extend(quotas.changed);
    done.warnings.extend(quotas.unenforced);
    for plan in &plans {
        if !root::ensure(plan)?.is_empty() {
            done.changes.push(format!("made the root of {}", plan.agent));
        }
    }
    let newcomers: Vec<AgentId> =
        plans.iter().map(|p| p.agent.clone()).filter(|id| !id.identity_file().exists()).collect();
    // Before their identities, which are what tells a newcomer: broken off in between, the next
    // run still finds them to be new.
    enable(&systemd, &newcomers, &mut done).await?;
    let bus = bus_files::prepare(config, &mut done)?;
    done.changes.extend(fence::load_locked(Some(config)).await?);
    retire(&systemd, &bus, config, &mut done).await?;
    forget_quotas(&systemd, &plans, &mut done).await?;
    // From here on PID 1 is waited for. A job of the bus waits for the stop of any agent, and that
    // for this lock.
    drop(lock);
    fail::at(Point::ApplyUnlocked);
    if let Some(who) = &bus.pending {
        tell_bus(&systemd, config, &mut done).await?;
        bus_files::settled(who).await?;
    }
    name_strays(&systemd, config, &mut done).await?;
    done.newer = newer;
    Ok(done)
}

/// The same, and flockd learns of it when something changed.
///
/// # Errors
/// As [`apply`]; a flockd that cannot be told is a warning.
pub async fn apply_and_tell(config: &Config) -> Result<Applied, ApplyError> {
    let mut done = apply(config).await?;
    if !done.changes.is_empty()
        && let Err(error) = Systemd::connect().await?.reload_if_active(DAEMON_UNIT).await
    {
        done.warnings.push(error.to_string());
    }
    Ok(done)
}

/// Every agent's plan; the user ids that are new are recorded first.
fn plans(config: &Config) -> Result<Vec<Plan>, ApplyError> {
    let mut ledger = Ledger::load()?;
    for (id, agent) in &config.agents {
        if agent.level >= Level::Process {
            ledger.assign(config.host.uid_block, id)?;
        }
    }
    ledger.store()?;
    let mut plans = Vec::new();
    for id in config.agents.keys() {
        let mut plan = plan::plan(config, ledger.uids(), id);
        if let Some(plan) = &mut plan {
            // With a damaged record nothing is open, as `load_locked` will have it.
            with_hosts(plan, fence::opening(id).unwrap_or_default().hosts_file());
        }
        plans.extend(plan);
    }
    Ok(plans)
}

/// The users of the plans; all agents of level 0 share one.
fn unix_users(plans: &[Plan]) -> Vec<UserPlan> {
    let mut users: Vec<UserPlan> = plans.iter().map(|plan| plan.user.clone()).collect();
    users.dedup_by(|a, b| a.name == WORKSPACE_USER && a == b);
    users.sort_by(|a, b| a.name.cmp(&b.name));
    users.dedup();
    users
}

/// Enables the handles of agents that are seen for the first time.
async fn enable(
    systemd: &Systemd,
    newcomers: &[AgentId],
    done: &mut Applied,
) -> Result<(), ApplyError> {
    let handles: Vec<String> = newcomers.iter().map(AgentId::handle_unit).collect();
    if !handles.is_empty() {
        systemd.enable(&handles).await?;
        done.changes.extend(handles.iter().map(|unit| format!("enabled {unit}")));
    }
    Ok(())
}

/// Has the bus read its files. One that does not run reads them when it starts.
async fn tell_bus(
    systemd: &Systemd,
    config: &Config,
    done: &mut Applied,
) -> Result<(), ApplyError> {
    let server = systemd.facts(BUS_UNIT).await?;
    let told = match bus_files::needs_restart(config, &server)? {
        true => systemd.restart(BUS_UNIT).await,
        false => systemd.reload_or_restart(BUS_UNIT).await,
    };
    if let Err(error) = told {
        if systemd.facts(BUS_UNIT).await?.number("MainPID") != Some(0) {
            return Err(error.into());
        }
        done.warnings.push(format!("{error}: no agent is on the bus until it runs"));
        return Ok(());
    }
    fail::at(Point::BusTold);
    bus_files::make_streams(config, done).await;
    Ok(())
}

/// Takes away what agents have that are configured no more. Their identities go last: as long as
/// one is there, a later run knows that this is not done.
async fn retire(
    systemd: &Systemd,
    bus: &BusFiles,
    config: &Config,
    done: &mut Applied,
) -> Result<(), ApplyError> {
    // Enabled, the handle of an agent that is no more would fail at every boot.
    let handles: Vec<String> = bus.retired.iter().map(AgentId::handle_unit).collect();
    if !handles.is_empty() {
        systemd.disable(&handles).await?;
    }
    let ids: Vec<AgentId> = config.agents.keys().cloned().collect();
    // Of an agent that has just been stopped flockd may write the record after this; the next run
    // removes it.
    Records::default().forget_others(&ids)?;
    for id in identity::retire(&identity_dir(), &ids)? {
        done.changes.push(format!("{id} is not configured any more: its bus identity is gone"));
    }
    if !handles.is_empty() {
        fail::at(Point::IdentitiesRetired);
    }
    Ok(())
}

/// Takes away the quotas of users that no agent is any more. What still runs as one keeps it.
async fn forget_quotas(
    systemd: &Systemd,
    plans: &[Plan],
    done: &mut Applied,
) -> Result<(), ApplyError> {
    let ledger = Ledger::load()?;
    let is_used = |uid: u32| plans.iter().any(|plan| plan.user.uid == uid);
    let gone = ledger.uids().iter().map(|(id, uid)| (id, *uid)).filter(|(_, uid)| !is_used(*uid));
    let held = quota::held(gone)?;
    if held.is_empty() {
        return Ok(());
    }
    let runs = |state: &str| !matches!(state, "inactive" | "failed");
    let units = systemd.list("flock-agent@*.service").await?;
    for (id, uid) in held {
        let unit = id.agent_unit();
        if !units.iter().any(|(name, state)| *name == unit && runs(state)) {
            quota::clear(&id, uid)?;
            done.changes.push(format!("{} has no quota any more", id.user_name()));
        }
    }
    Ok(())
}

/// Names what runs without being configured.
async fn name_strays(
    systemd: &Systemd,
    config: &Config,
    done: &mut Applied,
) -> Result<(), ApplyError> {
    for (unit, state) in systemd.list("flock-agent@*.service").await? {
        let stray = AgentId::from_agent_unit(&unit).filter(|id| !config.agents.contains_key(id));
        if let (Some(id), "active" | "activating") = (stray, state.as_str()) {
            done.warnings.push(format!(
                "{id} runs and is not configured any more: systemctl disable --now {}",
                id.handle_unit()
            ));
        }
    }
    Ok(())
}

/// Removes the files that a run left half written which was broken off.
fn sweep(done: &mut Applied) -> Result<(), ApplyError> {
    let places = [STATE_DIR.into(), RUN_DIR.into(), shared_dir().join("logs"), bus_dir()];
    for place in places {
        let Some(dir) = Dir::open_if_there(&place)? else { continue };
        for name in dir.sweep()? {
            done.changes.push(format!("removed {}, half written", place.join(name).display()));
        }
    }
    Ok(())
}

/// The plan of one agent on a machine that is ready for it. What is missing is made, for all.
///
/// # Errors
/// When it cannot be made.
pub async fn ensure(config: &Config, id: &AgentId) -> Result<Plan, ApplyError> {
    if let Some(plan) = ready(config, id)? {
        return Ok(plan);
    }
    let applied = apply_and_tell(config).await?;
    let ledger = Ledger::load()?;
    let plan = plan::plan(applied.newer.as_ref().unwrap_or(config), ledger.uids(), id);
    let plan = plan.ok_or_else(|| UsersError::Absent { name: id.user_name() })?;
    check(&plan)?;
    Ok(plan)
}

/// The plan of one agent on a machine that is ready for it; `None`: something that `apply` makes is
/// not there. Changes nothing.
///
/// # Errors
/// When flock's records cannot be read.
pub fn ready(config: &Config, id: &AgentId) -> Result<Option<Plan>, ApplyError> {
    let ledger = Ledger::load()?;
    let Some(mut plan) = plan::plan(config, ledger.uids(), id) else { return Ok(None) };
    with_hosts(&mut plan, fence::opening(id)?.hosts_file());
    // An identity that others could read is no secret any more: refused here too.
    let identity = identity::read(&identity_dir(), std::slice::from_ref(id))?;
    let on_the_bus = identity.is_some() && !bus_files::is_pending();
    let ready = on_the_bus && check(&plan).is_ok();
    Ok(ready.then_some(plan))
}

fn check(plan: &Plan) -> Result<(), ApplyError> {
    users::check(&plan.user)?;
    tree::check(plan)?;
    quota::check(plan)?;
    Ok(root::check(plan)?)
}

pub(super) fn with_hosts(plan: &mut Plan, text: String) {
    plan.root.files.insert(PathBuf::from("etc/hosts"), text);
}

/// Puts the addresses of the agent's exceptions where it finds them by name.
///
/// # Errors
/// When its root cannot be written.
pub async fn set_hosts(plan: &mut Plan, text: String) -> Result<(), ApplyError> {
    with_hosts(plan, text);
    if root::check(plan).is_err() {
        // An apply that runs meanwhile would take a file for nobody's that is half written.
        let _lock = Lock::machine().await?;
        root::ensure(plan)?;
    }
    Ok(())
}
