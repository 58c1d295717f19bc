//! The checked configuration. A `Config` that exists obeys every rule.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::names::{AgentId, ChannelName, Level, UidBlock};
use crate::tools::Rules;

/// Rules over several values of an agent, and over several agents.
mod across;
/// Who talks to whom: channels and requests.
mod channels;
/// Files to `Config`: the tables of a file, and the merge of the defaults.
mod check;
/// Faults with their place.
mod cite;
/// Files of `agents.d`: one made, one removed.
pub mod edit;
/// How one value is read.
mod fields;
/// TOML as written.
mod file;
/// Files that may be trusted.
mod load;
/// The defaults under an agent's own keys.
mod merge;
/// What one table says of an agent.
mod part;
/// The grammars of single values.
mod rules;
/// The tools of an agent.
mod tools;
/// When the boundary is measured.
mod verify;

pub use cite::{Fault, Faults};
pub use load::{Place, load, parse, parse_here, places, read};
pub use rules::egress::refused_address;
pub use verify::{OnViolation, VerifyConfig};

/// Everything the operator decided, with defaults filled in.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Config {
    /// The main file that it was read from; `None`: from texts.
    #[serde(skip)]
    pub file: Option<PathBuf>,
    /// What flock may assume of this host.
    pub host: HostConfig,
    /// The message bus.
    pub bus: BusConfig,
    /// Who is in which channel. The channel `flock` is there unless it is switched off.
    pub channels: BTreeMap<ChannelName, BTreeSet<AgentId>>,
    /// The history of all tasks.
    pub history: HistoryConfig,
    /// When the boundary is measured without anybody asking.
    pub verify: VerifyConfig,
    /// Every configured agent.
    pub agents: BTreeMap<AgentId, AgentConfig>,
}

impl Config {
    /// No agents, and defaults for everything else.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            file: None,
            host: HostConfig::default(),
            bus: BusConfig::default(),
            history: HistoryConfig::default(),
            verify: VerifyConfig::default(),
            channels: BTreeMap::new(),
            agents: BTreeMap::new(),
        }
    }

    /// What its files say now, when that is something else. With a fault in them they say nothing.
    #[must_use]
    pub fn newer(&self) -> Option<Self> {
        let now = load(self.file.as_deref()?).ok()?;
        (now != *self).then_some(now)
    }

    /// The channels that an agent is a member of.
    pub fn channels_of(&self, id: &AgentId) -> impl Iterator<Item = &ChannelName> {
        self.channels.iter().filter(move |(_, members)| members.contains(id)).map(|(name, _)| name)
    }

    /// The agents that may request something of this one.
    pub fn requesters_of(&self, id: &AgentId) -> impl Iterator<Item = &AgentId> {
        self.agents.iter().filter(move |(_, a)| a.may_request.contains(id)).map(|(other, _)| other)
    }
}

/// What flock may assume of this host.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HostConfig {
    /// The user ids that are flock's.
    pub uid_block: UidBlock,
    /// Run although this host has no controller for a limit (it is named in `status`).
    pub allow_unenforced_limits: bool,
}

impl Default for HostConfig {
    fn default() -> Self {
        Self { uid_block: UidBlock::DEFAULT, allow_unenforced_limits: false }
    }
}

/// The message bus.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BusConfig {
    /// The port on 127.0.0.1.
    pub port: u16,
    /// The nats-server program.
    pub server: PathBuf,
    /// When JetStream flushes to disk: every write, or at this interval.
    pub sync: Sync,
    /// How many bytes a second each agent's user may send to the bus; none means without a limit.
    pub rate: Option<u64>,
}

impl Default for BusConfig {
    /// Not port 4222: Debian's own nats-server takes that as soon as it is installed.
    fn default() -> Self {
        Self {
            port: 14_222,
            server: "/usr/sbin/nats-server".into(),
            sync: Sync::Always,
            rate: Some(16 << 20),
        }
    }
}

/// When JetStream flushes to disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Sync {
    /// A task that was acknowledged survives a power cut.
    Always,
    /// Up to this much of acknowledged work can be lost in a power cut.
    Every(Duration),
}

/// How much of the history is kept. A task that has not ended is never forgotten.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HistoryConfig {
    /// How long a task that has ended is remembered.
    pub keep: Duration,
    /// The largest size in bytes; the oldest tasks are forgotten first.
    pub max_size: u64,
}

impl Default for HistoryConfig {
    fn default() -> Self {
        Self { keep: Duration::from_secs(30 * 86_400), max_size: 1 << 30 }
    }
}

