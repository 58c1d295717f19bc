//! What is there in a sandbox against the lists that were approved for its level: an addition is a
//! fault, until somebody has looked at it and written it down.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::checks::{Vantage, find};
use super::matrix::Cell;
use super::verdict::Verdict;
use crate::names::Level;
use crate::plan::{Plan, Value};
use crate::probe::inventory::OWN_SOCKET;
use crate::probe::wire::Outcome;

/// The lists of each level, from all supported releases.
const LEVELS: [&str; 2] =
    [include_str!("approved/level-0.json"), include_str!("approved/level-1.json")];
/// The check, the list, and what has to stand in it: a list without it has not seen anything.
const CHECKED: [(&str, &str, &str); 9] = [
    ("list.writable", "writable", OWN),
    ("list.mounts", "mounts", "/shared/agents/ID rw"),
    ("list.sockets", "sockets", OWN_SOCKET),
    ("list.calls", "calls", "read"),
    ("list.devices", "devices", "/dev/null"),
    ("list.capabilities", "capabilities", "CapEff 0000000000000000"),
    ("list.descriptors", "descriptors", "0 file"),
    ("list.environment", "environment", "AGENT_ID"),
    ("list.groups", "groups", "group 1"),
];
/// How an agent's own directory stands in the lists.
const OWN: &str = "/shared/agents/ID";
/// So many additions are named.
const NAMED: usize = 5;

/// Compares the lists that the probe in an agent's sandbox has made.
pub(super) fn cells(plan: &Plan, found: &BTreeMap<String, Vec<String>>) -> Vec<Cell> {
    let approved = approved(plan.level);
    let given = Given::of(plan);
    let one = |(id, name, needed): &(&'static str, &str, &str)| {
        let known = approved.get(*name).map(Vec::as_slice).unwrap_or_default();
        let Some(list) = found.get(*name) else {
            return nothing(id, "the probe did not report it");
        };
        let list = plain(plan, name, list);
        if !list.contains(*needed) {
            return nothing(id, &format!("{needed} is not in it: nothing was seen"));
        }
        let more = list.iter().filter(|e| !known.contains(e) && !given.covers(name, e));
        compared(id, needed, list.len(), &more.map(String::as_str).collect::<Vec<_>>())
    };
    CHECKED.iter().map(one).collect()
}

fn approved(level: Level) -> BTreeMap<String, Vec<String>> {
    let text = LEVELS[usize::from(level > Level::Workspace)];
    // Built in; a test reads them.
    serde_json::from_str(text).unwrap_or_default()
}

fn nothing(id: &str, why: &str) -> Cell {
    cell(id, Verdict::Unknown, None, why.to_owned(), "does not find what is there")
}

fn compared(id: &str, needed: &str, count: usize, more: &[&str]) -> Cell {
    let control = format!("finds {needed}, which is there");
    let evidence = match more {
        [] => format!("{count} entries, each approved"),
        more => {
            let named = more.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
            let rest = more.len().saturating_sub(NAMED);
            let rest = if rest == 0 { String::new() } else { format!(" and {rest} more") };
            format!("not approved: {named}{rest}")
        }
    };
    match more.is_empty() {
        true => cell(id, Verdict::Blocked, Some(Outcome::Refused), evidence, &control),
        false => cell(id, Verdict::Violation, Some(Outcome::Done), evidence, &control),
    }
}

fn cell(
    id: &str,
    verdict: Verdict,
    measured: Option<Outcome>,
    evidence: String,
    control: &str,
) -> Cell {
    Cell {
        // The names stand in the table; a test of this module holds that.
        check: find(id).unwrap_or(&super::checks::CHECKS[0]),
        vantage: Vantage::Sandbox,
        targets: vec!["itself".to_owned()],
        promised: true,
        why_not: None,
        verdict,
        layer: None,
        measured,
        errno: 0,
        evidence,
        control: control.to_owned(),
    }
}

/// A list without what differs from host to host, its own directory under one name.
fn plain(plan: &Plan, name: &str, list: &[String]) -> BTreeSet<String> {
    if name == "groups" {
        // Their numbers are each host's own.
        let count = |e: &String| e.rsplit('x').next().and_then(|n| n.parse::<usize>().ok());
        let sum = list.iter().filter_map(count).sum::<usize>();
        return (1..=sum).map(|n| format!("group {n}")).collect();
    }
    let level_0 = plan.level == Level::Workspace;
    let judged = |entry: &&String| match name {
        // What may be written. The kernel's own file systems are level 1's matter.
        "mounts" => {
            let of_kernel = ["/sys/", "/proc/", "/dev/"].iter().any(|dir| entry.starts_with(dir));
            entry.ends_with(" rw") && !(level_0 && of_kernel)
        }
        // The number of capabilities is the kernel's; without a user id of 0 or a file that gives
        // them, none of these two sets can be had.
        "capabilities" => !level_0 || !entry.starts_with("CapBnd") && !entry.starts_with("CapInh"),
        // Terminals of the host are in sight, not in reach: each belongs to its user.
        "devices" => !entry.starts_with("/dev/pts/"),
        _ => true,
    };
    let own = format!("/shared/agents/{}", plan.agent);
    let inside = format!("{own}/");
    let kept = list.iter().filter(judged).filter(|entry| !entry.starts_with(&inside));
    kept.map(|entry| entry.replacen(&own, OWN, 1)).collect()
}

