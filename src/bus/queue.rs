//! The shared queue: each task of `tasks.any` goes to one agent that has a free place.
//!
//! Agents do not share the queue's consumer. An acknowledgement is addressed by a number that can be
//! guessed, so one agent could end or delay what another works on. flockd hands the tasks out
//! instead: into the chosen agent's own stream, where the server keeps others away. While flockd is
//! down the queue waits, and what was handed out is worked on.
//!
//! A task stays in the queue until its agent's result has arrived. When the agent falls silent the
//! task is taken back and goes to another, as the next attempt, and after the last attempt to the
//! list of dead letters.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use async_nats::jetstream::{AckKind, Message, consumer, consumer::DeliverPolicy};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::hub::{Error, Hub, Notice, Report, refused};
use super::message::{self, Task, TaskId, TaskResult};
use super::streams::{self, ACK_WAIT, Member};
use super::subject::{self, Kind};
use crate::names::AgentId;

/// An agent that was not heard of for so long is not given tasks, and loses those it has: two
/// heartbeats may be lost.
pub const SILENCE: Duration = Duration::from_secs(75);
/// How often a task is handed out before it is given up.
const ATTEMPTS: u64 = 5;
/// How long the server holds a request for the next task.
const HOLD: Duration = Duration::from_secs(20);

/// What an agent can take.
struct Seat {
    heard: Instant,
    places: usize,
}

/// A task that an agent has.
struct Given {
    agent: AgentId,
    /// Where it lies in the agent's stream.
    place: u64,
    /// Its message in the queue.
    message: Message,
}

/// What is known of the queue and its takers.
struct Queue {
    hub: Hub,
    seats: BTreeMap<AgentId, Seat>,
    given: HashMap<TaskId, Given>,
    /// Handed out before this process began: found in the agents' streams.
    left: HashMap<TaskId, (AgentId, u64)>,
    /// Results that came while their task was not in `given`.
    early: HashSet<TaskId>,
    members: Vec<Member>,
    silence: Duration,
    begun: Instant,
}

