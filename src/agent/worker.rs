//! Takes tasks from the bus, several at once, and sees each through to its acknowledgement.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_nats::Message;
use futures_util::StreamExt as _;
use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::job::{self, End, Job, Outcome, stopped};
use super::link::{Link, Verdict};
use super::log;
use super::settings::Settings;
use super::store::Store;
use super::tools;
use crate::bus::message::{self, OUTPUT_IN_MESSAGE, Status, Task, TaskId, TaskResult};
use crate::bus::streams::ACK_WAIT;

/// Between two heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// Between two reports that a task is being worked on: two may be lost before it is given away.
const WORKING: Duration = Duration::from_secs(ACK_WAIT.as_secs() / 3);
/// Between two attempts to hand in a result, or to ask for a task after an error.
const RETRY: Duration = Duration::from_secs(1);
/// How long handing in a result may still take when the agent has to stop.
const LAST_WORD: Duration = Duration::from_secs(3);

/// One agent at work.
struct Worker {
    settings: Settings,
    link: Link,
    store: Store,
    running: AtomicU32,
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
/// When signals cannot be caught.
pub async fn run(settings: Settings) -> std::io::Result<()> {
    let mut stop = catch_signals()?;
    let link = tokio::select! {
        link = Link::connect(&settings) => link,
        () = stopped(&mut stop) => return Ok(()),
    };
    tools::serve(&settings, &link)?;
    let store = Store::new(&settings.shared, &settings.id);
    let running = AtomicU32::new(0);
    let worker = Arc::new(Worker { settings, link, store, running, stop });
    worker.link.event("started", None, None).await;
    let beats = tokio::spawn(heartbeats(Arc::clone(&worker)));
    let news = tokio::spawn(broadcasts(Arc::clone(&worker)));
    take_tasks(&worker).await;
    worker.link.event("stopping", None, None).await;
    beats.abort();
    news.abort();
    worker.link.clone().close().await;
    log::info("stopped");
    Ok(())
}

fn catch_signals() -> std::io::Result<watch::Receiver<bool>> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (say, stop) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        log::info("asked to stop: no new tasks");
        // Without receivers there is nothing to stop; this task keeps the sender for them.
        let _ = say.send(true);
        std::future::pending::<()>().await;
    });
    Ok(stop)
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
            () = stopped(&mut stop) => break,
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

async fn heartbeats(worker: Arc<Worker>) {
    let mut ticks = interval(HEARTBEAT);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut connects = worker.link.connects();
    loop {
        tokio::select! { _ = ticks.tick() => {}, Ok(()) = connects.changed() => {} }
        let running = worker.running.load(Ordering::Relaxed);
        worker.link.heartbeat(running, worker.settings.parallel).await;
    }
}

