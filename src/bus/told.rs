//! What agents tell of themselves, as it came: events and heartbeats, for operators who look on.
//!
//! A plain client may put anything there. So nothing is refused: what is no event by the contract is
//! shown as the text that it is.

use futures_util::stream::{BoxStream, StreamExt as _, select_all};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::hub::{Error, Hub, refused};
use super::message;
use super::subject::{self, FromAgent};
use crate::names::AgentId;

/// The longest text that is kept of one message, in characters.
pub const TEXT_MAX: usize = 8 * 1024;
/// The longest word for what happened.
const WORD_MAX: usize = 200;
/// The longest explanation.
const DETAIL_MAX: usize = 4 * 1024;

/// An event or a heartbeat. Every text in it is the agent's: show it escaped only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// When flock heard it.
    pub at: Timestamp,
    /// Who told it: the server's word.
    pub agent: AgentId,
    /// Whether it is a heartbeat.
    pub heartbeat: bool,
    /// What happened, if the message says so as the contract has it.
    pub event: Option<String>,
    /// The task that it is about.
    pub task: Option<String>,
    /// More about it.
    pub detail: Option<String>,
    /// The whole message as text.
    pub text: String,
    /// Whether the end of one of these is missing.
    pub cut: bool,
}

impl Hub {
    /// Every event and every heartbeat from now on.
    ///
    /// # Errors
    /// When the server does not confirm the subscriptions.
    pub async fn told(&self) -> Result<BoxStream<'static, Told>, Error> {
        let step = "listen to events";
        let mut parts = Vec::new();
        for subject in ["agent.*.events", "agent.*.heartbeat"] {
            parts.push(self.client().subscribe(subject).await.map_err(refused(step))?);
        }
        self.client().flush().await.map_err(refused(step))?;
        Ok(select_all(parts).filter_map(|m| async move { read(&m.subject, &m.payload) }).boxed())
    }
}

/// The part of an event that is shown on its own; an agent may leave out any.
#[derive(Default, Deserialize)]
struct Loose {
    event: Option<String>,
    task: Option<String>,
    detail: Option<String>,
}

/// What a message tells; `None` when its subject is neither of the two.
fn read(subject: &str, payload: &[u8]) -> Option<Told> {
    let (agent, heartbeat) = match subject::from_agent(subject)? {
        FromAgent::Event(agent) => (agent, false),
        FromAgent::Heartbeat(agent) => (agent, true),
        FromAgent::Result(_) => return None,
    };
    let mut cut = false;
    let mut short = |text: &str, most: usize| match text.char_indices().nth(most) {
        Some((end, _)) => {
            cut = true;
            text[..end].to_owned()
        }
        None => text.to_owned(),
    };
    let loose = message::parse::<Loose>(payload).unwrap_or_default();
    let event = loose.event.map(|text| short(&text, WORD_MAX));
    let task = loose.task.map(|text| short(&text, WORD_MAX));
    let detail = loose.detail.map(|text| short(&text, DETAIL_MAX));
    let text = short(&String::from_utf8_lossy(payload), TEXT_MAX);
    Some(Told { at: Timestamp::now(), agent, heartbeat, event, task, detail, text, cut })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_tells_it_is_the_subjects_word() {
        let payload = br#"{"agent":"b","event":"began","task":"t","at":"yesterday"}"#;
        let told = read("agent.a.events", payload).unwrap();
        assert_eq!((told.agent.as_str(), told.event.as_deref()), ("a", Some("began")));
        assert_eq!((told.task.as_deref(), told.detail, told.cut), (Some("t"), None, false));
        assert_eq!(told.text.as_bytes(), payload);
        assert!(read("agent.a.heartbeat", b"{}").unwrap().heartbeat);
        for odd in ["task.result.a", "agent.a.ask", "agent.A.events", "channel.a.b"] {
            assert_eq!(read(odd, b"{}"), None, "{odd}");
        }
    }

    #[test]
    fn what_is_no_event_is_kept_as_text() {
        let deep = "[".repeat(100_000);
        for (payload, text) in [
            (&b"hello\xff"[..], "hello\u{fffd}"),
            (b"", ""),
            (br#"{"event":7}"#, r#"{"event":7}"#),
            (deep.as_bytes(), &deep[..TEXT_MAX]),
        ] {
            let told = read("agent.a.events", payload).unwrap();
            assert_eq!((told.event, told.text.as_str()), (None, text));
            assert_eq!(told.cut, payload.len() > TEXT_MAX);
        }
    }

    #[test]
    fn a_large_event_is_cut_between_characters() {
        let large = "é".repeat(100_000);
        let payload = format!(r#"{{"event":"{large}","task":"{large}","detail":"{large}"}}"#);
        let told = read("agent.a.events", payload.as_bytes()).unwrap();
        let lengths = [told.event, told.task, told.detail, Some(told.text)]
            .map(|text| text.unwrap().chars().count());
        assert!(told.cut);
        assert_eq!(lengths, [WORD_MAX, WORD_MAX, DETAIL_MAX, TEXT_MAX]);
    }
}
