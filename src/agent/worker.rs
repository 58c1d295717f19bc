//! Takes tasks from the bus, several at once, and sees each through to its acknowledgement.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::Message;
use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::bounds::{Bounds, said};
use super::job::{self, Job};
use super::link::{Link, Verdict};
use super::log;
use super::outcome::{Outcome, also, shorten};
use super::protocol::Request;
use super::register::{Place, Register, Turn};
use super::session::Session;
use super::settings::{Input, Settings};
use super::store::Store;
use super::tools;
use crate::bus::message::{self, Status, Task, TaskId, TaskResult};
use crate::bus::{environment, streams};

/// Heartbeats, broadcasts and cancels.
mod talk;

/// Between two reports that a task is being worked on: two may be lost before it is given away.
const WORKING: Duration = Duration::from_secs(streams::ACK_WAIT.as_secs() / 3);
/// Between two attempts to hand in a result, or to ask for a task after an error.
const RETRY: Duration = Duration::from_secs(1);
/// How long handing in a result may still take when the agent has to stop.
const LAST_WORD: Duration = Duration::from_secs(3);

/// One agent at work.
struct Worker {
    settings: Settings,
    link: Link,
    store: Store,
    register: Register,
    /// flock asks for a heartbeat.
    beat: Notify,
    /// The command, if it lives on.
    session: Option<Session>,
    /// What could not be removed last time: the same again is not said again.
    litter: Mutex<Vec<String>>,
    stop: watch::Receiver<bool>,
}

/// What is known of a task from its message.
struct Delivery {
    /// How often the server has handed it out, from 1.
    count: u64,
    /// Its place in the stream.
    sequence: u64,
}

/// Works until SIGTERM or SIGINT. Tasks that are not done by then go back to the bus.
///
/// # Errors
/// When signals cannot be caught, and when a command that is to live on cannot be started.
pub async fn run(settings: Settings) -> io::Result<()> {
    let (say, mut stop) = watch::channel(false);
    let say = Arc::new(say);
    catch_signals(Arc::clone(&say))?;
    let link = tokio::select! {
        link = Link::connect(&settings) => link,
        () = said(&mut stop) => return Ok(()),
    };
    tools::serve(&settings, &link)?;
    let store = Store::new(&settings.shared, &settings.id, settings.output_limit);
    let (session, keeper) = match settings.input {
        Input::JsonLines => keep(&settings, &store, &say),
        Input::Stdin | Input::Argument => (None, None),
    };
    let (register, beat, litter) = (Register::default(), Notify::new(), Mutex::default());
    let worker = Worker { settings, link, store, register, beat, session, litter, stop };
    at_work(Arc::new(worker)).await;
    if let Some(keeper) = keeper {
        keeper.await.map_err(io::Error::other)??;
    }
    log::info("stopped");
    Ok(())
}

/// Starts the command that lives on. Its end ends the agent.
fn keep(
    settings: &Settings,
    store: &Store,
    say: &Arc<watch::Sender<bool>>,
) -> (Option<Session>, Option<JoinHandle<io::Result<()>>>) {
    let (session, keeper) = Session::new(settings.clone(), say.subscribe());
    let (home, say) = (store.home().to_owned(), Arc::clone(say));
    let keeper = tokio::spawn(async move {
        let ended = keeper.run(&home).await;
        say.send_replace(true);
        ended
    });
    (Some(session), Some(keeper))
}

async fn at_work(worker: Arc<Worker>) {
    worker.link.event("started", None, None).await;
    let mut talks = JoinSet::new();
    // Before the first heartbeat: whoever did not hear that one asks for another.
    match worker.link.control().await {
        Ok(words) => drop(talks.spawn(talk::control(Arc::clone(&worker), words))),
        Err(e) => log::error(&format!("listen to what flock says: {e}")),
    }
    talks.spawn(talk::heartbeats(Arc::clone(&worker)));
    talks.spawn(talk::broadcasts(Arc::clone(&worker)));
    take_tasks(&worker).await;
    worker.link.event("stopping", None, None).await;
    talks.abort_all();
    worker.link.clone().close().await;
}

fn catch_signals(say: Arc<watch::Sender<bool>>) -> io::Result<()> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        log::info("asked to stop: no new tasks");
        say.send_replace(true);
        // Without a sender nobody could be told any more.
        std::future::pending::<()>().await;
    });
    Ok(())
}

async fn take_tasks(worker: &Arc<Worker>) {
    let places = Arc::new(Semaphore::new(worker.settings.parallel as usize));
    let mut stop = worker.stop.clone();
    let mut jobs = JoinSet::new();
    let mut trouble = String::new();
    loop {
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { break };
        if *stop.borrow() {
            break;
        }
        let mut connects = worker.link.connects();
        let next = tokio::select! {
            next = worker.link.next_task() => next,
            // The server forgets who asked when the connection is lost.
            Ok(()) = connects.changed() => continue,
            () = said(&mut stop) => break,
        };
        while jobs.try_join_next().is_some() {}
        match next {
            Ok(Some(message)) => {
                trouble.clear();
                let worker = Arc::clone(worker);
                jobs.spawn(async move {
                    worker.handle(&message).await;
                    drop(place);
                });
            }
            Ok(None) => trouble.clear(),
            Err(e) => {
                if e != trouble {
                    log::warning(&format!("ask the bus for a task: {e}; trying again"));
                    trouble = e;
                }
                sleep(RETRY).await;
            }
        }
    }
    while jobs.join_next().await.is_some() {}
}

