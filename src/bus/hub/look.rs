//! Looks into the streams: what is stored where, and what has become of it.

use std::collections::BTreeSet;

use async_nats::jetstream;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use futures_util::TryStreamExt as _;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Hub;
use super::error::{Error, refused};
use crate::bus::message::{self, Task, TaskId};
use crate::bus::subject;

/// The header that says why a task was given up.
pub(in crate::bus) const REASON: &str = "Flock-Reason";

/// What lies where a task was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// The task.
    Here,
    /// Nothing.
    Gone,
    /// Nothing that can be read, although the server counts it as there: its store is damaged.
    Unreadable,
    /// Another message: the store is not the one that the task was put into.
    Other,
}

/// A stream of tasks and the consumer that takes them out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// When the stream was made.
    pub made: Timestamp,
    /// The last place that was used in it.
    pub last: u64,
    /// The last place that was handed out.
    pub delivered: u64,
    /// Everything up to this place is settled.
    pub settled: u64,
    /// Whether anything was handed out and is not settled.
    pub busy: bool,
    /// Whether anything beyond `settled` was handed out that is acknowledged, or twice.
    pub answered: bool,
    /// Whether flockd has everything that the stream held.
    pub told: bool,
    /// Whether somebody takes from it who is past its end, where only damage can have brought him.
    pub set_back: bool,
}

/// A task that was given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Its id, if it could be read.
    pub task: Option<TaskId>,
    /// Why.
    pub reason: String,
    /// When.
    pub at: Timestamp,
    /// What was to be done, shortened.
    pub text: String,
}

/// Most characters of a dead letter's text.
const TEXT_MAX: usize = 200;

impl Hub {
    /// Whether the server keeps streams at all; it stops when its disk is full. Without an answer
    /// nothing is known, and that is not a no.
    pub async fn keeps_streams(&self) -> bool {
        use async_nats::jetstream::context::AccountErrorKind as Kind;
        match self.js.query_account().await {
            Ok(_) => true,
            Err(error) => !matches!(error.kind(), Kind::JetStreamUnavailable | Kind::JetStream(_)),
        }
    }

    /// Which subjects a stream takes. The server looks for a repeated message id within a stream.
    ///
    /// # Errors
    /// When the stream is missing or the server does not answer.
    pub async fn taken_by(&self, stream: &str) -> Result<Vec<String>, Error> {
        let step = || format!("look at {stream}");
        let open = self.js.get_stream(stream).await.map_err(refused(step()))?;
        Ok(open.cached_info().config.subjects.clone())
    }

    /// What lies at a place of a stream. That it is gone can also mean that it cannot be read; the
    /// difference is in [`Hub::places`].
    ///
    /// # Errors
    /// When the stream is missing or the server does not answer.
    pub async fn stored_at(
        &self,
        stream: &str,
        place: u64,
        task: &TaskId,
    ) -> Result<Stored, Error> {
        Ok(match self.read_at(stream, place).await? {
            Some(raw) if message::salvage_id(&raw.payload).as_ref() == Some(task) => Stored::Here,
            Some(_) => Stored::Other,
            None => Stored::Gone,
        })
    }

    /// What lies there, if anything does that can be read.
    pub(super) async fn read_at(
        &self,
        name: &str,
        place: u64,
    ) -> Result<Option<StreamMessage>, Error> {
        let step = || format!("read {place} of {name}");
        let stream = self.js.get_stream_no_info(name).await.map_err(refused(step()))?;
        match stream.get_raw_message(place).await {
            Ok(message) => Ok(Some(message)),
            Err(e) if e.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(e) => Err(refused(step())(e)),
        }
    }

    /// The places of a stream that the server counts among those that hold a message.
    ///
    /// # Errors
    /// When the stream is missing or the server does not answer.
    pub async fn places(&self, stream: &str) -> Result<Places, Error> {
        let step = || format!("look into {stream}");
        let wanted = serde_json::json!({ "deleted_details": true });
        let answer = self.js.request(format!("STREAM.INFO.{stream}"), &wanted).await;
        let answer: Counted = answer.map_err(refused(step()))?;
        match (answer.state, answer.error) {
            (Some(places), None) => Ok(places),
            (_, Some(cause)) => Err(refused(step())(cause)),
            (None, None) => Err(refused(step())("the answer has no state")),
        }
    }

    /// Takes a task out of a stream, if it lies there.
    ///
    /// # Errors
    /// When the stream is missing or the server does not answer.
    pub async fn remove(&self, stream: &str, place: u64, task: &TaskId) -> Result<(), Error> {
        if self.stored_at(stream, place, task).await? != Stored::Here {
            return Ok(());
        }
        let step = format!("remove task {task} from {stream}");
        let open = self.js.get_stream_no_info(stream).await.map_err(refused(step.clone()))?;
        match open.delete_message(place).await {
            Ok(_) => Ok(()),
            // It went by itself between the look and the hand.
            Err(_) if self.stored_at(stream, place, task).await? != Stored::Here => Ok(()),
            Err(e) => Err(Error::Refused { step, cause: e.to_string() }),
        }
    }

