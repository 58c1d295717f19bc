//! Stops one agent and leaves nothing of it.

use crate::fail::{self, Point};
use crate::host::units::{Systemd, UnitError};
use crate::names::AgentId;
use crate::status::Records;
use crate::steps::fence::{self, FenceError};
use crate::steps::lock::{Lock, LockError};

/// Why an agent could not be stopped cleanly.
#[derive(Debug, thiserror::Error)]
pub enum HaltError {
    /// The lock.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// PID 1.
    #[error("halt {0}: {1}")]
    Unit(AgentId, #[source] UnitError),
    /// Its exceptions stay in the egress table.
    #[error("halt {0}: close its network: {1}")]
    Fence(AgentId, #[source] FenceError),
    /// It is stopped, but it had failed before: its handle shall say so.
    #[error("{id} failed: {reason}")]
    Failed {
        /// The agent.
        id: AgentId,
        /// Why, as flockd recorded it.
        reason: String,
    },
}

/// Stops the agent. One that is gone already is stopped: `StopPropagatedFrom=` ends the unit
/// together with its handle, while this runs.
///
/// # Errors
/// When PID 1 does not stop it, or when it had failed before anybody asked for a stop.
pub async fn halt(id: &AgentId) -> Result<(), HaltError> {
    let _lock = Lock::agent(id)?;
    fail::at(Point::HaltLocked);
    let unit = |e| HaltError::Unit(id.clone(), e);
    let systemd = Systemd::connect().await.map_err(unit)?;
    // PID 1 does not stop what is frozen; one that is not frozen needs no thaw.
    let _ = systemd.thaw(&id.agent_unit()).await;
    systemd.stop(&id.agent_unit()).await.map_err(unit)?;
    fail::at(Point::HaltStopped);
    systemd.reset_failed(&id.agent_unit()).await.map_err(unit)?;
    fail::at(Point::HaltForgotten);
    systemd.stop(&id.slice()).await.map_err(unit)?;
    fail::at(Point::HaltSliceStopped);
    fence::close(id).await.map_err(|e| HaltError::Fence(id.clone(), e))?;
    fail::at(Point::HaltFenceClosed);
    match Records::default().failed(id) {
        Some(ending) => Err(HaltError::Failed { id: id.clone(), reason: ending.reason }),
        None => Ok(()),
    }
}