impl Worker {
    /// One task from its message to its acknowledgement.
    async fn handle(&self, message: &Message) {
        let delivery = read_delivery(message);
        let alive = async {
            loop {
                sleep(WORKING).await;
                let _ = self.link.verdict(message, Verdict::Working).await;
            }
        };
        tokio::select! {
            () = alive => {}
            () = self.read(message, &delivery) => {}
        }
    }

    /// Reads the task; one that is no task is refused.
    async fn read(&self, message: &Message, delivery: &Delivery) {
        let read = message::parse::<Task>(&message.payload).map_err(|e| e.to_string());
        let checked = read.and_then(|task| match environment::check(&task.environment) {
            Ok(()) => Ok(task),
            Err(e) => Err(e.to_string()),
        });
        match checked {
            Ok(task) => self.enter(message, delivery, task).await,
            Err(e) => {
                let id = message::salvage_id(&message.payload)
                    .or_else(|| TaskId::parse(&format!("unnamed-{}", delivery.sequence)).ok());
                let Some(id) = id else { return };
                log::warning(&format!("task {id}: refused: {e}"));
                let result = self.blank(&id, delivery.count, Status::Refused, &e);
                self.hand_in(message, &id, result, Verdict::Never).await;
            }
        }
    }

    /// Waits for the task's turn: none runs twice at once here, however often it comes.
    async fn enter(&self, message: &Message, delivery: &Delivery, task: Task) {
        loop {
            match self.register.enter(&task.id, delivery.sequence) {
                Turn::Now(place) => {
                    self.see_through(message, delivery, task, &place).await;
                    return self.tidy(place).await;
                }
                Turn::Already => {
                    return log::warning(&format!("task {}: it came again while it runs", task.id));
                }
                Turn::After(mut other) => {
                    log::warning(&format!("task {}: it waits for its other copy", task.id));
                    while other.changed().await.is_ok() {}
                }
            }
        }
    }

    async fn see_through(
        &self,
        message: &Message,
        delivery: &Delivery,
        task: Task,
        place: &Place<'_>,
    ) {
        let id = task.id.clone();
        let attempt = task.attempt.saturating_add(delivery.count - 1);
        if let Some(result) = self.store.load(&id).filter(|old| old.attempt >= Some(task.attempt)) {
            // The agent died between writing the result and acknowledging the task.
            log::info(&format!("task {id}: was done before; its result is handed in again"));
            return self.hand_in(message, &id, result, Verdict::Done).await;
        }
        if let Some((status, why)) = self.reason_not_to(&task, attempt) {
            log::warning(&format!("task {id}: not begun: {why}"));
            let result = self.blank(&id, attempt, status, &why);
            return self.hand_in(message, &id, result, Verdict::Never).await;
        }
        log::info(&format!("task {id}: begins (attempt {attempt})"));
        self.link.event("task-started", Some(id.as_str()), Some(attempt.to_string())).await;
        match self.work(task, attempt, place).await {
            Ok(result) => self.hand_in(message, &id, result, Verdict::Done).await,
            Err(why) => {
                log::info(&format!("task {id}: not done, it goes back to the bus: {why}"));
                let _ = self.link.verdict(message, Verdict::Again).await;
            }
        }
    }

    fn reason_not_to(&self, task: &Task, attempt: u64) -> Option<(Status, String)> {
        if self.register.is_cancelled(&task.id) {
            return Some((Status::Cancelled, "cancelled before it was begun".to_owned()));
        }
        if task.deadline.is_some_and(|deadline| deadline < Timestamp::now()) {
            return Some((Status::Expired, "its deadline has passed".to_owned()));
        }
        let most = self.settings.attempts;
        (attempt > most).then(|| {
            (Status::Refused, format!("it was begun {most} times and the agent ended each time"))
        })
    }

    /// Has the command do the task. An error is why it has to go back to the bus.
    async fn work(
        &self,
        task: Task,
        attempt: u64,
        place: &Place<'_>,
    ) -> Result<TaskResult, String> {
        let mut result = self.blank(&task.id, attempt, Status::Done, "");
        result.started = Some(Timestamp::now());
        match self.run(task, attempt, place).await {
            Ok(outcome) => match outcome.back() {
                Some(why) => return Err(why.to_owned()),
                None => outcome.describe(&mut result),
            },
            Err(why) => (result.status, result.reason) = (Status::Failed, Some(why)),
        }
        result.finished = Some(Timestamp::now());
        Ok(result)
    }

