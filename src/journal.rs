//! The log of an agent, from the journal, by fields that an agent cannot forge.
//!
//! journald stamps `_SYSTEMD_UNIT=` and `_PID=` itself. What an agent writes into other fields
//! (`UNIT=`, `FLOCK_AGENT=`, `SYSLOG_IDENTIFIER=`) selects nothing here.

use std::fmt::Write as _;
use std::io;
use std::os::fd::AsFd;
use std::process::Stdio;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::io::{AsyncReadExt as _, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::task::JoinHandle;

use crate::lines::{self, Line};
use crate::names::AgentId;
use crate::text::printable;

/// The program that reads the journal.
const JOURNALCTL: &str = "/usr/bin/journalctl";
/// The longest entry that is shown, as journalctl's JSON.
const ENTRY_MAX: usize = 1 << 20;
/// How much of journalctl's complaint is kept.
const COMPLAINT_MAX: u64 = 2048;
/// The longest `--since`.
const SINCE_MAX: usize = 64;
/// The most lines that one request can ask for.
pub const LINES_MAX: u32 = 1_000_000;

/// Whether this stream goes to the journal, see systemd.exec(5) on `JOURNAL_STREAM`.
#[must_use]
pub fn is(stream: impl AsFd) -> bool {
    let here = rustix::fs::fstat(stream).map(|stat| format!("{}:{}", stat.st_dev, stat.st_ino));
    std::env::var_os("JOURNAL_STREAM").is_some_and(|journal| here.is_ok_and(|h| *journal == *h))
}

/// Which part of an agent's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// Whose log.
    pub agent: AgentId,
    /// At most this many lines, the newest.
    pub lines: Option<u32>,
    /// Not older than this, as journalctl reads it: `-1h`, `today`, `2026-11-21 10:00`.
    pub since: Option<String>,
    /// Wait for more.
    pub follow: bool,
}

/// Why a log could not be read.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// `--since` is too long to be a time, or not text.
    #[error("read the log: {0:?} is no time: use for example -1h, today or \"2026-11-21 10:00\"")]
    Since(String),
    /// journalctl is missing or cannot be run.
    #[error("run {JOURNALCTL}: {0}: install the package systemd")]
    Run(#[source] io::Error),
    /// journalctl's output ended in an error.
    #[error("read from {JOURNALCTL}: {0}")]
    Read(#[source] io::Error),
    /// journalctl says why.
    #[error("{JOURNALCTL} failed: {0}")]
    Failed(String),
}

impl Query {
    /// The last lines of an agent.
    #[must_use]
    pub fn last(agent: &AgentId, lines: u32) -> Self {
        Self { agent: agent.clone(), lines: Some(lines), since: None, follow: false }
    }

    /// The arguments of journalctl.
    fn arguments(&self) -> Result<Vec<String>, JournalError> {
        let mut all = Vec::new();
        match self.lines {
            Some(lines) => all.push(format!("--lines={}", lines.min(LINES_MAX))),
            None => all.push("--lines=all".to_owned()),
        }
        if let Some(since) = &self.since {
            if since.len() > SINCE_MAX || since.chars().any(char::is_control) {
                return Err(JournalError::Since(since.chars().take(SINCE_MAX).collect()));
            }
            all.push(format!("--since={since}"));
        }
        if self.follow {
            all.push("--follow".to_owned());
        }
        let (unit, handle) = (self.agent.agent_unit(), self.agent.handle_unit());
        // What its processes wrote; what PID 1 says of it; what its launch wrote as root.
        all.push(format!("_SYSTEMD_UNIT={unit}"));
        all.push("+".to_owned());
        all.extend([format!("UNIT={unit}"), "_PID=1".to_owned()]);
        all.push("+".to_owned());
        all.extend([format!("_SYSTEMD_UNIT={handle}"), "_UID=0".to_owned()]);
        Ok(all)
    }
}

/// Who wrote an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The agent's processes.
    Agent,
    /// PID 1, about the agent's unit.
    Systemd,
    /// flock's own launch and halt.
    Flock,
}

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When journald received it.
    pub at: Timestamp,
    /// Who wrote it.
    pub source: Source,
    /// `emerg` to `debug`; the agent chooses this for its own lines.
    pub level: String,
    /// The process that wrote it.
    pub pid: Option<u32>,
    /// The text as it was written; bytes that are no UTF-8 are replaced.
    pub text: String,
}

