//! Damage to the store of the bus: what is left of it, and that no task is lost with it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flock::bus::hub::Hub;
use flock::bus::message::Task;
use flock::history::State;
use futures_util::StreamExt as _;

use super::{Bus, Daemon, Puller, any, start, to};
use crate::next;

/// How the server ended before its files were damaged. Told to stop, it has written down what they
/// held, and believes both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    Killed,
    Told,
}

/// What of a stream is damaged.
#[derive(Clone, Copy, Debug)]
enum Part {
    /// The messages.
    Blocks,
    /// What the server knows of the messages without reading them.
    Index,
    /// How far everybody has come who takes from it.
    Consumers,
}

#[derive(Clone, Copy, Debug)]
enum Harm {
    Overwritten,
    CutOff,
    Gone,
}

impl Part {
    fn includes(self, path: &Path) -> bool {
        match self {
            Self::Blocks => path.extension().is_some_and(|kind| kind == "blk"),
            Self::Index => path.ends_with("index.db"),
            Self::Consumers => path.ends_with("o.dat"),
        }
    }
}

impl Harm {
    fn to(self, path: &Path) {
        let bytes = std::fs::read(path).unwrap();
        match self {
            Self::Overwritten => std::fs::write(path, vec![0xff; bytes.len()]).unwrap(),
            Self::CutOff => std::fs::write(path, &bytes[..bytes.len() / 2]).unwrap(),
            Self::Gone => std::fs::remove_file(path).unwrap(),
        }
    }
}

impl Bus {
    async fn end(&mut self, stop: Stop) {
        match stop {
            Stop::Killed => self.stop(),
            Stop::Told => self.stop_gently().await,
        }
    }

    /// What a stream has of such files.
    fn files(&self, stream: &str, part: Part) -> Vec<PathBuf> {
        let mut folders = vec![self.settings.store.join("jetstream/HUB/streams").join(stream)];
        let mut files = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => folders.push(path),
                    false => files.extend(part.includes(&path).then_some(path)),
                }
            }
        }
        files
    }

    fn damage(&self, stream: &str, part: Part, harm: Harm) {
        for file in self.files(stream, part) {
            harm.to(&file);
        }
    }

    /// Changes one byte of a message.
    fn damage_at(&self, stream: &str, text: &str) {
        let mut found = false;
        for file in self.files(stream, Part::Blocks) {
            let mut bytes = std::fs::read(&file).unwrap();
            let place = bytes.windows(text.len()).position(|part| part == text.as_bytes());
            if let Some(place) = place {
                bytes[place] ^= 0x55;
                std::fs::write(&file, bytes).unwrap();
                found = true;
            }
        }
        assert!(found, "{text} is not stored in {stream}");
    }

    /// Ends and begins again, and cannot read what these streams had stored.
    async fn comes_back(&mut self, stop: Stop, unreadable: &[&str]) {
        self.end(stop).await;
        for stream in unreadable {
            assert!(!self.files(stream, Part::Blocks).is_empty(), "{stream} has stored nothing");
            self.damage(stream, Part::Blocks, Harm::Overwritten);
        }
        self.start_again();
    }
}

/// Sends tasks, one after the other, and waits until the history has them.
async fn send(daemon: &Daemon, tasks: &[Task]) {
    for task in tasks {
        daemon.send(task).await;
        daemon.until(task, "queued", |record| record.place.is_some()).await;
    }
}

