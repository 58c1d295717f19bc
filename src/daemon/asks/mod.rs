//! Calls of tools that wait for an operator: heard from the bus, decided over the control socket.
//!
//! Nothing is kept on disk. An agent repeats its question until it is answered, so a restart of
//! flockd or of the bus loses none; and what nobody answers is denied by the agent itself.

/// The open questions and the decisions.
mod book;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use self::book::{Book, Heard, Undecided};
use crate::audit::{self, AuditError, Entry, How, What, Who};
use crate::bus::ask::{Answer, Asked};
use crate::bus::hub::Hub;
use crate::bus::message::Event;
use crate::config::Config;
use crate::control::Peer;
use crate::control::request::AskDecide;
use crate::control::response::AskShown;
use crate::daemon::allowance::{Allowance, Verdict};
use crate::daemon::world::World;
use crate::host::users::Ledger;
use crate::names::{AgentId, Level, UidBlock};
use crate::text::printable;
use crate::tools::{Action, words};

/// How long a question is held before the agent is told to ask again.
const HOLD: Duration = Duration::from_secs(10);
/// Questions of one agent that are held at the same time; more are answered at once.
const HELD_PER_AGENT: usize = 32;
/// How often the book is swept while something is in it.
const SWEEP: Duration = Duration::from_secs(1);
/// Before listening is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// The longest text about a call in the journal and in the audit log.
const TEXT_MAX: usize = 500;
/// The longest reason that an agent is told.
const REASON_MAX: usize = 500;
/// So many digits of an id are shown; a prefix is enough to decide.
const ID_SHOWN: usize = 12;

/// What the loop and the operators share.
#[derive(Default)]
pub struct Asks {
    book: Mutex<Book>,
    changed: Notify,
    /// One decision at a time: it is on record before it is made.
    deciding: tokio::sync::Mutex<()>,
    /// How many decisions of its rules an agent may put on record.
    recorded: Mutex<Allowance>,
}

