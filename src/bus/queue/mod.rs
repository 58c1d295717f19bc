//! The shared queue: each task of `tasks.any` goes to one agent that has a free place.
//!
//! Agents do not share the queue's consumers. An acknowledgement is addressed by a number that can be
//! guessed, so one agent could end or delay what another works on. flockd hands the tasks out
//! instead: into the chosen agent's own stream, where the server keeps others away. While flockd is
//! down the queue waits, and what was handed out is worked on.
//!
//! A task stays in the queue until its agent's result has arrived. When the agent falls silent the
//! task is taken back and goes to another, as the next attempt, and after the last attempt to the
//! list of dead letters. Each sender has a lane; the lanes take turns.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::Message;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};

use super::hub::{Error, Hub, Notice, Report, refused};
use super::message::{self, Status, Task, TaskId, TaskResult};
use super::streams::{ACK_WAIT, Member};
use super::subject;
use crate::names::AgentId;
use lanes::{Arrival, Held, Lanes, Taps};
use seats::Seats;
use work::Did;

/// Takes tasks back, drops them, and keeps those that are worked on.
mod care;
/// Senders' lanes.
mod lanes;
/// Who can take how much.
mod seats;
/// What takes time: asking, storing, acknowledging.
mod work;

/// An agent that was not heard of for so long is not given tasks, and loses those it has: two
/// heartbeats may be lost.
pub const SILENCE: Duration = Duration::from_secs(75);
/// How often a task is handed out before it is given up.
pub const ATTEMPTS: u64 = 5;
/// How long what is under way may still take when the queue stops.
const LAST: Duration = Duration::from_secs(5);

/// What is written down of the queue's tasks, and decides when an agent's word and ours cross.
pub trait Book: Send + Sync + 'static {
    /// What is known of a task; `None` when nobody can tell.
    fn known(&self, task: TaskId) -> BoxFuture<'static, Option<Known>>;
    /// Writes down that the agent has lost the task, and says which attempt is over by that; `None`
    /// when the task had ended before.
    fn back(&self, task: TaskId, attempt: u64, why: String) -> BoxFuture<'static, Option<u64>>;
    /// Writes down that nobody could do the task.
    fn given_up(&self, task: TaskId, why: String) -> BoxFuture<'static, ()>;
}

/// What a [`Book`] says of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Whether nothing is left to do.
    pub ended: bool,
    /// How often it was handed out.
    pub attempts: u64,
}

/// What the queue is told while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// The task has ended: nobody is to get it, and whoever has it need not finish.
    Drop(TaskId),
    /// The agent that has the task will not finish it, and why: it goes to another.
    Again(TaskId, String),
    /// At this time the agent had ended, and was not started again by itself.
    Gone(AgentId, Instant),
    /// An agent's result counts. Usually the queue has heard it; not one that came while it was away.
    Result(AgentId, Box<TaskResult>),
}

/// What the queue needs besides the bus.
pub struct Setup {
    /// The agents whose streams are searched for tasks that an earlier run handed out; an agent that
    /// comes later counts from its first heartbeat.
    pub members: Vec<Member>,
    /// An agent not heard of for so long loses what it was given; usually [`SILENCE`].
    pub silence: Duration,
    /// What is written down.
    pub book: Arc<dyn Book>,
    /// What the queue is told.
    pub orders: mpsc::UnboundedReceiver<Order>,
}

/// A task that an agent has.
struct Given {
    lane: u32,
    agent: AgentId,
    task: Task,
    /// Where it lies in the agent's stream, once it does.
    place: Option<u64>,
    /// Its message in the queue.
    message: Message,
    /// It ended while it was on its way to the agent.
    dropped: bool,
}

/// Handed out before this process began: found in the agents' streams.
struct Left {
    agent: AgentId,
    place: u64,
    attempt: u64,
}

/// What is known of the queue and its takers.
struct Queue {
    hub: Hub,
    book: Arc<dyn Book>,
    seats: Seats,
    lanes: Lanes,
    given: HashMap<TaskId, Given>,
    left: HashMap<TaskId, Left>,
    /// Ended while their message was not here; with the reason if their agent gave them up.
    early: HashMap<TaskId, Option<String>>,
    work: FuturesUnordered<BoxFuture<'static, Did>>,
    begun: Instant,
    /// The last message of the queue when this run began: an earlier one may have handed out what
    /// came until then.
    old: u64,
}