/// A new flockd and agents that do what comes: all tasks end with a result, and later ones too.
async fn all_are_done(bus: &Bus, tasks: &[Task]) {
    let daemon = Daemon::start(bus).await;
    let agents = [Puller::new(bus, "agent-1", 2).await, Puller::new(bus, "agent-2", 2).await];
    let late = to("agent-1", "late");
    let (mut left, mut last) = (tasks.to_vec(), Some(late));
    // What somebody had been handed who is no more comes again after half a minute.
    for _ in 0..400 {
        for agent in &agents {
            if let Some((message, task)) = agent.try_take(Duration::from_millis(150)).await {
                agent.answer(&task, "done").await;
                agent.verdict(&message, "+ACK").await;
            }
        }
        let mut open = Vec::new();
        for task in left {
            let records = daemon.records(&task.id).await;
            let is = |state| records.iter().any(|record| record.state == state);
            assert!(!is(State::Failed), "{records:?}");
            open.extend((!is(State::Done)).then_some(task));
        }
        left = open;
        if left.is_empty() {
            let Some(late) = last.take() else { return };
            daemon.send(&late).await;
            left.push(late);
        }
    }
    panic!("still open: {:?}", left.iter().map(|task| &task.text).collect::<BTreeSet<_>>());
}

/// Tasks that were done, one that waits, and then a store of which nothing can be read.
async fn damaged(stop: Stop) -> (Bus, Task) {
    let (mut bus, daemon) = start().await;
    let agent = Puller::new(&bus, "agent-1", 0).await;
    for n in 0..9 {
        finish(&daemon, &agent, &to("agent-1", &n.to_string())).await;
    }
    let waits = to("agent-1", "waits");
    send(&daemon, std::slice::from_ref(&waits)).await;
    drop((daemon, agent));
    bus.comes_back(stop, &["TASKS_agent-1", "RESULTS_agent-1"]).await;
    (bus, waits)
}

async fn finish(daemon: &Daemon, agent: &Puller, task: &Task) {
    daemon.send(task).await;
    let (message, taken) = agent.take().await;
    assert_eq!(taken.id, task.id);
    agent.answer(&taken, "done").await;
    agent.verdict(&message, "+ACK").await;
    daemon.ends(task, State::Done).await;
}

#[tokio::test]
#[ignore = "needs nats-server"]
async fn a_stream_that_damage_has_set_back_goes_on_for_everybody() {
    let (bus, waits) = damaged(Stop::Killed).await;
    // Nobody has looked yet: this one comes to lie where a consumer has been.
    let early = to("agent-1", "early");
    bus.hub().await.send(&early, &[]).await.remove(0).1.unwrap();
    all_are_done(&bus, &[waits, early]).await;
}

#[tokio::test]
#[ignore = "needs nats-server"]
async fn a_stream_that_the_server_itself_cannot_read_any_more_is_made_anew() {
    let (bus, waits) = damaged(Stop::Told).await;
    all_are_done(&bus, &[waits]).await;
}

/// Stores a task that flockd is told of and never acknowledges, as if it had died in between.
async fn leave_half_told(hub: &Hub) {
    let mut history = hub.history().await.unwrap();
    hub.send(&to("agent-1", "half told"), &[]).await.remove(0).1.unwrap();
    next(&mut history).await;
}

#[tokio::test]
#[ignore = "needs nats-server"]
async fn a_task_is_not_forgotten_because_a_lost_one_was_not_acknowledged() {
    for stop in [Stop::Killed, Stop::Told] {
        let (mut bus, daemon) = start().await;
        let waits = to("agent-1", "waits");
        send(&daemon, std::slice::from_ref(&waits)).await;
        let hub = daemon.hub.clone();
        drop(daemon);
        leave_half_told(&hub).await;
        bus.comes_back(stop, &["TASKS_agent-1"]).await;
        all_are_done(&bus, &[waits]).await;
    }
}

#[tokio::test]
#[ignore = "needs nats-server"]
async fn what_an_agent_works_on_and_what_waits_behind_it_outlive_their_store() {
    for stop in [Stop::Killed, Stop::Told] {
        let (mut bus, daemon) = start().await;
        let agent = Puller::new(&bus, "agent-1", 0).await;
        let tasks = [to("agent-1", "in work"), to("agent-1", "waits")];
        send(&daemon, &tasks).await;
        agent.take().await;
        drop((daemon, agent));
        bus.comes_back(stop, &["TASKS_agent-1"]).await;
        all_are_done(&bus, &tasks).await;
    }
}

