//! What the bus keeps for agents that are configured no more.

use std::collections::BTreeSet;

use async_nats::jetstream::ErrorCode;
use futures_util::TryStreamExt as _;

use super::error::{Error, refused};
use super::{Answer, Hub};
use crate::bus::subject;
use crate::names::AgentId;

impl Hub {
    /// The agents that the bus keeps streams for.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn agents(&self) -> Result<BTreeSet<AgentId>, Error> {
        let names = self.js.stream_names().try_collect::<Vec<String>>().await;
        let names = names.map_err(refused("list the streams"))?;
        Ok(names.iter().filter_map(|name| subject::agent_of_task_stream(name)).collect())
    }

    /// Whether flockd has all that was ever stored for an agent and said by it. What is open then
    /// is open in the history; a place of the stream that cannot be read is not.
    ///
    /// # Errors
    /// When a stream is missing or the server does not answer.
    pub async fn is_told(&self, id: &AgentId) -> Result<bool, Error> {
        let (tasks, results) = (subject::task_stream(id), subject::result_stream(id));
        // Broken off in the middle of being forgotten, only the tasks' stream is left.
        let results = (!self.lacks(&results).await?).then_some(results);
        for stream in [tasks].into_iter().chain(results) {
            if !self.see(&stream, &[]).await?.told {
                self.pass_over(&stream).await?;
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn lacks(&self, stream: &str) -> Result<bool, Error> {
        let (step, nothing) = (|| format!("look at {stream}"), serde_json::json!({}));
        let info = self.js.request(format!("STREAM.INFO.{stream}"), &nothing);
        let info: Answer = info.await.map_err(refused(step()))?;
        let lacks = info
            .error
            .as_ref()
            .is_some_and(|error| error.error_code() == ErrorCode::STREAM_NOT_FOUND);
        info.unless(ErrorCode::STREAM_NOT_FOUND, step).map(|()| lacks)
    }

    /// Deletes the streams of an agent: its waiting tasks and its results.
    ///
    /// # Errors
    /// When the server refuses; streams that are not there are no error.
    pub async fn forget(&self, id: &AgentId) -> Result<(), Error> {
        // That of the tasks goes last: as long as it is there, the agent is found again.
        let streams =
            [subject::channel_stream(id), subject::result_stream(id), subject::task_stream(id)];
        for name in streams {
            self.delete_stream(&name).await?;
        }
        Ok(())
    }

    /// Deletes a stream; one that is not there is no error.
    pub(super) async fn delete_stream(&self, name: &str) -> Result<(), Error> {
        let (step, nothing) = (|| format!("remove the stream {name}"), serde_json::json!({}));
        let request = self.js.request(format!("STREAM.DELETE.{name}"), &nothing);
        let gone: Answer = request.await.map_err(refused(step()))?;
        gone.unless(ErrorCode::STREAM_NOT_FOUND, step)
    }
}
