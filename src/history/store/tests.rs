//! The store over real files: states, bounds, what a damaged or foreign database is answered with.

use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::bus::message::Address;
use crate::history::testing::{at, place};
use crate::history::{Filter, State};

fn agent(name: &str) -> AgentId {
    AgentId::parse(name).unwrap()
}

struct Bench {
    store: Store,
    path: PathBuf,
    dir: tempfile::TempDir,
}

fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("history.db");
    let (store, condition) = Store::open(&path).unwrap();
    assert_eq!(condition, Condition::New);
    Bench { store, path, dir }
}

fn task(id: &str, to: Address) -> Task {
    let mut task = Task::new(to, format!("do {id}\nwell"));
    task.id = TaskId::parse(id).unwrap();
    task.created = at(0);
    task
}

fn queued(task: &Task, slot: Slot, second: i64) -> Fact {
    Fact::Queued { task: task.clone(), slot, place: place("T", 1), at: at(second) }
}

fn result(json: &str, by: &str, sequence: u64, second: i64) -> Fact {
    Fact::Result {
        agent: agent(by),
        result: serde_json::from_str(json).unwrap(),
        command: Some(vec!["/bin/sh".into()]),
        place: place("RESULTS", sequence),
        at: at(second),
    }
}

impl Bench {
    fn one(&mut self, fact: &Fact, patience: Patience) -> Verdict {
        self.store.apply(std::slice::from_ref(fact), patience).unwrap().remove(0)
    }

    fn apply(&mut self, fact: &Fact) -> Verdict {
        self.one(fact, Patience::Left)
    }

    fn only(&self, id: &str) -> Record {
        let mut found = self.store.show(&TaskId::parse(id).unwrap()).unwrap();
        assert_eq!(found.len(), 1);
        found.remove(0)
    }
}

