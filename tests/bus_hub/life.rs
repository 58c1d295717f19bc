//! What becomes of tasks: the history, the shared queue and flockd's decisions together, against a
//! real nats-server, with plain clients as agents that do what they should, or not.

/// What is left of a store that was damaged, and what becomes of the tasks in it.
mod damage;

use std::sync::Arc;
use std::time::Duration;

use async_nats::Message;
use flock::bus::hub::{Hub, News};
use flock::bus::message::{self, Address, Status, Task, TaskId};
use flock::bus::queue;
use flock::bus::streams::{Delivery, Member};
use flock::config;
use flock::daemon::world::World;
use flock::daemon::{history, life};
use flock::history::{Record, Slot, State};
use futures_util::StreamExt as _;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::{Bus, any, id, member};

/// flockd's part, without flockd.
struct Daemon {
    world: Arc<World>,
    hub: Hub,
    parts: Vec<JoinHandle<()>>,
    _stop: watch::Sender<bool>,
}

/// Soon enough for a test.
const PACE: life::Pace = life::Pace {
    tick: Duration::from_millis(100),
    grace: SignedDuration::ZERO,
    round: Duration::from_millis(300),
    young: SignedDuration::ZERO,
    catch_up: Duration::ZERO,
};

const MEMBERS: [(&str, Delivery); 3] =
    [("agent-1", Delivery::Pull), ("agent-2", Delivery::Pull), ("service", Delivery::Push)];

fn members() -> Vec<Member> {
    MEMBERS.iter().map(|(name, delivery)| member(name, *delivery)).collect()
}

impl Daemon {
    async fn start(bus: &Bus) -> Self {
        Self::with(bus, PACE).await
    }

    async fn with(bus: &Bus, pace: life::Pace) -> Self {
        let text = "[defaults]\ncommand = [\"/bin/cat\"]\ntask = { timeout = \"3s\" }\n\
                    [agents.agent-1]\n[agents.agent-2]\n[agents.service]\nmode = \"service\"\n";
        let config = config::parse(&[("flock.toml".into(), text.to_owned())]).unwrap();
        let world = World::new("flock.toml".into(), config, bus.dir.path().join("history.db"));
        let hub = bus.hub().await;
        hub.ensure(&members()).await.unwrap();
        let (stop, stopped) = watch::channel(false);
        let (order, orders) = mpsc::unbounded_channel();
        *world.orders.lock().unwrap() = Some(order);
        let setup = queue::Setup {
            members: members(),
            silence: Duration::from_secs(4),
            book: Arc::new(world.ledger.clone()),
            orders,
        };
        let (one, two, three) = (hub.clone(), hub.clone(), hub.clone());
        let (w1, w2) = (Arc::clone(&world), Arc::clone(&world));
        let parts = vec![
            tokio::spawn(async move { history::run(&w1, &one).await.unwrap() }),
            tokio::spawn(async move { life::run(&w2, &two, pace).await }),
            tokio::spawn(async move { queue::run(three, setup, stopped).await.unwrap() }),
        ];
        Self { world, hub, parts, _stop: stop }
    }

    async fn send(&self, task: &Task) {
        let everyone = [id("agent-1"), id("agent-2")];
        for (_, outcome) in self.hub.send(task, &everyone).await {
            outcome.unwrap();
        }
    }

    async fn records(&self, task: &TaskId) -> Vec<Record> {
        let task = task.clone();
        self.world.ledger.read(move |reader| reader.show(&task)).await.unwrap_or_default()
    }

