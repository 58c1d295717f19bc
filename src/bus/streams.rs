//! What JetStream keeps: for each agent its tasks and its results, and the shared queue. Pure.
//!
//! Values are part of the promise, so golden files pin them; [`super::hub`] puts them on the server.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, Config as Consumer, DeliverPolicy, pull, push};
use async_nats::jetstream::stream::{
    Config as Stream, DiscardPolicy, Republish, RetentionPolicy, StorageType, SubjectTransform,
};

use super::server_conf::MAX_PAYLOAD;
use super::subject::{self, Kind};
use crate::names::AgentId;

/// How an agent takes its tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// It asks for one at a time and acknowledges it when done: one that is not acknowledged comes
    /// again. This is what `flock-agent` does (`mode = "task"`).
    Pull,
    /// The server sends them to whoever subscribes to `tasks.*`: any plain client, which need not
    /// know of acknowledgements (`mode = "service"`). A task waits until there is a subscriber and is
    /// then delivered once; if the agent dies with it, it is gone.
    Push,
}

/// One agent on the bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub id: AgentId,
    /// How it takes its tasks.
    pub delivery: Delivery,
}

/// A task that is neither acknowledged nor reported as in progress for so long is handed out again.
pub const ACK_WAIT: Duration = Duration::from_secs(30);

/// How often an agent is handed the same message before flockd gives the task up.
pub const DELIVERIES: i64 = 12;

/// Most bytes that wait in one stream of an agent.
const AGENT_STREAM_BYTES: i64 = 64 * 1024 * 1024;
/// Most tasks that wait for one agent.
const AGENT_STREAM_MESSAGES: i64 = 100_000;
/// A task sent again with the same id within this time is stored once.
const SAME_TASK: Duration = Duration::from_secs(3600);
/// What was said on a channel is kept so long.
const SAID: Duration = Duration::from_secs(1);
/// Results are kept so long; each is a file in the shared tree as well.
const RESULTS_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// The tasks of one agent. A full stream refuses a new task, so the sender knows; it never drops an
/// old one. A task leaves when the agent's consumer is done with it.
#[must_use]
pub fn tasks(id: &AgentId) -> Stream {
    let own = Kind::Own.hub_subject(id);
    Stream {
        name: subject::task_stream(id),
        // Copies for this agent of what is for all or from the queue arrive under subjects of their
        // own and are kept under the one that the agent expects.
        subject_transform: Some(SubjectTransform {
            source: format!("{own}.*"),
            destination: "tasks.{{wildcard(1)}}".to_owned(),
        }),
        subjects: vec![own.clone(), format!("{own}.*")],
        retention: RetentionPolicy::Interest,
        discard: DiscardPolicy::New,
        max_messages: AGENT_STREAM_MESSAGES,
        duplicate_window: SAME_TASK,
        ..base(AGENT_STREAM_BYTES)
    }
}

/// The results of one agent. The agent writes here, so a full stream drops the agent's own oldest.
#[must_use]
pub fn results(id: &AgentId) -> Stream {
    Stream {
        name: subject::result_stream(id),
        subjects: vec![subject::result(id)],
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::Old,
        max_messages: -1,
        max_age: RESULTS_KEPT,
        ..base(AGENT_STREAM_BYTES)
    }
}

/// Hands on what one agent says on channels, so that all members get it. It keeps nothing but the
/// last message for a moment, in memory. One per agent: duplicates are dropped per stream, and what
/// one agent floods does not wait in front of another's.
#[must_use]
pub fn channels(id: &AgentId) -> Stream {
    let said = format!("say.{id}.*");
    Stream {
        name: subject::channel_stream(id),
        subjects: vec![said.clone()],
        storage: StorageType::Memory,
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::Old,
        max_messages: 1,
        max_age: SAID,
        // The shortest that the server takes: each id is kept in memory so long.
        duplicate_window: Duration::from_millis(100),
        republish: Some(Republish {
            source: said,
            destination: format!("channel.{{{{wildcard(1)}}}}.{id}"),
            headers_only: false,
        }),
        ..base(-1)
    }
}

