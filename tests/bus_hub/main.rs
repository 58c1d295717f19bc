//! The operator's side against a real nats-server: `FLOCK_NATS_SERVER`, or /usr/sbin/nats-server.
//!
//! They need that server, so plain `cargo test` counts them as ignored and
//! `cargo test --test bus_hub -- --ignored` runs them; without a server they then fail.

/// What becomes of tasks: the history, the shared queue and flockd's decisions together.
mod life;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::jetstream::consumer::pull;
use flock::bus::hub::{self, Hub, Notice, Report};
use flock::bus::identity::{self, Identities};
use flock::bus::message::{Address, Status, Task, TaskId};
use flock::bus::queue::{Book, Known, Order};
use flock::bus::streams::{Delivery, Member};
use flock::bus::talk::Talk;
use flock::bus::{Settings, queue, server_conf, version};
use flock::names::AgentId;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::{mpsc, watch};

/// A server of its own in a folder of its own; it ends with the value.
struct Bus {
    dir: tempfile::TempDir,
    child: Child,
    settings: Settings,
    all: Identities,
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn server() -> PathBuf {
    std::env::var_os("FLOCK_NATS_SERVER").map_or("/usr/sbin/nats-server".into(), PathBuf::from)
}

/// Another one each time, below those that the kernel gives to clients: it stays free.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    loop {
        let port = NEXT.fetch_add(1, Ordering::Relaxed);
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn id(name: &str) -> AgentId {
    AgentId::parse(name).unwrap()
}

fn member(name: &str, delivery: Delivery) -> Member {
    Member { id: id(name), delivery }
}

impl Bus {
    fn start(agents: &[&str]) -> Self {
        let server = server();
        version::check(&server).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings {
            server,
            port: free_port(),
            sync: "always".into(),
            store: dir.path().join("jetstream"),
        };
        let ids: Vec<_> = agents.iter().map(|n| id(n)).collect();
        let all = identity::ensure(&dir.path().join("identity"), &ids, &settings.url()).unwrap();
        assert!(server_conf::write(dir.path(), &settings, &all, &Talk::default(), None).unwrap());
        let child = Self::spawn(&settings, dir.path());
        Self { dir, child, settings, all }
    }

    fn spawn(settings: &Settings, dir: &Path) -> Child {
        let log = std::fs::File::create(dir.join("log")).unwrap();
        Command::new(&settings.server)
            .arg("-c")
            .arg(dir.join(server_conf::SERVER_FILE))
            .stderr(log)
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// kill -9 and a new process on the same files.
    fn crash_and_restart(&mut self) {
        self.stop();
        self.start_again();
    }

    fn stop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    async fn stop_gently(&mut self) {
        let number = i32::try_from(self.child.id()).unwrap();
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(number),
            nix::sys::signal::Signal::SIGTERM,
        )
        .unwrap();
        while self.child.try_wait().unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn start_again(&mut self) {
        self.child = Self::spawn(&self.settings, self.dir.path());
    }

    async fn hub(&self) -> Hub {
        let mut last = None;
        for _ in 0..400 {
            match Hub::connect(&self.all.operator, &self.settings.url()).await {
                Ok(hub) => return hub,
                Err(e) => last = Some(e),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{last:?}: {}", std::fs::read_to_string(self.dir.path().join("log")).unwrap());
    }

    async fn agent(&self, name: &str) -> async_nats::Client {
        let who = &self.all.agents[&id(name)];
        let options = async_nats::ConnectOptions::with_user_and_password(
            who.user().to_owned(),
            who.password().to_owned(),
        );
        options.connect(self.settings.url()).await.unwrap()
    }
}

/// The book of a queue without a history: what the test says has ended.
#[derive(Default)]
struct Notes {
    ended: Mutex<BTreeSet<TaskId>>,
    given_up: Mutex<Vec<(TaskId, String)>>,
}

impl Book for Notes {
    fn known(&self, task: TaskId) -> BoxFuture<'static, Option<Known>> {
        let ended = self.ended.lock().unwrap().contains(&task);
        std::future::ready(ended.then_some(Known { ended, attempts: 1 })).boxed()
    }

    fn back(&self, task: TaskId, attempt: u64, _: String) -> BoxFuture<'static, Option<u64>> {
        let ended = self.ended.lock().unwrap().contains(&task);
        std::future::ready((!ended).then_some(attempt)).boxed()
    }

    fn given_up(&self, task: TaskId, why: String) -> BoxFuture<'static, ()> {
        self.given_up.lock().unwrap().push((task, why));
        std::future::ready(()).boxed()
    }
}

/// The shared queue at work.
struct Dispatch {
    stop: watch::Sender<bool>,
    _orders: mpsc::UnboundedSender<Order>,
    task: tokio::task::JoinHandle<Result<(), hub::Error>>,
    history: tokio::task::JoinHandle<()>,
}

/// A history that forgets: without one, streams keep what is done.
async fn forget_all(hub: Hub) {
    let mut messages = hub.history().await.unwrap();
    while let Some(message) = messages.next().await {
        message.ack().await.unwrap();
    }
}

impl Dispatch {
    fn start(hub: &Hub, members: &[Member], silence: Duration) -> Self {
        Self::with(hub, members, silence, Arc::default())
    }

