//! The connection to the bus: streams for all agents, heartbeats, events into the journal.
//!
//! flockd works without it; what it cannot do then is said in `status`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use tokio::time::{interval, sleep};

use crate::bus::hub::{self, Hub, Notice, Report};
use crate::bus::identity;
use crate::bus::message::Event;
use crate::bus::streams::{Delivery, Member};
use crate::config::{Config, Mode};
use crate::daemon::allowance::{Allowance, Verdict};
use crate::daemon::pulse::Loop;
use crate::daemon::world::{Which, World};
use crate::names::identity_dir;
use crate::status::health::Part;
use crate::text::printable;

/// Between two tries to connect.
const RETRY: Duration = Duration::from_secs(2);
/// How often the connection is looked at.
const TICK: Duration = Duration::from_secs(1);
/// The longest part of an agent's own text in a line of flockd's log.
const TEXT_MAX: usize = 200;

/// Why there is no bus.
#[derive(Debug, thiserror::Error)]
enum NoBus {
    #[error(transparent)]
    Identity(#[from] identity::Error),
    #[error(transparent)]
    Hub(#[from] hub::Error),
    #[error("the bus closed the connection")]
    Closed,
}

/// Runs for ever; connects again when the bus went away.
pub async fn run(world: Arc<World>) {
    let mut allowance = Allowance::default();
    loop {
        world.pulses.beat(Loop::Bus);
        let Err(why) = attend(&world, &mut allowance).await;
        world.hub.send_replace(None);
        world.report(Which::Bus, Part::broken(why));
        sleep(RETRY).await;
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
    loop {
        let members = members(&config.borrow_and_update());
        hub.ensure(&members).await?;
        world.report(Which::Bus, Part::fine());
        world.hub.send_replace(Some(hub.clone()));
        tokio::select! {
            // Other agents, or other ways to get tasks: the streams follow.
            _ = config.changed() => {}
            end = hear(world, &hub, &mut notices, allowance) => end?,
        }
    }
}

/// Handles what agents report. Returns when the connection was lost and is back: the server may
/// have lost its streams meanwhile.
async fn hear(
    world: &World,
    hub: &Hub,
    notices: &mut BoxStream<'static, Notice>,
    allowance: &mut Allowance,
) -> Result<(), NoBus> {
    let mut tick = interval(TICK);
    let mut lost = false;
    loop {
        tokio::select! {
            notice = notices.next() => take(world, notice.ok_or(NoBus::Closed)?, allowance),
            _ = tick.tick() => {
                world.pulses.beat(Loop::Bus);
                match (hub.is_connected(), lost) {
                    (true, true) => return Ok(()),
                    (false, false) => {
                        lost = true;
                        world.report(Which::Bus, Part::broken("disconnected; trying again"));
                    }
                    _ => {}
                }
            }
        }
    }
}

fn take(world: &World, notice: Notice, allowance: &mut Allowance) {
    let agent = notice.from;
    match notice.report {
        Report::Heartbeat(_) => world.heartbeat(agent),
        // Whoever waits for a result has a subscription of its own.
        Report::Result(_) => {}
        Report::Event(event) => {
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
        Mode::Task => Delivery::Pull,
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
