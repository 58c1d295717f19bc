//! A process to be attacked: it has a secret in its environment, and keeps a signal pending.

use std::io::{Read as _, Write as _};

use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};

/// The signals that are sent to it: by agents, and by the control. Blocked, they stay to be seen in
/// its /proc/PID/status.
pub const SIGNALS: [Signal; 2] = [Signal::SIGUSR1, Signal::SIGUSR2];

/// Says that it is ready, then waits until standard input ends.
///
/// # Errors
/// When it cannot make itself a fair target.
pub(super) fn wait() -> Result<(), String> {
    let mut mask = SigSet::empty();
    SIGNALS.into_iter().for_each(|signal| mask.add(signal));
    mask.thread_block().map_err(|error| format!("block a signal: {error}"))?;
    // As open as any program: its own file cannot be read, which would protect it too well.
    prctl::set_dumpable(true).map_err(|error| format!("become dumpable: {error}"))?;
    let mut out = std::io::stdout();
    out.write_all(b"ready\n").and_then(|()| out.flush()).map_err(|e| format!("say ready: {e}"))?;
    let mut rest = Vec::new();
    std::io::stdin().read_to_end(&mut rest).map(drop).map_err(|e| format!("wait: {e}"))
}
