//! Calls to PID 1 that are repeated when PID 1 went away in the middle of them, or the bus is full.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// How long PID 1 may be off the bus: `systemctl daemon-reexec` (an upgrade of systemd does it too)
/// takes seconds on a host with a thousand units.
const AWAY: Duration = Duration::from_secs(30);
/// The bus has room for 256 connections of one user: when more agents than that start or stop at once
/// (at boot, at shutdown), each launch and halt is root's, and some wait for others to end.
const FULL: Duration = Duration::from_secs(90);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(100);

/// Makes a call, and makes it again while PID 1 is off the bus: it drops its connection when it
/// executes itself anew, and every call on its way ends without an answer. And while the bus has no
/// room. Only for calls that may be made twice.
pub(super) async fn again<T, F>(mut call: impl FnMut() -> F) -> zbus::Result<T>
where
    F: Future<Output = zbus::Result<T>>,
{
    let begun = Instant::now();
    loop {
        match call().await {
            Err(error) if begun.elapsed() < patience(&error) => sleep(PAUSE).await,
            other => return other,
        }
    }
}

/// How long a call is made again after this error.
fn patience(error: &zbus::Error) -> Duration {
    use zbus::fdo::Error::{LimitsExceeded, NameHasNoOwner, NoReply, ServiceUnknown};
    let zbus::Error::FDO(error) = error else { return Duration::ZERO };
    match **error {
        // The broker says that there is nobody who could answer.
        NoReply(_) | ServiceUnknown(_) | NameHasNoOwner(_) => AWAY,
        LimitsExceeded(_) => FULL,
        _ => Duration::ZERO,
    }
}
