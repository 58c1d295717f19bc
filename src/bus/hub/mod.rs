//! The operator's side of the bus: make the streams, send tasks, see what agents report.
//!
//! Its user is `operator` of the hub account, whose password only root can read.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::consumer::{Config, IntoConsumerConfig as _};
use async_nats::jetstream::context::Context;
use async_nats::jetstream::{self, ErrorCode, stream};
use async_nats::{Client, ConnectOptions, Event as LinkEvent};
use futures_util::TryStreamExt as _;
use tokio::sync::watch;

use super::identity::Identity;
use super::streams::{self, Member};
use super::subject;

/// Why something on the bus did not work.
mod error;
/// What is kept for agents that are no more.
mod leave;
/// What agents report, and how tasks end.
mod listen;
/// Looks into the streams: what is stored where, and what has become of it.
mod look;
/// Mends streams whose store was damaged.
mod mend;
/// Sends tasks.
mod send;

pub use error::Error;
pub(super) use error::refused;
pub use listen::{News, Notice, Report};
pub(super) use look::REASON;
pub use look::{DeadLetter, Places, Seen, Stored};
pub use send::Receipt;

/// How long the server may take to answer; `sync: always` on a slow disk included.
const ANSWER: Duration = Duration::from_secs(10);
/// What an ordinary client asks of the server on a busy machine before it calls it unreachable.
const CONNECT: Duration = Duration::from_secs(5);

/// Agents whose streams are made at the same time: each waits for the server several times.
const AT_ONCE: usize = 16;

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
    /// Lanes that this connection has made or seen.
    lanes: Arc<Mutex<BTreeSet<u32>>>,
    link: watch::Receiver<Link>,
}

/// The connection, as the client tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Whether it stands.
    pub up: bool,
    /// How often it was lost: after another number the server may be another one.
    pub losses: u64,
}

impl Hub {
    /// Connects once. A connection that is lost later comes back by itself.
    ///
    /// # Errors
    /// When the server is not there or refuses the password.
    pub async fn connect(identity: &Identity, url: &str) -> Result<Self, Error> {
        let (teller, link) = watch::channel(Link { up: true, losses: 0 });
        let client = ConnectOptions::with_user_and_password(
            identity.user().to_owned(),
            identity.password().to_owned(),
        )
        .name("flock")
        .connection_timeout(CONNECT)
        .request_timeout(Some(ANSWER))
        .event_callback(move |event| {
            log_link(&event);
            let now = *teller.borrow();
            match event {
                LinkEvent::Disconnected => {
                    teller.send_replace(Link { up: false, losses: now.losses + 1 });
                }
                LinkEvent::Connected if !now.up => {
                    teller.send_replace(Link { up: true, ..now });
                }
                _ => {}
            }
            std::future::ready(())
        })
        .connect(url)
        .await
        .map_err(|e| Error::Connect { url: url.to_owned(), cause: e.to_string() })?;
        let mut js = jetstream::new(client.clone());
        js.set_timeout(ANSWER);
        Ok(Self { client, js, lanes: Arc::default(), link })
    }

    /// The connection as it is, and each change of it.
    #[must_use]
    pub fn link(&self) -> watch::Receiver<Link> {
        self.link.clone()
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
        self.ensure_stream(streams::dead_letters()).await?;
        self.ensure_queue().await?;
        let members = futures_util::stream::iter(members.iter().map(Ok));
        members.try_for_each_concurrent(AT_ONCE, |member| self.ensure_member(member)).await
    }

    async fn ensure_queue(&self) -> Result<(), Error> {
        // The server may have lost what it had: each lane that is known is made again.
        let known = std::mem::take(&mut *self.lanes());
        self.make_queue(&known).await?;
        let senders = self.senders().await?;
        if let Some(rest) = self.take_away(subject::QUEUE_STREAM).await? {
            self.make_queue(&senders).await?;
            self.put_back(subject::QUEUE_STREAM, rest).await?;
        }
        Ok(())
    }

    async fn make_queue(&self, senders: &BTreeSet<u32>) -> Result<(), Error> {
        self.ensure_stream(streams::queue()).await?;
        self.ensure_history(subject::QUEUE_STREAM).await?;
        for sender in senders.iter().chain([&0]) {
            self.ensure_lane(*sender).await?;
        }
        Ok(())
    }

