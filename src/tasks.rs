//! Sends a task and collects its results: the same for `flockctl` run by root and for flockd.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use jiff::{SignedDuration, Timestamp};
use tokio::time::{Instant, interval, sleep_until};

use crate::bus::environment::{self, BadEnvironment};
use crate::bus::hub::{self, Hub, News, Notice, Report};
use crate::bus::message::{Address, Task, TaskId, TaskResult};
use crate::control::request::{SendTask, WAIT_MAX_SECONDS};
use crate::control::response::Sent;
use crate::names::AgentId;

/// How often the record is looked at while one waits: a message can be lost with a connection.
const LOOK: Duration = Duration::from_secs(2);

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
    /// A variable that a task cannot have.
    #[error("send a task: {0}")]
    Variable(#[from] BadEnvironment),
    /// The key is longer than a key may be.
    #[error("send a task with a key: a key has 1 to 200 characters")]
    Key,
    /// The key was used for something else.
    #[error(
        "send a task to {to} with the key {key:?}: task {task} was sent with it and says something \
         else: use another key"
    )]
    OtherText {
        /// The key.
        key: String,
        /// The receiver.
        to: Address,
        /// The first task.
        task: TaskId,
    },
    /// The bus.
    #[error(transparent)]
    Bus(#[from] hub::Error),
    /// No receiver took it.
    #[error("{}", .0.join("\n"))]
    Refused(Vec<String>),
}

/// What an operator asks for, as a task. With a key, the same receiver and key give the same id.
///
/// # Errors
/// When the receiver does not exist, or a variable or the key cannot be.
pub fn task(order: SendTask, sender: u32, everyone: &[AgentId]) -> Result<Task, SendError> {
    check(&order.to, everyone)?;
    environment::check(&order.environment)?;
    let mut task = Task::new(order.to, order.text);
    if let Some(key) = &order.key {
        if key.is_empty() || key.chars().count() > 200 {
            return Err(SendError::Key);
        }
        task.id = TaskId::of_key(&task.to, key);
    }
    task.deadline = order.deadline_seconds.and_then(|seconds| later(task.created, seconds));
    task.sender = sender;
    task.key = order.key;
    task.environment = order.environment;
    Ok(task)
}

/// How ended results of a task are looked up: whose, and which. Empty when nothing is known.
pub type Look = Box<dyn Fn(TaskId) -> BoxFuture<'static, Vec<(String, TaskResult)>> + Send + Sync>;

/// The results that are still to come.
pub struct Results {
    news: BoxStream<'static, News>,
    wanted: Wanted,
    ready: Vec<TaskResult>,
    look: Look,
    deadline: Instant,
}

/// What is heard while one waits.
#[derive(Debug)]
pub enum Heard {
    /// An agent says that it has begun.
    Begun(AgentId),
    /// A result.
    Result(Box<TaskResult>),
}

fn heard(result: TaskResult) -> Heard {
    Heard::Result(Box::new(result))
}

/// Which results end the wait. Pure.
#[derive(Debug)]
struct Wanted {
    task: String,
    /// Of the shared queue one result is expected, and only flock says which.
    anyone: bool,
    from: BTreeSet<AgentId>,
}

impl Wanted {
    /// What it means, if it is about what is waited for; each agent answers once.
    fn take(&mut self, news: News) -> Option<Heard> {
        match news {
            News::Final(result) => self.over(&result.agent.clone(), result).map(heard),
            News::Said(Notice { from, report: Report::Result(Ok(result)) }) => {
                let ours = result.task == self.task && self.from.remove(&from);
                ours.then(|| heard(result))
            }
            News::Said(Notice { from, report: Report::Event(Ok(event)) }) => {
                let begun = event.event == "task-started"
                    && event.task.as_deref() == Some(&*self.task)
                    && (self.anyone || self.from.contains(&from));
                begun.then_some(Heard::Begun(from))
            }
            News::Said(_) => None,
        }
    }

    /// The task has ended for this agent, or in the shared queue.
    fn over(&mut self, agent: &str, result: TaskResult) -> Option<TaskResult> {
        let expected = match self.anyone {
            true => std::mem::take(&mut self.anyone),
            false => AgentId::parse(agent).is_ok_and(|id| self.from.remove(&id)),
        };
        (expected && result.task == self.task).then_some(result)
    }

    fn is_empty(&self) -> bool {
        !self.anyone && self.from.is_empty()
    }
}

/// Stores the task. With `wait` the results can be collected; no result that comes after the task
/// was stored is missed.
///
/// # Errors
/// When no receiver could get it. Some may have it although others could not: see [`Sent`].
pub async fn send(
    hub: &Hub,
    everyone: &[AgentId],
    task: &Task,
    wait: Option<u64>,
    look: Look,
) -> Result<(Sent, Option<Results>), SendError> {
    let news = match wait {
        Some(_) => Some(hub.follow(&task.id, task.to != Address::Any).await?),
        None => None,
    };
    let (mut agents, mut refused) = (Vec::new(), Vec::new());
    let (mut queued, mut duplicate) = (false, false);
    for (to, outcome) in hub.send(task, everyone).await {
        match (to, outcome) {
            (_, Err(error)) => refused.push(error.to_string()),
            (to, Ok(receipt)) => {
                duplicate |= receipt.duplicate;
                match to {
                    Address::Agent(id) => agents.push(id),
                    Address::Any | Address::All => queued = true,
                }
            }
        }
    }
    let results = agents.len() + usize::from(queued);
    if results == 0 {
        return Err(SendError::Refused(refused));
    }
    let sent = Sent { task: task.id.clone(), agents, refused, results, duplicate };
    let waiting = news.zip(wait).map(|(news, seconds)| Results::new(news, &sent, seconds, look));
    Ok((sent, waiting))
}

