//! Sends a task and collects its results: the same for `flockctl` run by root and for flockd.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use jiff::{SignedDuration, Timestamp};
use tokio::time::{Instant, timeout_at};

use crate::bus::hub::{self, Hub, Notice, Report};
use crate::bus::message::{Address, Task, TaskResult};
use crate::control::request::{SendTask, WAIT_MAX_SECONDS};
use crate::control::response::Sent;
use crate::names::AgentId;

/// Why a task was not sent.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The receiver does not exist.
    #[error("send a task to {id}: no agent of this name is configured; there are: {known}")]
    Unknown {
        /// The name that was asked for.
        id: AgentId,
        /// Those that exist.
        known: String,
    },
    /// There is nobody.
    #[error("send a task to all: no agent is configured")]
    Nobody,
    /// The bus.
    #[error(transparent)]
    Bus(#[from] hub::Error),
    /// No receiver took it.
    #[error("{}", .0.join("\n"))]
    Refused(Vec<String>),
}

/// The results that are still to come.
pub struct Results {
    notices: BoxStream<'static, Notice>,
    wanted: Wanted,
    deadline: Instant,
}

/// Which results end the wait. Pure.
#[derive(Debug)]
struct Wanted {
    task: String,
    /// For the shared queue any agent may answer.
    anyone: bool,
    from: BTreeSet<AgentId>,
}

impl Wanted {
    /// The result, if it is one that is waited for; each agent answers once.
    fn take(&mut self, notice: Notice) -> Option<TaskResult> {
        let Report::Result(Ok(result)) = notice.report else { return None };
        if result.task != self.task {
            return None;
        }
        let expected = match self.anyone {
            true => std::mem::take(&mut self.anyone),
            false => self.from.remove(&notice.from),
        };
        expected.then_some(result)
    }

    fn is_empty(&self) -> bool {
        !self.anyone && self.from.is_empty()
    }
}

/// Stores the task. With `wait_seconds` the results can be collected; no result that comes after
/// the task was stored is missed.
///
/// # Errors
/// When no receiver could get it. Some may have it although others could not: see [`Sent`].
pub async fn send(
    hub: &Hub,
    everyone: &[AgentId],
    order: SendTask,
) -> Result<(Sent, Option<Results>), SendError> {
    check(&order.to, everyone)?;
    let wait = order.wait_seconds.map(|seconds| seconds.min(WAIT_MAX_SECONDS));
    let mut task = Task::new(order.to, order.text);
    task.deadline = order.deadline_seconds.and_then(|seconds| later(task.created, seconds));
    let notices = match wait {
        Some(_) => Some(hub.watch().await?),
        None => None,
    };
    let (mut agents, mut refused) = (Vec::new(), Vec::new());
    let mut queued = false;
    for (to, outcome) in hub.send(&task, everyone).await {
        match (to, outcome) {
            (_, Err(error)) => refused.push(error.to_string()),
            (Address::Agent(id), Ok(_)) => agents.push(id),
            (Address::Any | Address::All, Ok(_)) => queued = true,
        }
    }
    let results = agents.len() + usize::from(queued);
    if results == 0 {
        return Err(SendError::Refused(refused));
    }
    let waiting = notices.zip(wait).map(|(notices, seconds)| Results {
        notices,
        wanted: Wanted {
            task: task.id.to_string(),
            anyone: queued,
            from: agents.iter().cloned().collect(),
        },
        deadline: Instant::now() + Duration::from_secs(seconds),
    });
    Ok((Sent { task: task.id, agents, refused, results }, waiting))
}

fn check(to: &Address, everyone: &[AgentId]) -> Result<(), SendError> {
    match to {
        Address::Agent(id) if !everyone.contains(id) => {
            let known: Vec<_> = everyone.iter().map(AgentId::as_str).collect();
            Err(SendError::Unknown { id: id.clone(), known: known.join(", ") })
        }
        Address::All | Address::Any if everyone.is_empty() => Err(SendError::Nobody),
        _ => Ok(()),
    }
}

fn later(from: Timestamp, seconds: u64) -> Option<Timestamp> {
    let span = SignedDuration::from_secs(i64::try_from(seconds).ok()?);
    from.checked_add(span).ok()
}

/// The wait for results was over before they were there.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("no result in time from {}", .0)]
pub struct Late(pub String);

impl Results {
    /// The next result; `None` when all are there.
    ///
    /// # Errors
    /// [`Late`] when the time is over; the task goes on and its result is kept by the bus.
    pub async fn next(&mut self) -> Result<Option<TaskResult>, Late> {
        while !self.wanted.is_empty() {
            match timeout_at(self.deadline, self.notices.next()).await {
                Ok(Some(notice)) => {
                    if let Some(result) = self.wanted.take(notice) {
                        return Ok(Some(result));
                    }
                }
                Ok(None) | Err(_) => return Err(self.late()),
            }
        }
        Ok(None)
    }

    fn late(&self) -> Late {
        match self.wanted.anyone {
            true => Late("any agent".to_owned()),
            false => {
                let names: Vec<_> = self.wanted.from.iter().map(AgentId::as_str).collect();
                Late(names.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::message::BadMessage;

    fn id(text: &str) -> AgentId {
        AgentId::parse(text).unwrap()
    }

    fn notice(from: &str, task: &str) -> Notice {
        let json = format!("{{\"task\":\"{task}\",\"agent\":\"{from}\"}}");
        Notice { from: id(from), report: Report::Result(Ok(serde_json::from_str(&json).unwrap())) }
    }

    #[test]
    fn each_agent_answers_once_and_only_for_this_task() {
        let mut wanted =
            Wanted { task: "t".into(), anyone: false, from: [id("a"), id("b")].into() };
        assert!(wanted.take(notice("a", "other")).is_none());
        assert!(wanted.take(notice("stranger", "t")).is_none());
        assert!(wanted.take(notice("a", "t")).is_some());
        assert!(wanted.take(notice("a", "t")).is_none());
        let bad = Notice { from: id("b"), report: Report::Result(Err(BadMessage::TaskId)) };
        assert!(wanted.take(bad).is_none());
        assert!(!wanted.is_empty());
        assert!(wanted.take(notice("b", "t")).is_some());
        assert!(wanted.is_empty());
    }

    #[test]
    fn one_answer_ends_the_wait_for_any() {
        let mut wanted = Wanted { task: "t".into(), anyone: true, from: BTreeSet::new() };
        assert!(wanted.take(notice("b", "other")).is_none());
        assert!(wanted.take(notice("b", "t")).is_some());
        assert!(wanted.is_empty());
        assert!(wanted.take(notice("c", "t")).is_none());
    }

    #[test]
    fn an_unknown_receiver_is_answered_with_those_that_exist() {
        let error = check(&Address::Agent(id("x")), &[id("a"), id("b")]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "send a task to x: no agent of this name is configured; there are: a, b"
        );
        assert!(check(&Address::All, &[]).is_err());
        assert!(check(&Address::Any, &[id("a")]).is_ok());
    }
}
