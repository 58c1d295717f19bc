//! Writes what each agent says into `/shared/logs/<id>.log`, where the agent can read it and not
//! change it: the same lines of JSON that `flockctl logs --json` prints.
//!
//! The journal is the log; this is a copy of bounded size, in which no line is missing or stands
//! twice, whatever is killed, restarted or rotated when. See [`store`] for how.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::config::Config;
use crate::daemon::world::World;
use crate::host::tree;
use crate::host::users::Ledger;
use crate::journal::{Batch, Bell, Entry, JournalError, Place, newest, read_batch, this_boot};
use crate::names::{AgentId, STATE_DIR, shared_dir};
use crate::plan;
use crate::steps::lock::Lock;
use store::{Store, StoreError};

/// The files and how far they have come.
mod store;

/// Lines are written together at this interval: each time costs a wait for the disk.
const FLUSH_EVERY: Duration = Duration::from_millis(500);
/// What the bell passed over is found after this.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Between two tries.
const RETRY: Duration = Duration::from_secs(5);
/// The journal's files came or went while they were read.
const MOVED_RETRY: Duration = Duration::from_millis(50);
/// What an agent's log says when the journal was cut shorter than the log.
const GAP: &str = "the journal does not have the last line of this log any more; lines after it may \
                   be missing here";

