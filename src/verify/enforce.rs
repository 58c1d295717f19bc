//! What follows from a measurement: a record for `status`, an alert, and what the configuration wants
//! done to an agent whose boundary does not hold.

use std::collections::BTreeMap;
use std::io;

use jiff::Timestamp;

use super::matrix::{Cell, Matrix, Measured};
use super::verdict::Verdict;
use super::{VerifyError, run};
use crate::bus::hub::Hub;
use crate::bus::{identity, subject};
use crate::config::{Config, OnViolation};
use crate::host::journald;
use crate::host::units::{Systemd, UnitFacts};
use crate::names::{AgentId, identity_dir};
use crate::status::boundary::{Record, Standing};
use crate::steps::halt;

/// Marks the alert in the journal; made for this with `journalctl --new-id128`. In flock(7).
pub const MESSAGE_ID: &str = "d0176326d87343e7ac237436adff0afa";
/// So many lines of one kind are kept of one agent.
const LINES_MAX: usize = 20;

/// Measures every agent that runs, and does what follows from it. Gives what was found.
///
/// # Errors
/// When nothing can be measured, or the record cannot be written.
pub async fn enforce(config: &Config) -> Result<Matrix, VerifyError> {
    let systemd = Systemd::connect().await.map_err(VerifyError::Unit)?;
    let at = Timestamp::now();
    let running = running(&systemd, config.agents.keys()).await;
    let mut matrix = match running.is_empty() {
        true => Matrix { began: at.to_string(), millis: 0, agents: Vec::new(), lower: Vec::new() },
        false => run::verify(config, &running, false).await?,
    };
    // Of one that was stopped meanwhile nothing is known, and nothing has to be.
    let still = self::running(&systemd, running.iter()).await;
    matrix.agents.retain(|agent| still.contains(&agent.agent));
    let mut standings = BTreeMap::new();
    for agent in &matrix.agents {
        let mut standing = standing(agent);
        if !standing.violations.is_empty() {
            standing.done = act(&systemd, config.verify.on_violation, &agent.agent).await;
            alert(&agent.agent, &standing, config.verify.on_violation).await;
        }
        standings.insert(agent.agent.clone(), standing);
    }
    let record = Record { at, agents: standings };
    record.save(&Record::place()).map_err(|e: io::Error| VerifyError::Stage {
        what: Record::place().display().to_string(),
        cause: e.to_string(),
    })?;
    Ok(matrix)
}

async fn running<'a>(systemd: &Systemd, agents: impl Iterator<Item = &'a AgentId>) -> Vec<AgentId> {
    let mut running = Vec::new();
    let runs = |facts: &UnitFacts| {
        facts.text("ActiveState") == "active" && facts.text("SubState") == "running"
    };
    for id in agents {
        if systemd.facts(&id.agent_unit()).await.is_ok_and(|facts| runs(&facts)) {
            running.push(id.clone());
        }
    }
    running
}

/// One agent's part of the record.
fn standing(agent: &Measured) -> Standing {
    let of = |verdict| {
        let cells = agent.cells.iter().filter(|cell| cell.verdict == verdict);
        cells.map(line).take(LINES_MAX).collect::<Vec<_>>()
    };
    let mut unknown = of(Verdict::Unknown);
    unknown.extend(agent.fault.clone());
    Standing {
        held: agent.count(None, Verdict::Blocked) + agent.count(None, Verdict::Contained),
        violations: of(Verdict::Violation),
        unknown,
        done: None,
    }
}

fn line(cell: &Cell) -> String {
    let few: Vec<&str> = cell.targets.iter().take(4).map(String::as_str).collect();
    let more = if cell.targets.len() > few.len() { ", …" } else { "" };
    format!(
        "{} [{}] ({}{more}): {}",
        cell.check.words,
        cell.check.id,
        few.join(", "),
        cell.evidence
    )
}

/// Holds it still or stops it. The agent is not asked: PID 1 and the kernel do it.
async fn act(systemd: &Systemd, what: OnViolation, id: &AgentId) -> Option<String> {
    match what {
        OnViolation::Alert => None,
        OnViolation::Freeze => Some(match systemd.freeze(&id.agent_unit()).await {
            Ok(()) => format!("frozen (systemctl thaw {})", id.agent_unit()),
            Err(error) => format!("not frozen: {error}"),
        }),
        OnViolation::Stop => {
            // PID 1 does not stop what is frozen; one that is not frozen needs no thaw.
            let _ = systemd.thaw(&id.agent_unit()).await;
            // The handle first, so that it says what is; one that was not started by it is stopped too.
            let handle = systemd.stop(&id.handle_unit()).await.map_err(|e| e.to_string());
            let unit = halt::halt(id).await.map_err(|e| e.to_string());
            Some(match handle.and(unit) {
                Ok(()) => format!("stopped (flockctl start {id})"),
                Err(error) => format!("not stopped: {error}"),
            })
        }
    }
}

/// Tells the journal and the bus. Neither is waited for: the record and the exit status say it too.
async fn alert(id: &AgentId, standing: &Standing, what: OnViolation) {
    let first = standing.violations.first().map(String::as_str).unwrap_or_default();
    let more = match standing.violations.len() {
        0 | 1 => String::new(),
        n => format!(" and {} more", n - 1),
    };
    let done = standing.done.as_deref().map(|done| format!("; {done}")).unwrap_or_default();
    let fields = [
        ("MESSAGE", format!("the boundary of {id} does not hold: {first}{more}{done}")),
        ("MESSAGE_ID", MESSAGE_ID.to_owned()),
        ("PRIORITY", "2".to_owned()),
        ("SYSLOG_IDENTIFIER", "flock-verify".to_owned()),
        ("FLOCK_VERIFY_AGENT", id.to_string()),
        ("FLOCK_VERIFY_VIOLATIONS", standing.violations.join("\n")),
        ("FLOCK_VERIFY_ACTION", format!("{what:?}").to_lowercase()),
    ];
    if let Err(error) = journald::send(&fields) {
        eprintln!("warning: tell the journal of {id}: {error}");
    }
    let told = serde_json::json!({
        "event": "boundary-violation", "agent": id, "violations": standing.violations,
        "done": standing.done, "at": Timestamp::now(),
    });
    if let Ok((identity, url)) = identity::operator(&identity_dir())
        && let Ok(hub) = Hub::connect(&identity, &url).await
        && let Err(error) = hub.proclaim(subject::boundary(id), told.to_string()).await
    {
        eprintln!("warning: tell the bus of {id}: {error}");
    }
}
