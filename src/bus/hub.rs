//! The operator's side of the bus: make the streams, send tasks, see what agents report.
//!
//! Its user is `operator` of the hub account, whose password only root can read.

use std::time::Duration;

use async_nats::jetstream::context::{Context, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{self, ErrorCode, consumer, stream};
use async_nats::{Client, ConnectOptions, Event as LinkEvent};
use futures_util::stream::{BoxStream, StreamExt as _, select_all};

use super::identity::Identity;
use super::message::{self, Address, BadMessage, Event, Heartbeat, Task, TaskResult};
use super::streams::{self, Member};
use super::subject::{self, FromAgent, Kind};
use crate::names::AgentId;

/// How long the server may take to answer; `sync: always` on a slow disk included.
const ANSWER: Duration = Duration::from_secs(10);
/// What an ordinary client asks of the server on a busy machine before it calls it unreachable.
const CONNECT: Duration = Duration::from_secs(5);

/// Why something on the bus did not work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server cannot be reached, or refused the password.
    #[error("connect to the bus at {url}: {cause}: see `systemctl status flock-bus`")]
    Connect {
        /// Its address.
        url: String,
        /// What went wrong.
        cause: String,
    },
    /// The server refused or did not answer.
    #[error("{step}: {cause}")]
    Refused {
        /// What was tried, and on what.
        step: String,
        /// What the server said.
        cause: String,
    },
    /// So many tasks wait already that no more is taken.
    #[error("send task {task} to {to}: {to} has too many waiting tasks: try again later")]
    Full {
        /// The task.
        task: String,
        /// Whose list is full.
        to: String,
    },
    /// Nobody keeps tasks for this receiver.
    #[error("send task {task} to {to}: the bus knows no {to}: run `flockctl apply`")]
    Unknown {
        /// The task.
        task: String,
        /// For whom it was.
        to: String,
    },
    /// The message cannot be sent as it is.
    #[error(transparent)]
    Message(#[from] BadMessage),
}

/// That a task is stored, and survives what the configured `sync` survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// A task with this id was stored before; this one was not stored again.
    pub duplicate: bool,
}

/// Where a task was stored.
pub(super) struct Stored {
    pub(super) receipt: Receipt,
    pub(super) sequence: u64,
}

/// One message from an agent. The sender is the account that the server saw.
#[derive(Clone, Debug)]
pub struct Notice {
    /// Who sent it.
    pub from: AgentId,
    /// What it says.
    pub report: Report,
}

/// What an agent reports.
#[derive(Clone, Debug)]
pub enum Report {
    /// A task's result, if it can be read.
    Result(Result<TaskResult, BadMessage>),
    /// An event, if it can be read.
    Event(Result<Event, BadMessage>),
    /// A heartbeat. That it came is what counts; a plain client may send anything.
    Heartbeat(Option<Heartbeat>),
}

/// How much waits for an agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Tasks not yet handed out.
    pub waiting: u64,
    /// Tasks handed out and not yet done.
    pub running: u64,
}

/// A connection to the hub account. Cheap to clone; reconnects by itself.
#[derive(Clone, Debug)]
pub struct Hub {
    client: Client,
    js: Context,
}

impl Hub {
    /// Connects once. A connection that is lost later comes back by itself.
    ///
    /// # Errors
    /// When the server is not there or refuses the password.
    pub async fn connect(identity: &Identity, url: &str) -> Result<Self, Error> {
        let client = ConnectOptions::with_user_and_password(
            identity.user().to_owned(),
            identity.password().to_owned(),
        )
        .name("flock")
        .connection_timeout(CONNECT)
        .request_timeout(Some(ANSWER))
        .event_callback(|event| async move { log_link(&event) })
        .connect(url)
        .await
        .map_err(|e| Error::Connect { url: url.to_owned(), cause: e.to_string() })?;
        let mut js = jetstream::new(client.clone());
        js.set_timeout(ANSWER);
        Ok(Self { client, js })
    }