    /// The only record of the task, once it is as wanted.
    async fn until(&self, task: &Task, what: &str, wanted: impl Fn(&Record) -> bool) -> Record {
        let mut last = Vec::new();
        for _ in 0..900 {
            last = self.records(&task.id).await;
            if let [record] = &last[..]
                && wanted(record)
            {
                return record.clone();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the task is not {what}: {last:?}");
    }

    async fn ends(&self, task: &Task, state: State) -> Record {
        self.until(task, state.word(), |record| record.state == state).await
    }

    async fn strays(&self) -> Vec<String> {
        let path = self.world.ledger.clone();
        let strays = path.write(|store| store.strays(100)).await.unwrap();
        strays.into_iter().map(|stray| format!("{}: {}", stray.agent, stray.why)).collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        for part in &self.parts {
            part.abort();
        }
    }
}

/// An agent that pulls its tasks and does with them what the test says.
struct Puller {
    name: &'static str,
    client: async_nats::Client,
    control: async_nats::Subscriber,
    beats: JoinHandle<()>,
}

impl Puller {
    async fn new(bus: &Bus, name: &'static str, places: u32) -> Self {
        let client = bus.agent(name).await;
        let control = client.subscribe(format!("agent.{name}.control")).await.unwrap();
        client.flush().await.unwrap();
        let beat = client.clone();
        let beats = tokio::spawn(async move {
            loop {
                let text = format!("{{\"at\":\"2026-01-01T00:00:00Z\",\"parallel\":{places}}}");
                let _ = beat.publish(format!("agent.{name}.heartbeat"), text.into()).await;
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        });
        Self { name, client, control, beats }
    }

    /// The next task; none within a while.
    async fn try_take(&self, wait: Duration) -> Option<(Message, Task)> {
        let inbox = self.client.new_inbox();
        let mut pulled = self.client.subscribe(inbox.clone()).await.unwrap();
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.TASKS_{}.worker", self.name);
        let ask = format!("{{\"batch\":1,\"expires\":{}}}", wait.as_nanos());
        self.client.publish_with_reply(subject, inbox, ask.into()).await.unwrap();
        let message = tokio::time::timeout(wait * 2, pulled.next()).await.ok()??;
        let task = message::parse(&message.payload).ok()?;
        Some((message, task))
    }

    async fn take(&self) -> (Message, Task) {
        self.try_take(Duration::from_secs(30)).await.expect("no task comes")
    }

    async fn say(&self, json: String) {
        self.client.publish("task.result", json.into()).await.unwrap();
        self.client.flush().await.unwrap();
    }

    async fn answer(&self, task: &Task, output: &str) {
        let (id, attempt) = (&task.id, task.attempt);
        self.say(format!("{{\"task\":\"{id}\",\"attempt\":{attempt},\"output\":\"{output}\"}}"))
            .await;
    }

    async fn verdict(&self, message: &Message, word: &'static str) {
        let reply = message.reply.clone().unwrap();
        self.client.publish(reply, word.into()).await.unwrap();
        self.client.flush().await.unwrap();
    }
}

fn to(agent: &str, text: &str) -> Task {
    Task::new(Address::Agent(id(agent)), text)
}

async fn start() -> (Bus, Daemon) {
    let bus = Bus::start(&["agent-1", "agent-2", "service"]);
    let daemon = Daemon::start(&bus).await;
    (bus, daemon)
}

#[tokio::test]
#[ignore = "needs nats-server"]
async fn tasks_are_written_down_and_lies_and_repetitions_are_not() {
    let (bus, daemon) = start().await;
    let (one, two) = (Puller::new(&bus, "agent-1", 1).await, Puller::new(&bus, "agent-2", 0).await);
    let own = to("agent-1", "own");
    let mut news = daemon.hub.follow(&own.id, true).await.unwrap();
    daemon.send(&own).await;
    daemon.until(&own, "queued", |record| record.place.is_some()).await;
    let (message, task) = one.take().await;
    two.answer(&task, "a lie").await;
    one.answer(&task, "42").await;
    one.answer(&task, "43").await;
    one.say("[]".to_owned()).await;
    one.verdict(&message, "+ACK").await;
    let record = daemon.ends(&own, State::Done).await;
    assert_eq!(record.output.as_deref(), Some("42"));
    assert_eq!(record.agent, Some(id("agent-1")));
    // Of a task that another agent has, the history first thinks that it may still come.
    for _ in 0..900 {
        if daemon.strays().await.len() == 3 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut strays = daemon.strays().await;
    strays.sort();
    assert_eq!(strays.len(), 3, "{strays:?}");
    assert!(strays[2].starts_with("agent-2: "), "{strays:?}");
    assert_eq!(daemon.records(&own.id).await[0].output.as_deref(), Some("42"));
    assert!(matches!(news.next().await, Some(News::Said(_))));
}

#[tokio::test]
#[ignore = "needs nats-server"]
async fn a_late_result_of_an_old_attempt_ends_nothing() {
    let (bus, daemon) = start().await;
    let one = Puller::new(&bus, "agent-1", 1).await;
    let task = any("x");
    let mut finals = daemon.hub.follow(&task.id, false).await.unwrap();
    daemon.send(&task).await;
    let (_, first) = one.take().await;
    assert_eq!(first.attempt, 1);
    one.beats.abort();
    let two = Puller::new(&bus, "agent-2", 1).await;
    let (message, second) = two.take().await;
    assert_eq!(second.attempt, 2, "taken from the silent one");
    one.answer(&first, "late").await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(!daemon.records(&task.id).await[0].state.is_final(), "it is not agent-1's any more");
    two.answer(&second, "good").await;
    two.verdict(&message, "+ACK").await;
    let record = daemon.ends(&task, State::Done).await;
    assert_eq!((record.output.as_deref(), record.attempt), (Some("good"), 2));
    let heard = tokio::time::timeout(Duration::from_secs(5), finals.next()).await.unwrap();
    let Some(News::Final(result)) = heard else { panic!("{heard:?}") };
    assert_eq!((result.agent.as_str(), result.output.as_str()), ("agent-2", "good"));
    assert!(daemon.strays().await.iter().all(|stray| stray.starts_with("agent-1: ")));
    super::queue_is_empty(&bus).await;
}

#[tokio::test]
#[ignore = "needs nats-server"]
async fn a_task_is_cancelled_wherever_it_is() {
    let (bus, daemon) = start().await;
    let queued = [to("agent-2", "own"), any("any")];
    for task in &queued {
        let mut finals = daemon.hub.follow(&task.id, false).await.unwrap();
        daemon.send(task).await;
        daemon.until(task, "queued", |_| true).await;
        let answer = life::cancel(&daemon.world, &daemon.hub, &task.id, "me").await.unwrap();
        assert_eq!((answer.was, answer.refused), (vec!["queued".to_owned()], None));
        let Some(News::Final(end)) = finals.next().await else { panic!("no end is announced") };
        assert_eq!(
            (end.status, end.reason.as_deref()),
            (Status::Cancelled, Some("cancelled by me"))
        );
    }
    let (mut one, two) =
        (Puller::new(&bus, "agent-1", 1).await, Puller::new(&bus, "agent-2", 1).await);
    assert!(two.try_take(Duration::from_secs(1)).await.is_none(), "nobody gets them any more");
    super::queue_is_empty(&bus).await;
    // Given by the shared queue, and begun.
    two.beats.abort();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let running = any("running");
    daemon.send(&running).await;
    let (message, task) = one.take().await;
    let started = format!(
        "{{\"at\":\"2026-01-01T00:00:00Z\",\"event\":\"task-started\",\"task\":\"{}\"}}",
        task.id
    );
    one.client.publish("agent.agent-1.events", started.into()).await.unwrap();
    daemon.until(&running, "given", |record| record.agent.is_some()).await;
    let answer = life::cancel(&daemon.world, &daemon.hub, &task.id, "me").await.unwrap();
    assert_eq!(answer.refused, None);
    let order = super::next(&mut one.control).await;
    assert_eq!(order.payload, format!("{{\"cancel\":\"{}\"}}", task.id));
    one.answer(&task, "too late").await;
    one.verdict(&message, "+ACK").await;
    super::queue_is_empty(&bus).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let record = daemon.ends(&running, State::Cancelled).await;
    assert_eq!(record.output, None, "what comes later is refused");
    let again = life::cancel(&daemon.world, &daemon.hub, &task.id, "me").await.unwrap();
    assert_eq!(again.refused.as_deref(), Some("it is cancelled already"));
    let nobody = TaskId::parse("nobody").unwrap();
    let unknown = life::cancel(&daemon.world, &daemon.hub, &nobody, "me").await.unwrap();
    assert!(unknown.refused.is_some_and(|why| why.contains("no task")));
    // The place is free again.
    daemon.send(&any("next")).await;
    assert_eq!(one.take().await.1.text, "next");
}

#[tokio::test]
#[ignore = "needs nats-server"]
async fn a_task_expires_although_its_agent_is_stopped() {
    let (bus, daemon) = start().await;
    for task in [to("agent-1", "own"), any("any")] {
        let deadline = Timestamp::now().checked_add(SignedDuration::from_secs(3)).unwrap();
        let task = Task { deadline: Some(deadline), ..task };
        daemon.send(&task).await;
        daemon.until(&task, "queued", |record| record.state == State::Queued).await;
        let record = daemon.ends(&task, State::Expired).await;
        assert!(record.decided && record.finished.is_some());
    }
    let one = Puller::new(&bus, "agent-1", 1).await;
    assert!(one.try_take(Duration::from_secs(1)).await.is_none(), "it is not begun later");
    super::queue_is_empty(&bus).await;
}

#[tokio::test]
#[ignore = "needs nats-server"]
async fn an_agent_that_acknowledges_without_work_or_never_is_found_out() {
    let (bus, daemon) = start().await;
    let one = Puller::new(&bus, "agent-1", 1).await;
    let lazy = to("agent-1", "lazy");
    daemon.send(&lazy).await;
    let (message, _) = one.take().await;
    one.verdict(&message, "+ACK").await;
    let record = daemon.ends(&lazy, State::Failed).await;
    assert_eq!(record.reason.as_deref(), Some("the agent acknowledged it without a result"));
    let never = to("agent-1", "never");
    daemon.send(&never).await;
    for _ in 0..flock::bus::streams::DELIVERIES {
        let (message, _) = one.take().await;
        one.verdict(&message, "-NAK").await;
    }
    assert!(one.try_take(Duration::from_secs(1)).await.is_none());
    let record = daemon.ends(&never, State::Failed).await;
    assert!(record.reason.unwrap().contains("times and never finished"));
    // The shared queue gives such a task to another.
    let shared = any("shared");
    daemon.send(&shared).await;
    let (message, _) = one.take().await;
    one.verdict(&message, "+ACK").await;
    one.beats.abort();
    let two = Puller::new(&bus, "agent-2", 1).await;
    let (message, task) = two.take().await;
    assert!(task.attempt > 1);
    two.answer(&task, "done").await;
    two.verdict(&message, "+ACK").await;
    daemon.ends(&shared, State::Done).await;
}

#[tokio::test]
#[ignore = "needs nats-server"]
async fn a_service_has_its_time_to_answer() {
    let (bus, daemon) = start().await;
    let client = bus.agent("service").await;
    let mut tasks = client.subscribe("tasks.*").await.unwrap();
    client.flush().await.unwrap();
    let (good, mute) = (to("service", "good"), to("service", "mute"));
    daemon.send(&good).await;
    let got: Task = message::parse(&super::next(&mut tasks).await.payload).unwrap();
    client.publish("task.result", format!("{{\"task\":\"{}\"}}", got.id).into()).await.unwrap();
    daemon.ends(&good, State::Done).await;
    daemon.send(&mute).await;
    super::next(&mut tasks).await;
    daemon.ends(&mute, State::Running).await;
    let record = daemon.ends(&mute, State::Failed).await;
    assert_eq!(record.reason.as_deref(), Some("no result within 3 s (task.timeout)"));
}

#[tokio::test]
#[ignore = "needs nats-server"]
async fn a_task_that_the_bus_lost_is_stored_again() {
    let mut bus = Bus::start(&["agent-1", "agent-2", "service"]);
    let daemon = Daemon::start(&bus).await;
    let tasks = [to("agent-1", "own"), any("any")];
    for task in &tasks {
        daemon.send(task).await;
        daemon.until(task, "queued", |_| true).await;
    }
    drop(daemon);
    bus.child.kill().unwrap();
    bus.child.wait().unwrap();
    std::fs::remove_dir_all(&bus.settings.store).unwrap();
    bus.child = Bus::spawn(&bus.settings, bus.dir.path());
    let daemon = Daemon::start(&bus).await;
    let one = Puller::new(&bus, "agent-1", 2).await;
    for _ in 0..2 {
        let (message, task) = one.take().await;
        let known = tasks.iter().find(|known| known.id == task.id).unwrap();
        assert_eq!(known.text, task.text);
        one.answer(&task, "done").await;
        one.verdict(&message, "+ACK").await;
        daemon.ends(known, State::Done).await;
    }
    super::queue_is_empty(&bus).await;
}

#[tokio::test]
#[ignore = "needs nats-server"]
async fn a_task_that_the_bus_loses_again_is_stored_again() {
    let (bus, daemon) = start().await;
    let own = to("agent-1", "own");
    daemon.send(&own).await;
    for place in 1..=3 {
        let is_there =
            |record: &Record| record.place.as_ref().is_some_and(|at| at.sequence == place);
        daemon.until(&own, "stored", is_there).await;
        let stream = super::stream(&bus, "TASKS_agent-1").await;
        assert!(stream.delete_message(place).await.unwrap(), "place {place}");
    }
    let one = Puller::new(&bus, "agent-1", 1).await;
    let (message, task) = one.take().await;
    one.answer(&task, "done").await;
    one.verdict(&message, "+ACK").await;
    daemon.ends(&own, State::Done).await;
}

#[tokio::test]
#[ignore = "needs nats-server"]
async fn a_lost_task_is_not_taken_for_done_without_a_result_because_an_older_one_was_stored_again()
{
    let bus = Bus::start(&["agent-1", "agent-2", "service"]);
    let pace = life::Pace { young: SignedDuration::from_secs(4), ..PACE };
    let daemon = Daemon::with(&bus, pace).await;
    let (older, younger) = (to("agent-1", "older"), to("agent-1", "younger"));
    daemon.send(&older).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    daemon.send(&younger).await;
    daemon.until(&younger, "queued", |_| true).await;
    let stream = super::stream(&bus, "TASKS_agent-1").await;
    for place in [1, 2] {
        assert!(stream.delete_message(place).await.unwrap());
    }
    // Who waits for tasks is past what was deleted: nobody does, until the older one is back.
    while super::stream(&bus, "TASKS_agent-1").await.cached_info().state.last_sequence < 3 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let one = Puller::new(&bus, "agent-1", 1).await;
    for known in [&older, &younger] {
        let (message, task) = one.take().await;
        assert_eq!(task.id, known.id);
        one.answer(&task, "done").await;
        one.verdict(&message, "+ACK").await;
        daemon.ends(known, State::Done).await;
    }
}

#[tokio::test]
#[ignore = "needs nats-server"]
async fn nothing_is_called_expired_before_the_history_has_caught_up() {
    let bus = Bus::start(&["agent-1", "agent-2", "service"]);
    let daemon = Daemon::with(&bus, life::Pace { catch_up: Duration::from_secs(4), ..PACE }).await;
    let begun = std::time::Instant::now();
    let late = Task { deadline: Some(Timestamp::now()), ..to("agent-1", "late") };
    daemon.send(&late).await;
    daemon.ends(&late, State::Expired).await;
    assert!(begun.elapsed() >= Duration::from_secs(3), "after {:?}", begun.elapsed());
}

/// flockd was told of it and died before it had written it down: it is told again after half a minute.
#[tokio::test]
#[ignore = "needs nats-server"]
async fn a_result_that_is_on_its_way_is_waited_for() {
    let (bus, daemon) = start().await;
    let one = Puller::new(&bus, "agent-1", 1).await;
    let work = to("agent-1", "work");
    daemon.send(&work).await;
    daemon.until(&work, "queued", |record| record.place.is_some()).await;
    let (message, task) = one.take().await;
    let hub = daemon.hub.clone();
    drop(daemon);
    let mut history = hub.history().await.unwrap();
    one.answer(&task, "done").await;
    super::next(&mut history).await;
    one.verdict(&message, "+ACK").await;
    drop(history);
    let record = Daemon::start(&bus).await.ends(&work, State::Done).await;
    assert_eq!(record.output.as_deref(), Some("done"));
}

#[tokio::test]
#[ignore = "needs nats-server"]
async fn many_tasks_of_one_sender_do_not_delay_anothers() {
    let (bus, daemon) = start().await;
    let flood = (0..400).map(|n| Task { sender: 1000, ..any(&n.to_string()) });
    for task in flood {
        daemon.send(&task).await;
    }
    let other = Task { sender: 1001, ..any("other") };
    daemon.send(&other).await;
    let one = Puller::new(&bus, "agent-1", 1).await;
    let mut before = 0;
    loop {
        let (message, task) = one.take().await;
        one.answer(&task, "").await;
        one.verdict(&message, "+ACK").await;
        if task.id == other.id {
            break;
        }
        before += 1;
        assert!(before < 5, "it waits behind the flood");
    }
    let record = daemon.ends(&other, State::Done).await;
    assert_eq!((record.sender, record.slot), (1001, Slot::Any));
}

/// The queue has heard the answer and has let the task go; what stored it is lost.
#[tokio::test]
#[ignore = "needs nats-server"]
async fn a_task_of_the_queue_whose_result_was_lost_does_not_stay_open() {
    let (bus, daemon) = start().await;
    let one = Puller::new(&bus, "agent-1", 1).await;
    let shared = any("shared");
    daemon.send(&shared).await;
    let (message, task) = one.take().await;
    daemon.until(&shared, "given", |record| record.given.is_some()).await;
    let history = &daemon.parts[0];
    history.abort();
    let forgets = tokio::spawn(super::forget_all(daemon.hub.clone()));
    one.answer(&task, "lost").await;
    one.verdict(&message, "+ACK").await;
    let record = daemon.ends(&shared, State::Failed).await;
    assert_eq!(record.output, None);
    forgets.abort();
}

/// Returns when the server has seen that flockd listens no more.
async fn nobody_writes_history(bus: &Bus) {
    let stream = super::stream(bus, "TASKS_agent-1").await;
    while stream.consumer_info("history").await.unwrap().push_bound {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
#[ignore = "needs nats-server"]
async fn what_happens_while_flockd_is_down_is_in_the_history_afterwards() {
    let (bus, daemon) = start().await;
    let one = Puller::new(&bus, "agent-1", 1).await;
    let shared = any("shared");
    daemon.send(&shared).await;
    let (message, given) = one.take().await;
    let hub = daemon.hub.clone();
    drop(daemon);
    nobody_writes_history(&bus).await;
    let own = to("agent-1", "own");
    assert!(hub.send(&own, &[]).await[0].1.is_ok());
    one.answer(&given, "one").await;
    one.verdict(&message, "+ACK").await;
    let (message, task) = one.take().await;
    one.answer(&task, "two").await;
    one.verdict(&message, "+ACK").await;
    let daemon = Daemon::start(&bus).await;
    for (task, output) in [(&shared, "one"), (&own, "two")] {
        let record = daemon.ends(task, State::Done).await;
        assert_eq!(record.output.as_deref(), Some(output));
    }
    for _ in 0..1600 {
        if super::waiting(&bus).await == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the task that is done stays in the queue");
}
