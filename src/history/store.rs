//! The one writer of the history: takes facts in batches, each batch wholly or not at all.

use std::ffi::OsString;
use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};

use super::prune::{self, Pruned};
use super::record::head;
use super::row::{self, Micros, signed};
use super::{Error, Fact, Patience, Place, Reader, Record, Slot, Verdict, schema};
use crate::bus::message::{Task, TaskId, TaskResult};
use crate::names::AgentId;

/// So many strays are kept, the newest.
const STRAYS_MAX: i64 = 10_000;
/// The longest text of a stray's task or reason; agents write some of them.
const STRAY_TEXT: usize = 1000;

/// The history, for its one writer. It reads as a [`Reader`] does.
pub struct Store {
    reader: Reader,
    begun: Timestamp,
}

/// How the database was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// In order.
    Found,
    /// There was none; it was begun.
    New,
    /// It was damaged and lies here now; a new one was begun.
    Damaged {
        /// Where the damaged one is.
        aside: PathBuf,
        /// What was wrong.
        cause: String,
    },
}

/// What an agent handed in and does not count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stray {
    /// When the server stored it.
    pub at: Timestamp,
    /// Who sent it, as the server vouches for it.
    pub agent: String,
    /// The task as the agent named it, if it did.
    pub task: Option<String>,
    /// Why it does not count.
    pub why: String,
    /// Where it was stored.
    pub place: Place,
}

impl Deref for Store {
    type Target = Reader;
    fn deref(&self) -> &Reader {
        &self.reader
    }
}

impl Store {
    /// Opens the history, or begins one. A damaged one is set aside, never deleted.
    ///
    /// # Errors
    /// When it cannot be opened or made, or a newer flock has written it.
    pub fn open(path: &Path) -> Result<(Self, Condition), Error> {
        let new = fs::metadata(path).map_or(true, |file| file.len() == 0);
        let (db, condition) = match (schema::open(path), new) {
            (Ok(db), true) => (db, Condition::New),
            (Ok(db), false) => (db, Condition::Found),
            (Err(Error::Damaged { cause, .. }), _) => {
                let aside = set_aside(path)?;
                (schema::open(path)?, Condition::Damaged { aside, cause })
            }
            (Err(error), _) => return Err(error),
        };
        let begun = begun(&db).map_err(schema::fault("open the history", path))?;
        Ok((Self { reader: Reader { db, path: path.to_owned() }, begun }, condition))
    }

    /// When this history was begun. A result from before, whose task is unknown, is kept all the same.
    #[must_use]
    pub fn begun(&self) -> Timestamp {
        self.begun
    }

    /// Takes facts, in this order, and says for each what became of it. When this returns, they are
    /// on the disk.
    ///
    /// # Errors
    /// When the database cannot be written: then none of them was taken.
    pub fn apply(&mut self, facts: &[Fact], patience: Patience) -> Result<Vec<Verdict>, Error> {
        let fault = schema::fault("write the history", &self.reader.path);
        let begun = self.begun;
        let batch = self.reader.db.transaction().map_err(&fault)?;
        let mut verdicts = Vec::with_capacity(facts.len());
        for fact in facts {
            let verdict = Batch { db: &batch, begun, patience }.one(fact).map_err(&fault)?;
            verdicts.push(verdict);
        }
        batch.commit().map_err(&fault)?;
        Ok(verdicts)
    }

    /// Forgets records that ended longer than `keep` ago, then the oldest ended ones until at most
    /// `max_bytes` are used; gives the space back. What has not ended is never forgotten.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn prune(
        &mut self,
        now: Timestamp,
        keep: Duration,
        max_bytes: u64,
    ) -> Result<Pruned, Error> {
        let fault = schema::fault("prune the history", &self.reader.path);
        let keep = SignedDuration::try_from(keep).unwrap_or(SignedDuration::MAX);
        let oldest = now.checked_sub(keep).unwrap_or(Timestamp::MIN);
        prune::prune(&mut self.reader.db, oldest, max_bytes).map_err(fault)
    }

    /// The newest strays, the newest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn strays(&self, limit: u32) -> Result<Vec<Stray>, Error> {
        let read = || {
            let sql = "SELECT at, agent, task, why, stream, sequence FROM strays \
                       ORDER BY id DESC LIMIT ?1";
            let mut query = self.reader.db.prepare_cached(sql)?;
            let found = query.query_map([limit], |found| {
                Ok(Stray {
                    at: found.get::<_, Micros>("at")?.0,
                    agent: found.get("agent")?,
                    task: found.get("task")?,
                    why: found.get("why")?,
                    place: Place {
                        stream: found.get("stream")?,
                        sequence: row::unsigned(found, "sequence")?,
                    },
                })
            })?;
            found.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(schema::fault("read the history", &self.reader.path))
    }
}

