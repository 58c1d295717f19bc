//! Everything that must exist before an agent can start, for all agents in one batch.
//!
//! Each part reads first and writes only what differs, so that a second run changes nothing.

use std::path::{Path, PathBuf};

use crate::bus;
use crate::bus::hub::Hub;
use crate::bus::identity;
use crate::bus::server_conf::{self, SERVER_FILE};
use crate::bus::streams::{Delivery, Member};
use crate::bus::talk::Talk;
use crate::config::{AgentConfig, Config, Mode, Sync};
use crate::host::files::{Dir, FilesError};
use crate::host::units::{Systemd, UnitError};
use crate::host::users::{self, Ledger, UsersError};
use crate::host::{root, tree};
use crate::names::{AgentId, BUS_USER, Level, WORKSPACE_USER, bus_dir, identity_dir};
use crate::plan::{self, Plan, UserPlan};
use crate::steps::fence::{self, FenceError};
use crate::steps::lock::{Lock, LockError};

/// The daemon, which has to learn of new agents.
const DAEMON_UNIT: &str = "flockd.service";
/// The unit of the message bus.
const BUS_UNIT: &str = "flock-bus.service";
/// A link beside the bus's configuration that names the server's program, so that no unit file
/// has to change when the operator names another.
const SERVER_LINK: &str = "nats-server";

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
    /// PID 1.
    #[error(transparent)]
    Unit(#[from] UnitError),
}

