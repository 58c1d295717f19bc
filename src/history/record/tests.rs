//! The state machine through the store: honest histories in every order, hostile ones without end.

use std::cell::RefCell;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::bus::message::{Address, Task, TaskId, TaskResult};
use crate::history::testing::{at, place};
use crate::history::{Fact, Patience, Record, Slot, State, Store, Verdict};
use crate::names::AgentId;

fn agent(number: usize) -> AgentId {
    AgentId::parse(["a", "b", "c"][number % 3]).unwrap()
}

/// A ledger on the disk, and a fresh name for each case.
struct Bench {
    store: Store,
    cases: u32,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> RefCell<Self> {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(&dir.path().join("history.db")).unwrap();
        RefCell::new(Self { store, cases: 0, _dir: dir })
    }

    fn fresh(&mut self) -> TaskId {
        self.cases += 1;
        TaskId::parse(&format!("task-{}", self.cases)).unwrap()
    }

    fn one(&mut self, fact: &Fact) -> Verdict {
        self.store.apply(std::slice::from_ref(fact), Patience::Left).unwrap().remove(0)
    }

    /// As flockd does: what is too early is asked again, here until nothing changes any more.
    fn all(&mut self, facts: &[Fact]) {
        let mut waiting: Vec<Fact> = facts.to_vec();
        loop {
            let verdicts = self.store.apply(&waiting, Patience::Left).unwrap();
            let mut keep = verdicts.iter().map(|verdict| *verdict == Verdict::TooEarly);
            let before = waiting.len();
            waiting.retain(|_| keep.next().unwrap());
            if waiting.len() == before {
                return;
            }
        }
    }

    /// The record, under a name that all cases share.
    fn record(&self, task: &TaskId) -> Record {
        let mut found = self.store.show(task).unwrap();
        assert_eq!(found.len(), 1);
        let found = found.remove(0);
        let result = found.result.as_ref().map(|at| place(&at.stream, at.sequence % 2));
        let output = found.output.is_some().then(String::new);
        Record { task: TaskId::parse("x").unwrap(), result, output, ..found }
    }
}

fn task(id: &TaskId, to: Address) -> Task {
    let mut task = Task::new(to, "do it");
    (task.id, task.created) = (id.clone(), at(0));
    task
}

fn queued(id: &TaskId, slot: &Slot) -> Fact {
    let to = match slot {
        Slot::Agent(agent) => Address::Agent(agent.clone()),
        Slot::Any => Address::Any,
    };
    Fact::Queued { task: task(id, to), slot: slot.clone(), place: place("T", 1), at: at(1) }
}

fn given(id: &TaskId, by: &AgentId, attempt: u64) -> Fact {
    let place = place("G", attempt);
    Fact::Given { task: id.clone(), agent: by.clone(), attempt, place, at: at(2) }
}

fn back(id: &TaskId, attempt: u64) -> Fact {
    let reason = format!("attempt {attempt} was lost");
    Fact::Back { task: id.clone(), attempt, reason, at: at(3) }
}

fn started(id: &TaskId, by: &AgentId, attempt: u64, second: i64) -> Fact {
    let command = Some(vec!["/bin/sh".to_owned()]);
    let (task, agent) = (id.clone(), by.clone());
    Fact::Started { task, agent, attempt: Some(attempt), command, at: at(second) }
}

