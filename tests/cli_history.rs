//! `flockctl task list`, `task show` and `history` over a database as flockd writes it.

use std::path::PathBuf;

use assert_cmd::Command;
use flock::bus::message::{Address, Task, TaskId, TaskResult};
use flock::history::{Fact, Patience, Place, Slot, State, Store, Verdict};
use flock::names::AgentId;
use jiff::Timestamp;

struct Bench {
    path: PathBuf,
    store: Store,
    messages: u64,
    _dir: tempfile::TempDir,
}

fn agent(name: &str) -> AgentId {
    AgentId::parse(name).unwrap()
}

fn id(text: &str) -> TaskId {
    TaskId::parse(text).unwrap()
}

fn at(time: &str) -> Timestamp {
    format!("2096-11-21T{time}Z").parse().unwrap()
}

/// Four tasks: done with hostile output, failed for one of two, cancelled, waiting in the queue.
fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("history.db");
    let (store, _) = Store::open(&path).unwrap();
    let mut bench = Bench { path, store, messages: 0, _dir: dir };
    let (one, two, three) = ("task-aaaa-1", "task-aaaa-2", "task-bbbb-3");
    bench.queued(
        one,
        Address::Agent(agent("a1")),
        "say \u{1b}]0;x\u{7}hello\nsecond line",
        "10:00:00",
    );
    bench.result(
        "a1",
        r#"{"task":"task-aaaa-1","exit":0,"started":"2096-11-21T10:00:01Z",
        "finished":"2096-11-21T10:00:03.5Z","output":"\u001b[2Jfine\n         task  forged\n",
        "result_path":"/shared/agents/a1/results/task-aaaa-1.json",
        "usage":{"user_usec":1200000,"system_usec":300000,"memory_peak":12582912}}"#,
        "10:00:04",
    );
    bench.queued(two, Address::All, "for all", "10:01:00");
    bench.result("a1", r#"{"task":"task-aaaa-2","status":"failed","exit":3}"#, "10:01:05");
    bench.queued(three, Address::Agent(agent("a2")), "never", "10:02:00");
    let slot = Slot::Agent(agent("a2"));
    let reason = "ann asked for it".to_owned();
    let (task, state, at) = (id(three), State::Cancelled, at("10:02:10"));
    bench.apply(Fact::Ended { task, slot, state, reason, at });
    bench.queued("task-cccc-4", Address::Any, "who can?", "10:03:00");
    bench
}

impl Bench {
    fn apply(&mut self, fact: Fact) {
        assert_eq!(self.store.apply(&[fact], Patience::Left).unwrap(), [Verdict::Accepted]);
    }

    fn place(&mut self, stream: &str) -> Place {
        self.messages += 1;
        Place { stream: stream.into(), sequence: self.messages }
    }

    fn queued(&mut self, name: &str, to: Address, text: &str, time: &str) {
        let slots = match &to {
            Address::Agent(agent) => vec![Slot::Agent(agent.clone())],
            Address::All => vec![Slot::Agent(agent("a1")), Slot::Agent(agent("a2"))],
            Address::Any => vec![Slot::Any],
        };
        let mut task = Task::new(to, text);
        (task.id, task.created, task.sender) = (id(name), at(time), 54_321);
        for slot in slots {
            let place = self.place("T");
            self.apply(Fact::Queued { task: task.clone(), slot, place, at: at(time) });
        }
    }

    fn result(&mut self, by: &str, json: &str, time: &str) {
        let result: TaskResult = serde_json::from_str(json).unwrap();
        let command = Some(vec!["/bin/sh".to_owned()]);
        let place = self.place("R");
        let (agent, result, at) = (agent(by), Box::new(result), at(time));
        self.apply(Fact::Result { agent, result, command, place, at });
    }

    fn flockctl(&self, args: &[&str]) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("flockctl"));
        command.env("TZ", "UTC").args(args).arg("--database").arg(&self.path);
        command
    }

    fn shown(&self, args: &[&str]) -> String {
        let output = self.flockctl(args).assert().success().get_output().clone();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
        text
    }

    fn refused(&self, args: &[&str], code: i32) -> String {
        let output = self.flockctl(args).assert().code(code).get_output().clone();
        String::from_utf8(output.stderr).unwrap()
    }
}

#[test]
fn the_list_shows_the_newest_first() {
    let bench = bench();
    let expected = "\
TASK         AGENT    STATE      SENT                 TOOK  WHAT
task-cccc-4  (queue)  queued     2096-11-21 10:03:00  -     who can?
task-bbbb-3  a2       cancelled  2096-11-21 10:02:00  -     ann asked for it
task-aaaa-2  a2       queued     2096-11-21 10:01:00  -     for all
task-aaaa-2  a1       failed     2096-11-21 10:01:00  -     exit status 3
task-aaaa-1  a1       done       2096-11-21 10:00:00  2.5s  say \\u{1b}]0;x\\u{7}hello
";
    assert_eq!(bench.shown(&["task", "list"]), expected);
    let of = |args: &[&str]| bench.shown(args).lines().skip(1).count();
    assert_eq!(of(&["task", "list", "--agent", "a1"]), 2);
    assert_eq!(of(&["task", "list", "--state", "failed", "--state", "cancelled"]), 2);
    assert_eq!(of(&["task", "list", "--limit", "1"]), 1);
    assert_eq!(of(&["task", "list", "--since", "2096-11-21 10:02"]), 2);
    let none = bench.shown(&["task", "list", "--agent", "nobody"]);
    assert_eq!(none, "no task of that kind is in the history\n");
    assert!(bench.refused(&["task", "list", "--state", "gone"], 2).contains("queued, running"));
    assert!(bench.refused(&["task", "list", "--since", "soon"], 2).contains("use for example"));
}