/// Waits for a task that was sent before.
///
/// # Errors
/// When the bus does not answer.
pub async fn wait_for(
    hub: &Hub,
    sent: &Sent,
    seconds: u64,
    look: Look,
) -> Result<Results, SendError> {
    let news = hub.follow(&sent.task, !sent.agents.is_empty()).await?;
    Ok(Results::new(news, sent, seconds, look))
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
#[error("no result in time from {from}; the task goes on: flockctl task show {task}")]
pub struct Late {
    from: String,
    task: String,
}

impl Results {
    fn new(news: BoxStream<'static, News>, sent: &Sent, seconds: u64, look: Look) -> Self {
        let wanted = Wanted {
            task: sent.task.to_string(),
            anyone: sent.agents.is_empty(),
            from: sent.agents.iter().cloned().collect(),
        };
        let seconds = seconds.min(WAIT_MAX_SECONDS);
        let deadline = Instant::now() + Duration::from_secs(seconds);
        Self { news, wanted, ready: Vec::new(), look, deadline }
    }

    /// The next that is heard; `None` when all results are there.
    ///
    /// # Errors
    /// [`Late`] when the time is over; the task goes on and its result is kept by the bus.
    pub async fn next(&mut self) -> Result<Option<Heard>, Late> {
        let mut looks = interval(LOOK);
        loop {
            if let Some(result) = self.ready.pop() {
                return Ok(Some(heard(result)));
            }
            if self.wanted.is_empty() {
                return Ok(None);
            }
            tokio::select! {
                news = self.news.next() => match news.map(|news| self.wanted.take(news)) {
                    Some(None) => {}
                    Some(heard) => return Ok(heard),
                    None => return Err(self.late()),
                },
                // The first look is at once: the task may have ended long ago.
                _ = looks.tick() => self.look().await,
                () = sleep_until(self.deadline) => return Err(self.late()),
            }
        }
    }

    async fn look(&mut self) {
        let Ok(task) = TaskId::parse(&self.wanted.task) else { return };
        for (slot, result) in (self.look)(task).await {
            self.ready.extend(self.wanted.over(&slot, result));
        }
    }

    fn late(&self) -> Late {
        let names: Vec<_> = self.wanted.from.iter().map(AgentId::as_str).collect();
        let from = if self.wanted.anyone { "any agent".to_owned() } else { names.join(", ") };
        Late { from, task: self.wanted.task.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::message::{BadMessage, Status};

    fn id(text: &str) -> AgentId {
        AgentId::parse(text).unwrap()
    }

    fn notice(from: &str, task: &str) -> News {
        let json = format!("{{\"task\":\"{task}\",\"agent\":\"{from}\"}}");
        let report = Report::Result(Ok(serde_json::from_str(&json).unwrap()));
        News::Said(Notice { from: id(from), report })
    }

    fn end(agent: &str, task: &str) -> News {
        let task = TaskId::parse(task).unwrap();
        News::Final(TaskResult::decided(&task, agent, Status::Cancelled, "so it is"))
    }

    #[test]
    fn each_agent_answers_once_and_only_for_this_task() {
        let mut wanted =
            Wanted { task: "t".into(), anyone: false, from: [id("a"), id("b"), id("c")].into() };
        assert!(wanted.take(notice("a", "other")).is_none());
        assert!(wanted.take(notice("stranger", "t")).is_none());
        assert!(wanted.take(notice("a", "t")).is_some());
        assert!(wanted.take(notice("a", "t")).is_none());
        let report = Report::Result(Err(BadMessage::TaskId));
        assert!(wanted.take(News::Said(Notice { from: id("b"), report })).is_none());
        assert!(!wanted.is_empty());
        assert!(wanted.take(notice("b", "t")).is_some());
        assert!(wanted.take(end("a", "t")).is_none(), "it has answered");
        assert!(wanted.take(end("c", "t")).is_some(), "cancelled");
        assert!(wanted.is_empty());
    }

    #[test]
    fn of_the_shared_queue_only_flock_says_how_a_task_ended() {
        let mut wanted = Wanted { task: "t".into(), anyone: true, from: BTreeSet::new() };
        assert!(wanted.take(notice("b", "t")).is_none(), "late, or a lie");
        assert!(!wanted.is_empty());
        assert!(wanted.take(end("b", "t")).is_some());
        assert!(wanted.is_empty());
        assert!(wanted.take(end("c", "t")).is_none());
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

    #[test]
    fn the_same_key_for_the_same_receiver_is_the_same_task() {
        let order = |to: &str, key: &str| SendTask {
            key: Some(key.to_owned()),
            ..SendTask::new(Address::try_from(to.to_owned()).unwrap(), "x")
        };
        let id_of = |to, key| task(order(to, key), 7, &[id("a"), id("b")]).unwrap().id;
        assert_eq!(id_of("a", "k"), id_of("a", "k"));
        assert_ne!(id_of("a", "k"), id_of("b", "k"));
        assert_ne!(id_of("a", "k"), id_of("a", "l"));
        assert_ne!(id_of("any", "k"), id_of("all", "k"));
        assert!(task(order("a", ""), 7, &[id("a")]).is_err());
    }
}
