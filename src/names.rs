//! Names that are parsed once and then trusted.
//!
//! No function below `config` takes a bare `&str` for an agent, a level or a user id block.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The operator's configuration file.
pub const CONFIG_FILE: &str = "/etc/flock/flock.toml";
/// Further files with `[agents.<id>]` tables.
pub const CONFIG_DIR: &str = "/etc/flock/agents.d";
/// Durable state.
pub const STATE_DIR: &str = "/var/lib/flock";
/// State of this boot: socket, lock, reasons of failure.
pub const RUN_DIR: &str = "/run/flock";
/// The unit that measures the boundary of every agent that runs.
pub const VERIFY_UNIT: &str = "flock-verify.service";
/// Where the package puts the daemon and the agent runtime.
pub const LIB_DIR: &str = "/usr/lib/flock";
/// The group whose members may read status and logs and send tasks.
pub const OPERATOR_GROUP: &str = "flock";
/// The group that holds every agent's user; the D-Bus policy names it.
pub const AGENT_GROUP: &str = "flock-agents";
/// The one user that all agents of level 0 share.
pub const WORKSPACE_USER: &str = "flock-workspace";
/// The user that nats-server runs as.
pub const BUS_USER: &str = "flock-bus";

/// Ids that would collide with flock's own users, units or subjects.
const RESERVED: [&str; 9] =
    ["all", "any", "bus", "hub", "workspace", "operator", "net", "agents", "broadcast"];

/// The longest agent id. `flock-` and 25 characters make 31, the longest user name Linux tools accept.
pub const AGENT_ID_MAX: usize = 25;

/// The name of an agent: `[a-z0-9][a-z0-9-]{0,24}`, and not one that flock keeps for itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AgentId(String);

/// Why a text is no agent id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{:?} is not an agent id: {why}", text_head(text))]
pub struct BadAgentId {
    /// What stood there.
    text: String,
    /// What is wrong and what may stand there.
    why: &'static str,
}

/// The form that ids of agents and names of channels share.
fn plain_form(text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        return Err("it is empty; use 1 to 25 of a-z, 0-9 and -, such as agent-1");
    }
    if text.len() > AGENT_ID_MAX {
        return Err("it is longer than 25 characters (a user name would pass 31)");
    }
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    if !plain(text.as_bytes()[0]) {
        return Err("it must begin with a-z or 0-9");
    }
    match text.bytes().all(|c| plain(c) || c == b'-') {
        true => Ok(()),
        false => Err("only a-z, 0-9 and - may stand in it"),
    }
}

/// The name of a channel: of the same form as an agent's id, so it is one token of a subject.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ChannelName(String);

/// Why a text is no name of a channel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{:?} is not the name of a channel: {why}", text_head(text))]
pub struct BadChannelName {
    /// What stood there.
    text: String,
    /// What is wrong and what may stand there.
    why: &'static str,
}

impl ChannelName {
    /// Checks `text` once; a `ChannelName` that exists is safe in subjects.
    ///
    /// # Errors
    /// When `text` has a form that is not allowed.
    pub fn parse(text: &str) -> Result<Self, BadChannelName> {
        match plain_form(text) {
            Ok(()) => Ok(Self(text.to_owned())),
            Err(why) => Err(BadChannelName { text: text.to_owned(), why }),
        }
    }

