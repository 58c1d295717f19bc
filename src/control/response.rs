//! What is answered over the control socket.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::audit;
use crate::bus::hub::DeadLetter;
use crate::bus::message::{TaskId, TaskResult};
use crate::control::talk::Heard;
use crate::history::{Record, Summary};
use crate::journal::Entry;
use crate::names::AgentId;
use crate::status::health::View;

/// One line of an answer: `{"kind":"end"}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Response {
    /// To `status`.
    Status(View),
    /// One entry of a log.
    Log(Entry),
    /// One record of the audit log.
    Audit(audit::Record),
    /// To `audit-verify`.
    AuditReport(audit::Report),
    /// The task is stored.
    Sent(Sent),
    /// An agent says that it has begun with the task that is waited for.
    Begun {
        /// Which.
        agent: AgentId,
    },
    /// One agent's result.
    Result(TaskResult),
    /// A task was cancelled, or why not.
    Cancelled(Cancelled),
    /// A task that was given up.
    Dead(DeadLetter),
    /// A call of a tool that waits for an operator.
    Ask(AskShown),
    /// The decision on it is made.
    Decided(AskShown),
    /// One task of a list, without its long texts.
    Task(Box<Summary>),
    /// Everything about a task in one place.
    Record(Box<Record>),
    /// To `talk`.
    Heard(Heard),
    /// The answer is complete.
    End,
    /// The request could not be carried out, or not to its end.
    Error {
        /// For programs.
        code: ErrorCode,
        /// For people.
        message: String,
    },
}

/// A call of a tool that waits for an operator. Every text in it is the agent's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskShown {
    /// Its id: the hash of all that is asked.
    pub ask: String,
    /// Who asks: the server's word.
    pub agent: AgentId,
    /// The tool.
    pub tool: String,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Where it would run.
    pub folder: String,
    /// The task that the command says it works on.
    pub task: Option<String>,
    /// When it was first heard of.
    pub since: Timestamp,
    /// When nobody waits any more.
    pub deadline: Timestamp,
}

/// A task that the bus has stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// Its id.
    pub task: TaskId,
    /// The agents that have it; for the shared queue nobody yet.
    pub agents: Vec<AgentId>,
    /// Receivers that could not get it, and why.
    pub refused: Vec<String>,
    /// How many results there will be.
    pub results: usize,
    /// It was sent before with the same key, and not stored again.
    #[serde(default)]
    pub duplicate: bool,
}

/// What became of a request to cancel a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancelled {
    /// The task.
    pub task: TaskId,
    /// Agents that worked on it and were told to end, or `queued`.
    pub was: Vec<String>,
    /// Why it was not cancelled; it had ended, or is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The peer may not ask.
    Refused,
    /// Too many connections.
    Busy,
    /// Not a request, or one that is too large or too late.
    BadRequest,
    /// It could not be done.
    Failed,
    /// The results did not come in time.
    TimedOut,
}

impl Response {
    /// An error for programs and people.
    #[must_use]
    pub fn error(code: ErrorCode, message: impl ToString) -> Self {
        Self::Error { code, message: message.to_string() }
    }

    /// Whether nothing comes after this line.
    #[must_use]
    pub fn is_last(&self) -> bool {
        matches!(self, Self::End | Self::Error { .. })
    }
}
