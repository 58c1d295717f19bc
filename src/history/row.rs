//! A record as columns of the database, and back.

use jiff::Timestamp;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, Type, ValueRef};
use rusqlite::{Connection, OptionalExtension as _, Row, named_params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Place, Record, Slot};
use crate::bus::message::{TaskId, Usage};

/// All columns of a record, in the order in which [`read`] names them.
pub(super) const COLUMNS: &str = "r.task, r.slot, r.agent, r.state, r.reason, r.attempt, \
    r.handed, r.taken_back, r.queued, r.started, r.finished, r.exit, r.signal, r.user_usec, r.system_usec, \
    r.memory_peak, r.command, r.output, r.truncated, r.result_path, r.stream, r.sequence, \
    r.given_stream, r.given_sequence, r.result_stream, r.result_sequence, r.decided, t.addressed, \
    t.sender, t.key, t.retry_of, t.text, t.environment, t.created, t.deadline";

/// A time in the database: microseconds since 1970.
pub(super) struct Micros(pub Timestamp);

impl ToSql for Micros {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.0.as_microsecond().into())
    }
}

impl FromSql for Micros {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let number = value.as_i64()?;
        Timestamp::from_microsecond(number).map(Self).map_err(|_| FromSqlError::OutOfRange(number))
    }
}

/// The database has signed numbers; what does not fit is as good as the largest.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A number that was written by [`signed`].
pub(super) fn unsigned(row: &Row<'_>, column: &str) -> rusqlite::Result<u64> {
    Ok(u64::try_from(row.get::<_, i64>(column)?).unwrap_or_default())
}

/// A value that is kept as the text of its JSON string: ids, slots, addresses, states.
pub(super) fn word<T: DeserializeOwned>(row: &Row<'_>, column: &str) -> rusqlite::Result<T> {
    parsed(serde_json::Value::String(row.get(column)?))
}

/// The same where there may be none.
pub(super) fn some_word<T: DeserializeOwned>(
    row: &Row<'_>,
    column: &str,
) -> rusqlite::Result<Option<T>> {
    let text: Option<String> = row.get(column)?;
    text.map(|text| parsed(serde_json::Value::String(text))).transpose()
}

/// A value that is kept as JSON.
pub(super) fn some_json<T: DeserializeOwned>(
    row: &Row<'_>,
    column: &str,
) -> rusqlite::Result<Option<T>> {
    let text: Option<String> = row.get(column)?;
    text.map(|text| serde_json::from_str(&text).map_err(wrong)).transpose()
}

fn parsed<T: DeserializeOwned>(value: serde_json::Value) -> rusqlite::Result<T> {
    serde_json::from_value(value).map_err(wrong)
}

fn wrong(error: serde_json::Error) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, Type::Text, Box::new(error))
}

fn json(value: &impl Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))
}

