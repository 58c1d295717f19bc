//! What operators say to agents and hear of them beside tasks: events, broadcasts, channels.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{interval, timeout};

use crate::audit::{self, Entry, How, What, Who};
use crate::bus::hub::Hub;
use crate::bus::speak::{Said, TEXT_MAX};
use crate::control::server::{Gone, Replies};
use crate::control::{ErrorCode, Heard, Peer, Response, Talk};
use crate::daemon::world::World;
use crate::names::{AgentId, ChannelName};

/// How long the bus may take to take a message.
const SAY: Duration = Duration::from_secs(10);
/// How often a long answer looks whether the bus is there.
const TICK: Duration = Duration::from_secs(1);
/// Bytes that wait for one operator who reads a channel slowly; what is more is left out, and counted.
const WAITING: usize = 16 << 20;

/// Carries out one request.
pub async fn serve(world: &World, peer: &Peer, talk: Talk, replies: &mut Replies) -> Response {
    let done = match talk {
        Talk::Events { agents, follow, heartbeats } => {
            events(world, &agents, (follow, heartbeats), replies).await
        }
        Talk::ChannelList => list(world, replies).await,
        Talk::ChannelWatch { channel } => watch(world, peer, &channel, replies).await,
        Talk::Broadcast { text } => say(world, peer, None, &text, replies).await,
        Talk::ChannelSend { channel, text } => {
            say(world, peer, Some(&channel), &text, replies).await
        }
    };
    match done {
        Ok(()) | Err(Stop::Gone) => Response::End,
        Err(Stop::Wrong(why)) => Response::error(ErrorCode::BadRequest, why),
        Err(Stop::Failed(why)) => Response::error(ErrorCode::Failed, why),
    }
}

/// Why an answer has no good end.
enum Stop {
    /// The peer does not read any more.
    Gone,
    /// It asked for what does not exist or cannot be.
    Wrong(String),
    /// It could not be done.
    Failed(String),
}

