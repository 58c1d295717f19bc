//! `flockctl apply`: makes the machine as configured. `flockctl net-load`: the egress table alone.

use std::path::Path;

use crate::audit::What;
use crate::cli::{Failure, audit, out};
use crate::config;
use crate::steps;

/// Makes what is configured and says what it changed.
///
/// # Errors
/// At the first part that cannot be made.
pub fn run(file: &Path) -> Result<(), Failure> {
    out::need_root("apply the configuration")?;
    let config = config::load(file).map_err(Failure::config)?;
    audit::note(What::Apply, &file.display().to_string(), "");
    let done =
        out::wait(async { steps::apply::apply_and_tell(&config).await.map_err(Failure::failed) })?;
    for line in &done.changes {
        out::line(line)?;
    }
    for line in &done.warnings {
        out::warning(line)?;
    }
    match (done.changes.is_empty(), config.agents.len()) {
        (true, agents) => out::line(&format!("nothing to change: {agents} agents are prepared")),
        (false, agents) => out::line(&format!("{agents} agents are prepared")),
    }
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
