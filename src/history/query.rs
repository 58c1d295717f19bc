//! What is asked of the history, and short forms of records.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Slot, State};
use crate::bus::message::{Address, TaskId, Usage};
use crate::names::AgentId;

/// The most records that one question is answered with.
pub const LIMIT_MAX: u32 = 100_000;

/// The shortest beginning of an id that may stand for it.
pub const PREFIX_MIN: usize = 6;

/// Which records; nothing said means all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Filter {
    /// Those that this agent has or had last.
    pub agent: Option<AgentId>,
    /// Those in one of these states.
    pub states: Vec<State>,
    /// Queued at or after this; with `ended`, ended at or after it.
    pub since: Option<Timestamp>,
    /// Queued before this; with `ended`, ended before it.
    pub until: Option<Timestamp>,
    /// Only those that have ended, the oldest end first; else the newest task first.
    pub ended: bool,
    /// So many at most, the newest of them; none means [`LIMIT_MAX`].
    pub limit: Option<u32>,
}

/// A record without its long texts. The names of the fields are stable: programs read them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// The task.
    pub task: TaskId,
    /// Where it is done: an agent's id, or `any` for the shared queue.
    pub slot: Slot,
    /// Who has it, or had it last.
    pub agent: Option<AgentId>,
    /// Whom it was sent to.
    pub to: Address,
    /// What it is doing.
    pub state: State,
    /// Why, for people.
    pub reason: Option<String>,
    /// Which attempt this is.
    pub attempt: u64,
    /// The user of the host who sent it.
    pub sender: u32,
    /// The task that this one does again.
    pub retry_of: Option<TaskId>,
    /// The beginning of its text.
    pub head: String,
    /// When it was sent.
    pub created: Timestamp,
    /// When it is of no use any more.
    pub deadline: Option<Timestamp>,
    /// When the bus had stored it.
    pub queued: Timestamp,
    /// When the command was started.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub finished: Option<Timestamp>,
    /// The command's exit status.
    pub exit: Option<i32>,
    /// The signal that ended the command.
    pub signal: Option<i32>,
    /// What it used up.
    pub usage: Option<Usage>,
    /// The agent's command as configured at the time.
    pub command: Option<Vec<String>>,
    /// The file with the whole result, as the agent says it.
    pub result_path: Option<String>,
}

/// How many records are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// They wait.
    pub queued: u64,
    /// They run.
    pub running: u64,
    /// They ended as `failed` within the last 24 hours.
    pub failed_last_day: u64,
}
