//! Reads what PID 1 and the kernel say of the agents. Changes nothing, needs no privilege.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use futures_util::{StreamExt as _, stream};

use crate::host::units::{Systemd, UnitError, UnitFacts, UnitRow};
use crate::names::AgentId;
use crate::status::ending::Records;
use crate::status::facts::{Facts, Row, Usage};
use crate::status::state::Seen;

/// The transient units and the handles, with one call for all of them.
const PATTERNS: [&str; 2] = ["flock-agent@*.service", "flock@*.service"];
/// The unit that starts the enabled agents.
pub const TARGET: &str = "flock.target";
/// Questions to PID 1 on the way at the same time.
const IN_FLIGHT: usize = 16;

/// The units of one agent that PID 1 has loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Units {
    /// The transient unit.
    pub unit: Option<Row>,
    /// The handle.
    pub handle: Option<Row>,
}

/// Lists the agents that PID 1 knows, with one call however many there are.
///
/// # Errors
/// When PID 1 does not answer.
pub async fn list(systemd: &Systemd) -> Result<BTreeMap<AgentId, Units>, UnitError> {
    Ok(pair(systemd.rows(&PATTERNS).await?))
}

/// Puts each agent's two units side by side. Names that are no agent's are left out.
fn pair(rows: Vec<UnitRow>) -> BTreeMap<AgentId, Units> {
    let mut agents: BTreeMap<AgentId, Units> = BTreeMap::new();
    for UnitRow { name, active, sub, job } in rows {
        let row = Some(Row { active, sub, job });
        if let Some(id) = AgentId::from_agent_unit(&name) {
            agents.entry(id).or_default().unit = row;
        } else if let Some(id) = AgentId::from_handle_unit(&name) {
            agents.entry(id).or_default().handle = row;
        }
    }
    agents
}

/// Reads everything known of these agents: both units, properties, records.
///
/// # Errors
/// When PID 1 does not answer. A unit that goes away in between counts as not loaded.
pub async fn look(
    systemd: &Systemd,
    records: &Records,
    wanted: &BTreeSet<AgentId>,
) -> Result<BTreeMap<AgentId, Seen>, UnitError> {
    let units = list(systemd).await?;
    let seen = stream::iter(wanted.iter().cloned())
        .map(|id| {
            let units = units.get(&id).cloned().unwrap_or_default();
            async move {
                let unit = match units.unit {
                    Some(row) => facts(systemd, &id).await.ok().map(|facts| (row, facts)),
                    None => None,
                };
                let (failed, last) = (records.failed(&id), records.last(&id));
                (id, Seen { unit, handle: units.handle, failed, last })
            }
        })
        .buffer_unordered(IN_FLIGHT)
        .collect()
        .await;
    Ok(seen)
}

/// Reads the properties of an agent's transient unit.
///
/// # Errors
/// When PID 1 does not answer.
pub async fn facts(systemd: &Systemd, agent: &AgentId) -> Result<Facts, UnitError> {
    Ok(of(&systemd.facts(&agent.agent_unit()).await?))
}

/// The agents that `flock.target` starts.
///
/// # Errors
/// When PID 1 does not answer.
pub async fn enabled(systemd: &Systemd) -> Result<BTreeSet<AgentId>, UnitError> {
    let wants = systemd.unit_texts(TARGET, "Wants").await?;
    Ok(wants.iter().filter_map(|unit| AgentId::from_handle_unit(unit)).collect())
}

fn of(found: &UnitFacts) -> Facts {
    let signed = |name| found.number(name).and_then(|n| i32::try_from(n).ok()).unwrap_or_default();
    let small = |name| found.number(name).and_then(|n| u32::try_from(n).ok()).unwrap_or_default();
    let usec = |name| found.number(name).unwrap_or_default();
    let cgroup = found.text("ControlGroup");
    Facts {
        invocation: found.invocation(),
        result: found.text("Result"),
        exit_code: signed("ExecMainCode"),
        exit_status: signed("ExecMainStatus"),
        main_pid: small("MainPID"),
        restarts: small("NRestarts"),
        forked_usec: usec("ExecMainStartTimestampMonotonic"),
        active_usec: usec("ActiveEnterTimestampMonotonic"),
        active_since_usec: usec("ActiveEnterTimestamp"),
        ended_usec: usec("ExecMainExitTimestampMonotonic"),
        policy: found.text("Restart"),
        burst: small("StartLimitBurst"),
        window_usec: usec("StartLimitIntervalUSec"),
        runtime_max_usec: found.number("RuntimeMaxUSec"),
        usage: usage(found),
        user: found.text("User"),
        frozen: frozen(&cgroup),
        cgroup,
    }
}

fn usage(found: &UnitFacts) -> Usage {
    Usage {
        memory: found.number("MemoryCurrent"),
        memory_peak: found.number("MemoryPeak"),
        memory_max: found.number("MemoryMax"),
        cpu_nsec: found.number("CPUUsageNSec"),
        cpu_quota_usec: found.number("CPUQuotaPerSecUSec"),
        tasks: found.number("TasksCurrent"),
        tasks_max: found.number("TasksMax"),
    }
}

/// Asks the kernel: PID 1 does not show on a unit that its slice is frozen before 257.
fn frozen(cgroup: &str) -> bool {
    let file =
        Path::new("/sys/fs/cgroup").join(cgroup.trim_start_matches('/')).join("cgroup.events");
    !cgroup.is_empty()
        && fs::read_to_string(file).is_ok_and(|text| text.lines().any(|line| line == "frozen 1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_units_of_an_agent_come_together() {
        let row = |name: &str, active: &str| UnitRow {
            name: name.into(),
            active: active.into(),
            sub: "x".into(),
            job: false,
        };
        let agents = pair(vec![
            row("flock@a-1.service", "active"),
            row("flock-agent@a-1.service", "failed"),
            row("flock-agent@b.service", "active"),
            row("flock@.service", "active"),
            row("flock-agent@NO.service", "active"),
        ]);
        let names: Vec<_> = agents.keys().map(AgentId::as_str).collect();
        assert_eq!(names, ["a-1", "b"]);
        let a = &agents[&AgentId::parse("a-1").unwrap()];
        assert_eq!(a.unit.as_ref().unwrap().active, "failed");
        assert_eq!(a.handle.as_ref().unwrap().active, "active");
        assert_eq!(agents[&AgentId::parse("b").unwrap()].handle, None);
    }
}