/// What the configuration gives an agent.
struct Given {
    variables: BTreeSet<String>,
    writable: Vec<String>,
    seen: Vec<String>,
}

impl Given {
    fn of(plan: &Plan) -> Self {
        let targets = |property| match plan.unit.value(property) {
            Some(Value::Binds(binds)) => binds.iter().map(|bind| bind.1.clone()).collect(),
            _ => Vec::new(),
        };
        let writable: Vec<String> = targets("BindPaths");
        let mut seen = targets("BindReadOnlyPaths");
        seen.extend(writable.iter().cloned());
        Self { variables: variables(plan), writable, seen }
    }

    fn covers(&self, list: &str, entry: &str) -> bool {
        let below =
            |dirs: &[String], entry: &str| dirs.iter().any(|dir| Path::new(entry).starts_with(dir));
        match list {
            "environment" => self.variables.contains(entry),
            "writable" => below(&self.writable, entry),
            "mounts" => below(&self.writable, entry.trim_end_matches(" rw")),
            "sockets" => below(&self.seen, entry),
            _ => false,
        }
    }
}

/// Names of the variables of the configuration and of its files.
fn variables(plan: &Plan) -> BTreeSet<String> {
    let name = |line: &str| Some(line.trim_start().split_once('=')?.0.to_owned());
    let mut names = BTreeSet::new();
    if let Some(Value::Strs(variables)) = plan.unit.value("Environment") {
        names.extend(variables.iter().filter_map(|v| name(v)));
    }
    if let Some(Value::Files(files)) = plan.unit.value("EnvironmentFiles") {
        for (file, _) in files {
            let text = fs::read_to_string(file).unwrap_or_default();
            names.extend(text.lines().filter_map(name));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::names::AgentId;
    use crate::plan::Uids;

    fn plan(level: u8, more: &str) -> Plan {
        let text =
            format!("[defaults]\ncommand = [\"/bin/sh\"]\n[agents.a]\nlevel = {level}\n{more}\n");
        let config = config::parse(&[("x.toml".into(), text)]).unwrap();
        let id = AgentId::parse("a").unwrap();
        crate::plan::plan(&config, &Uids::from([(id.clone(), 65_537)]), &id).unwrap()
    }

    /// The approved lists as an agent `a` would report them.
    fn there(level: Level) -> BTreeMap<String, Vec<String>> {
        let mut lists = approved(level);
        for list in lists.values_mut() {
            *list = list.iter().map(|e| e.replace("agents/ID", "agents/a")).collect();
        }
        lists.insert("groups".to_owned(), vec!["9 x1".to_owned(), "7 x1".to_owned()]);
        lists
    }

    fn verdicts(
        plan: &Plan,
        lists: &BTreeMap<String, Vec<String>>,
    ) -> Vec<(&'static str, Verdict)> {
        cells(plan, lists).iter().map(|c| (c.check.id, c.verdict)).collect()
    }

    #[test]
    fn what_was_approved_holds_and_each_list_shows_an_addition() {
        for level in [0, 1] {
            let plan = plan(level, "");
            let good = there(plan.level);
            assert_eq!(good.len(), CHECKED.len());
            for (id, verdict) in verdicts(&plan, &good) {
                assert_eq!(verdict, Verdict::Blocked, "{id} at level {level}");
            }
            for (id, name, needed) in CHECKED {
                let of = |lists| verdicts(&plan, &lists).into_iter().find(|v| v.0 == id).unwrap().1;
                let mut more = good.clone();
                let odd = ["/odd rw".to_owned(), "/odd x5".to_owned()];
                more.get_mut(name).unwrap().extend(odd);
                assert_eq!(of(more), Verdict::Violation, "{id}");
                let mut less = good.clone();
                let seen = |e: &String| e.replace("agents/a", "agents/ID") != needed;
                less.get_mut(name).unwrap().retain(|e| name != "groups" && seen(e));
                assert_eq!(of(less), Verdict::Unknown, "{id}");
                let mut none = good.clone();
                none.remove(name);
                assert_eq!(of(none), Verdict::Unknown, "{id}");
            }
        }
    }

    #[test]
    fn what_the_configuration_gives_is_no_addition() {
        let more = "environment = { KEY = \"x\" }\nread-write-paths = [\"/srv/data\"]";
        let mut lists = there(Level::Process);
        let mut add = |list: &str, entry: &str| lists.get_mut(list).unwrap().push(entry.to_owned());
        add("environment", "KEY");
        add("writable", "/srv/data/x");
        add("mounts", "/srv/data rw");
        add("sockets", "/srv/data/s");
        add("mounts", "/usr/more ro");
        let bad = |plan: &Plan| -> Vec<&'static str> {
            let bad = |v: &(&'static str, Verdict)| v.1 == Verdict::Violation;
            verdicts(plan, &lists).into_iter().filter(bad).map(|v| v.0).collect()
        };
        assert_eq!(bad(&plan(1, more)), Vec::<&str>::new());
        assert_eq!(
            bad(&plan(1, "")),
            ["list.writable", "list.mounts", "list.sockets", "list.environment"]
        );
    }
}
