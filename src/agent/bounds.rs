//! What ends a task that does not end by itself: its time, its deadline, a cancel, the agent's stop.

use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::sleep;

/// Why a task was cut short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// It had run as long as a task of this agent may.
    TimedOut(Duration),
    /// The deadline that its sender gave it has passed.
    Expired,
    /// Somebody cancelled it.
    Cancelled,
    /// The agent has to stop.
    Stopped,
}

/// The bounds of one run.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// How long it may run.
    limit: Duration,
    /// What it means when that time is over.
    over: Cut,
    cancel: watch::Receiver<bool>,
    stop: watch::Receiver<bool>,
}

impl Bounds {
    /// The bounds of a run that begins now: `timeout` or the `deadline`, whichever comes first.
    #[must_use]
    pub fn new(
        timeout: Duration,
        deadline: Option<Timestamp>,
        cancel: watch::Receiver<bool>,
        stop: watch::Receiver<bool>,
    ) -> Self {
        let left = deadline.map(|deadline| {
            // A deadline that has passed leaves no time.
            Duration::try_from(deadline.duration_since(Timestamp::now())).unwrap_or_default()
        });
        let (limit, over) = match left {
            Some(left) if left < timeout => (left, Cut::Expired),
            _ => (timeout, Cut::TimedOut(timeout)),
        };
        Self { limit, over, cancel, stop }
    }

    /// How long the run may take.
    #[must_use]
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// Whether and when the agent has to stop.
    #[must_use]
    pub fn stop(&self) -> watch::Receiver<bool> {
        self.stop.clone()
    }

    /// Returns when one of them is reached.
    pub async fn reached(&mut self) -> Cut {
        tokio::select! {
            () = sleep(self.limit) => self.over,
            () = said(&mut self.cancel) => Cut::Cancelled,
            () = said(&mut self.stop) => Cut::Stopped,
        }
    }
}

/// Returns when somebody has said so, and never if nobody can any more.
pub async fn said(word: &mut watch::Receiver<bool>) {
    if word.wait_for(|said| *said).await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_bound_counts() {
        let (cancel, cancelled) = watch::channel(false);
        let (stop, stopped) = watch::channel(false);
        let of = |timeout: u64, deadline: Option<i64>| {
            let deadline = deadline.map(|ms| {
                Timestamp::now().checked_add(jiff::SignedDuration::from_millis(ms)).unwrap()
            });
            Bounds::new(
                Duration::from_millis(timeout),
                deadline,
                cancelled.clone(),
                stopped.clone(),
            )
        };
        assert_eq!(of(20, Some(9000)).reached().await, Cut::TimedOut(Duration::from_millis(20)));
        assert_eq!(of(9000, Some(20)).reached().await, Cut::Expired);
        assert_eq!(of(9000, Some(-5)).reached().await, Cut::Expired);
        cancel.send(true).unwrap();
        assert_eq!(of(9000, None).reached().await, Cut::Cancelled);
        cancel.send(false).unwrap();
        stop.send(true).unwrap();
        assert_eq!(of(9000, None).reached().await, Cut::Stopped);
    }
}