async fn broadcasts(worker: Arc<Worker>) {
    let mut news = match worker.link.broadcasts().await {
        Ok(news) => news,
        Err(e) => return log::error(&format!("listen to broadcasts: {e}")),
    };
    while let Some(message) = news.next().await {
        let text: String = String::from_utf8_lossy(&message.payload).chars().take(1000).collect();
        log::info(&format!("broadcast: {text}"));
        worker.link.event("broadcast", None, Some(text)).await;
    }
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
        self.running.fetch_add(1, Ordering::Relaxed);
        tokio::select! {
            () = alive => {}
            () = self.see_through(message, &delivery) => {}
        }
        self.running.fetch_sub(1, Ordering::Relaxed);
    }

    async fn see_through(&self, message: &Message, delivery: &Delivery) {
        let task: Task = match message::parse(&message.payload) {
            Ok(task) => task,
            Err(e) => {
                let id = message::salvage_id(&message.payload)
                    .or_else(|| TaskId::parse(&format!("unnamed-{}", delivery.sequence)).ok());
                let Some(id) = id else { return };
                log::warning(&format!("task {id} is refused: {e}"));
                let result = self.blank(&id, delivery.count, Status::Refused, &e.to_string());
                return self.hand_in(message, &id, result, Verdict::Never).await;
            }
        };
        let id = task.id.clone();
        let attempt = task.attempt.saturating_add(delivery.count - 1);
        if let Some(result) = self.store.load(&id).filter(|old| old.attempt >= Some(task.attempt)) {
            // The agent died between writing the result and acknowledging the task.
            log::info(&format!("task {id} was done before; its result is handed in again"));
            return self.hand_in(message, &id, result, Verdict::Done).await;
        }
        if let Some((status, why)) = self.reason_not_to(&task, attempt) {
            log::warning(&format!("task {id} is not begun: {why}"));
            let result = self.blank(&id, attempt, status, &why);
            return self.hand_in(message, &id, result, Verdict::Never).await;
        }
        log::info(&format!("task {id} begins (attempt {attempt})"));
        self.link.event("task-started", Some(id.as_str()), None).await;
        match self.work(task, attempt).await {
            Some(result) => self.hand_in(message, &id, result, Verdict::Done).await,
            None => {
                log::info(&format!("task {id} is not done; it goes back to the bus"));
                let _ = self.link.verdict(message, Verdict::Again).await;
            }
        }
    }

    fn reason_not_to(&self, task: &Task, attempt: u64) -> Option<(Status, String)> {
        if task.deadline.is_some_and(|deadline| deadline < Timestamp::now()) {
            return Some((Status::Expired, "its deadline has passed".to_owned()));
        }
        let most = self.settings.attempts;
        (attempt > most).then(|| {
            (Status::Refused, format!("it was begun {most} times and the agent ended each time"))
        })
    }

    /// Runs the command; `None` when the agent had to stop before it was done.
    async fn work(&self, task: Task, attempt: u64) -> Option<TaskResult> {
        let started = Timestamp::now();
        let failed = |why: String| {
            let mut result = self.blank(&task.id, attempt, Status::Failed, &why);
            (result.started, result.finished) = (Some(started), Some(Timestamp::now()));
            Some(result)
        };
        let dir = match self.store.task_dir(&task.id) {
            Ok(dir) => dir,
            Err(e) => return failed(format!("make the task's folder: {e}")),
        };
        let job = Job { settings: &self.settings, task: &task.id, attempt, text: task.text, dir };
        match job::run(job, self.stop.clone()).await {
            Err(e) => {
                let program = Path::new(&self.settings.command[0]).display();
                failed(format!("start the command {program}: {e}"))
            }
            Ok(Outcome { end: End::Stopped, .. }) => None,
            Ok(outcome) => {
                let mut result = self.blank(&task.id, attempt, Status::Done, "");
                (result.started, result.finished) = (Some(started), Some(Timestamp::now()));
                describe(&mut result, outcome, self.settings.timeout);
                Some(result)
            }
        }
    }

    /// Writes the result, publishes it, and only then says the last word about the task.
    async fn hand_in(&self, message: &Message, id: &TaskId, mut result: TaskResult, last: Verdict) {
        let path = self.store.result_path(id.as_str());
        result.result_path = Some(path.display().to_string());
        if let Err(e) = self.store.save(id, &result) {
            log::error(&format!("write the result {}: {e}", path.display()));
            result.result_path = None;
        }
        let status = result.status;
        shorten(&mut result);
        let mut stop = self.stop.clone();
        let publish = self.publish(&result);
        let published = tokio::select! {
            () = publish => true,
            () = async { stopped(&mut stop).await; sleep(LAST_WORD).await } => false,
        };
        if !published {
            // Not acknowledged: it comes again, and the file above is found then.
            return log::warning(&format!("task {id}: the result is not handed in yet"));
        }
        let said = timeout(LAST_WORD * 4, self.link.verdict(message, last)).await;
        if let Ok(Err(e)) = said {
            log::warning(&format!("task {id}: the acknowledgement is in doubt: {e}"));
        }
        log::info(&format!("task {id} ends: {status}"));
        self.link.event("task-finished", Some(id.as_str()), Some(status.to_string())).await;
    }

    async fn publish(&self, result: &TaskResult) {
        let mut trouble = String::new();
        while let Err(e) = self.link.result(result).await {
            if e != trouble {
                log::warning(&format!("publish the result of {}: {e}; trying again", result.task));
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

/// Fills in how the command ended.
fn describe(result: &mut TaskResult, outcome: Outcome, limit: Duration) {
    use std::os::unix::process::ExitStatusExt as _;
    result.output = String::from_utf8_lossy(&outcome.output).into_owned();
    result.truncated = outcome.truncated;
    match outcome.end {
        End::Exited(status) => {
            (result.exit, result.signal) = (status.code(), status.signal());
            if !status.success() {
                result.status = Status::Failed;
                result.reason = Some(match status.signal() {
                    Some(9) => "killed (signal 9): was its memory limit reached?".to_owned(),
                    Some(n) => format!("ended by signal {n}"),
                    None => format!("exit status {}", status.code().unwrap_or_default()),
                });
            }
        }
        End::TimedOut => {
            result.status = Status::Timeout;
            result.reason = Some(format!("killed after {} s", limit.as_secs()));
        }
        End::Stopped => {}
    }
}

/// Cuts the output to what fits into a message; the file has all of it.
fn shorten(result: &mut TaskResult) {
    if result.output.len() > OUTPUT_IN_MESSAGE {
        let mut cut = OUTPUT_IN_MESSAGE;
        while !result.output.is_char_boundary(cut) {
            cut -= 1;
        }
        result.output.truncate(cut);
        result.truncated = true;
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

    #[test]
    fn a_long_output_is_cut_between_characters() {
        let mut result: TaskResult = message::parse(br#"{"task":"t"}"#).unwrap();
        result.output = "漢".repeat(OUTPUT_IN_MESSAGE);
        shorten(&mut result);
        assert!(result.truncated && result.output.len() <= OUTPUT_IN_MESSAGE);
        assert!(message::encode(&result).is_ok());
    }
}
