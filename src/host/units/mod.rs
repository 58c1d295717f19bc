//! Transient systemd units over D-Bus, and what the kernel says of their processes.

/// Calls that are repeated when PID 1 went away in the middle of them.
mod again;
/// Waiting for the end of a job.
mod jobs;
/// PID 1's D-Bus interface, the ten methods of it that flock calls.
mod manager;
/// After the start: does the machine hold what the plan says?
pub mod readback;
/// Start, stop and read units.
mod systemd;
/// A plan's values in D-Bus form.
mod variant;

pub use systemd::{OLDEST, Systemd, UnitError, UnitFacts, UnitRow};
