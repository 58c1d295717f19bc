//! What the agents are doing.

/// How an agent ended: the record that the handle, `status` and `halt` read.
pub mod ending;
/// What PID 1 says of an agent, as plain data.
pub mod facts;
/// Why an agent ended, in words for people.
pub mod reason;
/// From what PID 1 says to the one word that people read.
pub mod state;
/// Reads what PID 1 and the kernel say.
pub mod systemd;

pub use ending::{Ending, Kind, Records};
pub use state::{Seen, State, judge};
