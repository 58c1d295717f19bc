//! Hears what agents tell of themselves, and keeps the last of it for operators.
//!
//! Events are not stored on the bus. Each agent has a place of its own here, so that one that tells
//! much does not push out what the others told.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::broadcast;
use tokio::time::sleep;

use crate::bus::hub::{Error, Hub};
use crate::bus::told::Told;
use crate::daemon::world::World;
use crate::names::AgentId;

/// Events of one agent that are kept.
pub const KEPT: usize = 20;
/// Events that wait for an operator who reads slowly; older ones are left out, and counted.
const WAITING: usize = 512;
/// Between two tries to listen.
const RETRY: Duration = Duration::from_secs(1);

/// The last events of each agent, and all that come.
#[derive(Debug)]
pub struct Ear {
    recent: Mutex<Recent>,
    live: broadcast::Sender<Arc<Told>>,
}

#[derive(Debug, Default)]
struct Recent {
    heard: u64,
    agents: BTreeMap<AgentId, VecDeque<(u64, Arc<Told>)>>,
}

impl Default for Ear {
    fn default() -> Self {
        Self { recent: Mutex::default(), live: broadcast::Sender::new(WAITING) }
    }
}

impl Ear {
    /// What was heard last, in the order in which it came, and all that comes after exactly that.
    pub fn open(&self) -> (Vec<Arc<Told>>, broadcast::Receiver<Arc<Told>>) {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let mut past: Vec<_> = recent.agents.values().flatten().cloned().collect();
        past.sort_by_key(|(number, _)| *number);
        (past.into_iter().map(|(_, told)| told).collect(), self.live.subscribe())
    }

    /// Takes in what came. Of agents that are not `known` any more nothing is kept.
    fn hear(&self, told: Told, known: impl Fn(&AgentId) -> bool) {
        let told = Arc::new(told);
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if !told.heartbeat {
            if !recent.agents.contains_key(&told.agent) {
                recent.agents.retain(|id, _| known(id));
            }
            recent.heard += 1;
            let number = recent.heard;
            let own = recent.agents.entry(told.agent.clone()).or_default();
            own.push_back((number, Arc::clone(&told)));
            if own.len() > KEPT {
                own.pop_front();
            }
        }
        // Under the lock, so that `open` misses nothing; an error says that nobody listens.
        let _ = self.live.send(told);
    }
}

/// Listens for ever, on each connection that the bus's loop makes.
pub async fn run(world: Arc<World>) {
    let mut hubs = world.hub.subscribe();
    loop {
        let hub = match hubs.wait_for(Option::is_some).await {
            Ok(hub) => hub.clone(),
            Err(_) => return,
        };
        if let Some(hub) = hub {
            tokio::select! {
                end = listen(&world, &hub) => if let Err(error) = end {
                    tracing::warn!("events: {error}");
                },
                _ = gone(&mut hubs) => {}
            }
        }
        sleep(RETRY).await;
    }
}

async fn gone(hubs: &mut tokio::sync::watch::Receiver<Option<Hub>>) {
    // An error means that flockd ends.
    let _ = hubs.wait_for(Option::is_none).await;
}

async fn listen(world: &World, hub: &Hub) -> Result<(), Error> {
    let mut tellings = hub.told().await?;
    while let Some(told) = tellings.next().await {
        world.ear.hear(told, |id| world.config().agents.contains_key(id));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    fn told(agent: &str, text: impl ToString, heartbeat: bool) -> Told {
        Told {
            at: Timestamp::UNIX_EPOCH,
            agent: AgentId::parse(agent).unwrap(),
            heartbeat,
            event: None,
            task: None,
            detail: None,
            text: text.to_string(),
            cut: false,
        }
    }

    #[test]
    fn a_flood_of_one_agent_pushes_out_nothing_of_the_others() {
        let ear = Ear::default();
        ear.hear(told("b", "first", false), |_| true);
        for number in 0..1000 {
            ear.hear(told("a", number, false), |_| true);
        }
        ear.hear(told("b", "last", false), |_| true);
        let (past, _) = ear.open();
        let texts: Vec<_> = past.iter().map(|told| told.text.as_str()).collect();
        assert_eq!(texts.len(), KEPT + 2);
        assert_eq!((texts[0], texts[1], texts[KEPT + 1]), ("first", "980", "last"));
    }

    #[tokio::test]
    async fn what_comes_after_opening_comes_once_and_heartbeats_are_not_kept() {
        let ear = Ear::default();
        ear.hear(told("a", "before", false), |_| true);
        let (past, mut live) = ear.open();
        ear.hear(told("a", "after", false), |_| true);
        ear.hear(told("a", "beat", true), |_| true);
        assert_eq!(past.len(), 1);
        let next = [live.recv().await.unwrap(), live.recv().await.unwrap()];
        assert_eq!(next.map(|told| told.text.clone()), ["after", "beat"]);
        assert_eq!(ear.open().0.len(), 2);
    }

    #[test]
    fn of_agents_that_are_gone_nothing_is_kept() {
        let ear = Ear::default();
        ear.hear(told("old", "x", false), |_| true);
        ear.hear(told("new", "y", false), |id| id.as_str() == "new");
        let (past, _) = ear.open();
        assert_eq!(past.iter().map(|t| t.agent.as_str()).collect::<Vec<_>>(), ["new"]);
    }
}
