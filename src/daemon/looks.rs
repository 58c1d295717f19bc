//! What the bus shows of a task whose result does not come. Each stream is asked once in a round.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;

use crate::bus::hub::{self, Hub, Places, Seen, Stored};
use crate::bus::streams::Delivery;
use crate::bus::subject::{self, Kind};
use crate::config::Mode;
use crate::daemon::verdict::{Case, Decision, decide};
use crate::daemon::world::World;
use crate::history::{Place, Record, Slot};
use crate::names::AgentId;

/// What one round has asked of each stream.
#[derive(Default)]
pub(super) struct Looks {
    seen: BTreeMap<String, Seen>,
    places: BTreeMap<String, Places>,
    /// Nothing is stuck in them.
    sound: BTreeSet<String>,
    /// The history waits for nothing there that cannot come.
    passed: BTreeSet<String>,
}

impl Looks {
    /// What is to become of an open task.
    pub(super) async fn at(
        &mut self,
        world: &World,
        hub: &Hub,
        record: &Record,
        now: Timestamp,
    ) -> Result<Decision, hub::Error> {
        let Some((place, agent)) = whereabouts(record) else { return Ok(Decision::Wait) };
        let config = world.config();
        let settings = agent.and_then(|id| config.agents.get(id));
        let (delivery, limit) = match (agent, settings) {
            (None, _) => (Delivery::Pull, Duration::MAX),
            (Some(_), Some(agent)) => (way(agent.mode), agent.task.timeout),
            (Some(id), None) => {
                return Ok(Decision::Fail(format!("the agent {id} is not configured any more")));
            }
        };
        let consumers = match agent {
            None => vec![subject::lane_consumer(record.sender)],
            Some(_) => match delivery {
                Delivery::Pull => vec![subject::PULL_CONSUMER.to_owned()],
                Delivery::Push => Kind::EACH.iter().map(|kind| kind.push_consumer()).collect(),
            },
        };
        // What lies there is asked first: what leaves in between is settled by then.
        let mut stored = hub.stored_at(&place.stream, place.sequence, &record.task).await?;
        if stored == Stored::Gone && self.counted(hub, place).await? {
            stored = Stored::Unreadable;
        }
        let part = match self.seen.get(&place.stream) {
            Some(part) if agent.is_some() => part.clone(),
            _ => {
                let part = hub.see(&place.stream, &consumers).await?;
                self.seen.insert(place.stream.clone(), part.clone());
                part
            }
        };
        if !part.told && self.passed.insert(place.stream.clone()) {
            hub.pass_over(&place.stream).await?;
        }
        let gone = matches!(stored, Stored::Gone | Stored::Unreadable);
        let in_work = part.busy && part.settled < place.sequence;
        if part.set_back || (gone && in_work && self.is_stuck(hub, &place.stream).await?) {
            return Err(hub::Error::Damaged(place.stream.clone()));
        }
        let decision = decide(&Case {
            now,
            queued: record.queued,
            begun: record.started,
            deadline: record.deadline,
            place: place.sequence,
            stored,
            seen: &part,
            delivery,
            limit,
        });
        match (&decision, agent) {
            (Decision::Fail(_), Some(id)) if !self.all_is_told(hub, id).await? => {
                Ok(Decision::Unknown)
            }
            _ => Ok(decision),
        }
    }

    /// Whether flockd has all that an agent ever said of its tasks: the result may be on its way.
    async fn all_is_told(&mut self, hub: &Hub, agent: &AgentId) -> Result<bool, hub::Error> {
        let results = subject::result_stream(agent);
        if !self.seen.contains_key(&results) {
            let part = hub.see(&results, &[]).await?;
            if !part.told {
                hub.pass_over(&results).await?;
            }
            self.seen.insert(results.clone(), part);
        }
        Ok(self.seen[&results].told)
    }

    async fn is_stuck(&mut self, hub: &Hub, stream: &str) -> Result<bool, hub::Error> {
        if self.sound.contains(stream) {
            return Ok(false);
        }
        let stuck = hub.is_stuck(stream).await?;
        if !stuck {
            self.sound.insert(stream.to_owned());
        }
        Ok(stuck)
    }

    /// Whether the server counts what it does not give. An empty place stays empty; what was counted
    /// before can have left since, and is asked for again.
    async fn counted(&mut self, hub: &Hub, place: &Place) -> Result<bool, hub::Error> {
        if self.places.get(&place.stream).is_some_and(|known| !known.hold(place.sequence)) {
            return Ok(false);
        }
        let places = hub.places(&place.stream).await?;
        let counted = places.hold(place.sequence);
        self.places.insert(place.stream.clone(), places);
        Ok(counted)
    }
}

/// Where a task has to be looked for: with the agent that has it, else in the shared queue.
fn whereabouts(record: &Record) -> Option<(&Place, Option<&AgentId>)> {
    match (&record.slot, &record.given, &record.agent) {
        (Slot::Agent(agent), ..) => Some((record.place.as_ref()?, Some(agent))),
        (Slot::Any, Some(given), Some(agent)) => Some((given, Some(agent))),
        (Slot::Any, ..) => Some((record.place.as_ref()?, None)),
    }
}

fn way(mode: Mode) -> Delivery {
    match mode {
        Mode::Service => Delivery::Push,
        _ => Delivery::Pull,
    }
}
