//! `Plan` to machine. The only module that changes the machine.

/// Access control lists as plain data.
pub mod acl;
/// Which limits this host can enforce at all.
pub mod cgroup;
/// Programs of the system, run with a fixed environment.
mod command;
/// What flock needs of this host, looked at piece by piece.
pub mod doctor;
/// What agents may reach on the network.
pub mod egress;
/// The dangerous opens, all of them.
pub mod files;
/// Writes to the journal.
pub mod journald;
/// Whether a process can give up the right to execute programs.
pub mod landlock;
/// How much an agent may keep on disk.
pub mod quota;
/// The skeleton that becomes an agent's root directory.
pub mod root;
/// The one file where `unsafe` is allowed.
pub mod sys;
/// What the tests of this module share.
#[cfg(test)]
mod testing;
/// The shared tree: who may read and write what in it.
pub mod tree;
/// Transient systemd units over D-Bus, and what the kernel says of their processes.
pub mod units;
/// Which Unix user an agent is, and how that is made true.
pub mod users;
