//! Accepts connections on the control socket, checks who speaks, and bounds what it may cost.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nix::unistd::{Group, chown};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::control::peer::{Peer, Refusal};
use crate::control::request::Request;
use crate::control::response::{ErrorCode, Response};
use crate::control::{
    CONNECTIONS_MAX, CONNECTIONS_PER_USER, REQUEST_MAX, REQUEST_TIME, WRITE_TIME,
};
use crate::lines::{self, Line};
use crate::names::OPERATOR_GROUP;
use crate::text::printable;

/// What a bad request is told.
const VERBS: &str = "the verbs are status, logs, task-send, task-cancel, task-retry, task-dead, \
                     task-list, task-show, history, asks, ask-decide and talk; what changes a unit (start, stop, \
                     restart, apply) needs root: run flockctl with sudo";

/// Why the socket could not be made.
#[derive(Debug, thiserror::Error)]
#[error("make the control socket {}: {step}: {cause}", path.display())]
pub struct BindError {
    path: PathBuf,
    step: &'static str,
    cause: io::Error,
}

/// Carries out requests. flockd is one; tests have others.
pub trait Service: Send + Sync + 'static {
    /// Answers one request. What is returned is the last line; dropping the future ends the work.
    fn serve(
        &self,
        peer: &Peer,
        request: Request,
        replies: &mut Replies,
    ) -> impl Future<Output = Response> + Send;

    /// Says who a user is, and whether it may ask: [`crate::control::peer::check`].
    fn admit(&self, uid: u32) -> impl Future<Output = Result<Peer, Refusal>> + Send;
}

/// Where the lines of an answer go.
pub struct Replies {
    to: OwnedWriteHalf,
    /// After half a line nothing can follow that would be understood.
    broken: bool,
}

/// The peer does not read any more.
#[derive(Debug)]
pub struct Gone;

impl Replies {
    /// Sends one line.
    ///
    /// # Errors
    /// When the peer is gone, or read nothing for [`WRITE_TIME`].
    pub async fn send(&mut self, response: &Response) -> Result<(), Gone> {
        if self.broken {
            return Err(Gone);
        }
        let mut line = serde_json::to_vec(response).map_err(|_| Gone)?;
        line.push(b'\n');
        // Set before, since this future can be dropped half way.
        self.broken = true;
        match timeout(WRITE_TIME, self.to.write_all(&line)).await {
            Ok(Ok(())) => {
                self.broken = false;
                Ok(())
            }
            _ => Err(Gone),
        }
    }
}

/// Makes the socket: root's, writable for the group `flock`, and for nobody else at any moment.
///
/// # Errors
/// When it cannot be made. Without the group `flock` it is root's alone.
pub fn bind(path: &Path) -> Result<UnixListener, BindError> {
    let fault = |step| move |cause: io::Error| BindError { path: path.to_owned(), step, cause };
    match fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
            return Err(fault("remove the old one")(cause));
        }
        _ => {}
    }
    // The mode of a new socket has no write bit for others, so nobody can connect before the next lines.
    let listener = UnixListener::bind(path).map_err(fault("bind"))?;
    let group =
        Group::from_name(OPERATOR_GROUP).map_err(|e| fault("look up its group")(e.into()))?;
    let mode = match group {
        Some(group) => {
            chown(path, None, Some(group.gid)).map_err(|e| fault("set its group")(e.into()))?;
            0o660
        }
        None => {
            tracing::warn!(
                "the group {OPERATOR_GROUP} does not exist: only root can use {}",
                path.display()
            );
            0o600
        }
    };
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(fault("set its mode"))?;
    Ok(listener)
}

/// Bounds the number of connections, in all and for each user.
struct Doors {
    all: Arc<Semaphore>,
    users: Mutex<HashMap<u32, usize>>,
}

/// A place that is given back when it is dropped.
struct Place {
    doors: Arc<Doors>,
    uid: u32,
    _permit: OwnedSemaphorePermit,
}