/// Hands out the shared queue's tasks until `stop` becomes true or its sender is gone. One process
/// may do so at a time. [`Hub::ensure`] must have been called.
///
/// # Errors
/// When the queue or a consumer is missing, or the server refuses.
pub async fn run(hub: Hub, mut setup: Setup, mut stop: watch::Receiver<bool>) -> Result<(), Error> {
    let mut notices = hub.watch().await?;
    let mut news = hub.subscribe(&[subject::lane_news()]).await?;
    // Who is there and free is known by heartbeats alone, and the last ones were not heard here.
    for member in &setup.members {
        hub.ask_for_heartbeat(&member.id).await?;
    }
    let (sender, mut arrivals) = mpsc::unbounded_channel();
    let mut left = left_over(&hub, &setup.members).await;
    // One that has ended can lie there until the history has acknowledged it; it takes nobody's place.
    for id in left.keys().cloned().collect::<Vec<_>>() {
        if setup.book.known(id.clone()).await.is_some_and(|known| known.ended) {
            left.remove(&id);
        }
    }
    let old = hub.jetstream().get_stream(subject::QUEUE_STREAM).await;
    let old = old.map_err(refused("look at the shared queue"))?.cached_info().state.last_sequence;
    let mut taps = Taps::new(hub.clone(), sender);
    for lane in hub.senders().await? {
        taps.open(lane).await?;
    }
    let mut queue = Queue {
        hub,
        book: setup.book,
        seats: Seats::new(setup.silence),
        lanes: Lanes::default(),
        given: HashMap::new(),
        left,
        early: HashMap::new(),
        work: FuturesUnordered::new(),
        begun: Instant::now(),
        old,
    };
    for left in queue.left.values() {
        queue.seats.take(&left.agent);
    }
    let mut ticks = interval((ACK_WAIT / 3).min(setup.silence / 2));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            Some(arrival) = arrivals.recv() => queue.arrive(arrival),
            Some(did) = queue.work.next() => queue.did(did),
            Some(notice) = notices.next() => queue.hear(notice),
            Some(order) = setup.orders.recv() => queue.obey(order),
            Some(made) = news.next() => {
                let name = made.subject.rsplit('.').next().unwrap_or_default();
                if let Some(lane) = subject::lane_of(name) {
                    taps.open(lane).await?;
                }
            }
            // Idle, it is not woken.
            _ = ticks.tick(), if queue.has_tasks() => queue.look_after().await,
            () = async { let _ = stop.wait_for(|stop| *stop).await; } => break,
        }
        queue.deal();
    }
    drop(taps);
    queue.leave(arrivals).await;
    Ok(())
}

/// Tasks of the queue that lie in agents' streams, so that they are not handed out a second time.
async fn left_over(hub: &Hub, members: &[Member]) -> HashMap<TaskId, Left> {
    let mut left = HashMap::new();
    for member in members {
        let name = subject::task_stream(&member.id);
        let Ok(stream) = hub.jetstream().get_stream_no_info(&name).await else { continue };
        let mut from = 1;
        while let Ok(stored) = stream.get_first_raw_message_by_subject(subject::ANY, from).await {
            if let Ok(task) = message::parse::<Task>(&stored.payload) {
                let agent = member.id.clone();
                let (place, attempt) = (stored.sequence, task.attempt);
                left.insert(task.id, Left { agent, place, attempt });
            }
            from = stored.sequence + 1;
        }
    }
    left
}

impl Queue {
    /// Whether any task waits, is with an agent, or was when this process began.
    fn has_tasks(&self) -> bool {
        let open = self.given.len() + self.left.len() + self.early.len();
        open > 0 || self.lanes.messages().next().is_some()
    }

    fn hear(&mut self, notice: Notice) {
        match notice.report {
            Report::Heartbeat(beat) => {
                // A plain client says nothing of places: one.
                let places = beat.map_or(1, |b| b.parallel.clamp(1, 64)) as usize;
                self.seats.heard(notice.from, places);
            }
            Report::Result(Ok(result)) => self.finished(&notice.from, result),
            Report::Result(Err(_)) | Report::Event(_) => {}
        }
    }

    /// A result ends a task only if it comes from the agent that has it, for the attempt it has.
    fn finished(&mut self, from: &AgentId, result: TaskResult) {
        let Ok(id) = TaskId::parse(&result.task) else { return };
        let counts = |agent: &AgentId, attempt: u64| {
            agent == from && result.attempt.is_none_or(|named| named >= attempt)
        };
        let refused = result.status == Status::Refused;
        let given_up = refused.then(|| result.reason.clone().unwrap_or_default());
        if self.given.get(&id).is_some_and(|g| counts(&g.agent, g.task.attempt)) {
            if let Some(given) = self.given.remove(&id) {
                self.seats.free(&given.agent);
                let (hub, message) = (self.hub.clone(), given.message);
                self.work.push(work::finish(hub, message, id, Some(result), given_up));
            }
        } else if self.left.get(&id).is_some_and(|l| counts(&l.agent, l.attempt)) {
            self.left.remove(&id);
            self.seats.free(from);
            self.work.push(work::announce(self.hub.clone(), id.clone(), result));
            self.early.insert(id, given_up);
        }
    }

