//! The history of all tasks: what was asked, who had it, how it ended.
//!
//! flockd hears [`Fact`]s from the bus and from itself and hands them to the [`Store`], which keeps one
//! [`Record`] for each task and place where it is done. Facts come late, twice and in any order; which
//! of them count is decided in `record.rs` and nowhere else. What an agent says is a claim: it
//! counts only for a task that this agent has.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::bus::message::{Address, Task, TaskId, TaskResult, Usage};
use crate::names::{AgentId, BadAgentId, STATE_DIR};

mod prune;
/// What is asked of the history, and short forms of records.
pub mod query;
mod reader;
mod record;
mod row;
mod schema;
mod store;
#[cfg(test)]
mod testing;

pub use prune::Pruned;
pub use query::{Counts, Filter, PREFIX_MIN, Summary};
pub use reader::Reader;
pub use store::{Condition, Store, Stray};

/// Where flockd keeps the history.
#[must_use]
pub fn database() -> PathBuf {
    Path::new(STATE_DIR).join("history.db")
}

/// Where a task is done: at the agent that it was sent to, or at whichever the shared queue finds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Slot {
    /// At this agent: the task was sent to it, or to all.
    Agent(AgentId),
    /// At one agent, chosen by the shared queue.
    Any,
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent(id) => id.fmt(f),
            Self::Any => f.write_str("any"),
        }
    }
}

impl FromStr for Slot {
    type Err = BadAgentId;
    fn from_str(text: &str) -> Result<Self, BadAgentId> {
        match text {
            "any" => Ok(Self::Any),
            id => AgentId::parse(id).map(Self::Agent),
        }
    }
}

impl TryFrom<String> for Slot {
    type Error = BadAgentId;
    fn try_from(text: String) -> Result<Self, BadAgentId> {
        text.parse()
    }
}

impl From<Slot> for String {
    fn from(slot: Slot) -> Self {
        slot.to_string()
    }
}

/// What a task is doing. The last four are final.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The bus has it; nobody has begun.
    Queued,
    /// An agent says that it has begun.
    Running,
    /// It ended well.
    Done,
    /// It ended otherwise: an error, its time was over, it was refused or given up; the reason says.
    Failed,
    /// Its deadline passed first.
    Expired,
    /// Somebody cancelled it.
    Cancelled,
}

impl State {
    /// All states, in the order of a task's life.
    pub const ALL: [Self; 6] =
        [Self::Queued, Self::Running, Self::Done, Self::Failed, Self::Expired, Self::Cancelled];

    /// Whether nothing comes after this state.
    #[must_use]
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }

    /// The word for people and programs.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for State {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|state| state.word() == text).ok_or_else(|| {
            let words: Vec<_> = Self::ALL.map(Self::word).into();
            format!("a state is one of {}", words.join(", "))
        })
    }
}

/// Where a message is stored on the bus.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// The stream.
    pub stream: String,
    /// The number in it, given by the server.
    pub sequence: u64,
}

/// Something that happened, or that somebody says has happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact {
    /// The bus has stored the task.
    Queued {
        /// The task, with its text.
        task: Task,
        /// Where it is to be done.
        slot: Slot,
        /// Where it is stored.
        place: Place,
        /// When, by the server's clock.
        at: Timestamp,
    },
    /// The shared queue handed the task to an agent.
    Given {
        /// The task.
        task: TaskId,
        /// Who has it now.
        agent: AgentId,
        /// Which attempt this is, from 1.
        attempt: u64,
        /// Where the copy for the agent is stored.
        place: Place,
        /// When.
        at: Timestamp,
    },
    /// The shared queue took the task back.
    Back {
        /// The task.
        task: TaskId,
        /// The attempt that is over.
        attempt: u64,
        /// Why.
        reason: String,
        /// When.
        at: Timestamp,
    },
    /// An agent says that it has begun: a claim.
    Started {
        /// The task.
        task: TaskId,
        /// The agent, as the server vouches for it.
        agent: AgentId,
        /// Which attempt, if it is known.
        attempt: Option<u64>,
        /// The agent's command, as configured now: flockd's word, not the agent's.
        command: Option<Vec<String>>,
        /// When.
        at: Timestamp,
    },
    /// What an agent handed in: a claim.
    Result {
        /// The agent, as the server vouches for it.
        agent: AgentId,
        /// What it says.
        result: Box<TaskResult>,
        /// The agent's command, as configured now, for a task whose start nobody heard of.
        command: Option<Vec<String>>,
        /// Where it is stored.
        place: Place,
        /// When the server stored it.
        at: Timestamp,
    },
    /// What an agent handed in, and is no result.
    Unreadable {
        /// The agent, as the server vouches for it.
        agent: AgentId,
        /// What is wrong with it.
        why: String,
        /// Where it is stored.
        place: Place,
        /// When the server stored it.
        at: Timestamp,
    },
    /// flockd's own decision: expired, cancelled, given up, lost.
    Ended {
        /// The task.
        task: TaskId,
        /// Where it was to be done.
        slot: Slot,
        /// The final state.
        state: State,
        /// Why.
        reason: String,
        /// When.
        at: Timestamp,
    },
}

