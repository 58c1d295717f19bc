//! Whether the machine is as planned, seen from outside: the unit, the process, the egress table.

use std::fs;
use std::path::Path;

use super::checks::{Case, Vantage, When, find};
use super::matrix::Cell;
use super::verdict::Verdict;
use crate::bus::subject;
use crate::host::units::readback::{self, Measured};
use crate::host::units::{Systemd, UnitFacts};
use crate::host::{cgroup, quota};
use crate::names::AgentId;
use crate::plan::{Plan, REPLACED};
use crate::probe::wire::Outcome;
use crate::steps::launch;

/// What is looked at from outside of one agent.
pub(super) fn cells(
    systemd: &Systemd,
    plan: &Plan,
    agent: &UnitFacts,
    probe: Option<&UnitFacts>,
    table: &Result<(), String>,
    allow_unenforced: bool,
) -> Vec<Cell> {
    let running = agent.number("MainPID").filter(|pid| *pid != 0);
    let mut cells = vec![
        cell("machine.fence", table.clone().map(|()| "nft shows the planned table".to_owned())),
        cell("machine.limits", limits(plan, running, agent, allow_unenforced)),
    ];
    let Some(pid) = running else {
        let idle = |check| Cell {
            verdict: Verdict::NotHere,
            evidence: "the agent does not run".to_owned(),
            ..cell(check, Ok(String::new()))
        };
        cells.extend(["limit.memory", "limit.cpu", "machine.unit", "machine.process"].map(idle));
        return cells;
    };
    cells.push(cell("machine.unit", unit(systemd, plan, agent, probe)));
    let measured = readback::measure(plan, pid, &agent.text("ControlGroup"));
    let cgroup = cgroup::dir(&agent.text("ControlGroup"));
    cells.extend(HELD.map(|held| held.cell(plan, &measured, &cgroup, allow_unenforced)));
    let Measured { broken, ended, .. } = measured;
    cells.push(match ended && broken.is_empty() {
        true => Cell {
            verdict: Verdict::Unknown,
            ..cell("machine.process", Err("its process ended meanwhile".to_owned()))
        },
        false if broken.is_empty() => {
            cell("machine.process", Ok("the kernel shows the planned process".to_owned()))
        }
        false => cell("machine.process", Err(broken.join("; "))),
    });
    cells
}

/// The agent's unit is as it was sent, and the probe's unit confines as the agent's does.
fn unit(
    systemd: &Systemd,
    plan: &Plan,
    agent: &UnitFacts,
    probe: Option<&UnitFacts>,
) -> Result<String, String> {
    let mut faults = Vec::new();
    let wrong = agent.differences(&launch::sent(systemd, plan));
    if !wrong.is_empty() {
        let files = agent.texts("DropInPaths").join(" ");
        faults.push(format!("not as flock set it: {} (drop-ins: {files})", wrong.join(", ")));
    }
    if let Some(probe) = probe {
        let names = plan.unit.properties.iter().map(|p| p.name);
        let names = names.filter(|name| !REPLACED.contains(name));
        let unlike = probe.unlike(agent, names);
        if !unlike.is_empty() {
            faults.push(format!("the probe's unit differs in {}", unlike.join(", ")));
        }
    }
    match faults.is_empty() {
        true => Ok("the probe's unit is the agent's in every property that confines".to_owned()),
        false => Err(faults.join("; ")),
    }
}

/// Limits that nothing enforces are no limits, unless the operator has accepted that.
fn limits(
    plan: &Plan,
    running: Option<u64>,
    agent: &UnitFacts,
    allow_unenforced: bool,
) -> Result<String, String> {
    let missing = match running {
        Some(pid) => readback::measure(plan, pid, &agent.text("ControlGroup")).unenforced,
        None => {
            let disk =
                if quota::enforced(plan).is_err() { plan.quota.limits() } else { Vec::new() };
            let all = cgroup::unenforced_limits().into_iter().chain(disk);
            all.map(str::to_owned).collect()
        }
    };
    let missing: Vec<_> = missing.into_iter().filter(|limit| limit != "io-weight").collect();
    match (missing.is_empty(), allow_unenforced) {
        (true, _) => Ok("every limit is enforced".to_owned()),
        (false, true) => Ok(format!("accepted by the configuration: no {}", missing.join(", "))),
        (false, false) => Err(format!("nothing enforces {}", missing.join(", "))),
    }
}

