//! The lines of JSON between flock-agent and a command in mode json-lines (pure).

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;

use jiff::Timestamp;
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer as _, Serialize};

use super::outcome::{End, Outcome};
use crate::bus::message::TaskId;

/// What a line of an answer holds besides its output, at most.
const FRAME: usize = 8 * 1024;
/// The longest reason that is passed on.
const REASON: usize = 1000;

/// A task for the command.
#[derive(Debug, Serialize)]
pub struct Request<'a> {
    /// Its name, which the answer repeats.
    pub id: &'a TaskId,
    /// What to do.
    pub text: &'a str,
    /// Which attempt this is.
    pub attempt: u64,
    /// When it is of no use any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    /// Its own folder.
    pub folder: &'a Path,
    /// Its own variables.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: &'a BTreeMap<String, String>,
}

/// One line for the command's standard input.
#[must_use]
pub fn line<T: Serialize>(message: &T) -> Vec<u8> {
    // Texts and numbers alone: this cannot fail, and an empty line is no task.
    let mut line = serde_json::to_vec(message).unwrap_or_default();
    line.push(b'\n');
    line
}

/// The line that takes a task back.
#[must_use]
pub fn cancel(task: &TaskId) -> Vec<u8> {
    line(&serde_json::json!({ "cancel": task }))
}

/// The longest line that an answer with `output_limit` bytes of output needs.
#[must_use]
pub fn longest(output_limit: usize) -> usize {
    // As JSON, a byte can become six.
    output_limit.saturating_mul(6).saturating_add(FRAME)
}

/// What a line on the command's standard output says.
#[derive(Debug)]
pub enum Heard {
    /// The answer for a task.
    Answer(TaskId, Outcome),
    /// Anything else: a line for the journal.
    Text(String),
}

/// An answer as written.
#[derive(Deserialize)]
struct Answer {
    id: TaskId,
    #[serde(default, deserialize_with = "even_null")]
    output: Option<serde_json::Value>,
    status: Option<String>,
    reason: Option<String>,
}

/// An output that is `null` is there, and empty.
fn even_null<'de, D: serde::Deserializer<'de>>(
    input: D,
) -> Result<Option<serde_json::Value>, D::Error> {
    serde_json::Value::deserialize(input).map(Some)
}

/// Reads a line. `whole` is false for the beginning of one that was too long.
#[must_use]
pub fn read(bytes: &[u8], whole: bool, output_limit: usize) -> Heard {
    if !whole {
        let failed = |id| {
            let why = format!("its answer is longer than {} bytes", longest(output_limit));
            Heard::Answer(id, Outcome::bare(answered(true, Some(why))))
        };
        let unread =
            || Heard::Text("a line that is too long, and names no task at its beginning".into());
        return salvage(bytes).map_or_else(unread, failed);
    }
    let text = String::from_utf8_lossy(bytes);
    // An object without either is no answer: some programs report their progress in JSON.
    match serde_json::from_str::<Answer>(&text) {
        Ok(answer) if answer.output.is_some() || answer.status.is_some() => {
            let replaced = matches!(text, std::borrow::Cow::Owned(_));
            Heard::Answer(answer.id.clone(), judge(answer, replaced, output_limit))
        }
        _ => Heard::Text(text.into_owned()),
    }
}

/// What becomes of an answer.
fn judge(answer: Answer, replaced: bool, output_limit: usize) -> Outcome {
    let output = match answer.output {
        Some(serde_json::Value::String(text)) => text,
        None | Some(serde_json::Value::Null) => String::new(),
        Some(other) => other.to_string(),
    };
    let mut reason: Option<String> = answer.reason.map(|r| r.chars().take(REASON).collect());
    let mut failed = match answer.status.as_deref() {
        None | Some("done") => false,
        Some("failed") => true,
        Some(other) => {
            let other: String = other.chars().take(20).collect();
            reason = Some(format!("its answer has the status {other:?}, not done or failed"));
            true
        }
    };
    if replaced && reason.is_none() {
        reason = Some("its answer is no UTF-8: what could not be read was replaced".to_owned());
    }
    let mut output = output.into_bytes();
    let truncated = output.len() > output_limit;
    if truncated {
        let n = output.len();
        reason = Some(format!("its output has {n} bytes, task.output-limit is {output_limit}"));
        failed = true;
        output.truncate(output_limit);
    }
    Outcome { end: answered(failed, reason), output, truncated, usage: None }
}

fn answered(failed: bool, reason: Option<String>) -> End {
    End::Answered { failed, reason }
}

