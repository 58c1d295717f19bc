//! What travels on the bus, as JSON: a task, its result, events and heartbeats.
//!
//! What an agent sends is hostile until proven otherwise: size is checked before parsing, nesting is
//! bounded by the parser, unknown fields are skipped, and the sender is what the subject says, never
//! what the payload says.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

use super::server_conf::MAX_PAYLOAD;
use crate::names::AgentId;

/// Most bytes of output inside a result message; the whole output is in the result's file. Escaped
/// as JSON one byte can become six, and the message must stay under [`MAX_PAYLOAD`].
pub const OUTPUT_IN_MESSAGE: usize = 128 * 1024;

/// The name of a task: `[A-Za-z0-9_-]{1,64}`, so it is safe in a path, a header and a terminal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TaskId(String);

/// Why a message cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadMessage {
    /// It is larger than any that flock sends.
    #[error("read a message: it has {0} bytes, at most {MAX_PAYLOAD} are allowed")]
    TooLarge(usize),
    /// It is not the JSON that its subject asks for.
    #[error("read a message: {0}")]
    Malformed(String),
    /// The task has no usable name.
    #[error("a task id is 1 to 64 characters of a-z, A-Z, 0-9, _ and -")]
    TaskId,
}

impl TaskId {
    /// A new id, unique, and in the order of time.
    #[must_use]
    pub fn fresh() -> Self {
        Self(uuid::Uuid::now_v7().simple().to_string())
    }

    /// The id of a task that is sent with an idempotency key: the same for the same receiver and key.
    #[must_use]
    pub fn of_key(to: &Address, key: &str) -> Self {
        // Names in this space are "receiver, zero, key"; no receiver has a zero in it.
        const SPACE: uuid::Uuid = uuid::uuid!("6b9d3c52-8f0e-4a57-9d1b-2f6c7e1a4b30");
        let name = format!("{to}\0{key}");
        Self(uuid::Uuid::new_v5(&SPACE, name.as_bytes()).simple().to_string())
    }

    /// Checks `text` once; a `TaskId` that exists is safe as a file name.
    ///
    /// # Errors
    /// When `text` has another form.
    pub fn parse(text: &str) -> Result<Self, BadMessage> {
        let plain = |c: u8| c.is_ascii_alphanumeric() || c == b'_' || c == b'-';
        if (1..=64).contains(&text.len()) && text.bytes().all(plain) {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadMessage::TaskId)
        }
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for TaskId {
    type Error = BadMessage;
    fn try_from(text: String) -> Result<Self, BadMessage> {
        Self::parse(&text)
    }
}

impl From<TaskId> for String {
    fn from(id: TaskId) -> Self {
        id.0
    }
}

/// Who is to do a task. As text: an agent's id, `all` or `any`, which no agent can be called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Address {
    /// This agent.
    Agent(AgentId),
    /// Every agent, each for itself.
    All,
    /// One agent, whichever is free.
    Any,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent(id) => id.fmt(f),
            Self::All => f.write_str("all"),
            Self::Any => f.write_str("any"),
        }
    }
}

impl TryFrom<String> for Address {
    type Error = crate::names::BadAgentId;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.as_str() {
            "all" => Ok(Self::All),
            "any" => Ok(Self::Any),
            id => AgentId::parse(id).map(Self::Agent),
        }
    }
}

impl From<Address> for String {
    fn from(to: Address) -> Self {
        to.to_string()
    }
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Its name. Sent twice with the same name, it is stored once.
    pub id: TaskId,
    /// Who is to do it.
    pub to: Address,
    /// What to do; the command of a reference agent gets it on its standard input.
    pub text: String,
    /// When it was sent.
    pub created: Timestamp,
    /// When it is of no use any more; not begun after that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    /// How often it was handed out by the shared queue, from 1.
    #[serde(default = "first")]
    pub attempt: u64,
    /// The user of the host who sent it. Agents cannot send tasks, so this is flock's own word.
    #[serde(default)]
    pub sender: u32,
    /// The sender's idempotency key, from which the id is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The task that this one does again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_of: Option<TaskId>,
    /// Variables for the command, besides those of its agent.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
}

