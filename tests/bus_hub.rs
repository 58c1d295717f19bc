//! The operator's side against a real nats-server: `FLOCK_NATS_SERVER`, or /usr/sbin/nats-server.
//!
//! They need that server, so plain `cargo test` counts them as ignored and
//! `cargo test --test bus_hub -- --ignored` runs them; without a server they then fail.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use flock::bus::hub::{self, Hub, Notice, Report};
use flock::bus::identity::{self, Identities};
use flock::bus::message::{Address, Status, Task};
use flock::bus::streams::{Delivery, Member};
use flock::bus::{Settings, server_conf, version};
use flock::names::AgentId;
use futures_util::StreamExt as _;

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

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
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
        assert!(server_conf::write(dir.path(), &settings, &all, None).unwrap());
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
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = Self::spawn(&self.settings, self.dir.path());
    }

    async fn hub(&self) -> Hub {
        let mut last = None;
        for _ in 0..100 {
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

async fn next<T>(stream: &mut (impl futures_util::Stream<Item = T> + Unpin)) -> T {
    tokio::time::timeout(Duration::from_secs(10), stream.next()).await.unwrap().unwrap()
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
    assert!(matches!(hub.send(&fat, &[]).await[0].1, Err(hub::Error::Message(_))));
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
    hub.forget(&id("agent-1")).await.unwrap();
    hub.forget(&id("agent-1")).await.unwrap();
}