#[test]
fn a_record_survives_the_disk_and_only_root_can_read_it() {
    let mut bench = bench();
    let mut sent = task("task-1", Address::Agent(agent("a")));
    sent.key = Some("k".into());
    sent.retry_of = Some(TaskId::parse("task-0").unwrap());
    sent.environment.insert("A".into(), "b".into());
    sent.deadline = Some(at(100));
    sent.sender = 1000;
    assert_eq!(bench.apply(&queued(&sent, Slot::Agent(agent("a")), 1)), Verdict::Accepted);
    let json = r#"{"task":"task-1","status":"failed","exit":3,"signal":null,"attempt":2,
        "output":"o","truncated":true,"result_path":"/shared/x","usage":
        {"user_usec":18446744073709551615,"system_usec":2,"memory_peak":3}}"#;
    assert_eq!(bench.apply(&result(json, "a", 7, 5)), Verdict::Accepted);
    drop(bench.store);
    let (store, condition) = Store::open(&bench.path).unwrap();
    bench.store = store;
    assert_eq!(condition, Condition::Found);
    let record = bench.only("task-1");
    assert_eq!((record.text.as_str(), record.sender), ("do task-1\nwell", 1000));
    assert_eq!((record.key.as_deref(), record.environment["A"].as_str()), (Some("k"), "b"));
    assert_eq!((record.state, record.exit, record.attempt), (State::Failed, Some(3), 2));
    assert_eq!(record.command, Some(vec!["/bin/sh".to_owned()]));
    assert_eq!(record.result, Some(place("RESULTS", 7)));
    assert_eq!(record.usage.unwrap().memory_peak, 3);
    for end in ["", "-wal", "-shm"] {
        let file = bench.dir.path().join(format!("history.db{end}"));
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn a_result_before_its_task_waits_and_is_refused_in_the_end() {
    let mut bench = bench();
    let early = result(r#"{"task":"task-1"}"#, "a", 1, 5);
    assert_eq!(bench.apply(&early), Verdict::TooEarly);
    assert!(matches!(bench.one(&early, Patience::Over), Verdict::Refused(_)));
    // Delivered again, it is no second stray.
    assert_eq!(bench.one(&early, Patience::Over), Verdict::Repeated);
    let strays = bench.store.strays(10).unwrap();
    assert_eq!(strays.len(), 1);
    assert_eq!((strays[0].agent.as_str(), strays[0].task.as_deref()), ("a", Some("task-1")));
}

#[test]
fn a_history_begun_anew_keeps_results_from_before() {
    let mut bench = bench();
    let old = Timestamp::from_second(1_000_000_000).unwrap();
    let Fact::Result { agent: by, result, command, place: at_place, .. } =
        result(r#"{"task":"task-1","output":"x","attempt":1}"#, "a", 1, 0)
    else {
        panic!()
    };
    let fact = Fact::Result { agent: by, result, command, place: at_place, at: old };
    assert_eq!(bench.apply(&fact), Verdict::Accepted);
    assert_eq!(bench.apply(&fact), Verdict::Repeated);
    assert_eq!((bench.only("task-1").state, bench.only("task-1").place), (State::Done, None));
    // Its task was from the queue, and comes after all.
    let sent = task("task-1", Address::Any);
    let late = Fact::Queued { task: sent, slot: Slot::Any, place: place("QUEUE", 9), at: old };
    assert_eq!(bench.apply(&late), Verdict::Accepted);
    assert_eq!(bench.apply(&late), Verdict::Repeated);
    let record = bench.only("task-1");
    assert_eq!((record.slot, record.text.as_str()), (Slot::Any, "do task-1\nwell"));
    assert_eq!((record.agent, record.output.as_deref()), (Some(agent("a")), Some("x")));
}

#[test]
fn damage_is_set_aside_and_a_newer_form_is_refused() {
    let bench = bench();
    drop(bench.store);
    let db = Connection::open(&bench.path).unwrap();
    db.pragma_update(None, "user_version", 99).unwrap();
    drop(db);
    let error = Store::open(&bench.path).err().unwrap();
    assert!(error.to_string().contains("newer flock (form 99"), "{error}");
    fs::write(&bench.path, [b'x'; 10_000]).unwrap();
    let (mut store, condition) = Store::open(&bench.path).unwrap();
    let Condition::Damaged { aside, .. } = condition else { panic!("{condition:?}") };
    assert_eq!(fs::read(aside).unwrap(), [b'x'; 10_000]);
    let sent = task("task-1", Address::Any);
    let verdicts = store.apply(&[queued(&sent, Slot::Any, 1)], Patience::Left).unwrap();
    assert_eq!(verdicts, [Verdict::Accepted]);
}

#[test]
fn damage_in_the_middle_is_found() {
    let mut bench = bench();
    for number in 0..200 {
        let sent = task(&format!("task-{number}"), Address::Any);
        bench.apply(&queued(&sent, Slot::Any, number));
    }
    drop(bench.store);
    let mut bytes = fs::read(&bench.path).unwrap();
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 4096].fill(0xa5);
    fs::write(&bench.path, bytes).unwrap();
    let (_, condition) = Store::open(&bench.path).unwrap();
    assert!(matches!(condition, Condition::Damaged { .. }), "{condition:?}");
}

#[test]
fn lists_and_abbreviations_find_what_they_should() {
    let mut bench = bench();
    for (second, id) in (0..).zip(["aaaaaa-1", "aaaaaa-2", "aaaaab-1", "AAAAAA_x"]) {
        let by = if second % 2 == 0 { "a" } else { "b" };
        let sent = task(id, Address::Agent(agent(by)));
        bench.apply(&queued(&sent, Slot::Agent(agent(by)), second));
    }
    bench.apply(&result(r#"{"task":"aaaaaa-2"}"#, "b", 1, 10));
    bench.apply(&result(r#"{"task":"aaaaaa-1"}"#, "a", 2, 20));
    let list = |filter: Filter| -> Vec<String> {
        let found = bench.store.list(&filter).unwrap();
        found.into_iter().map(|summary| summary.task.to_string()).collect()
    };
    let all = Filter::default();
    assert_eq!(list(all.clone()), ["AAAAAA_x", "aaaaab-1", "aaaaaa-2", "aaaaaa-1"]);
    assert_eq!(list(Filter { limit: Some(1), ..all.clone() }), ["AAAAAA_x"]);
    assert_eq!(list(Filter { agent: Some(agent("a")), ..all.clone() }), ["aaaaab-1", "aaaaaa-1"]);
    let states = vec![State::Queued, State::Failed];
    assert_eq!(list(Filter { states, ..all.clone() }), ["AAAAAA_x", "aaaaab-1"]);
    let some = Filter { since: Some(at(1)), until: Some(at(3)), ..all.clone() };
    assert_eq!(list(some), ["aaaaab-1", "aaaaaa-2"]);
    assert_eq!(list(Filter { ended: true, ..all.clone() }), ["aaaaaa-2", "aaaaaa-1"]);
    let last = Filter { ended: true, limit: Some(1), ..all };
    assert_eq!(list(last), ["aaaaaa-1"]);
    let find = |text| {
        let found = bench.store.resolve(&TaskId::parse(text).unwrap());
        found.map(|id| id.to_string()).map_err(|error| error.to_string())
    };
    assert_eq!(find("aaaaab").unwrap(), "aaaaab-1");
    assert_eq!(find("aaaaaa-2").unwrap(), "aaaaaa-2");
    assert_eq!(find("AAAAAA").unwrap(), "AAAAAA_x");
    assert!(find("aaaaa").is_err() && find("aaaaac").is_err());
    let several = find("aaaaaa").unwrap_err();
    assert!(several.ends_with("several tasks: aaaaaa-1, aaaaaa-2"), "{several}");
}

#[test]
fn pruning_forgets_the_oldest_ends_and_shrinks_the_file() {
    let mut bench = bench();
    let long = "x".repeat(10_000);
    for number in 0..600 {
        let id = format!("task-{number:03}");
        let sent = task(&id, Address::Agent(agent("a")));
        bench.apply(&queued(&sent, Slot::Agent(agent("a")), number));
        if number != 0 {
            let json = format!(r#"{{"task":"{id}","output":"{long}"}}"#);
            bench.apply(&result(&json, "a", number.unsigned_abs(), 1000 + number));
        }
    }
    let keep = Duration::from_secs(1000);
    let pruned = bench.store.prune(at(2100), keep, u64::MAX).unwrap();
    assert_eq!(pruned.records, 99);
    let pruned = bench.store.prune(at(2100), keep, 3 << 20).unwrap();
    assert!(pruned.bytes <= 3 << 20 && pruned.records > 0, "{pruned:?}");
    let size = fs::metadata(&bench.path).unwrap().len();
    assert!(size <= (3 << 20) + 65536, "{size}");
    let left = bench.store.list(&Filter::default()).unwrap();
    // The open one stays although it is the oldest; of the others the newest are left.
    assert_eq!(left.last().unwrap().task.as_str(), "task-000");
    assert_eq!(left[0].task.as_str(), "task-599");
    assert!(left.len() > 100, "{}", left.len());
}

#[test]
fn strays_are_bounded_and_hostile_texts_are_cut() {
    let mut bench = bench();
    let facts: Vec<Fact> = (0..10_050)
        .map(|number| Fact::Unreadable {
            agent: agent("a"),
            why: "\u{1b}é".repeat(5000),
            place: place("RESULTS", number),
            at: at(0),
        })
        .collect();
    bench.store.apply(&facts, Patience::Left).unwrap();
    let strays = bench.store.strays(20_000).unwrap();
    assert_eq!(strays.len(), 10_000);
    assert_eq!(strays[0].place.sequence, 10_049);
    assert!(strays[0].why.len() <= 1000);
}
