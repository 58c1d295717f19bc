//! Questions to the history. Reading never waits for flockd's writing, nor the other way round.

use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use rusqlite::{Connection, Row, named_params};

use super::query::{Counts, Filter, LIMIT_MAX, PREFIX_MIN, Summary};
use super::row::{self, COLUMNS, Micros};
use super::{Error, Record, schema};
use crate::bus::message::TaskId;

/// So much of a task's text is in a summary.
const HEAD: usize = 200;

/// A connection that can read.
pub struct Reader {
    pub(super) db: Connection,
    pub(super) path: PathBuf,
}

impl Reader {
    /// Opens a history that is there, for reading only; flockd may be writing it.
    ///
    /// # Errors
    /// When there is none, it cannot be read, or a newer flock has written it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Ok(Self { db: schema::open_to_read(path)?, path: path.to_owned() })
    }

    /// The records that the filter asks for, without their long texts.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn list(&self, filter: &Filter) -> Result<Vec<Summary>, Error> {
        let mut all = Vec::new();
        self.each(filter, |summary| {
            all.push(summary);
            true
        })?;
        Ok(all)
    }

    /// The same one by one, until `take` says false.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn each(
        &self,
        filter: &Filter,
        mut take: impl FnMut(Summary) -> bool,
    ) -> Result<(), Error> {
        let states: Vec<&str> = filter.states.iter().map(|state| state.word()).collect();
        let (time, only) = match filter.ended {
            true => ("r.finished", "r.open = 0"),
            false => ("r.queued", "TRUE"),
        };
        // The newest are taken; the ended ones are then turned into the order of time.
        let sql = format!(
            "SELECT {COLUMNS_SHORT} FROM records r JOIN tasks t USING (task) WHERE {only} \
             AND (:agent IS NULL OR r.agent = :agent) \
             AND (:states = '[]' OR r.state IN (SELECT value FROM json_each(:states))) \
             AND (:since IS NULL OR {time} >= :since) AND (:until IS NULL OR {time} < :until) \
             ORDER BY {time} DESC, r.id DESC LIMIT :limit"
        );
        let sql = match filter.ended {
            true => format!("SELECT * FROM ({sql}) ORDER BY finished, id"),
            false => sql,
        };
        let fault = schema::fault("read the history", &self.path);
        let mut query = self.db.prepare_cached(&sql).map_err(&fault)?;
        let mut rows = query
            .query(named_params! {
                ":agent": filter.agent.as_ref().map(|id| id.as_str()),
                ":states": serde_json::json!(states).to_string(),
                ":since": filter.since.map(Micros),
                ":until": filter.until.map(Micros),
                ":limit": filter.limit.unwrap_or(LIMIT_MAX).min(LIMIT_MAX),
            })
            .map_err(&fault)?;
        while let Some(found) = rows.next().map_err(&fault)? {
            if !take(summary(found).map_err(&fault)?) {
                break;
            }
        }
        Ok(())
    }

    /// Everything about one task: a record for each place where it is done; none when it is unknown.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn show(&self, task: &TaskId) -> Result<Vec<Record>, Error> {
        self.records("r.task = :task ORDER BY r.slot", named_params! { ":task": task.as_str() })
    }

    /// Records that have not ended and were queued before `older_than`, the oldest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn open_tasks(&self, older_than: Timestamp, limit: u32) -> Result<Vec<Record>, Error> {
        self.records(
            "r.open = 1 AND r.queued < :before ORDER BY r.queued LIMIT :limit",
            named_params! { ":before": Micros(older_than), ":limit": limit },
        )
    }

    /// Records that have not ended although their deadline has passed; at most 1000, the oldest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn overdue(&self, now: Timestamp) -> Result<Vec<Record>, Error> {
        self.records(
            "r.open = 1 AND t.deadline <= :now ORDER BY t.deadline LIMIT 1000",
            named_params! { ":now": Micros(now) },
        )
    }

    /// The first deadline of a task that has not ended.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn next_deadline(&self) -> Result<Option<Timestamp>, Error> {
        let sql =
            "SELECT min(t.deadline) FROM records r JOIN tasks t USING (task) WHERE r.open = 1";
        let first = self.db.query_row(sql, [], |row| row.get::<_, Option<Micros>>(0));
        let first = first.map_err(schema::fault("read the history", &self.path))?;
        Ok(first.map(|Micros(at)| at))
    }

    fn records(
        &self,
        which: &str,
        values: &[(&str, &dyn rusqlite::ToSql)],
    ) -> Result<Vec<Record>, Error> {
        let sql =
            format!("SELECT {COLUMNS} FROM records r JOIN tasks t USING (task) WHERE {which}");
        let read = || {
            let mut query = self.db.prepare_cached(&sql)?;
            query.query_map(values, row::read)?.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(schema::fault("read the history", &self.path))
    }

    /// How many tasks wait, run, and failed within the last day.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn counts(&self, now: Timestamp) -> Result<Counts, Error> {
        const SQL: &str = "SELECT \
            (SELECT count(*) FROM records WHERE open = 1 AND state = 'queued'), \
            (SELECT count(*) FROM records WHERE open = 1 AND state = 'running'), \
            (SELECT count(*) FROM records WHERE state = 'failed' AND finished > ?1)";
        let day_ago = now.checked_sub(SignedDuration::from_hours(24)).unwrap_or(now);
        let number = |row: &Row<'_>, at: usize| -> rusqlite::Result<u64> {
            Ok(u64::try_from(row.get::<_, i64>(at)?).unwrap_or_default())
        };
        let read = |row: &Row<'_>| {
            Ok(Counts {
                queued: number(row, 0)?,
                running: number(row, 1)?,
                failed_last_day: number(row, 2)?,
            })
        };
        let found =
            self.db.prepare_cached(SQL).and_then(|mut q| q.query_row([Micros(day_ago)], read));
        found.map_err(schema::fault("read the history", &self.path))
    }

    /// The task of this id, or the only one whose id begins so, with at least [`PREFIX_MIN`]
    /// characters.
    ///
    /// # Errors
    /// When there is none or there are several, or the database cannot be read.
    pub fn resolve(&self, prefix: &TaskId) -> Result<TaskId, Error> {
        let text = prefix.as_str();
        let read = || {
            // A range instead of LIKE, which takes `_` for any character and upper case for lower.
            let sql = "SELECT task FROM tasks WHERE task = ?1 OR (?2 AND task > ?1 AND task < ?1 || '~') \
                       ORDER BY task LIMIT 6";
            let mut query = self.db.prepare_cached(sql)?;
            let long_enough = text.len() >= PREFIX_MIN;
            let found = query.query_map((text, long_enough), |found| row::word(found, "task"))?;
            found.collect::<rusqlite::Result<Vec<TaskId>>>()
        };
        let mut found = read().map_err(schema::fault("read the history", &self.path))?;
        match found.len() {
            0 => Err(Error::Unknown(prefix.clone())),
            1 => Ok(found.remove(0)),
            _ if found[0] == *prefix => Ok(found.remove(0)),
            _ => Err(Error::Several { prefix: prefix.clone(), some: found }),
        }
    }
}