impl Entry {
    /// Reads one line of `journalctl -o json`. `None` when it is none.
    fn parse(line: &[u8], agent: &AgentId) -> Option<Self> {
        Self::of(&serde_json::from_slice(line).ok()?, agent)
    }

    fn of(fields: &Map<String, Value>, agent: &AgentId) -> Option<Self> {
        let field = |name: &str| fields.get(name).map(text).unwrap_or_default();
        let at = field("__REALTIME_TIMESTAMP").parse().ok()?;
        let source = match field("_SYSTEMD_UNIT") {
            unit if unit == agent.agent_unit() => Source::Agent,
            unit if unit == agent.handle_unit() => Source::Flock,
            _ => Source::Systemd,
        };
        Some(Self {
            at: Timestamp::from_microsecond(at).ok()?,
            source,
            level: level(&field("PRIORITY")).to_owned(),
            pid: field("_PID").parse().ok(),
            text: field("MESSAGE"),
        })
    }

    /// The entry for people. Each line of it begins with what flock knows, so that no text of an
    /// agent can pass for another entry. No character of it can steer a terminal.
    #[must_use]
    pub fn render(&self, zone: &TimeZone) -> String {
        let time = self.at.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string();
        let source = match self.source {
            Source::Agent => "agent",
            Source::Systemd => "systemd",
            Source::Flock => "flock",
        };
        let head = format!("{time} {source:<7} {:<7} ", printable(&self.level));
        let mut out = String::new();
        for (index, line) in self.text.trim_end_matches('\n').split('\n').enumerate() {
            match index {
                0 => out.push_str(&head),
                _ => {
                    let _ = write!(out, "\n{:>width$}", "| ", width = head.len());
                }
            }
            out.push_str(&printable(line));
        }
        out
    }
}

/// What an agent's processes wrote, and where in the journal it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Who wrote it, by its unit.
    pub agent: AgentId,
    /// What.
    pub entry: Entry,
    /// Reading can go on after this.
    pub cursor: String,
}

impl Written {
    fn parse(line: &[u8]) -> Option<Self> {
        let fields: Map<String, Value> = serde_json::from_slice(line).ok()?;
        let field = |name: &str| fields.get(name).map(text).unwrap_or_default();
        let agent = AgentId::from_agent_unit(&field("_SYSTEMD_UNIT"))?;
        let entry = Entry::of(&fields, &agent)?;
        Some(Self { agent, entry, cursor: field("__CURSOR") })
    }
}

/// A field's value: text, bytes (as numbers), or several values of either kind.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let bytes: Option<Vec<u8>> =
                items.iter().map(|i| i.as_u64().and_then(|n| u8::try_from(n).ok())).collect();
            match bytes {
                Some(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                None => items.iter().map(text).collect::<Vec<_>>().join("\n"),
            }
        }
        Value::Number(number) => number.to_string(),
        Value::Null => "(too long to show)".to_owned(),
        _ => String::new(),
    }
}

fn level(priority: &str) -> &'static str {
    match priority {
        "0" => "emerg",
        "1" => "alert",
        "2" => "crit",
        "3" => "error",
        "4" => "warning",
        "5" => "notice",
        "7" => "debug",
        _ => "info",
    }
}

/// A running journalctl. Dropping it ends the program.
struct Reader {
    child: Child,
    output: BufReader<ChildStdout>,
    complaint: JoinHandle<String>,
}