    async fn ensure_member(&self, member: &Member) -> Result<(), Error> {
        self.make_member(member).await?;
        for stream in [subject::task_stream(&member.id), subject::result_stream(&member.id)] {
            if let Some(rest) = self.take_away(&stream).await? {
                self.make_member(member).await?;
                self.put_back(&stream, rest).await?;
            }
        }
        Ok(())
    }

    async fn make_member(&self, member: &Member) -> Result<(), Error> {
        let id = &member.id;
        let (tasks, results) = (subject::task_stream(id), subject::result_stream(id));
        self.ensure_stream(streams::tasks(id)).await?;
        self.ensure_stream(streams::results(id)).await?;
        self.ensure_stream(streams::channels(id)).await?;
        self.ensure_history(&tasks).await?;
        self.ensure_history(&results).await?;
        // First the new consumers, then away with the old: a stream that nobody reads keeps nothing.
        for config in streams::consumers(member) {
            self.ensure_consumer(config, &tasks).await?;
        }
        for old in streams::foreign_consumers(member.delivery) {
            self.delete_consumer(&tasks, &old).await?;
        }
        Ok(())
    }

    async fn ensure_history(&self, stream: &str) -> Result<(), Error> {
        self.ensure_consumer(streams::history_consumer().into_consumer_config(), stream).await
    }

    async fn ensure_consumer(&self, config: Config, stream: &str) -> Result<(), Error> {
        let name = config.name.clone().unwrap_or_default();
        let made = self.js.create_consumer_on_stream::<Config, _>(config, stream).await;
        made.map(|_| ()).map_err(refused(format!("make the consumer {name} of {stream}")))
    }

    /// Makes the lane of a sender in the shared queue, unless it is there. Its tasks would not be
    /// kept without.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub async fn open_lane(&self, sender: u32) -> Result<(), Error> {
        if !self.lanes().contains(&sender) {
            self.ensure_lane(sender).await?;
        }
        Ok(())
    }

    async fn ensure_lane(&self, sender: u32) -> Result<(), Error> {
        let config = streams::lane_consumer(sender).into_consumer_config();
        self.ensure_consumer(config, subject::QUEUE_STREAM).await?;
        self.lanes().insert(sender);
        Ok(())
    }

    /// The senders that have a lane in the shared queue.
    ///
    /// # Errors
    /// When the queue is missing or the server does not answer.
    pub async fn senders(&self) -> Result<BTreeSet<u32>, Error> {
        let step = "look up the lanes of the shared queue";
        let queue = self.js.get_stream_no_info(subject::QUEUE_STREAM).await;
        let names = queue.map_err(refused(step))?.consumer_names();
        let names: Vec<String> = names.try_collect().await.map_err(refused(step))?;
        Ok(names.iter().filter_map(|name| subject::lane_of(name)).collect())
    }

    fn lanes(&self) -> std::sync::MutexGuard<'_, BTreeSet<u32>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a stream, or brings it up to date.
    async fn ensure_stream(&self, config: stream::Config) -> Result<(), Error> {
        let name = config.name.clone();
        let made = self.js.create_or_update_stream(config).await;
        made.map(|_| ()).map_err(|cause| {
            let mut cause = cause.to_string();
            if cause.contains("retention") {
                cause.push_str(
                    ": it is of an older flock: remove it when it is empty, with \
                     `nats stream rm`, then `flockctl apply`",
                );
            }
            Error::Refused { step: format!("make the stream {name}"), cause }
        })
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
    pub(in crate::bus) fn client(&self) -> &Client {
        &self.client
    }

    /// The JetStream context, for the modules of the bus.
    pub(in crate::bus) fn jetstream(&self) -> &Context {
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

fn log_link(event: &LinkEvent) {
    match event {
        LinkEvent::Connected => tracing::info!("the bus is connected"),
        LinkEvent::Disconnected => tracing::warn!("the bus is disconnected; trying again"),
        other => tracing::warn!("the bus says: {other}"),
    }
}
