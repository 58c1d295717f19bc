//! `Plan` to machine. The only module that changes the machine.

/// Which limits this host can enforce at all.
pub mod cgroup;
/// The one file where `unsafe` is allowed.
pub mod sys;
/// Transient systemd units over D-Bus, and what the kernel says of their processes.
pub mod units;
