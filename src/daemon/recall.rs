//! Answers questions about the history, record by record, beside the one who writes it.

use std::path::PathBuf;

use tokio::sync::mpsc;

use crate::bus::message::TaskId;
use crate::control::server::Replies;
use crate::control::{ErrorCode, Response};
use crate::history::{Error, Filter, Reader};

/// So many records are read ahead of a slow peer, no more.
const AHEAD: usize = 64;

/// Sends the records that the filter asks for.
pub async fn list(path: PathBuf, filter: Filter, replies: &mut Replies) -> Response {
    stream(replies, move |lines| {
        let take = |summary| lines.blocking_send(Response::Task(Box::new(summary))).is_ok();
        Reader::open(&path)?.each(&filter, take)
    })
    .await
}

/// Sends everything about one task, which may be named by the beginning of its id.
pub async fn show(path: PathBuf, task: TaskId, replies: &mut Replies) -> Response {
    stream(replies, move |lines| {
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
    read: impl FnOnce(&mpsc::Sender<Response>) -> Result<(), Error> + Send + 'static,
) -> Response {
    let (sender, mut lines) = mpsc::channel(AHEAD);
    let work = tokio::task::spawn_blocking(move || read(&sender));
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

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use jiff::Timestamp;

    use super::*;
    use crate::bus::message::{Address, Task};
    use crate::control::peer::Refusal;
    use crate::control::request::ShowTask;
    use crate::control::server::{Server, Service, bind};
    use crate::control::{Client, ClientError, Peer, Request};
    use crate::history::{Fact, Patience, Place, Slot, Store};

    /// Answers questions about one database and nothing else.
    struct Past(PathBuf);

    impl Service for Past {
        async fn serve(&self, _: &Peer, request: Request, replies: &mut Replies) -> Response {
            match request {
                Request::TaskList(filter) => list(self.0.clone(), filter, replies).await,
                Request::TaskShow(which) => show(self.0.clone(), which.task, replies).await,
                _ => Response::End,
            }
        }

        async fn admit(&self, uid: u32) -> Result<Peer, Refusal> {
            Ok(Peer { uid, name: "ann".into() })
        }
    }

    fn fill(path: &Path, number: u64) {
        let (mut store, _) = Store::open(path).unwrap();
        let facts: Vec<Fact> = (0..number)
            .map(|n| {
                let mut task = Task::new(Address::Any, "x".repeat(1000));
                task.id = TaskId::parse(&format!("task-{n:04}")).unwrap();
                let place = Place { stream: "QUEUE".into(), sequence: n };
                Fact::Queued { task, slot: Slot::Any, place, at: Timestamp::now() }
            })
            .collect();
        store.apply(&facts, Patience::Left).unwrap();
    }

    /// A server over a database with so many records; none means no database.
    async fn served(number: Option<u64>) -> (PathBuf, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let (socket, database) = (dir.path().join("sock"), dir.path().join("history.db"));
        if let Some(number) = number {
            fill(&database, number);
        }
        let server = Server::new(bind(&socket).unwrap(), Arc::new(Past(database)));
        tokio::spawn(async move {
            loop {
                server.accept().await.unwrap();
            }
        });
        (socket, dir)
    }

    async fn refused(socket: &Path, request: &Request) -> (ErrorCode, String) {
        let mut client = Client::ask_at(socket, request).await.unwrap();
        match client.next().await {
            Err(ClientError::Answer { code, message }) => (code, message),
            other => panic!("{other:?}"),
        }
    }

    fn ask(id: &str) -> Request {
        Request::TaskShow(ShowTask { task: TaskId::parse(id).unwrap() })
    }

    #[tokio::test]
    async fn a_long_list_comes_whole_and_a_peer_may_leave() {
        let (socket, _dir) = served(Some(3000)).await;
        let all = Request::TaskList(Filter::default());
        let mut client = Client::ask_at(&socket, &all).await.unwrap();
        let mut number = 0;
        while let Some(answer) = client.next().await.unwrap() {
            let Response::Task(task) = answer else { panic!("{answer:?}") };
            number += 1;
            assert_eq!(task.task.as_str(), format!("task-{:04}", 3000 - number));
        }
        assert_eq!(number, 3000);
        // One that leaves after a line holds up nobody.
        let mut leaves = Client::ask_at(&socket, &all).await.unwrap();
        leaves.next().await.unwrap();
        drop(leaves);
        let mut client = Client::ask_at(&socket, &ask("task-00000")).await.unwrap();
        assert!(client.next().await.is_err(), "there is no such task");
        let mut client = Client::ask_at(&socket, &ask("task-0007")).await.unwrap();
        let Some(Response::Record(record)) = client.next().await.unwrap() else { panic!() };
        assert_eq!(record.text.len(), 1000);
        assert_eq!(client.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn what_cannot_be_answered_is_said() {
        let (socket, _dir) = served(Some(30)).await;
        let (code, message) = refused(&socket, &ask("task-00")).await;
        assert_eq!(code, ErrorCode::BadRequest);
        assert!(message.contains("several tasks: task-0000"), "{message}");
        assert_eq!(refused(&socket, &ask("nothing")).await.0, ErrorCode::BadRequest);
        let (socket, _dir) = served(None).await;
        let (code, message) = refused(&socket, &Request::TaskList(Filter::default())).await;
        assert_eq!(code, ErrorCode::Failed);
        assert!(message.contains("no history yet"), "{message}");
    }
}
