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
    let mut part = carry_out(world.config()).await;
    first.send_replace(true);
    loop {
        let pause = if part.ok { Duration::MAX } else { RETRY };
        world.report(Which::Config, part);
        part = match timeout(pause, reload.recv()).await {
            Ok(None) => return,
            Ok(Some(())) => reread(&world).await,
            Err(_) => carry_out(world.config()).await,
        };
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
            let part = carry_out(Arc::clone(&config)).await;
            world.config.send_replace(config);
            part
        }
    };
    notify::ready(world);
    part
}

/// `apply` waits for a lock and for programs, so it has a thread of its own.
async fn carry_out(config: Arc<Config>) -> Part {
    let runtime = Handle::current();
    match spawn_blocking(move || runtime.block_on(apply(&config))).await {
        Ok(Ok(applied)) => {
            for line in &applied.changes {
                tracing::info!("apply: {line}");
            }
            for line in &applied.warnings {
                tracing::warn!("apply: {line}");
            }
            Part {
                ok: true,
                note: (!applied.warnings.is_empty()).then(|| applied.warnings.join("; ")),
            }
        }
        Ok(Err(error)) => Part::broken(error),
        Err(error) => Part::broken(format!("apply: {error}")),
    }
}