/// One agent, defaults merged in.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AgentConfig {
    /// How strong the boundary is.
    pub level: Level,
    /// The program and its arguments; the program is an absolute path.
    pub command: Vec<String>,
    /// Whether the command runs once per task or is a bus client itself.
    pub mode: Mode,
    /// How tasks run, but in [`Mode::Service`].
    pub task: TaskConfig,
    /// Variables that are no secret (every local user can read them).
    pub environment: BTreeMap<String, String>,
    /// Files of variables, read by PID 1 as root.
    pub environment_files: Vec<PathBuf>,
    /// Files that the agent finds, readable by it alone, under `/etc/secrets/<name>`.
    pub secret_files: BTreeMap<String, PathBuf>,
    /// What the agent may use up.
    pub limits: Limits,
    /// What happens when it ends.
    pub restart: Restart,
    /// Where it may connect to.
    pub egress: Egress,
    /// Whether it may write `/shared/common`.
    pub common: Access,
    /// The agents that it may request something of, over the bus.
    pub may_request: BTreeSet<AgentId>,
    /// Further host paths it may read.
    pub read_only_paths: Vec<PathBuf>,
    /// Further host paths it may write.
    pub read_write_paths: Vec<PathBuf>,
    /// Loosened defaults.
    pub needs: Vec<Need>,
    /// Which programs the command may use; none means that nothing watches over them.
    pub tools: Option<Rules>,
}

/// How an agent's command is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Once per task, by `flock-agent`: task text on standard input, result from standard output.
    Task,
    /// Once, by `flock-agent`: a line of JSON in for each task, a line of JSON out for each result.
    JsonLines,
    /// Once, for ever: the command talks to the bus itself.
    Service,
}

/// Bounds of one task.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TaskConfig {
    /// The longest a task may run.
    pub timeout: Duration,
    /// The largest result in bytes; more is cut and marked.
    pub output_limit: u64,
    /// How many run at once.
    pub parallel: u32,
    /// How the command gets the text in [`Mode::Task`].
    pub input: Input,
    /// How many folders and results of tasks stay, the youngest.
    pub keep: u32,
}

/// How a command gets the text of its task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Input {
    /// On its standard input.
    Stdin,
    /// As the argument in the place of [`TASK_WORD`], or after all others.
    Argument,
}

/// The word of a command that stands for the text of the task.
pub const TASK_WORD: &str = "{task}";

/// What an agent may use up.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Limits {
    /// CPU time per second, in microseconds: half a core is 500,000.
    pub cpu_usec_per_sec: u64,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes of swap.
    pub swap: u64,
    /// Processes and threads together.
    pub tasks: u64,
    /// 1 to 10,000; 100 is the system's default.
    pub io_weight: u64,
    /// Open files per process.
    pub open_files: u64,
    /// The longest it may run; none means for ever.
    pub runtime: Option<Duration>,
    /// Bytes of `/tmp`, `/var/tmp` and `/dev/shm`, each; they count as memory too.
    pub tmp: u64,
    /// Bytes of one message that it sends on the bus.
    pub message: u64,
    /// Bytes of its files on each file system that it may write to; none means without a limit.
    pub disk: Option<u64>,
    /// How many files it may have on each of these; none means without a limit.
    pub files: Option<u64>,
}

/// What happens when an agent ends.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Restart {
    /// When it is started again.
    pub policy: RestartPolicy,
    /// The first pause.
    pub delay: Duration,
    /// The longest pause.
    pub max_delay: Duration,
    /// How many starts within `window` until it stays failed.
    pub attempts: u32,
    /// The window of `attempts`.
    pub window: Duration,
}

/// When an agent is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Never.
    Never,
    /// When it ends with a failure.
    OnFailure,
    /// Whenever it ends.
    Always,
}

/// Where an agent may connect to, besides the bus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Egress {
    /// Nothing but the bus.
    Bus,
    /// The bus and these.
    Hosts(Vec<HostPort>),
    /// Anything. A warning at every start.
    Unrestricted,
}

/// A host (a name or an address) and a TCP port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct HostPort {
    /// A DNS name in lower case, or an IP address.
    pub host: String,
    /// A TCP port.
    pub port: u16,
}

impl std::fmt::Display for HostPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (host, port) = (&self.host, self.port);
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// Whether a path may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Reading only.
    ReadOnly,
    /// Reading and writing.
    ReadWrite,
}

/// A need of the agent's runtime that loosens a default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Need {
    /// Memory that is writable and executable: Node.js, Java and other just-in-time compilers.
    Jit,
}
