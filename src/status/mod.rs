//! What the agents are doing.

/// What the last measurement of the boundaries found.
pub mod boundary;
/// The report on one agent.
pub mod detail;
/// How an agent ended: the record that the handle, `status` and `halt` read.
pub mod ending;
/// What PID 1 says of an agent, as plain data.
pub mod facts;
#[cfg(test)]
mod golden;
/// What only flockd knows: signs of life, its own condition.
pub mod health;
/// Why an agent ended, in words for people.
pub mod reason;
/// One model for the table and for JSON.
pub mod report;
/// From what PID 1 says to the one word that people read.
pub mod state;
/// Reads what PID 1 and the kernel say.
pub mod systemd;
/// The report for people.
pub mod table;

pub use ending::{Ending, Kind, RecordError, Records};
pub use state::{Seen, State, judge};
