//! Why something on the bus did not work: what was tried, what the server said, what helps.

use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::{self, ErrorCode};

use crate::bus::message::{BadMessage, Task};
use crate::bus::server_conf::MAX_PAYLOAD;

/// Why something on the bus did not work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server cannot be reached, or refused the password.
    #[error("connect to the bus at {url}: {cause}: see `systemctl status flock-bus`")]
    Connect {
        /// Its address.
        url: String,
        /// What went wrong.
        cause: String,
    },
    /// The server refused or did not answer.
    #[error("{step}: {cause}")]
    Refused {
        /// What was tried, and on what.
        step: String,
        /// What the server said.
        cause: String,
    },
    /// Its store was damaged; [`super::Hub::ensure`] makes it anew.
    #[error("the store of {0} was damaged: what was handed out is not there, or cannot be read")]
    Damaged(String),
    /// So many tasks wait already that no more is taken.
    #[error(
        "send task {task} to {to}: {to} has too many waiting tasks: try again later, or cancel \
         some: `flockctl task cancel`"
    )]
    Full {
        /// The task.
        task: String,
        /// Whose list is full.
        to: String,
    },
    /// Nothing can be stored: the disk is full, or the store is broken.
    #[error(
        "send task {task} to {to}: the bus cannot store it ({cause}): make room on the file system \
         of /var/lib/flock/bus, then `systemctl restart flock-bus`; see `journalctl -u flock-bus`"
    )]
    NoStore {
        /// The task.
        task: String,
        /// For whom it was.
        to: String,
        /// What the server said.
        cause: String,
    },
    /// The server did not say whether it stored the task.
    #[error(
        "send task {task} to {to}: the bus did not confirm it ({cause}): whether it is stored says \
         `flockctl task show {task}`; see `systemctl status flock-bus`"
    )]
    Silent {
        /// The task.
        task: String,
        /// For whom it was.
        to: String,
        /// What went wrong.
        cause: String,
    },
    /// Nobody keeps tasks for this receiver.
    #[error("send task {task} to {to}: the bus knows no {to}: run `flockctl apply`")]
    Unknown {
        /// The task.
        task: String,
        /// For whom it was.
        to: String,
    },
    /// The task is larger than what the bus carries.
    #[error(
        "send task {task}: it has {bytes} bytes, and at most {MAX_PAYLOAD} go over the bus: put the \
         data into the shared tree and name it in the task"
    )]
    TooLarge {
        /// The task.
        task: String,
        /// Its size.
        bytes: usize,
    },
    /// The message cannot be sent as it is.
    #[error(transparent)]
    Message(#[from] BadMessage),
}

/// Why a task was not stored. `on` says whether the server keeps streams at all.
pub(super) fn store_error(task: &Task, error: &PublishError, on: bool) -> Error {
    let (task, to) = (task.id.to_string(), task.to.to_string());
    match error.kind() {
        PublishErrorKind::StreamNotFound if on => return Error::Unknown { task, to },
        PublishErrorKind::StreamNotFound => {
            let cause = "its streams are switched off".to_owned();
            return Error::NoStore { task, to, cause };
        }
        PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe => {
            return Error::Silent { task, to, cause: error.to_string() };
        }
        _ => {}
    }
    let server =
        std::error::Error::source(error).and_then(|s| s.downcast_ref::<jetstream::Error>());
    match server {
        Some(said) => by_server(said, task, to),
        None => Error::Silent { task, to, cause: error.to_string() },
    }
}

/// The server's own words: a stream's limit, or a store that takes nothing.
fn by_server(said: &jetstream::Error, task: String, to: String) -> Error {
    let full = |text: &str| text.contains("maximum messages") || text.contains("maximum bytes");
    match said.error_code() {
        ErrorCode::STREAM_STORE_FAILED if full(&said.to_string()) => Error::Full { task, to },
        ErrorCode::STREAM_STORE_FAILED
        | ErrorCode::INSUFFICIENT_RESOURCES
        | ErrorCode::STORAGE_RESOURCES_EXCEEDED
        | ErrorCode::ACCOUNT_RESOURCES_EXCEEDED => {
            Error::NoStore { task, to, cause: said.to_string() }
        }
        _ => Error::Refused { step: format!("send task {task} to {to}"), cause: said.to_string() },
    }
}

pub(in crate::bus) fn refused<E: std::fmt::Display>(
    step: impl Into<String>,
) -> impl FnOnce(E) -> Error {
    let step = step.into();
    move |cause| Error::Refused { step, cause: cause.to_string() }
}
