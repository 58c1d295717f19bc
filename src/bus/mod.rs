//! The bus: how agents and the operator exchange tasks, results, events and heartbeats over NATS.
//!
//! The server holds the boundary, not this code: every agent has a NATS account of its own, joined
//! to the hub account by exports and imports, so what another agent owns does not exist inside it.
//!
//! - [`subject`]: every subject, stream and consumer name (pure)
//! - [`identity`]: one random password per agent, made in a batch, kept in root's files
//! - [`talk`]: who may talk to whom, and how large (pure)
//! - [`accounts`]: all of these to the accounts of nats-server's configuration (pure)
//! - [`server_conf`]: the files of that configuration
//! - [`ready`]: waits until the server listens
//! - [`streams`]: what JetStream keeps for each agent (pure)
//! - [`environment`]: which variables a task may bring (pure)
//! - [`message`]: what travels: task, result, event, heartbeat, and how hostile bytes are read
//! - [`ask`]: a tool that waits for an operator: question and answer
//! - [`hub`]: the operator's side: make streams, send tasks, see results
//! - [`speak`]: broadcasts and channels, for the operator
//! - [`overhear`]: what passes in the hub, for those who measure the boundary
//! - [`told`]: events and heartbeats as they came, for operators
//! - [`queue`]: hands each task of the shared queue to exactly one agent
//! - [`version`]: which nats-server this is, and whether it can hold the promise

pub mod accounts;
pub mod ask;
pub mod environment;
pub mod hub;
pub mod identity;
pub mod message;
pub mod overhear;
pub mod queue;
pub mod ready;
pub mod server_conf;
pub mod speak;
pub mod streams;
pub mod subject;
pub mod talk;
pub mod told;
pub mod version;

use std::path::PathBuf;

/// What the operator configures about the bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The path of nats-server.
    pub server: PathBuf,
    /// The port on 127.0.0.1.
    pub port: u16,
    /// When a stored message is forced to disk: `always`, or an interval such as `2m`.
    pub sync: String,
    /// Where nats-server keeps its streams.
    pub store: PathBuf,
}

impl Settings {
    /// The address for a client on this host. It is an IP literal: an agent has no resolver.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }
}
