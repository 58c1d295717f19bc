//! What flockd tells PID 1: ready, one line of status, and that its loops turn.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use crate::daemon::world::World;
use crate::text::printable;

/// How often the status line is brought up to date.
const TICK: Duration = Duration::from_secs(10);

/// Sends to PID 1; where none listens it does nothing.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!("notify systemd: {error}");
    }
}

/// The first reconcile is done, or a reload is.
pub fn ready(world: &World) {
    tell(&[NotifyState::Ready, NotifyState::Status(&printable(&world.line()))]);
}

/// The configuration is read again. [`ready`] ends this.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!("read the monotonic clock: {error}"),
    }
}

/// flockd ends; the agents do not.
pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping; the agents run on")]);
}

/// Answers the watchdog as long as every loop turns, and keeps the status line fresh.
pub async fn run(world: Arc<World>) {
    let watchdog = sd_notify::watchdog_enabled();
    let pause = watchdog.map_or(TICK, |span| (span / 3).min(TICK));
    let mut said = String::new();
    loop {
        tokio::time::sleep(pause).await;
        let stuck = world.pulses.stuck(Instant::now());
        match stuck.is_empty() {
            true => tell(&[NotifyState::Watchdog]),
            // Silence is the message: PID 1 ends this process and starts another.
            false => tracing::error!("these loops are stuck: {}", stuck.join(", ")),
        }
        let line = printable(&world.line());
        if line != said {
            tell(&[NotifyState::Status(&line)]);
            said = line;
        }
    }
}