impl Reader {
    fn start(arguments: Vec<String>) -> Result<Self, JournalError> {
        let mut child = Command::new(JOURNALCTL)
            .args(["--output=json", "--all", "--quiet", "--no-pager"])
            .args(arguments)
            .env("SYSTEMD_COLORS", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(JournalError::Run)?;
        let missing = || JournalError::Read(io::ErrorKind::BrokenPipe.into());
        let output = BufReader::new(child.stdout.take().ok_or_else(missing)?);
        let errors = child.stderr.take().ok_or_else(missing)?;
        let complaint = tokio::spawn(async move {
            let mut text = Vec::new();
            let _ = errors.take(COMPLAINT_MAX).read_to_end(&mut text).await;
            String::from_utf8_lossy(&text).trim().to_owned()
        });
        Ok(Self { child, output, complaint })
    }

    /// The next line; [`Line::End`] only after journalctl said that all went well.
    async fn next(&mut self) -> Result<Line, JournalError> {
        let line = lines::next(&mut self.output, ENTRY_MAX).await.map_err(JournalError::Read)?;
        if line == Line::End {
            let status = self.child.wait().await.map_err(JournalError::Read)?;
            if !status.success() {
                let complaint = (&mut self.complaint).await.unwrap_or_default();
                return Err(JournalError::Failed(printable(&complaint)));
            }
        }
        Ok(line)
    }
}

/// The log of one agent. Dropping it ends the reading.
pub struct Journal {
    agent: AgentId,
    reader: Reader,
}

impl Journal {
    /// Starts reading. Needs root, or membership in `systemd-journal`, to see anything.
    ///
    /// # Errors
    /// When the query is wrong, or journalctl cannot be run.
    pub fn open(query: &Query) -> Result<Self, JournalError> {
        Ok(Self { agent: query.agent.clone(), reader: Reader::start(query.arguments()?)? })
    }

    /// The next entry; `None` at the end.
    ///
    /// # Errors
    /// When journalctl fails; the text is its own complaint.
    pub async fn next(&mut self) -> Result<Option<Entry>, JournalError> {
        loop {
            match self.reader.next().await? {
                Line::End => return Ok(None),
                Line::TooLong => return Ok(Some(Self::left_out())),
                Line::Whole(line) => {
                    if let Some(entry) = Entry::parse(&line, &self.agent) {
                        return Ok(Some(entry));
                    }
                }
            }
        }
    }

    fn left_out() -> Entry {
        Entry {
            at: Timestamp::now(),
            source: Source::Flock,
            level: "warning".to_owned(),
            pid: None,
            text: format!("an entry of more than {ENTRY_MAX} bytes is left out here"),
        }
    }
}

/// What all of some agents' processes write from now on, or from a saved place on.
pub struct Follow(Reader);

impl Follow {
    /// Starts reading after `cursor`, else with what is written from now on.
    ///
    /// # Errors
    /// When journalctl cannot be run.
    pub fn open<'a>(
        agents: impl Iterator<Item = &'a AgentId>,
        cursor: Option<&str>,
    ) -> Result<Self, JournalError> {
        let mut arguments = vec!["--follow".to_owned()];
        match cursor {
            // With --follow alone journalctl begins with the last ten.
            Some(cursor) => {
                arguments.extend(["--no-tail".to_owned(), format!("--after-cursor={cursor}")]);
            }
            None => arguments.push("--lines=0".to_owned()),
        }
        // Matches on one field are alternatives.
        arguments.extend(agents.map(|id| format!("_SYSTEMD_UNIT={}", id.agent_unit())));
        Ok(Self(Reader::start(arguments)?))
    }

