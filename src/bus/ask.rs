//! A tool that waits for an operator: the question on the bus, and the answer.
//!
//! The id of a question is the hash of all that is asked: agent, tool, arguments, folder, task and
//! deadline. So an answer to an id is an answer to exactly this; both ends compute it anew.

use futures_util::stream::{BoxStream, StreamExt as _};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::hub::{self, Hub};
use super::message::{self, BadMessage};
use super::subject;
use crate::names::AgentId;

/// Most bytes of arguments and folder together: more nobody can judge.
pub const QUESTION_MAX: usize = 8 * 1024;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// The tool's name.
    pub tool: String,
    /// Its arguments, without those that the configuration fixes.
    pub arguments: Vec<String>,
    /// Where it is to run.
    pub folder: String,
    /// The task that the command says it works on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// When nobody waits for the answer any more.
    pub deadline: Timestamp,
    /// Makes the same question, asked again later, another one.
    pub nonce: String,
}

/// A question and its id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// [`Question::id`], 32 hexadecimal digits.
    pub ask: String,
    /// What is asked.
    #[serde(flatten)]
    pub question: Question,
}

/// What becomes of a question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// Nobody has decided yet: ask again.
    Pending,
    /// An operator approved exactly this.
    Approved {
        /// What was approved.
        ask: String,
    },
    /// An operator said no.
    Denied {
        /// What was denied.
        ask: String,
        /// Why, for people.
        reason: Option<String>,
    },
    /// Nobody decided in time.
    Expired,
    /// It is not even shown to an operator.
    Refused {
        /// Why, for people.
        reason: String,
    },
}

impl Question {
    /// The hash of everything that is asked, for this agent.
    #[must_use]
    pub fn id(&self, agent: &AgentId) -> String {
        // Tuples of texts and lists have one form in JSON; nothing can move from one into another.
        let Self { tool, arguments, folder, task, deadline, nonce } = self;
        let whole = (agent, tool, arguments, folder, task, deadline, nonce);
        let json = serde_json::to_vec(&whole).unwrap_or_default();
        Sha256::digest(json).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }

    /// How long the texts are together.
    #[must_use]
    pub fn size(&self) -> usize {
        let words = self.arguments.iter().map(String::len).sum::<usize>();
        words + self.folder.len() + self.tool.len() + self.nonce.len()
    }
}

impl Ask {
    /// The question with its id.
    #[must_use]
    pub fn new(agent: &AgentId, question: Question) -> Self {
        Self { ask: question.id(agent), question }
    }
}

/// One question as it arrived in the hub.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Who asks: the account that the server saw.
    pub from: AgentId,
    /// What, if it can be read.
    pub ask: Result<Ask, BadMessage>,
    /// Where the answer goes.
    reply: async_nats::Subject,
}

impl Hub {
    /// Every question of an agent from now on.
    ///
    /// # Errors
    /// When the server does not confirm the subscription.
    pub async fn asks(&self) -> Result<BoxStream<'static, Asked>, hub::Error> {
        let step = "listen to what agents ask";
        let client = self.jetstream().client();
        let subscribed = client.subscribe("agent.*.ask").await.map_err(hub::refused(step))?;
        client.flush().await.map_err(hub::refused(step))?;
        Ok(subscribed.filter_map(|message| async move { read(message) }).boxed())
    }

    /// Answers one question. An agent that is gone is no error.
    ///
    /// # Errors
    /// When the connection is down.
    pub async fn answer(&self, asked: &Asked, answer: &Answer) -> Result<(), hub::Error> {
        let payload = message::encode(answer)?;
        let client = self.jetstream().client();
        let sent = client.publish(asked.reply.clone(), payload.into()).await;
        sent.map_err(hub::refused("answer an agent"))
    }
}

fn read(message: async_nats::Message) -> Option<Asked> {
    let reply = message.reply?;
    let id = message.subject.strip_prefix("agent.")?.strip_suffix(".ask")?;
    let from = AgentId::parse(id).ok()?;
    // The subject is the server's word; that it is the asking one is checked against it.
    debug_assert_eq!(message.subject.as_str(), subject::ask(&from));
    Some(Asked { from, ask: message::parse(&message.payload), reply })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question() -> Question {
        Question {
            tool: "git".into(),
            arguments: vec!["push".into(), "origin".into()],
            folder: "/x".into(),
            task: None,
            deadline: Timestamp::from_second(1_000_000).unwrap(),
            nonce: "n".into(),
        }
    }

    #[test]
    fn the_id_changes_with_everything_that_is_asked() {
        let (a, b) = (AgentId::parse("a").unwrap(), AgentId::parse("b").unwrap());
        let base = question();
        assert_eq!(base.id(&a), question().id(&a));
        assert_eq!(base.id(&a).len(), 32);
        let others = [
            Question { tool: "gi".into(), ..question() },
            Question { arguments: vec!["push origin".into()], ..question() },
            Question {
                arguments: vec!["push".into(), "origin".into(), String::new()],
                ..question()
            },
            Question { folder: "/".into(), ..question() },
            Question { task: Some("t".into()), ..question() },
            Question { deadline: Timestamp::from_second(1_000_001).unwrap(), ..question() },
            Question { nonce: "m".into(), ..question() },
        ];
        for other in &others {
            assert_ne!(other.id(&a), base.id(&a), "{other:?}");
        }
        assert_ne!(base.id(&b), base.id(&a));
    }

    #[test]
    fn both_ends_read_the_same() {
        let agent = AgentId::parse("a").unwrap();
        let ask = Ask::new(&agent, question());
        let read: Ask = message::parse(&message::encode(&ask).unwrap()).unwrap();
        assert_eq!((read.question.id(&agent), &read), (ask.ask.clone(), &ask));
        for answer in [Answer::Pending, Answer::Approved { ask: "x".into() }, Answer::Expired] {
            let read: Answer = message::parse(&message::encode(&answer).unwrap()).unwrap();
            assert_eq!(read, answer);
        }
    }
}
