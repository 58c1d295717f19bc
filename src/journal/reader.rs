//! A running journalctl, line by line.

use std::process::Stdio;

use serde_json::{Map, Value};
use tokio::io::{AsyncReadExt as _, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::task::JoinHandle;

use crate::journal::entry::text;
use crate::journal::{Entry, JournalError, Source};
use crate::lines::{self, Line};
use crate::names::AgentId;
use crate::text::printable;

/// The program that reads the journal.
pub(super) const JOURNALCTL: &str = "/usr/bin/journalctl";
/// The longest entry that is read, as journalctl's JSON.
pub(super) const ENTRY_MAX: usize = 1 << 20;
/// How much of journalctl's complaint is kept.
const COMPLAINT_MAX: u64 = 2048;
/// What is asked of each entry; less to write and to read than all of it.
const FIELDS: &str =
    "MESSAGE,PRIORITY,SYSLOG_IDENTIFIER,UNIT,OBJECT_SYSTEMD_UNIT,_PID,_UID,_SYSTEMD_UNIT";
/// As whom the audit log tells the journal of its records; `launch` and `halt` do from a handle.
const WITNESS: &str = "flock-audit";

/// An entry and where in the journal it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// What.
    pub entry: Entry,
    /// Where.
    pub cursor: String,
    /// Whether it is the audit log's word and no line of the agent's log.
    pub witness: bool,
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// An agent's entry.
    Written(Box<Written>),
    /// Another entry's cursor.
    Other(String),
    /// An entry of more than [`ENTRY_MAX`] bytes; whose it is, is not known.
    TooLong,
    /// All was read.
    End,
}

impl Written {
    fn new(cursor: String, entry: Entry, fields: &Map<String, Value>) -> Self {
        let named = fields.get("SYSLOG_IDENTIFIER").map(text).is_some_and(|name| name == WITNESS);
        // An agent that calls itself so hides nothing.
        let witness = named && entry.source == Source::Flock;
        Self { entry, cursor, witness }
    }
}

impl Next {
    fn parse(line: &[u8]) -> Option<Self> {
        let fields: Map<String, Value> = serde_json::from_slice(line).ok()?;
        let cursor = fields.get("__CURSOR").map(text)?;
        Some(match Entry::of(&fields) {
            Some(entry) => Self::Written(Box::new(Written::new(cursor, entry, &fields))),
            None => Self::Other(cursor),
        })
    }
}

/// What selects the entries of these agents, by fields that an agent cannot forge: what its
/// processes wrote; what PID 1 says of it; what its launch wrote as root.
pub fn matches<'a>(agents: impl Iterator<Item = &'a AgentId> + Clone) -> Vec<String> {
    // Matches on one field are alternatives, on different ones conditions.
    let mut all: Vec<String> =
        agents.clone().map(|id| format!("_SYSTEMD_UNIT={}", id.agent_unit())).collect();
    all.push("+".to_owned());
    all.extend(agents.clone().map(|id| format!("UNIT={}", id.agent_unit())));
    all.push("_PID=1".to_owned());
    all.push("+".to_owned());
    all.extend(agents.clone().map(|id| format!("_SYSTEMD_UNIT={}", id.handle_unit())));
    all.push("_UID=0".to_owned());
    all.push("+".to_owned());
    all.extend(agents.map(|id| format!("OBJECT_SYSTEMD_UNIT={}", id.handle_unit())));
    all.push("_UID=0".to_owned());
    all
}

/// A running journalctl. Dropping it ends the program.
pub struct Reader {
    child: Child,
    output: BufReader<ChildStdout>,
    complaint: JoinHandle<String>,
}

