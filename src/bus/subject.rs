//! Every name on the bus: subjects as the hub sees them, subjects as an agent sees them, streams.
//!
//! In the hub the sender or the receiver is part of each subject. The server puts it there by the
//! account that a message came from, so it cannot be forged; payloads and headers are never asked.

use super::message::TaskId;
use crate::names::{AgentId, ChannelName};

/// The account of flockd and flockctl. Upper case, so no agent id can be equal to it.
pub const HUB_ACCOUNT: &str = "HUB";
/// The only user of the hub account.
pub const OPERATOR: &str = "operator";
/// From the operator to every agent; not stored.
pub const BROADCAST: &str = "broadcast";
/// Where an agent publishes a result, inside its own account.
pub const RESULT: &str = "task.result";
/// The subject, and an agent's view of it, for a task that all agents do.
pub const ALL: &str = "tasks.all";
/// The shared queue, as an agent sees it: a task published here is done by one agent.
pub const ANY: &str = "tasks.any";
/// Every lane of the shared queue, see [`lane`].
pub const LANES: &str = "tasks.any.*";
/// The stream behind the shared queue.
pub const QUEUE_STREAM: &str = "QUEUE";
/// Where tasks go that nobody could do.
pub const DEAD: &str = "dead.tasks";
/// The stream behind [`DEAD`].
pub const DEAD_STREAM: &str = "DEAD";
/// The consumer on every stream of tasks and results that tells flockd what it holds.
pub const HISTORY_CONSUMER: &str = "history";
/// Where all consumers [`HISTORY_CONSUMER`] deliver, in the hub. One name without a wildcard: the
/// server tells a consumer that somebody listens only when the very name is subscribed.
pub const HISTORY: &str = "history";
/// The consumer from which an agent takes its tasks one by one and acknowledges them.
pub const PULL_CONSUMER: &str = "worker";

/// Why an agent gets a task: it is for this agent, for all, or from the shared queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// For this agent.
    Own,
    /// A copy for this agent of a task for all.
    All,
    /// One that the shared queue handed to this agent.
    Any,
}

impl Kind {
    /// All kinds.
    pub const EACH: [Self; 3] = [Self::Own, Self::All, Self::Any];

    /// The word in consumer names and in delivery subjects.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::All => "all",
            Self::Any => "any",
        }
    }

    /// The subject in the hub that stores a task of this kind for one agent.
    #[must_use]
    pub fn hub_subject(self, id: &AgentId) -> String {
        match self {
            Self::Own => format!("tasks.{id}"),
            Self::All => format!("tasks.{id}.all"),
            Self::Any => format!("tasks.{id}.any"),
        }
    }

    /// The subject that the agent sees, and under which the stream keeps the task.
    #[must_use]
    pub fn agent_subject(self, id: &AgentId) -> String {
        match self {
            Self::Own => format!("tasks.{id}"),
            Self::All => ALL.to_owned(),
            Self::Any => ANY.to_owned(),
        }
    }

    /// The hub's subject on which tasks of this kind are pushed to a plain client.
    #[must_use]
    pub fn deliver_subject(self, id: &AgentId) -> String {
        format!("deliver.{id}.{}", self.word())
    }

    /// The consumer that pushes tasks of this kind to a plain client.
    #[must_use]
    pub fn push_consumer(self) -> String {
        format!("push-{}", self.word())
    }
}

/// An agent's result as it arrives in the hub.
#[must_use]
pub fn result(id: &AgentId) -> String {
    format!("{RESULT}.{id}")
}

/// An agent's events, the same inside its account and in the hub.
#[must_use]
pub fn events(id: &AgentId) -> String {
    format!("agent.{id}.events")
}

/// An agent's heartbeat, the same inside its account and in the hub.
#[must_use]
pub fn heartbeat(id: &AgentId) -> String {
    format!("agent.{id}.heartbeat")
}

/// What flock says to one agent, the same inside its account and in the hub; not stored.
#[must_use]
pub fn control(id: &AgentId) -> String {
    format!("agent.{id}.control")
}

/// What flock tells of an agent's boundary, in the hub alone: no account of an agent reaches it.
#[must_use]
pub fn boundary(id: &AgentId) -> String {
    format!("flock.boundary.{id}")
}