/// Hands out the shared queue's tasks until `stop` becomes true or its sender is gone. One process may do so at a time.
///
/// `members` are the agents whose streams are searched for tasks that an earlier run handed out; an
/// agent that comes later counts from its first heartbeat. An agent not heard of for `silence`
/// (usually [`SILENCE`]) loses what it was given. [`Hub::ensure`] must have been called.
///
/// # Errors
/// When the queue or its consumer is missing, or the server refuses.
pub async fn run(
    hub: Hub,
    members: Vec<Member>,
    silence: Duration,
    mut stop: watch::Receiver<bool>,
) -> Result<(), Error> {
    let mut notices = hub.watch().await?;
    let source = queue_consumer(&hub).await?;
    let left = left_over(&hub, &members).await;
    let (seats, given, early) = (BTreeMap::new(), HashMap::new(), HashSet::new());
    let begun = Instant::now();
    let mut queue = Queue { hub, seats, given, left, early, members, silence, begun };
    let mut ticks = interval((ACK_WAIT / 3).min(silence / 2));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut pull: Option<BoxFuture<'_, Option<Message>>> = None;
    loop {
        if pull.is_none() && queue.free_seat().is_some() {
            pull = Some(next(&source).boxed());
        }
        // A pull that has begun is never dropped: its task would be lost until the wait is over.
        let pulled = async {
            match pull.as_mut() {
                Some(pull) => pull.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            message = pulled => {
                pull = None;
                if let Some(message) = message {
                    queue.hand_out(message).await;
                }
            }
            Some(notice) = notices.next() => queue.hear(notice).await,
            _ = ticks.tick() => queue.look_after().await,
            () = async { let _ = stop.wait_for(|stop| *stop).await; } => return Ok(()),
        }
    }
}

async fn queue_consumer(hub: &Hub) -> Result<consumer::PullConsumer, Error> {
    let make =
        hub.jetstream().create_consumer_on_stream(streams::queue_consumer(), subject::QUEUE_STREAM);
    make.await.map_err(refused("open the shared queue"))
}

/// One task of the queue, or `None` after a while or when the server does not answer.
async fn next(source: &consumer::PullConsumer) -> Option<Message> {
    let batch = source.fetch().max_messages(1).expires(HOLD).messages().await;
    match batch {
        Ok(mut batch) => batch.next().await.and_then(Result::ok),
        Err(e) => {
            tracing::warn!("ask the shared queue for a task: {e}; trying again");
            tokio::time::sleep(Duration::from_secs(1)).await;
            None
        }
    }
}

/// Tasks of the queue that lie in agents' streams, so that they are not handed out a second time.
async fn left_over(hub: &Hub, members: &[Member]) -> HashMap<TaskId, (AgentId, u64)> {
    let mut left = HashMap::new();
    for member in members {
        let name = subject::task_stream(&member.id);
        let Ok(stream) = hub.jetstream().get_stream_no_info(&name).await else { continue };
        let mut from = 1;
        while let Ok(stored) = stream.get_first_raw_message_by_subject(subject::ANY, from).await {
            if let Ok(task) = message::parse::<Task>(&stored.payload) {
                left.insert(task.id, (member.id.clone(), stored.sequence));
            }
            from = stored.sequence + 1;
        }
    }
    left
}

impl Queue {
    /// The agent with a free place that has the fewest of the queue's tasks.
    fn free_seat(&self) -> Option<AgentId> {
        let load = |id: &AgentId| self.given.values().filter(|g| g.agent == *id).count();
        let free = |(id, seat): (&AgentId, &Seat)| {
            let load = load(id);
            (seat.heard.elapsed() < self.silence && load < seat.places).then(|| (load, id.clone()))
        };
        self.seats.iter().filter_map(free).min().map(|(_, id)| id)
    }

    async fn hear(&mut self, notice: Notice) {
        match notice.report {
            Report::Heartbeat(beat) => {
                // A plain client says nothing of places: one.
                let places = beat.map_or(1, |b| b.parallel.clamp(1, 64)) as usize;
                self.seats.insert(notice.from, Seat { heard: Instant::now(), places });
            }
            Report::Result(Ok(result)) => self.finished(&notice.from, &result).await,
            Report::Result(Err(_)) | Report::Event(_) => {}
        }
    }

    /// A result ends a task only if it comes from the agent that has it.
    async fn finished(&mut self, from: &AgentId, result: &TaskResult) {
        let Ok(id) = TaskId::parse(&result.task) else { return };
        if self.given.get(&id).is_some_and(|given| given.agent == *from) {
            if let Some(given) = self.given.remove(&id) {
                done(&id, &given.message).await;
            }
        } else if self.left.get(&id).is_some_and(|(agent, _)| agent == from) {
            self.left.remove(&id);
            self.early.insert(id);
        }
    }

    async fn hand_out(&mut self, message: Message) {
        let Ok(info) = message.info() else { return };
        let attempt = u64::try_from(info.delivered).unwrap_or(1).max(1);
        let published = info.published;
        let task = match message::parse::<Task>(&message.payload) {
            Ok(task) => Task { attempt, ..task },
            Err(e) => return self.bury(&message, &format!("it cannot be read: {e}")).await,
        };
        let id = task.id.clone();
        if let Some(given) = self.given.get_mut(&id) {
            // This process was held up for so long that the server handed it out anew.
            given.message = message;
            return;
        }
        if let Some((agent, place)) = self.left.remove(&id) {
            tracing::info!("task {id} of the shared queue is still with {agent}");
            self.given.insert(id, Given { agent, place, message });
            return;
        }
        if self.early.remove(&id) || (attempt > 1 && self.has_result(&id, published).await) {
            return done(&id, &message).await;
        }
        if attempt > ATTEMPTS {
            return self.bury(&message, &format!("{ATTEMPTS} agents did not finish it")).await;
        }
        match self.free_seat() {
            Some(agent) => self.give(task, agent, message).await,
            None => give_back(&id, &message, Duration::from_secs(1)).await,
        }
    }

    async fn give(&mut self, task: Task, agent: AgentId, message: Message) {
        match self
            .hub
            .store(&task, &Kind::Any.hub_subject(&agent), &subject::task_stream(&agent))
            .await
        {
            Ok(place) => {
                tracing::info!("task {} of the shared queue goes to {agent}", task.id);
                self.given.insert(task.id, Given { agent, place: place.sequence, message });
            }
            Err(e) => {
                tracing::warn!("{e}");
                // Not this agent again before its next heartbeat.
                if let Some(seat) = self.seats.get_mut(&agent) {
                    seat.places = 0;
                }
                give_back(&task.id, &message, Duration::from_secs(1)).await;
            }
        }
    }

    /// Keeps the server from handing out what is being worked on, and takes back from the silent.
    async fn look_after(&mut self) {
        // Whoever had a task before this process began has time for a heartbeat.
        let heard = |id: &AgentId| self.seats.get(id).map_or(self.begun, |seat| seat.heard);
        let mut back = Vec::new();
        for (id, given) in &self.given {
            if heard(&given.agent).elapsed() >= self.silence {
                back.push(id.clone());
            } else if let Err(e) = given.message.ack_with(AckKind::Progress).await {
                tracing::warn!("keep task {id} of the shared queue: {e}");
            }
        }
        for id in back {
            if let Some(given) = self.given.remove(&id) {
                self.take_back(&id, given).await;
            }
        }
    }

    async fn take_back(&mut self, id: &TaskId, given: Given) {
        tracing::warn!("{} is silent: task {id} of the shared queue goes to another", given.agent);
        let name = subject::task_stream(&given.agent);
        if let Ok(stream) = self.hub.jetstream().get_stream_no_info(&name).await {
            // Not there: the agent had taken it.
            let _ = stream.delete_message(given.place).await;
        }
        give_back(id, &given.message, Duration::ZERO).await;
    }

    /// Whether an agent handed in a result for the task since it was queued.
    async fn has_result(&self, id: &TaskId, since: async_nats::datetime::DateTime) -> bool {
        for member in &self.members {
            let config = consumer::pull::OrderedConfig {
                deliver_policy: DeliverPolicy::ByStartTime { start_time: since },
                ..Default::default()
            };
            let name = subject::result_stream(&member.id);
            let open = self.hub.jetstream().create_consumer_on_stream(config, name).await;
            let Ok(open) = open else { continue };
            let mut left = open.cached_info().num_pending;
            let Ok(mut results) = open.messages().await else { continue };
            while left > 0 {
                let Some(Ok(message)) = results.next().await else { break };
                left -= 1;
                let result = message::parse::<TaskResult>(&message.payload);
                if result.is_ok_and(|r| r.task == id.as_str()) {
                    return true;
                }
            }
        }
        false
    }

    /// Puts a task that cannot be done on the list of dead letters, then out of the queue.
    async fn bury(&self, message: &Message, why: &str) {
        tracing::error!("a task of the shared queue is given up: {why}");
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Flock-Reason", why);
        let letter = self.hub.jetstream().publish_with_headers(
            subject::DEAD,
            headers,
            message.payload.clone(),
        );
        let stored = match letter.await {
            Ok(stored) => stored.await.map(|_| ()),
            Err(e) => Err(e),
        };
        match stored {
            Ok(()) => {
                let _ = message.double_ack_with(AckKind::Term).await;
            }
            // It stays in the queue and comes again.
            Err(e) => tracing::error!("write the list of dead letters: {e}"),
        }
    }
}

async fn done(id: &TaskId, message: &Message) {
    if let Err(e) = message.double_ack().await {
        // It comes again, and its result is found then.
        tracing::warn!("end task {id} of the shared queue: {e}");
    }
}

async fn give_back(id: &TaskId, message: &Message, pause: Duration) {
    if let Err(e) = message.ack_with(AckKind::Nak(Some(pause))).await {
        tracing::warn!("give task {id} back to the shared queue: {e}");
    }
}
