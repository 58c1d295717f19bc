//! The matrix: what every probe found, judged. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;

use super::checks::{Area, CHECKS, Case, Check, Vantage, When, find};
use super::verdict::{Control, Layer, Verdict, judge, layer, outcome};
use crate::names::{AgentId, Level};
use crate::plan::Plan;
use crate::probe::wire::{Attempt, Finding, Outcome};

/// What a run found, judged.
#[derive(Clone, Debug, Serialize)]
pub struct Matrix {
    /// When it began, in RFC 3339.
    pub began: String,
    /// How long it took, in milliseconds.
    pub millis: u64,
    /// One for each agent.
    pub agents: Vec<Measured>,
    /// The same agents behind the boundaries of lower levels, if that was asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lower: Vec<Measured>,
}

/// What was found of one agent.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// Who.
    pub agent: AgentId,
    /// Its level.
    pub level: u8,
    /// The honest word for the level.
    pub boundary: &'static str,
    /// Whether this is a lower level than the one that is configured.
    pub lowered: bool,
    /// Whether it runs now.
    pub runs: bool,
    /// What kept the run from measuring it, if anything did.
    pub fault: Option<String>,
    /// What its configuration loosens.
    pub loosened: Vec<String>,
    /// What is there in its sandbox, list by list.
    pub inventories: BTreeMap<String, Vec<String>>,
    /// The cells; those of many targets with the same answer are one.
    pub cells: Vec<Cell>,
}

/// What one check found, for all targets with the same answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cell {
    /// The check.
    pub check: &'static Check,
    /// From where.
    pub vantage: Vantage,
    /// Whom or what it was aimed at.
    pub targets: Vec<String>,
    /// Whether its refusal is promised.
    pub promised: bool,
    /// Why not.
    pub why_not: Option<&'static str>,
    /// The verdict.
    pub verdict: Verdict,
    /// What stopped it.
    pub layer: Option<Layer>,
    /// What was measured.
    pub measured: Option<Outcome>,
    /// The error number; 0 for none.
    pub errno: i32,
    /// What the probe saw, or what was seen from outside.
    pub evidence: String,
    /// What the control did.
    pub control: String,
}

/// Something of an attempt that was found outside of the sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The agent whose mark it is.
    pub agent: String,
    /// From where it was made: `sandbox` or `user`.
    pub vantage: &'static str,
    /// The check.
    pub check: &'static str,
    /// The target.
    pub target: String,
}

/// What one probe reported; an error says why there is nothing.
pub type Reported = Result<Vec<Finding>, String>;

/// Everything that was found of one agent.
pub struct Evidence<'a> {
    /// Its plan.
    pub plan: &'a Plan,
    /// What was tried, from each vantage.
    pub tried: [&'a [Attempt]; 2],
    /// What the probes say, from each vantage.
    pub found: [&'a Reported; 2],
    /// The users of the other agents.
    pub users: &'a BTreeMap<String, u32>,
    /// The controls, by check and target.
    pub controls: &'a Controls,
    /// What was found outside.
    pub traces: &'a [Trace],
    /// What was gone at the end of the run, though root had made it: the kind of check, the target.
    pub spoiled: &'a BTreeSet<(&'static str, String)>,
    /// Whether limits have their controllers, or nobody has accepted that they have none.
    pub enforced: bool,
}

type Key<'a> = (&'a str, &'a str);

fn by_key(findings: &[Finding]) -> HashMap<Key<'_>, &Finding> {
    findings.iter().map(|f| ((f.check.as_str(), f.target.as_str()), f)).collect()
}

/// What the controls found, for quick look-up.
pub struct Controls {
    root: HashMap<(String, String), Finding>,
    plain: HashMap<(String, String), Finding>,
}

impl Controls {
    /// From what they reported.
    #[must_use]
    pub fn new(root: Vec<Finding>, plain: Vec<Finding>) -> Self {
        let map = |all: Vec<Finding>| {
            all.into_iter().map(|f| ((f.check.clone(), f.target.clone()), f)).collect()
        };
        Self { root: map(root), plain: map(plain) }
    }

    fn of(&self, check: &Check, target: &str) -> Control {
        let key = (check.id.to_owned(), target.to_owned());
        Control::of(check, &[("a plain user", self.plain.get(&key)), ("root", self.root.get(&key))])
    }
}

/// The cells of one agent.
#[must_use]
pub fn cells(evidence: &Evidence<'_>) -> Vec<Cell> {
    let mut cells: Vec<Cell> = Vec::new();
    let nothing = Vec::new();
    let found = evidence.found.map(|f| by_key(f.as_ref().unwrap_or(&nothing)));
    for (index, vantage) in [Vantage::Sandbox, Vantage::User].into_iter().enumerate() {
        for attempt in evidence.tried[index] {
            let Some(check) = find(&attempt.check) else { continue };
            let Some(when) = check.when(vantage) else { continue };
            let key = (attempt.check.as_str(), attempt.target.as_str());
            let alone =
                (vantage == Vantage::Sandbox).then(|| found[1].get(&key).copied()).flatten();
            let said = found[index].get(&key).copied();
            let cell = cell(evidence, check, when, vantage, &attempt.target, said, alone);
            add(&mut cells, cell);
        }
    }
    let order = |cell: &Cell| CHECKS.iter().position(|check| check == cell.check);
    cells.sort_by_key(|cell| (order(cell), cell.vantage));
    cells
}

