//! The questions that are open, and the decisions of the last hour. Pure: the time is given.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use crate::bus::ask::{Answer, Ask, QUESTION_MAX};
use crate::control::response::AskShown;
use crate::names::AgentId;

/// Open questions of one agent, and of all.
pub const OPEN_PER_AGENT: usize = 16;
const OPEN_MAX: usize = 1024;
/// A decision stays known for so long, for an agent that did not hear it yet.
const KNOWN: SignedDuration = SignedDuration::from_hours(1);
/// An agent repeats its question every ten seconds; one that stopped waits no more.
const SILENT: SignedDuration = SignedDuration::from_secs(60);
/// No question is open longer.
const LONGEST: SignedDuration = SignedDuration::from_hours(25);
/// Fewer digits name no question.
const PREFIX_MIN: usize = 4;

/// The questions.
#[derive(Debug, Default)]
pub struct Book {
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    agent: AgentId,
    ask: Ask,
    since: Timestamp,
    /// When it was last repeated.
    heard: Timestamp,
    decision: Option<Decision>,
}

#[derive(Clone, Debug)]
struct Decision {
    approved: bool,
    reason: Option<String>,
    by: String,
    at: Timestamp,
}

/// What is said to an agent's question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It is open; true the first time.
    Open(bool),
    /// The answer.
    Final(Answer),
}

/// Why a decision is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Undecided {
    /// Too short, or no id.
    #[error("{PREFIX_MIN} or more hexadecimal digits name a call: see flockctl asks")]
    Prefix,
    /// Nothing begins like this.
    #[error(
        "no call {0}... waits: it was decided more than an hour ago, its time is over, or its agent \
         waits no more; flockctl asks lists those that wait"
    )]
    Unknown(String),
    /// Several do.
    #[error("{1} calls begin with {0}: give more digits")]
    Ambiguous(String, usize),
    /// Somebody was quicker.
    #[error("too late: {0}")]
    Late(String),
}

impl Book {
    /// An agent asks, for the first time or again.
    pub fn hear(&mut self, agent: &AgentId, ask: &Ask, now: Timestamp) -> Heard {
        let refused = |reason: &str| Heard::Final(Answer::Refused { reason: reason.to_owned() });
        // The id commits to the agent too, so nobody can take another one's place.
        if ask.question.id(agent) != ask.ask {
            return refused("the question's id is not the hash of what it asks");
        }
        if let Some(entry) = self.entries.get_mut(&ask.ask) {
            entry.heard = now;
            return match &entry.decision {
                None if ask.question.deadline <= now => Heard::Final(Answer::Expired),
                None => Heard::Open(false),
                Some(decision) => Heard::Final(decision.answer(&ask.ask)),
            };
        }
        if ask.question.deadline <= now {
            return Heard::Final(Answer::Expired);
        }
        if ask.question.deadline > now + LONGEST {
            return refused("its deadline is too far away");
        }
        if ask.question.size() > QUESTION_MAX {
            return refused("it is too long to be judged by a person");
        }
        let open = self.entries.values().filter(|entry| entry.decision.is_none());
        let (all, own) = open
            .fold((0, 0), |(all, own), entry| (all + 1, own + usize::from(entry.agent == *agent)));
        if own >= OPEN_PER_AGENT {
            return refused("too many calls of this agent wait for an operator already");
        }
        if all >= OPEN_MAX {
            return refused("too many calls wait for an operator already");
        }
        let entry = Entry {
            agent: agent.clone(),
            ask: ask.clone(),
            since: now,
            heard: now,
            decision: None,
        };
        self.entries.insert(ask.ask.clone(), entry);
        Heard::Open(true)
    }

    /// The question that an operator means, if it is open.
    ///
    /// # Errors
    /// Why there is none.
    pub fn find(&self, prefix: &str, now: Timestamp) -> Result<AskShown, Undecided> {
        let digits = prefix.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
        if !digits || !(PREFIX_MIN..=32).contains(&prefix.len()) {
            return Err(Undecided::Prefix);
        }
        let found: Vec<&Entry> = self
            .entries
            .range(prefix.to_owned()..)
            .take_while(|(id, _)| id.starts_with(prefix))
            .map(|(_, entry)| entry)
            .collect();
        match found[..] {
            [] => Err(Undecided::Unknown(prefix.to_owned())),
            [entry] => match &entry.decision {
                Some(decision) => Err(Undecided::Late(decision.text())),
                None if entry.ask.question.deadline <= now => {
                    Err(Undecided::Late("its time is over".to_owned()))
                }
                None => Ok(entry.shown()),
            },
            _ => Err(Undecided::Ambiguous(prefix.to_owned(), found.len())),
        }
    }

