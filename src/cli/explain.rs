//! `flockctl explain`: what one agent can and cannot reach.

use std::path::Path;

use crate::cli::{Failure, out, plan};
use crate::config;
use crate::names::AgentId;
use crate::plan::explain;

/// Explains the plan of an agent.
///
/// # Errors
/// When the configuration is not valid, or the agent is not configured.
pub fn run(id: &AgentId, file: &Path) -> Result<(), Failure> {
    let config = config::load(file).map_err(Failure::config)?;
    let (plan, provisional) = plan::of(&config, id)?;
    out::bytes(explain(&plan).as_bytes())?;
    if provisional {
        out::line(&format!(
            "\n{id} has not been applied yet: uid {} is the one it would get now (flockctl apply).",
            plan.user.uid
        ))?;
    }
    Ok(())
}
