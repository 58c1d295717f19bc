//! The grammars of single values: pure functions from text to a checked value or a reason.

/// Where an agent may connect to.
pub(super) mod egress;
/// Names and values of environment variables, and names of secrets.
pub(super) mod names;
/// Host paths, and the ones that no agent may be given.
pub(super) mod paths;
/// Sizes, durations, percentages and blocks of user ids.
pub(super) mod quantities;
