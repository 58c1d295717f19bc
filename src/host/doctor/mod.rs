//! What flock needs of this host, looked at piece by piece. Nothing is changed.
//!
//! Each finding says what was found; what is not well says what to do. A check that cannot be made
//! (for want of root, or because an earlier one failed) is a warning and never silently "ok".

/// Numbers of users and groups that are somebody else's.
mod ids;
/// What the kernel offers.
mod kernel;
/// Who listens where.
mod ports;
/// The file system under the state directory.
mod storage;
/// PID 1 and what guards agents from its helpers.
mod systemd;

use serde::Serialize;

use crate::config::Config;
use crate::names::UidBlock;

/// How a thing stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As flock needs it.
    Ok,
    /// Agents run, but somebody should look at it.
    Warn,
    /// Agents do not start, or not safely.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How it stands.
    pub verdict: Verdict,
    /// What was looked at.
    pub subject: &'static str,
    /// What was found.
    pub found: String,
    /// What to do, unless it is well.
    pub remedy: Option<String>,
}

impl Finding {
    /// As flock needs it.
    pub fn ok(subject: &'static str, found: impl Into<String>) -> Self {
        Self { verdict: Verdict::Ok, subject, found: found.into(), remedy: None }
    }

    /// Somebody should look at it.
    pub fn warn(
        subject: &'static str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let remedy = Some(remedy.into());
        Self { verdict: Verdict::Warn, subject, found: found.into(), remedy }
    }

    /// Agents do not start, or not safely.
    pub fn fail(
        subject: &'static str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { verdict: Verdict::Fail, ..Self::warn(subject, found, remedy) }
    }

    /// Only root can look.
    #[must_use]
    pub fn needs_root(subject: &'static str) -> Self {
        Self::warn(subject, "only root can look at it", "sudo flockctl doctor")
    }
}

/// Looks at everything that does not depend on the bus or the configuration's agents.
#[must_use]
pub fn examine(block: UidBlock, allow_unenforced_limits: bool) -> Vec<Finding> {
    let mut all = systemd::manager();
    all.extend(kernel::cgroups(allow_unenforced_limits));
    all.extend(kernel::features());
    all.push(storage::state());
    all.extend(ids::groups());
    all.push(ids::block(block));
    all.extend(systemd::guards());
    all.push(ports::foreign_bus());
    all.push(systemd::clock());
    all.push(kernel::levels());
    all
}

/// Whether the limits on disk that agents of this configuration have can be held.
#[must_use]
pub fn quotas(config: &Config) -> Finding {
    storage::quotas(config)
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