impl Task {
    /// A task that is new now and has no deadline.
    #[must_use]
    pub fn new(to: Address, text: impl Into<String>) -> Self {
        Self {
            id: TaskId::fresh(),
            to,
            text: text.into(),
            created: Timestamp::now(),
            deadline: None,
            attempt: 1,
            sender: 0,
            key: None,
            retry_of: None,
            environment: BTreeMap::new(),
        }
    }
}

fn first() -> u64 {
    1
}

/// How a task ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// The command ended with exit status 0. A plain client's result is `done` unless it says else.
    #[default]
    Done,
    /// The command ended otherwise or could not be started.
    Failed,
    /// The command was killed because its time was over.
    Timeout,
    /// The deadline had passed before it was done.
    Expired,
    /// Somebody cancelled it.
    Cancelled,
    /// It could not be read as a task, or was tried too often.
    Refused,
    /// A word that this flock does not know.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Timeout => "timeout",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
        })
    }
}

/// What became of a task. Only `task` is required of a plain client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskResult {
    /// The task, as the agent named it.
    #[serde(alias = "id", alias = "taskId", alias = "task_id")]
    pub task: String,
    /// The agent. On arrival it is replaced by the sender that the server vouches for.
    #[serde(default)]
    pub agent: String,
    /// How it ended.
    #[serde(default)]
    pub status: Status,
    /// The command's exit status, if it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<i32>,
    /// The signal that ended the command, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Why it did not end well, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Which attempt this was, from 1; a plain client need not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u64>,
    /// When the command was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    /// When it had ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<Timestamp>,
    /// What the command wrote to its standard output. A plain client may put any JSON here.
    #[serde(default, alias = "result", deserialize_with = "text_of_any")]
    pub output: String,
    /// Whether output is missing at the end.
    #[serde(default)]
    pub truncated: bool,
    /// The file with the whole result, as the agent sees and says it; root must not open it by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result_path: Option<String>,
    /// What the command used up, as flock-agent measured it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

impl TaskResult {
    /// How a task ended by flock's own word, without a command's.
    #[must_use]
    pub fn decided(task: &TaskId, agent: impl fmt::Display, status: Status, why: &str) -> Self {
        Self {
            task: task.to_string(),
            agent: agent.to_string(),
            status,
            exit: None,
            signal: None,
            reason: Some(why.to_owned()),
            attempt: None,
            started: None,
            finished: Some(Timestamp::now()),
            output: String::new(),
            truncated: false,
            result_path: None,
            usage: None,
        }
    }
}

/// What a command and the processes it waited for used up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time in user mode, in microseconds.
    pub user_usec: u64,
    /// CPU time in the kernel, in microseconds.
    pub system_usec: u64,
    /// The largest resident size of one of its processes, in bytes.
    pub memory_peak: u64,
}

/// Says that an agent is alive, every 30 seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The agent. On arrival it is replaced by the sender that the server vouches for.
    #[serde(default)]
    pub agent: String,
    /// When, by the agent's clock.
    pub at: Timestamp,
    /// Tasks that run now.
    #[serde(default)]
    pub running: u32,
    /// Most tasks that it runs at once.
    #[serde(default)]
    pub parallel: u32,
    /// The names of those that run now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<String>,
}

/// Something happened in an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The agent. On arrival it is replaced by the sender that the server vouches for.
    #[serde(default)]
    pub agent: String,
    /// When, by the agent's clock.
    pub at: Timestamp,
    /// What: `started`, `task-started`, `task-finished`, `broadcast`, `stopping`, or a word of the agent's own.
    pub event: String,
    /// The task it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// More, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// What flock says to one agent alone. One that does not listen misses nothing but speed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Control {
    /// `{"cancel": "<task>"}`: end it.
    Cancel(TaskId),
    /// `"heartbeat"`: send one now.
    Heartbeat,
}

/// Reads one message.
///
/// # Errors
/// When it is too large, nested too deeply, or not what it should be.
pub fn parse<T: DeserializeOwned>(payload: &[u8]) -> Result<T, BadMessage> {
    if payload.len() > MAX_PAYLOAD {
        return Err(BadMessage::TooLarge(payload.len()));
    }
    // serde_json refuses more than 128 levels. The error can quote the input: keep it short.
    serde_json::from_slice(payload)
        .map_err(|e| BadMessage::Malformed(e.to_string().chars().take(200).collect()))
}