    fn with(hub: &Hub, members: &[Member], silence: Duration, book: Arc<Notes>) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (_orders, receiver) = mpsc::unbounded_channel();
        let members = members.to_vec();
        let setup = queue::Setup { members, silence, book, orders: receiver };
        let task = tokio::spawn(queue::run(hub.clone(), setup, stopped));
        let history = tokio::spawn(forget_all(hub.clone()));
        Self { stop, _orders, task, history }
    }

    async fn end(self) {
        self.stop.send(true).unwrap();
        self.task.await.unwrap().unwrap();
        self.history.abort();
    }
}

async fn next<T>(stream: &mut (impl futures_util::Stream<Item = T> + Unpin)) -> T {
    tokio::time::timeout(Duration::from_secs(30), stream.next()).await.unwrap().unwrap()
}

#[tokio::test]
#[ignore = "needs nats-server"]
async fn tasks_wait_for_a_plain_client_and_results_come_back() {
    let bus = Bus::start(&["agent-1", "agent-2"]);
    let hub = bus.hub().await;
    let members = [member("agent-1", Delivery::Push), member("agent-2", Delivery::Pull)];
    hub.ensure(&members).await.unwrap();
    let everyone = [id("agent-1"), id("agent-2")];
    let own = Task::new(Address::Agent(id("agent-1")), "own");
    let all = Task::new(Address::All, "all");
    for (task, receivers) in [(&own, 1), (&all, 2)] {
        let sent = hub.send(task, &everyone).await;
        assert_eq!(sent.len(), receivers);
        assert!(sent.iter().all(|(_, r)| r.as_ref().is_ok_and(|r| !r.duplicate)), "{sent:?}");
    }
    let again = hub.send(&own, &everyone).await;
    assert!(again[0].1.as_ref().is_ok_and(|r| r.duplicate), "sent twice, stored once");
    assert_eq!(hub.backlog(&members[0]).await.unwrap().waiting, 2);
    let mut watch = hub.watch().await.unwrap();
    let agent = bus.agent("agent-1").await;
    let mut tasks = agent.subscribe("tasks.*").await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..2 {
        let message = next(&mut tasks).await;
        let task: Task = flock::bus::message::parse(&message.payload).unwrap();
        seen.push((message.subject.to_string(), task));
    }
    seen.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(seen, [("tasks.agent-1".to_owned(), own.clone()), ("tasks.all".to_owned(), all)]);
    let lie = format!("{{\"task\":\"{}\",\"agent\":\"agent-2\",\"output\":\"42\"}}", own.id);
    agent.publish("task.result", lie.into()).await.unwrap();
    agent.publish("agent.agent-1.heartbeat", "ok".into()).await.unwrap();
    for _ in 0..2 {
        match next(&mut watch).await {
            Notice { from, report: Report::Result(Ok(result)) } => {
                assert_eq!((from.as_str(), result.agent.as_str()), ("agent-1", "agent-1"));
                assert_eq!((result.status, result.output.as_str()), (Status::Done, "42"));
            }
            Notice { from, report: Report::Heartbeat(None) } => {
                assert_eq!(from.as_str(), "agent-1")
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(hub.backlog(&members[0]).await.unwrap(), hub::Backlog::default());
}

#[tokio::test]
#[ignore = "needs nats-server"]
async fn a_stored_task_survives_a_killed_server_and_a_change_of_delivery() {
    let mut bus = Bus::start(&["agent-1"]);
    let pull = [member("agent-1", Delivery::Pull)];
    let push = [member("agent-1", Delivery::Push)];
    let hub = bus.hub().await;
    hub.ensure(&pull).await.unwrap();
    let task = Task::new(Address::Agent(id("agent-1")), "keep me");
    assert!(hub.send(&task, &[]).await[0].1.is_ok());
    bus.crash_and_restart();
    let hub = bus.hub().await;
    assert_eq!(hub.backlog(&pull[0]).await.unwrap().waiting, 1);
    hub.ensure(&push).await.unwrap();
    hub.ensure(&pull).await.unwrap();
    hub.ensure(&push).await.unwrap();
    assert!(hub.backlog(&pull[0]).await.is_err(), "the other delivery's consumer is gone");
    let agent = bus.agent("agent-1").await;
    let mut tasks = agent.subscribe("tasks.*").await.unwrap();
    let got: Task = flock::bus::message::parse(&next(&mut tasks).await.payload).unwrap();
    assert_eq!(got, task);
}

#[tokio::test]
#[ignore = "needs nats-server"]
async fn errors_say_what_to_do() {
    let bus = Bus::start(&["agent-1"]);
    let hub = bus.hub().await;
    hub.ensure(&[member("agent-1", Delivery::Pull)]).await.unwrap();
    let lost = hub.send(&Task::new(Address::Agent(id("nobody")), "x"), &[]).await;
    let text = lost[0].1.as_ref().unwrap_err().to_string();
    assert!(text.contains("flockctl apply"), "{text}");
    let fat = Task::new(Address::Agent(id("agent-1")), "x".repeat(2 << 20));
    assert!(matches!(hub.send(&fat, &[]).await[0].1, Err(hub::Error::TooLarge { .. })));
    let big = "x".repeat(1_000_000);
    let mut full = None;
    for _ in 0..80 {
        let sent = hub.send(&Task::new(Address::Agent(id("agent-1")), big.clone()), &[]).await;
        if let Err(e) = &sent[0].1 {
            full = Some(e.to_string());
            break;
        }
    }
    assert!(full.as_ref().is_some_and(|t| t.contains("too many waiting tasks")), "{full:?}");
    let stranger = identity::Identity::generate("operator").unwrap();
    let text = Hub::connect(&stranger, &bus.settings.url()).await.unwrap_err().to_string();
    assert!(text.contains("authorization violation"), "{text}");
}

#[tokio::test]
#[ignore = "needs nats-server"]
async fn what_is_kept_for_an_agent_that_is_no_more_can_be_taken_away() {
    let bus = Bus::start(&["agent-1", "agent-2"]);
    let (hub, one, two) = (bus.hub().await, id("agent-1"), id("agent-2"));
    let members = ["agent-1", "agent-2"].map(|name| member(name, Delivery::Pull));
    hub.ensure(&members).await.unwrap();
    assert_eq!(hub.agents().await.unwrap(), [one.clone(), two.clone()].into());
    assert!(hub.is_told(&one).await.unwrap());
    hub.send(&Task::new(Address::Agent(one.clone()), "x"), &[]).await.remove(0).1.unwrap();
    assert!(!hub.is_told(&one).await.unwrap(), "the history has not got its task");
    let agent = bus.agent("agent-2").await;
    agent.request("task.result", "{\"task\":\"x\"}".into()).await.unwrap();
    assert!(!hub.is_told(&two).await.unwrap(), "the history has not got its result");
    for _ in 0..2 {
        hub.forget(&one).await.unwrap();
        assert_eq!(hub.agents().await.unwrap(), [two.clone()].into());
    }
    administrator(&bus).await.delete_stream("RESULTS_agent-2").await.unwrap();
    assert!(hub.is_told(&two).await.unwrap(), "broken off, it goes on");
}

/// A plain agent: a heartbeat with its places now and then, and its tasks into a channel.
async fn plain_agent(bus: &Bus, name: &'static str, places: u32) -> Plain {
    let client = bus.agent(name).await;
    let mut tasks = client.subscribe("tasks.*").await.unwrap();
    client.flush().await.unwrap();
    let (sender, got) = mpsc::unbounded_channel();
    let beat = client.clone();
    let alive = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_millis(500));
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    let text = format!("{{\"at\":\"2026-01-01T00:00:00Z\",\"parallel\":{places}}}");
                    beat.publish(format!("agent.{name}.heartbeat"), text.into()).await.unwrap();
                }
                Some(message) = tasks.next() => {
                    let task = flock::bus::message::parse::<Task>(&message.payload).unwrap();
                    let _ = sender.send(task);
                }
            }
        }
    });
    Plain { client, got, alive }
}