    /// A stream of tasks, as `consumers` take from it.
    ///
    /// # Errors
    /// When one of them is missing or the server does not answer.
    pub async fn see(&self, stream: &str, consumers: &[String]) -> Result<Seen, Error> {
        let step = format!("look into {stream}");
        let open = self.js.get_stream_no_info(stream).await.map_err(refused(step.clone()))?;
        let history = open.consumer_info(subject::HISTORY_CONSUMER).await;
        let history = history.map_err(refused(step.clone()))?;
        let (mut delivered, mut settled, mut busy, mut answered) = (0, 0, false, false);
        for consumer in consumers {
            let info = open.consumer_info(consumer).await.map_err(refused(step.clone()))?;
            delivered = delivered.max(info.delivered.stream_sequence);
            settled = settled.max(info.ack_floor.stream_sequence);
            busy |= info.num_ack_pending > 0;
            // The server has them from a file that may be damaged: they need not fit each other.
            let (last, floor) =
                (info.delivered.consumer_sequence, info.ack_floor.consumer_sequence);
            let handed = last.saturating_sub(floor);
            answered |= usize::try_from(handed).unwrap_or(usize::MAX) > info.num_ack_pending;
        }
        // Last, so that nobody can have been handed out more than it ends with.
        let info = open.get_info().await.map_err(refused(step.clone()))?;
        let last = info.state.last_sequence;
        Ok(Seen {
            made: Timestamp::from_nanosecond(info.created.unix_timestamp_nanos())
                .map_err(refused(step))?,
            last,
            delivered,
            settled,
            busy,
            answered,
            told: history.num_pending == 0 && history.num_ack_pending == 0,
            set_back: delivered.max(history.delivered.stream_sequence) > last,
        })
    }

    /// The tasks that were given up, the newest last.
    ///
    /// # Errors
    /// When the list is missing or the server does not answer.
    pub async fn dead_letters(&self) -> Result<Vec<DeadLetter>, Error> {
        use async_nats::jetstream::consumer::pull::OrderedConfig;
        let step = "read the list of dead letters";
        let open = self
            .js
            .create_consumer_on_stream(OrderedConfig::default(), subject::DEAD_STREAM)
            .await
            .map_err(refused(step))?;
        let all = usize::try_from(open.cached_info().num_pending).unwrap_or(usize::MAX);
        let mut letters = Vec::new();
        if all == 0 {
            return Ok(letters);
        }
        let mut messages = open.messages().await.map_err(refused(step))?;
        while letters.len() < all {
            let Some(message) = messages.try_next().await.map_err(refused(step))? else { break };
            letters.push(letter(&message));
        }
        Ok(letters)
    }
}

/// What the server says of a stream when it is asked for the places that are empty.
#[derive(Deserialize)]
struct Counted {
    state: Option<Places>,
    error: Option<jetstream::Error>,
}

/// Which places of a stream are taken.
#[derive(Clone, Debug, Deserialize)]
pub struct Places {
    messages: u64,
    first_seq: u64,
    last_seq: u64,
    #[serde(default)]
    deleted: BTreeSet<u64>,
}

impl Places {
    /// Whether a place holds a message, as far as the server counts.
    #[must_use]
    pub fn hold(&self, place: u64) -> bool {
        self.messages > 0
            && (self.first_seq..=self.last_seq).contains(&place)
            && !self.deleted.contains(&place)
    }

    /// The last place that was used.
    pub(super) fn last(&self) -> u64 {
        self.last_seq
    }

    /// Those that hold a message, as far as the server counts.
    pub(super) fn taken(&self) -> impl DoubleEndedIterator<Item = u64> {
        (self.first_seq..=self.last_seq).filter(|place| self.hold(*place))
    }
}

fn letter(message: &jetstream::Message) -> DeadLetter {
    let header = message.headers.as_ref().and_then(|headers| headers.get(REASON));
    let task = message::parse::<Task>(&message.payload).ok();
    let text = match &task {
        Some(task) => task.text.chars().take(TEXT_MAX).collect(),
        None => String::from_utf8_lossy(&message.payload).chars().take(TEXT_MAX).collect(),
    };
    let at = message.info().map(|info| info.published.unix_timestamp()).unwrap_or_default();
    DeadLetter {
        task: task.map(|task| task.id).or_else(|| message::salvage_id(&message.payload)),
        reason: header.map(ToString::to_string).unwrap_or_default(),
        at: Timestamp::from_second(at).unwrap_or_default(),
        text,
    }
}