    /// A message of the queue, for the first time or again.
    fn arrive(&mut self, arrival: Arrival) {
        let Arrival { sender: lane, message, ahead } = arrival;
        let delivered = message.info().map_or(1, |info| info.delivered).max(1);
        let delivered = u64::try_from(delivered).unwrap_or(1);
        let task = match message::parse::<Task>(&message.payload) {
            Ok(task) => task,
            Err(e) => return self.give_up(message, None, format!("it cannot be read: {e}")),
        };
        let id = task.id.clone();
        // This process was held up for so long that the server handed it out anew.
        if let Some(given) = self.given.get_mut(&id) {
            given.message = message;
        } else if let Some(held) = self.lanes.find(&id) {
            held.message = message;
        } else {
            let held = Held { lane, task, message, _ahead: Some(ahead) };
            // A server that was killed may have forgotten that it handed something out.
            if delivered == 1 && held.turn() > self.old {
                self.lanes.push(held);
            } else {
                let left = self.left.contains_key(&id);
                self.work.push(work::look_up(Arc::clone(&self.book), held, delivered, left));
            }
        }
    }

    /// A task that may have been handed out before: it has ended, an agent has it, it comes once
    /// more, or it is new after all.
    fn known(&mut self, held: Held, known: Option<Known>, delivered: u64) {
        let id = held.task.id.clone();
        let left = self.left.remove(&id);
        let early = self.early.remove(&id);
        if early.is_some() || known.is_some_and(|known| known.ended) {
            if let Some(left) = left {
                self.seats.free(&left.agent);
            }
            let given_up = early.flatten();
            self.work.push(work::finish(self.hub.clone(), held.message, id, None, given_up));
        } else if let Some(Left { agent, place, attempt }) = left {
            tracing::info!("task {id} of the shared queue is still with {agent}");
            let Held { lane, task, message, .. } = held;
            let (task, place) = (Task { attempt, ..task }, Some(place));
            self.given.insert(id, Given { lane, agent, task, place, message, dropped: false });
        } else {
            let attempt = known.map_or(delivered, |known| known.attempts + 1);
            self.hold(Held { task: Task { attempt, ..held.task }, ..held });
        }
    }

    /// Gives what waits to whoever has a free place.
    fn deal(&mut self) {
        while let Some(agent) = self.seats.best() {
            let Some(held) = self.lanes.next() else { return };
            let Held { lane, task, message, .. } = held;
            tracing::info!("task {} of the shared queue goes to {agent}", task.id);
            self.seats.take(&agent);
            self.work.push(work::store(self.hub.clone(), task.clone(), agent.clone()));
            let id = task.id.clone();
            let given = Given { lane, agent, task, place: None, message, dropped: false };
            self.given.insert(id, given);
        }
    }

    /// Waits for its turn, as the attempt that it says.
    fn hold(&mut self, held: Held) {
        if held.task.attempt > ATTEMPTS {
            let why = format!("it was given to agents {ATTEMPTS} times and none finished it");
            return self.give_up(held.message, Some(held.task.id), why);
        }
        self.lanes.push(held);
    }

    fn did(&mut self, did: Did) {
        match did {
            Did::Nothing => {}
            Did::Known { held, known, delivered } => self.known(held, known, delivered),
            Did::Stored { task, attempt, outcome } => self.stored(task, attempt, outcome),
            Did::Lost { lane, task, message, over } => match over {
                None => {
                    self.work.push(work::finish(self.hub.clone(), message, task.id, None, None))
                }
                Some(over) => {
                    let task = Task { attempt: over + 1, ..task };
                    self.hold(Held { lane, task, message, _ahead: None });
                }
            },
        }
    }

    fn stored(&mut self, id: TaskId, attempt: u64, outcome: Result<u64, Error>) {
        let Some(given) = self.given.get_mut(&id).filter(|g| g.task.attempt == attempt) else {
            return;
        };
        match outcome {
            Ok(place) if given.dropped => {
                if let Some(given) = self.given.remove(&id) {
                    self.drop_given(Given { place: Some(place), ..given });
                }
            }
            Ok(place) => given.place = Some(place),
            Err(Error::Silent { .. } | Error::Refused { .. }) if !given.dropped => {
                // It may be there: the same again is stored once.
                let (task, agent) = (given.task.clone(), given.agent.clone());
                self.work.push(work::store_later(self.hub.clone(), task, agent));
            }
            Err(e) => {
                tracing::warn!("{e}");
                let Some(given) = self.given.remove(&id) else { return };
                self.seats.close(&given.agent);
                self.seats.free(&given.agent);
                match given.dropped {
                    true => self.work.push(work::finish(
                        self.hub.clone(),
                        given.message,
                        id,
                        None,
                        None,
                    )),
                    false => {
                        let Given { lane, task, message, .. } = given;
                        self.lanes.push(Held { lane, task, message, _ahead: None });
                    }
                }
            }
        }
    }

    fn give_up(&mut self, message: Message, id: Option<TaskId>, why: String) {
        tracing::error!("a task of the shared queue is given up: {why}");
        let book = Arc::clone(&self.book);
        self.work.push(work::bury(self.hub.clone(), book, message, id, why));
    }
}
