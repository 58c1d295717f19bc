//! Answers questions about the history, record by record, beside the one who writes it.

use std::path::PathBuf;

use tokio::sync::mpsc;

use crate::bus::message::TaskId;
use crate::control::server::Replies;
use crate::control::{ErrorCode, Response};
use crate::history::{self, Error, Filter, Reader};

/// So many records are read ahead of a slow peer, no more.
const AHEAD: usize = 64;

/// Sends the records that the filter asks for.
pub async fn list(filter: Filter, replies: &mut Replies) -> Response {
    stream(replies, move |path, lines| {
        let take = |summary| lines.blocking_send(Response::Task(Box::new(summary))).is_ok();
        Reader::open(&path)?.each(&filter, take)
    })
    .await
}

/// Sends everything about one task, which may be named by the beginning of its id.
pub async fn show(task: TaskId, replies: &mut Replies) -> Response {
    stream(replies, move |path, lines| {
        let reader = Reader::open(&path)?;
        for record in reader.show(&reader.resolve(&task)?)? {
            if lines.blocking_send(Response::Record(Box::new(record))).is_err() {
                break;
            }
        }
        Ok(())
    })
    .await
}

/// Reads on a thread that may block, and ends it when the peer is gone.
async fn stream(
    replies: &mut Replies,
    read: impl FnOnce(PathBuf, &mpsc::Sender<Response>) -> Result<(), Error> + Send + 'static,
) -> Response {
    let (sender, mut lines) = mpsc::channel(AHEAD);
    let work = tokio::task::spawn_blocking(move || read(history::database(), &sender));
    while let Some(line) = lines.recv().await {
        if replies.send(&line).await.is_err() {
            return Response::End;
        }
    }
    match work.await {
        Ok(Ok(())) => Response::End,
        Ok(Err(error @ (Error::Unknown(_) | Error::Several { .. }))) => {
            Response::error(ErrorCode::BadRequest, error)
        }
        Ok(Err(error)) => Response::error(ErrorCode::Failed, error),
        Err(error) => Response::error(ErrorCode::Failed, format!("read the history: {error}")),
    }
}