/// A time where there may be none.
pub(super) fn time(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<Timestamp>> {
    Ok(row.get::<_, Option<Micros>>(column)?.map(|micros| micros.0))
}

/// What the command used up, if it was measured.
pub(super) fn usage(row: &Row<'_>) -> rusqlite::Result<Option<Usage>> {
    if row.get::<_, Option<i64>>("user_usec")?.is_none() {
        return Ok(None);
    }
    Ok(Some(Usage {
        user_usec: unsigned(row, "user_usec")?,
        system_usec: unsigned(row, "system_usec")?,
        memory_peak: unsigned(row, "memory_peak")?,
    }))
}

fn place(row: &Row<'_>, stream: &str, sequence: &str) -> rusqlite::Result<Option<Place>> {
    let Some(stream) = row.get(stream)? else { return Ok(None) };
    Ok(Some(Place { stream, sequence: unsigned(row, sequence)? }))
}

/// A record from a row of [`COLUMNS`].
pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<Record> {
    Ok(Record {
        task: word(row, "task")?,
        slot: word(row, "slot")?,
        agent: some_word(row, "agent")?,
        to: word(row, "addressed")?,
        state: word(row, "state")?,
        reason: row.get("reason")?,
        attempt: unsigned(row, "attempt")?,
        handed: unsigned(row, "handed")?,
        taken_back: unsigned(row, "taken_back")?,
        sender: row.get("sender")?,
        key: row.get("key")?,
        retry_of: some_word(row, "retry_of")?,
        text: row.get("text")?,
        environment: some_json(row, "environment")?.unwrap_or_default(),
        created: row.get::<_, Micros>("created")?.0,
        deadline: time(row, "deadline")?,
        queued: row.get::<_, Micros>("queued")?.0,
        started: time(row, "started")?,
        finished: time(row, "finished")?,
        exit: row.get("exit")?,
        signal: row.get("signal")?,
        usage: usage(row)?,
        command: some_json(row, "command")?,
        output: row.get("output")?,
        truncated: row.get("truncated")?,
        result_path: row.get("result_path")?,
        place: place(row, "stream", "sequence")?,
        given: place(row, "given_stream", "given_sequence")?,
        result: place(row, "result_stream", "result_sequence")?,
        decided: row.get("decided")?,
    })
}

/// The record of a task in one place.
pub(super) fn find(
    db: &Connection,
    task: &TaskId,
    slot: &Slot,
) -> rusqlite::Result<Option<Record>> {
    let sql = format!(
        "SELECT {COLUMNS} FROM records r JOIN tasks t USING (task) WHERE r.task = ?1 AND r.slot = ?2"
    );
    db.prepare_cached(&sql)?.query_row([task.as_str(), &slot.to_string()], read).optional()
}

/// The record that was made from a result alone, if there is one.
pub(super) fn recovered(db: &Connection, task: &TaskId) -> rusqlite::Result<Option<Record>> {
    let sql = format!(
        "SELECT {COLUMNS} FROM records r JOIN tasks t USING (task) \
         WHERE r.task = ?1 AND r.stream IS NULL LIMIT 1"
    );
    db.prepare_cached(&sql)?.query_row([task.as_str()], read).optional()
}

/// Writes the task of a record; `anew` also when it is there.
pub(super) fn write_task(db: &Connection, record: &Record, anew: bool) -> rusqlite::Result<()> {
    let conflict = match anew {
        false => "NOTHING",
        true => {
            "UPDATE SET addressed = :addressed, sender = :sender, key = :key, retry_of = :retry_of, \
             text = :text, environment = :environment, created = :created, deadline = :deadline"
        }
    };
    let sql = format!(
        "INSERT INTO tasks (task, addressed, sender, key, retry_of, text, environment, created, \
         deadline) VALUES (:task, :addressed, :sender, :key, :retry_of, :text, :environment, \
         :created, :deadline) ON CONFLICT (task) DO {conflict}"
    );
    db.prepare_cached(&sql)?.execute(named_params! {
        ":task": record.task.as_str(),
        ":addressed": record.to.to_string(),
        ":sender": record.sender,
        ":key": record.key,
        ":retry_of": record.retry_of.as_ref().map(TaskId::as_str),
        ":text": record.text,
        ":environment": json(&record.environment)?,
        ":created": Micros(record.created),
        ":deadline": record.deadline.map(Micros),
    })?;
    Ok(())
}

/// Writes a record, whose task is there.
pub(super) fn write(db: &Connection, record: &Record) -> rusqlite::Result<()> {
    const SQL: &str = "INSERT INTO records (task, slot, agent, state, open, reason, attempt, \
        handed, taken_back, queued, started, finished, exit, signal, user_usec, system_usec, memory_peak, \
        command, output, truncated, result_path, stream, sequence, given_stream, given_sequence, \
        result_stream, result_sequence, decided) \
        VALUES (:task, :slot, :agent, :state, :open, :reason, :attempt, :handed, :taken_back, :queued, \
        :started, :finished, :exit, :signal, :user_usec, :system_usec, :memory_peak, :command, \
        :output, :truncated, :result_path, :stream, :sequence, :given_stream, :given_sequence, \
        :result_stream, :result_sequence, :decided) \
        ON CONFLICT (task, slot) DO UPDATE SET agent = excluded.agent, state = excluded.state, \
        open = excluded.open, reason = excluded.reason, attempt = excluded.attempt, \
        handed = excluded.handed, taken_back = excluded.taken_back, queued = excluded.queued, started = excluded.started, \
        finished = excluded.finished, exit = excluded.exit, signal = excluded.signal, \
        user_usec = excluded.user_usec, system_usec = excluded.system_usec, \
        memory_peak = excluded.memory_peak, command = excluded.command, output = excluded.output, \
        truncated = excluded.truncated, result_path = excluded.result_path, \
        stream = excluded.stream, sequence = excluded.sequence, \
        given_stream = excluded.given_stream, given_sequence = excluded.given_sequence, \
        result_stream = excluded.result_stream, result_sequence = excluded.result_sequence, \
        decided = excluded.decided";
    let stream = |place: &Option<Place>| place.as_ref().map(|place| place.stream.clone());
    let sequence = |place: &Option<Place>| place.as_ref().map(|place| signed(place.sequence));
    db.prepare_cached(SQL)?.execute(named_params! {
        ":task": record.task.as_str(),
        ":slot": record.slot.to_string(),
        ":agent": record.agent.as_ref().map(|id| id.as_str()),
        ":state": record.state.word(),
        ":open": !record.state.is_final(),
        ":reason": record.reason,
        ":attempt": signed(record.attempt),
        ":handed": signed(record.handed),
        ":taken_back": signed(record.taken_back),
        ":queued": Micros(record.queued),
        ":started": record.started.map(Micros),
        ":finished": record.finished.map(Micros),
        ":exit": record.exit,
        ":signal": record.signal,
        ":user_usec": record.usage.map(|u| signed(u.user_usec)),
        ":system_usec": record.usage.map(|u| signed(u.system_usec)),
        ":memory_peak": record.usage.map(|u| signed(u.memory_peak)),
        ":command": record.command.as_ref().map(json).transpose()?,
        ":output": record.output,
        ":truncated": record.truncated,
        ":result_path": record.result_path,
        ":stream": stream(&record.place),
        ":sequence": sequence(&record.place),
        ":given_stream": stream(&record.given),
        ":given_sequence": sequence(&record.given),
        ":result_stream": stream(&record.result),
        ":result_sequence": sequence(&record.result),
        ":decided": record.decided,
    })?;
    Ok(())
}

/// Renames the place of a record that was made from a result alone.
pub(super) fn move_to(
    db: &Connection,
    task: &TaskId,
    from: &Slot,
    to: &Slot,
) -> rusqlite::Result<()> {
    let sql = "UPDATE records SET slot = ?3 WHERE task = ?1 AND slot = ?2";
    let names = [task.as_str(), &from.to_string(), &to.to_string()];
    db.prepare_cached(sql)?.execute(names).map(|_| ())
}
