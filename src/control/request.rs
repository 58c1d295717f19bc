//! What can be asked over the control socket.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::audit;
use crate::bus::message::{Address, TaskId};
use crate::control::talk::Talk;
use crate::history::Filter;
use crate::journal::Query;

/// The longest that one request may wait for results.
pub const WAIT_MAX_SECONDS: u64 = 24 * 3600;

/// A request: `{"verb":"status"}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// What only flockd knows: [`crate::status::health::View`].
    Status,
    /// The log of an agent.
    Logs(Query),
    /// A task for agents.
    TaskSend(SendTask),
    /// Tasks are to end, or not to begin.
    TaskCancel(CancelTasks),
    /// An ended task once more, under a new id.
    TaskRetry(RetryTask),
    /// The tasks of the shared queue that were given up.
    TaskDead,
    /// The calls of tools that wait for an operator.
    Asks(Asks),
    /// An operator's word on one of them.
    AskDecide(AskDecide),
    /// Tasks in the history, without their long texts, the newest first.
    TaskList(Filter),
    /// Everything about one task.
    TaskShow(ShowTask),
    /// Tasks that have ended, in the order in which they did.
    History(Filter),
    /// Records of the audit log.
    AuditShow(audit::Filter),
    /// Whether the audit log is whole.
    AuditVerify,
    /// Events, broadcasts and channels.
    Talk(Talk),
}

/// Which task is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShowTask {
    /// Its id, or the beginning of it.
    pub task: TaskId,
}

/// Which calls are shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asks {
    /// Go on with those that come.
    pub follow: bool,
}

/// A decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AskDecide {
    /// The beginning of its id, as far as it is unambiguous.
    pub ask: String,
    /// Whether it may run.
    pub approve: bool,
    /// Why not, for the agent.
    pub reason: Option<String>,
}

/// A task as an operator gives it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SendTask {
    /// An agent's id, `all` or `any`.
    pub to: Address,
    /// What to do.
    pub text: String,
    /// Not begun after this many seconds.
    pub deadline_seconds: Option<u64>,
    /// Answer when the results are there, and wait at most this many seconds for them.
    pub wait_seconds: Option<u64>,
    /// Sent again with the same key, it is not stored again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Variables for the command.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
}

impl SendTask {
    /// A task without a deadline, a key or variables; nobody waits for it.
    #[must_use]
    pub fn new(to: Address, text: impl Into<String>) -> Self {
        Self {
            to,
            text: text.into(),
            deadline_seconds: None,
            wait_seconds: None,
            key: None,
            environment: BTreeMap::new(),
        }
    }
}

/// Which tasks are to end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CancelTasks {
    /// Their ids.
    pub tasks: Vec<TaskId>,
}

/// Which task is to be done once more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetryTask {
    /// Its id.
    pub task: TaskId,
    /// Somebody else is to do it.
    pub to: Option<Address>,
    /// Also when it has not ended.
    #[serde(default)]
    pub force: bool,
}

impl Request {
    /// The verb, for the audit.
    #[must_use]
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Logs(_) => "logs",
            Self::TaskSend(_) => "task-send",
            Self::TaskCancel(_) => "task-cancel",
            Self::TaskRetry(_) => "task-retry",
            Self::TaskDead => "task-dead",
            Self::Asks(_) => "asks",
            Self::AskDecide(_) => "ask-decide",
            Self::TaskList(_) => "task-list",
            Self::TaskShow(_) => "task-show",
            Self::History(_) => "history",
            Self::AuditShow(_) => "audit-show",
            Self::AuditVerify => "audit-verify",
            Self::Talk(_) => "talk",
        }
    }

    /// Whether the answer can take long, so that a peer that leaves must end it.
    #[must_use]
    pub fn is_long(&self) -> bool {
        match self {
            Self::Status | Self::TaskShow(_) | Self::AskDecide(_) => false,
            Self::TaskCancel(_) | Self::TaskRetry(_) | Self::TaskDead => false,
            Self::AuditShow(_) | Self::AuditVerify => false,
            Self::Asks(asks) => asks.follow,
            Self::Talk(talk) => talk.is_long(),
            Self::TaskList(_) | Self::History(_) => true,
            Self::Logs(query) => query.follow,
            Self::TaskSend(task) => task.wait_seconds.is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::AgentId;

    #[test]
    fn requests_have_one_form_on_the_wire() {
        let agent = AgentId::parse("a").unwrap();
        let logs = Request::Logs(Query::last(&agent, 5));
        let json = r#"{"verb":"logs","agent":"a","lines":5,"since":null,"follow":false}"#;
        assert_eq!(serde_json::to_string(&logs).unwrap(), json);
        assert_eq!(serde_json::from_str::<Request>(json).unwrap(), logs);
        assert_eq!(
            serde_json::from_str::<Request>(r#"{"verb":"status"}"#).unwrap(),
            Request::Status
        );
        let list = r#"{"verb":"task-list","agent":"a","states":["failed"],"limit":3}"#;
        let Request::TaskList(filter) = serde_json::from_str(list).unwrap() else { panic!() };
        assert_eq!((filter.limit, filter.states.len(), filter.since), (Some(3), 1, None));
        let show = Request::TaskShow(ShowTask { task: TaskId::parse("abc").unwrap() });
        assert_eq!(serde_json::to_string(&show).unwrap(), r#"{"verb":"task-show","task":"abc"}"#);
    }

    #[test]
    fn what_is_not_a_request_is_refused() {
        let bad = [
            "",
            "{}",
            "[]",
            r#"{"verb":"start","agent":"a"}"#,
            r#"{"verb":"logs","agent":"../a","lines":5,"since":null,"follow":false}"#,
            r#"{"verb":"logs","agent":"a","lines":5,"since":null,"follow":false,"unit":"ssh"}"#,
            r#"{"verb":"logs","agent":"a","lines":-5,"since":null,"follow":false}"#,
            r#"{"verb":"task-send","to":"../a","text":"x"}"#,
            r#"{"verb":"task-send","to":"all","text":"x","as":"root"}"#,
            r#"{"verb":"ask-decide","ask":"abcd"}"#,
            r#"{"verb":"ask-decide","ask":"abcd","approve":true,"reason":null,"uid":0}"#,
            r#"{"verb":"task-list","states":["gone"]}"#,
            r#"{"verb":"task-list","limit":-1}"#,
            r#"{"verb":"history","where":"1=1"}"#,
            r#"{"verb":"task-show","task":"../a"}"#,
            r#"{"verb":"task-show"}"#,
        ];
        for json in bad {
            assert!(serde_json::from_str::<Request>(json).is_err(), "{json}");
        }
    }
}