impl From<Gone> for Stop {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

fn failed(why: impl ToString) -> Stop {
    Stop::Failed(why.to_string())
}

async fn tell(replies: &mut Replies, heard: Heard) -> Result<(), Stop> {
    Ok(replies.send(&Response::Heard(heard)).await?)
}

async fn events(
    world: &World,
    agents: &BTreeSet<AgentId>,
    (follow, heartbeats): (bool, bool),
    replies: &mut Replies,
) -> Result<(), Stop> {
    let known = &world.config().agents;
    if let Some(id) = agents.iter().find(|id| !known.contains_key(*id)) {
        return Err(Stop::Wrong(format!("no agent is called {id}; {}", there_are(known.keys()))));
    }
    let wanted = |agent: &AgentId| agents.is_empty() || agents.contains(agent);
    let mut link = Link { up: true };
    link.look(is_up(world), replies).await?;
    let (past, mut live) = world.ear.open();
    for told in past.iter().filter(|told| wanted(&told.agent)) {
        tell(replies, Heard::Told(told.as_ref().clone())).await?;
    }
    drop(past);
    if !follow {
        return Ok(());
    }
    tell(replies, Heard::Listening).await?;
    let mut ticks = interval(TICK);
    loop {
        tokio::select! {
            told = live.recv() => match told {
                Ok(told) if wanted(&told.agent) && (heartbeats || !told.heartbeat) => {
                    tell(replies, Heard::Told(told.as_ref().clone())).await?;
                }
                Ok(_) => {}
                Err(RecvError::Lagged(count)) => tell(replies, Heard::LeftOut { count }).await?,
                Err(RecvError::Closed) => return Ok(()),
            },
            _ = ticks.tick() => link.look(is_up(world), replies).await?,
        }
    }
}

/// Whether the bus is there, as far as the peer was told.
struct Link {
    up: bool,
}

impl Link {
    async fn look(&mut self, up: bool, replies: &mut Replies) -> Result<(), Stop> {
        if up != self.up {
            self.up = up;
            tell(replies, Heard::Bus { up }).await?;
        }
        Ok(())
    }
}

fn is_up(world: &World) -> bool {
    world.hub.borrow().as_ref().is_some_and(Hub::is_connected)
}

async fn list(world: &World, replies: &mut Replies) -> Result<(), Stop> {
    for (channel, members) in &world.config().channels {
        let (channel, members) = (channel.clone(), members.clone());
        tell(replies, Heard::Channel { channel, members }).await?;
    }
    Ok(())
}

/// The members of a channel.
fn members(world: &World, channel: &ChannelName) -> Result<BTreeSet<AgentId>, Stop> {
    let channels = &world.config().channels;
    let members = channels.get(channel).cloned();
    members.ok_or_else(|| {
        Stop::Wrong(format!("no channel is called {channel}; {}", there_are(channels.keys())))
    })
}

fn there_are(names: impl Iterator<Item = impl ToString>) -> String {
    let names: Vec<_> = names.map(|name| name.to_string()).collect();
    match names.is_empty() {
        true => "there is none".to_owned(),
        false => format!("there are: {}", names.join(", ")),
    }
}

/// The bus, if it is there.
fn hub(world: &World) -> Result<Hub, Stop> {
    let hub = world.hub.borrow().clone().filter(Hub::is_connected);
    hub.ok_or_else(|| {
        let note = world.view().bus.note.unwrap_or_else(|| "it does not answer".to_owned());
        failed(format!("the bus is not there: {note}: see `systemctl status flock-bus`"))
    })
}

/// Says something to all, or on a channel. It is on record before it is said.
async fn say(
    world: &World,
    peer: &Peer,
    channel: Option<&ChannelName>,
    text: &str,
    replies: &mut Replies,
) -> Result<(), Stop> {
    let members = match channel {
        Some(channel) => members(world, channel)?,
        None => world.config().agents.keys().cloned().collect(),
    };
    if text.len() > TEXT_MAX {
        return Err(Stop::Wrong(format!(
            "the text has {} bytes, at most {TEXT_MAX} are said: put it into a file below \
             /shared/common and name that",
            text.len()
        )));
    }
    let hub = hub(world)?;
    audit::record_async(entry(peer, channel, text))
        .await
        .map_err(|error| failed(format!("not done: {error}")))?;
    let saying = async {
        match channel {
            Some(channel) => hub.say(channel, text).await,
            None => hub.broadcast(text).await,
        }
    };
    match timeout(SAY, saying).await {
        Ok(said) => said.map_err(failed)?,
        Err(_) => {
            return Err(failed(format!(
                "the bus has not confirmed it within {} s: it may be said when the bus is back",
                SAY.as_secs()
            )));
        }
    }
    tell(replies, Heard::Sent { members }).await?;
    Ok(())
}

/// The words can hold what is nobody's business; their hash tells whether it was these.
fn entry(peer: &Peer, channel: Option<&ChannelName>, text: &str) -> Entry {
    let who = Who { uid: peer.uid, name: peer.name.clone(), how: How::Socket };
    let detail = format!("{} bytes, sha256 {}", text.len(), audit::digest(text.as_bytes()));
    match channel {
        Some(channel) => Entry::new(who, What::ChannelSend, channel, detail),
        None => Entry::new(who, What::Broadcast, "all", detail),
    }
}

/// What is said on a channel, until the peer leaves.
async fn watch(
    world: &World,
    peer: &Peer,
    channel: &ChannelName,
    replies: &mut Replies,
) -> Result<(), Stop> {
    members(world, channel)?;
    let hub = hub(world)?;
    tracing::info!(peer_uid = peer.uid, "{} listens on the channel {channel}", peer.name);
    let said = timeout(SAY, hub.listen(channel)).await;
    let said = said.map_err(|_| failed("the bus does not answer"))?.map_err(failed)?;
    tell(replies, Heard::Listening).await?;
    let (to, from) = unbounded_channel();
    let queue = Queue { room: Arc::new(Semaphore::new(WAITING)), left_out: Arc::default(), to };
    let left_out = Arc::clone(&queue.left_out);
    let mut pump = pin!(fill(said, queue));
    let mut show = pin!(empty(from, &left_out, &hub, replies));
    tokio::select! {
        last = &mut show => return last,
        () = &mut pump => {}
    }
    show.await
}

/// Messages that an operator has not read yet.
struct Queue {
    room: Arc<Semaphore>,
    left_out: Arc<AtomicU64>,
    to: UnboundedSender<(Said, OwnedSemaphorePermit)>,
}

/// Takes what comes as fast as it comes, so that it never waits in the client of the bus, which all share.
async fn fill(mut said: BoxStream<'static, Said>, queue: Queue) {
    while let Some(said) = said.next().await {
        // The names and the time count too: a flood of empty messages is bounded as well.
        let size = u32::try_from(said.text.len() + 256).unwrap_or(u32::MAX);
        match Arc::clone(&queue.room).try_acquire_many_owned(size) {
            Ok(room) => {
                if queue.to.send((said, room)).is_err() {
                    return;
                }
            }
            Err(_) => {
                queue.left_out.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

async fn empty(
    mut from: UnboundedReceiver<(Said, OwnedSemaphorePermit)>,
    left_out: &AtomicU64,
    hub: &Hub,
    replies: &mut Replies,
) -> Result<(), Stop> {
    let mut link = Link { up: true };
    let mut ticks = interval(TICK);
    loop {
        tokio::select! {
            said = from.recv() => match said {
                Some((said, _room)) => tell(replies, Heard::Said(said)).await?,
                None => return Err(failed("the bus closed the connection")),
            },
            _ = ticks.tick() => {
                link.look(hub.is_connected(), replies).await?;
                if let count @ 1.. = left_out.swap(0, Ordering::Relaxed) {
                    tell(replies, Heard::LeftOut { count }).await?;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;

    fn said(bytes: usize) -> Said {
        let (at, from) = (jiff::Timestamp::UNIX_EPOCH, "a".to_owned());
        Said { at, from, text: "x".repeat(bytes) }
    }

    #[tokio::test]
    async fn what_is_not_read_is_bounded_and_counted() {
        let (to, mut from) = unbounded_channel();
        let left_out = Arc::new(AtomicU64::new(0));
        let room = Arc::new(Semaphore::new(WAITING));
        let queue = Queue { room: Arc::clone(&room), left_out: Arc::clone(&left_out), to };
        let flood: Vec<_> = (0..40).map(|_| said(1 << 20)).collect();
        fill(stream::iter(flood).boxed(), queue).await;
        let mut waiting = 0;
        while from.recv().await.is_some() {
            waiting += 1;
        }
        assert_eq!((waiting, left_out.load(Ordering::Relaxed)), (15, 25));
        assert_eq!(room.available_permits(), WAITING, "what is read makes room again");
    }

    #[test]
    fn the_record_holds_the_hash_and_not_the_words() {
        let peer = Peer { uid: 7, name: "ann".into() };
        let channel = ChannelName::parse("x").unwrap();
        let one = entry(&peer, Some(&channel), "secret");
        assert_eq!((one.what, one.object.as_str()), (What::ChannelSend, "x"));
        assert!(one.detail.starts_with("6 bytes, sha256 2bb80d537b1da3e3"), "{}", one.detail);
        assert_eq!(entry(&peer, None, "").what, What::Broadcast);
    }
}
