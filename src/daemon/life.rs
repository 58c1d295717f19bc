//! What flockd decides of tasks: expired, cancelled, given up, stored again. Each decision is written
//! down first; only then something is removed, and whoever waits is told.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use tokio::time::{sleep, timeout};

use crate::bus::hub::{self, Hub, Stored};
use crate::bus::message::{Address, Status, Task, TaskId, TaskResult};
use crate::bus::queue::Order;
use crate::bus::streams::ACK_WAIT;
use crate::bus::subject::Kind;
use crate::control::response::Cancelled;
use crate::daemon::ledger::Closed;
use crate::daemon::looks::Looks;
use crate::daemon::store;
use crate::daemon::verdict::Decision;
use crate::daemon::world::{Which, World};
use crate::history::{Fact, Patience, Reader, Record, Slot, State};

/// How often flockd looks, and how long it waits for others to say so first.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between two looks at deadlines, at least.
    pub tick: Duration,
    /// An agent that is there says itself that a deadline has passed; it has this long after it.
    pub grace: SignedDuration,
    /// What was on its way into the history when the bus or flockd was restarted comes again within
    /// this time: until then a task that seems not to be begun may be done.
    pub catch_up: Duration,
    /// Between two looks at tasks whose result does not come. A decision needs two.
    pub round: Duration,
    /// A younger task is left alone.
    pub young: SignedDuration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            tick: Duration::from_secs(2),
            grace: SignedDuration::from_secs(3),
            catch_up: ACK_WAIT + Duration::from_secs(5),
            round: Duration::from_secs(30),
            young: SignedDuration::from_secs(60),
        }
    }
}

/// Most tasks in one round.
const MOST: u32 = 1000;
/// How often a task is stored again while the bus remembers that it had it.
const RESTORES: u32 = 100;