#[test]
fn a_task_is_shown_whole_by_the_beginning_of_its_id() {
    let bench = bench();
    let expected = "        task  task-aaaa-1
          to  a1
        sent  2096-11-21 10:00:00 by uid 54321
        text
              | say \\u{1b}]0;x\\u{7}hello
              | second line

       agent  a1
       state  done
     attempt  1
      queued  2096-11-21 10:00:00
     started  2096-11-21 10:00:01
    finished  2096-11-21 10:00:03
        took  2.5s, after waiting 1.0s
        exit  0
         cpu  1.2s user, 0.3s system
      memory  12 MiB at most
     command  /bin/sh
      result  /var/lib/flock/shared/agents/a1/results/task-aaaa-1.json
      output
              | \\u{1b}[2Jfine
              |          task  forged
";
    assert_eq!(bench.shown(&["task", "show", "task-aaaa-1"]), expected);
    assert!(bench.shown(&["task", "show", "task-b"]).contains("cancelled: ann asked for it"));
    assert_eq!(bench.shown(&["task", "show", "task-aaaa-2"]).matches("       agent  a").count(), 2);
    let several = bench.refused(&["task", "show", "task-aaaa"], 2);
    assert!(several.contains("several tasks: task-aaaa-1, task-aaaa-2"), "{several}");
    assert!(bench.refused(&["task", "show", "task-"], 2).contains("no task in the history"));
    assert!(bench.refused(&["task", "show", "../../etc"], 2).contains("a task id is"));
}

#[test]
fn the_output_comes_out_as_it_was() {
    let bench = bench();
    let output = bench.flockctl(&["task", "show", "--output", "task-aaaa-1"]).output().unwrap();
    assert_eq!(output.stdout, b"\x1b[2Jfine\n         task  forged\n");
}

#[test]
fn the_history_counts_what_ended() {
    let bench = bench();
    let expected = "\
ENDED                TASK         AGENT  STATE      TOOK  CPU TIME  MEMORY  WHAT
2096-11-21 10:00:03  task-aaaa-1  a1     done       2.5s  1.5s      12 MiB  say \\u{1b}]0;x\\u{7}hello
2096-11-21 10:01:05  task-aaaa-2  a1     failed     -     -         -       exit status 3
2096-11-21 10:02:10  task-bbbb-3  a2     cancelled  -     -         -       ann asked for it

1 done, 1 failed, 1 cancelled; CPU time 1.5s
";
    assert_eq!(bench.shown(&["history"]), expected);
    let some =
        bench.shown(&["history", "--since", "2096-11-21 10:01", "--until", "2096-11-21T10:02:00Z"]);
    assert!(some.ends_with("\n1 failed; CPU time 0.0s\n"), "{some}");
}

#[test]
fn programs_get_one_stable_object_a_line() {
    let bench = bench();
    let lines = |args: &[&str]| -> Vec<serde_json::Value> {
        bench.shown(args).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let ended = lines(&["history", "--json"]);
    assert_eq!(ended.len(), 3);
    let keys: Vec<&String> = ended[0].as_object().unwrap().keys().collect();
    let summary = "agent attempt command created deadline exit finished head queued reason result_path \
                   retry_of sender signal slot started state task to usage";
    assert_eq!(keys, summary.split_whitespace().collect::<Vec<_>>());
    assert_eq!(ended[0]["usage"]["memory_peak"], 12_582_912);
    assert_eq!(ended[0]["finished"], "2096-11-21T10:00:03.5Z");
    assert_eq!(lines(&["task", "list", "--json", "-n", "2"]).len(), 2);
    let whole = lines(&["task", "show", "--json", "task-aaaa-2"]);
    assert_eq!(
        (whole.len(), &whole[0]["state"], &whole[1]["state"]),
        (2, &"failed".into(), &"queued".into())
    );
    let more = "created deadline decided environment given handed key output place result taken_back text truncated";
    for key in more.split_whitespace() {
        assert!(whole[0].as_object().unwrap().contains_key(key), "{key}");
    }
}

#[test]
fn a_database_that_is_missing_or_damaged_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("history.db");
    let run = || {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("flockctl"));
        let output = command.args(["history", "--database"]).arg(&path).assert().code(1);
        String::from_utf8(output.get_output().stderr.clone()).unwrap()
    };
    assert!(run().contains("there is no history yet: flockd begins it"));
    std::fs::write(&path, [b'x'; 9000]).unwrap();
    assert!(run().contains("it is damaged"));
    assert_eq!(std::fs::read(&path).unwrap(), [b'x'; 9000], "reading changes nothing");
}
