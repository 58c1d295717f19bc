//! The order of everything, written once: apply, launch, halt.

/// Users, tree, roots, identities, egress and handles of all configured agents, in one batch.
pub mod apply;
/// The bus's part of apply.
mod bus_files;
/// What of the machine is not as planned.
pub mod drift;
/// Whether this host does what a unit's properties say.
pub mod enforced;
/// The egress table: what every agent may reach, resolved, loaded and read back.
pub mod fence;
/// Stops one agent.
pub mod halt;
/// Starts one agent, or leaves nothing.
pub mod launch;
/// One at a time.
pub mod lock;
