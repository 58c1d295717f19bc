//! The lanes of the shared queue: one for each sender, so that many tasks of one do not delay
//! another's.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::PullConsumer;
use futures_util::StreamExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::bus::hub::{Error, Hub, refused};
use crate::bus::message::{Task, TaskId};
use crate::bus::{streams, subject};

/// Tasks of one lane that are taken out ahead of a free place, and their bytes.
const AHEAD: usize = 64;
const AHEAD_BYTES: usize = 4 * 1024 * 1024;
/// How long the server holds a request for tasks.
const HOLD: Duration = Duration::from_secs(20);
/// After the server did not answer.
const REST: Duration = Duration::from_secs(1);

/// A message of the queue that was taken out and not yet given to an agent.
pub(super) struct Arrival {
    /// Whose lane.
    pub sender: u32,
    /// The message.
    pub message: Message,
    /// Its place among those that are ahead.
    pub ahead: OwnedSemaphorePermit,
}

/// A task that waits for a free place.
pub(super) struct Held {
    /// Whose lane.
    pub lane: u32,
    /// The task, with the attempt that comes next.
    pub task: Task,
    /// Its message in the queue.
    pub message: Message,
    /// Kept so that a lane takes out no more than it may.
    pub _ahead: Option<OwnedSemaphorePermit>,
}

impl Held {
    /// Its number in the queue: the order in which tasks were sent.
    pub fn turn(&self) -> u64 {
        self.message.info().map_or(0, |info| info.stream_sequence)
    }
}

/// Takes tasks out of every lane, a few ahead, until it is dropped.
pub(super) struct Taps {
    hub: Hub,
    arrivals: mpsc::UnboundedSender<Arrival>,
    open: BTreeSet<u32>,
    pumps: JoinSet<()>,
}

impl Taps {
    /// Without a lane yet; what comes goes into `arrivals`.
    pub fn new(hub: Hub, arrivals: mpsc::UnboundedSender<Arrival>) -> Self {
        Self { hub, arrivals, open: BTreeSet::new(), pumps: JoinSet::new() }
    }

    /// Begins with a lane, unless it runs.
    pub async fn open(&mut self, sender: u32) -> Result<(), Error> {
        if self.open.contains(&sender) {
            return Ok(());
        }
        let config = streams::lane_consumer(sender);
        let source =
            self.hub.jetstream().create_consumer_on_stream(config, subject::QUEUE_STREAM).await;
        let source = source.map_err(refused(format!("open the lane of user {sender}")))?;
        self.open.insert(sender);
        self.pumps.spawn(pump(sender, source, self.arrivals.clone()));
        Ok(())
    }
}

async fn pump(sender: u32, source: PullConsumer, arrivals: mpsc::UnboundedSender<Arrival>) {
    let places = Arc::new(Semaphore::new(AHEAD));
    loop {
        // The semaphore is never closed.
        let Ok(first) = Arc::clone(&places).acquire_owned().await else { return };
        let mut free = vec![first];
        while let Ok(more) = Arc::clone(&places).try_acquire_owned() {
            free.push(more);
        }
        let batch = source.batch().max_messages(free.len()).max_bytes(AHEAD_BYTES).expires(HOLD);
        let mut batch = match batch.messages().await {
            Ok(batch) => batch,
            Err(e) => {
                tracing::warn!("ask the shared queue for tasks of user {sender}: {e}");
                tokio::time::sleep(REST).await;
                continue;
            }
        };
        while let Some(message) = batch.next().await {
            let Ok(message) = message else { break };
            let Some(ahead) = free.pop() else { break };
            if arrivals.send(Arrival { sender, message, ahead }).is_err() {
                return;
            }
        }
    }
}

/// Tasks that wait for a free place, lane by lane in turn.
#[derive(Default)]
pub(super) struct Lanes {
    waiting: BTreeMap<u32, VecDeque<Held>>,
    /// The lane that was served last.
    last: Option<u32>,
}

impl Lanes {
    /// In its lane, in the order in which tasks were sent: also one that was on its way before.
    pub fn push(&mut self, held: Held) {
        let lane = self.waiting.entry(held.lane).or_default();
        let turn = held.turn();
        let behind = lane.iter().rev().take_while(|other| other.turn() > turn).count();
        lane.insert(lane.len() - behind, held);
    }

    /// The next lane's first task.
    pub fn next(&mut self) -> Option<Held> {
        let after = self.last.map_or(0, |last| last.wrapping_add(1));
        let mut turns = self.waiting.range(after..).chain(self.waiting.range(..after));
        let sender = *turns.next()?.0;
        let lane = self.waiting.get_mut(&sender)?;
        let held = lane.pop_front();
        if lane.is_empty() {
            self.waiting.remove(&sender);
        }
        self.last = Some(sender);
        held
    }

    /// Takes out one task.
    pub fn remove(&mut self, id: &TaskId) -> Option<Held> {
        let find = |(sender, lane): (&u32, &VecDeque<Held>)| {
            Some((*sender, lane.iter().position(|held| held.task.id == *id)?))
        };
        let (sender, at) = self.waiting.iter().find_map(find)?;
        let lane = self.waiting.get_mut(&sender)?;
        let held = lane.remove(at);
        if lane.is_empty() {
            self.waiting.remove(&sender);
        }
        held
    }

    /// The messages of all that wait.
    pub fn messages(&self) -> impl Iterator<Item = &Message> {
        self.waiting.values().flatten().map(|held| &held.message)
    }

    /// The waiting task with this id, whose message came anew.
    pub fn find(&mut self, id: &TaskId) -> Option<&mut Held> {
        self.waiting.values_mut().flatten().find(|held| held.task.id == *id)
    }
}
