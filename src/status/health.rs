//! What only flockd knows: the sign of life of each agent, and flockd's own condition.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::history::Counts;
use crate::names::AgentId;
use crate::status::boundary::Standing;
use crate::text::span;

/// Agents send a heartbeat every 30 s. Later than this, two in a row are missing.
pub const LATE_AFTER_SECONDS: u64 = 75;

/// What flockd says of itself and of the agents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// flockd's version.
    pub version: String,
    /// When it was started.
    pub since: Timestamp,
    /// Whether it is connected to the bus.
    pub bus: Part,
    /// Whether the egress table holds what the configuration says.
    pub egress: Part,
    /// Whether it hears PID 1.
    pub systemd: Part,
    /// Whether the configuration on disk is applied.
    pub config: Part,
    /// Whether the history of tasks is being written.
    #[serde(default = "Part::fine")]
    pub history: Part,
    /// How many tasks wait, run and failed, by the history; none while it is not read.
    #[serde(default)]
    pub tasks: Option<Counts>,
    /// The last heartbeat of each agent that sent one since flockd was started.
    pub heartbeats: BTreeMap<AgentId, Timestamp>,
    /// What the last measurement found of each agent that ran then.
    #[serde(default)]
    pub boundary: BTreeMap<AgentId, Standing>,
    /// Whether the boundaries are measured.
    #[serde(default = "Part::fine")]
    pub measuring: Part,
    /// How many calls of tools wait for an operator.
    #[serde(default)]
    pub asks: usize,
}

/// The condition of one part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Whether it is as it should be.
    pub ok: bool,
    /// What is wrong, or what was repaired last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Part {
    /// As it should be.
    #[must_use]
    pub fn fine() -> Self {
        Self { ok: true, note: None }
    }

    /// Not as it should be, and why.
    #[must_use]
    pub fn broken(note: impl ToString) -> Self {
        Self { ok: false, note: Some(note.to_string()) }
    }
}

/// An agent's sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Health {
    /// The judgement.
    pub word: Word,
    /// Seconds since the last heartbeat.
    pub heartbeat_age_seconds: Option<u64>,
}

/// The judgement on a sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Word {
    /// A heartbeat came in time.
    Ok,
    /// Its boundary was measured, and a promise did not hold.
    Violation,
    /// At least two heartbeats are missing.
    Late,
    /// None came since flockd was started.
    None,
    /// flockd is not there to ask, or does not hear the bus, or the agent does not run.
    Unknown,
}

impl Health {
    /// Nothing is known.
    pub const UNKNOWN: Self = Self { word: Word::Unknown, heartbeat_age_seconds: None };

    /// The health of a running agent.
    #[must_use]
    pub fn of(agent: &AgentId, view: Option<&View>, now: Timestamp) -> Self {
        let Some(view) = view else { return Self::UNKNOWN };
        let alive = Self::alive(agent, view, now);
        let broken = |standing: &Standing| !standing.violations.is_empty();
        match view.boundary.get(agent).is_some_and(broken) {
            true => Self { word: Word::Violation, ..alive },
            false => alive,
        }
    }

    fn alive(agent: &AgentId, view: &View, now: Timestamp) -> Self {
        match view.heartbeats.get(agent) {
            None if view.bus.ok => Self { word: Word::None, heartbeat_age_seconds: None },
            None => Self::UNKNOWN,
            Some(at) => {
                let age = u64::try_from(now.as_second() - at.as_second()).unwrap_or_default();
                let word = match age {
                    ..=LATE_AFTER_SECONDS => Word::Ok,
                    _ if view.bus.ok => Word::Late,
                    _ => Word::Unknown,
                };
                Self { word, heartbeat_age_seconds: Some(age) }
            }
        }
    }

    /// For the table: `ok 12s`, `late 3min`, `-`.
    #[must_use]
    pub fn cell(self) -> String {
        let age = self.heartbeat_age_seconds.map(span).unwrap_or_default();
        match self.word {
            Word::Ok => format!("ok {age}"),
            Word::Late => format!("late {age}"),
            Word::Violation => "VIOLATION".to_owned(),
            Word::None => "none yet".to_owned(),
            Word::Unknown => "-".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_missing_heartbeats_are_late_and_silence_of_the_bus_is_not_the_agents() {
        let id = AgentId::parse("a").unwrap();
        let start = Timestamp::from_second(1_000_000).unwrap();
        let now = |age: i64| Timestamp::from_second(1_000_000 + age).unwrap();
        let mut view = View {
            version: "0".into(),
            since: start,
            bus: Part::fine(),
            egress: Part::fine(),
            systemd: Part::fine(),
            config: Part::fine(),
            history: Part::fine(),
            tasks: None,
            heartbeats: BTreeMap::new(),
            boundary: BTreeMap::new(),
            measuring: Part::fine(),
            asks: 0,
        };
        assert_eq!(Health::of(&id, None, start), Health::UNKNOWN);
        assert_eq!(Health::of(&id, Some(&view), start).cell(), "none yet");
        view.heartbeats.insert(id.clone(), start);
        assert_eq!(Health::of(&id, Some(&view), now(75)).cell(), "ok 1min 15s");
        assert_eq!(Health::of(&id, Some(&view), now(76)).cell(), "late 1min 16s");
        assert_eq!(Health::of(&id, Some(&view), now(-5)).cell(), "ok 0s");
        let standing = Standing { violations: vec!["x".into()], ..Standing::default() };
        view.boundary.insert(id.clone(), standing);
        assert_eq!(Health::of(&id, Some(&view), start).cell(), "VIOLATION");
        view.boundary.clear();
        view.bus = Part::broken("connection refused");
        assert_eq!(Health::of(&id, Some(&view), now(76)).word, Word::Unknown);
    }
}