    /// The channel that every agent is in unless the configuration says otherwise.
    #[must_use]
    pub fn everybody() -> Self {
        Self("flock".to_owned())
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ChannelName {
    type Err = BadChannelName;
    fn from_str(text: &str) -> Result<Self, BadChannelName> {
        Self::parse(text)
    }
}

impl TryFrom<String> for ChannelName {
    type Error = BadChannelName;
    fn try_from(text: String) -> Result<Self, BadChannelName> {
        Self::parse(&text)
    }
}

impl From<ChannelName> for String {
    fn from(name: ChannelName) -> Self {
        name.0
    }
}

/// Enough of a hostile text to recognise it, never 64 KiB of it.
fn text_head(text: &str) -> String {
    text.chars().take(40).collect()
}

impl AgentId {
    /// Checks `text` once; an `AgentId` that exists is safe in paths, unit names and subjects.
    ///
    /// # Errors
    /// When `text` has a form that is not allowed, or is a reserved name.
    pub fn parse(text: &str) -> Result<Self, BadAgentId> {
        let bad = |why| Err(BadAgentId { text: text.to_owned(), why });
        if let Err(why) = plain_form(text) {
            return bad(why);
        }
        if RESERVED.contains(&text) {
            return bad("flock keeps this name for itself");
        }
        Ok(Self(text.to_owned()))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The agent's own Unix user at level 1 and above.
    #[must_use]
    pub fn user_name(&self) -> String {
        format!("flock-{self}")
    }

    /// The durable intent: `systemctl start` and `enable` act on this unit.
    #[must_use]
    pub fn handle_unit(&self) -> String {
        format!("flock@{self}.service")
    }

    /// The transient unit that holds the agent's processes.
    #[must_use]
    pub fn agent_unit(&self) -> String {
        format!("flock-agent@{self}.service")
    }

    /// The transient unit in which the agent's boundary is measured. It is an instance of the agent's
    /// own template, so that drop-in files for all agents change it too; no agent has this name.
    #[must_use]
    pub fn probe_unit(&self) -> String {
        format!("flock-agent@{self}.probe.service")
    }

    /// The same for the measurement before the agent runs: both may happen at the same time.
    #[must_use]
    pub fn gate_unit(&self) -> String {
        format!("flock-agent@{self}.gate.service")
    }

    /// The agent's own slice. A dash means nesting in a slice's name, so dashes are escaped.
    #[must_use]
    pub fn slice(&self) -> String {
        format!("flock-agents-{}.slice", self.0.replace('-', "\\x2d"))
    }

    /// The agent whose transient unit this is, if it is one.
    #[must_use]
    pub fn from_agent_unit(unit: &str) -> Option<Self> {
        Self::from_unit(unit, "flock-agent@")
    }

    /// The agent whose handle this is, if it is one.
    #[must_use]
    pub fn from_handle_unit(unit: &str) -> Option<Self> {
        Self::from_unit(unit, "flock@")
    }

    fn from_unit(unit: &str, prefix: &str) -> Option<Self> {
        let id = unit.strip_prefix(prefix)?.strip_suffix(".service")?;
        Self::parse(id).ok()
    }

    /// The directory that the agent writes to; `/shared/agents/<id>` as the agent sees it.
    #[must_use]
    pub fn workspace(&self) -> PathBuf {
        shared_dir().join("agents").join(&self.0)
    }

    /// The skeleton that becomes the agent's root directory.
    #[must_use]
    pub fn root_dir(&self) -> PathBuf {
        Path::new(STATE_DIR).join("roots").join(&self.0)
    }

    /// The file with the agent's bus password, readable by root alone.
    #[must_use]
    pub fn identity_file(&self) -> PathBuf {
        identity_dir().join(format!("{self}.env"))
    }
}

/// The shared tree on the host; every agent sees its part of it as `/shared`.
#[must_use]
pub fn shared_dir() -> PathBuf {
    Path::new(STATE_DIR).join("shared")
}

/// Where bus passwords lie, readable by root alone.
#[must_use]
pub fn identity_dir() -> PathBuf {
    Path::new(STATE_DIR).join("identity")
}

/// Where nats-server keeps its accounts and streams.
#[must_use]
pub fn bus_dir() -> PathBuf {
    Path::new(STATE_DIR).join("bus")
}

/// Where nats-server stores its streams.
#[must_use]
pub fn bus_store() -> PathBuf {
    bus_dir().join("jetstream")
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for AgentId {
    type Err = BadAgentId;
    fn from_str(text: &str) -> Result<Self, BadAgentId> {
        Self::parse(text)
    }
}

impl TryFrom<String> for AgentId {
    type Error = BadAgentId;
    fn try_from(text: String) -> Result<Self, BadAgentId> {
        Self::parse(&text)
    }
}

impl From<AgentId> for String {
    fn from(id: AgentId) -> Self {
        id.0
    }
}

/// How strong the boundary around an agent is. An order: a higher level contains the ones below.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Level 0: own directory, limits and egress under one shared user. Not a security boundary.
    Workspace,
    /// Level 1: one Unix user per agent and the full systemd sandbox.
    Process,
}

impl Level {
    /// Every level that this flock can give.
    pub const ALL: [Self; 2] = [Self::Workspace, Self::Process];

    /// The number in the configuration.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Workspace => 0,
            Self::Process => 1,
        }
    }

    /// The level with this number, if this flock can give it.
    #[must_use]
    pub fn from_number(number: i64) -> Option<Self> {
        Self::ALL.into_iter().find(|level| i64::from(level.number()) == number)
    }

    /// The honest word for what the level is.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Workspace => "workspace (not a security boundary)",
            Self::Process => "process isolation",
        }
    }
}

