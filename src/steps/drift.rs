//! What of the machine is not as planned: read, compared and named, never changed.
//!
//! Nothing ends at the first difference, and what cannot be read is one too.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::bus::identity;
use crate::config::Config;
use crate::host::units::{Systemd, UnitError};
use crate::host::users::{self, Ledger, UsersError};
use crate::host::{quota, root, tree};
use crate::names::{AgentId, identity_dir};
use crate::plan::{self, Plan};
use crate::steps::{apply, bus_files, fence, launch};

/// One difference between what is planned and what is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Whose; none: the host's.
    pub agent: Option<AgentId>,
    /// user, tree, quota, root, bus, egress or unit.
    pub part: &'static str,
    /// What is, what should be, and often what to do.
    pub what: String,
}

/// Why the machine cannot be compared at all.
#[derive(Debug, thiserror::Error)]
pub enum DriftError {
    /// The ledger says which user an agent is; without it there is no plan.
    #[error(transparent)]
    Users(#[from] UsersError),
    /// PID 1.
    #[error(transparent)]
    Unit(#[from] UnitError),
}

/// Everything that differs: the host's first, then each agent's.
///
/// # Errors
/// When there are no plans to compare with, or PID 1 does not answer.
pub async fn drift(config: &Config) -> Result<Vec<Difference>, DriftError> {
    let ledger = Ledger::load()?;
    let mut found = Vec::new();
    let mut plans = Vec::new();
    for id in config.agents.keys() {
        match plan::plan(config, ledger.uids(), id) {
            None => {
                found.push(of(id, "user", "it was never applied: it has no user id".to_owned()))
            }
            Some(mut plan) => {
                // A damaged record is one difference, named below.
                let opening = fence::opening(id).unwrap_or_default();
                apply::with_hosts(&mut plan, opening.hosts_file());
                plans.push(plan);
            }
        }
    }
    for plan in &plans {
        found.extend(of_agent(plan, config.host.allow_unenforced_limits));
    }
    match tree::drift(&plans) {
        Ok(lines) => found.extend(lines.into_iter().map(|(agent, what)| Difference {
            agent,
            part: "tree",
            what,
        })),
        Err(error) => found.push(of_host("tree", error.to_string())),
    }
    found.extend(of_bus(config));
    if let Err(error) = fence::check(config).await {
        found.push(of_host("egress", error.to_string()));
    }
    found.extend(of_units(config, &plans).await?);
    found.sort_by(|a, b| a.agent.cmp(&b.agent));
    Ok(found)
}

fn of(id: &AgentId, part: &'static str, what: String) -> Difference {
    Difference { agent: Some(id.clone()), part, what }
}

fn of_host(part: &'static str, what: String) -> Difference {
    Difference { agent: None, part, what }
}

fn of_agent(plan: &Plan, allow_unenforced: bool) -> Vec<Difference> {
    let id = &plan.agent;
    let mut found = Vec::new();
    if let Err(error) = users::check(&plan.user) {
        found.push(of(id, "user", error.to_string()));
    }
    let unheld = quota::enforced(plan).err().filter(|_| !allow_unenforced);
    for error in quota::check(plan).err().into_iter().chain(unheld) {
        found.push(of(id, "quota", error.to_string()));
    }
    match root::drift(plan) {
        Ok(lines) => found.extend(lines.into_iter().map(|what| of(id, "root", what))),
        Err(error) => found.push(of(id, "root", error.to_string())),
    }
    found
}

fn of_bus(config: &Config) -> Vec<Difference> {
    let mut found: Vec<String> = match bus_files::differing(config) {
        Ok(lines) => lines,
        Err(error) => vec![error.to_string()],
    };
    if bus_files::is_pending() {
        found.push("the server has not read its files since they were changed".to_owned());
    }
    let ids: Vec<AgentId> = config.agents.keys().cloned().collect();
    for id in identity::stale(&identity_dir(), &ids).unwrap_or_default() {
        found.push(format!("{id} is not configured any more and has an identity still"));
    }
    found.into_iter().map(|what| of_host("bus", what)).collect()
}

/// What runs otherwise than planned, or without a plan.
async fn of_units(config: &Config, plans: &[Plan]) -> Result<Vec<Difference>, DriftError> {
    let systemd = Systemd::connect().await?;
    let mut running = BTreeSet::new();
    for (unit, state) in systemd.list("flock-agent@*.service").await? {
        if let (Some(id), "active" | "activating") =
            (AgentId::from_agent_unit(&unit), state.as_str())
        {
            running.insert(id);
        }
    }
    let mut found = Vec::new();
    for plan in plans.iter().filter(|plan| running.contains(&plan.agent)) {
        let facts = systemd.facts(&plan.unit.name).await?;
        let names = facts.differences(&launch::sent(&systemd, plan));
        if !names.is_empty() {
            let drop_ins = facts.texts("DropInPaths").join(" ");
            let by = if drop_ins.is_empty() { String::new() } else { format!(" (by {drop_ins})") };
            let what = format!(
                "{} runs with another {}{by}: flockctl restart {}",
                plan.unit.name,
                names.join(", "),
                plan.agent
            );
            found.push(of(&plan.agent, "unit", what));
        }
    }
    for id in running.iter().filter(|id| !config.agents.contains_key(*id)) {
        let remedy = format!("systemctl disable --now {}", id.handle_unit());
        found.push(of(id, "unit", format!("it runs and is not configured: {remedy}")));
    }
    Ok(found)
}