/// `history.db` and what belongs to it become `history.db.damaged-<time>`.
fn set_aside(path: &Path) -> Result<PathBuf, Error> {
    let with = |base: &Path, end: &str| {
        let mut name = OsString::from(base);
        name.push(end);
        PathBuf::from(name)
    };
    let aside = with(path, &format!(".damaged-{}", Timestamp::now().strftime("%Y%m%dT%H%M%S%6fZ")));
    for end in ["", "-wal", "-shm"] {
        match fs::rename(with(path, end), with(&aside, end)) {
            Err(cause) if end.is_empty() => {
                return Err(Error::Step {
                    step: "set the damaged history aside",
                    path: path.to_owned(),
                    cause: cause.to_string(),
                });
            }
            // Those may not be there.
            _ => {}
        }
    }
    Ok(aside)
}

fn begun(db: &Connection) -> rusqlite::Result<Timestamp> {
    let insert = "INSERT INTO meta (name, value) VALUES ('begun', ?1) ON CONFLICT DO NOTHING";
    db.execute(insert, [Micros(Timestamp::now())])?;
    let select = "SELECT value FROM meta WHERE name = 'begun'";
    db.query_row(select, [], |row| row.get::<_, Micros>(0)).map(|micros| micros.0)
}

/// One transaction.
struct Batch<'a> {
    db: &'a Connection,
    begun: Timestamp,
    patience: Patience,
}

