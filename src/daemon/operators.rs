//! What flockd does for operators over the control socket.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use crate::audit::{self, Entry, How, Log, What, Who};
use crate::control::peer::{self, Peer, Refusal};
use crate::control::request;
use crate::control::server::{Replies, Server, Service, bind};
use crate::control::{self, ErrorCode, Request, Response};
use crate::daemon::boundary;
use crate::daemon::pulse::Loop;
use crate::daemon::recall;
use crate::daemon::talk;
use crate::daemon::world::World;
use crate::history::{self, Filter, database};
use crate::journal::{Journal, Query};
use crate::names::AgentId;

/// The accept loop turns at least this often.
const TURN: Duration = Duration::from_secs(5);
/// After the kernel refused a connection (no file descriptors left), before the next try.
const REST: Duration = Duration::from_millis(100);

/// Answers operators.
pub(super) struct Operators {
    pub(super) world: Arc<World>,
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
        if let Some(entry) = entry_of(peer, &request)
            && let Err(error) = audit::record_async(entry).await
        {
            // Nothing is done that is not recorded.
            return Response::error(ErrorCode::Failed, format!("not done: {error}"));
        }
        match request {
            Request::Status => {
                boundary::show(&self.world);
                let mut view = self.world.view();
                let counts = |reader: &history::Reader| reader.counts(Timestamp::now());
                view.tasks = self.world.ledger.read(counts).await.ok();
                match replies.send(&Response::Status(view)).await {
                    Ok(()) | Err(_) => Response::End,
                }
            }
            Request::Logs(query) => self.logs(&query, replies).await,
            Request::TaskSend(order) => self.send(peer.uid, order, replies).await,
            Request::TaskCancel(order) => self.cancel(peer, &order, replies).await,
            Request::TaskRetry(order) => self.retry(peer, &order, replies).await,
            Request::TaskDead => self.dead(replies).await,
            Request::Asks(asks) => self.asks(&asks, replies).await,
            Request::AskDecide(order) => self.decide(peer, &order, replies).await,
            Request::TaskList(filter) => recall::list(database(), filter, replies).await,
            Request::TaskShow(which) => recall::show(database(), which.task, replies).await,
            Request::History(filter) => {
                recall::list(database(), Filter { ended: true, ..filter }, replies).await
            }
            Request::AuditShow(filter) => audit_show(filter, replies).await,
            Request::AuditVerify => audit_verify(replies).await,
            Request::Talk(talk) => talk::serve(&self.world, peer, talk, replies).await,
        }
    }

    async fn admit(&self, uid: u32) -> Result<Peer, Refusal> {
        peer::check(uid, self.world.config().host.uid_block).await
    }
}

/// What is recorded before it is done: all that changes something. Who reads a log is flockd's own
/// log's matter; status only shows what flockd knows anyway.
fn entry_of(peer: &Peer, request: &Request) -> Option<Entry> {
    let who = || Who { uid: peer.uid, name: peer.name.clone(), how: How::Socket };
    match request {
        Request::Status | Request::AuditShow(_) | Request::AuditVerify | Request::Asks(_) => None,
        Request::TaskDead => None,
        // Recorded where it is done: only there it is known which call or task it is.
        Request::AskDecide(_) | Request::TaskCancel(_) | Request::TaskRetry(_) => None,
        // Recorded where it is said.
        Request::Talk(_) => None,
        Request::Logs(query) => {
            let agent = query.agent.as_ref().map_or("every agent", AgentId::as_str);
            let (peer_uid, name) = (peer.uid, &peer.name);
            tracing::info!(peer_uid, agent, "{name} reads the log of {agent}");
            None
        }
        Request::TaskList(_) | Request::History(_) => {
            tracing::info!(peer_uid = peer.uid, "{} reads the list of tasks", peer.name);
            None
        }
        Request::TaskShow(which) => {
            tracing::info!(peer_uid = peer.uid, "{} reads the task {}", peer.name, which.task);
            None
        }
        Request::TaskSend(order) => {
            // The text can hold what is nobody's business; its hash tells whether it was this one.
            let text = &order.text;
            let hash = audit::digest(text.as_bytes());
            let detail = format!("{} bytes, sha256 {hash}", text.len());
            Some(Entry::new(who(), What::TaskSend, &order.to, detail))
        }
    }
}

async fn audit_show(filter: audit::Filter, replies: &mut Replies) -> Response {
    let read = spawn_blocking(move || audit::read(&Log::of_this_host(), &filter)).await;
    match read {
        Ok(Ok(records)) => {
            for record in records {
                if replies.send(&Response::Audit(record)).await.is_err() {
                    break;
                }
            }
            Response::End
        }
        Ok(Err(error)) => Response::error(ErrorCode::Failed, error),
        Err(error) => Response::error(ErrorCode::Failed, error),
    }
}

async fn audit_verify(replies: &mut Replies) -> Response {
    // The journal first: a record is on disk before the journal is told.
    let check = || audit::verify(&Log::of_this_host(), &audit::witnesses()?);
    match spawn_blocking(check).await {
        Ok(Ok(report)) => match replies.send(&Response::AuditReport(report)).await {
            Ok(()) | Err(_) => Response::End,
        },
        Ok(Err(error)) => Response::error(ErrorCode::Failed, error),
        Err(error) => Response::error(ErrorCode::Failed, error),
    }
}

impl Operators {
    async fn logs(&self, query: &Query, replies: &mut Replies) -> Response {
        let failed = |error| Response::error(ErrorCode::Failed, error);
        let mut journal = match Journal::open(query, &self.everyone()) {
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

    async fn asks(&self, wanted: &request::Asks, replies: &mut Replies) -> Response {
        let mut shown = HashSet::new();
        loop {
            let changed = self.world.asks.changed();
            for ask in self.world.asks.pending() {
                let new = shown.insert(ask.ask.clone());
                if new && replies.send(&Response::Ask(ask)).await.is_err() {
                    return Response::End;
                }
            }
            if !wanted.follow {
                return Response::End;
            }
            changed.await;
        }
    }

    async fn decide(
        &self,
        peer: &Peer,
        order: &request::AskDecide,
        replies: &mut Replies,
    ) -> Response {
        match self.world.asks.decide(peer, order).await {
            Err(why) => Response::error(ErrorCode::Failed, why),
            Ok(ask) => match replies.send(&Response::Decided(ask)).await {
                Ok(()) | Err(_) => Response::End,
            },
        }
    }
}
