//! The other end of the control socket, for `flockctl`.

use std::io;
use std::path::{Path, PathBuf};

use tokio::io::{AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::control::request::Request;
use crate::control::response::{ErrorCode, Response};
use crate::control::{RESPONSE_MAX, socket};
use crate::lines::{self, Line};
use crate::names::OPERATOR_GROUP;

/// Why flockd gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("flockd is not running: sudo systemctl start flockd")]
    NotRunning,
    /// The socket is closed to this user.
    #[error(
        "connect to {}: permission denied: run it with sudo, or join the group {OPERATOR_GROUP} \
         (sudo usermod -aG {OPERATOR_GROUP} $USER) and log in again", path.display()
    )]
    Denied {
        /// The socket.
        path: PathBuf,
    },
    /// The connection broke.
    #[error("talk to flockd: {0}: see journalctl -u flockd")]
    Broken(#[from] io::Error),
    /// flockd said something that this flockctl does not understand.
    #[error(
        "talk to flockd: an answer that cannot be read ({0}): are flockctl and flockd the same version?"
    )]
    Garbled(String),
    /// flockd says no.
    #[error("{message}")]
    Answer {
        /// For programs.
        code: ErrorCode,
        /// For people.
        message: String,
    },
}

/// One request under way.
pub struct Client {
    reader: BufReader<OwnedReadHalf>,
    /// Kept open: flockd ends a long answer when its peer closes.
    _writer: OwnedWriteHalf,
    done: bool,
}

impl Client {
    /// Connects to flockd and sends the request.
    ///
    /// # Errors
    /// When nobody listens, or this user may not connect.
    pub async fn ask(request: &Request) -> Result<Self, ClientError> {
        Self::ask_at(&socket(), request).await
    }

    /// The same on another socket.
    ///
    /// # Errors
    /// See [`Client::ask`].
    pub async fn ask_at(path: &Path, request: &Request) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path).await.map_err(|cause| match cause.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NotRunning,
            io::ErrorKind::PermissionDenied => ClientError::Denied { path: path.to_owned() },
            _ => ClientError::Broken(cause),
        })?;
        let (read, mut writer) = stream.into_split();
        let mut line = serde_json::to_vec(request).map_err(io::Error::from)?;
        line.push(b'\n');
        // A refusal can come before the request is read: then the refusal is what counts.
        let _ = writer.write_all(&line).await;
        Ok(Self { reader: BufReader::new(read), _writer: writer, done: false })
    }

    /// The next line of the answer; `None` when it is complete.
    ///
    /// # Errors
    /// When flockd says no, or the connection breaks.
    pub async fn next(&mut self) -> Result<Option<Response>, ClientError> {
        if self.done {
            return Ok(None);
        }
        let line = match lines::next(&mut self.reader, RESPONSE_MAX).await? {
            Line::Whole(line) => line,
            Line::TooLong => return Err(ClientError::Garbled("too long".to_owned())),
            Line::End => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        };
        let response: Response = serde_json::from_slice(&line).map_err(|e| match e.is_eof() {
            // flockd went away, or let go of this end, in the middle of a line.
            true => io::Error::from(io::ErrorKind::UnexpectedEof).into(),
            false => ClientError::Garbled(e.to_string()),
        })?;
        self.done = response.is_last();
        match response {
            Response::End => Ok(None),
            Response::Error { code, message } => Err(ClientError::Answer { code, message }),
            response => Ok(Some(response)),
        }
    }
}