/// Where an agent asks for a decision of the operator, the same inside its account and in the hub.
#[must_use]
pub fn ask(id: &AgentId) -> String {
    format!("agent.{id}.ask")
}

/// Where a member speaks on a channel, inside its own account.
#[must_use]
pub fn channel(name: &ChannelName) -> String {
    format!("channel.{name}")
}

/// What the operator says on a channel. Its last token is no agent's id.
#[must_use]
pub fn channel_operator(name: &ChannelName) -> String {
    format!("channel.{name}.{OPERATOR}")
}

/// Everything that is said on a channel, the same in the hub and inside the members' accounts; the
/// last token is who said it.
#[must_use]
pub fn channel_all(name: &ChannelName) -> String {
    format!("channel.{name}.*")
}

/// Where what an agent says on a channel arrives in the hub.
#[must_use]
pub fn say(id: &AgentId, name: &ChannelName) -> String {
    format!("say.{id}.{name}")
}

/// Who said something on a channel, by the hub's subject; `None` for the operator, and `None` around
/// it for a subject that is no channel's.
#[must_use]
pub fn said_by(subject: &str) -> Option<Option<AgentId>> {
    let tokens: Vec<&str> = subject.split('.').collect();
    match tokens[..] {
        ["channel", _, OPERATOR] => Some(None),
        ["channel", _, id] => AgentId::parse(id).ok().map(Some),
        _ => None,
    }
}

/// Where an agent requests something of another, inside its own account.
#[must_use]
pub fn requests(asked: &AgentId) -> String {
    format!("agent.{asked}.requests")
}

/// The same inside the account of the one that is asked: who asks is the last token.
#[must_use]
pub fn request_from(asked: &AgentId, asker: &AgentId) -> String {
    format!("agent.{asked}.requests.{asker}")
}

/// Everything that is requested of an agent, inside its own account.
#[must_use]
pub fn request_all(asked: &AgentId) -> String {
    format!("agent.{asked}.requests.*")
}

/// How a task ended that its agent's result alone does not decide: one of the shared queue, or one
/// that was cancelled, expired or given up. In the hub only, not stored.
#[must_use]
pub fn final_result(task: &TaskId) -> String {
    format!("task.final.{task}")
}

/// Where the shared queue keeps the tasks of one sender, a user of the host. Each has a lane of its
/// own, so that many tasks of one do not delay another's.
#[must_use]
pub fn lane(sender: u32) -> String {
    format!("{ANY}.{sender}")
}

/// The consumer of one lane. Only the hub reaches it: acknowledgements are addressed by a guessable
/// number, so agents that shared a consumer could end each other's tasks.
#[must_use]
pub fn lane_consumer(sender: u32) -> String {
    format!("dispatch-{sender}")
}

/// Whose lane a consumer of the shared queue serves.
#[must_use]
pub fn lane_of(consumer: &str) -> Option<u32> {
    consumer.strip_prefix("dispatch-")?.parse().ok()
}

/// Where the server tells that a lane's consumer was made.
#[must_use]
pub fn lane_news() -> String {
    format!("$JS.EVENT.ADVISORY.CONSUMER.CREATED.{QUEUE_STREAM}.*")
}

/// What a stream holds, by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holds {
    /// The tasks of an agent.
    Tasks(AgentId),
    /// The results of an agent.
    Results(AgentId),
    /// The shared queue.
    Queue,
}

/// Reads the name of a stream; `None` for one that holds something else.
#[must_use]
pub fn holds(stream: &str) -> Option<Holds> {
    if stream == QUEUE_STREAM {
        return Some(Holds::Queue);
    }
    let (kind, id) = stream.split_once('_')?;
    let id = AgentId::parse(id).ok()?;
    match kind {
        "TASKS" => Some(Holds::Tasks(id)),
        "RESULTS" => Some(Holds::Results(id)),
        _ => None,
    }
}

/// The stream with an agent's tasks. One per agent: the server drops duplicates per stream, so in a
/// shared one an agent could make another's message vanish by using its message id first.
#[must_use]
pub fn task_stream(id: &AgentId) -> String {
    format!("TASKS_{id}")
}

