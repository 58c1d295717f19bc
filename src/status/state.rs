//! From what PID 1 says to the one word that people read. Pure.

use serde::{Deserialize, Serialize};

use crate::status::ending::{Ending, Kind};
use crate::status::facts::{Facts, Row};
use crate::status::reason::reason;

/// What an agent is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Its processes run.
    Running,
    /// It is being started.
    Starting,
    /// It is being stopped.
    Stopping,
    /// It ended, and PID 1 waits to start it again.
    Restarting,
    /// It ended with exit status 0 and is not started again.
    Finished,
    /// It ended with an error, or could not be started, and is not started again.
    Failed,
    /// Nobody started it, or somebody stopped it.
    Stopped,
    /// Its processes are held still.
    Frozen,
    /// PID 1 did not say.
    Unknown,
}

impl State {
    /// The word in the table and in JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Starting => "starting",
            Self::Stopping => "stopping",
            Self::Restarting => "restarting",
            Self::Finished => "finished",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
            Self::Frozen => "frozen",
            Self::Unknown => "unknown",
        }
    }

    /// Whether processes of the agent may exist.
    #[must_use]
    pub fn is_up(self) -> bool {
        matches!(self, Self::Running | Self::Starting | Self::Stopping | Self::Frozen)
    }
}

/// All that is known of one agent.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The transient unit, when PID 1 has it.
    pub unit: Option<(Row, Facts)>,
    /// The handle, when PID 1 has it.
    pub handle: Option<Row>,
    /// Why it failed, as flockd or the launch recorded it for this boot.
    pub failed: Option<Ending>,
    /// How it last ended, as flockd recorded it.
    pub last: Option<Ending>,
}

/// The state, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What it is doing.
    pub state: State,
    /// Why, for states that need a reason.
    pub reason: Option<String>,
    /// Something does not fit together, and what to do.
    pub warning: Option<String>,
}

impl Verdict {
    fn plain(state: State) -> Self {
        Self { state, reason: None, warning: None }
    }

    fn because(state: State, reason: String) -> Self {
        Self { state, reason: Some(reason), warning: None }
    }
}

/// Judges one agent. The transient unit's word counts; without one, the handle's; then the records.
#[must_use]
pub fn judge(seen: &Seen) -> Verdict {
    match &seen.unit {
        Some((row, facts)) if row.active != "inactive" => by_unit(row, facts),
        _ => by_handle(seen),
    }
}

fn by_unit(row: &Row, facts: &Facts) -> Verdict {
    if facts.frozen {
        return Verdict::plain(State::Frozen);
    }
    match (row.active.as_str(), row.sub.as_str()) {
        ("failed", _) => Verdict::because(State::Failed, reason(facts)),
        ("activating", "auto-restart" | "auto-restart-queued") => {
            Verdict::because(State::Restarting, reason(facts))
        }
        ("activating", _) => Verdict::plain(State::Starting),
        ("active", "exited") => Verdict::because(State::Finished, "exit status 0".to_owned()),
        ("active" | "reloading" | "refreshing", _) => Verdict::plain(State::Running),
        ("deactivating", _) => Verdict::plain(State::Stopping),
        _ => Verdict::because(State::Unknown, format!("systemd says {} ({})", row.active, row.sub)),
    }
}

fn by_handle(seen: &Seen) -> Verdict {
    let handle = seen.handle.as_ref().map_or("inactive", |row| row.active.as_str());
    match handle {
        "activating" => Verdict::plain(State::Starting),
        "deactivating" => Verdict::plain(State::Stopping),
        "failed" => Verdict::because(State::Failed, recorded_failure(seen)),
        "active" | "reloading" => Verdict {
            state: State::Stopped,
            reason: None,
            warning: Some(
                "its handle is still up although its processes are gone; stop or restart the agent"
                    .to_owned(),
            ),
        },
        _ => by_record(seen),
    }
}

fn recorded_failure(seen: &Seen) -> String {
    match &seen.failed {
        Some(ending) => ending.reason.clone(),
        None => "could not be started; the journal of its handle says why".to_owned(),
    }
}

fn by_record(seen: &Seen) -> Verdict {
    match &seen.last {
        Some(last) if last.kind == Kind::Finished => {
            Verdict::because(State::Finished, last.reason.clone())
        }
        _ => Verdict::plain(State::Stopped),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(active: &str, sub: &str) -> Row {
        Row { active: active.into(), sub: sub.into(), job: false }
    }

    fn unit(active: &str, sub: &str) -> Seen {
        let facts =
            Facts { result: "exit-code".into(), exit_code: 1, exit_status: 7, ..Facts::default() };
        Seen {
            unit: Some((row(active, sub), facts)),
            handle: Some(row("active", "exited")),
            ..Seen::default()
        }
    }

    fn handle(active: &str) -> Seen {
        Seen { handle: Some(row(active, "x")), ..Seen::default() }
    }

    #[test]
    fn each_pair_of_units_has_one_word() {
        let frozen = {
            let mut seen = unit("active", "running");
            seen.unit.as_mut().unwrap().1.frozen = true;
            seen
        };
        let marked = Seen { failed: Some(Ending::refused("no such user")), ..handle("failed") };
        let done = Seen { last: Some(Ending::finished_for_test()), ..Seen::default() };
        let table = [
            (unit("active", "running"), State::Running, None),
            (unit("active", "exited"), State::Finished, Some("exit status 0")),
            (unit("activating", "start"), State::Starting, None),
            (unit("activating", "auto-restart"), State::Restarting, Some("exit status 7")),
            (unit("activating", "auto-restart-queued"), State::Restarting, Some("exit status 7")),
            (unit("deactivating", "stop-sigterm"), State::Stopping, None),
            (unit("failed", "failed"), State::Failed, Some("exit status 7")),
            (unit("maintenance", "x"), State::Unknown, Some("systemd says maintenance (x)")),
            (frozen, State::Frozen, None),
            (handle("activating"), State::Starting, None),
            (handle("deactivating"), State::Stopping, None),
            (
                handle("failed"),
                State::Failed,
                Some("could not be started; the journal of its handle says why"),
            ),
            (marked, State::Failed, Some("no such user")),
            (handle("inactive"), State::Stopped, None),
            (Seen::default(), State::Stopped, None),
            (done, State::Finished, Some("exit status 0")),
        ];
        for (seen, state, reason) in table {
            let verdict = judge(&seen);
            assert_eq!((verdict.state, verdict.reason.as_deref()), (state, reason), "{seen:?}");
        }
    }

    #[test]
    fn a_handle_without_its_agent_is_named() {
        let mut seen = unit("inactive", "dead");
        let verdict = judge(&seen);
        assert_eq!(verdict.state, State::Stopped);
        assert!(verdict.warning.is_some());
        seen.handle = None;
        assert_eq!(judge(&seen).warning, None);
    }

    #[test]
    fn an_unknown_exit_is_never_called_success() {
        for active in ["failed", "activating", "maintenance", ""] {
            assert_ne!(judge(&unit(active, "auto-restart")).state, State::Finished);
        }
    }
}
