//! One core message to an agent and its answer: the same program inside flock's sandbox and bare.

use std::path::Path;

use async_nats::{Client, Subscriber};
use flock::bus::identity;
use flock::bus::subject;
use flock::names::AgentId;
use futures_util::StreamExt as _;
use tokio::sync::Mutex;

use super::stats::{Comparison, interleave};

/// Round trips that are timed together.
const AT_ONCE: usize = 200;

/// The agent: answers whatever flock says to it with an event.
pub async fn answer() {
    let var = |name: &str| std::env::var(name).expect(name);
    let id = AgentId::parse(&var("AGENT_ID")).expect("AGENT_ID");
    let client =
        async_nats::ConnectOptions::with_user_and_password(var("NATS_USER"), var("NATS_PASSWORD"))
            .connect(var("NATS_URL"))
            .await
            .expect("the bus");
    let mut said = client.subscribe(subject::control(&id)).await.expect("subscribed");
    while let Some(message) = said.next().await {
        client.publish(subject::events(&id), message.payload).await.expect("published");
    }
}

/// The operator's side: `inside` runs under flock, `bare` does not.
pub async fn compare(inside: &str, bare: &str, pairs: usize) -> Vec<Comparison> {
    let (who, url) =
        identity::operator(Path::new("/var/lib/flock/identity")).expect("the operator's identity");
    let (user, password) = (who.user().to_owned(), who.password().to_owned());
    let client = async_nats::ConnectOptions::with_user_and_password(user, password)
        .connect(url)
        .await
        .expect("the bus");
    let [inside, bare] = [inside, bare].map(|id| AgentId::parse(id).expect("an id"));
    let ears = (ear(&client, &inside).await, ear(&client, &bare).await);
    let a = || async { trips(&client, &inside, &mut *ears.0.lock().await).await };
    let b = || async { trips(&client, &bare, &mut *ears.1.lock().await).await };
    let control = interleave(pairs / 2, b, b).await;
    let real = interleave(pairs, a, b).await;
    vec![
        Comparison::of(&format!("control: bare against bare, {AT_ONCE} round trips"), &control),
        Comparison::of(&format!("round trip, level 1 against bare, {AT_ONCE} of them"), &real),
    ]
}

async fn ear(client: &Client, id: &AgentId) -> Mutex<Subscriber> {
    let ear = client.subscribe(subject::events(id)).await.expect("subscribed");
    client.flush().await.expect("flushed");
    Mutex::new(ear)
}

async fn trips(client: &Client, id: &AgentId, ear: &mut Subscriber) {
    for _ in 0..AT_ONCE {
        client.publish(subject::control(id), "{}".into()).await.expect("published");
        ear.next().await.expect("an answer");
    }
}