struct Plain {
    client: async_nats::Client,
    got: mpsc::UnboundedReceiver<Task>,
    alive: tokio::task::JoinHandle<()>,
}

impl Plain {
    async fn task(&mut self) -> Task {
        tokio::time::timeout(Duration::from_secs(30), self.got.recv()).await.unwrap().unwrap()
    }

    async fn answer(&self, task: &Task) {
        let text = format!("{{\"task\":\"{}\"}}", task.id);
        self.client.publish("task.result", text.into()).await.unwrap();
        self.client.flush().await.unwrap();
    }
}

/// The shared queue as an administrator sees it.
async fn queue_stream(bus: &Bus) -> async_nats::jetstream::stream::Stream {
    stream(bus, "QUEUE").await
}

async fn stream(bus: &Bus, name: &str) -> async_nats::jetstream::stream::Stream {
    administrator(bus).await.get_stream(name).await.unwrap()
}

async fn administrator(bus: &Bus) -> async_nats::jetstream::Context {
    let who = &bus.all.operator;
    let options = async_nats::ConnectOptions::with_user_and_password(
        who.user().to_owned(),
        who.password().to_owned(),
    );
    let client = options.connect(bus.settings.url()).await.unwrap();
    async_nats::jetstream::new(client)
}

async fn waiting(bus: &Bus) -> u64 {
    queue_stream(bus).await.cached_info().state.messages
}

