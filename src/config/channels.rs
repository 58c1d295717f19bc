//! Who talks to whom: `[channels.<name>]` and `may-request`.

use std::collections::{BTreeMap, BTreeSet};

use super::AgentConfig;
use super::cite::{At, Placed, Report, shown};
use super::fields::{by_rule, set};
use super::file::Value;
use super::part::Part;
use crate::names::{AgentId, ChannelName};

const CHANNEL_KEYS: &[&str] = &["members"];

/// The channels as written, each with its members.
pub(super) type Channels = BTreeMap<ChannelName, Vec<Placed<AgentId>>>;

/// Reads the table `channels`.
pub(super) fn read(value: &Value<'_>, report: &mut Report<'_>) -> Option<Channels> {
    const MAY: &str = "tables [channels.<name>] with members = [\"agent-1\"]";
    let mut channels = Channels::new();
    for (name, value) in value.table(report, MAY)?.entries() {
        let members = members(&value, report);
        match ChannelName::parse(name.value) {
            Ok(channel) => {
                channels.insert(channel, members.unwrap_or_default());
            }
            Err(bad) => {
                let may = "1 to 25 of a-z, 0-9 and -, such as review";
                report.fault(&name.at, bad.to_string(), may);
            }
        }
    }
    Some(channels)
}

fn members(value: &Value<'_>, report: &mut Report<'_>) -> Option<Vec<Placed<AgentId>>> {
    let mut table = value.keys(report, CHANNEL_KEYS)?;
    let members = table.read("members", report, agents);
    if members.is_none() && !table.bad.contains("members") {
        value.refuse(report, "it has no members", "members = [\"agent-1\"]; [] is for nobody");
    }
    members.map(|members| members.value)
}

/// A list of ids of agents; whether they exist is known once all files are read.
pub(super) fn agents(value: &Value<'_>, report: &mut Report<'_>) -> Option<Vec<Placed<AgentId>>> {
    const MAY: &str = "a list of agents, such as [\"agent-1\", \"agent-2\"]";
    set(value, report, MAY, |v, r| {
        by_rule(v, r, "the id of an agent", |text| {
            AgentId::parse(text).map_err(|_| "it is no agent id".to_owned())
        })
    })
}

/// The channels with their members. Without one of its own, `flock` has every agent. Only a `whole`
/// configuration can lack an agent.
pub(super) fn resolve(
    channels: Channels,
    agents: &BTreeMap<AgentId, AgentConfig>,
    whole: bool,
    report: &mut Report<'_>,
) -> BTreeMap<ChannelName, BTreeSet<AgentId>> {
    let mut resolved = BTreeMap::new();
    for (name, members) in channels {
        for id in members.iter().filter(|id| whole && !agents.contains_key(&id.value)) {
            let message = format!("channels.{name}.members: {}", unknown(&id.value));
            report.fault(&id.at, message, known(agents));
        }
        resolved.insert(name, members.into_iter().map(|id| id.value).collect());
    }
    let everybody = || agents.keys().cloned().collect();
    resolved.entry(ChannelName::everybody()).or_insert_with(everybody);
    // Nobody is in a channel that is switched off: it is not there.
    resolved.retain(|_, members: &mut BTreeSet<AgentId>| !members.is_empty());
    resolved
}

/// Whoever may be asked exists. What `[defaults]` says holds for all but the one that is asked;
/// `own` are those that say it themselves.
pub(super) fn requests(
    merged: &[(AgentId, Part)],
    own: &BTreeSet<AgentId>,
    agents: &mut BTreeMap<AgentId, AgentConfig>,
    whole: bool,
    report: &mut Report<'_>,
) {
    let mut told: BTreeSet<At> = BTreeSet::new();
    for (id, part) in merged {
        for other in part.may_request.iter().flatten() {
            if whole && !agents.contains_key(&other.value) && told.insert(other.at.clone()) {
                let message = format!("may-request: {}", unknown(&other.value));
                report.fault(&other.at, message, known(agents));
            }
            if other.value == *id && own.contains(id) {
                let message = format!("agents.{id}.may-request: it is this agent itself");
                report.fault(&other.at, message, "another agent");
            }
        }
        if let Some(agent) = agents.get_mut(id) {
            agent.may_request.remove(id);
        }
    }
}

fn unknown(id: &AgentId) -> String {
    format!("no agent {} is configured", shown(id.as_str()))
}

/// The agents that exist, as far as a line holds them.
fn known(agents: &BTreeMap<AgentId, AgentConfig>) -> String {
    const NAMED: usize = 8;
    let names: Vec<&str> = agents.keys().take(NAMED).map(AgentId::as_str).collect();
    match (names.is_empty(), agents.len() > NAMED) {
        (true, _) => "no agent is configured".to_owned(),
        (false, false) => format!("there are: {}", names.join(", ")),
        (false, true) => format!("there are: {}, ...", names.join(", ")),
    }
}
