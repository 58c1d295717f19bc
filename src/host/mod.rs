//! `Plan` to machine. The only module that changes the machine.

/// Transient systemd units over D-Bus, and what the kernel says of their processes.
pub mod units;