impl Reader {
    /// Starts journalctl. Needs root, or membership in `systemd-journal`, to see anything.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn start(arguments: Vec<String>) -> Result<Self, JournalError> {
        let mut child = Command::new(JOURNALCTL)
            .args(["--output=json", "--quiet", "--no-pager", "--output-fields", FIELDS])
            .args(arguments)
            .env("SYSTEMD_COLORS", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(JournalError::Run)?;
        let missing = || JournalError::Read(std::io::ErrorKind::BrokenPipe.into());
        let output = BufReader::new(child.stdout.take().ok_or_else(missing)?);
        let errors = child.stderr.take().ok_or_else(missing)?;
        let complaint = tokio::spawn(async move {
            let mut text = Vec::new();
            let _ = errors.take(COMPLAINT_MAX).read_to_end(&mut text).await;
            String::from_utf8_lossy(&text).trim().to_owned()
        });
        Ok(Self { child, output, complaint })
    }

    /// The next entry; [`Next::End`] only after journalctl said that all went well. Must not be
    /// dropped before it is done: the part of a line that was read would be lost.
    ///
    /// # Errors
    /// When journalctl fails; the text is its own complaint.
    pub async fn next(&mut self) -> Result<Next, JournalError> {
        loop {
            match lines::next(&mut self.output, ENTRY_MAX).await.map_err(JournalError::Read)? {
                Line::End => return self.end().await,
                Line::TooLong => return Ok(Next::TooLong),
                Line::Whole(line) => {
                    if let Some(next) = Next::parse(&line) {
                        return Ok(next);
                    }
                }
            }
        }
    }

    async fn end(&mut self) -> Result<Next, JournalError> {
        let status = self.child.wait().await.map_err(JournalError::Read)?;
        let complaint = (&mut self.complaint).await.unwrap_or_default();
        // A cursor that no entry is at, and no entry behind it: it says nothing and ends with 1.
        match status.success() || status.code() == Some(1) && complaint.is_empty() {
            true => Ok(Next::End),
            false => Err(JournalError::Failed(printable(&complaint))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(line: &[u8]) -> Option<Written> {
        match Next::parse(line)? {
            Next::Written(written) => Some(*written),
            _ => None,
        }
    }

    #[test]
    fn only_fields_that_an_agent_cannot_forge_select() {
        let ids = ["a", "b"].map(|id| AgentId::parse(id).unwrap());
        assert_eq!(
            matches(ids.iter()).join(" "),
            "_SYSTEMD_UNIT=flock-agent@a.service _SYSTEMD_UNIT=flock-agent@b.service + \
             UNIT=flock-agent@a.service UNIT=flock-agent@b.service _PID=1 + \
             _SYSTEMD_UNIT=flock@a.service _SYSTEMD_UNIT=flock@b.service _UID=0 + \
             OBJECT_SYSTEMD_UNIT=flock@a.service OBJECT_SYSTEMD_UNIT=flock@b.service _UID=0"
        );
    }

    #[test]
    fn an_entry_has_a_place() {
        let line = br#"{"__CURSOR":"s=1","__REALTIME_TIMESTAMP":"1","_SYSTEMD_UNIT":"flock-agent@a.service","MESSAGE":"x"}"#;
        assert_eq!(written(line).unwrap().cursor, "s=1");
        assert_eq!(Next::parse(br#"{"__CURSOR":"s=2"}"#), Some(Next::Other("s=2".to_owned())));
        assert_eq!(Next::parse(b"{}"), None);
    }

    #[test]
    fn the_audit_logs_word_is_told_apart_and_no_agent_can_give_it() {
        let witness = |fields: &str| {
            let head =
                r#""__CURSOR":"s=1","__REALTIME_TIMESTAMP":"1","SYSLOG_IDENTIFIER":"flock-audit""#;
            written(format!("{{{head},{fields}}}").as_bytes()).unwrap().witness
        };
        assert!(witness(r#""_SYSTEMD_UNIT":"flock@a.service","_UID":"0""#));
        assert!(!witness(r#""_SYSTEMD_UNIT":"flock-agent@a.service""#));
    }
}
