//! One entry of an agent's log: the same in the agent's file, in `flockctl logs --json` and on the
//! control socket.

use std::fmt::Write as _;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::names::AgentId;
use crate::text::{printable, printable_json};

/// The longest text of an entry, in bytes. The journal has the whole of it.
pub const TEXT_MAX: usize = 16 << 10;
/// The longest id of a task.
const TASK_MAX: usize = 64;

/// Who wrote an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The agent's processes.
    Agent,
    /// PID 1, about the agent's unit.
    Systemd,
    /// flock's own launch and halt, and its remarks on the log itself.
    Flock,
}

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When journald received it.
    #[serde(serialize_with = "microseconds")]
    pub at: Timestamp,
    /// Whose log this is; by the unit that journald saw.
    pub agent: AgentId,
    /// Who wrote it.
    pub source: Source,
    /// `emerg` to `debug`; the agent chooses this for its own lines.
    pub level: String,
    /// The process that wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// The task that it belongs to, as the agent says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// The text as it was written, without the name of the task; bytes that are no UTF-8 are replaced.
    pub text: String,
    /// Whether the text is only the beginning of what was written.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
}

/// RFC 3339, always with six digits: text of one length sorts as time does.
fn microseconds<S: Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{at:.6}"))
}

impl Entry {
    /// A remark of flock's own in an agent's log.
    #[must_use]
    pub fn remark(agent: &AgentId, at: Timestamp, text: &str) -> Self {
        Self {
            at,
            agent: agent.clone(),
            source: Source::Flock,
            level: "warning".to_owned(),
            pid: None,
            task: None,
            text: text.to_owned(),
            cut: false,
        }
    }

    /// Reads the fields that journald wrote; `None` when it is no agent's entry.
    pub(super) fn of(fields: &Map<String, Value>) -> Option<Self> {
        let field = |name: &str| fields.get(name).map(text).unwrap_or_default();
        let (agent, source) = origin(&field)?;
        let at = field("__REALTIME_TIMESTAMP").parse().ok()?;
        let mut message = field("MESSAGE");
        let task = match source {
            Source::Agent => split_task(&mut message),
            Source::Systemd | Source::Flock => None,
        };
        let cut = message.len() > TEXT_MAX;
        if cut {
            let end = (0..=TEXT_MAX).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
            message.truncate(end);
        }
        Some(Self {
            at: Timestamp::from_microsecond(at).ok()?,
            agent,
            source,
            level: level(&field("PRIORITY")).to_owned(),
            pid: field("_PID").parse().ok(),
            task,
            text: message,
            cut,
        })
    }

    /// The entry for programs, one line. No character of it can steer a terminal.
    ///
    /// # Errors
    /// When it has no JSON form, which no text can cause.
    pub fn json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self).map(|json| printable_json(&json))
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
            match (index, &self.task) {
                (0, None) => out.push_str(&head),
                (0, Some(task)) => {
                    let _ = write!(out, "{head}task {}: ", printable(task));
                }
                _ => {
                    let _ = write!(out, "\n{:>width$}", "| ", width = head.len());
                }
            }
            out.push_str(&printable(line));
        }
        if self.cut {
            out.push_str(" … (cut here; the journal has the whole)");
        }
        out
    }
}

/// Whose entry it is and who wrote it, by fields that journald sets itself. Of `UNIT=`, which
/// anybody can write, only PID 1's word counts, and of `OBJECT_SYSTEMD_UNIT=` only root's.
fn origin(field: &impl Fn(&str) -> String) -> Option<(AgentId, Source)> {
    let unit = field("_SYSTEMD_UNIT");
    if let Some(agent) = AgentId::from_agent_unit(&unit) {
        return Some((agent, Source::Agent));
    }
    let handle = AgentId::from_handle_unit;
    if let Some(agent) = handle(&unit).or_else(|| handle(&field("OBJECT_SYSTEMD_UNIT"))) {
        return (field("_UID") == "0").then_some((agent, Source::Flock));
    }
    if field("_PID") == "1" {
        return AgentId::from_agent_unit(&field("UNIT")).map(|agent| (agent, Source::Systemd));
    }
    None
}

/// Takes `task <id>: ` from the beginning.
fn split_task(message: &mut String) -> Option<String> {
    let (id, rest) = message.strip_prefix("task ")?.split_once(": ")?;
    let plain = |c: u8| c.is_ascii_alphanumeric() || c == b'_' || c == b'-';
    if !(1..=TASK_MAX).contains(&id.len()) || !id.bytes().all(plain) {
        return None;
    }
    let (id, rest) = (id.to_owned(), rest.to_owned());
    *message = rest;
    Some(id)
}