impl Batch<'_> {
    fn one(&self, fact: &Fact) -> rusqlite::Result<Verdict> {
        match fact {
            Fact::Queued { task, slot, place, at } => self.queued(task, slot, place, *at),
            Fact::Given { task, agent, attempt, place, .. } => {
                self.change(task, &Slot::Any, |record| record.given(agent, *attempt, place))
            }
            Fact::Back { task, attempt, reason, .. } => {
                self.change(task, &Slot::Any, |record| record.back(*attempt, reason))
            }
            Fact::Started { task, agent, attempt, command, at } => {
                self.change(task, &self.slot_of(task, agent)?, |record| {
                    record.started(agent, *attempt, command.as_ref(), *at)
                })
            }
            Fact::Ended { task, slot, state, reason, at } => {
                self.change(task, slot, |record| record.ended(*state, reason, *at))
            }
            Fact::Result { agent, result, command, place, at } => {
                let stray = (agent, Some(result.task.as_str()), place, *at);
                let verdict = match self.is_stray(place)? {
                    true => return Ok(Verdict::Repeated),
                    false => self.result(agent, result, command.as_ref(), place, *at)?,
                };
                self.keep_stray(verdict, stray)
            }
            Fact::Unreadable { agent, why, place, at } => match self.is_stray(place)? {
                true => Ok(Verdict::Repeated),
                false => self.keep_stray(Verdict::Refused(why.clone()), (agent, None, place, *at)),
            },
        }
    }

    fn queued(
        &self,
        task: &Task,
        slot: &Slot,
        place: &Place,
        at: Timestamp,
    ) -> rusqlite::Result<Verdict> {
        if let Some(mut record) = row::find(self.db, &task.id, slot)? {
            let verdict = record.complete(task, slot, place, at);
            if verdict == Verdict::Accepted {
                row::write_task(self.db, &record, true)?;
                row::write(self.db, &record)?;
            }
            return Ok(verdict);
        }
        // The result came first, and did not say that the task was from the shared queue.
        let lone = match slot {
            Slot::Any => row::recovered(self.db, &task.id)?,
            Slot::Agent(_) => None,
        };
        let (record, known) = match lone {
            Some(mut record) => {
                row::move_to(self.db, &task.id, &record.slot, slot)?;
                record.complete(task, slot, place, at);
                (record, true)
            }
            None => (Record::queued(task, slot, place, at), false),
        };
        row::write_task(self.db, &record, known)?;
        row::write(self.db, &record)?;
        Ok(Verdict::Accepted)
    }

    /// Lets a transition act on a record that is there.
    fn change(
        &self,
        task: &TaskId,
        slot: &Slot,
        act: impl FnOnce(&mut Record) -> Verdict,
    ) -> rusqlite::Result<Verdict> {
        let Some(mut record) = row::find(self.db, task, slot)? else {
            return Ok(self.too_early("the task is not known"));
        };
        let before = record.attempt;
        let verdict = match act(&mut record) {
            Verdict::TooEarly => self.too_early("the shared queue did not give it to this agent"),
            verdict => verdict,
        };
        if verdict == Verdict::Accepted || record.attempt != before {
            row::write(self.db, &record)?;
        }
        Ok(verdict)
    }

    fn too_early(&self, why: &str) -> Verdict {
        match self.patience {
            Patience::Left => Verdict::TooEarly,
            Patience::Over => Verdict::Refused(why.to_owned()),
        }
    }

    /// Where an agent does a task: sent to it, or to all; else from the shared queue.
    fn slot_of(&self, task: &TaskId, agent: &AgentId) -> rusqlite::Result<Slot> {
        let own = Slot::Agent(agent.clone());
        let sql = "SELECT EXISTS (SELECT 1 FROM records WHERE task = ?1 AND slot = ?2)";
        let is_own = self
            .db
            .prepare_cached(sql)?
            .query_row([task.as_str(), agent.as_str()], |row| row.get(0))?;
        Ok(if is_own { own } else { Slot::Any })
    }

    fn result(
        &self,
        agent: &AgentId,
        result: &TaskResult,
        command: Option<&Vec<String>>,
        place: &Place,
        at: Timestamp,
    ) -> rusqlite::Result<Verdict> {
        let Ok(task) = TaskId::parse(&result.task) else {
            return Ok(Verdict::Refused("what it names as its task is no task id".to_owned()));
        };
        let known = "SELECT EXISTS (SELECT 1 FROM tasks WHERE task = ?1)";
        let known: bool =
            self.db.prepare_cached(known)?.query_row([task.as_str()], |row| row.get(0))?;
        if !known && at < self.begun {
            let mut record = Record::recovered(&task, agent, result, place, at);
            record.result(agent, result, command, place, at);
            row::write_task(self.db, &record, false)?;
            row::write(self.db, &record)?;
            return Ok(Verdict::Accepted);
        }
        let slot = self.slot_of(&task, agent)?;
        self.change(&task, &slot, |record| record.result(agent, result, command, place, at))
    }

    fn is_stray(&self, place: &Place) -> rusqlite::Result<bool> {
        let sql = "SELECT EXISTS (SELECT 1 FROM strays WHERE stream = ?1 AND sequence = ?2)";
        let values = params![place.stream, signed(place.sequence)];
        self.db.prepare_cached(sql)?.query_row(values, |row| row.get(0))
    }

    /// Writes what is refused to the strays, and forgets the oldest of them.
    fn keep_stray(
        &self,
        verdict: Verdict,
        (agent, task, place, at): (&AgentId, Option<&str>, &Place, Timestamp),
    ) -> rusqlite::Result<Verdict> {
        if let Verdict::Refused(why) = &verdict {
            let sql = "INSERT INTO strays (at, agent, task, why, stream, sequence) \
                       VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
            self.db.prepare_cached(sql)?.execute(params![
                Micros(at),
                agent.as_str(),
                task.map(|task| head(task, STRAY_TEXT)),
                head(why, STRAY_TEXT),
                place.stream,
                signed(place.sequence),
            ])?;
            let forget = "DELETE FROM strays WHERE id <= ?1 - ?2";
            let newest = self.db.last_insert_rowid();
            self.db.prepare_cached(forget)?.execute([newest, STRAYS_MAX])?;
        }
        Ok(verdict)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::bus::message::Address;
    use crate::history::{Filter, State};

    fn agent(name: &str) -> AgentId {
        AgentId::parse(name).unwrap()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(4_000_000_000 + second).unwrap()
    }

    fn place(stream: &str, sequence: u64) -> Place {
        Place { stream: stream.into(), sequence }
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
        assert_eq!(
            list(Filter { agent: Some(agent("a")), ..all.clone() }),
            ["aaaaab-1", "aaaaaa-1"]
        );
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
}
