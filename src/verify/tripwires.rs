//! Processes to be attacked, one for each user.

use std::fs;
use std::io;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};

use crate::names::LIB_DIR;
use crate::probe::tripwire::SIGNALS;

/// Starts one and waits until it is ready. It ends with its standard input, so with us.
pub(super) async fn start(uid: u32, secret: &str) -> io::Result<Child> {
    let mut child = Command::new(format!("{LIB_DIR}/flock-probe"))
        .arg("tripwire")
        .env_clear()
        .env("FLOCK_CANARY", secret.trim())
        .current_dir("/")
        .uid(uid)
        .gid(uid)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut ready = [0u8; 6];
    let out = child.stdout.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
    tokio::time::timeout(Duration::from_secs(10), out.read_exact(&mut ready)).await??;
    Ok(child)
}

/// Whether a signal of the agents' waits for it.
pub(super) fn was_signalled(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name| status.lines().find_map(|line| line.strip_prefix(name));
    let pending = |name| field(name).and_then(|t| u64::from_str_radix(t.trim(), 16).ok());
    let both = pending("ShdPnd:").unwrap_or(0) | pending("SigPnd:").unwrap_or(0);
    both & (1 << (SIGNALS[0] as i32 - 1)) != 0
}