/// Writes one message.
///
/// # Errors
/// When it would be larger than the bus carries.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, BadMessage> {
    let bytes = serde_json::to_vec(message).map_err(|e| BadMessage::Malformed(e.to_string()))?;
    // The server counts the headers too.
    if bytes.len() + 1024 > MAX_PAYLOAD {
        return Err(BadMessage::TooLarge(bytes.len()));
    }
    Ok(bytes)
}

/// The id in a task that cannot be read otherwise, so that its sender hears of it.
#[must_use]
pub fn salvage_id(payload: &[u8]) -> Option<TaskId> {
    #[derive(Deserialize)]
    struct OnlyId {
        id: TaskId,
    }
    parse::<OnlyId>(payload).ok().map(|only| only.id)
}

fn text_of_any<'de, D: Deserializer<'de>>(input: D) -> Result<String, D::Error> {
    Ok(match serde_json::Value::deserialize(input)? {
        serde_json::Value::String(text) => text,
        serde_json::Value::Null => String::new(),
        other => other.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_survives_the_wire() {
        let mut task = Task::new(Address::Any, "say \"hi\"\n\u{0} grün");
        task.deadline = Some(task.created);
        let bytes = encode(&task).unwrap();
        assert_eq!(parse::<Task>(&bytes).unwrap(), task);
        assert_eq!(salvage_id(&bytes), Some(task.id));
    }

    #[test]
    fn flock_says_two_things_to_an_agent() {
        let cancel = Control::Cancel(TaskId::parse("t-1").unwrap());
        for (word, bytes) in
            [(cancel, &br#"{"cancel":"t-1"}"#[..]), (Control::Heartbeat, br#""heartbeat""#)]
        {
            assert_eq!(encode(&word).unwrap(), bytes);
            assert_eq!(parse::<Control>(bytes).unwrap(), word);
        }
        for bad in [&b"{}"[..], b"", b"[]", br#"{"cancel":"../x"}"#, br#"{"cancel":7}"#, b"\"x\""] {
            assert!(parse::<Control>(bad).is_err());
        }
    }

    #[test]
    fn hostile_tasks_are_refused() {
        let deep =
            format!("{{\"id\":\"a\",\"x\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
        let huge = vec![b' '; MAX_PAYLOAD + 1];
        let path = br#"{"id":"../x","to":"all","text":"","created":"2026-01-01T00:00:00Z"}"#;
        let twice = br#"{"id":"a","id":"b","to":"all","text":"","created":"2026-01-01T00:00:00Z"}"#;
        let nobody = br#"{"id":"a","to":"a.b","text":"","created":"2026-01-01T00:00:00Z"}"#;
        let bad: [&[u8]; 8] =
            [b"", b"{", deep.as_bytes(), &huge, path, twice, nobody, b"\xff\xfe{}"];
        for payload in bad {
            let error = parse::<Task>(payload).unwrap_err().to_string();
            assert!(error.len() < 300, "{error}");
        }
        assert_eq!(salvage_id(br#"{"id":"ok-1","to":7}"#), Some(TaskId::parse("ok-1").unwrap()));
        assert_eq!(salvage_id(path), None);
        assert!(TaskId::parse(&"a".repeat(65)).is_err() && TaskId::parse("").is_err());
    }

    #[test]
    fn a_plain_client_may_say_little() {
        let little: TaskResult =
            parse(br#"{"taskId":"t1","result":{"n":[1,2]},"mood":"fine"}"#).unwrap();
        assert_eq!((little.task.as_str(), little.status), ("t1", Status::Done));
        assert_eq!(little.output, r#"{"n":[1,2]}"#);
        let odd: TaskResult = parse(br#"{"task":"t","status":"glorious"}"#).unwrap();
        assert_eq!(odd.status, Status::Unknown);
        assert!(parse::<TaskResult>(b"{}").is_err());
    }

    #[test]
    fn the_largest_output_fits_into_a_message() {
        let result: TaskResult = serde_json::from_str("{\"task\":\"t\"}").unwrap();
        let full = TaskResult { output: "\u{1}".repeat(OUTPUT_IN_MESSAGE), ..result };
        assert!(encode(&full).is_ok());
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_can_crash_the_parser(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let _ = parse::<Task>(&bytes);
            let _ = parse::<TaskResult>(&bytes);
        }
    }
}