/// The lists of what is there.
#[must_use]
pub fn inventories(reported: &Reported) -> BTreeMap<String, Vec<String>> {
    let of = |f: &Finding| Some((f.check.strip_prefix("inventory.")?.to_owned(), f.list.clone()));
    reported.iter().flatten().filter_map(of).collect()
}

/// Cells that differ in their target alone become one.
pub fn add(cells: &mut Vec<Cell>, cell: Cell) {
    let same = |old: &&mut Cell| {
        old.check == cell.check
            && old.vantage == cell.vantage
            && (old.promised, old.verdict, old.layer) == (cell.promised, cell.verdict, cell.layer)
            && (old.measured, old.errno) == (cell.measured, cell.errno)
            && (&old.evidence, &old.control) == (&cell.evidence, &cell.control)
    };
    // The cells of one check come one after the other for each target: only the last ones matter.
    match cells.iter_mut().rev().take(256).find(same) {
        Some(old) => old.targets.extend(cell.targets),
        None => cells.push(cell),
    }
}

fn cell(
    evidence: &Evidence<'_>,
    check: &'static Check,
    when: When,
    vantage: Vantage,
    target: &str,
    said: Option<&Finding>,
    alone: Option<&Finding>,
) -> Cell {
    let plan = evidence.plan;
    let peer = evidence.users.get(target);
    let case = Case::of(plan, peer.copied(), evidence.enforced);
    let promised = when.holds(&case);
    let spoiled = |(kind, whose): &(&str, String)| check.id.starts_with(*kind) && whose == target;
    let control = match evidence.spoiled.iter().any(spoiled) {
        true => Control::Failed("what was attacked was gone at the end".to_owned()),
        false => evidence.controls.of(check, target),
    };
    let word = match vantage {
        Vantage::Sandbox => "sandbox",
        Vantage::User => "user",
    };
    let outside = evidence.traces.iter().any(|t| {
        t.agent == plan.agent.as_str()
            && t.vantage == word
            && t.check == check.id
            && t.target == target
    });
    let measured = said.map(|f| outcome(check, f));
    let verdict = judge(check, promised, &control, measured, outside);
    let evidence = match (said, outside) {
        (Some(f), true) => format!("seen from outside; the probe says: {}", f.evidence),
        (None, true) => "seen from outside".to_owned(),
        (Some(f), false) => f.evidence.clone(),
        (None, false) => "the probe did not report it".to_owned(),
    };
    Cell {
        check,
        vantage,
        targets: vec![target.to_owned()],
        promised,
        why_not: (!promised).then(|| when.why_not(&case)),
        verdict,
        layer: said.and_then(|f| layer(check, plan.level, vantage, peer.is_some(), f, alone)),
        measured,
        errno: said.map_or(0, |f| f.errno),
        evidence,
        control: control.text(),
    }
}

impl Measured {
    /// An agent of this plan, with nothing measured yet.
    #[must_use]
    pub fn new(agent: &AgentId, level: Level, runs: bool) -> Self {
        Self {
            agent: agent.clone(),
            level: level.number(),
            boundary: level.word(),
            lowered: false,
            runs,
            fault: None,
            loosened: Vec::new(),
            inventories: BTreeMap::new(),
            cells: Vec::new(),
        }
    }

    /// Its name, and the level if it is not its own.
    #[must_use]
    pub fn name(&self) -> String {
        match self.lowered {
            true => format!("{} at level {}", self.agent, self.level),
            false => self.agent.to_string(),
        }
    }

    /// How many targets have this verdict, in one area or in all.
    #[must_use]
    pub fn count(&self, area: Option<Area>, verdict: Verdict) -> usize {
        self.cells
            .iter()
            .filter(|c| area.is_none_or(|a| c.check.area == a) && c.verdict == verdict)
            .map(|c| c.targets.len())
            .sum()
    }

    /// The worst that was found: nothing measured is as bad as unknown.
    #[must_use]
    pub fn worst(&self, area: Option<Area>) -> Option<Verdict> {
        let cells = self.cells.iter().filter(|c| area.is_none_or(|a| c.check.area == a));
        cells.map(|c| c.verdict).max()
    }

    /// The worst of the cells that are aimed at one agent.
    #[must_use]
    pub fn against(&self, target: &str) -> Option<Verdict> {
        let cells = self.cells.iter().filter(|c| c.targets.iter().any(|t| t == target));
        let cells = cells.filter(|c| c.verdict != Verdict::NotHere);
        cells.map(|c| c.verdict).max()
    }

    /// Whether every promise to keep this agent in was measured and held.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.fault.is_none()
            && self.count(None, Verdict::Blocked) > 0
            && self.cells.iter().all(|cell| cell.verdict.is_good())
    }
}

impl Matrix {
    /// The agents, and after them the same at lower levels.
    pub fn all(&self) -> impl Iterator<Item = &Measured> {
        self.agents.iter().chain(&self.lower)
    }

    /// Whether every promise was measured and held.
    #[must_use]
    pub fn is_good(&self) -> bool {
        !self.agents.is_empty() && self.all().all(Measured::is_good)
    }
}
