//! The socket on which operators without root talk to flockd: `/run/flock/control.sock`.
//!
//! One request for each connection, one line of JSON; then lines of JSON until `end` or `error`.
//! Root and members of the group `flock` may connect; the kernel says who a peer is, and a peer
//! whose user is an agent's is refused whatever its groups are. Nothing here changes a unit: what
//! does needs root, and `flockctl` run by root asks PID 1 itself.

use std::path::PathBuf;
use std::time::Duration;

use crate::names::RUN_DIR;

/// The other end, for `flockctl`.
pub mod client;
/// Who is speaking, and whether it may.
pub mod peer;
/// What can be asked.
pub mod request;
/// What is answered.
pub mod response;
/// Accepts, checks, bounds.
pub mod server;
/// Events, broadcasts, channels.
pub mod talk;

#[cfg(test)]
mod tests;

pub use client::{Client, ClientError};
pub use peer::Peer;
pub use request::Request;
pub use response::{ErrorCode, Response};
pub use talk::{Heard, Talk};

/// The longest request: the largest task and what stands around it.
pub const REQUEST_MAX: usize = crate::bus::server_conf::MAX_PAYLOAD + 4096;
/// The longest line of an answer: a log entry of the largest size, escaped.
pub const RESPONSE_MAX: usize = 8 << 20;
/// A peer has this long to send its request.
pub const REQUEST_TIME: Duration = Duration::from_secs(5);
/// A peer that reads nothing for this long is dropped.
pub const WRITE_TIME: Duration = Duration::from_secs(10);
/// Connections at the same time.
pub const CONNECTIONS_MAX: usize = 64;
/// Connections of one user at the same time, so that one operator cannot shut out the others.
pub const CONNECTIONS_PER_USER: usize = 16;

/// Where the socket is.
#[must_use]
pub fn socket() -> PathBuf {
    PathBuf::from(RUN_DIR).join("control.sock")
}
