//! `flockctl launch` and `halt`: what `flock@<id>.service` runs. They work while flockd is down.

use std::path::Path;

use crate::audit::What;
use crate::cli::{Failure, audit, out};
use crate::config;
use crate::names::AgentId;
use crate::steps;

/// Starts one agent and measures its boundary.
///
/// # Errors
/// When the agent cannot be started safely; nothing of it runs then.
pub fn launch(id: &AgentId, file: &Path) -> Result<(), Failure> {
    out::need_root("launch an agent")?;
    let config = config::load(file).map_err(Failure::config)?;
    let launched =
        out::wait(async { steps::launch::launch(&config, id).await.map_err(Failure::failed) })?;
    let (number, word) = (launched.plan.level.number(), launched.plan.level.word());
    audit::note_unit(What::Launched, id, &format!("level {number}, {word}"));
    for warning in &launched.warnings {
        out::warning(&format!("{id}: {warning}"))?;
    }
    if !launched.measured.unenforced.is_empty() {
        let limits = launched.measured.unenforced.join(", ");
        out::warning(&format!("{id}: this host does not enforce its limits of {limits}"))?;
    }
    let what = if launched.adopted { "runs already" } else { "runs" };
    out::line(&format!(
        "{id} {what}: level {}, {}; its log: journalctl -u flock-agent@{id}, or flockctl logs {id}",
        launched.plan.level.number(),
        launched.plan.level.word()
    ))
}

/// Stops one agent.
///
/// # Errors
/// When it cannot be stopped, or had failed before: the handle shows `failed` then.
pub fn halt(id: &AgentId) -> Result<(), Failure> {
    out::need_root("halt an agent")?;
    let halted = out::wait(async { steps::halt::halt(id).await.map_err(Failure::failed) });
    let detail = halted.as_ref().err().map(|failure| failure.message.as_str());
    audit::note_unit(What::Halted, id, detail.unwrap_or_default());
    halted
}
