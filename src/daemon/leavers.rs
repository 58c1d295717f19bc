//! Takes away what the bus keeps for agents that are configured no more, when none of their tasks is
//! open. Without this the server would hold their streams for ever.

use std::convert::Infallible;
use std::time::Duration;

use tokio::time::timeout;

use crate::bus::hub::{self, Hub};
use crate::daemon::ledger::Closed;
use crate::daemon::world::World;
use crate::history::{Filter, State};
use crate::names::AgentId;
use crate::steps::lock::{Lock, LockError};

/// Between two looks at one whose tasks are still open.
const AGAIN: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Hub(#[from] hub::Error),
    #[error(transparent)]
    History(#[from] Closed),
    #[error(transparent)]
    Lock(#[from] LockError),
}

/// Runs for ever: looks when the configuration has changed, and again while somebody is left.
pub async fn run(world: &World, hub: &Hub) -> Infallible {
    let mut config = world.config.subscribe();
    loop {
        let wait = match look(world, hub).await {
            Ok(true) => Duration::MAX,
            Ok(false) => AGAIN,
            Err(fault) => {
                tracing::debug!("look at agents that are configured no more: {fault}");
                AGAIN
            }
        };
        let _ = timeout(wait, config.changed()).await;
    }
}

/// `true`: nobody is left.
async fn look(world: &World, hub: &Hub) -> Result<bool, Fault> {
    let config = world.config();
    let mut done = true;
    for id in hub.agents().await? {
        if !config.agents.contains_key(&id) {
            done &= leave(world, hub, &id).await?;
        }
    }
    Ok(done)
}

/// `true`: the bus keeps nothing for this agent any more, or the agent is back.
async fn leave(world: &World, hub: &Hub, id: &AgentId) -> Result<bool, Fault> {
    // Nobody can make it again meanwhile, and be handed a task that would go with its stream.
    let _lock = Lock::machine().await?;
    let config = world.config();
    if config.newer().as_ref().unwrap_or(&config).agents.contains_key(id) {
        return Ok(true);
    }
    if !hub.is_told(id).await? {
        return Ok(false);
    }
    let open = Filter {
        agent: Some(id.clone()),
        states: vec![State::Queued, State::Running],
        limit: Some(1),
        ..Filter::default()
    };
    if !world.ledger.read(move |reader| reader.list(&open)).await?.is_empty() {
        return Ok(false);
    }
    hub.forget(id).await?;
    tracing::info!("{id} is not configured any more: the bus keeps nothing for it");
    Ok(true)
}
