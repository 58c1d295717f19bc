//! `flockctl plan`: what would be done, and nothing of it.

use std::path::Path;

use crate::cli::{Failure, out};
use crate::config::{self, Config};
use crate::host::users::Ledger;
use crate::names::{AgentId, Level};
use crate::plan::{Plan, plan, render};
use crate::steps::drift::{Difference, drift};
use crate::text::printable;

/// Prints the plans of some agents, or of all.
///
/// # Errors
/// When the configuration is not valid or an agent is unknown.
pub fn run(agents: &[AgentId], json: bool, file: &Path) -> Result<(), Failure> {
    let config = config::load(file).map_err(Failure::config)?;
    let wanted: Vec<AgentId> =
        if agents.is_empty() { config.agents.keys().cloned().collect() } else { agents.to_vec() };
    let mut plans = Vec::new();
    for id in &wanted {
        plans.push(of(&config, id)?.0);
    }
    if json {
        let text = serde_json::to_string_pretty(&plans).map_err(Failure::failed)?;
        return out::line(&text);
    }
    for plan in &plans {
        out::bytes(render(plan).as_bytes())?;
    }
    Ok(())
}

/// Shows how the machine differs from the plans of some agents, or of all, and changes nothing.
///
/// # Errors
/// Exit status 3 when it differs; else when it cannot be compared.
pub fn diff(agents: &[AgentId], json: bool, file: &Path) -> Result<(), Failure> {
    out::need_root("compare the machine with the plans")?;
    let config = config::load(file).map_err(Failure::config)?;
    for id in agents {
        of(&config, id)?;
    }
    let mut found = out::wait(async { drift(&config).await.map_err(Failure::failed) })?;
    // What is the host's is everybody's.
    let named = |d: &Difference| d.agent.as_ref().is_none_or(|id| agents.contains(id));
    found.retain(|d| agents.is_empty() || named(d));
    if json {
        out::line(&serde_json::to_string_pretty(&found).map_err(Failure::failed)?)?;
    } else {
        show(&found)?;
    }
    match found.len() {
        0 if json => Ok(()),
        0 => out::line("nothing differs: the machine is as planned"),
        1 => Err(Failure::differs("1 difference: flockctl apply mends what is not the operator's")),
        n => Err(Failure::differs(format!(
            "{n} differences: flockctl apply mends what is not the operator's"
        ))),
    }
}

/// The lines of one agent stand together, under its name.
fn show(found: &[Difference]) -> Result<(), Failure> {
    let mut head = None;
    for Difference { agent, part, what } in found {
        if head != Some(agent) {
            out::line(agent.as_ref().map_or("this host", AgentId::as_str))?;
            head = Some(agent);
        }
        out::line(&format!("  {part}: {}", printable(what)))?;
    }
    Ok(())
}

/// The plan of an agent, and whether its user id is only the one that it would get.
///
/// # Errors
/// When the agent is unknown or the ledger cannot be trusted.
pub fn of(config: &Config, id: &AgentId) -> Result<(Plan, bool), Failure> {
    let known = || config.agents.keys().map(AgentId::as_str).collect::<Vec<_>>().join(", ");
    let mut ledger = Ledger::load().map_err(Failure::failed)?;
    let provisional = !ledger.uids().contains_key(id);
    // Not stored: what apply would give, in its order.
    for (agent, _) in config.agents.iter().filter(|(_, a)| a.level >= Level::Process) {
        ledger.assign(config.host.uid_block, agent).map_err(Failure::failed)?;
    }
    plan(config, ledger.uids(), id).map(|plan| (plan, provisional)).ok_or_else(|| {
        Failure::failed(format!("no agent {id} is configured; there are: {}", known()))
    })
}