/// Why a decision was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The history.
    #[error(transparent)]
    History(#[from] Closed),
    /// The bus.
    #[error(transparent)]
    Bus(#[from] hub::Error),
}

/// What the last round thought of each task.
type Thoughts = HashMap<(TaskId, Slot), Decision>;

/// Runs until a stream has to be made anew.
pub async fn run(world: &World, hub: &Hub, pace: Pace) {
    let mut thoughts = Thoughts::new();
    // The history drains first.
    let begun = Instant::now();
    let mut looked = None::<Instant>;
    let mut calm = None::<Calm>;
    loop {
        if begun.elapsed() >= pace.catch_up && !calm.is_some_and(|calm| calm.holds(world)) {
            calm = expire(world, hub, pace.grace).await.unwrap_or_else(|fault| {
                tracing::debug!("look at deadlines: {fault}");
                None
            });
        }
        if looked.is_none_or(|last| last.elapsed() >= pace.round) {
            let moment = match looked {
                None => Moment::First,
                Some(_) if begun.elapsed() < pace.catch_up => Moment::Early,
                Some(_) => Moment::Later,
            };
            looked = Some(Instant::now());
            let part = store::look(hub).await;
            if hub.is_connected() {
                world.report(Which::Bus, part);
            }
            match round(world, hub, pace.young, moment, &thoughts).await {
                Ok(new) => thoughts = new,
                Err(Fault::Bus(error @ hub::Error::Damaged(_))) => {
                    tracing::warn!("{error}");
                    return;
                }
                Err(fault) => tracing::debug!("look at open tasks: {fault}"),
            }
        }
        // However much is written, not more often than this.
        sleep(pace.tick).await;
        if let Some(calm) = calm {
            let round = looked.map_or(pace.round, |last| pace.round.saturating_sub(last.elapsed()));
            calm.rest(world, round).await;
        }
    }
}

/// There is nothing to end before this time, as long as nothing is written.
#[derive(Clone, Copy)]
struct Calm {
    until: Timestamp,
    writes: u64,
}

impl Calm {
    fn holds(self, world: &World) -> bool {
        world.ledger.writes() == self.writes && Timestamp::now() < self.until
    }

    /// Waits until there can be something to end, at most so long.
    async fn rest(self, world: &World, most: Duration) {
        let left = self.until.duration_since(Timestamp::now());
        let wait = Duration::try_from(left).unwrap_or_default().min(most);
        let mut written = world.ledger.written();
        // An error would say that the ledger is gone, and it is held here.
        let _ = timeout(wait, written.wait_for(|writes| *writes != self.writes)).await;
    }
}

/// Ends what nobody began before its deadline, also when its agent is stopped. Gives how long there
/// is nothing to do for sure.
async fn expire(world: &World, hub: &Hub, grace: SignedDuration) -> Result<Option<Calm>, Fault> {
    let Ok(before) = Timestamp::now().checked_sub(grace) else { return Ok(None) };
    let writes = world.ledger.writes();
    let look = move |reader: &Reader| Ok((reader.overdue(before)?, reader.next_deadline()?));
    let (overdue, next) = world.ledger.read(look).await?;
    for record in overdue.into_iter().filter(|record| record.state == State::Queued) {
        end(world, hub, &record, State::Expired, "its deadline passed before it was begun").await?;
    }
    let until = next.map_or(Ok(Timestamp::MAX), |next| next.checked_add(grace));
    Ok(until.ok().map(|until| Calm { until, writes }))
}

/// Decides how a task ends, and sees to it. `false` when it had ended before.
async fn end(
    world: &World,
    hub: &Hub,
    record: &Record,
    state: State,
    why: &str,
) -> Result<bool, Fault> {
    if !world.ledger.end(&record.task, &record.slot, state, why).await? {
        return Ok(false);
    }
    let task = &record.task;
    tracing::info!("task {task} ({}) is {state}: {why}", record.slot);
    let status = match state {
        State::Expired => Status::Expired,
        State::Cancelled => Status::Cancelled,
        State::Done | State::Failed | State::Queued | State::Running => Status::Failed,
    };
    hub.announce(task, &TaskResult::decided(task, &record.slot, status, why)).await?;
    if record.slot == Slot::Any {
        world.order(Order::Drop(task.clone()));
    }
    if let Some(agent) = &record.agent {
        hub.cancel(agent, task).await?;
    }
    // Whoever is being handed it in this moment hears that it has ended, or its result is refused.
    for place in [&record.given, &record.place].into_iter().flatten() {
        if let Err(error) = hub.remove(&place.stream, place.sequence, task).await {
            tracing::warn!("{error}");
        }
    }
    Ok(true)
}

/// Cancels a task wherever it is.
///
/// # Errors
/// When the history or the bus does not answer.
pub async fn cancel(world: &World, hub: &Hub, task: &TaskId, by: &str) -> Result<Cancelled, Fault> {
    let wanted = task.clone();
    let records = world.ledger.read(move |reader| reader.show(&wanted)).await?;
    let refused = |why: &str| Some(why.to_owned());
    let mut answer = Cancelled { task: task.clone(), was: Vec::new(), refused: None };
    if records.is_empty() {
        answer.refused = refused("no task of this id is known; see flockctl task list");
        return Ok(answer);
    }
    for record in &records {
        let why = format!("cancelled by {by}");
        if !record.state.is_final() && end(world, hub, record, State::Cancelled, &why).await? {
            answer.was.push(match (&record.agent, record.state) {
                (Some(agent), State::Running) => agent.to_string(),
                _ => "queued".to_owned(),
            });
        }
    }
    if answer.was.is_empty() {
        let states: Vec<_> = records.iter().map(|record| record.state.word()).collect();
        answer.refused = Some(format!("it is {} already", states.join(", ")));
    }
    Ok(answer)
}

/// When a round is done, from the connection on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// At once, of the young too: what the bus has lost shows best before the agents go on.
    First,
    /// Results are still on their way into the history: nothing is decided.
    Early,
    /// From then on.
    Later,
}

