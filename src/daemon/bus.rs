//! The connection to the bus: streams for all agents, heartbeats, events into the journal.
//!
//! flockd works without it; what it cannot do then is said in `status`.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::{interval, sleep};

use crate::bus::hub::{self, Hub, Notice, Report};
use crate::bus::identity;
use crate::bus::message::{Event, TaskId};
use crate::bus::queue;
use crate::bus::streams::{Delivery, Member};
use crate::config::{Config, Mode};
use crate::daemon::allowance::{Allowance, Verdict};
use crate::daemon::asks;
use crate::daemon::pulse::Loop;
use crate::daemon::world::{Which, World};
use crate::daemon::{history, leavers, life};
use crate::history::Fact;
use crate::names::{AgentId, identity_dir};
use crate::status::health::Part;
use crate::text::printable;

/// Between two tries to connect: soon at first, because the bus is started or reloaded beside flockd.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// The loop turns at least this often while it waits.
const TURN: Duration = Duration::from_secs(30);
/// Most tasks that one heartbeat can name.
const TASKS_MAX: usize = 64;
/// The longest part of an agent's own text in a line of flockd's log.
const TEXT_MAX: usize = 200;

/// Why there is no bus.
#[derive(Debug, thiserror::Error)]
enum NoBus {
    #[error(transparent)]
    Identity(#[from] identity::Error),
    #[error(transparent)]
    Hub(#[from] hub::Error),
    #[error("hand out the shared queue's tasks: {0}")]
    Queue(String),
    #[error("the bus closed the connection")]
    Closed,
}

/// Runs for ever; connects again when the bus went away. The first try comes after `applied`, which
/// makes the bus's identities.
pub async fn run(world: Arc<World>, mut applied: watch::Receiver<bool>) {
    while tokio::time::timeout(TURN, applied.wait_for(|done| *done)).await.is_err() {
        world.pulses.beat(Loop::Bus);
    }
    let mut allowance = Allowance::default();
    let mut pause = RETRY.0;
    loop {
        world.pulses.beat(Loop::Bus);
        let Err(why) = attend(&world, &mut allowance).await;
        if world.hub.send_replace(None).is_some() {
            pause = RETRY.0;
        }
        world.report(Which::Bus, Part::broken(why));
        sleep(pause).await;
        pause = (pause * 2).min(RETRY.1);
    }
}

async fn attend(
    world: &World,
    allowance: &mut Allowance,
) -> Result<std::convert::Infallible, NoBus> {
    let (identity, url) = identity::operator(&identity_dir())?;
    let hub = Hub::connect(&identity, &url).await?;
    let mut notices = hub.watch().await?;
    let mut config = world.config.subscribe();
    // One for the life of the connection: what it has not written down yet would come again after half a minute.
    let mut history = std::pin::pin!(history::run(world, &hub));
    loop {
        let wanted = members(&config.borrow_and_update());
        let losses = hub.link().borrow().losses;
        hub.ensure(&wanted).await?;
        world.report(Which::Bus, Part::fine());
        world.hub.send_replace(Some(hub.clone()));
        // Told to stop rather than dropped: it may be about to give a task back.
        let (stop, stopped) = watch::channel(false);
        let (order, orders) = mpsc::unbounded_channel();
        *world.orders.lock().unwrap_or_else(PoisonError::into_inner) = Some(order);
        let setup = queue::Setup {
            members: wanted,
            silence: queue::SILENCE,
            book: Arc::new(world.ledger.clone()),
            orders,
        };
        let mut queue = tokio::spawn(queue::run(hub.clone(), setup, stopped));
        tokio::select! {
            end = follow(world, &hub, &mut config, &mut notices, allowance, losses) => end?,
            end = &mut history => {
                end?;
                return Err(NoBus::Closed);
            }
            () = life::run(world, &hub, life::Pace::default()) => {}
            never = leavers::run(world, &hub) => match never {},
            end = &mut queue => return Err(NoBus::Queue(why(end))),
        }
        stop.send_replace(true);
        if tokio::time::timeout(TURN, queue).await.is_err() {
            return Err(NoBus::Queue("it does not stop".to_owned()));
        }
    }
}

/// Makes the streams of agents that come or take their tasks another way. Returns when the
/// connection was lost and is back.
async fn follow(
    world: &World,
    hub: &Hub,
    config: &mut watch::Receiver<Arc<Config>>,
    notices: &mut BoxStream<'static, Notice>,
    allowance: &mut Allowance,
    losses: u64,
) -> Result<(), NoBus> {
    loop {
        tokio::select! {
            _ = config.changed() => {
                let members = members(&config.borrow_and_update());
                hub.ensure(&members).await?;
            }
            end = hear(world, hub, notices, allowance, losses) => return end,
        }
    }
}

/// Why the queue's loop ended although nobody told it to.
fn why(end: Result<Result<(), hub::Error>, tokio::task::JoinError>) -> String {
    match end {
        Ok(Ok(())) => "it ended".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    }
}

/// Handles what agents report. Returns when the connection was lost and is back: the server may
/// have lost its streams meanwhile.
async fn hear(
    world: &World,
    hub: &Hub,
    notices: &mut BoxStream<'static, Notice>,
    allowance: &mut Allowance,
    losses: u64,
) -> Result<(), NoBus> {
    let (mut link, mut turns) = (hub.link(), interval(TURN));
    // It may have been lost while the streams were made.
    link.mark_changed();
    let mut lost = false;
    loop {
        tokio::select! {
            notice = notices.next() => take(world, notice.ok_or(NoBus::Closed)?, allowance),
            _ = turns.tick() => world.pulses.beat(Loop::Bus),
            changed = link.changed() => {
                changed.map_err(|_| NoBus::Closed)?;
                let now = *link.borrow_and_update();
                if now.up && (lost || now.losses != losses) {
                    return Ok(());
                }
                if !now.up {
                    lost = true;
                    world.report(Which::Bus, Part::broken("disconnected; trying again"));
                }
            }
        }
    }
}

fn take(world: &World, notice: Notice, allowance: &mut Allowance) {
    let agent = notice.from;
    match notice.report {
        Report::Heartbeat(beat) => {
            for task in beat.iter().flat_map(|beat| beat.tasks.iter().take(TASKS_MAX)) {
                claim(world, &agent, task);
            }
            world.heartbeat(agent);
        }
        // Whoever waits for a result has a subscription of its own.
        Report::Result(_) => {}
        Report::Event(event) => {
            if let Ok(event) = &event {
                if let (Some(task), "task-started") = (&event.task, event.event.as_str()) {
                    claim(world, &agent, task);
                }
                asks::note(world, &agent, event);
            }
            let line = match &event {
                Ok(event) => describe(event),
                Err(error) => {
                    format!("an event that cannot be read: {}", short(&error.to_string()))
                }
            };
            match allowance.ask(&agent, Instant::now()) {
                Verdict::LeaveOut => return,
                Verdict::WriteAfter(count) => {
                    tracing::warn!(agent = %agent, "{agent}: {count} events were left out here");
                }
                Verdict::Write => {}
            }
            tracing::info!(agent = %agent, "{agent}: {line}");
        }
    }
}

/// An agent says that it works on a task; the history knows whether it is the agent's.
fn claim(world: &World, agent: &AgentId, task: &str) {
    let Ok(task) = TaskId::parse(task) else { return };
    let command = history::command(&world.config(), agent);
    let (agent, at) = (agent.clone(), Timestamp::now());
    world.claims.push(Fact::Started { task, agent, attempt: None, command, at });
}

/// An event in one line; every word of it is the agent's.
fn describe(event: &Event) -> String {
    let mut line = short(&event.event);
    for more in [&event.task, &event.detail].into_iter().flatten() {
        line.push(' ');
        line.push_str(&short(more));
    }
    line
}

fn short(text: &str) -> String {
    let mut cut: String = text.chars().take(TEXT_MAX).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    printable(&cut)
}

fn members(config: &Config) -> Vec<Member> {
    let delivery = |mode| match mode {
        Mode::Task | Mode::JsonLines => Delivery::Pull,
        Mode::Service => Delivery::Push,
    };
    let member = |(id, agent): (&crate::names::AgentId, &crate::config::AgentConfig)| Member {
        id: id.clone(),
        delivery: delivery(agent.mode),
    };
    config.agents.iter().map(member).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agents_words_are_short_and_harmless_in_the_log() {
        let event = Event {
            agent: "a".into(),
            at: jiff::Timestamp::UNIX_EPOCH,
            event: "x\n\u{1b}".into(),
            task: Some("é".repeat(300)),
            detail: None,
        };
        let line = describe(&event);
        assert!(line.starts_with("x\\u{a}\\u{1b} é") && line.ends_with('…'), "{line}");
        assert!(line.chars().count() < 230);
    }
}
