//! Who can take how much of the shared queue. Pure, but for the time.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use crate::names::AgentId;

/// The places of all agents.
pub(super) struct Seats {
    silence: Duration,
    seats: BTreeMap<AgentId, Seat>,
    /// Tasks of the queue that an agent has; also of one that was not heard of yet.
    load: HashMap<AgentId, usize>,
}

struct Seat {
    /// None once it is known to have ended.
    heard: Option<Instant>,
    places: usize,
}

impl Seats {
    /// Nobody yet. Who is not heard of for `silence` gets nothing.
    pub fn new(silence: Duration) -> Self {
        Self { silence, seats: BTreeMap::new(), load: HashMap::new() }
    }

    /// A heartbeat.
    pub fn heard(&mut self, agent: AgentId, places: usize) {
        self.seats.insert(agent, Seat { heard: Some(Instant::now()), places });
    }

    /// Whether nothing was heard of an agent for too long; before its first heartbeat since `begun`.
    pub fn is_silent(&self, agent: &AgentId, begun: Instant) -> bool {
        let heard = self.seats.get(agent).map_or(Some(begun), |seat| seat.heard);
        heard.is_none_or(|at| at.elapsed() >= self.silence)
    }

    /// The agent had ended at this time: it counts as silent until its next heartbeat, if that did
    /// not come since.
    pub fn gone(&mut self, agent: AgentId, at: Instant) {
        if self.seats.get(&agent).is_none_or(|seat| seat.heard.is_none_or(|heard| heard <= at)) {
            self.seats.insert(agent, Seat { heard: None, places: 0 });
        }
    }

    /// The agent with a free place that has the fewest of the queue's tasks.
    pub fn best(&self) -> Option<AgentId> {
        let free = |(id, seat): (&AgentId, &Seat)| {
            let load = self.load.get(id).copied().unwrap_or_default();
            let free =
                load < seat.places && seat.heard.is_some_and(|at| at.elapsed() < self.silence);
            free.then(|| (load, id.clone()))
        };
        self.seats.iter().filter_map(free).min().map(|(_, id)| id)
    }

    /// The agent has one more.
    pub fn take(&mut self, agent: &AgentId) {
        *self.load.entry(agent.clone()).or_default() += 1;
    }

    /// The agent has one less.
    pub fn free(&mut self, agent: &AgentId) {
        if let Some(load) = self.load.get_mut(agent) {
            *load = load.saturating_sub(1);
            if *load == 0 {
                self.load.remove(agent);
            }
        }
    }

    /// Nothing for this agent before its next heartbeat.
    pub fn close(&mut self, agent: &AgentId) {
        if let Some(seat) = self.seats.get_mut(agent) {
            seat.places = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_loaded_agent_that_is_alive_and_has_a_place_comes_next() {
        let id = |name: &str| AgentId::parse(name).unwrap();
        let mut seats = Seats::new(Duration::from_secs(60));
        assert_eq!(seats.best(), None);
        seats.take(&id("b"));
        seats.heard(id("a"), 2);
        seats.heard(id("b"), 2);
        assert_eq!(seats.best(), Some(id("a")), "b has one from before");
        seats.take(&id("a"));
        seats.take(&id("a"));
        assert_eq!(seats.best(), Some(id("b")));
        seats.take(&id("b"));
        assert_eq!(seats.best(), None, "both are full");
        seats.free(&id("a"));
        assert_eq!(seats.best(), Some(id("a")));
        seats.close(&id("a"));
        assert_eq!(seats.best(), None, "its list was full");
        seats.heard(id("a"), 1);
        assert!(!seats.is_silent(&id("a"), Instant::now()));
        let before = Instant::now();
        seats.heard(id("a"), 1);
        seats.gone(id("a"), before);
        assert!(!seats.is_silent(&id("a"), before), "it was heard of after that");
        seats.gone(id("a"), Instant::now());
        assert!(seats.is_silent(&id("a"), Instant::now()));
        assert_eq!(seats.best(), None, "it has ended");
        let mut silent = Seats::new(Duration::ZERO);
        silent.heard(id("a"), 1);
        assert_eq!(silent.best(), None);
    }
}