/// A field's value: text, bytes (as numbers), or several values of either kind.
pub(super) fn text(value: &Value) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    const AGENT: &str =
        r#""__REALTIME_TIMESTAMP":"1700000000000000","_SYSTEMD_UNIT":"flock-agent@a.service""#;

    fn read(json: &str) -> Option<Entry> {
        serde_json::from_str(json).ok().and_then(|fields| Entry::of(&fields))
    }

    fn parse(rest: &str) -> Entry {
        read(&format!("{{{AGENT}{rest}}}")).unwrap()
    }

    #[test]
    fn an_entry_belongs_to_the_unit_that_journald_saw() {
        let line = |fields: &str| {
            let entry = read(&format!(r#"{{"__REALTIME_TIMESTAMP":"1",{fields},"MESSAGE":"x"}}"#));
            entry.map(|entry| (entry.agent.to_string(), entry.source))
        };
        let forged = r#""_SYSTEMD_UNIT":"flock-agent@a.service","FLOCK_AGENT":"b","UNIT":"flock-agent@b.service","_PID":"7""#;
        assert_eq!(line(forged), Some(("a".into(), Source::Agent)));
        let launch = r#""_SYSTEMD_UNIT":"flock@a.service","_UID":"0""#;
        assert_eq!(line(launch), Some(("a".into(), Source::Flock)));
        assert_eq!(line(r#""_SYSTEMD_UNIT":"flock@a.service","_UID":"7""#), None);
        let about = r#""OBJECT_SYSTEMD_UNIT":"flock@a.service""#;
        assert_eq!(line(&format!(r#"{about},"_UID":"0""#)), Some(("a".into(), Source::Flock)));
        assert_eq!(line(&format!(r#"{about},"_UID":"7""#)), None);
        let of_pid_1 = r#""_SYSTEMD_UNIT":"init.scope","_PID":"1","UNIT":"flock-agent@a.service""#;
        assert_eq!(line(of_pid_1), Some(("a".into(), Source::Systemd)));
        let stranger = r#""_SYSTEMD_UNIT":"ssh.service","_PID":"7","UNIT":"flock-agent@a.service""#;
        assert_eq!(line(stranger), None);
    }

    #[test]
    fn text_bytes_and_several_values_are_read() {
        let entry = parse(r#","MESSAGE":"hi","PRIORITY":"3","_PID":"7""#);
        assert_eq!(
            (entry.text.as_str(), entry.level.as_str(), entry.pid),
            ("hi", "error", Some(7))
        );
        assert_eq!(parse(r#","MESSAGE":[104,255,27]"#).text, "h\u{fffd}\u{1b}");
        assert_eq!(parse(r#","MESSAGE":["a",[98]]"#).text, "a\nb");
        assert_eq!(parse("").text, "");
        assert_eq!(read("-- No entries --"), None);
    }

    #[test]
    fn the_task_is_a_field_and_only_in_lines_of_the_agent() {
        let entry = parse(r#","MESSAGE":"task 0199-a_B: began: x""#);
        assert_eq!((entry.task.as_deref(), entry.text.as_str()), (Some("0199-a_B"), "began: x"));
        for text in ["task : x", "task a b: x", "task a:x", "Task a: x", "task a\\u001b: x"] {
            assert_eq!(parse(&format!(r#","MESSAGE":"{text}""#)).task, None, "{text}");
        }
        let shown = entry.render(&TimeZone::UTC);
        assert_eq!(shown, "2023-11-14 22:13:20 agent   info    task 0199-a_B: began: x");
        let of_pid_1 = r#"{"__REALTIME_TIMESTAMP":"1","_PID":"1","UNIT":"flock-agent@a.service","MESSAGE":"task x: y"}"#;
        assert_eq!(read(of_pid_1).unwrap().task, None);
    }

    #[test]
    fn a_line_of_json_is_bounded_and_harmless() {
        let entry = parse(r#","MESSAGE":"x\u001b[2J\u009b\n\u202e""#);
        let json = entry.json().unwrap();
        assert_eq!(
            json,
            r#"{"at":"2023-11-14T22:13:20.000000Z","agent":"a","source":"agent","level":"info","text":"x\u001b[2J\u009b\n\u202e"}"#
        );
        assert_eq!(serde_json::from_str::<Entry>(&json).unwrap(), entry);
        let long = parse(&format!(r#","MESSAGE":"a{}""#, "ä".repeat(TEXT_MAX)));
        assert_eq!((long.text.len(), long.cut), (TEXT_MAX - 1, true));
        assert!(long.json().unwrap().ends_with(r#","cut":true}"#));
    }

    #[test]
    fn an_agent_cannot_pass_for_systemd_nor_steer_the_terminal() {
        let entry = parse(
            r#","UNIT":"flock-agent@a.service",
            "MESSAGE":"x\u001b[2J\r\n2023-11-14 22:13:20 systemd info    Stopped.\n\u202e\u009b""#,
        );
        let shown = entry.render(&TimeZone::UTC);
        assert_eq!(
            shown,
            "2023-11-14 22:13:20 agent   info    x\\u{1b}[2J\\u{d}\n                                  | \
             2023-11-14 22:13:20 systemd info    Stopped.\n                                  | \\u{202e}\\u{9b}"
        );
    }
}
