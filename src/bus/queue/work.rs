//! What takes time in the shared queue: asking, storing, acknowledging. Each runs beside the others.

use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::context::PublishError;
use async_nats::jetstream::{AckKind, Message};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::lanes::Held;
use super::{Book, Known};
use crate::bus::hub::{Error, Hub};
use crate::bus::message::{Status, Task, TaskId, TaskResult};
use crate::bus::subject::{self, Kind};
use crate::names::AgentId;
use crate::text::printable;

/// Before a task is stored once more because the server did not answer.
const AGAIN: Duration = Duration::from_secs(1);

/// How far the book may be behind what agents have reported.
const BEHIND: Duration = Duration::from_secs(3);
/// Most characters of the reason in a dead letter.
const REASON_MAX: usize = 400;

/// What became of it.
pub(super) enum Did {
    /// Nothing is left to do.
    Nothing,
    /// What the book says of a task that came again.
    Known { held: Held, known: Option<Known>, delivered: u64 },
    /// Whether a task lies in its agent's stream, and where.
    Stored { task: TaskId, attempt: u64, outcome: Result<u64, Error> },
    /// A task was taken from its agent, and which attempt is `over`; none when it had ended before.
    Lost { lane: u32, task: Task, message: Message, over: Option<u64> },
}

/// A task that its agent is to lose.
pub(super) struct Lost {
    pub lane: u32,
    pub agent: AgentId,
    pub task: Task,
    pub place: Option<u64>,
    pub message: Message,
    pub why: String,
}

type Work = BoxFuture<'static, Did>;

/// Takes an ended task out of the queue, and tells whoever waits for it. One that its agent has
/// given up is put on the list of dead letters first, with the reason.
pub(super) fn finish(
    hub: Hub,
    message: Message,
    id: TaskId,
    result: Option<TaskResult>,
    given_up: Option<String>,
) -> Work {
    async move {
        if let Some(why) = given_up
            && let Err(e) = letter(&hub, &message, &why).await
        {
            // Its end is in the history all the same.
            tracing::error!("write the list of dead letters: {e}");
        }
        if let Some(result) = result {
            tell(&hub, &id, &result).await;
        }
        if let Err(e) = message.double_ack().await {
            // It comes again, and that it has ended is found then.
            tracing::warn!("end task {id} of the shared queue: {e}");
        }
        Did::Nothing
    }
    .boxed()
}

/// Tells whoever waits for a task.
pub(super) fn announce(hub: Hub, id: TaskId, result: TaskResult) -> Work {
    async move {
        tell(&hub, &id, &result).await;
        Did::Nothing
    }
    .boxed()
}

async fn tell(hub: &Hub, id: &TaskId, result: &TaskResult) {
    if let Err(e) = hub.announce(id, result).await {
        tracing::warn!("{e}");
    }
}

/// Asks what is known of a task that may have been handed out before. `left`: it lies with an agent.
pub(super) fn look_up(book: Arc<dyn Book>, held: Held, delivered: u64, left: bool) -> Work {
    async move {
        let id = &held.task.id;
        let mut known = book.known(id.clone()).await;
        if !left && known.is_some_and(|known| known.attempts > 0 && !known.ended) {
            // No agent has it any more: its result can be on its way into the book.
            tokio::time::sleep(BEHIND).await;
            known = book.known(id.clone()).await;
        }
        Did::Known { held, known, delivered }
    }
    .boxed()
}

/// Puts a task into its agent's stream.
pub(super) fn store(hub: Hub, task: Task, agent: AgentId) -> Work {
    async move {
        let (subject, stream) = (Kind::Any.hub_subject(&agent), subject::task_stream(&agent));
        let outcome = hub.store(&task, &subject, &stream).await.map(|stored| stored.sequence);
        Did::Stored { task: task.id, attempt: task.attempt, outcome }
    }
    .boxed()
}

/// The same after a pause.
pub(super) fn store_later(hub: Hub, task: Task, agent: AgentId) -> Work {
    tokio::time::sleep(AGAIN).then(move |()| store(hub, task, agent)).boxed()
}

/// Takes a task out of an agent's stream.
pub(super) fn remove(hub: Hub, agent: AgentId, place: u64, id: TaskId) -> Work {
    async move {
        if let Err(e) = hub.remove(&subject::task_stream(&agent), place, &id).await {
            tracing::warn!("{e}");
        }
        Did::Nothing
    }
    .boxed()
}

/// Takes a task from a silent agent: first in the book, so that a result that comes now is late.
pub(super) fn take_back(hub: Hub, book: Arc<dyn Book>, lost: Lost) -> Work {
    async move {
        let Lost { lane, agent, task, place, message, why } = lost;
        let over = book.back(task.id.clone(), task.attempt, why).await;
        if let Some(place) = place
            && let Err(e) = hub.remove(&subject::task_stream(&agent), place, &task.id).await
        {
            tracing::warn!("{e}");
        }
        Did::Lost { lane, task, message, over }
    }
    .boxed()
}

/// Copies a message of the queue to the list of dead letters.
async fn letter(hub: &Hub, message: &Message, why: &str) -> Result<(), PublishError> {
    let mut headers = HeaderMap::new();
    // It can be an agent's word, and a header ends with its line.
    let why: String = printable(why).chars().take(REASON_MAX).collect();
    headers.insert(crate::bus::hub::REASON, why.as_str());
    let payload = message.payload.clone();
    let stored = hub.jetstream().publish_with_headers(subject::DEAD, headers, payload).await?;
    stored.await.map(|_| ())
}

/// Puts a task that cannot be done on the list of dead letters, then out of the queue.
pub(super) fn bury(
    hub: Hub,
    book: Arc<dyn Book>,
    message: Message,
    id: Option<TaskId>,
    why: String,
) -> Work {
    async move {
        if let Err(e) = letter(&hub, &message, &why).await {
            // It stays in the queue and comes again.
            tracing::error!("write the list of dead letters: {e}");
            return Did::Nothing;
        }
        if let Some(id) = id {
            book.given_up(id.clone(), why.clone()).await;
            tell(&hub, &id, &TaskResult::decided(&id, "any", Status::Failed, &why)).await;
        }
        let _ = message.double_ack_with(AckKind::Term).await;
        Did::Nothing
    }
    .boxed()
}
