//! What the agent says and hears besides tasks: heartbeats, broadcasts, cancels.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Subscriber;
use futures_util::StreamExt as _;
use tokio::time::{MissedTickBehavior, interval};

use super::Worker;
use crate::agent::log;
use crate::bus::message::{self, Control};

/// Between two heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// Says every now and then that the agent lives, and what it does.
pub(super) async fn heartbeats(worker: Arc<Worker>) {
    let mut ticks = interval(HEARTBEAT);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut connects = worker.link.connects();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            Ok(()) = connects.changed() => {}
            () = worker.beat.notified() => {}
        }
        let running = worker.register.running().into_iter().map(String::from).collect();
        worker.link.heartbeat(running, worker.settings.parallel).await;
    }
}

/// Makes an event of what the operator says to all.
pub(super) async fn broadcasts(worker: Arc<Worker>) {
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

/// Cancels tasks and sends heartbeats when flock says so.
pub(super) async fn control(worker: Arc<Worker>, mut words: Subscriber) {
    while let Some(message) = words.next().await {
        match message::parse::<Control>(&message.payload) {
            Ok(Control::Cancel(task)) => {
                log::info(&format!("task {task}: cancelled by the operator"));
                worker.register.cancel(&task);
            }
            Ok(Control::Heartbeat) => worker.beat.notify_one(),
            Err(e) => log::warning(&format!("a control message is not understood: {e}")),
        }
    }
}