/// The block of user ids that belongs to flock. The egress rule names the whole block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UidBlock {
    /// The first id, which is the shared user's of level 0.
    pub first: u32,
    /// The last id.
    pub last: u32,
}

impl UidBlock {
    /// 65536 to 99999: outside login users, DynamicUser=, containers and the sub-uid ranges.
    pub const DEFAULT: Self = Self { first: 65_536, last: 99_999 };

    /// Whether the id is flock's.
    #[must_use]
    pub fn contains(self, uid: u32) -> bool {
        (self.first..=self.last).contains(&uid)
    }
}

impl fmt::Display for UidBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// Variables that nobody may set for an agent or a task, with the reason: with them, data becomes
/// code before the command's first instruction. The form is that of [`variable_matches`].
pub const DANGEROUS_VARIABLES: [(&str, &str); 8] = [
    ("LD_*", LOADER),
    ("GLIBC_TUNABLES", LOADER),
    ("GCONV_PATH", LOADER),
    ("LOCPATH", LOADER),
    ("BASH_ENV", SHELL),
    ("BASH_FUNC_*", SHELL),
    ("ENV", SHELL),
    ("IFS", SHELL),
];
const LOADER: &str = "it changes what every program loads, flock's own runtime included";
const SHELL: &str = "it changes what every shell does";

/// Whether a variable's name is the pattern; a `*` at its end stands for any rest.
#[must_use]
pub fn variable_matches(name: &str, pattern: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == pattern,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_ids_pass_and_name_their_units() {
        let id = AgentId::parse("agent-1").unwrap();
        assert_eq!(id.agent_unit(), "flock-agent@agent-1.service");
        assert_eq!(id.slice(), "flock-agents-agent\\x2d1.slice");
        assert_eq!(AgentId::from_agent_unit(&id.agent_unit()), Some(id.clone()));
        assert_eq!(AgentId::from_handle_unit("flock@agent-1.service"), Some(id));
        assert_eq!(AgentId::from_handle_unit("flock@../x.service"), None);
    }

    #[test]
    fn hostile_ids_are_refused() {
        let long = "a".repeat(26);
        let huge = "a".repeat(65_536);
        let bad = [
            "",
            "-a",
            "a_b",
            "A",
            "a.b",
            "../x",
            "a/b",
            "a\nb",
            "a\0b",
            "a b",
            "%n",
            "$(id)",
            "é",
            "a\u{202e}b",
            "bus",
            "all",
            "agent-1.service",
            &long,
            &huge,
        ];
        for text in bad {
            let error = AgentId::parse(text).unwrap_err().to_string();
            assert!(error.len() < 400 && !error.contains('\n'), "{error}");
        }
        assert!(AgentId::parse(&"a".repeat(25)).is_ok());
        // The operator speaks on channels under this name.
        assert!(AgentId::parse("operator").is_err());
    }

    #[test]
    fn a_channels_name_is_one_token() {
        for text in ["flock", "x", "3-d", "all", "operator"] {
            assert_eq!(ChannelName::parse(text).unwrap().as_str(), text);
        }
        for text in ["", "a.b", "*", ">", "a b", "A", "-a", "a\n", "é", &"a".repeat(26)] {
            let error = ChannelName::parse(text).unwrap_err().to_string();
            assert!(error.len() < 400 && !error.contains('\n'), "{error}");
        }
    }
}
