//! What the server does not do itself after damage to its store.
//!
//! It sets a stream back to the last place that it can read, but not those who take from it: what is
//! stored next, up to where they had been, is handed out to nobody and told to nobody, or cannot even
//! be read. And what was handed out, is not acknowledged and cannot be read any more it counts as in
//! work for ever. Such a stream is made anew. What could be read of it is put back; what could not,
//! the history knows, and flockd stores it again.

use std::ops::RangeInclusive;

use async_nats::jetstream::consumer::Info;
use async_nats::jetstream::message::StreamMessage;
use futures_util::TryStreamExt as _;

use super::error::{Error, refused};
use super::{Hub, Places};
use crate::bus::subject::{self, Kind};

/// Most places that one look for what cannot be read goes through.
const AT_MOST: usize = 2000;

impl Hub {
    /// Takes away a stream that is not in order, and gives what could be read of it. `None`: it is.
    ///
    /// # Errors
    /// When the stream is missing or the server does not answer.
    pub(super) async fn take_away(&self, name: &str) -> Result<Option<Vec<StreamMessage>>, Error> {
        let consumers = self.consumers(name).await?;
        // Asked for after the consumers: what was stored meanwhile makes nobody suspect.
        let places = self.readable_places(name).await?;
        let waits = consumers.iter().any(|consumer| consumer.num_ack_pending > 0);
        if consumers.iter().all(|consumer| consumer.delivered.stream_sequence <= places.last())
            && !(waits && self.is_stuck(name).await?)
        {
            if waits {
                self.pass_over(name).await?;
            }
            return Ok(None);
        }
        let mut rest = Vec::new();
        for place in places.taken() {
            rest.extend(self.read_at(name, place).await?);
        }
        tracing::warn!(
            "the store of {name} was damaged and is made anew: {} messages of it could be read; a \
             task that could not is stored again within two minutes",
            rest.len()
        );
        self.delete_stream(name).await?;
        Ok(Some(rest))
    }

    /// The places of a stream after its newest message was read: the server may notice only then
    /// that it cannot, and set the end back.
    async fn readable_places(&self, name: &str) -> Result<Places, Error> {
        let places = self.places(name).await?;
        let Some(newest) = places.taken().next_back() else { return Ok(places) };
        match self.read_at(name, newest).await? {
            Some(_) => Ok(places),
            None => self.places(name).await,
        }
    }

    /// Whether anything counts as in work that cannot be read, and so never comes again. What flockd
    /// itself is told is another matter: [`Hub::pass_over`].
    ///
    /// # Errors
    /// When the stream is missing or the server does not answer.
    pub async fn is_stuck(&self, name: &str) -> Result<bool, Error> {
        let before = self.in_work(name).await?;
        if before.is_empty() {
            return Ok(false);
        }
        let places = self.places(name).await?;
        for work in before {
            let mut readable = 0;
            for place in places.taken().filter(|place| work.within.contains(place)) {
                readable += usize::from(self.read_at(name, place).await?.is_some());
            }
            // What was acknowledged between the two questions has left since.
            if readable < work.count && self.in_work(name).await?.contains(&work) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn in_work(&self, name: &str) -> Result<Vec<InWork>, Error> {
        let consumers = self.consumers(name).await?.into_iter();
        let others = consumers.filter(|consumer| consumer.name != subject::HISTORY_CONSUMER);
        let work = others.map(|consumer| InWork {
            count: consumer.num_ack_pending,
            within: unsettled(&consumer),
            consumer: consumer.name,
        });
        Ok(work.filter(|work| work.count > 0).collect())
    }

    /// Acknowledges for the history what the server cannot read: it would be waited for for ever, and
    /// nothing decided meanwhile.
    ///
    /// # Errors
    /// When the stream is missing or the server does not answer.
    pub async fn pass_over(&self, name: &str) -> Result<(), Error> {
        let consumers = self.consumers(name).await?;
        let history = consumers.iter().find(|one| one.name == subject::HISTORY_CONSUMER);
        let Some(history) = history.filter(|one| one.num_ack_pending > 0) else { return Ok(()) };
        for place in unsettled(history).take(AT_MOST) {
            if self.read_at(name, place).await?.is_none() {
                let step = || format!("acknowledge {place} of {name}, which cannot be read");
                // The server goes by the place alone; nothing happens if it waits for none there.
                let ack = format!("$JS.ACK.{name}.{}.1.{place}.1.0.0", history.name);
                self.client.publish(ack, "+ACK".into()).await.map_err(refused(step()))?;
            }
        }
        Ok(())
    }

    async fn consumers(&self, name: &str) -> Result<Vec<Info>, Error> {
        let step = || format!("look up who takes from {name}");
        let stream = self.js.get_stream_no_info(name).await.map_err(refused(step()))?;
        stream.consumers().try_collect().await.map_err(refused(step()))
    }

    /// Stores again what could be read of a stream.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub(super) async fn put_back(&self, name: &str, rest: Vec<StreamMessage>) -> Result<(), Error> {
        for message in rest {
            let step = || format!("put back {} in {name}", message.sequence);
            let (to, headers) = (storing_subject(name, &message.subject), message.headers.clone());
            let sent = self.js.publish_with_headers(to, headers, message.payload.clone()).await;
            sent.map_err(refused(step()))?.await.map_err(refused(step()))?;
        }
        Ok(())
    }
}

/// What somebody was handed and has not acknowledged.
#[derive(PartialEq)]
struct InWork {
    consumer: String,
    count: usize,
    within: RangeInclusive<u64>,
}

/// The places that a consumer has handed out and may not have settled.
fn unsettled(consumer: &Info) -> RangeInclusive<u64> {
    consumer.ack_floor.stream_sequence.saturating_add(1)..=consumer.delivered.stream_sequence
}

/// The subject that stores in a stream what the stream keeps as `kept`.
fn storing_subject(stream: &str, kept: &str) -> String {
    let kind = subject::agent_of_task_stream(stream).and_then(|id| {
        let kind = Kind::EACH.into_iter().find(|kind| kind.agent_subject(&id) == kept)?;
        Some(kind.hub_subject(&id))
    });
    kind.unwrap_or_else(|| kept.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_back_lies_under_the_subject_that_it_had() {
        for (stream, kept, to) in [
            ("TASKS_a", "tasks.a", "tasks.a"),
            ("TASKS_a", "tasks.all", "tasks.a.all"),
            ("TASKS_a", "tasks.any", "tasks.a.any"),
            ("RESULTS_a", "result.a", "result.a"),
            (subject::QUEUE_STREAM, &subject::lane(7), &subject::lane(7)),
        ] {
            assert_eq!(storing_subject(stream, kept), to);
        }
    }
}