/// Why a decision was not made.
#[derive(Debug, thiserror::Error)]
pub enum NotDecided {
    /// There is no such open question.
    #[error(transparent)]
    Undecided(#[from] Undecided),
    /// It could not be recorded.
    #[error("it was not decided, because it could not be recorded: {0}")]
    Audit(#[from] AuditError),
}

impl Asks {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that wait, the oldest first.
    #[must_use]
    pub fn pending(&self) -> Vec<AskShown> {
        self.book().pending(Timestamp::now())
    }

    /// How many wait.
    #[must_use]
    pub fn count(&self) -> usize {
        self.pending().len()
    }

    /// Ready when something has changed since this was called.
    pub fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// An operator's word: recorded, then made.
    ///
    /// # Errors
    /// When the question is not open, or the record cannot be written.
    pub async fn decide(&self, peer: &Peer, order: &AskDecide) -> Result<AskShown, NotDecided> {
        let _one = self.deciding.lock().await;
        let reason = order.reason.as_ref().map(|text| cut(&printable(text), REASON_MAX));
        let shown = self.book().find(&order.ask, Timestamp::now())?;
        let mut detail = format!("{} {}", shown.ask, describe(&shown));
        if let Some(reason) = &reason {
            detail.push_str(": ");
            detail.push_str(reason);
        }
        let who = Who { uid: peer.uid, name: peer.name.clone(), how: How::Socket };
        let what = if order.approve { What::Approve } else { What::Deny };
        audit::record_async(Entry::new(who, what, &shown.agent, detail)).await?;
        let (now, by) = (Timestamp::now(), &peer.name);
        let shown = self.book().decide(&shown.ask, order.approve, reason, by, now)?;
        self.changed.notify_waiters();
        Ok(shown)
    }
}

/// `git push origin main in /shared/agents/a (task t)`, harmless and not too long.
fn describe(ask: &AskShown) -> String {
    let call: Vec<String> = [&ask.tool].into_iter().chain(&ask.arguments).cloned().collect();
    let folder = words(std::slice::from_ref(&ask.folder));
    let task = ask.task.as_ref().map(|task| format!(" (task {})", printable(task)));
    cut(&format!("{} in {folder}{}", words(&call), task.unwrap_or_default()), TEXT_MAX)
}

fn cut(text: &str, most: usize) -> String {
    let mut head: String = text.chars().take(most).collect();
    if head.len() < text.len() {
        head.push('…');
    }
    head
}

/// What the loop has for itself.
struct Desk {
    world: Arc<World>,
    allowance: Mutex<Allowance>,
    held: Mutex<BTreeMap<AgentId, usize>>,
}

/// Hears agents for ever; the connection to the bus is the bus loop's.
pub async fn run(world: Arc<World>) {
    let desk = Arc::new(Desk {
        world: Arc::clone(&world),
        allowance: Mutex::default(),
        held: Mutex::default(),
    });
    let sweep = sweep(Arc::clone(&desk));
    let hear = async {
        let mut hub = world.hub.subscribe();
        loop {
            let connected = hub.wait_for(Option::is_some).await.ok().and_then(|hub| hub.clone());
            let Some(connected) = connected else { return };
            match connected.asks().await {
                Ok(asks) => {
                    tokio::select! {
                        () = listen(&desk, &connected, asks) => {}
                        // A connection that came back keeps its subscriptions; a new one has none.
                        _ = hub.wait_for(Option::is_none) => {}
                    }
                }
                Err(error) => tracing::warn!("{error}"),
            }
            sleep(RETRY).await;
        }
    };
    tokio::join!(hear, sweep);
}

async fn sweep(desk: Arc<Desk>) {
    let mut tick = interval(SWEEP);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let changed = desk.world.asks.changed();
        if desk.world.asks.book().is_empty() {
            // Idle, it is not woken.
            changed.await;
        }
        tick.tick().await;
        let expired = desk.world.asks.book().sweep(Timestamp::now());
        for ask in &expired {
            // The agent itself says that it was denied, and that is what is recorded.
            desk.write(&ask.agent, &format!("nobody answered in time: {}", describe(ask)));
        }
        if !expired.is_empty() {
            desk.world.asks.changed.notify_waiters();
        }
    }
}

async fn listen(desk: &Arc<Desk>, hub: &Hub, mut asks: BoxStream<'static, Asked>) {
    while let Some(asked) = asks.next().await {
        let (desk, hub) = (Arc::clone(desk), hub.clone());
        tokio::spawn(async move {
            let answer = desk.answer(&asked).await;
            // One that does not arrive is asked for again.
            let _ = hub.answer(&asked, &answer).await;
        });
    }
}

impl Desk {
    /// Holds the question until it is decided, for a while.
    async fn answer(&self, asked: &Asked) -> Answer {
        let agent = &asked.from;
        let refused = |reason: String| Answer::Refused { reason };
        let ask = match &asked.ask {
            Ok(ask) => ask,
            Err(error) => return refused(format!("the question cannot be read: {error}")),
        };
        let (tool, arguments) = (&ask.question.tool, &ask.question.arguments);
        if !is_asked_for(&self.world.config(), agent, tool, arguments) {
            let why = "no rule in flockd's configuration asks for this call: was the agent restarted \
                       after the last change?";
            return refused(why.to_owned());
        }
        let until = tokio::time::Instant::now() + HOLD;
        let place = self.hold(agent);
        loop {
            let changed = self.world.asks.changed();
            let heard = self.world.asks.book().hear(agent, ask, Timestamp::now());
            match heard {
                Heard::Final(answer) => return answer,
                Heard::Open(first) if first => self.announce(&ask.ask).await,
                Heard::Open(_) if place.is_none() => return Answer::Pending,
                Heard::Open(_) => {}
            }
            if tokio::time::timeout_at(until, changed).await.is_err() {
                return Answer::Pending;
            }
        }
    }

    /// A place to wait in, unless this agent has too many.
    fn hold(&self, agent: &AgentId) -> Option<Place<'_>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let count = held.entry(agent.clone()).or_default();
        if *count >= HELD_PER_AGENT {
            return None;
        }
        *count += 1;
        Some(Place { desk: self, agent: agent.clone() })
    }

