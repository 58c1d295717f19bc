//! What flockd does when an agent has ended for good: it records why, and ends the handle.
//!
//! PID 1 alone restarts agents. As long as it may do so, or a job waits, nothing is done here.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::host::units::Systemd;
use crate::names::AgentId;
use crate::status::facts::Facts;
use crate::status::systemd::{Units, facts};
use crate::status::{Ending, Kind, Records};

/// An agent that was gone this long while its handle stood, with no job for either, was stopped
/// behind its handle's back.
const GONE_FOR: Duration = Duration::from_secs(2);

/// A final end that has not been dealt with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The unit is `failed`, and PID 1 will not start it again.
    Failed,
    /// The processes ended with exit status 0.
    Finished,
    /// The unit is not there any more, but its handle is.
    Gone,
}

/// Reads an end from the two units of an agent. Pure.
#[must_use]
pub fn end_of(units: &Units) -> Option<End> {
    // While the handle starts, stops or has a job, launch and halt are at work: hands off.
    let settled = match &units.handle {
        None => true,
        Some(row) => !row.job && matches!(row.active.as_str(), "active" | "inactive" | "failed"),
    };
    let up = units.handle.as_ref().is_some_and(|row| row.is_settled_active());
    match &units.unit {
        _ if !settled => None,
        Some(row) if row.is_final_failure() => Some(End::Failed),
        Some(row) if row.is_clean_end() => Some(End::Finished),
        Some(row) if row.active != "inactive" || row.job => None,
        _ => up.then_some(End::Gone),
    }
}

/// How far the stop of an agent that ran has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// It runs, or it ended in another way.
    Not,
    /// One of its units is not at rest.
    OnTheWay,
    /// Both units are gone or inactive.
    Done,
}

/// Reads it from the two units. Pure.
fn stop_of(units: Option<&Units>) -> Stop {
    let rows = units.into_iter().flat_map(|units| [&units.unit, &units.handle]).flatten();
    let mut stop = Stop::Done;
    for row in rows {
        match row.active.as_str() {
            _ if row.job => stop = Stop::OnTheWay,
            "inactive" => {}
            "activating" | "deactivating" => stop = Stop::OnTheWay,
            _ => return Stop::Not,
        }
    }
    stop
}

/// Deals with ends, each once.
#[derive(Default)]
pub struct Ends {
    records: Records,
    /// Handles whose agent was not there, since when.
    gone: BTreeMap<AgentId, Instant>,
    /// Agents that ran at the last look.
    ran: BTreeSet<AgentId>,
}

impl Ends {
    /// Whether something has to be looked at again soon.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        !self.gone.is_empty()
    }

    /// Looks at every agent that PID 1 listed.
    pub async fn settle(&mut self, systemd: &Systemd, agents: &BTreeMap<AgentId, Units>) {
        self.note_stops(agents);
        let now = Instant::now();
        self.gone.retain(|id, _| agents.get(id).and_then(end_of) == Some(End::Gone));
        for (id, units) in agents {
            match end_of(units) {
                None => self.forgive(id, units),
                Some(End::Gone) => {
                    let since = *self.gone.entry(id.clone()).or_insert(now);
                    if now.duration_since(since) >= GONE_FOR {
                        self.gone.remove(id);
                        tracing::warn!(agent = %id, "{id} was stopped behind its handle's back");
                        self.record(id, &Ending::of(Kind::Stopped, &Facts::default()));
                        stop_handle(systemd, id).await;
                    }
                }
                Some(End::Failed) => self.conclude(systemd, id, units, Kind::Failed).await,
                Some(End::Finished) => self.conclude(systemd, id, units, Kind::Finished).await,
            }
        }
    }

    /// Records why, and ends the handle if it stands.
    async fn conclude(&mut self, systemd: &Systemd, id: &AgentId, units: &Units, kind: Kind) {
        let facts = match facts(systemd, id).await {
            // Started again since the list was made: the end is not final any more.
            Ok(facts) if facts.main_pid != 0 || facts.invocation.is_empty() => return,
            Ok(facts) => facts,
            Err(error) => {
                tracing::warn!(agent = %id, "read how {id} ended: {error}");
                return;
            }
        };
        let known = self.records.last(id).is_some_and(|last| last.invocation == facts.invocation);
        if !known {
            let ending = Ending::of(kind, &facts);
            match kind {
                Kind::Failed => tracing::error!(
                    agent = %id, result = %ending.result, invocation = %ending.invocation,
                    "{id} failed: {}", ending.reason
                ),
                _ => tracing::info!(agent = %id, "{id} finished: {}", ending.reason),
            }
            self.record(id, &ending);
        }
        if units.handle.as_ref().is_some_and(|row| row.is_settled_active()) {
            stop_handle(systemd, id).await;
        }
    }

    /// An agent that ran and is not there any more, nor its handle, was stopped on request.
    fn note_stops(&mut self, agents: &BTreeMap<AgentId, Units>) {
        let mut on_the_way = Vec::new();
        for id in std::mem::take(&mut self.ran) {
            match stop_of(agents.get(&id)) {
                Stop::Not => {}
                Stop::OnTheWay => on_the_way.push(id),
                Stop::Done => {
                    tracing::info!(agent = %id, "{id} was stopped");
                    self.record(&id, &Ending::of(Kind::Stopped, &Facts::default()));
                }
            }
        }
        let runs = |units: &Units| units.unit.as_ref().is_some_and(|row| row.sub == "running");
        let running = agents.iter().filter(|(_, units)| runs(units)).map(|(id, _)| id.clone());
        self.ran = on_the_way.into_iter().chain(running).collect();
    }

    /// A marker of a failure must not outlive the next start.
    fn forgive(&self, id: &AgentId, units: &Units) {
        let runs = units.unit.as_ref().is_some_and(|row| row.sub == "running" && !row.job);
        if runs
            && self.records.failed(id).is_some()
            && let Err(error) = self.records.forgive(id)
        {
            tracing::warn!(agent = %id, "{error}");
        }
    }

    fn record(&self, id: &AgentId, ending: &Ending) {
        if let Err(error) = self.records.save(id, ending) {
            tracing::error!(agent = %id, "{error}");
        }
    }
}

