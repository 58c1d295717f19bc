//! Keeps the history within what is configured: forgets what ended long ago.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{MissedTickBehavior, interval};

use crate::daemon::world::World;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(600);

/// Runs for ever; looks at once, also without a bus.
pub async fn run(world: Arc<World>) {
    let mut looks = interval(EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        look(&world).await;
    }
}

async fn look(world: &World) {
    let wanted = world.config().history.clone();
    let (now, most) = (Timestamp::now(), wanted.max_size);
    match world.ledger.write(move |store| store.prune(now, wanted.keep, most)).await {
        Ok(pruned) => {
            if pruned.records > 0 {
                tracing::info!("{} ended tasks are forgotten, as configured", pruned.records);
            }
            // What has not ended stays, whatever its size.
            if pruned.bytes > most {
                tracing::warn!(
                    "the history has {} bytes; [history] max-size is {most}",
                    pruned.bytes
                );
            }
        }
        Err(error) => tracing::warn!("{error}"),
    }
}
