//! One at a time: a lock is a held file descriptor, so it ends with its process.

use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::names::{AgentId, RUN_DIR};

/// A lock that is held until it is dropped.
pub struct Lock(#[expect(dead_code, reason = "held, never read")] Flock<File>);

/// Why a lock could not be had.
#[derive(Debug, thiserror::Error)]
#[error("lock {}: {cause}: flock writes it as root, see that /run has room", path.display())]
pub struct LockError {
    path: PathBuf,
    cause: std::io::Error,
}

impl Lock {
    /// Waits for the one that changes this agent's unit.
    ///
    /// # Errors
    /// When the lock file cannot be made.
    pub fn agent(id: &AgentId) -> Result<Self, LockError> {
        Self::take(&format!("agent-{id}"))
    }

    /// Waits for the one that changes users, tree, identities or the egress table. Whoever holds it
    /// must not wait for a job of PID 1: jobs wait for `halt`, and `halt` for this lock.
    ///
    /// It waits on a thread of its own. The holder can be in the same process, and what it waits for
    /// come in by a thread of the runtime: one that slept here would never let it.
    ///
    /// # Errors
    /// When the lock file cannot be made.
    pub async fn machine() -> Result<Self, LockError> {
        let taken = tokio::task::spawn_blocking(Self::machine_here).await;
        taken.unwrap_or_else(|ended| Err(LockError { path: place("machine"), cause: ended.into() }))
    }

    /// [`Lock::machine`], for a thread that no other work waits for.
    ///
    /// # Errors
    /// When the lock file cannot be made.
    pub fn machine_here() -> Result<Self, LockError> {
        Self::take("machine")
    }

    /// Waits for the one that asks whether this host enforces what units say.
    ///
    /// # Errors
    /// When the lock file cannot be made.
    pub fn host_check() -> Result<Self, LockError> {
        Self::take("host-check")
    }

    /// Waits for the one that adds or removes files of the configuration.
    ///
    /// # Errors
    /// When the lock file cannot be made.
    pub fn config() -> Result<Self, LockError> {
        Self::take("config")
    }

    /// Waits for the one that measures the agents.
    ///
    /// # Errors
    /// When the lock file cannot be made.
    pub fn verify() -> Result<Self, LockError> {
        Self::take("verify")
    }

    fn take(name: &str) -> Result<Self, LockError> {
        let path = place(name);
        let lock = || {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(RUN_DIR)?;
            let dir = Path::new(RUN_DIR).join("locks");
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
            let file = File::options().create(true).append(true).mode(0o600).open(&path)?;
            Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno.into())
        };
        lock().map(Self).map_err(|cause| LockError { path: path.clone(), cause })
    }
}

fn place(name: &str) -> PathBuf {
    Path::new(RUN_DIR).join("locks").join(name)
}