/// Why copying stopped; it is tried again.
#[derive(Debug, thiserror::Error)]
enum MirrorError {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Runs for ever. Starts after `applied`, which makes the files.
pub async fn run(world: Arc<World>, mut applied: watch::Receiver<bool>) {
    // An error means that flockd ends.
    let _ = applied.wait_for(|done| *done).await;
    let mut config = world.config.subscribe();
    loop {
        let agents = Arc::clone(&config.borrow_and_update());
        let end = tokio::select! {
            end = copy(&agents) => end,
            // Other agents: read on from the same place, with other matches. What was under way is
            // as if flockd had been killed here.
            _ = config.changed() => Ok(()),
        };
        if let Err(error) = end {
            tracing::warn!("copy the agents' logs: {error}");
            sleep(RETRY).await;
        }
    }
}

/// Copies until something fails.
async fn copy(config: &Config) -> Result<(), MirrorError> {
    let mut store = open(config)?;
    let mut agents: Vec<AgentId> = config.agents.keys().cloned().collect();
    // One that is configured no more and runs on: its lines go on as long as its file is there.
    agents.extend(store.others(&agents));
    if agents.is_empty() {
        return std::future::pending().await;
    }
    // First, so that the bell misses nothing that comes later.
    let mut bell = Bell::open()?;
    for id in store.newcomers(&agents) {
        catch_up(&mut store, &id).await?;
    }
    // By now it listens; what came before does not ring.
    sleep(FLUSH_EVERY).await;
    copy_newest(&mut store, &agents).await?;
    bell = bell.begin().await?;
    copy_newest(&mut store, &agents).await?;
    loop {
        match timeout(LOOK_EVERY, bell.rung()).await {
            Ok(rung) => {
                sleep(FLUSH_EVERY).await;
                if let Some(until) = bell.latest().or(rung?) {
                    copy_until(&mut store, &agents, &until).await?;
                }
            }
            // To search the journal for each agent's newest line is dear, and most often in vain.
            Err(_) if bell.is_sure().await? => {}
            Err(_) => {
                if copy_newest(&mut store, &agents).await? {
                    // Deaf: systemd 252's journalctl hears nothing more once the files that it
                    // follows were taken away.
                    bell = Bell::open()?.begin().await?;
                    copy_newest(&mut store, &agents).await?;
                }
            }
        }
    }
}

/// Copies what there is. Whether there was anything new.
async fn copy_newest(store: &mut Store, agents: &[AgentId]) -> Result<bool, MirrorError> {
    let Some(until) = newest(agents).await?.filter(|until| !store.is_at(until)) else {
        return Ok(false);
    };
    copy_until(store, agents, &until).await?;
    Ok(true)
}

async fn copy_until(
    store: &mut Store,
    agents: &[AgentId],
    until: &Place,
) -> Result<(), MirrorError> {
    loop {
        let from = store.place();
        if store.is_at(until) {
            return Ok(());
        }
        // The entry to read on from has to be among those that are read, whoever wrote it.
        let mut read = agents.to_vec();
        read.extend(store.anchor().filter(|id| !agents.contains(id)));
        let batch = exactly(&read, from.as_ref(), until).await?;
        let more = batch.more;
        store_batch(store, agents, batch)?;
        if !more {
            return Ok(());
        }
    }
}

/// Reads a stretch, again if the journal's files changed.
async fn exactly(
    agents: &[AgentId],
    from: Option<&Place>,
    until: &Place,
) -> Result<Batch, JournalError> {
    loop {
        match read_batch(agents, from, until).await {
            Err(JournalError::Moved) => sleep(MOVED_RETRY).await,
            other => return other,
        }
    }
}

/// An agent that is new, while the others' logs have come a way already: what it wrote up to there.
async fn catch_up(store: &mut Store, id: &AgentId) -> Result<(), MirrorError> {
    let agents = std::slice::from_ref(id);
    store.begin(id)?;
    if let (Some(here), Some(until)) = (store.place(), newest(agents).await?) {
        let (boot, mut from) = (this_boot(), None::<Place>);
        loop {
            let mut batch = exactly(agents, from.as_ref(), &until).await?;
            from = batch.place.take().or(from);
            batch.written.retain(|written| {
                let place = Place::parse(&written.cursor);
                place.is_some_and(|place| !place.is_after(&here, &boot))
            });
            store.append(&lines(agents, &batch))?;
            if !batch.more {
                break;
            }
        }
    }
    Ok(store.save()?)
}

fn store_batch(store: &mut Store, agents: &[AgentId], batch: Batch) -> Result<(), StoreError> {
    let Some(last) = batch.written.last() else { return Ok(()) };
    let anchor = last.entry.agent.clone();
    if batch.gap {
        tracing::warn!("copy the agents' logs: {GAP}");
    }
    let lines = lines(agents, &batch);
    store.take(&lines, batch.place.as_ref(), &anchor)
}

/// The lines of a stretch, by agent.
fn lines(agents: &[AgentId], batch: &Batch) -> BTreeMap<AgentId, String> {
    let mut lines: BTreeMap<AgentId, String> = BTreeMap::new();
    let mut add = |entry: &Entry| {
        // Text always has a JSON form.
        if let (true, Ok(json)) = (agents.contains(&entry.agent), entry.json()) {
            let text = lines.entry(entry.agent.clone()).or_default();
            text.push_str(&json);
            text.push('\n');
        }
    };
    if batch.gap {
        let now = Timestamp::now();
        agents.iter().for_each(|id| add(&Entry::remark(id, now, GAP)));
    }
    let shown = batch.written.iter().filter(|written| !written.witness);
    shown.for_each(|written| add(&written.entry));
    lines
}

/// The store, with the right to make a file that somebody took away.
fn open(config: &Config) -> Result<Store, StoreError> {
    let config = config.clone();
    let make = move |id: &AgentId| {
        let text = |error: &dyn std::fmt::Display| std::io::Error::other(error.to_string());
        // The threads of the runtime must go on meanwhile: see `Lock::machine`.
        let lock = tokio::task::block_in_place(Lock::machine_here);
        let _lock = lock.map_err(|e| text(&e))?;
        let ledger = Ledger::load().map_err(|e| text(&e))?;
        let plan = plan::plan(&config, ledger.uids(), id);
        let plan = plan.ok_or(std::io::ErrorKind::NotFound)?;
        tree::ensure_log(&plan).map_err(|e| text(&e))
    };
    Store::open(&shared_dir().join("logs"), &Path::new(STATE_DIR).join("log.state"), Box::new(make))
}
