//! flockd's hand on the history: one writer, readers beside it, never on the runtime's own threads.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use crate::bus::message::{Status, TaskId, TaskResult};
use crate::bus::queue::{Book, Known};
use crate::history::{
    Condition, Error, Fact, Patience, Reader, Record, Slot, State, Store, Verdict,
};

/// Claims that wait to be written down. More are left out: they only say that a task has begun.
const CLAIMS_MAX: usize = 4096;

/// The history. Cheap to clone.
#[derive(Clone)]
pub struct Ledger {
    path: Arc<PathBuf>,
    store: Arc<Mutex<Option<Store>>>,
    writes: watch::Sender<u64>,
}

/// Why the history does not answer.
#[derive(Debug, thiserror::Error)]
pub enum Closed {
    /// The database.
    #[error(transparent)]
    Database(#[from] Error),
    /// flockd ends.
    #[error("read the history: flockd ends")]
    Ends,
}

impl Ledger {
    /// Nothing is opened yet.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path: Arc::new(path), store: Arc::default(), writes: watch::Sender::default() }
    }

    /// Takes facts, all or none; opens the history first, and after an error anew. When this
    /// returns, they are on the disk.
    ///
    /// # Errors
    /// When the history cannot be opened or written.
    pub async fn apply(
        &self,
        facts: Vec<Fact>,
        patience: Patience,
    ) -> Result<Vec<Verdict>, Closed> {
        self.write(move |store| store.apply(&facts, patience)).await
    }

    /// Does something with the store; opens it first, and after an error anew.
    ///
    /// # Errors
    /// When it cannot be opened, or what is done says so.
    pub async fn write<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Store) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Closed> {
        let ledger = self.clone();
        let work = move || {
            let mut store = ledger.store.lock().unwrap_or_else(PoisonError::into_inner);
            let mut open = match store.take() {
                Some(open) => open,
                None => ledger.open()?,
            };
            let done = act(&mut open);
            ledger.writes.send_modify(|writes| *writes += 1);
            let done = done?;
            *store = Some(open);
            Ok(done)
        };
        spawn_blocking(work).await.unwrap_or(Err(Closed::Ends))
    }

    /// How often it was written to. As long as this is the same, so is what is read.
    #[must_use]
    pub fn writes(&self) -> u64 {
        *self.writes.borrow()
    }

    /// The same, and each time that it is written to.
    #[must_use]
    pub fn written(&self) -> watch::Receiver<u64> {
        self.writes.subscribe()
    }

    fn open(&self) -> Result<Store, Error> {
        let (store, condition) = Store::open(&self.path)?;
        if let Condition::Damaged { aside, cause } = condition {
            tracing::error!(
                "the history was damaged ({cause}) and lies at {}; a new one was begun",
                aside.display()
            );
        }
        Ok(store)
    }

    /// Reads, beside the writer.
    ///
    /// # Errors
    /// When there is no history yet, or it cannot be read.
    pub async fn read<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Reader) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Closed> {
        let path = Arc::clone(&self.path);
        let work = move || Ok(look(&Reader::open(&path)?)?);
        spawn_blocking(work).await.unwrap_or(Err(Closed::Ends))
    }

    /// One decision of flockd. `false` when the task had ended before, or is not known.
    ///
    /// # Errors
    /// When the history cannot be written.
    pub async fn end(
        &self,
        task: &TaskId,
        slot: &Slot,
        state: State,
        reason: &str,
    ) -> Result<bool, Closed> {
        let (task, slot, at) = (task.clone(), slot.clone(), Timestamp::now());
        let fact = Fact::Ended { task, slot, state, reason: reason.to_owned(), at };
        let verdicts = self.apply(vec![fact], Patience::Over).await?;
        Ok(verdicts == [Verdict::Accepted])
    }

    /// How a task ended, for whoever waits for it; empty while it has not.
    pub async fn results(&self, task: TaskId) -> Vec<(String, TaskResult)> {
        let records = self.read(move |reader| reader.show(&task)).await.unwrap_or_default();
        let ended = records.into_iter().filter(|record| record.state.is_final());
        ended.map(|record| (record.slot.to_string(), result(record))).collect()
    }
}

/// A record as the result that it was made of.
#[must_use]
pub fn result(record: Record) -> TaskResult {
    let status = match record.state {
        State::Done => Status::Done,
        State::Expired => Status::Expired,
        State::Cancelled => Status::Cancelled,
        State::Failed | State::Queued | State::Running => Status::Failed,
    };
    let agent = record.agent.map_or_else(|| record.slot.to_string(), |id| id.to_string());
    TaskResult {
        exit: record.exit,
        signal: record.signal,
        reason: record.reason,
        attempt: Some(record.attempt),
        started: record.started,
        finished: record.finished,
        output: record.output.unwrap_or_default(),
        truncated: record.truncated,
        result_path: record.result_path,
        usage: record.usage,
        ..TaskResult::decided(&record.task, agent, status, "")
    }
}

impl Book for Ledger {
    fn known(&self, task: TaskId) -> BoxFuture<'static, Option<Known>> {
        let ledger = self.clone();
        async move {
            let records = ledger.read(move |reader| reader.show(&task)).await.ok()?;
            let record = records.into_iter().find(|record| record.slot == Slot::Any)?;
            Some(Known { ended: record.state.is_final(), attempts: record.attempt })
        }
        .boxed()
    }

    fn back(&self, task: TaskId, attempt: u64, why: String) -> BoxFuture<'static, Option<u64>> {
        let ledger = self.clone();
        async move {
            // An agent that began anew by itself has counted on.
            let known = ledger.known(task.clone()).await;
            let attempt = known.map_or(attempt, |known| known.attempts.max(attempt));
            let at = Timestamp::now();
            let fact = Fact::Back { task: task.clone(), attempt, reason: why, at };
            match ledger.apply(vec![fact], Patience::Over).await {
                Ok(_) if ledger.known(task).await.is_some_and(|known| known.ended) => None,
                // Without a history the task goes on all the same.
                Ok(_) | Err(_) => Some(attempt),
            }
        }
        .boxed()
    }

    fn given_up(&self, task: TaskId, why: String) -> BoxFuture<'static, ()> {
        let ledger = self.clone();
        async move {
            if let Err(error) = ledger.end(&task, &Slot::Any, State::Failed, &why).await {
                tracing::warn!("write down that task {task} was given up: {error}");
            }
        }
        .boxed()
    }
}

/// What agents say of their tasks, on its way to the history.
pub struct Claims {
    sender: tokio::sync::mpsc::Sender<Fact>,
    /// The history's loop holds it while it reads.
    pub receiver: tokio::sync::Mutex<tokio::sync::mpsc::Receiver<Fact>>,
}

impl Default for Claims {
    fn default() -> Self {
        let (sender, receiver) = tokio::sync::mpsc::channel(CLAIMS_MAX);
        Self { sender, receiver: tokio::sync::Mutex::new(receiver) }
    }
}

impl Claims {
    /// One more, if there is room.
    pub fn push(&self, fact: Fact) {
        let _ = self.sender.try_send(fact);
    }
}
