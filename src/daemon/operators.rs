//! What flockd does for operators over the control socket.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::control::peer::{self, Peer, Refusal};
use crate::control::request::SendTask;
use crate::control::server::{Replies, Server, Service, bind};
use crate::control::{self, ErrorCode, Request, Response};
use crate::daemon::pulse::Loop;
use crate::daemon::recall;
use crate::daemon::world::World;
use crate::history::{Filter, database};
use crate::journal::{Journal, Query};
use crate::names::AgentId;
use crate::tasks;

/// The accept loop turns at least this often.
const TURN: Duration = Duration::from_secs(5);
/// After the kernel refused a connection (no file descriptors left), before the next try.
const REST: Duration = Duration::from_millis(100);

/// Answers operators.
struct Operators {
    world: Arc<World>,
}

/// Serves the control socket for ever.
///
/// # Errors
/// When the socket cannot be made.
pub async fn run(world: Arc<World>) -> Result<(), control::server::BindError> {
    let listener = bind(&control::socket())?;
    let service = Arc::new(Operators { world: Arc::clone(&world) });
    let server = Server::new(listener, service);
    loop {
        world.pulses.beat(Loop::Control);
        // Accepting is cancel safe: a connection that comes later is accepted in the next turn.
        if let Ok(Err(error)) = timeout(TURN, server.accept()).await {
            complain(&error);
            sleep(REST).await;
        }
    }
}

fn complain(error: &io::Error) {
    tracing::warn!("accept on the control socket: {error}");
}

impl Service for Operators {
    async fn serve(&self, peer: &Peer, request: Request, replies: &mut Replies) -> Response {
        audit(peer, &request);
        match request {
            Request::Status => match replies.send(&Response::Status(self.world.view())).await {
                Ok(()) | Err(_) => Response::End,
            },
            Request::Logs(query) => self.logs(&query, replies).await,
            Request::TaskSend(order) => self.send(order, replies).await,
            Request::TaskList(filter) => recall::list(database(), filter, replies).await,
            Request::TaskShow(which) => recall::show(database(), which.task, replies).await,
            Request::History(filter) => {
                recall::list(database(), Filter { ended: true, ..filter }, replies).await
            }
        }
    }

    async fn admit(&self, uid: u32) -> Result<Peer, Refusal> {
        peer::check(uid, self.world.config().host.uid_block).await
    }
}

/// Who asked for what. Status only reads what flockd knows anyway.
fn audit(peer: &Peer, request: &Request) {
    let verb = request.verb();
    let (peer_uid, name) = (peer.uid, &peer.name);
    match request {
        Request::Status => {}
        Request::Logs(query) => {
            let agent = &query.agent;
            tracing::info!(audit = verb, peer_uid, agent = %agent, "{name} reads the log of {agent}");
        }
        Request::TaskList(_) | Request::History(_) => {
            tracing::info!(audit = verb, peer_uid, "{name} reads the list of tasks");
        }
        Request::TaskShow(which) => {
            tracing::info!(audit = verb, peer_uid, "{name} reads the task {}", which.task);
        }
        Request::TaskSend(order) => {
            let to = &order.to;
            tracing::info!(audit = verb, peer_uid, agent = %to, "{name} sends a task to {to}");
        }
    }
}

impl Operators {
    async fn logs(&self, query: &Query, replies: &mut Replies) -> Response {
        let failed = |error| Response::error(ErrorCode::Failed, error);
        let mut journal = match Journal::open(query) {
            Ok(journal) => journal,
            Err(error) => return failed(error),
        };
        loop {
            match journal.next().await {
                Ok(None) => return Response::End,
                Ok(Some(entry)) => {
                    if replies.send(&Response::Log(entry)).await.is_err() {
                        return Response::End;
                    }
                }
                Err(error) => return failed(error),
            }
        }
    }

    async fn send(&self, order: SendTask, replies: &mut Replies) -> Response {
        let Some(hub) = self.world.hub.borrow().clone() else {
            let note = self.world.view().bus.note.unwrap_or_default();
            return Response::error(ErrorCode::Failed, format!("the bus is not there: {note}"));
        };
        let everyone: Vec<AgentId> = self.world.config().agents.keys().cloned().collect();
        let (sent, results) = match tasks::send(&hub, &everyone, order).await {
            Ok(sent) => sent,
            Err(error) => return Response::error(ErrorCode::Failed, error),
        };
        if replies.send(&Response::Sent(sent)).await.is_err() {
            return Response::End;
        }
        let Some(mut results) = results else { return Response::End };
        loop {
            match results.next().await {
                Ok(None) => return Response::End,
                Ok(Some(result)) => {
                    if replies.send(&Response::Result(result)).await.is_err() {
                        return Response::End;
                    }
                }
                Err(late) => return Response::error(ErrorCode::TimedOut, late),
            }
        }
    }
}