/// The columns of a summary.
const COLUMNS_SHORT: &str = "r.id, r.task, r.slot, r.agent, t.addressed, r.state, r.reason, \
    r.attempt, t.sender, t.retry_of, substr(t.text, 1, 200) AS head, t.created, t.deadline, r.queued, \
    r.started, r.finished, r.exit, r.signal, r.user_usec, r.system_usec, r.memory_peak, r.command, \
    r.result_path";

fn summary(row: &Row<'_>) -> rusqlite::Result<Summary> {
    let head: String = row.get("head")?;
    Ok(Summary {
        task: row::word(row, "task")?,
        slot: row::word(row, "slot")?,
        agent: row::some_word(row, "agent")?,
        to: row::word(row, "addressed")?,
        state: row::word(row, "state")?,
        reason: row.get("reason")?,
        attempt: row::unsigned(row, "attempt")?,
        sender: row.get("sender")?,
        retry_of: row::some_word(row, "retry_of")?,
        head: head.lines().next().unwrap_or_default().chars().take(HEAD).collect(),
        created: row.get::<_, Micros>("created")?.0,
        deadline: row::time(row, "deadline")?,
        queued: row.get::<_, Micros>("queued")?.0,
        started: row::time(row, "started")?,
        finished: row::time(row, "finished")?,
        exit: row.get("exit")?,
        signal: row.get("signal")?,
        usage: row::usage(row)?,
        command: row::some_json(row, "command")?,
        result_path: row.get("result_path")?,
    })
}
