//! Tasks through flock's library against a raw client that does the same steps.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, Message, Subscriber};
use flock::agent::link::{Link, Verdict};
use flock::bus::hub::{Hub, Notice, Report};
use flock::bus::message::{self, Address, Task, TaskResult};
use flock::bus::queue;
use flock::bus::subject::{self, Kind};
use flock::config;
use flock::daemon::history;
use flock::daemon::world::World;
use flock::names::AgentId;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use tokio::sync::{Mutex, Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use super::raw;
use super::server::Bus;
use super::stats::{Comparison, interleave};

/// Round trips that are timed together.
const AT_ONCE: usize = 10;
/// Tasks that an agent works on at once, as flock-agent does unless configured.
const PARALLEL: usize = 2;
/// As many bytes as a short task of flock has.
const SAME_SIZE: &str = "{\"id\":\"019b0a3c5d6e7f8091a2b3c4d5e6f708\",\"to\":\"agent-1\",\"text\":\"x\",\
    \"created\":\"2026-01-01T00:00:00.123456789Z\",\"attempt\":1,\"sender\":0}";

/// Send to result: publish, pull, result, acknowledge. Against a raw client in the agent's place
/// (the price of the library), and against plain streams without any wall (the price of the walls).
pub async fn round_trip(sync: &str, pairs: usize) -> Vec<Comparison> {
    let bus = Bus::start(sync, 2);
    let hub = bus.hub().await;
    hub.ensure(&bus.members()).await.expect("streams");
    let [first, second] = [bus.agents()[0].clone(), bus.agents()[1].clone()];
    let mut helpers = JoinSet::new();
    write_down(&bus, &hub, &mut helpers);
    helpers.spawn(answer(bus.link(&first).await));
    for _ in 0..PARALLEL {
        helpers.spawn(raw::work_as(bus.raw(Some(&second)).await, second.clone()));
    }
    let ours = Mutex::new(hub.watch().await.expect("results"));
    let client = bus.raw(None).await;
    let consumer = raw::prepare(&client).await;
    for _ in 0..PARALLEL {
        helpers.spawn(raw::work(bus.raw(None).await, consumer.clone()));
    }
    let hear = async |subject: String| {
        let results = client.subscribe(subject).await.expect("results");
        client.flush().await.expect("flushed");
        Mutex::new(results)
    };
    let in_place = hear(subject::result(&second)).await;
    let plain = hear("raw.results".to_owned()).await;
    let place = Kind::Own.hub_subject(&second);
    let a = || async { through_flock(&hub, &first, &mut *ours.lock().await).await };
    let b = || async { through_raw(&client, &place, &mut *in_place.lock().await).await };
    let c = || async { through_raw(&client, "raw.tasks", &mut *plain.lock().await).await };
    let named = |what: &str, times: &[_]| Comparison::of(&format!("{what}, sync {sync}"), times);
    vec![
        named("control: raw client against itself", &interleave(pairs / 2, b, b).await),
        named("task round trip: flock / raw client in its place", &interleave(pairs, a, b).await),
        named("task round trip: flock / plain streams, no walls", &interleave(pairs, a, c).await),
    ]
}

async fn through_flock(hub: &Hub, id: &AgentId, results: &mut BoxStream<'static, Notice>) {
    for _ in 0..AT_ONCE {
        let task = Task::new(Address::Agent(id.clone()), "x");
        hub.send_to(&task, id, Kind::Own).await.expect("sent");
        loop {
            let notice = results.next().await.expect("a result");
            if matches!(notice.report, Report::Result(Ok(r)) if r.task == task.id.as_str()) {
                break;
            }
        }
    }
}

async fn through_raw(client: &Client, to: &str, results: &mut Subscriber) {
    for _ in 0..AT_ONCE {
        raw::send(client, to, SAME_SIZE).await;
        results.next().await.expect("a result");
    }
}

/// An agent without a command: what is left is what the bus and the library cost. Like flock-agent
/// it asks for the next task while it works on one.
async fn answer(link: Link) {
    let places = Arc::new(Semaphore::new(PARALLEL));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("open");
        let Ok(Some(message)) = link.next_task().await else { continue };
        let link = link.clone();
        tokio::spawn(async move {
            finish(&link, &message).await;
            drop(place);
        });
    }
}