    async fn run(&self, task: Task, attempt: u64, place: &Place<'_>) -> Result<Outcome, String> {
        let Task { id, text, deadline, environment, .. } = task;
        let dir = self.store.task_dir(&id).map_err(|e| format!("make the task's folder: {e}"))?;
        let (timeout, stop) = (self.settings.timeout, self.stop.clone());
        let bounds = Bounds::new(timeout, deadline, place.cancel.clone(), stop);
        if let Some(session) = &self.session {
            let (folder, environment) = (dir.as_path(), &environment);
            let request = Request { id: &id, text: &text, attempt, deadline, folder, environment };
            return Ok(session.run(&request, bounds).await);
        }
        let settings = &self.settings;
        let job = Job { settings, task: &id, attempt, text, dir, deadline, environment, bounds };
        job::run(job).await.map_err(|e| e.to_string())
    }

    /// Gives the task's place back and removes what is too old to be kept.
    async fn tidy(&self, place: Place<'_>) {
        drop(place);
        let running: BTreeSet<String> =
            self.register.running().into_iter().map(String::from).collect();
        let (store, keep) = (self.store.clone(), self.settings.keep);
        // Not here: a task can leave many files, and heartbeats go on meanwhile.
        let pruned = tokio::task::spawn_blocking(move || store.prune(keep, &running)).await;
        let trouble = pruned.unwrap_or_default();
        let mut last = self.litter.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(first), true) = (trouble.first(), trouble != *last) {
            let more = trouble.len() - 1;
            log::warning(&format!("remove what old tasks left: {first} (and {more} more)"));
        }
        *last = trouble;
    }

    /// Writes the result, publishes it, and only then says the last word about the task.
    async fn hand_in(&self, message: &Message, id: &TaskId, mut result: TaskResult, last: Verdict) {
        let path = self.store.result_path(id.as_str());
        result.result_path = Some(path.display().to_string());
        if let Err(e) = self.store.save(id, &result) {
            log::error(&format!("task {id}: write the result {}: {e}", path.display()));
            also(&mut result, &format!("its file could not be written: {e}"));
            result.result_path = None;
        }
        let status = result.status;
        shorten(&mut result);
        let mut stop = self.stop.clone();
        let publish = self.publish(&result);
        let published = tokio::select! {
            () = publish => true,
            () = async { said(&mut stop).await; sleep(LAST_WORD).await } => false,
        };
        if !published {
            // Not acknowledged: it comes again, and the file above is found then.
            return log::warning(&format!("task {id}: the result is not handed in yet"));
        }
        let said = timeout(LAST_WORD * 4, self.link.verdict(message, last)).await;
        if let Ok(Err(e)) = said {
            log::warning(&format!("task {id}: the acknowledgement is in doubt: {e}"));
        }
        log::info(&format!("task {id}: ends: {status}"));
        self.link.event("task-finished", Some(id.as_str()), Some(status.to_string())).await;
    }

    async fn publish(&self, result: &TaskResult) {
        let mut trouble = String::new();
        while let Err(e) = self.link.result(result).await {
            if e != trouble {
                let task = &result.task;
                log::warning(&format!("task {task}: publish the result: {e}; trying again"));
                trouble = e;
            }
            sleep(RETRY).await;
        }
    }

    fn blank(&self, task: &TaskId, attempt: u64, status: Status, reason: &str) -> TaskResult {
        TaskResult {
            task: task.to_string(),
            agent: self.settings.id.to_string(),
            status,
            exit: None,
            signal: None,
            reason: (!reason.is_empty()).then(|| reason.to_owned()),
            attempt: Some(attempt),
            started: None,
            finished: None,
            output: String::new(),
            truncated: false,
            result_path: None,
            usage: None,
        }
    }
}

/// Reads the server's own note on a message out of its reply subject:
/// `$JS.ACK[.<domain>.<account>].<stream>.<consumer>.<count>.<sequence>.<...>`.
fn read_delivery(message: &Message) -> Delivery {
    let reply = message.reply.as_deref().unwrap_or_default();
    let tokens: Vec<&str> = reply.split('.').collect();
    let first = if tokens.len() > 9 { 6 } else { 4 };
    let number = |at: usize| tokens.get(at).and_then(|t| t.parse().ok());
    Delivery { count: number(first).unwrap_or(1).max(1), sequence: number(first + 1).unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(reply: &str) -> (u64, u64) {
        let message = Message {
            subject: "tasks.a".into(),
            reply: Some(reply.to_owned().into()),
            payload: Vec::new().into(),
            headers: None,
            status: None,
            description: None,
            length: 0,
        };
        let delivery = read_delivery(&message);
        (delivery.count, delivery.sequence)
    }

    #[test]
    fn the_servers_note_is_read_in_both_forms() {
        assert_eq!(delivery("$JS.ACK.TASKS_a.worker.3.17.5.1795252886090450.2"), (3, 17));
        assert_eq!(delivery("$JS.ACK._.hash.TASKS_a.worker.2.9.5.1795252886090450.2.rnd"), (2, 9));
        assert_eq!(delivery("nonsense"), (1, 0));
        assert_eq!(delivery("$JS.ACK.TASKS_a.worker.0.x.5.1.2"), (1, 0));
    }
}
