//! `flockctl launch` and `halt`: what `flock@<id>.service` runs. They work while flockd is down.

use std::io;
use std::path::Path;

use crate::audit::What;
use crate::cli::{Failure, audit, out};
use crate::config;
use crate::fail::{self, Point};
use crate::host::units::Systemd;
use crate::names::AgentId;
use crate::plan::{Plan, Property};
use crate::steps;
use crate::verify;

/// Starts one agent and measures its boundary.
///
/// # Errors
/// When the agent cannot be started safely; nothing of it runs then.
pub fn launch(id: &AgentId, file: &Path) -> Result<(), Failure> {
    out::need_root("launch an agent")?;
    let config = config::load(file).map_err(Failure::config)?;
    let gate = async |systemd: &Systemd, plan: &Plan, properties: &[Property]| {
        verify::before_ready(&config, systemd, plan, properties).await
    };
    let launched = out::wait(async {
        steps::launch::launch(&config, id, gate).await.map_err(Failure::failed)
    })?;
    let (number, word) = (launched.plan.level.number(), launched.plan.level.word());
    audit::note_unit(What::Launched, id, &format!("level {number}, {word}"));
    fail::at(Point::LaunchNoted);
    let said = |number, text: &str| {
        out::of_handle(id, io::stdout(), number, text).map_err(|error| out::unwritten(&error))
    };
    for warning in &launched.warnings {
        said(4, &format!("warning: {id}: {warning}"))?;
    }
    if !launched.measured.unenforced.is_empty() {
        let limits = launched.measured.unenforced.join(", ");
        said(4, &format!("warning: {id}: this host does not enforce its limits of {limits}"))?;
    }
    let what = if launched.adopted { "runs already" } else { "runs" };
    said(
        6,
        &format!(
            "{id} {what}: level {number}, {word}; its log: journalctl -u flock-agent@{id}, or \
             flockctl logs {id}"
        ),
    )
}

/// Stops one agent. With `broken_off`: only if what its handle ran before did not come to an end,
/// so that an agent whose launch was killed does not run on without having been measured.
///
/// # Errors
/// When it cannot be stopped, or had failed before: the handle shows `failed` then.
pub fn halt(id: &AgentId, broken_off: bool) -> Result<(), Failure> {
    out::need_root("halt an agent")?;
    if broken_off && came_to_an_end(std::env::var("SERVICE_RESULT").as_deref()) {
        return Ok(());
    }
    let halted = out::wait(async { steps::halt::halt(id).await.map_err(Failure::failed) });
    let detail = halted.as_ref().err().map(|failure| failure.message.as_str());
    audit::note_unit(What::Halted, id, detail.unwrap_or_default());
    fail::at(Point::HaltNoted);
    halted
}

/// A launch or halt that fails by itself has left nothing behind. See systemd.exec(5).
fn came_to_an_end(service_result: Result<&str, &std::env::VarError>) -> bool {
    matches!(service_result, Ok("success" | "exit-code"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_broken_off_is_cleared_away() {
        assert!(came_to_an_end(Ok("success")) && came_to_an_end(Ok("exit-code")));
        for result in ["signal", "timeout", "core-dump", "oom-kill", "resources", ""] {
            assert!(!came_to_an_end(Ok(result)), "{result}");
        }
        assert!(!came_to_an_end(Err(&std::env::VarError::NotPresent)));
    }
}
