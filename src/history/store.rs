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
mod tests;
