//! The log of an agent, from the journal, by fields that an agent cannot forge.
//!
//! journald stamps `_SYSTEMD_UNIT=` and `_PID=` itself. What an agent writes into other fields
//! (`UNIT=`, `FLOCK_AGENT=`, `SYSLOG_IDENTIFIER=`) selects nothing here.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::names::AgentId;

/// One stretch of the journal, exactly.
mod batch;
/// One entry of an agent's log.
mod entry;
/// Where an entry stands.
mod place;
/// A running journalctl, line by line.
mod reader;

pub use batch::{Batch, Bell, newest, read_batch, this_boot};
pub use entry::{Entry, Source};
pub use place::Place;
pub use reader::Written;
use reader::{ENTRY_MAX, JOURNALCTL, Next, Reader, matches};

/// The longest `--since`.
const SINCE_MAX: usize = 64;
/// The most lines that one request can ask for.
pub const LINES_MAX: u32 = 1_000_000;
/// So much of a task's id is enough to name it.
pub const TASK_MIN: usize = 6;

/// Whether this stream goes to the journal, see systemd.exec(5) on `JOURNAL_STREAM`.
#[must_use]
pub fn is(stream: impl AsFd) -> bool {
    let here = rustix::fs::fstat(stream).map(|stat| format!("{}:{}", stat.st_dev, stat.st_ino));
    std::env::var_os("JOURNAL_STREAM").is_some_and(|journal| here.is_ok_and(|h| *journal == *h))
}

/// Which part of which logs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// Whose log; none means every configured agent's.
    pub agent: Option<AgentId>,
    /// At most this many lines, the newest.
    pub lines: Option<u32>,
    /// Not older than this, as journalctl reads it: `-1h`, `today`, `2026-11-21 10:00`.
    pub since: Option<String>,
    /// Not newer than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// Only lines of this task; the beginning of its id is enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// Wait for more.
    pub follow: bool,
}