    /// Decides an open question, named by its whole id.
    ///
    /// # Errors
    /// Why it is not open.
    pub fn decide(
        &mut self,
        id: &str,
        approved: bool,
        reason: Option<String>,
        by: &str,
        now: Timestamp,
    ) -> Result<AskShown, Undecided> {
        let shown = self.find(id, now)?;
        if let Some(entry) = self.entries.get_mut(&shown.ask) {
            entry.decision = Some(Decision { approved, reason, by: by.to_owned(), at: now });
        }
        Ok(shown)
    }

    /// Whether there is nothing to be swept.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Forgets what is over, and gives the open ones whose time is.
    pub fn sweep(&mut self, now: Timestamp) -> Vec<AskShown> {
        let over = |entry: &Entry| entry.ask.question.deadline <= now;
        let expired: Vec<AskShown> = self
            .entries
            .values()
            .filter(|entry| entry.decision.is_none() && over(entry))
            .map(Entry::shown)
            .collect();
        self.entries.retain(|_, entry| match &entry.decision {
            Some(decision) => now < decision.at + KNOWN,
            None => !over(entry) && now < entry.heard + SILENT,
        });
        expired
    }

    /// The open ones, the oldest first.
    pub fn pending(&self, now: Timestamp) -> Vec<AskShown> {
        let open = |e: &&Entry| e.decision.is_none() && e.ask.question.deadline > now;
        let mut all: Vec<AskShown> = self.entries.values().filter(open).map(Entry::shown).collect();
        all.sort_by(|a, b| (a.since, &a.ask).cmp(&(b.since, &b.ask)));
        all
    }
}

impl Entry {
    fn shown(&self) -> AskShown {
        let question = self.ask.question.clone();
        AskShown {
            ask: self.ask.ask.clone(),
            agent: self.agent.clone(),
            tool: question.tool,
            arguments: question.arguments,
            folder: question.folder,
            task: question.task,
            since: self.since,
            deadline: question.deadline,
        }
    }
}

impl Decision {
    fn answer(&self, ask: &str) -> Answer {
        let ask = ask.to_owned();
        match self.approved {
            true => Answer::Approved { ask },
            false => Answer::Denied { ask, reason: self.reason.clone() },
        }
    }

