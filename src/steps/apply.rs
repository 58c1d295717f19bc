//! Everything that must exist before an agent can start, for all agents in one batch.
//!
//! Each part reads first and writes only what differs, so that a second run changes nothing.

use crate::bus;
use crate::config::{Config, Sync};
use crate::host::units::{Systemd, UnitError};
use crate::host::{root, tree, users};
use crate::names::{AgentId, WORKSPACE_USER, bus_dir, identity_dir};
use crate::plan::{self, Plan, Uids, UserPlan};
use crate::steps::fence::{self, FenceError};
use crate::steps::lock::{Lock, LockError};

/// The unit of the message bus.
const BUS_UNIT: &str = "flock-bus.service";

/// Why the machine could not be made as configured. What was done before stays and is right.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The lock.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Unix users.
    #[error(transparent)]
    Users(#[from] users::UserError),
    /// The shared tree.
    #[error(transparent)]
    Tree(#[from] tree::TreeError),
    /// The agents' roots.
    #[error(transparent)]
    Root(#[from] root::RootError),
    /// Bus identities.
    #[error(transparent)]
    Identity(#[from] bus::identity::Error),
    /// The bus's configuration.
    #[error(transparent)]
    ServerConf(#[from] bus::server_conf::Error),
    /// The egress table.
    #[error(transparent)]
    Fence(#[from] FenceError),
    /// PID 1.
    #[error(transparent)]
    Unit(#[from] UnitError),
}
