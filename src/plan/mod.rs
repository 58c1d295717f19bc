//! `Config` to `Plan`: pure data, no input or output, no clock.
//!
//! A Plan is all that anyone below may know of an agent. `flockctl plan` prints it, golden files
//! pin it, the host carries it out and checks the machine against it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use crate::config::{Access, AgentConfig, Config, Egress, Need};
use crate::names::{AgentId, ChannelName, Level, WORKSPACE_USER};
use crate::tools::Rules;

/// A plan as what an agent can and cannot reach.
mod explain;
/// What each rung of the ladder adds to the one below it.
mod level0;
mod level1;
/// The unit in which an agent's boundary is measured.
mod probe;
/// Which property keeps an agent from what.
mod promise;
/// A systemd unit property as data, and the systemd that knows it.
pub mod property;
/// A plan in words.
mod render;
/// What the agent's root directory contains.
mod root;

pub use explain::explain;
pub use probe::{REPLACED, probe};
pub use property::{Property, Value};
pub use render::render;
pub use root::{Bind, RootPlan, SecretFile};

/// Everything flock will do for one agent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// Whose plan this is.
    pub agent: AgentId,
    /// How strong the boundary is.
    pub level: Level,
    /// The Unix user that its processes run as.
    pub user: UserPlan,
    /// Its part of the shared tree.
    pub tree: TreePlan,
    /// How much it may keep on disk.
    pub quota: QuotaPlan,
    /// Its view of the file system.
    pub root: RootPlan,
    /// Where it may connect to, besides the bus.
    pub egress: Egress,
    /// The port of the bus on 127.0.0.1.
    pub bus_port: u16,
    /// With whom it talks on the bus, and how much.
    pub bus: BusPlan,
    /// The transient unit.
    pub unit: UnitPlan,
    /// Which programs its command may use; none means that nothing watches over them.
    pub tools: Option<Rules>,
    /// What the configuration loosens, one line each for people.
    pub loosened: Vec<String>,
}

/// A Unix user. The group has the same name and number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UserPlan {
    /// The name in passwd.
    pub name: String,
    /// The number, from flock's block.
    pub uid: u32,
}

/// An agent's part of the shared tree, on the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TreePlan {
    /// Owned by root; the agent's user has an ACL entry.
    pub workspace: PathBuf,
    /// What the agent may do in `common`.
    pub common: Access,
}

/// How much an agent's user may own on each file system that it may write to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct QuotaPlan {
    /// Bytes; none means without a limit.
    pub bytes: Option<u64>,
    /// Files and directories; none means without a limit.
    pub files: Option<u64>,
}

impl QuotaPlan {
    /// What is limited, in the words of the configuration.
    #[must_use]
    pub fn limits(&self) -> Vec<&'static str> {
        let (disk, files) = (self.bytes.map(|_| "disk"), self.files.map(|_| "files"));
        disk.into_iter().chain(files).collect()
    }
}

/// With whom an agent talks on the bus, and how much it may send.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BusPlan {
    /// The channels that it is a member of.
    pub channels: Vec<ChannelName>,
    /// The agents that it may request something of.
    pub may_request: Vec<AgentId>,
    /// The agents that may request something of it.
    pub requesters: Vec<AgentId>,
    /// Bytes of its largest message.
    pub message: u64,
    /// How many bytes a second its user may send; none means without a limit.
    pub rate: Option<u64>,
}

/// The transient unit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct UnitPlan {
    /// `flock-agent@<id>.service`.
    pub name: String,
    /// `flock-agents-<id>.slice`, the agent's own.
    pub slice: String,
    /// Sent in this order.
    pub properties: Vec<Property>,
}

impl UnitPlan {
    /// The program that is started, for messages.
    #[must_use]
    pub fn program(&self) -> &str {
        match self.value("ExecStartEx") {
            Some(Value::Exec(list)) => list.first().map_or("", |(path, ..)| path),
            _ => "",
        }
    }

    /// What a property is set to, if it is.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&Value> {
        self.properties.iter().find(|p| p.name == name).map(|p| &p.value)
    }
}

/// User ids that were given out; the ledger on disk is `host::users`'.
pub type Uids = BTreeMap<AgentId, u32>;

/// Compiles one agent's plan. Without an entry in `uids` the agent has not been applied: `None`.
#[must_use]
pub fn plan(config: &Config, uids: &Uids, id: &AgentId) -> Option<Plan> {
    let agent = config.agents.get(id)?;
    let user = match agent.level {
        Level::Workspace => {
            UserPlan { name: WORKSPACE_USER.to_owned(), uid: config.host.uid_block.first }
        }
        Level::Process => UserPlan { name: id.user_name(), uid: *uids.get(id)? },
    };
    Some(with(config, id, agent, user))
}

/// The same agent, with its own user, tree and root, behind the boundary of a lower level: what each
/// level adds is seen by measuring without it. Nothing is ever started by such a plan but a probe.
/// `None`: there is no such lower level.
#[must_use]
pub fn lowered(config: &Config, plan: &Plan, level: Level) -> Option<Plan> {
    let mut agent = config.agents.get(&plan.agent)?.clone();
    if level >= agent.level {
        return None;
    }
    agent.level = level;
    let lower = with(config, &plan.agent, &agent, plan.user.clone());
    Some(Plan { level, unit: lower.unit, ..plan.clone() })
}

fn with(config: &Config, id: &AgentId, agent: &AgentConfig, user: UserPlan) -> Plan {
    let unlimited = config.bus.rate.is_none().then(|| UNLIMITED.to_owned());
    let unmeasured = (!config.verify.before_ready).then(|| UNMEASURED.to_owned());
    let root = root::plan(id, agent, &user);
    let mut properties = level0::properties(id, agent, &user, &root);
    if agent.level >= Level::Process {
        properties.extend(level1::properties(agent));
    }
    Plan {
        agent: id.clone(),
        level: agent.level,
        tree: TreePlan { workspace: id.workspace(), common: agent.common },
        quota: QuotaPlan { bytes: agent.limits.disk, files: agent.limits.files },
        egress: agent.egress.clone(),
        bus_port: config.bus.port,
        bus: BusPlan {
            channels: config.channels_of(id).cloned().collect(),
            may_request: agent.may_request.iter().cloned().collect(),
            requesters: config.requesters_of(id).cloned().collect(),
            message: agent.limits.message,
            rate: config.bus.rate,
        },
        unit: UnitPlan { name: id.agent_unit(), slice: id.slice(), properties },
        tools: agent.tools.clone(),
        loosened: loosened(agent).into_iter().chain(unlimited).chain(unmeasured).collect(),
        user,
        root,
    }
}

/// What `bus.rate = "unlimited"` loosens, for every agent.
const UNLIMITED: &str = "bus.rate is unlimited: it may send to the bus as fast as it can";

/// What `verify.before-ready = "skip"` loosens, for every agent.
const UNMEASURED: &str = "verify.before-ready is skip: its boundary is not measured before it runs";

/// What the operator loosened against the defaults of the level, in plain words.
#[must_use]
pub fn loosened(agent: &AgentConfig) -> Vec<String> {
    let mut lines = Vec::new();
    if agent.egress == Egress::Unrestricted {
        lines.push("egress is unrestricted: it may connect to anything".to_owned());
    }
    for need in &agent.needs {
        match need {
            Need::Jit => lines.push("jit: memory may be writable and executable".to_owned()),
        }
    }
    for path in &agent.read_write_paths {
        lines.push(format!("it may write {} on the host", path.display()));
    }
    lines
}