async fn finish(link: &Link, message: &Message) {
    let task: Task = message::parse(&message.payload).expect("a task");
    let json = serde_json::json!({ "task": task.id, "output": task.text, "attempt": task.attempt });
    let result: TaskResult = serde_json::from_value(json).expect("a result");
    // At the end of a comparison the server goes first. A result that is missing before that would
    // be waited for in vain, so nothing is hidden here.
    let _ = link.result(&result).await;
    let _ = link.verdict(message, Verdict::Done).await;
}

/// flockd's history, which takes part in every task: without it the bus keeps what is done.
fn write_down(bus: &Bus, hub: &Hub, helpers: &mut JoinSet<()>) -> Arc<World> {
    let config = config::parse(&[("flock.toml".into(), String::new())]).expect("a configuration");
    let world = World::new("flock.toml".into(), config, bus.history());
    let (writer, hub) = (Arc::clone(&world), hub.clone());
    // At the end of a comparison the server goes first.
    helpers.spawn(async move {
        let _ = history::run(&writer, &hub).await;
    });
    world
}

/// Time for `count` tasks through the shared queue with `agents` agents, against as many raw
/// workers on one work queue. Agents answer at once, so this is the price of the queue alone.
pub async fn queue(sync: &str, agents: usize, count: usize, pairs: usize) -> Comparison {
    let bus = Bus::start(sync, agents);
    let hub = bus.hub().await;
    hub.ensure(&bus.members()).await.expect("streams");
    let mut helpers = JoinSet::new();
    for id in bus.agents() {
        let link = bus.link(id).await;
        link.heartbeat(Vec::new(), 2).await;
        helpers.spawn(answer(link));
    }
    let world = write_down(&bus, &hub, &mut helpers);
    let (_go_on, stop) = watch::channel(false);
    let (order, orders) = mpsc::unbounded_channel();
    *world.orders.lock().expect("no test has failed") = Some(order);
    let book = Arc::new(world.ledger.clone());
    let setup = queue::Setup { members: bus.members(), silence: queue::SILENCE, book, orders };
    let hub_of_queue = hub.clone();
    helpers.spawn(async move {
        queue::run(hub_of_queue, setup, stop).await.expect("the queue runs");
    });
    beat(&bus, &mut helpers).await;
    let results = Mutex::new(hub.watch().await.expect("results"));
    let client = bus.raw(None).await;
    let consumer = raw::prepare(&client).await;
    for _ in 0..agents {
        helpers.spawn(raw::work(bus.raw(None).await, consumer.clone()));
    }
    let raw_results = Mutex::new(client.subscribe("raw.results").await.expect("results"));
    client.flush().await.expect("flushed");
    let a = || async { queue_ours(&hub, &mut *results.lock().await, count).await };
    let b = || async { queue_raw(&client, &mut *raw_results.lock().await, count).await };
    let times = interleave(pairs, a, b).await;
    Comparison::of(&format!("shared queue, sync {sync}, {agents} agents, {count} tasks"), &times)
}

/// Heartbeats, so that the queue knows who is there.
async fn beat(bus: &Bus, helpers: &mut JoinSet<()>) {
    for id in bus.agents() {
        let link = bus.link(id).await;
        helpers.spawn(async move {
            loop {
                link.heartbeat(Vec::new(), 2).await;
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
        });
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
}

async fn queue_ours(hub: &Hub, results: &mut BoxStream<'static, Notice>, count: usize) {
    let mut sends = JoinSet::new();
    for _ in 0..count {
        let hub = hub.clone();
        sends.spawn(async move {
            let sent = hub.send(&Task::new(Address::Any, "x"), &[]).await;
            assert!(sent.iter().all(|(_, outcome)| outcome.is_ok()), "{sent:?}");
        });
    }
    let mut done = 0;
    while done < count {
        let notice = results.next().await.expect("a result");
        done += usize::from(matches!(notice.report, Report::Result(Ok(_))));
    }
    while let Some(sent) = sends.join_next().await {
        sent.expect("sent");
    }
}

async fn queue_raw(client: &Client, results: &mut Subscriber, count: usize) {
    let mut sends = JoinSet::new();
    for _ in 0..count {
        let client = client.clone();
        sends.spawn(async move { raw::send(&client, "raw.tasks", SAME_SIZE).await });
    }
    for _ in 0..count {
        results.next().await.expect("a result");
    }
    while let Some(sent) = sends.join_next().await {
        sent.expect("sent");
    }
}
