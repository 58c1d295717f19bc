//! Writes down what the bus holds: every task and every result, in batches, each acknowledged only
//! when it is on the disk. What came while flockd was away comes now.

use std::time::{Duration, Instant};

use async_nats::jetstream::{AckKind, Message};
use futures_util::{FutureExt as _, StreamExt as _};
use jiff::Timestamp;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::bus::hub::{self, Hub};
use crate::bus::message::{self, Task, TaskResult};
use crate::bus::queue::Order;
use crate::bus::streams::ACK_WAIT;
use crate::bus::subject::{self, Holds};
use crate::config::Config;
use crate::daemon::allowance::{Allowance, Verdict as Room};
use crate::daemon::world::{Which, World};
use crate::history::{Fact, Patience, Place, Slot, Verdict};
use crate::names::AgentId;
use crate::status::health::Part;
use crate::text::printable;

/// Most facts, and bytes, that are written at once.
const BATCH: usize = 500;
const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// How long a result waits for its task after the last task came.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often what waits is tried again.
const AGAIN: Duration = Duration::from_millis(500);
/// After the history could not be written.
const REST: Duration = Duration::from_secs(5);

/// One fact, and the message to acknowledge when it is written down; a claim has none.
struct Item {
    fact: Fact,
    message: Option<Message>,
    came: Instant,
}

/// What is between the bus and the history.
struct Ingest<'a> {
    world: &'a World,
    /// Results whose task has not come yet.
    held: Vec<Item>,
    begun: Instant,
    last_task: Instant,
    allowance: Allowance,
}

/// Runs until the connection is closed.
///
/// # Errors
/// When the bus does not let flockd listen.
pub async fn run(world: &World, hub: &Hub) -> Result<(), hub::Error> {
    let mut messages = hub.history().await?;
    let mut claims = world.claims.receiver.lock().await;
    let (held, allowance) = (Vec::new(), Allowance::default());
    let begun = Instant::now();
    let mut ingest = Ingest { world, held, begun, last_task: begun, allowance };
    let mut ticks = interval(AGAIN);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Opens it, so that `status` knows at once.
    ingest.write(Vec::new(), Patience::Left).await;
    loop {
        let mut batch = Vec::new();
        let mut bytes = 0;
        tokio::select! {
            message = messages.next() => match message {
                Some(message) => bytes += ingest.read(message, &mut batch).await,
                None => return Ok(()),
            },
            Some(fact) = claims.recv() => batch.push(Item::claim(fact)),
            // Idle, it is not woken.
            _ = ticks.tick(), if !ingest.held.is_empty() => ingest.try_held().await,
        }
        while batch.len() < BATCH && bytes < BATCH_BYTES {
            let Some(Some(message)) = messages.next().now_or_never() else { break };
            bytes += ingest.read(message, &mut batch).await;
        }
        while batch.len() < BATCH {
            let Ok(fact) = claims.try_recv() else { break };
            batch.push(Item::claim(fact));
        }
        if !batch.is_empty() {
            ingest.write(batch, Patience::Left).await;
        }
    }
}

impl Item {
    fn claim(fact: Fact) -> Self {
        Self { fact, message: None, came: Instant::now() }
    }
}