/// What a run of `apply` found and did, one line each for people.
#[derive(Debug, Default)]
pub struct Applied {
    /// What was changed; empty when everything stood as configured.
    pub changes: Vec<String>,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// Makes the machine as configured: users, tree, roots, identities, bus, egress, handles.
///
/// # Errors
/// At the first part that cannot be made. A later run goes on from there.
pub async fn apply(config: &Config) -> Result<Applied, ApplyError> {
    let systemd = Systemd::connect().await?;
    let mut done = Applied::default();
    let lock = Lock::machine()?;
    let plans = plans(config)?;
    let accounts: Vec<UserPlan> = unix_users(&plans);
    for name in users::ensure(&accounts)? {
        done.changes.push(format!("made the user {name}"));
    }
    done.changes.extend(tree::ensure(&plans)?);
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
    let bus = prepare_bus(config, &mut done)?;
    if fence::load_locked(Some(config)).await? {
        done.changes.push("loaded the egress table".to_owned());
    }
    // From here on PID 1 is waited for. A job of the bus waits for the stop of any agent, and that
    // for this lock.
    drop(lock);
    tell_systemd(&systemd, &bus, config, &mut done).await?;
    if bus.changed {
        make_streams(config, &mut done).await;
    }
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

/// What happened to the bus's files.
struct BusFiles {
    changed: bool,
    /// Agents that are configured no more.
    retired: Vec<AgentId>,
}

/// Streams and consumers of every agent. A bus that does not answer yet gets them from flockd.
async fn make_streams(config: &Config, done: &mut Applied) {
    let made = async {
        let (identity, url) = identity::operator(&identity_dir()).map_err(|e| e.to_string())?;
        let hub = Hub::connect(&identity, &url).await.map_err(|e| e.to_string())?;
        hub.ensure(&members(config)).await.map_err(|e| e.to_string())
    };
    if let Err(error) = made.await {
        done.warnings.push(format!("{error} (flockd makes the streams when the bus answers)"));
    }
}

/// The agents as the bus knows them.
#[must_use]
pub fn members(config: &Config) -> Vec<Member> {
    let member = |(id, agent): (&AgentId, &AgentConfig)| Member {
        id: id.clone(),
        delivery: match agent.mode {
            Mode::Task | Mode::JsonLines => Delivery::Pull,
            Mode::Service => Delivery::Push,
        },
    };
    config.agents.iter().map(member).collect()
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
            with_hosts(plan, fence::opening(id)?.hosts_file());
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

/// Identities in one batch, the server's files, and the link to its program.
fn prepare_bus(config: &Config, done: &mut Applied) -> Result<BusFiles, ApplyError> {
    let settings = settings(config);
    if let Err(error) = bus::version::check(&settings.server) {
        // Everything else is made all the same; the bus refuses to start, and status says so.
        done.warnings.push(error.to_string());
    }
    let ids: Vec<AgentId> = config.agents.keys().cloned().collect();
    let identities = identity::ensure(&identity_dir(), &ids, &settings.url())?;
    let retired = identity::retire(&identity_dir(), &ids)?;
    for id in &retired {
        done.changes.push(format!("{id} is not configured any more: its bus identity is gone"));
    }
    let group = nix::unistd::Group::from_name(BUS_USER).ok().flatten();
    let gid = group.map(|g| g.gid.as_raw());
    let mut changed = server_conf::write(&bus_dir(), &settings, &identities, &talk(config), gid)?;
    let dir = Dir::open(&bus_dir())?;
    let link = Path::new(SERVER_LINK);
    if dir.read_link(link)? != Some(settings.server.clone()) {
        dir.make_link(link, &settings.server)?;
        changed = true;
    }
    if changed {
        done.changes.push(format!("wrote {}", bus_dir().join(SERVER_FILE).display()));
    }
    Ok(BusFiles { changed, retired })
}

/// Who may talk to whom, in the bus's words.
#[must_use]
pub fn talk(config: &Config) -> Talk {
    let pairs = |(id, agent): (&AgentId, &AgentConfig)| {
        agent.may_request.iter().map(|asked| (id.clone(), asked.clone())).collect::<Vec<_>>()
    };
    Talk {
        channels: config.channels.clone(),
        requests: config.agents.iter().flat_map(pairs).collect(),
        message: config.agents.iter().map(|(id, a)| (id.clone(), a.limits.message)).collect(),
    }
}

/// The bus's part of the configuration, in its own words.
#[must_use]
pub fn settings(config: &Config) -> bus::Settings {
    bus::Settings {
        server: config.bus.server.clone(),
        port: config.bus.port,
        sync: match config.bus.sync {
            Sync::Always => "always".to_owned(),
            Sync::Every(span) => format!("{}s", span.as_secs()),
        },
        store: bus_dir().join("jetstream"),
    }
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

/// Has the bus read its accounts, and names what runs without being configured.
async fn tell_systemd(
    systemd: &Systemd,
    bus: &BusFiles,
    config: &Config,
    done: &mut Applied,
) -> Result<(), ApplyError> {
    // Enabled, the handle of an agent that is no more would fail at every boot.
    let gone: Vec<String> = bus.retired.iter().map(AgentId::handle_unit).collect();
    if !gone.is_empty() {
        systemd.disable(&gone).await?;
    }
    if bus.changed {
        systemd.reload_or_restart(BUS_UNIT).await?;
    }
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

/// The plan of one agent on a machine that is ready for it. What is missing is made, for all.
///
/// # Errors
/// When it cannot be made.
pub async fn ensure(config: &Config, id: &AgentId) -> Result<Plan, ApplyError> {
    if let Some(plan) = ready(config, id)? {
        return Ok(plan);
    }
    apply_and_tell(config).await?;
    let ledger = Ledger::load()?;
    let plan = plan::plan(config, ledger.uids(), id);
    let plan = plan.ok_or_else(|| UsersError::Absent { name: id.user_name() })?;
    check(&plan)?;
    Ok(plan)
}

/// `None`: something that `apply` makes is not there.
fn ready(config: &Config, id: &AgentId) -> Result<Option<Plan>, ApplyError> {
    let ledger = Ledger::load()?;
    let Some(mut plan) = plan::plan(config, ledger.uids(), id) else { return Ok(None) };
    with_hosts(&mut plan, fence::opening(id)?.hosts_file());
    let ready = id.identity_file().exists() && check(&plan).is_ok();
    Ok(ready.then_some(plan))
}

fn check(plan: &Plan) -> Result<(), ApplyError> {
    users::check(&plan.user)?;
    tree::check(plan)?;
    Ok(root::check(plan)?)
}

fn with_hosts(plan: &mut Plan, text: String) {
    plan.root.files.insert(PathBuf::from("etc/hosts"), text);
}

/// Puts the addresses of the agent's exceptions where it finds them by name.
///
/// # Errors
/// When its root cannot be written.
pub fn set_hosts(plan: &mut Plan, text: String) -> Result<(), ApplyError> {
    with_hosts(plan, text);
    root::ensure(plan)?;
    Ok(())
}