    /// Tells the operators of a new question.
    async fn announce(&self, id: &str) {
        self.world.asks.changed.notify_waiters();
        let found = self.world.asks.book().find(id, Timestamp::now());
        let Ok(ask) = found else { return };
        let (text, id) = (describe(&ask), &ask.ask[..ID_SHOWN.min(ask.ask.len())]);
        let line = format!("asks: {text}: flockctl approve {id}, or flockctl deny {id}");
        if self.write(&ask.agent, &line) {
            let config = self.world.config();
            let level = config.agents.get(&ask.agent).map_or(Level::Workspace, |a| a.level);
            let detail = format!("{} {text}", ask.ask);
            record(&ask.agent, level, config.host.uid_block, What::ToolAsked, &detail).await;
        }
    }

    /// Writes a line about an agent, unless it had too many.
    fn write(&self, agent: &AgentId, line: &str) -> bool {
        let mut allowance = self.allowance.lock().unwrap_or_else(PoisonError::into_inner);
        match allowance.ask(agent, Instant::now()) {
            Verdict::LeaveOut => return false,
            Verdict::WriteAfter(count) => {
                tracing::warn!(agent = %agent, "{agent}: {count} lines about its tools were left out");
            }
            Verdict::Write => {}
        }
        tracing::warn!(agent = %agent, "{agent} {line}");
        true
    }
}

/// Gives the place back.
struct Place<'a> {
    desk: &'a Desk,
    agent: AgentId,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut held = self.desk.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = held.get_mut(&self.agent) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.agent);
            }
        }
    }
}

/// Whether a rule really asks for this: an agent cannot show an operator what it likes.
fn is_asked_for(config: &Config, agent: &AgentId, tool: &str, arguments: &[String]) -> bool {
    let rules = config.agents.get(agent).and_then(|agent| agent.tools.as_ref());
    rules.is_some_and(|rules| rules.decide(tool, arguments).action == Action::Ask)
}

/// The longest that a record about an agent's call may wait for the audit log.
const RECORD_TIME: Duration = Duration::from_secs(10);

/// Puts what the broker of an agent decided by its rules on record: allowed, denied, not answered.
pub fn note(world: &World, agent: &AgentId, event: &Event) {
    let what = match event.event.as_str() {
        "tool-allowed" => What::ToolAllowed,
        "tool-denied" => What::ToolDenied,
        _ => return,
    };
    let config = world.config();
    let Some(level) = config.agents.get(agent).filter(|a| a.tools.is_some()).map(|a| a.level)
    else {
        return;
    };
    let verdict = {
        let recorded = &world.asks.recorded;
        recorded.lock().unwrap_or_else(PoisonError::into_inner).ask(agent, Instant::now())
    };
    let left_out = match verdict {
        Verdict::LeaveOut => return,
        Verdict::WriteAfter(count) => format!("({count} were left out before) "),
        Verdict::Write => String::new(),
    };
    let task = event.task.as_ref().map(|task| format!("task {}: ", cut(&printable(task), 64)));
    let text = printable(event.detail.as_deref().unwrap_or_default());
    let detail = format!("{left_out}{}{text}", task.unwrap_or_default());
    let (agent, block) = (agent.clone(), config.host.uid_block);
    tokio::spawn(async move { record(&agent, level, block, what, &detail).await });
}

/// Puts what an agent says on record; it runs whether or not that works.
async fn record(agent: &AgentId, level: Level, block: UidBlock, what: What, detail: &str) {
    let uid = match level {
        Level::Workspace => Some(block.first),
        _ => Ledger::load().ok().and_then(|ledger| ledger.uids().get(agent).copied()),
    };
    // Before its first apply an agent has no user; it cannot ask anything then.
    let uid = uid.unwrap_or(block.first);
    let who = Who { uid, name: agent.to_string(), how: How::Agent };
    let entry = Entry::new(who, what, agent, cut(detail, TEXT_MAX));
    match timeout(RECORD_TIME, audit::record_async(entry)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::error!("{error}"),
        Err(_) => tracing::error!("the audit log takes no record"),
    }
}
