//! Brings the machine to what the configuration says, at the start and on SIGHUP.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::config::{self, Config};
use crate::daemon::world::{Which, World};
use crate::daemon::{changes, notify};
use crate::status::health::Part;
use crate::steps::apply::apply;

/// A machine that could not be brought there is tried again after this.
const RETRY: Duration = Duration::from_secs(30);

/// Applies once, then on each request, and again while it fails. `first` is told after the first try.
pub async fn run(world: Arc<World>, mut reload: mpsc::Receiver<()>, first: watch::Sender<bool>) {
    changes::record(&world.file, &world.config()).await;
    let mut part = carry_out(&world, world.config()).await;
    applied(&world, &part);
    first.send_replace(true);
    loop {
        let pause = if part.ok { Duration::MAX } else { RETRY };
        world.report(Which::Config, part);
        part = match timeout(pause, reload.recv()).await {
            Ok(None) => return,
            Ok(Some(())) => reread(&world).await,
            Err(_) => carry_out(&world, world.config()).await,
        };
        applied(&world, &part);
    }
}

/// Who waits for an apply is told of each that went well.
fn applied(world: &World, part: &Part) {
    if part.ok {
        world.applies.send_modify(|count| *count += 1);
    }
}

/// Reads the files again. With a fault in them everything stays as it is.
async fn reread(world: &World) -> Part {
    notify::reloading();
    let part = match config::load(&world.file) {
        Err(faults) => {
            tracing::error!("{faults}");
            Part::broken(
                "the files have faults (flockctl check); what was read before stays in force",
            )
        }
        Ok(config) => {
            let config = Arc::new(config);
            changes::record(&world.file, &config).await;
            carry_out(world, config).await
        }
    };
    notify::ready(world);
    part
}

/// Applies a configuration, and has it in force from then on, whether or not that went well.
async fn carry_out(world: &World, config: Arc<Config>) -> Part {
    let (part, newer) = apply_it(Arc::clone(&config)).await;
    if let Some(newer) = &newer {
        changes::record(&world.file, newer).await;
    }
    let config = newer.map_or(config, Arc::new);
    if !Arc::ptr_eq(&config, &world.config()) {
        world.config.send_replace(config);
    }
    part
}

/// `apply` waits for a lock and for programs, so it has a thread of its own. Gives what was applied, if
/// the files said something else by then.
async fn apply_it(config: Arc<Config>) -> (Part, Option<Config>) {
    let runtime = Handle::current();
    match spawn_blocking(move || runtime.block_on(apply(&config))).await {
        Ok(Ok(applied)) => {
            for line in &applied.changes {
                tracing::info!("apply: {line}");
            }
            for line in &applied.warnings {
                tracing::warn!("apply: {line}");
            }
            let note = (!applied.warnings.is_empty()).then(|| applied.warnings.join("; "));
            (Part { ok: true, note }, applied.newer)
        }
        Ok(Err(error)) => (Part::broken(error), None),
        Err(error) => (Part::broken(format!("apply: {error}")), None),
    }
}