    fn text(&self) -> String {
        let word = if self.approved { "approved" } else { "denied" };
        format!("{} {word} it at {:.0}", self.by, self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::ask::Question;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    fn agent(name: &str) -> AgentId {
        AgentId::parse(name).unwrap()
    }

    fn ask(name: &str, nonce: &str, deadline: i64) -> Ask {
        let question = Question {
            tool: "git".into(),
            arguments: vec!["push".into()],
            folder: "/x".into(),
            task: None,
            deadline: at(deadline),
            nonce: nonce.into(),
        };
        Ask::new(&agent(name), question)
    }

    #[test]
    fn a_question_is_open_until_it_is_decided_and_then_known_for_an_hour() {
        let (mut book, a) = (Book::default(), agent("a"));
        let ask = ask("a", "1", 600);
        assert_eq!(book.hear(&a, &ask, at(0)), Heard::Open(true));
        assert_eq!(book.hear(&a, &ask, at(10)), Heard::Open(false));
        assert_eq!(book.pending(at(10)).len(), 1);
        book.decide(&ask.ask[..8], true, None, "ann", at(20)).unwrap();
        assert!(book.pending(at(20)).is_empty());
        let approved = Heard::Final(Answer::Approved { ask: ask.ask.clone() });
        assert_eq!(book.hear(&a, &ask, at(21)), approved);
        let late = book.decide(&ask.ask[..8], false, None, "ben", at(22)).unwrap_err();
        assert!(late.to_string().contains("ann approved it"), "{late}");
        assert!(book.sweep(at(3000)).is_empty());
        assert_eq!(book.hear(&a, &ask, at(3000)), approved);
        book.sweep(at(3700));
        assert_eq!(book.hear(&a, &ask, at(3700)), Heard::Final(Answer::Expired));
    }

    #[test]
    fn time_ends_a_question_and_so_does_an_agent_that_waits_no_more() {
        let (mut book, a) = (Book::default(), agent("a"));
        let (soon, silent) = (ask("a", "1", 30), ask("a", "2", 6000));
        book.hear(&a, &soon, at(0));
        book.hear(&a, &silent, at(0));
        assert!(book.sweep(at(29)).is_empty());
        assert!(book.find(&soon.ask, at(30)).unwrap_err().to_string().contains("time is over"));
        assert_eq!(book.hear(&a, &soon, at(30)), Heard::Final(Answer::Expired));
        assert_eq!(book.sweep(at(30))[0].ask, soon.ask);
        assert_eq!(book.pending(at(30)).len(), 1);
        assert!(book.sweep(at(61)).is_empty());
        assert_eq!(book.find(&silent.ask, at(61)), Err(Undecided::Unknown(silent.ask.clone())));
        assert_eq!(book.hear(&a, &silent, at(62)), Heard::Open(true), "it is back");
    }

    #[test]
    fn a_flood_of_one_agent_is_refused_and_leaves_room_for_others() {
        let mut book = Book::default();
        for n in 0..OPEN_PER_AGENT {
            assert_eq!(
                book.hear(&agent("a"), &ask("a", &n.to_string(), 60), at(0)),
                Heard::Open(true)
            );
        }
        let more = book.hear(&agent("a"), &ask("a", "more", 60), at(0));
        assert!(matches!(more, Heard::Final(Answer::Refused { .. })), "{more:?}");
        assert_eq!(book.hear(&agent("b"), &ask("b", "1", 60), at(0)), Heard::Open(true));
    }

    #[test]
    fn lies_about_what_is_asked_are_refused() {
        let (mut book, a) = (Book::default(), agent("a"));
        let good = ask("a", "1", 60);
        let other = Ask { ask: ask("a", "2", 60).ask, ..good.clone() };
        let far = ask("a", "3", 100 * 3600);
        let mut long = good.question.clone();
        long.arguments = vec!["x".repeat(QUESTION_MAX)];
        // Of another agent: the id is the hash for that one.
        for (from, ask) in
            [("a", other), ("b", good.clone()), ("a", far), ("a", Ask::new(&a, long))]
        {
            let heard = book.hear(&agent(from), &ask, at(0));
            assert!(matches!(heard, Heard::Final(Answer::Refused { .. })), "{heard:?}");
        }
        assert!(book.pending(at(0)).is_empty());
    }

    #[test]
    fn a_prefix_names_one_question_or_none() {
        let mut book = Book::default();
        let mut ids = Vec::new();
        for n in 0..OPEN_PER_AGENT {
            let ask = ask("a", &n.to_string(), 60);
            book.hear(&agent("a"), &ask, at(0));
            ids.push(ask.ask);
        }
        for id in &ids {
            assert_eq!(book.find(id, at(1)).unwrap().ask, *id);
        }
        for bad in ["", "abc", "xyz1", "ABCD", "ab*d", &"a".repeat(33), "....", "\u{661}234"] {
            assert_eq!(book.find(bad, at(1)), Err(Undecided::Prefix), "{bad:?}");
        }
        let (mut twin, first) = (Book::default(), ask("a", "0", 60));
        twin.hear(&agent("a"), &first, at(0));
        let entry = twin.entries.remove(&first.ask).unwrap();
        let near =
            format!("{}{}", &first.ask[..31], if first.ask.ends_with('0') { '1' } else { '0' });
        let copy = Entry { agent: agent("b"), ask: first.clone(), decision: None, ..entry };
        twin.entries.insert(near, copy);
        twin.hear(&agent("a"), &first, at(0));
        assert!(matches!(twin.find(&first.ask[..12], at(1)), Err(Undecided::Ambiguous(_, 2))));
        assert!(twin.find(&first.ask, at(1)).is_ok());
    }
}