/// The id at the beginning of an object whose end is missing.
fn salvage(bytes: &[u8]) -> Option<TaskId> {
    struct FirstId<'a>(&'a Cell<Option<TaskId>>);
    impl<'de> Visitor<'de> for FirstId<'_> {
        type Value = ();
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
            while let Some(key) = map.next_key::<String>()? {
                if key == "id" {
                    self.0.set(Some(map.next_value()?));
                    return Err(A::Error::custom("that is enough"));
                }
                map.next_value::<IgnoredAny>()?;
            }
            Ok(())
        }
    }
    let found = Cell::new(None);
    let _ = serde_json::Deserializer::from_slice(bytes).deserialize_map(FirstId(&found));
    found.into_inner()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(line: &str) -> Option<(String, bool, Option<String>, String)> {
        match read(line.as_bytes(), true, 10) {
            Heard::Answer(id, Outcome { end: End::Answered { failed, reason }, output, .. }) => {
                Some((id.to_string(), failed, reason, String::from_utf8(output).unwrap()))
            }
            Heard::Answer(_, other) => panic!("{other:?}"),
            Heard::Text(_) => None,
        }
    }

    #[test]
    fn a_task_is_one_line() {
        let (id, none) = (TaskId::parse("t").unwrap(), BTreeMap::new());
        let mut request = Request {
            id: &id,
            text: "a\nb",
            attempt: 2,
            deadline: None,
            folder: Path::new("/f"),
            environment: &none,
        };
        assert_eq!(
            line(&request),
            b"{\"id\":\"t\",\"text\":\"a\\nb\",\"attempt\":2,\"folder\":\"/f\"}\n"
        );
        let some = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
        request.environment = &some;
        request.deadline = "2030-01-02T03:04:05Z".parse().ok();
        let text = String::from_utf8(line(&request)).unwrap();
        assert!(text.contains("\"deadline\":\"2030-01-02T03:04:05Z\",\"folder\":\"/f\",\"environment\":{\"A\":\"1\"}"), "{text}");
        assert_eq!(cancel(&id), b"{\"cancel\":\"t\"}\n");
    }

    #[test]
    fn answers_are_read() {
        let done = |output: &str| Some(("t".to_owned(), false, None, output.to_owned()));
        assert_eq!(answer(r#"{"id":"t","output":"x"}"#), done("x"));
        assert_eq!(
            answer(r#"{"output":{"n":1},"id":"t","status":"done","more":[]}"#),
            done("{\"n\":1}")
        );
        assert_eq!(answer(r#" {"id":"t","output":null} "#), done(""));
        let failed = answer(r#"{"id":"t","status":"failed","reason":"no"}"#).unwrap();
        assert_eq!((failed.1, failed.2.as_deref()), (true, Some("no")));
        let odd = answer(r#"{"id":"t","output":"x","status":"fine"}"#).unwrap();
        assert!(odd.1 && odd.2.unwrap().contains("fine"));
        let long = answer(r#"{"id":"t","output":"12345678901"}"#).unwrap();
        assert_eq!((long.1, long.3.as_str()), (true, "1234567890"));
        assert!(long.2.unwrap().contains("11 bytes"));
    }

    #[test]
    fn what_is_no_answer_is_a_line_of_the_journal() {
        for text in [
            "",
            "hello",
            "3",
            "[]",
            "{}",
            r#"{"id":"t"}"#,
            r#"{"id":"t","progress":5}"#,
            r#"{"id":"../x","output":""}"#,
            r#"{"output":"x"}"#,
            r#"{"id":"t","output":"x""#,
        ] {
            assert_eq!(answer(text), None, "{text}");
        }
        assert!(matches!(read(&[b'['; 100_000], true, 10), Heard::Text(_)), "too deep");
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced_and_said() {
        let Heard::Answer(_, outcome) = read(b"{\"id\":\"t\",\"output\":\"\xff\"}", true, 10)
        else {
            panic!()
        };
        assert_eq!(outcome.output, "\u{fffd}".as_bytes());
        assert!(
            matches!(outcome.end, End::Answered { failed: false, reason: Some(why) } if why.contains("UTF-8"))
        );
    }

    #[test]
    fn of_a_line_that_is_too_long_the_task_is_found_if_it_comes_first() {
        let cut = br#"{"n":[1,{}],"id":"t","output":"xxxx"#;
        let Heard::Answer(id, outcome) = read(cut, false, 10) else { panic!() };
        assert_eq!(id.as_str(), "t");
        assert!(
            matches!(outcome.end, End::Answered { failed: true, reason: Some(why) } if why.contains("longer"))
        );
        for cut in [&br#"{"output":"xxxx"#[..], b"xxxx", b"", br#"{"id":"#] {
            assert!(matches!(read(cut, false, 10), Heard::Text(_)));
        }
    }
}
