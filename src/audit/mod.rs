//! The audit log: who did what, in a file that only grows and whose records are chained.
//!
//! `/var/lib/flock/audit.log` holds one JSON object a line. Each record carries the hash of the one
//! before it, so that a record cannot be changed, removed, inserted or moved without breaking the
//! chain; the journal is told of each record as a second witness, so that cutting the end off shows
//! as well. Nobody is kept from writing a whole new chain who is root and rewrites the journal too:
//! what has to hold against such a one must leave this host (`systemd-journal-upload`).

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The form of one line, and its hash.
mod chain;
/// Appends to the file.
mod log;
/// Who runs this flockctl.
mod person;
/// Reads the log for people.
mod show;
/// Checks the whole chain.
mod verify;
/// What the journal knows of the records.
mod witness;

#[cfg(test)]
mod tests;

pub use chain::{Record, hash as digest};
pub use log::Log;
pub use person::{by_flockd, by_unit, root_person};
pub use show::{Filter, read};
pub use verify::{Fault, FaultKind, Report, verify};
pub use witness::{Witness, witnesses};

/// Who did it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    /// The Unix user; the kernel's word, not the peer's own.
    pub uid: u32,
    /// Its name in the user database, or an agent's id.
    pub name: String,
    /// On which way.
    pub how: How,
}

/// On which way somebody did something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// An operator, over flockd's control socket.
    Socket,
    /// Somebody with root's rights, by `flockctl`; the user is the one who logged in.
    Root,
    /// flockd itself.
    Flockd,
    /// An agent.
    Agent,
    /// A unit of PID 1: `flock@<id>.service` starts and stops an agent.
    Unit,
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// A task was given to agents.
    TaskSend,
    /// A task is not wanted any more.
    TaskCancel,
    /// A task was given again.
    TaskRetry,
    /// A task was taken out of the list of those that nobody could do.
    TaskDrop,
    /// An operator said something to every agent.
    Broadcast,
    /// An operator said something on a channel.
    ChannelSend,
    /// A tool that an agent asked for was allowed by a person.
    Approve,
    /// A tool that an agent asked for was refused by a person.
    Deny,
    /// A tool waits for a person.
    ToolAsked,
    /// A tool was allowed by the rules.
    ToolAllowed,
    /// A tool was refused by the rules, or nobody answered in time.
    ToolDenied,
    /// Agents were started by name.
    Start,
    /// Agents were stopped by name.
    Stop,
    /// Agents were restarted by name.
    Restart,
    /// Every enabled agent was started.
    Up,
    /// Every agent was stopped.
    Down,
    /// The machine was made as configured.
    Apply,
    /// An agent was written into the configuration.
    AgentAdd,
    /// An agent was taken out of the configuration.
    AgentRemove,
    /// An agent's unit was started.
    Launched,
    /// An agent's unit was stopped.
    Halted,
    /// flockd read a configuration that differs from the one before.
    ConfigChanged,
    /// An agent's level is another.
    LevelChanged,
    /// The package is removed; what comes after may be another log.
    Released,
    /// A last record that was not written to its end, as after a power cut, was set aside.
    LogTorn,
    /// A last record that does not match its hash was set aside.
    LogDamaged,
}

impl What {
    /// The word that stands in the file.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::TaskSend => "task-send",
            Self::TaskCancel => "task-cancel",
            Self::TaskRetry => "task-retry",
            Self::TaskDrop => "task-drop",
            Self::Broadcast => "broadcast",
            Self::ChannelSend => "channel-send",
            Self::Approve => "approve",
            Self::Deny => "deny",
            Self::ToolAsked => "tool-asked",
            Self::ToolAllowed => "tool-allowed",
            Self::ToolDenied => "tool-denied",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Up => "up",
            Self::Down => "down",
            Self::Apply => "apply",
            Self::AgentAdd => "agent-add",
            Self::AgentRemove => "agent-remove",
            Self::Launched => "launched",
            Self::Halted => "halted",
            Self::ConfigChanged => "config-changed",
            Self::LevelChanged => "level-changed",
            Self::Released => "released",
            Self::LogTorn => "log-torn",
            Self::LogDamaged => "log-damaged",
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What is to be recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Who.
    pub who: Who,
    /// What.
    pub what: What,
    /// To what: an agent's id, a task's, a file.
    pub object: String,
    /// More about it, for people; long ones are cut.
    pub detail: String,
}

impl Entry {
    /// What somebody did to something.
    #[must_use]
    pub fn new(who: Who, what: What, object: impl ToString, detail: impl ToString) -> Self {
        Self { who, what, object: object.to_string(), detail: detail.to_string() }
    }
}

/// Why something could not be recorded, or the log not be read.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// Another process holds the lock and does not let go.
    #[error("audit log: lock {}: another process has held it for {seconds} s: see fuser {}", path.display(), path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// How long was waited.
        seconds: u64,
    },
    /// The system refuses.
    #[error("audit log: {step} {}: {cause}: see df and dmesg for the file system of /var/lib/flock", path.display())]
    System {
        /// open, read, write…
        step: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The journal could not be asked for what it knows.
    #[error("audit log: ask the journal: {0}")]
    Journal(String),
    /// A record that has no JSON form, or a task of the runtime that ended.
    #[error("audit log: {0}")]
    Inner(String),
}

/// Records on this host's log, durably, and gives the record's number. Waits for the disk.
///
/// # Errors
/// When it is not recorded. What an operator asked for over the socket must not be done then.
pub fn record(entry: &Entry) -> Result<u64, AuditError> {
    Log::of_this_host().record(entry)
}

/// [`record`] for async code, on a thread of its own.
///
/// # Errors
/// As [`record`].
pub async fn record_async(entry: Entry) -> Result<u64, AuditError> {
    let work = tokio::task::spawn_blocking(move || record(&entry));
    work.await.unwrap_or_else(|error| Err(AuditError::Inner(error.to_string())))
}
