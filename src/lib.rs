//! flock runs many AI agents on one Linux server, each behind a boundary that is measured.
//!
//! The module list is the map, in the order in which data flows:
//! text → [`config`] → `Config` → [`plan`] → `Plan` → [`host`] and [`bus`] → the machine.
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

/// Fail points: where a test can break the work off. Empty in what is packaged.
pub mod fail;
/// Lines of bounded length from a stream that others write.
pub mod lines;
/// Names that are checked once and then trusted: agent ids, levels, unit names, paths on disk.
pub mod names;
/// Commands that every systemd keeps.
pub mod spelled;
/// Small helpers for text that people read: sizes, durations, terminal-safe strings.
pub mod text;
/// Tool rules: which programs a command may use, with which arguments, and who is asked.
pub mod tools;

/// `flock-agent`: any command as an agent, run inside the agent's sandbox.
pub mod agent;
/// The audit log: who did what, chained.
pub mod audit;
/// The bus: accounts, identities, messages, and the operator's client.
pub mod bus;
/// `flockctl`: one file per verb.
pub mod cli;
/// Text to `Config`: the TOML as written, the rules, and messages that cite the line.
pub mod config;
/// The socket on which operators without root talk to flockd.
pub mod control;
/// flockd: keeps the world as configured, answers operators, holds no agent.
pub mod daemon;
/// The history of all tasks: facts from the bus in, one record for each task out.
pub mod history;
/// `Plan` to machine: users, tree, egress, units. The only module that changes the machine.
pub mod host;
/// The log of an agent, by fields that an agent cannot forge.
pub mod journal;
/// `Config` to `Plan`: pure data that says everything flock will do for an agent.
pub mod plan;
/// `flock-probe`: tries, inside an agent's sandbox, what the sandbox should refuse.
pub mod probe;
/// What the agents are doing: PID 1's word, the records of their ends, one model for all readers.
pub mod status;
/// The order of everything, written once: apply, launch, halt.
pub mod steps;
/// Sends a task and collects its results.
pub mod tasks;
/// The boundary measured: what each agent's probe found, against what its level promises.
pub mod verify;