/// What became of a fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is in the record now.
    Accepted,
    /// The record said so already.
    Repeated,
    /// It does not count, and why. Results and unreadable ones are kept among the strays.
    Refused(String),
    /// It may count later, when facts on their way have come: ask again, at last with
    /// [`Patience::Over`].
    TooEarly,
}

/// Whether facts that would make sense of this one may still come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// They may: [`Verdict::TooEarly`] is an answer.
    Left,
    /// They had time enough: what is too early is refused.
    Over,
}

/// What is known of one task in one place. The names of the fields are stable: programs read them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
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
    /// Why it is in this state, for people.
    pub reason: Option<String>,
    /// Which attempt this is, from 1; 0 while the shared queue has given it to nobody.
    pub attempt: u64,
    /// The newest attempt that the shared queue handed out. An agent that begins anew counts on.
    pub handed: u64,
    /// The newest attempt that was taken back into the shared queue; 0 for none.
    pub taken_back: u64,
    /// The user of the host who sent it.
    pub sender: u32,
    /// The sender's idempotency key.
    pub key: Option<String>,
    /// The task that this one does again.
    pub retry_of: Option<TaskId>,
    /// What was to be done.
    pub text: String,
    /// Variables for the command.
    pub environment: BTreeMap<String, String>,
    /// When it was sent.
    pub created: Timestamp,
    /// When it is of no use any more.
    pub deadline: Option<Timestamp>,
    /// When the bus had stored it, the last time that it did.
    pub queued: Timestamp,
    /// When the command was started, by the agent's word; not before `queued`.
    pub started: Option<Timestamp>,
    /// When it ended; by the agent's word, but not before `queued` nor after the result came.
    pub finished: Option<Timestamp>,
    /// The command's exit status.
    pub exit: Option<i32>,
    /// The signal that ended the command.
    pub signal: Option<i32>,
    /// What it used up, as the agent's runtime measured it.
    pub usage: Option<Usage>,
    /// The agent's command as configured at the time.
    pub command: Option<Vec<String>>,
    /// The output, as far as it is in the result's message.
    pub output: Option<String>,
    /// Whether output is missing at the end.
    pub truncated: bool,
    /// The file with the whole result, as the agent says it.
    pub result_path: Option<String>,
    /// Where the task is stored, or was; none when only its result is known.
    pub place: Option<Place>,
    /// Where the copy for the agent is stored that has it from the shared queue.
    pub given: Option<Place>,
    /// Where the result that counts is stored.
    pub result: Option<Place>,
    /// Whether flockd decided how it ended, not a result.
    pub decided: bool,
}

/// Why the history could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A step that failed.
    #[error("{step} {}: {cause}", path.display())]
    Step {
        /// What was to be done.
        step: &'static str,
        /// The database.
        path: PathBuf,
        /// Why not.
        cause: String,
    },
    /// The content is not what SQLite wrote. Opening it again sets it aside and begins a new one.
    #[error("{step} {}: it is damaged ({cause}): restart flockd, which sets it aside and begins a new one", path.display())]
    Damaged {
        /// What was to be done.
        step: &'static str,
        /// The database.
        path: PathBuf,
        /// What SQLite says.
        cause: String,
    },
    /// A newer flock has written it.
    #[error(
        "open {}: it was written by a newer flock (form {found}, this one knows {known}): install that \
         version again, or move the file away to begin a new history",
        path.display()
    )]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its form.
        found: i64,
        /// The newest form that this flock knows.
        known: i64,
    },
    /// No task has this id, or one that begins so.
    #[error(
        "no task in the history is called {0}, or begins so (at least {PREFIX_MIN} characters): \
         flockctl task list"
    )]
    Unknown(TaskId),
    /// Several tasks begin so.
    #[error("{prefix} is the beginning of several tasks: {}", some.iter().map(TaskId::as_str).collect::<Vec<_>>().join(", "))]
    Several {
        /// What was asked for.
        prefix: TaskId,
        /// Some of them.
        some: Vec<TaskId>,
    },
    /// There is none.
    #[error("open {}: there is no history yet: flockd begins it: sudo systemctl start flockd", path.display())]
    Missing {
        /// Where it would be.
        path: PathBuf,
    },
}