    /// The next entry. One that is too long to read is left out. Must not be dropped before it is
    /// done: the part of a line that was read would be lost.
    ///
    /// # Errors
    /// When journalctl fails or ends.
    pub async fn next(&mut self) -> Result<Written, JournalError> {
        loop {
            match self.0.next().await? {
                Line::End => return Err(JournalError::Failed("it ended".to_owned())),
                Line::TooLong => {}
                Line::Whole(line) => {
                    if let Some(written) = Written::parse(&line) {
                        return Ok(written);
                    }
                }
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

    fn parse(json: &str) -> Entry {
        Entry::parse(json.as_bytes(), &id()).unwrap()
    }

    #[test]
    fn only_fields_that_an_agent_cannot_forge_select() {
        let query = Query { agent: id(), lines: Some(5), since: Some("-1h".into()), follow: true };
        assert_eq!(
            query.arguments().unwrap().join(" "),
            "--lines=5 --since=-1h --follow \
             _SYSTEMD_UNIT=flock-agent@a.service + UNIT=flock-agent@a.service _PID=1 + \
             _SYSTEMD_UNIT=flock@a.service _UID=0"
        );
    }

    #[test]
    fn a_since_that_is_no_time_is_refused() {
        let with = |since: &str| Query { since: Some(since.into()), ..Query::last(&id(), 1) };
        assert!(with("a\nb").arguments().is_err());
        assert!(with(&"1".repeat(65)).arguments().is_err());
        // One argument, whatever stands in it: it cannot become an option of its own.
        let arguments = with("--file=/etc/shadow").arguments().unwrap();
        assert!(arguments.contains(&"--since=--file=/etc/shadow".to_owned()));
    }

    #[test]
    fn what_was_written_belongs_to_the_unit_that_journald_saw() {
        let line = |unit: &str| {
            format!(
                r#"{{"__CURSOR":"s=1","__REALTIME_TIMESTAMP":"1","_SYSTEMD_UNIT":"{unit}","FLOCK_AGENT":"b","UNIT":"flock-agent@b.service","MESSAGE":"x"}}"#
            )
        };
        let written = Written::parse(line("flock-agent@a.service").as_bytes()).unwrap();
        assert_eq!((written.agent, written.cursor.as_str()), (id(), "s=1"));
        assert_eq!(Written::parse(line("ssh.service").as_bytes()), None);
    }

    #[test]
    fn text_bytes_and_several_values_are_read() {
        let head =
            r#""__REALTIME_TIMESTAMP":"1700000000000000","_SYSTEMD_UNIT":"flock-agent@a.service""#;
        let entry = parse(&format!(r#"{{{head},"MESSAGE":"hi","PRIORITY":"3","_PID":"7"}}"#));
        assert_eq!(
            (entry.text.as_str(), entry.level.as_str(), entry.pid),
            ("hi", "error", Some(7))
        );
        assert_eq!(entry.source, Source::Agent);
        assert_eq!(parse(&format!(r#"{{{head},"MESSAGE":[104,255,27]}}"#)).text, "h\u{fffd}\u{1b}");
        assert_eq!(parse(&format!(r#"{{{head},"MESSAGE":["a",[98]]}}"#)).text, "a\nb");
        assert_eq!(parse(&format!("{{{head}}}")).text, "");
        assert_eq!(Entry::parse(b"-- No entries --", &id()), None);
    }

    #[test]
    fn an_agent_cannot_pass_for_systemd_nor_steer_the_terminal() {
        let entry = parse(
            r#"{"__REALTIME_TIMESTAMP":"1700000000000000","_SYSTEMD_UNIT":"flock-agent@a.service","UNIT":"flock-agent@a.service",
            "MESSAGE":"x\u001b[2J\r\n2023-11-14 22:13:20 systemd info    Stopped.\n\u202e\u009b"}"#,
        );
        let shown = entry.render(&TimeZone::UTC);
        assert_eq!(
            shown,
            "2023-11-14 22:13:20 agent   info    x\\u{1b}[2J\\u{d}\n                                  | \
             2023-11-14 22:13:20 systemd info    Stopped.\n                                  | \\u{202e}\\u{9b}"
        );
    }
}