fn result(id: &TaskId, by: &AgentId, attempt: Option<u64>, status: &str, sequence: u64) -> Fact {
    let json = format!(r#"{{"task":"{id}","status":"{status}","exit":3,"output":"o{sequence}"}}"#);
    let mut result: TaskResult = serde_json::from_str(&json).unwrap();
    result.attempt = attempt;
    result.started = sequence.is_multiple_of(2).then(|| at(15));
    result.finished = Some(at(40));
    let (agent, place) = (by.clone(), place("RESULTS", sequence));
    let command = Some(vec!["/bin/sh".to_owned()]);
    Fact::Result { agent, result: Box::new(result), command, place, at: at(50) }
}

fn ended(id: &TaskId, slot: &Slot, state: State) -> Fact {
    let (task, slot) = (id.clone(), slot.clone());
    Fact::Ended { task, slot, state, reason: "uid 1000 asked".into(), at: at(45) }
}

/// What really happened, in the order in which it happened.
#[derive(Clone, Copy, Debug)]
struct Honest {
    shared: bool,
    attempts: u64,
    status: &'static str,
    cancelled: bool,
    said: bool,
}

fn honest() -> impl Strategy<Value = Honest> {
    let words = vec!["done", "failed", "timeout", "refused", "expired", "weird"];
    (any::<bool>(), 1..4u64, prop::sample::select(words), any::<bool>(), any::<bool>()).prop_map(
        |(shared, attempts, status, cancelled, said)| {
            let status = if cancelled { "cancelled" } else { status };
            Honest { shared, attempts, status, cancelled, said }
        },
    )
}

fn facts(history: Honest, id: &TaskId) -> Vec<Fact> {
    let slot = if history.shared { Slot::Any } else { Slot::Agent(agent(1)) };
    let mut facts = vec![queued(id, &slot)];
    let last = history.attempts;
    // Each case has its place in the stream of results; an even one says when it was begun.
    let case: u64 = id.as_str()["task-".len()..].parse().unwrap();
    let sequence = 2 * case + u64::from(history.said);
    for attempt in 1..=last {
        let by = if history.shared { agent(attempt as usize) } else { agent(1) };
        if history.shared {
            facts.push(given(id, &by, attempt));
        }
        facts.push(started(id, &by, attempt, 10));
        // A heartbeat names it again, later.
        facts.push(started(id, &by, attempt, 30));
        if history.shared && attempt < last {
            facts.push(back(id, attempt));
        }
        if attempt == last {
            if history.cancelled {
                facts.push(ended(id, &slot, State::Cancelled));
            }
            facts.push(result(id, &by, Some(attempt), history.status, sequence));
        }
    }
    facts
}

/// flockd's own decisions keep their order among themselves; what comes over the bus keeps none.
fn decides(fact: &Fact) -> bool {
    matches!(fact, Fact::Given { .. } | Fact::Back { .. } | Fact::Ended { .. })
}

/// The facts in the order of `keys`, each up to three times.
fn shuffled(facts: &[Fact], keys: &[(u32, u8)]) -> Vec<Fact> {
    let mut order: Vec<(u32, usize)> = Vec::new();
    for (number, (key, times)) in keys.iter().take(facts.len()).enumerate() {
        for time in 0..=u32::from(times % 3) {
            order.push((key.wrapping_mul(2 * time + 1), number));
        }
    }
    order.sort_unstable();
    let mut shuffled: Vec<Fact> = order.iter().map(|(_, at)| facts[*at].clone()).collect();
    let mut decisions = order.iter().map(|(_, at)| *at).collect::<Vec<_>>();
    decisions.retain(|at| decides(&facts[*at]));
    decisions.sort_unstable();
    let mut next = decisions.into_iter();
    for fact in shuffled.iter_mut().filter(|fact| decides(fact)) {
        *fact = facts[next.next().unwrap()].clone();
    }
    shuffled
}

#[test]
fn honest_facts_in_any_order_and_number_make_the_same_record() {
    let bench = Bench::new();
    let keys = prop::collection::vec(any::<(u32, u8)>(), 20);
    let mut runner = TestRunner::new(Config { cases: 600, ..Config::default() });
    let strategy = (honest(), keys);
    let outcome = runner.run(&strategy, |(history, keys)| {
        let mut bench = bench.borrow_mut();
        let (straight, mixed) = (bench.fresh(), bench.fresh());
        for fact in facts(history, &straight) {
            let verdict = bench.one(&fact);
            prop_assert!(!matches!(verdict, Verdict::Refused(_)), "{verdict:?} for {fact:?}");
        }
        bench.all(&shuffled(&facts(history, &mixed), &keys));
        prop_assert_eq!(bench.record(&straight), bench.record(&mixed));
        prop_assert!(bench.record(&mixed).state.is_final());
        prop_assert!(bench.record(&mixed).result.is_some());
        prop_assert_eq!(bench.store.strays(1).unwrap(), []);
        Ok(())
    });
    outcome.unwrap();
}

/// Any fact about one task, whoever says it.
fn anything() -> impl Strategy<Value = (u8, usize, u64, usize, i64)> {
    (0..8u8, 0..3usize, 0..4u64, 0..7usize, -100..100i64)
}

fn hostile(
    id: &TaskId,
    number: u64,
    (kind, by, attempt, word, second): (u8, usize, u64, usize, i64),
) -> Fact {
    let by = agent(by);
    let slot = if word % 2 == 0 { Slot::Any } else { Slot::Agent(agent(1)) };
    let status = ["done", "failed", "timeout", "refused", "expired", "cancelled", "weird"][word];
    let attempt = if second == 7 { u64::MAX } else { attempt };
    match kind {
        0 => queued(id, &slot),
        1 => given(id, &by, attempt),
        2 => back(id, attempt),
        3 => started(id, &by, attempt, second),
        4 => ended(id, &slot, State::ALL[word % 6]),
        5 => result(id, &by, None, status, number),
        6 => Fact::Unreadable { agent: by, why: "?".into(), place: place("R", number), at: at(1) },
        _ => result(id, &by, Some(attempt), status, number),
    }
}

#[test]
fn hostile_facts_never_undo_an_end_and_only_the_holder_ends_a_task() {
    let bench = Bench::new();
    let mut runner = TestRunner::new(Config { cases: 200, ..Config::default() });
    let mut number = 0;
    let number = RefCell::new(&mut number);
    let outcome = runner.run(&prop::collection::vec(anything(), 1..25), |seeds| {
        let mut bench = bench.borrow_mut();
        let id = bench.fresh();
        let mut before: Vec<Record> = Vec::new();
        for seed in seeds {
            **number.borrow_mut() += 1;
            let fact = hostile(&id, **number.borrow(), seed);
            let verdict = bench.one(&fact);
            let now = bench.store.show(&id).unwrap();
            for old in &before {
                let new = now.iter().find(|new| new.slot == old.slot).unwrap();
                if old.state.is_final() {
                    prop_assert_eq!(new.state, old.state);
                    prop_assert!(old.result.is_none() || new.agent == old.agent);
                    prop_assert!(
                        old.result.is_none()
                            || (&new.result, &new.output) == (&old.result, &old.output)
                    );
                }
                if let (Fact::Result { agent, .. }, None, Some(_)) =
                    (&fact, &old.result, &new.result)
                {
                    prop_assert_eq!(Some(agent), old.agent.as_ref());
                    prop_assert_eq!(&verdict, &Verdict::Accepted);
                }
                let times = [Some(new.queued), new.started, new.finished];
                prop_assert!(times.iter().flatten().is_sorted(), "{:?}", new);
            }
            before = now;
        }
        Ok(())
    });
    outcome.unwrap();
}

#[test]
fn a_late_result_of_an_agent_that_lost_the_task_is_refused() {
    let bench = Bench::new();
    let mut bench = bench.borrow_mut();
    let (id, a, b) = (bench.fresh(), agent(0), agent(1));
    for fact in [queued(&id, &Slot::Any), given(&id, &a, 1), back(&id, 1)] {
        assert_eq!(bench.one(&fact), Verdict::Accepted);
    }
    let refused = |verdict: Verdict, word: &str| match verdict {
        Verdict::Refused(why) => assert!(why.contains(word), "{why}"),
        other => panic!("{other:?}"),
    };
    refused(bench.one(&result(&id, &a, Some(1), "done", 1)), "taken back");
    assert_eq!(bench.one(&given(&id, &b, 2)), Verdict::Accepted);
    refused(bench.one(&result(&id, &a, Some(1), "done", 2)), "attempt 2 was handed out");
    refused(bench.one(&result(&id, &a, Some(2), "done", 3)), "another agent");
    assert_eq!(bench.one(&result(&id, &b, Some(2), "done", 4)), Verdict::Accepted);
    assert_eq!(bench.one(&result(&id, &b, Some(2), "done", 4)), Verdict::Repeated);
    refused(bench.one(&result(&id, &b, Some(2), "failed", 5)), "has come already");
    // A plain client of before, who does not say which attempt it was.
    refused(bench.one(&result(&id, &a, None, "done", 6)), "done already");
    assert_eq!(bench.store.strays(10).unwrap().len(), 5);
    assert_eq!(bench.record(&id).agent, Some(b));
}

#[test]
fn a_result_after_the_end_is_refused_and_a_confirmed_cancel_is_not() {
    let bench = Bench::new();
    let mut bench = bench.borrow_mut();
    let (id, slot, b) = (bench.fresh(), Slot::Agent(agent(1)), agent(1));
    assert_eq!(bench.one(&queued(&id, &slot)), Verdict::Accepted);
    assert_eq!(bench.one(&ended(&id, &slot, State::Cancelled)), Verdict::Accepted);
    let late = bench.one(&result(&id, &b, Some(1), "done", 1));
    assert_eq!(late, Verdict::Refused("it is cancelled already".into()));
    assert_eq!(bench.one(&result(&id, &b, Some(1), "cancelled", 2)), Verdict::Accepted);
    let record = bench.record(&id);
    assert_eq!(
        (record.state, record.reason.as_deref()),
        (State::Cancelled, Some("uid 1000 asked"))
    );
    assert!(record.output.is_some() && record.exit == Some(3));
    assert!(matches!(bench.one(&ended(&id, &slot, State::Expired)), Verdict::Refused(_)));
}

#[test]
fn an_agent_that_was_started_anew_counts_on_and_can_still_lose_the_task() {
    let bench = Bench::new();
    let mut bench = bench.borrow_mut();
    let (a, b) = (agent(0), agent(1));
    let id = bench.fresh();
    for fact in [queued(&id, &Slot::Any), given(&id, &a, 1), started(&id, &a, 2, 10)] {
        assert_eq!(bench.one(&fact), Verdict::Accepted);
    }
    assert_eq!(bench.one(&result(&id, &a, Some(3), "done", 1)), Verdict::Accepted);
    assert_eq!((bench.record(&id).attempt, bench.record(&id).handed), (3, 1));

    let id = bench.fresh();
    for fact in [queued(&id, &Slot::Any), given(&id, &a, 1), started(&id, &a, 2, 10)] {
        assert_eq!(bench.one(&fact), Verdict::Accepted);
    }
    // The queue did not know that the agent counted on.
    for fact in [back(&id, 1), given(&id, &b, 2)] {
        assert_eq!(bench.one(&fact), Verdict::Accepted);
    }
    assert!(matches!(bench.one(&result(&id, &a, Some(2), "done", 2)), Verdict::Refused(_)));
    let wild = bench.one(&started(&id, &b, u64::MAX, 20));
    assert_eq!(wild, Verdict::Refused("there is no attempt of such a number".into()));
    assert_eq!(bench.one(&result(&id, &b, Some(2), "done", 3)), Verdict::Accepted);
}
