//! Starts one agent, or leaves nothing.
//!
//! All that protects stands before the agent's first instruction: what `apply` makes is checked,
//! the egress table is read back, and the host is asked whether it enforces what the unit says.
//! After the start the kernel is asked about the process itself; what does not hold ends it.

use crate::config::{Config, Egress};
use crate::fail::{self, Point};
use crate::host::cgroup;
use crate::host::landlock::{self, REMEDY};
use crate::host::quota::{self, QuotaError};
use crate::host::units::readback::{self, Measured};
use crate::host::units::{Systemd, UnitError, UnitFacts};
use crate::names::AgentId;
use crate::plan::{Plan, Property};
use crate::status::{self, Ending, Records};
use crate::steps::apply::{self, ApplyError};
use crate::steps::enforced::{self, NotEnforced};
use crate::steps::fence::{self, FenceError, Opening};
use crate::steps::lock::{Lock, LockError};

/// Why an agent was not started. Nothing of it runs then.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// No such agent.
    #[error("launch {id}: no agent of this name is configured; there are: {known}")]
    Unknown {
        /// The name that was asked for.
        id: AgentId,
        /// Those that exist.
        known: String,
    },
    /// The lock.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// What `apply` makes is not in place and could not be made.
    #[error("launch {0}: prepare it: {1}")]
    Apply(AgentId, #[source] ApplyError),
    /// The egress table.
    #[error("launch {0}: close its network: {1}")]
    Fence(AgentId, #[source] FenceError),
    /// The host cannot enforce a limit.
    #[error(
        "launch {id}: this host has no cgroup v2 controller for {limits}: boot with unified cgroups \
         (systemd.unified_cgroup_hierarchy=1), or accept it with unenforced-limits = \"allow\" under \
         [host] in /etc/flock/flock.toml"
    )]
    Limits {
        /// The agent.
        id: AgentId,
        /// In the words of the configuration.
        limits: String,
    },
    /// A file system does not hold it to a limit.
    #[error(
        "launch {0}: {1}; or accept it with unenforced-limits = \"allow\" under [host] in \
         /etc/flock/flock.toml"
    )]
    Disk(AgentId, #[source] QuotaError),
    /// The host cannot hold the command to its tool rules.
    #[error("launch {0}: it has tool rules and this kernel has no Landlock: {REMEDY}")]
    Landlock(AgentId),
    /// The host cannot enforce the second wall around the network.
    #[error("launch {0}: {1}")]
    Host(AgentId, #[source] NotEnforced),
    /// PID 1.
    #[error("launch {0}: {1}")]
    Unit(AgentId, #[source] UnitError),
    /// The process could not be started: the words of PID 1.
    #[error("launch {id}: {reason}")]
    Ended {
        /// The agent.
        id: AgentId,
        /// Why.
        reason: String,
    },
    /// The measurement before the start: nothing of the agent has run.
    #[error(
        "launch {id}: not started, because its boundary did not hold when it was measured: {}: \
         flockctl verify {id} shows more", .broken.join("; ")
    )]
    Measured {
        /// The agent.
        id: AgentId,
        /// What did not hold, or could not be measured.
        broken: Vec<String>,
    },
    /// It ran, and a protection did not hold. It was stopped.
    #[error("launch {id}: stopped, because its boundary did not hold: {}", .broken.join("; "))]
    Broken {
        /// The agent.
        id: AgentId,
        /// Each protection, and what was found instead.
        broken: Vec<String>,
    },
}

/// An agent that runs behind a boundary that was read back.
pub struct Launched {
    /// Its plan.
    pub plan: Plan,
    /// What was found.
    pub measured: Measured,
    /// It ran already; nothing was changed.
    pub adopted: bool,
    /// What the operator should know, one line each.
    pub warnings: Vec<String>,
}

/// Starts one agent and measures it. `gate` is asked before the agent's first instruction whether
/// the boundary holds; it says what does not.
///
/// # Errors
/// When anything that protects is missing; the start is undone then.
pub async fn launch(
    config: &Config,
    id: &AgentId,
    gate: impl AsyncFn(&Systemd, &Plan, &[Property]) -> Vec<String>,
) -> Result<Launched, LaunchError> {
    let launched = try_to_launch(config, id, gate).await;
    if let Err(error) = &launched
        && config.agents.contains_key(id)
    {
        // The reason is on standard error as well; a record that cannot be written loses nothing.
        let _ = Records::default().save(id, &Ending::refused(error.to_string()));
    }
    launched
}

