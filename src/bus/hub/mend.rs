//! After damage to its store the server sets a stream back to the last place that it can read, but
//! not those who take from it: what is stored next, up to where they had been, is handed out to
//! nobody and told to nobody, or cannot even be read. Such a stream is made anew. What could be read
//! of it is put back; what could not, the history knows, and flockd stores it again.

use async_nats::jetstream::consumer::Info;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use futures_util::TryStreamExt as _;

use super::Hub;
use super::error::{Error, refused};
use crate::bus::subject::{self, Kind};

impl Hub {
    /// Takes away a stream that was set back, and gives what could be read of it. `None`: it was not.
    ///
    /// # Errors
    /// When the stream is missing or the server does not answer.
    pub(super) async fn take_away(&self, name: &str) -> Result<Option<Vec<StreamMessage>>, Error> {
        if !self.is_set_back(name).await? {
            return Ok(None);
        }
        let step = || format!("read what is left of {name}");
        let stream = self.js.get_stream_no_info(name).await.map_err(refused(step()))?;
        let mut rest = Vec::new();
        for place in self.places(name).await?.taken() {
            match stream.get_raw_message(place).await {
                Ok(message) => rest.push(message),
                Err(e) if e.kind() == LastRawMessageErrorKind::NoMessageFound => {}
                Err(e) => return Err(refused(step())(e)),
            }
        }
        tracing::warn!(
            "the store of {name} was damaged and is made anew: {} messages of it could be read; a \
             task that could not is stored again within two minutes",
            rest.len()
        );
        self.delete_stream(name).await?;
        Ok(Some(rest))
    }

    async fn is_set_back(&self, name: &str) -> Result<bool, Error> {
        let step = format!("look for consumers past the end of {name}");
        let stream = self.js.get_stream_no_info(name).await.map_err(refused(step.clone()))?;
        let consumers = stream.consumers().try_collect::<Vec<Info>>().await;
        let consumers = consumers.map_err(refused(step.clone()))?;
        // Asked for after the consumers: what was stored meanwhile makes nobody suspect.
        let end = stream.get_info().await.map_err(refused(step))?.state.last_sequence;
        Ok(consumers.iter().any(|consumer| consumer.delivered.stream_sequence > end))
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