    /// Whether the connection stands now; one that was lost comes back by itself.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == async_nats::connection::State::Connected
    }

    /// Makes or brings up to date the shared queue and the streams of `members`. Tasks that wait are kept.
    ///
    /// # Errors
    /// At the first stream or consumer that the server refuses.
    pub async fn ensure(&self, members: &[Member]) -> Result<(), Error> {
        self.ensure_stream(streams::queue()).await?;
        self.ensure_stream(streams::dead_letters()).await?;
        let queue =
            self.js.create_consumer_on_stream(streams::queue_consumer(), subject::QUEUE_STREAM);
        queue.await.map_err(refused("make the shared queue's consumer"))?;
        for member in members {
            self.ensure_member(member).await?;
        }
        Ok(())
    }

    async fn ensure_member(&self, member: &Member) -> Result<(), Error> {
        let id = &member.id;
        self.ensure_stream(streams::tasks(id)).await?;
        self.ensure_stream(streams::results(id)).await?;
        self.ensure_stream(streams::channels(id)).await?;
        let name = subject::task_stream(id);
        // First the new consumers, then away with the old: a stream that nobody reads keeps nothing.
        for config in streams::consumers(member) {
            let make =
                self.js.create_consumer_on_stream::<consumer::Config, _>(config, name.clone());
            make.await.map_err(refused(format!("make the consumers of {id}")))?;
        }
        for old in streams::foreign_consumers(member.delivery) {
            self.delete_consumer(&name, &old).await?;
        }
        Ok(())
    }

    async fn ensure_stream(&self, config: stream::Config) -> Result<(), Error> {
        let step = format!("make the stream {}", config.name);
        self.js.create_or_update_stream(config).await.map(|_| ()).map_err(refused(step))
    }

    async fn delete_consumer(&self, stream: &str, name: &str) -> Result<(), Error> {
        let gone: Answer = self
            .js
            .request(format!("CONSUMER.DELETE.{stream}.{name}"), &serde_json::json!({}))
            .await
            .map_err(refused(format!("remove the consumer {name} of {stream}")))?;
        gone.unless(ErrorCode::CONSUMER_NOT_FOUND, || {
            format!("remove the consumer {name} of {stream}")
        })
    }

    /// Deletes what the bus keeps for an agent that is no more: its waiting tasks and its results.
    ///
    /// # Errors
    /// When the server refuses; streams that are not there are no error.
    pub async fn forget(&self, id: &AgentId) -> Result<(), Error> {
        let streams =
            [subject::task_stream(id), subject::result_stream(id), subject::channel_stream(id)];
        for name in streams {
            let step = || format!("remove the stream {name}");
            let nothing = serde_json::json!({});
            let request = self.js.request(format!("STREAM.DELETE.{name}"), &nothing);
            let gone: Answer = request.await.map_err(refused(step()))?;
            gone.unless(ErrorCode::STREAM_NOT_FOUND, step)?;
        }
        Ok(())
    }

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
            Address::Any => {
                let stored = self.store(task, subject::ANY, subject::QUEUE_STREAM).await;
                vec![(Address::Any, stored.map(|stored| stored.receipt))]
            }
            Address::All => {
                let mut outcomes = Vec::with_capacity(everyone.len());
                for id in everyone {
                    let outcome = self.send_to(task, id, Kind::All).await;
                    outcomes.push((Address::Agent(id.clone()), outcome));
                }
                outcomes
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

    /// Stores a task in the stream that must be the one behind `subject`.
    pub(super) async fn store(
        &self,
        task: &Task,
        subject: &str,
        stream: &str,
    ) -> Result<Stored, Error> {
        let payload = message::encode(task)?;
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
            Err(e) => Err(store_error(task, &e)),
        }
    }

    /// Everything that agents report from now on: results, events and heartbeats.
    ///
    /// # Errors
    /// When the server does not confirm the subscriptions.
    pub async fn watch(&self) -> Result<BoxStream<'static, Notice>, Error> {
        let step = "listen to the agents";
        let mut parts = Vec::new();
        for subject in ["task.result.*", "agent.*.events", "agent.*.heartbeat"] {
            parts.push(self.client.subscribe(subject).await.map_err(refused(step))?);
        }
        // A subscription counts once the server has it: a result must not slip in before.
        self.client.flush().await.map_err(refused(step))?;
        let notice = |m: async_nats::Message| async move { read_notice(&m.subject, &m.payload) };
        Ok(select_all(parts).filter_map(notice).boxed())
    }

    /// How many tasks wait for an agent, and how many it works on.
    ///
    /// # Errors
    /// When the agent is unknown or the server does not answer.
    pub async fn backlog(&self, member: &Member) -> Result<Backlog, Error> {
        let stream = subject::task_stream(&member.id);
        let mut backlog = Backlog::default();
        for config in streams::consumers(member) {
            let name = config.name.unwrap_or_default();
            let step = format!("look up the waiting tasks of {}", member.id);
            let request = format!("CONSUMER.INFO.{stream}.{name}");
            let answer: InfoAnswer = self
                .js
                .request(request, &serde_json::json!({}))
                .await
                .map_err(refused(step.clone()))?;
            if let Some(error) = answer.error {
                return Err(Error::Refused { step, cause: error.to_string() });
            }
            backlog.waiting += answer.num_pending;
            backlog.running += answer.num_ack_pending;
        }
        Ok(backlog)
    }

    /// The plain client, for the modules of the bus.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// The JetStream context, for the modules of the bus.
    pub(super) fn jetstream(&self) -> &Context {
        &self.js
    }
}