impl Doors {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            all: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            users: Mutex::new(HashMap::new()),
        })
    }

    fn enter(self: &Arc<Self>, uid: u32) -> Option<Place> {
        let permit = Arc::clone(&self.all).try_acquire_owned().ok()?;
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let count = users.entry(uid).or_default();
        if *count >= CONNECTIONS_PER_USER {
            return None;
        }
        *count += 1;
        Some(Place { doors: Arc::clone(self), uid, _permit: permit })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut users = self.doors.users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = users.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                users.remove(&self.uid);
            }
        }
    }
}

/// The control socket at work.
pub struct Server<S> {
    listener: UnixListener,
    service: Arc<S>,
    doors: Arc<Doors>,
}

impl<S: Service> Server<S> {
    /// Serves what [`bind`] made.
    pub fn new(listener: UnixListener, service: Arc<S>) -> Self {
        Self { listener, service, doors: Doors::new() }
    }

    /// Accepts one connection and answers it in a task of its own.
    ///
    /// # Errors
    /// When the kernel cannot give a connection; the next call may succeed.
    pub async fn accept(&self) -> io::Result<()> {
        let (stream, _) = self.listener.accept().await?;
        let uid = stream.peer_cred()?.uid();
        let place = self.doors.enter(uid);
        let service = Arc::clone(&self.service);
        tokio::spawn(async move { converse(service.as_ref(), stream, uid, place).await });
        Ok(())
    }
}

/// One connection from its first byte to its last.
async fn converse<S: Service>(service: &S, stream: UnixStream, uid: u32, place: Option<Place>) {
    let (read, write) = stream.into_split();
    let mut replies = Replies { to: write, broken: false };
    let last = match place {
        None => Response::error(ErrorCode::Busy, "too many connections: try again"),
        // The peer is judged before one byte of it is read.
        Some(_place) => match service.admit(uid).await {
            Err(refusal) => {
                tracing::warn!(peer_uid = uid, "control socket: {refusal}");
                Response::error(ErrorCode::Refused, refusal)
            }
            Ok(peer) => answer(service, &peer, read, &mut replies).await,
        },
    };
    // A peer that is gone needs no last line.
    let _ = replies.send(&last).await;
}

async fn answer<S: Service>(
    service: &S,
    peer: &Peer,
    read: OwnedReadHalf,
    replies: &mut Replies,
) -> Response {
    let mut reader = BufReader::new(read);
    let request = match read_request(&mut reader).await {
        Ok(request) => request,
        Err(why) => return Response::error(ErrorCode::BadRequest, why),
    };
    if !request.is_long() {
        return service.serve(peer, request, replies).await;
    }
    tokio::select! {
        last = service.serve(peer, request, replies) => last,
        () = left(&mut reader) => Response::End,
    }
}

async fn read_request(reader: &mut BufReader<OwnedReadHalf>) -> Result<Request, String> {
    let line = match timeout(REQUEST_TIME, lines::next(reader, REQUEST_MAX)).await {
        Err(_) => return Err(format!("no request within {} s", REQUEST_TIME.as_secs())),
        Ok(Err(cause)) => return Err(format!("read the request: {cause}")),
        Ok(Ok(Line::TooLong)) => return Err(format!("a request has at most {REQUEST_MAX} bytes")),
        Ok(Ok(Line::End)) => return Err("no request".to_owned()),
        Ok(Ok(Line::Whole(line))) => line,
    };
    serde_json::from_slice(&line).map_err(|cause| {
        // The cause can quote the request.
        let cause: String = cause.to_string().chars().take(200).collect();
        format!("read the request: {}: {VERBS}", printable(&cause))
    })
}

/// Returns when the peer has closed its end. What it still sends is dropped.
async fn left(reader: &mut BufReader<OwnedReadHalf>) {
    let mut rest = [0; 256];
    while matches!(reader.read(&mut rest).await, Ok(1..)) {}
}