async fn queue_is_empty(bus: &Bus) {
    for _ in 0..600 {
        if waiting(bus).await == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{} tasks stay in the queue", waiting(bus).await);
}

fn any(text: &str) -> Task {
    Task::new(Address::Any, text)
}

#[tokio::test]
#[ignore = "needs nats-server"]
async fn each_task_of_the_queue_goes_to_one_agent_with_a_free_place() {
    let bus = Bus::start(&["agent-1", "agent-2"]);
    let hub = bus.hub().await;
    let members = [member("agent-1", Delivery::Push), member("agent-2", Delivery::Push)];
    hub.ensure(&members).await.unwrap();
    let queue = Dispatch::start(&hub, &members, Duration::from_secs(5));
    let mut one = plain_agent(&bus, "agent-1", 2).await;
    let mut two = plain_agent(&bus, "agent-2", 1).await;
    for n in 0..5 {
        assert!(hub.send(&any(&n.to_string()), &[]).await[0].1.is_ok());
    }
    let mut first = vec![one.task().await, one.task().await, two.task().await];
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(one.got.try_recv().is_err() && two.got.try_recv().is_err(), "no place, no task");
    two.answer(&first[0]).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(two.got.try_recv().is_err(), "an answer to another's task frees nothing");
    assert_eq!(waiting(&bus).await, 5, "and ends nothing");
    let last = first.pop().unwrap();
    two.answer(&last).await;
    let fourth = two.task().await;
    two.answer(&fourth).await;
    let fifth = two.task().await;
    // Two falls silent: what it has goes to another, as the second attempt.
    two.alive.abort();
    one.answer(&first[0]).await;
    one.answer(&first[1]).await;
    let again = one.task().await;
    assert_eq!((again.id.clone(), again.attempt), (fifth.id, 2));
    one.answer(&again).await;
    queue_is_empty(&bus).await;
    let mut seen: Vec<_> =
        first.iter().chain([&last, &fourth, &again]).map(|t| t.text.clone()).collect();
    seen.sort();
    assert_eq!(seen, ["0", "1", "2", "3", "4"]);
    queue.end().await;
}

#[tokio::test]
#[ignore = "needs nats-server, and 40 seconds for the acknowledgements to run out"]
async fn a_restart_of_the_one_who_hands_out_gives_no_task_twice() {
    nothing_is_given_twice(false).await;
}

#[tokio::test]
#[ignore = "needs nats-server"]
async fn an_ended_task_that_still_lies_with_its_agent_takes_no_place() {
    let bus = Bus::start(&["agent-1"]);
    let hub = bus.hub().await;
    let members = [member("agent-1", Delivery::Pull)];
    hub.ensure(&members).await.unwrap();
    // As after a bus that was killed: it has forgotten what the history had acknowledged.
    let keeper = pull::Config { durable_name: Some("keeper".to_owned()), ..Default::default() };
    stream(&bus, "TASKS_agent-1").await.create_consumer(keeper).await.unwrap();
    let silence = Duration::from_secs(100);
    let queue = Dispatch::start(&hub, &members, silence);
    let one = plain_agent(&bus, "agent-1", 1).await;
    let (first, second) = (any("first"), any("second"));
    assert!(hub.send(&first, &[]).await[0].1.is_ok());
    let lies_there = async |count: u64| {
        for _ in 0..400 {
            let state = stream(&bus, "TASKS_agent-1").await.cached_info().state.clone();
            if state.messages == count {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        false
    };
    assert!(lies_there(1).await);
    one.answer(&first).await;
    queue_is_empty(&bus).await;
    queue.end().await;
    let book = Arc::new(Notes::default());
    book.ended.lock().unwrap().insert(first.id.clone());
    let queue = Dispatch::with(&hub, &members, silence, book);
    assert!(hub.send(&second, &[]).await[0].1.is_ok());
    assert!(lies_there(2).await, "its only place is taken by what has ended");
    queue.end().await;
}

#[tokio::test]
#[ignore = "needs nats-server"]
async fn a_server_that_forgot_what_was_handed_out_gives_no_task_twice() {
    nothing_is_given_twice(true).await;
}

/// Makes the queue's consumers anew: what a killed server may have forgotten, all of it.
async fn forget_deliveries(bus: &Bus) {
    let stream = queue_stream(bus).await;
    let lanes: Vec<_> = stream.consumers().map(Result::unwrap).collect().await;
    assert!(lanes.iter().any(|lane| lane.delivered.stream_sequence > 0), "{lanes:?}");
    // A message that no consumer wants is dropped.
    let keeper = pull::Config { durable_name: Some("keeper".to_owned()), ..Default::default() };
    stream.create_consumer(keeper).await.unwrap();
    for lane in lanes {
        stream.delete_consumer(&lane.name).await.unwrap();
        stream.create_consumer(lane.config).await.unwrap();
    }
    stream.delete_consumer("keeper").await.unwrap();
}

async fn nothing_is_given_twice(forgotten: bool) {
    let bus = Bus::start(&["agent-1", "agent-2"]);
    let hub = bus.hub().await;
    // agent-1 would pull: what it is given lies in its stream.
    let members = [member("agent-1", Delivery::Pull), member("agent-2", Delivery::Push)];
    hub.ensure(&members).await.unwrap();
    let silence = Duration::from_secs(100);
    let queue = Dispatch::start(&hub, &members, silence);
    let one = plain_agent(&bus, "agent-1", 2).await;
    let (during, after) = (any("during"), any("after"));
    for task in [&during, &after] {
        assert!(hub.send(task, &[]).await[0].1.is_ok());
    }
    for _ in 0..600 {
        if hub.backlog(&members[0]).await.unwrap().waiting == 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(hub.backlog(&members[0]).await.unwrap().waiting, 2);
    queue.end().await;
    // While nobody hands out, agent-1 does one task and acknowledges it.
    let inbox = one.client.new_inbox();
    let mut pulled = one.client.subscribe(inbox.clone()).await.unwrap();
    let next = "$JS.API.CONSUMER.MSG.NEXT.TASKS_agent-1.worker";
    one.client.publish_with_reply(next, inbox, "1".into()).await.unwrap();
    let message =
        tokio::time::timeout(Duration::from_secs(30), pulled.next()).await.unwrap().unwrap();
    let done: Task = flock::bus::message::parse(&message.payload).unwrap();
    one.answer(&done).await;
    one.client.publish(message.reply.unwrap(), "+ACK".into()).await.unwrap();
    one.client.flush().await.unwrap();
    let book = Arc::new(Notes::default());
    book.ended.lock().unwrap().insert(done.id.clone());
    let wait = if forgotten {
        forget_deliveries(&bus).await;
        5
    } else {
        35
    };
    let queue = Dispatch::with(&hub, &members, silence, book);
    let mut two = plain_agent(&bus, "agent-2", 2).await;
    tokio::time::sleep(Duration::from_secs(wait)).await;
    assert!(two.got.try_recv().is_err(), "agent-1 has one task and has done the other");
    let one_has = hub.backlog(&members[0]).await.unwrap().waiting;
    assert_eq!(one_has, 1, "and is not given it a second time");
    for _ in 0..600 {
        if waiting(&bus).await == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(waiting(&bus).await, 1, "the one that is done has left");
    one.answer(if done.id == during.id { &after } else { &during }).await;
    queue_is_empty(&bus).await;
    queue.end().await;
}