/// Whose stream of tasks this is.
#[must_use]
pub fn agent_of_task_stream(stream: &str) -> Option<AgentId> {
    AgentId::parse(stream.strip_prefix("TASKS_")?).ok()
}

/// The stream with an agent's results; one per agent for the same reason, and so that a flood of
/// results fills only the sender's own.
#[must_use]
pub fn result_stream(id: &AgentId) -> String {
    format!("RESULTS_{id}")
}

/// The stream that hands on what an agent says on channels.
#[must_use]
pub fn channel_stream(id: &AgentId) -> String {
    format!("CHANNELS_{id}")
}

/// Where an agent asks for its next task.
#[must_use]
pub fn next_task(id: &AgentId) -> String {
    format!("$JS.API.CONSUMER.MSG.NEXT.{}.{PULL_CONSUMER}", task_stream(id))
}

/// Where an agent acknowledges its tasks; the rest of the subject names the message.
#[must_use]
pub fn acks(id: &AgentId) -> String {
    format!("$JS.ACK.{}.{PULL_CONSUMER}.>", task_stream(id))
}

/// What a message in the hub is, and from whom, by its subject alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromAgent {
    /// The result of a task.
    Result(AgentId),
    /// An event.
    Event(AgentId),
    /// A heartbeat.
    Heartbeat(AgentId),
}

/// Reads a hub subject; `None` for one that no agent's message can have.
#[must_use]
pub fn from_agent(subject: &str) -> Option<FromAgent> {
    let tokens: Vec<&str> = subject.split('.').collect();
    match tokens[..] {
        ["task", "result", id] => AgentId::parse(id).ok().map(FromAgent::Result),
        ["agent", id, "events"] => AgentId::parse(id).ok().map(FromAgent::Event),
        ["agent", id, "heartbeat"] => AgentId::parse(id).ok().map(FromAgent::Heartbeat),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sender_is_read_from_the_subject() {
        let id = AgentId::parse("agent-1").unwrap();
        assert_eq!(from_agent(&result(&id)), Some(FromAgent::Result(id.clone())));
        assert_eq!(from_agent(&events(&id)), Some(FromAgent::Event(id.clone())));
        assert_eq!(from_agent(&heartbeat(&id)), Some(FromAgent::Heartbeat(id)));
        for odd in
            ["task.result", "task.result.A", "agent.x.events.y", "agent..events", "tasks.x", ""]
        {
            assert_eq!(from_agent(odd), None, "{odd}");
        }
    }

    #[test]
    fn streams_and_lanes_are_read_back_from_their_names() {
        let id = AgentId::parse("agent-1").unwrap();
        assert_eq!(holds(&task_stream(&id)), Some(Holds::Tasks(id.clone())));
        assert_eq!(holds(&result_stream(&id)), Some(Holds::Results(id)));
        assert_eq!(holds(QUEUE_STREAM), Some(Holds::Queue));
        for odd in ["DEAD", "TASKS_", "TASKS_any", "tasks_a", "QUEUE_a", ""] {
            assert_eq!(holds(odd), None, "{odd}");
        }
        assert_eq!(lane_of(&lane_consumer(1000)), Some(1000));
        for odd in ["history", "dispatch-", "dispatch--1", "dispatch-x", "dispatch"] {
            assert_eq!(lane_of(odd), None, "{odd}");
        }
    }

    #[test]
    fn who_spoke_is_read_from_the_subject() {
        let name = ChannelName::parse("x").unwrap();
        assert_eq!(said_by(&channel_operator(&name)), Some(None));
        assert_eq!(said_by("channel.x.a"), Some(Some(AgentId::parse("a").unwrap())));
        for odd in ["channel.x", "channel.x.a.b", "channel.x.A", "say.a.x", "channel..", ""] {
            assert_eq!(said_by(odd), None, "{odd}");
        }
    }

    #[test]
    fn names_of_one_agent_never_match_those_of_another() {
        // An id that is a prefix of another id must not reach the other's names.
        let (a, b) = (AgentId::parse("a").unwrap(), AgentId::parse("a-worker").unwrap());
        assert_ne!(task_stream(&a), task_stream(&b));
        assert!(!next_task(&b).starts_with(&next_task(&a)));
        assert!(!acks(&b).starts_with(acks(&a).trim_end_matches('>')));
    }
}
