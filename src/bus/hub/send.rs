//! Sends tasks: to one agent, to all, to the shared queue.

use async_nats::jetstream::message::PublishMessage;
use futures_util::future::join_all;

use super::Hub;
use super::error::{Error, refused, store_error};
use crate::bus::message::{self, Address, BadMessage, Control, Task, TaskId};
use crate::bus::subject::{self, Kind};
use crate::names::AgentId;

/// That a task is stored, and survives what the configured `sync` survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// A task with this id was stored before; this one was not stored again.
    pub duplicate: bool,
}

/// Where a task was stored.
pub(in crate::bus) struct Stored {
    pub(in crate::bus) receipt: Receipt,
    pub(in crate::bus) sequence: u64,
}

impl Hub {
    /// Sends a task: to one agent, to each of `everyone`, or to the shared queue.
    ///
    /// One outcome for each receiver, because some may take it while another's list is full. A
    /// receipt means stored; the task is then done even if the sender dies.
    pub async fn send(
        &self,
        task: &Task,
        everyone: &[AgentId],
    ) -> Vec<(Address, Result<Receipt, Error>)> {
        match &task.to {
            Address::Agent(id) => vec![(task.to.clone(), self.send_to(task, id, Kind::Own).await)],
            Address::Any => vec![(Address::Any, self.queue(task).await)],
            Address::All => {
                let each = everyone.iter().map(async |id| {
                    (Address::Agent(id.clone()), self.send_to(task, id, Kind::All).await)
                });
                join_all(each).await
            }
        }
    }

    /// Stores a task for one agent.
    ///
    /// # Errors
    /// When the agent is unknown, too much waits for it, or the server does not answer.
    pub async fn send_to(&self, task: &Task, id: &AgentId, kind: Kind) -> Result<Receipt, Error> {
        let stream = subject::task_stream(id);
        self.store(task, &kind.hub_subject(id), &stream).await.map(|stored| stored.receipt)
    }

    /// Stores a task in its sender's lane of the shared queue.
    ///
    /// # Errors
    /// When too much waits, or the server does not answer.
    pub async fn queue(&self, task: &Task) -> Result<Receipt, Error> {
        self.open_lane(task.sender).await?;
        let lane = subject::lane(task.sender);
        self.store(task, &lane, subject::QUEUE_STREAM).await.map(|stored| stored.receipt)
    }

    /// Stores a task in the stream that must be the one behind `subject`.
    pub(in crate::bus) async fn store(
        &self,
        task: &Task,
        subject: &str,
        stream: &str,
    ) -> Result<Stored, Error> {
        let payload = message::encode(task).map_err(|error| match error {
            BadMessage::TooLarge(bytes) => Error::TooLarge { task: task.id.to_string(), bytes },
            error => error.into(),
        })?;
        // The stream drops a second message with the same id; a task handed out again is another.
        let once = format!("{}.{}", task.id, task.attempt);
        let message = PublishMessage::build()
            .payload(payload.into())
            .message_id(once)
            .expected_stream(stream);
        let sent = match self.js.send_publish(subject.to_owned(), message).await {
            Ok(ack) => ack.await,
            Err(e) => Err(e),
        };
        match sent {
            Ok(ack) => {
                Ok(Stored { receipt: Receipt { duplicate: ack.duplicate }, sequence: ack.sequence })
            }
            Err(e) => Err(store_error(task, &e, self.keeps_streams().await)),
        }
    }

    /// Asks an agent to end a task that it works on. Not stored: one that does not hear it goes on,
    /// and its result is refused.
    ///
    /// # Errors
    /// When the connection is down.
    pub async fn cancel(&self, id: &AgentId, task: &TaskId) -> Result<(), Error> {
        let order = Control::Cancel(task.clone());
        self.tell(id, &order, || format!("tell {id} to end task {task}")).await
    }

    /// Asks an agent for a heartbeat now, and not when half a minute is over.
    ///
    /// # Errors
    /// When the connection is down.
    pub async fn ask_for_heartbeat(&self, id: &AgentId) -> Result<(), Error> {
        self.tell(id, &Control::Heartbeat, || format!("ask {id} for a heartbeat")).await
    }

    async fn tell(
        &self,
        id: &AgentId,
        order: &Control,
        step: impl FnOnce() -> String,
    ) -> Result<(), Error> {
        let said = self.client.publish(subject::control(id), message::encode(order)?.into()).await;
        said.map_err(|cause| refused(step())(cause))
    }
}