async fn try_to_launch(
    config: &Config,
    id: &AgentId,
    gate: impl AsyncFn(&Systemd, &Plan, &[Property]) -> Vec<String>,
) -> Result<Launched, LaunchError> {
    if !config.agents.contains_key(id) {
        let known: Vec<_> = config.agents.keys().map(AgentId::as_str).collect();
        return Err(LaunchError::Unknown { id: id.clone(), known: known.join(", ") });
    }
    let _lock = Lock::agent(id)?;
    fail::at(Point::LaunchLocked);
    // What an earlier start came to says nothing of this one, also when this one is broken off.
    let _ = Records::default().forgive(id);
    fail::at(Point::LaunchForgiven);
    let mut plan =
        apply::ensure(config, id).await.map_err(|e| LaunchError::Apply(id.clone(), e))?;
    fail::at(Point::LaunchPrepared);
    let systemd = Systemd::connect().await.map_err(|e| LaunchError::Unit(id.clone(), e))?;
    host_enforces(config, &systemd, &plan).await?;
    fail::at(Point::LaunchHostChecked);
    let opened = fence::open(config, &plan).await.map_err(|e| LaunchError::Fence(id.clone(), e))?;
    fail::at(Point::LaunchFenceOpened);
    let hosts = opened.hosts_file();
    apply::set_hosts(&mut plan, hosts).await.map_err(|e| LaunchError::Apply(id.clone(), e))?;
    fail::at(Point::LaunchHostsWritten);
    let properties = properties(&plan, &opened);
    let started = match measure(&systemd, &plan, &properties, gate).await {
        Ok(()) => start(config, &systemd, &plan, &properties).await,
        Err(error) => Err(error),
    };
    if started.is_err() {
        undo(&systemd, &plan).await;
    }
    let (measured, adopted) = started?;
    let mut warnings = plan.loosened.clone();
    warnings.extend(opened.unresolved());
    Ok(Launched { plan, measured, adopted, warnings })
}

/// The properties of the unit: the plan's, and the addresses that its exceptions have now.
#[must_use]
pub fn properties(plan: &Plan, opened: &Opening) -> Vec<Property> {
    let mut properties = plan.unit.properties.clone();
    properties.extend(opened.allow_property());
    properties
}

/// Before the first instruction. One that runs already is not kept from running by a measurement
/// that came too late; flockd measures those.
async fn measure(
    systemd: &Systemd,
    plan: &Plan,
    properties: &[Property],
    gate: impl AsyncFn(&Systemd, &Plan, &[Property]) -> Vec<String>,
) -> Result<(), LaunchError> {
    let id = &plan.agent;
    let facts = systemd.facts(&plan.unit.name).await;
    if runs(&facts.map_err(|e| LaunchError::Unit(id.clone(), e))?) {
        return Ok(());
    }
    match gate(systemd, plan, properties).await {
        broken if broken.is_empty() => Ok(()),
        broken => Err(LaunchError::Measured { id: id.clone(), broken }),
    }
}

/// What the unit will ask of the kernel has to be there before anything runs.
async fn host_enforces(config: &Config, systemd: &Systemd, plan: &Plan) -> Result<(), LaunchError> {
    let id = &plan.agent;
    let missing = cgroup::unenforced_limits();
    // The weight of input and output is a share, not a ceiling; not every kernel has it.
    let missing: Vec<_> = missing.into_iter().filter(|limit| *limit != "io-weight").collect();
    if !missing.is_empty() && !config.host.allow_unenforced_limits {
        return Err(LaunchError::Limits { id: id.clone(), limits: missing.join(", ") });
    }
    if !config.host.allow_unenforced_limits {
        quota::enforced(plan).map_err(|e| LaunchError::Disk(id.clone(), e))?;
    }
    if plan.tools.is_some() && !landlock::is_there() {
        return Err(LaunchError::Landlock(id.clone()));
    }
    if plan.egress == Egress::Unrestricted {
        return Ok(());
    }
    enforced::egress_filter(systemd).await.map_err(|e| LaunchError::Host(id.clone(), e))
}

