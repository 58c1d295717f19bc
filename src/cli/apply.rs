//! `flockctl apply`: makes the machine as configured. `flockctl net-load`: the egress table alone.

use std::path::Path;

use crate::audit::What;
use crate::cli::{Failure, audit, out};
use crate::config::{self, Config};
use crate::host::quota;
use crate::host::users::Ledger;
use crate::steps;
use crate::steps::apply::Applied;

/// Makes what is configured and says what it changed.
///
/// # Errors
/// At the first part that cannot be made.
pub fn run(file: &Path) -> Result<(), Failure> {
    out::need_root("apply the configuration")?;
    let config = config::load(file).map_err(Failure::config)?;
    audit::note(What::Apply, &file.display().to_string(), "");
    tell(&config, &make(&config)?)
}

/// Makes what is configured; says nothing.
///
/// # Errors
/// At the first part that cannot be made.
pub fn make(config: &Config) -> Result<Applied, Failure> {
    out::wait(async { steps::apply::apply_and_tell(config).await.map_err(Failure::failed) })
}

/// Says what was changed.
///
/// # Errors
/// When it cannot be said.
pub fn tell(config: &Config, done: &Applied) -> Result<(), Failure> {
    for line in &done.changes {
        out::line(line)?;
    }
    for line in &done.warnings {
        out::warning(line)?;
    }
    let config = done.newer.as_ref().unwrap_or(config);
    match (done.changes.is_empty(), config.agents.len()) {
        (true, agents) => out::line(&format!("nothing to change: {agents} agents are prepared")),
        (false, agents) => out::line(&format!("{agents} agents are prepared")),
    }
}

/// Takes the quotas of all users away that agents ever had; run when the package is removed.
///
/// # Errors
/// When not run by root, or the kernel refuses.
pub fn quota_release() -> Result<(), Failure> {
    out::need_root("take quotas away")?;
    let ledger = Ledger::load().map_err(Failure::failed)?;
    quota::release(ledger.uids()).map_err(Failure::failed)
}

/// Loads the egress table; run at boot, before the network.
///
/// # Errors
/// When the configuration is not valid or the kernel does not take the table.
pub fn net_load(file: &Path) -> Result<(), Failure> {
    out::need_root("load the egress table")?;
    let config = config::load(file);
    // Without a valid configuration no agent starts, but one that runs keeps its fence.
    let load = steps::fence::load(config.as_ref().ok());
    out::wait(async { load.await.map_err(Failure::failed) })?;
    config.map(|_| ()).map_err(|faults| {
        Failure::config(format!("the egress table is loaded as it was before; {faults}"))
    })
}