/// Reads what the server answers to a request that makes nothing.
#[derive(serde::Deserialize)]
struct Answer {
    error: Option<jetstream::Error>,
}

impl Answer {
    /// Success, also when the error only says that there was nothing to do.
    fn unless(self, code: ErrorCode, step: impl FnOnce() -> String) -> Result<(), Error> {
        match self.error {
            Some(error) if error.error_code() != code => {
                Err(Error::Refused { step: step(), cause: error.to_string() })
            }
            _ => Ok(()),
        }
    }
}

#[derive(serde::Deserialize)]
struct InfoAnswer {
    error: Option<jetstream::Error>,
    #[serde(default)]
    num_pending: u64,
    #[serde(default)]
    num_ack_pending: u64,
}

/// What a message says, or `None` when its subject is not an agent's.
fn read_notice(subject: &str, payload: &[u8]) -> Option<Notice> {
    let (from, report) = match subject::from_agent(subject)? {
        FromAgent::Result(id) => {
            let result = message::parse::<TaskResult>(payload);
            let result = result.map(|r| TaskResult { agent: id.to_string(), ..r });
            (id, Report::Result(result))
        }
        FromAgent::Event(id) => {
            let event = message::parse::<Event>(payload);
            let event = event.map(|e| Event { agent: id.to_string(), ..e });
            (id, Report::Event(event))
        }
        FromAgent::Heartbeat(id) => {
            let beat = message::parse::<Heartbeat>(payload).ok();
            let beat = beat.map(|b| Heartbeat { agent: id.to_string(), ..b });
            (id, Report::Heartbeat(beat))
        }
    };
    Some(Notice { from, report })
}

fn store_error(task: &Task, error: &jetstream::context::PublishError) -> Error {
    let (task, to) = (task.id.to_string(), task.to.to_string());
    if error.kind() == PublishErrorKind::StreamNotFound {
        return Error::Unknown { task, to };
    }
    let server =
        std::error::Error::source(error).and_then(|s| s.downcast_ref::<jetstream::Error>());
    if server.is_some_and(|e| e.error_code() == ErrorCode::STREAM_STORE_FAILED) {
        return Error::Full { task, to };
    }
    Error::Refused { step: format!("send task {task} to {to}"), cause: error.to_string() }
}

pub(super) fn refused<E: std::fmt::Display>(step: impl Into<String>) -> impl FnOnce(E) -> Error {
    let step = step.into();
    move |cause| Error::Refused { step, cause: cause.to_string() }
}

fn log_link(event: &LinkEvent) {
    match event {
        LinkEvent::Connected => tracing::info!("the bus is connected"),
        LinkEvent::Disconnected => tracing::warn!("the bus is disconnected; trying again"),
        other => tracing::warn!("the bus says: {other}"),
    }
}
