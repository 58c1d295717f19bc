//! Whether flockd's loops still turn: what the watchdog's answer depends on.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A loop of flockd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loop {
    /// Hears PID 1 and acts on final ends.
    Watch,
    /// Keeps the egress table.
    Egress,
    /// Accepts operators.
    Control,
    /// Holds the connection to the bus.
    Bus,
}

impl Loop {
    /// All loops, in the order of their numbers.
    const ALL: [Self; 4] = [Self::Watch, Self::Egress, Self::Control, Self::Bus];

    /// How long one turn may take before the loop counts as stuck.
    ///
    /// PID 1 serves nobody while it reloads, and `apply` holds the lock that the egress table needs:
    /// both take minutes on a host with thousands of agents.
    fn patience(self) -> Duration {
        Duration::from_secs(match self {
            Self::Control => 30,
            Self::Watch | Self::Egress | Self::Bus => 300,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Watch => "watch",
            Self::Egress => "egress",
            Self::Control => "control",
            Self::Bus => "bus",
        }
    }
}

/// The last turn of each loop.
#[derive(Debug)]
pub struct Pulses {
    last: Mutex<[Instant; Loop::ALL.len()]>,
}

impl Default for Pulses {
    fn default() -> Self {
        Self { last: Mutex::new([Instant::now(); Loop::ALL.len()]) }
    }
}

impl Pulses {
    /// The loop has turned.
    pub fn beat(&self, which: Loop) {
        self.set(which, Instant::now());
    }

    fn set(&self, which: Loop, at: Instant) {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)[which as usize] = at;
    }

    /// The loops that are stuck.
    #[must_use]
    pub fn stuck(&self, now: Instant) -> Vec<&'static str> {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let late =
            |which: &Loop| now.saturating_duration_since(last[*which as usize]) > which.patience();
        Loop::ALL.into_iter().filter(late).map(Loop::name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_does_not_turn_is_named() {
        let pulses = Pulses::default();
        let now = Instant::now() + Duration::from_secs(31);
        assert_eq!(pulses.stuck(now), ["control"]);
        pulses.set(Loop::Control, now);
        assert!(pulses.stuck(now).is_empty());
        assert_eq!(pulses.stuck(now + Duration::from_secs(290)).len(), 4);
    }
}
