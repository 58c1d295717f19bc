//! The boundary measured, agent against agent.
//!
//! A probe runs in each agent's own sandbox, in a unit that is made from the agent's own plan, and
//! tries what the level promises to refuse. The same attempts are made where nothing protects: what
//! fails there as well proves nothing. What could be believed only from the probe is looked at from
//! outside too.

/// What was approved to be in a sandbox.
mod approved;
/// The checks and what each level promises.
pub mod checks;
/// What follows from a measurement.
mod enforce;
/// What has to hold before an agent runs.
mod gate;
/// What is tried one by one.
mod lists;
/// Whether the machine is as planned, seen from outside.
mod machine;
/// What was found, judged.
pub mod matrix;
/// The matrix as a page.
pub mod page;
/// Starts the probes and reads their reports.
mod probes;
/// One run, from the first canary to the last.
mod run;
/// What is attacked, and the orders.
mod scene;
/// What both forms of the matrix owe.
#[cfg(test)]
mod shown;
/// Listeners.
mod sinks;
/// Makes and removes what is attacked.
mod stage;
/// The matrix for a terminal.
pub mod table;
/// Processes to be attacked.
mod tripwires;
/// From evidence to a verdict.
pub mod verdict;

pub use enforce::{MESSAGE_ID, enforce};
pub use gate::before_ready;
pub use run::verify;

use crate::host::units::UnitError;
use crate::steps::lock::LockError;

/// Why nothing could be measured.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The lock.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// PID 1.
    #[error("verify: {0}")]
    Unit(#[source] UnitError),
    /// Something to be attacked could not be made.
    #[error("verify: make {what}: {cause}")]
    Stage {
        /// What.
        what: String,
        /// What the system said.
        cause: String,
    },
    /// The control did not run.
    #[error("verify: run the control as {who}: {cause}")]
    Control {
        /// As whom.
        who: &'static str,
        /// What went wrong.
        cause: String,
    },
}

impl VerifyError {
    fn stage(what: &dyn std::fmt::Display, cause: impl std::fmt::Display) -> Self {
        Self::Stage { what: what.to_string(), cause: cause.to_string() }
    }
}