/// Why a log could not be read.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// `--since` is too long to be a time, or not text.
    #[error("read the log: {0:?} is no time: use for example -1h, today or \"2026-11-21 10:00\"")]
    Since(String),
    /// Too short to name a task.
    #[error("read the log: {0:?} names no task: give at least {TASK_MIN} characters of its id")]
    Task(String),
    /// journalctl is missing or cannot be run.
    #[error("run {JOURNALCTL}: {0}: install the package systemd")]
    Run(#[source] io::Error),
    /// journalctl's output ended in an error.
    #[error("read from {JOURNALCTL}: {0}")]
    Read(#[source] io::Error),
    /// journalctl says why.
    #[error("{JOURNALCTL} failed: {0}")]
    Failed(String),
    /// The journal's files were renamed or removed meanwhile; nothing was taken.
    #[error("read the journal: its files changed meanwhile")]
    Moved,
}

impl Query {
    /// The last lines of an agent.
    #[must_use]
    pub fn last(agent: &AgentId, lines: u32) -> Self {
        Self {
            agent: Some(agent.clone()),
            lines: Some(lines),
            since: None,
            until: None,
            task: None,
            follow: false,
        }
    }

    /// How many of the newest lines are kept here, of more that journalctl gives.
    fn kept(&self) -> Option<usize> {
        self.lines.filter(|_| !self.follow).map(|lines| lines as usize)
    }

    /// The arguments of journalctl for the logs of these agents.
    fn arguments(&self, agents: &[AgentId]) -> Result<Vec<String>, JournalError> {
        let mut all = vec!["--all".to_owned()];
        match self.lines {
            Some(lines) if self.task.is_none() => {
                let lines = lines.min(LINES_MAX);
                // Some are the audit log's and not shown: a launch or halt has one, and others.
                let more = if self.follow { lines } else { lines * 2 };
                all.push(format!("--lines={more}"));
            }
            _ => all.push("--lines=all".to_owned()),
        }
        for (option, time) in [("since", &self.since), ("until", &self.until)] {
            let Some(time) = time else { continue };
            if time.len() > SINCE_MAX || time.chars().any(char::is_control) {
                return Err(JournalError::Since(time.chars().take(SINCE_MAX).collect()));
            }
            all.push(format!("--{option}={time}"));
        }
        if let Some(task) = self.task.as_ref().filter(|task| task.len() < TASK_MIN) {
            return Err(JournalError::Task(task.clone()));
        }
        if self.follow {
            all.push("--follow".to_owned());
        }
        all.extend(matches(agents.iter()));
        Ok(all)
    }

    fn takes(&self, entry: &Entry) -> bool {
        let is_of = |task: &String| entry.task.as_ref().is_some_and(|id| id.starts_with(task));
        self.task.as_ref().is_none_or(is_of)
    }
}

/// The log of some agents. Dropping it ends the reading.
pub struct Journal {
    query: Query,
    reader: Reader,
    /// With a number of lines: the newest, once all are read.
    kept: Option<VecDeque<Entry>>,
}

impl Journal {
    /// Starts reading; `everyone` is whose logs are meant when the query names nobody. Needs root,
    /// or membership in `systemd-journal`, to see anything.
    ///
    /// # Errors
    /// When the query is wrong, or journalctl cannot be run.
    pub fn open(query: &Query, everyone: &[AgentId]) -> Result<Self, JournalError> {
        let agents = query.agent.as_ref().map_or(everyone, std::slice::from_ref);
        let reader = Reader::start(query.arguments(agents)?)?;
        Ok(Self { query: query.clone(), reader, kept: None })
    }

    /// The next entry; `None` at the end.
    ///
    /// # Errors
    /// When journalctl fails; the text is its own complaint.
    pub async fn next(&mut self) -> Result<Option<Entry>, JournalError> {
        let Some(most) = self.query.kept() else {
            return self.read().await;
        };
        if self.kept.is_none() {
            let mut kept = VecDeque::new();
            while let Some(entry) = self.read().await? {
                kept.push_back(entry);
                if kept.len() > most {
                    kept.pop_front();
                }
            }
            self.kept = Some(kept);
        }
        Ok(self.kept.as_mut().and_then(VecDeque::pop_front))
    }

    async fn read(&mut self) -> Result<Option<Entry>, JournalError> {
        loop {
            match self.reader.next().await? {
                Next::End => return Ok(None),
                Next::Written(written) if !written.witness && self.query.takes(&written.entry) => {
                    return Ok(Some(written.entry));
                }
                Next::TooLong if self.query.task.is_none() => {
                    if let Some(agent) = &self.query.agent {
                        let text = format!("an entry of more than {ENTRY_MAX} bytes is left out");
                        return Ok(Some(Entry::remark(agent, Timestamp::now(), &text)));
                    }
                }
                Next::Written(_) | Next::Other(_) | Next::TooLong => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> AgentId {
        AgentId::parse("a").unwrap()
    }

    fn arguments(query: &Query) -> Result<Vec<String>, JournalError> {
        query.arguments(&[id()])
    }

    #[test]
    fn a_query_becomes_arguments() {
        let query = Query { since: Some("-1h".into()), follow: true, ..Query::last(&id(), 5) };
        let text = arguments(&query).unwrap().join(" ");
        assert!(text.starts_with("--all --lines=5 --since=-1h --follow _SYSTEMD_UNIT="), "{text}");
        let of_task = Query { task: Some("0199ab".into()), ..query };
        assert!(arguments(&of_task).unwrap().join(" ").starts_with("--all --lines=all --since"));
        assert!(arguments(&Query { task: Some("0199a".into()), ..of_task }).is_err());
    }

    #[test]
    fn a_time_that_is_none_is_refused() {
        let since = |time: &str| Query { since: Some(time.into()), ..Query::last(&id(), 1) };
        let until = |time: &str| Query { until: Some(time.into()), ..Query::last(&id(), 1) };
        for bad in ["a\nb", &"1".repeat(65)] {
            assert!(arguments(&since(bad)).is_err() && arguments(&until(bad)).is_err());
        }
        // One argument, whatever stands in it: it cannot become an option of its own.
        let arguments = arguments(&since("--file=/etc/shadow")).unwrap();
        assert!(arguments.contains(&"--since=--file=/etc/shadow".to_owned()));
    }
}
