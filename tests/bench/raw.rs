//! What a client without flock would write: publish, pull, result, acknowledge. On plain streams
//! where everybody may everything, or in the place of one of flock's agents.

use async_nats::Client;
use async_nats::jetstream::consumer::{PullConsumer, pull};
use async_nats::jetstream::{self, stream};
use flock::bus::subject;
use flock::names::AgentId;
use futures_util::StreamExt as _;

/// A work queue `raw.tasks`, a stream of `raw.results`, and a consumer to pull from.
pub async fn prepare(client: &Client) -> PullConsumer {
    let js = jetstream::new(client.clone());
    let results = stream::Config {
        name: "RAW_RESULTS".into(),
        subjects: vec!["raw.results".into()],
        ..stream::Config::default()
    };
    js.get_or_create_stream(results).await.expect("the stream of results");
    let tasks = stream::Config {
        name: "RAW".into(),
        subjects: vec!["raw.tasks".into()],
        retention: stream::RetentionPolicy::WorkQueue,
        ..stream::Config::default()
    };
    let stream = js.get_or_create_stream(tasks).await.expect("the stream of tasks");
    let config = pull::Config { durable_name: Some("worker".into()), ..pull::Config::default() };
    stream.get_or_create_consumer("worker", config).await.expect("the consumer")
}

/// Publishes a task and returns when it is stored.
pub async fn send(client: &Client, subject: &str, text: &str) {
    let js = jetstream::new(client.clone());
    let sent = js.publish(subject.to_owned(), text.to_owned().into()).await.expect("publish");
    sent.await.expect("stored");
}

/// Takes tasks one by one, publishes a result of the same text, acknowledges. For ever.
pub async fn work(client: Client, tasks: PullConsumer) {
    let js = jetstream::new(client);
    loop {
        let Ok(mut batch) = tasks.fetch().max_messages(1).expires(EXPIRES).messages().await else {
            continue;
        };
        while let Some(Ok(message)) = batch.next().await {
            let sent = js.publish("raw.results", message.payload.clone()).await.expect("publish");
            sent.await.expect("stored");
            message.ack().await.expect("acknowledged");
        }
    }
}

const EXPIRES: std::time::Duration = std::time::Duration::from_secs(20);

/// The same inside the account of `id`, on the subjects and streams that flock made. For ever.
pub async fn work_as(client: Client, id: AgentId) {
    let ask = serde_json::json!({ "batch": 1, "expires": EXPIRES.as_nanos() as u64 }).to_string();
    loop {
        let inbox = client.new_inbox();
        let mut answers = client.subscribe(inbox.clone()).await.expect("subscribed");
        let to = subject::next_task(&id);
        client.publish_with_reply(to, inbox, ask.clone().into()).await.expect("asked");
        let Some(message) = answers.next().await.filter(|m| m.status.is_none()) else { continue };
        client.request(subject::RESULT, message.payload.clone()).await.expect("stored");
        let reply = message.reply.expect("where to acknowledge");
        client.publish(reply, "+ACK".into()).await.expect("acknowledged");
    }
}