/// Starts the unit, or finds that it runs; then asks the kernel.
async fn start(
    config: &Config,
    systemd: &Systemd,
    plan: &Plan,
    properties: &[Property],
) -> Result<(Measured, bool), LaunchError> {
    let id = &plan.agent;
    let unit = |e| LaunchError::Unit(id.clone(), e);
    let adopted = !start_unit(systemd, plan, properties).await?;
    let facts = systemd.facts(&plan.unit.name).await.map_err(unit)?;
    let mut measured = match facts.number("MainPID") {
        Some(pid) if pid != 0 => readback::measure(plan, pid, &facts.text("ControlGroup")),
        _ => Measured { ended: true, ..Measured::default() },
    };
    for name in facts.differences(&sent(systemd, plan)) {
        let files = facts.texts("DropInPaths").join(" ");
        measured.broken.push(format!("{name} is not what flock set; drop-in files: {files}"));
    }
    if !config.host.allow_unenforced_limits && !measured.unenforced.is_empty() {
        measured.broken.push(format!("no limit for {}", measured.unenforced.join(", ")));
    }
    if measured.broken.is_empty() {
        fail::at(Point::LaunchMeasured);
        Ok((measured, adopted))
    } else {
        Err(LaunchError::Broken { id: id.clone(), broken: measured.broken })
    }
}

/// The properties whose change would weaken the boundary, as this systemd was given them.
pub fn sent(systemd: &Systemd, plan: &Plan) -> Vec<Property> {
    // An operator may tune these with a drop-in file; they protect nobody from the agent.
    const FREE: [&str; 4] = ["Description", "TimeoutStopUSec", "IOWeight", "OOMScoreAdjust"];
    let of = |p: &&Property| p.is_for(systemd.version()) && !FREE.contains(&p.name);
    plan.unit.properties.iter().filter(of).cloned().collect()
}

/// `false`: the agent ran already and was left alone.
async fn start_unit(
    systemd: &Systemd,
    plan: &Plan,
    properties: &[Property],
) -> Result<bool, LaunchError> {
    let (id, name) = (&plan.agent, &plan.unit.name);
    let unit = |e| LaunchError::Unit(id.clone(), e);
    for _ in 0..2 {
        match systemd.start_transient(name, properties).await {
            Ok(()) => return Ok(true),
            Err(UnitError::Exists(_)) => {
                let facts = systemd.facts(name).await.map_err(unit)?;
                if runs(&facts) {
                    return Ok(false);
                }
                // What is left of an earlier run: exited, failed, or on its way out.
                systemd.stop(name).await.map_err(unit)?;
                systemd.reset_failed(name).await.map_err(unit)?;
            }
            Err(UnitError::Job { .. }) => {
                let facts = status::systemd::facts(systemd, id).await.map_err(unit)?;
                let why = status::reason::reason(&facts);
                let reason = format!("{why}; its program is {}", plan.unit.program());
                return Err(LaunchError::Ended { id: id.clone(), reason });
            }
            Err(error) => return Err(unit(error)),
        }
    }
    let facts = systemd.facts(name).await.map_err(unit)?;
    let holders = facts.texts("ReferencedBy").join(" ");
    let cause = format!("{name} stays loaded; units that refer to it: {holders}");
    Err(LaunchError::Ended { id: id.clone(), reason: cause })
}

/// Running, or waiting for its next start.
fn runs(facts: &UnitFacts) -> bool {
    match facts.text("ActiveState").as_str() {
        "active" => facts.text("SubState") != "exited",
        "activating" | "reloading" => true,
        _ => false,
    }
}

/// In reverse, and never stopping at the first error: the launch has failed already.
async fn undo(systemd: &Systemd, plan: &Plan) {
    let _ = systemd.stop(&plan.unit.name).await;
    let _ = systemd.reset_failed(&plan.unit.name).await;
    let _ = systemd.stop(&plan.unit.slice).await;
    let _ = fence::close(&plan.agent).await;
}