/// What is looked at from outside though it is another area's.
#[cfg(test)]
pub(super) const OUTSIDE: [&str; 3] = ["bus.copied", HELD[0].check, HELD[1].check];

/// The server drops a message whose id it has had in the same stream: whoever shares one with others
/// can make their results vanish by using their ids first.
pub(super) fn copied(id: &AgentId, taken: Result<Vec<String>, String>) -> Cell {
    let wanted = [subject::result(id)];
    let unknown = |cause| Cell { verdict: Verdict::Unknown, ..cell("bus.copied", Err(cause)) };
    match taken {
        Err(cause) => unknown(cause),
        Ok(taken) if taken == wanted => {
            let stream = subject::result_stream(id);
            cell("bus.copied", Ok(format!("{stream} takes {} alone", taken.join(", "))))
        }
        Ok(taken) => {
            cell("bus.copied", Err(format!("its results are kept with {}", taken.join(", "))))
        }
    }
}

/// A limit that is not used up here, for that would press the neighbours: what the kernel holds, and
/// how often it has held the agent back by it.
pub(super) struct Held {
    pub(super) check: &'static str,
    limit: &'static str,
    file: &'static str,
    /// Where the kernel counts, and what.
    counts: (&'static str, &'static str, &'static str),
}

pub(super) const HELD: [Held; 2] = [
    Held {
        check: "limit.memory",
        limit: "memory",
        file: "memory.max",
        counts: ("memory.events", "max", "reached it"),
    },
    Held {
        check: "limit.cpu",
        limit: "cpu",
        file: "cpu.max",
        counts: ("cpu.stat", "nr_throttled", "was held back"),
    },
];

impl Held {
    fn cell(&self, plan: &Plan, measured: &Measured, cgroup: &Path, accepted: bool) -> Cell {
        let read = |file: &str| fs::read_to_string(cgroup.join(file)).unwrap_or_default();
        let missing = measured.unenforced.iter().any(|limit| limit == self.limit);
        if missing && accepted {
            return Cell {
                promised: false,
                why_not: Some(When::Enforced.why_not(&Case::of(plan, None, false))),
                verdict: Verdict::NotPromised,
                ..cell(self.check, Err(format!("no controller for {}", self.limit)))
            };
        }
        let wrong = measured.broken.iter().find(|fault| fault.starts_with(self.file));
        cell(
            self.check,
            match (missing, wrong) {
                (true, _) => Err(format!("no controller for {}", self.limit)),
                (false, Some(fault)) => Err(fault.clone()),
                (false, None) => {
                    let (file, name, what) = self.counts;
                    let text = read(file);
                    let count =
                        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
                    let count = count.unwrap_or("0");
                    Ok(format!(
                        "{} is {}; it {what} {count} times",
                        self.file,
                        read(self.file).trim()
                    ))
                }
            },
        )
    }
}

fn cell(id: &str, result: Result<String, String>) -> Cell {
    // The names stand in the table; a test of this module holds that.
    let check = find(id).unwrap_or(&super::checks::CHECKS[0]);
    let held = result.is_ok();
    Cell {
        check,
        vantage: Vantage::Sandbox,
        targets: vec!["itself".to_owned()],
        promised: true,
        why_not: None,
        verdict: if held { Verdict::Blocked } else { Verdict::Violation },
        layer: None,
        measured: Some(if held { Outcome::Refused } else { Outcome::Done }),
        errno: 0,
        evidence: result.unwrap_or_else(|fault| fault),
        control: "seen from outside".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_stands_in_the_table() {
        let machine = ["machine.fence", "machine.limits", "machine.unit", "machine.process"];
        for id in machine.iter().chain(&OUTSIDE) {
            assert_eq!(cell(id, Ok(String::new())).check.id, *id);
        }
    }

    #[test]
    fn results_that_share_a_stream_are_a_violation() {
        let id = AgentId::parse("a").unwrap();
        let of = |taken: Result<&[&str], &str>| {
            let taken = taken.map(|t| t.iter().map(|s| (*s).to_owned()).collect());
            copied(&id, taken.map_err(str::to_owned)).verdict
        };
        assert_eq!(of(Ok(&["task.result.a"])), Verdict::Blocked);
        assert_eq!(of(Ok(&["task.result.*"])), Verdict::Violation);
        assert_eq!(of(Ok(&["task.result.a", "task.result.b"])), Verdict::Violation);
        assert_eq!(of(Err("no answer")), Verdict::Unknown);
    }
}