/// The handle's ExecStop= reads the record, so the handle shows `failed` for a failed agent.
async fn stop_handle(systemd: &Systemd, id: &AgentId) {
    if let Err(error) = systemd.stop(&id.handle_unit()).await {
        tracing::warn!(agent = %id, "end the handle of {id}: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::facts::Row;

    fn row(active: &str, sub: &str, job: bool) -> Option<Row> {
        Some(Row { active: active.into(), sub: sub.into(), job })
    }

    #[test]
    fn a_stop_counts_when_both_units_are_at_rest() {
        let stop = |unit, handle| stop_of(Some(&Units { unit, handle }));
        let up = || row("active", "exited", false);
        assert_eq!(stop_of(None), Stop::Done);
        assert_eq!(stop(None, row("inactive", "dead", false)), Stop::Done);
        assert_eq!(stop(None, row("deactivating", "stop", false)), Stop::OnTheWay);
        assert_eq!(stop(None, row("inactive", "dead", true)), Stop::OnTheWay);
        assert_eq!(stop(row("active", "running", false), up()), Stop::Not);
        assert_eq!(stop(row("failed", "failed", false), up()), Stop::Not);
        assert_eq!(stop(None, row("failed", "failed", false)), Stop::Not);
    }

    #[test]
    fn only_final_ends_count_and_never_against_a_job() {
        let up = || row("active", "exited", false);
        let table = [
            (row("failed", "failed", false), up(), Some(End::Failed)),
            (row("failed", "failed", false), None, Some(End::Failed)),
            (row("active", "exited", false), up(), Some(End::Finished)),
            (None, up(), Some(End::Gone)),
            (row("inactive", "dead", false), up(), Some(End::Gone)),
            // PID 1 restarts it, or will.
            (row("activating", "auto-restart", false), up(), None),
            (row("failed", "failed", true), up(), None),
            (row("active", "exited", true), up(), None),
            (row("inactive", "dead", true), up(), None),
            // Launch or halt is at work.
            (row("failed", "failed", false), row("activating", "start", false), None),
            (row("failed", "failed", false), row("deactivating", "stop", false), None),
            (row("failed", "failed", false), row("active", "exited", true), None),
            (None, row("active", "exited", true), None),
            (None, row("activating", "start", false), None),
            // Nothing to do.
            (row("active", "running", false), up(), None),
            (row("deactivating", "stop-sigterm", false), up(), None),
            (None, row("inactive", "dead", false), None),
            (None, row("failed", "failed", false), None),
            (None, None, None),
        ];
        for (unit, handle, end) in table {
            let units = Units { unit, handle };
            assert_eq!(end_of(&units), end, "{units:?}");
        }
    }
}