/// Looks at every task that has been open for a while.
async fn round(
    world: &World,
    hub: &Hub,
    young: SignedDuration,
    moment: Moment,
    before: &Thoughts,
) -> Result<Thoughts, Fault> {
    let now = Timestamp::now();
    let Ok(old) = now.checked_sub(young) else { return Ok(Thoughts::new()) };
    let until = if moment == Moment::First { now } else { old };
    let mut judged = judge(world, hub, until, now).await?;
    let all = before.values().chain(judged.iter().map(|(_, decision)| decision));
    if all.into_iter().any(|decision| *decision == Decision::Lost) {
        // What is stored again takes the consumer past the others of its stream, and they look
        // delivered then: the young ones are looked at before, and not forgotten until they are old.
        judged = judge(world, hub, now, now).await?;
    }
    let mut thoughts = Thoughts::new();
    for (record, decision) in judged {
        let key = (record.task.clone(), record.slot.clone());
        let thought = before.get(&key);
        let decision = match (thought, decision) {
            (Some(Decision::Lost), Decision::Fail(_)) => Decision::Lost,
            (Some(thought), Decision::Unknown) => {
                thoughts.insert(key, thought.clone());
                continue;
            }
            (_, decision) => decision,
        };
        let ripe = moment == Moment::Later && record.queued < old;
        let certain = ripe && thought == Some(&decision);
        match &decision {
            Decision::Wait | Decision::Unknown => {}
            Decision::Begun => begun(world, &record, now).await?,
            Decision::Lost if certain => restore(hub, &record).await?,
            Decision::Fail(why) if certain => fail(world, hub, &record, why).await?,
            Decision::Lost | Decision::Fail(_) => {
                thoughts.insert(key, decision);
            }
        }
    }
    Ok(thoughts)
}

/// What is thought of each task that was queued before `until` and is open.
async fn judge(
    world: &World,
    hub: &Hub,
    until: Timestamp,
    now: Timestamp,
) -> Result<Vec<(Record, Decision)>, Fault> {
    let open = world.ledger.read(move |reader| reader.open_tasks(until, MOST)).await?;
    let mut looks = Looks::default();
    let mut judged = Vec::new();
    for record in open {
        let decision = match looks.at(world, hub, &record, now).await {
            Ok(decision) => decision,
            Err(error @ hub::Error::Damaged(_)) => return Err(error.into()),
            Err(error) => {
                tracing::debug!("{error}");
                Decision::Unknown
            }
        };
        judged.push((record, decision));
    }
    Ok(judged)
}

/// The server has delivered it to a client that says nothing of beginnings.
async fn begun(world: &World, record: &Record, at: Timestamp) -> Result<(), Fault> {
    let Some(agent) = record.agent.clone() else { return Ok(()) };
    let command = crate::daemon::history::command(&world.config(), &agent);
    let attempt = Some(record.attempt);
    let fact = Fact::Started { task: record.task.clone(), agent, attempt, command, at };
    world.ledger.apply(vec![fact], Patience::Over).await?;
    Ok(())
}

/// Another agent may do better with a task of the shared queue; one for an agent has failed.
async fn fail(world: &World, hub: &Hub, record: &Record, why: &str) -> Result<(), Fault> {
    tracing::warn!("task {} ({}): {why}", record.task, record.slot);
    match (&record.slot, &record.agent, &record.place) {
        // The queue has let it go: a result has come that the history never got.
        (Slot::Any, Some(agent), Some(place))
            if hub.stored_at(&place.stream, place.sequence, &record.task).await?
                != Stored::Gone =>
        {
            world.order(Order::Again(record.task.clone(), format!("{agent}: {why}")));
        }
        _ => {
            end(world, hub, record, State::Failed, why).await?;
        }
    }
    Ok(())
}

/// Stores a task again that the bus has lost, under its own id.
async fn restore(hub: &Hub, record: &Record) -> Result<(), Fault> {
    tracing::warn!(
        "task {} ({}) was lost by the bus and is stored again",
        record.task,
        record.slot
    );
    let mut task = Task {
        id: record.task.clone(),
        to: record.to.clone(),
        text: record.text.clone(),
        created: record.created,
        deadline: record.deadline,
        attempt: record.attempt,
        sender: record.sender,
        key: record.key.clone(),
        retry_of: record.retry_of.clone(),
        environment: record.environment.clone(),
    };
    // The bus takes what it has had for a repetition, also when it has lost it since: another attempt
    // is another message.
    for _ in 0..RESTORES {
        task.attempt += 1;
        let receipt = match &record.slot {
            Slot::Any => hub.queue(&task).await?,
            Slot::Agent(id) => {
                let kind = if record.to == Address::All { Kind::All } else { Kind::Own };
                hub.send_to(&task, id, kind).await?
            }
        };
        if !receipt.duplicate {
            return Ok(());
        }
    }
    tracing::warn!("task {} ({}) was lost {RESTORES} times", record.task, record.slot);
    Ok(())
}