impl Ingest<'_> {
    /// Adds what a message says to the batch; returns its size.
    async fn read(&mut self, message: Message, batch: &mut Vec<Item>) -> usize {
        let size = message.payload.len();
        match fact(&message, &self.world.config()) {
            Ok(fact) => {
                if !matches!(fact, Fact::Result { .. } | Fact::Unreadable { .. }) {
                    self.last_task = Instant::now();
                }
                batch.push(Item { fact, message: Some(message), came: Instant::now() });
            }
            Err(why) => {
                tracing::warn!("a message on the bus that is no task is left out: {why}");
                acknowledge(&message).await;
            }
        }
        size
    }

    /// Writes a batch, however long it takes: nothing is acknowledged before.
    async fn write(&mut self, batch: Vec<Item>, patience: Patience) {
        let facts: Vec<Fact> = batch.iter().map(|item| item.fact.clone()).collect();
        let verdicts = loop {
            match self.world.ledger.apply(facts.clone(), patience).await {
                Ok(verdicts) => break verdicts,
                Err(error) => {
                    let note = format!("{error}; what happens is kept by the bus until then");
                    self.world.report(Which::History, Part::broken(note));
                    sleep(REST).await;
                }
            }
        };
        self.world.report(Which::History, Part::fine());
        for (item, verdict) in batch.into_iter().zip(verdicts) {
            match verdict {
                Verdict::TooEarly => {
                    self.held.push(item);
                    continue;
                }
                Verdict::Refused(why) => self.stray(&item.fact, &why),
                Verdict::Accepted => self.ended(&item.fact),
                Verdict::Repeated => {}
            }
            if let Some(message) = &item.message {
                acknowledge(message).await;
            }
        }
    }

    /// The shared queue may not have heard of a result that came while flockd was away.
    fn ended(&self, fact: &Fact) {
        if let Fact::Result { agent, result, .. } = fact {
            self.world.order(Order::Result(agent.clone(), result.clone()));
        }
    }

    /// Tries again what came before its task.
    async fn try_held(&mut self) {
        // A long list of tasks may be on its way: flockd was away for a while. And what the bus had
        // told a flockd that was killed, it tells again only after a while.
        let quiet =
            self.last_task.elapsed() > PATIENCE && self.begun.elapsed() > ACK_WAIT + PATIENCE;
        let held = std::mem::take(&mut self.held);
        let (over, left): (Vec<_>, Vec<_>) =
            held.into_iter().partition(|item| quiet && item.came.elapsed() > PATIENCE);
        for (items, patience) in [(over, Patience::Over), (left, Patience::Left)] {
            if !items.is_empty() {
                self.write(items, patience).await;
            }
        }
    }

    /// Tells that an agent handed in something that does not count.
    fn stray(&mut self, fact: &Fact, why: &str) {
        let (agent, what) = match fact {
            Fact::Result { agent, result, .. } => (agent, format!("its result of {}", result.task)),
            Fact::Unreadable { agent, .. } => (agent, "its result".to_owned()),
            _ => return,
        };
        let line = printable(&format!("{what} does not count: {why}"));
        let line: String = line.chars().take(400).collect();
        match self.allowance.ask(agent, Instant::now()) {
            Room::LeaveOut => return,
            Room::WriteAfter(count) => {
                tracing::warn!(agent = %agent, "{agent}: {count} such lines were left out here");
            }
            Room::Write => {}
        }
        tracing::warn!(agent = %agent, "{agent}: {line}");
    }
}

async fn acknowledge(message: &Message) {
    if let Err(error) = message.ack_with(AckKind::Ack).await {
        // It comes again and says nothing new then.
        tracing::warn!("tell the bus that the history has a message: {error}");
    }
}

/// What a message of the history says. The stream, and so the sender, are the server's word.
fn fact(message: &Message, config: &Config) -> Result<Fact, String> {
    let info = message.info().map_err(|e| e.to_string())?;
    let (stream, sequence) = (info.stream.to_owned(), info.stream_sequence);
    let at = info.published.unix_timestamp_nanos();
    let at = Timestamp::from_nanosecond(at).map_err(|e| e.to_string())?;
    let holds = subject::holds(&stream).ok_or_else(|| format!("it is from {stream}"))?;
    let place = Place { stream, sequence };
    let task = || message::parse::<Task>(&message.payload).map_err(|e| e.to_string());
    Ok(match holds {
        Holds::Queue => Fact::Queued { task: task()?, slot: Slot::Any, place, at },
        Holds::Tasks(agent) if &*message.subject == subject::ANY => {
            let task = task()?;
            Fact::Given { task: task.id, agent, attempt: task.attempt, place, at }
        }
        Holds::Tasks(agent) => Fact::Queued { task: task()?, slot: Slot::Agent(agent), place, at },
        Holds::Results(agent) => match message::parse::<TaskResult>(&message.payload) {
            Ok(result) => {
                let command = command(config, &agent);
                let result = Box::new(TaskResult { agent: agent.to_string(), ..result });
                Fact::Result { agent, result, command, place, at }
            }
            Err(e) => Fact::Unreadable { agent, why: e.to_string(), place, at },
        },
    })
}

/// An agent's command as it is configured now.
#[must_use]
pub fn command(config: &Config, agent: &AgentId) -> Option<Vec<String>> {
    config.agents.get(agent).map(|agent| agent.command.clone())
}
