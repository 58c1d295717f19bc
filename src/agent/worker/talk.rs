//! What the agent says and hears besides tasks: heartbeats, broadcasts, cancels.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::time::{MissedTickBehavior, interval};

use super::Worker;
use crate::agent::log;
use crate::bus::message::{self, TaskId};

/// Between two heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// Says every now and then that the agent lives, and what it does.
pub(super) async fn heartbeats(worker: Arc<Worker>) {
    let mut ticks = interval(HEARTBEAT);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut connects = worker.link.connects();
    loop {
        tokio::select! { _ = ticks.tick() => {}, Ok(()) = connects.changed() => {} }
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

/// Cancels tasks when flock says so.
pub(super) async fn control(worker: Arc<Worker>) {
    let mut words = match worker.link.control().await {
        Ok(words) => words,
        Err(e) => return log::error(&format!("listen for cancels: {e}")),
    };
    while let Some(message) = words.next().await {
        match cancelled(&message.payload) {
            Ok(task) => {
                log::info(&format!("task {task}: cancelled by the operator"));
                worker.register.cancel(&task);
            }
            Err(e) => log::warning(&format!("a control message is not understood: {e}")),
        }
    }
}

/// The task that `{"cancel": "<task>"}` names.
fn cancelled(payload: &[u8]) -> Result<TaskId, message::BadMessage> {
    #[derive(serde::Deserialize)]
    struct Control {
        cancel: TaskId,
    }
    message::parse::<Control>(payload).map(|control| control.cancel)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cancel_names_a_task() {
        assert_eq!(cancelled(br#"{"cancel":"t-1"}"#), Ok(TaskId::parse("t-1").unwrap()));
        for bad in [&b"{}"[..], b"", b"[]", br#"{"cancel":"../x"}"#, br#"{"cancel":7}"#] {
            assert!(cancelled(bad).is_err());
        }
    }
}