/// The agent is still there and has its task in hand: its answer counts.
#[tokio::test]
#[ignore = "needs nats-server"]
async fn an_answer_counts_although_the_task_lay_in_a_store_that_was_damaged() {
    for stop in [Stop::Killed, Stop::Told] {
        let (mut bus, daemon) = start().await;
        let agent = Puller::new(&bus, "agent-1", 0).await;
        let tasks = [to("agent-1", "in work"), to("agent-1", "waits")];
        send(&daemon, &tasks).await;
        let (message, task) = agent.take().await;
        bus.comes_back(stop, &["TASKS_agent-1"]).await;
        drop(daemon);
        drop(bus.hub().await);
        agent.answer(&task, "done").await;
        agent.verdict(&message, "+ACK").await;
        drop(agent);
        all_are_done(&bus, &tasks).await;
        let again = Daemon::start(&bus).await;
        assert_eq!(again.ends(&tasks[0], State::Done).await.attempt, 1, "{stop:?}");
    }
}

#[tokio::test]
#[ignore = "needs nats-server"]
async fn one_changed_byte_costs_no_task() {
    for stop in [Stop::Killed, Stop::Told] {
        let (mut bus, daemon) = start().await;
        let tasks = ["first", "second", "third"].map(|text| to("agent-1", text));
        send(&daemon, &tasks).await;
        drop(daemon);
        bus.end(stop).await;
        bus.damage_at("TASKS_agent-1", "second");
        bus.start_again();
        all_are_done(&bus, &tasks).await;
    }
}

/// It is not stored again for ever because its stream is younger than it is.
#[tokio::test]
#[ignore = "needs nats-server"]
async fn who_acknowledges_without_work_what_was_put_back_is_found_out() {
    let (mut bus, daemon) = start().await;
    let tasks = ["first", "second"].map(|text| to("agent-1", text));
    send(&daemon, &tasks).await;
    drop(daemon);
    bus.end(Stop::Killed).await;
    bus.damage_at("TASKS_agent-1", "second");
    bus.start_again();
    let daemon = Daemon::start(&bus).await;
    let agent = Puller::new(&bus, "agent-1", 0).await;
    let (message, first) = agent.take().await;
    assert_eq!(first.id, tasks[0].id);
    agent.verdict(&message, "+ACK").await;
    let record = daemon.ends(&first, State::Failed).await;
    assert_eq!(record.reason.as_deref(), Some("the agent acknowledged it without a result"));
}

/// Tasks that wait and that are worked on, of an agent and of the shared queue, and one that flockd
/// was told of and has not written down: then some files of all streams are harmed.
async fn outlives(part: Part, harm: Harm, stop: Stop) {
    let text = |what| format!("{what}; {part:?}, {harm:?}, {stop:?}");
    let (mut bus, daemon) = start().await;
    let agent = Puller::new(&bus, "agent-1", 2).await;
    finish(&daemon, &agent, &to("agent-1", "done")).await;
    let tasks = [
        any(&text("in work")),
        any(&text("waits")),
        to("agent-1", &text("own")),
        to("agent-2", &text("another's")),
    ];
    send(&daemon, &tasks).await;
    agent.take().await;
    let hub = daemon.hub.clone();
    drop((daemon, agent));
    leave_half_told(&hub).await;
    bus.end(stop).await;
    for stream in ["QUEUE", "TASKS_agent-1", "RESULTS_agent-1", "TASKS_agent-2"] {
        bus.damage(stream, part, harm);
    }
    bus.start_again();
    all_are_done(&bus, &tasks).await;
}

#[tokio::test]
#[ignore = "needs nats-server"]
async fn no_task_is_lost_whatever_is_damaged() {
    let mut ways = Vec::new();
    for part in [Part::Blocks, Part::Index, Part::Consumers] {
        for harm in [Harm::Overwritten, Harm::CutOff, Harm::Gone] {
            ways.extend([Stop::Killed, Stop::Told].map(|stop| (part, harm, stop)));
        }
    }
    let each = |(part, harm, stop)| outlives(part, harm, stop);
    futures_util::stream::iter(ways).for_each_concurrent(9, each).await;
}