/// The shared queue. A task stays until the agent that got it has answered and the history has it.
#[must_use]
pub fn queue() -> Stream {
    Stream {
        name: subject::QUEUE_STREAM.to_owned(),
        subjects: vec![subject::ANY.to_owned(), subject::LANES.to_owned()],
        // What is published without a lane goes to root's.
        subject_transform: Some(SubjectTransform {
            source: subject::ANY.to_owned(),
            destination: subject::lane(0),
        }),
        // Only what a consumer wants is kept: a lane's consumer is made before its first task.
        retention: RetentionPolicy::Interest,
        discard: DiscardPolicy::New,
        max_messages: 4 * AGENT_STREAM_MESSAGES,
        duplicate_window: SAME_TASK,
        ..base(4 * AGENT_STREAM_BYTES)
    }
}

/// Tasks of the shared queue that were given up, each with the reason in a header.
#[must_use]
pub fn dead_letters() -> Stream {
    Stream {
        name: subject::DEAD_STREAM.to_owned(),
        subjects: vec![subject::DEAD.to_owned()],
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::Old,
        max_messages: -1,
        ..base(AGENT_STREAM_BYTES)
    }
}

/// The consumers on an agent's task stream.
#[must_use]
pub fn consumers(member: &Member) -> Vec<Consumer> {
    match member.delivery {
        Delivery::Pull => vec![pull_consumer()],
        Delivery::Push => Kind::EACH.iter().map(|kind| push_consumer(*kind, &member.id)).collect(),
    }
}

/// Names of consumers that the other kind of delivery uses, and that must not hold tasks back.
#[must_use]
pub fn foreign_consumers(delivery: Delivery) -> Vec<String> {
    match delivery {
        Delivery::Pull => Kind::EACH.iter().map(|kind| kind.push_consumer()).collect(),
        Delivery::Push => vec![subject::PULL_CONSUMER.to_owned()],
    }
}

/// The consumer of one sender's lane in the shared queue, used by flockd alone.
#[must_use]
pub fn lane_consumer(sender: u32) -> pull::Config {
    let name = subject::lane_consumer(sender);
    pull::Config {
        durable_name: Some(name.clone()),
        name: Some(name),
        filter_subject: subject::lane(sender),
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        max_deliver: -1,
        max_ack_pending: 10_000,
        ..pull::Config::default()
    }
}

/// The consumer that tells flockd what a stream of tasks or results holds. A task stays in its
/// stream until flockd has written it down, so nothing is missing after flockd was away.
#[must_use]
pub fn history_consumer() -> push::Config {
    push::Config {
        durable_name: Some(subject::HISTORY_CONSUMER.to_owned()),
        name: Some(subject::HISTORY_CONSUMER.to_owned()),
        deliver_subject: subject::HISTORY.to_owned(),
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        max_deliver: -1,
        max_ack_pending: 2000,
        ..push::Config::default()
    }
}

fn pull_consumer() -> Consumer {
    use async_nats::jetstream::consumer::IntoConsumerConfig as _;
    pull::Config {
        durable_name: Some(subject::PULL_CONSUMER.to_owned()),
        name: Some(subject::PULL_CONSUMER.to_owned()),
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        // flock-agent counts attempts and reports the last one long before this. A client that never
        // acknowledges gets no more; flockd sees that and ends the task.
        max_deliver: DELIVERIES,
        max_ack_pending: 64,
        max_waiting: 32,
        max_batch: 64,
        max_expires: Duration::from_secs(60),
        ..pull::Config::default()
    }
    .into_consumer_config()
}

fn push_consumer(kind: Kind, id: &AgentId) -> Consumer {
    use async_nats::jetstream::consumer::IntoConsumerConfig as _;
    push::Config {
        durable_name: Some(kind.push_consumer()),
        name: Some(kind.push_consumer()),
        deliver_subject: kind.deliver_subject(id),
        filter_subject: kind.agent_subject(id),
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::None,
        ..push::Config::default()
    }
    .into_consumer_config()
}

fn base(bytes: i64) -> Stream {
    Stream {
        storage: StorageType::File,
        num_replicas: 1,
        max_bytes: bytes,
        max_messages_per_subject: -1,
        max_consumers: -1,
        max_message_size: i32::try_from(MAX_PAYLOAD).unwrap_or(i32::MAX),
        ..Stream::default()
    }
}
