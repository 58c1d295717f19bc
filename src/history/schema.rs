//! The tables, and how a database is opened, made and brought to the newest form.

use std::fs;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::Error;

/// The form that this flock writes: `PRAGMA user_version`.
pub(super) const FORM: i64 = 1;

/// What brings a database from the form of its place in this list to the next one.
const STEPS: [&str; 1] = [include_str!("schema-1.sql")];

/// `step path: cause` from SQLite's word; damage is told apart because it has another remedy.
pub(super) fn fault(step: &'static str, path: &Path) -> impl Fn(rusqlite::Error) -> Error + use<> {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    let path = path.to_owned();
    move |error| {
        let (path, cause) = (path.clone(), error.to_string());
        match error.sqlite_error_code() {
            Some(DatabaseCorrupt | NotADatabase) => Error::Damaged { step, path, cause },
            _ => Error::Step { step, path, cause },
        }
    }
}

/// Opens a database that is there, or makes the file, for root alone.
pub(super) fn open(path: &Path) -> Result<Connection, Error> {
    // SQLite gives its other files the mode of this one.
    let made = fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path);
    made.map_err(|e| Error::Step {
        step: "open the history",
        path: path.to_owned(),
        cause: e.to_string(),
    })?;
    let fault = fault("open the history", path);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut db = Connection::open_with_flags(path, flags).map_err(&fault)?;
    db.busy_timeout(Duration::from_secs(10)).map_err(&fault)?;
    // Only an empty database can be told to shrink again.
    db.pragma_update(None, "auto_vacuum", "INCREMENTAL").map_err(&fault)?;
    db.pragma_update(None, "journal_mode", "WAL").map_err(&fault)?;
    db.pragma_update(None, "synchronous", "FULL").map_err(&fault)?;
    db.pragma_update(None, "foreign_keys", true).map_err(&fault)?;
    let found = form(&db, path)?;
    intact(&db, path)?;
    let from = usize::try_from(found).unwrap_or_default();
    for (step, number) in STEPS.iter().zip(1i64..).skip(from) {
        let change = db.transaction().map_err(&fault)?;
        change.execute_batch(step).map_err(&fault)?;
        change.pragma_update(None, "user_version", number).map_err(&fault)?;
        change.commit().map_err(&fault)?;
    }
    Ok(db)
}

/// Opens a database for reading; nothing is made and nothing is changed.
pub(super) fn open_to_read(path: &Path) -> Result<Connection, Error> {
    if !path.exists() {
        return Err(Error::Missing { path: path.to_owned() });
    }
    let fault = fault("read the history", path);
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags).map_err(&fault)?;
    db.busy_timeout(Duration::from_secs(10)).map_err(&fault)?;
    match form(&db, path)? {
        0 => Err(Error::Missing { path: path.to_owned() }),
        _ => Ok(db),
    }
}

fn form(db: &Connection, path: &Path) -> Result<i64, Error> {
    let found: i64 = db
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(fault("open the history", path))?;
    match (0..=FORM).contains(&found) {
        true => Ok(found),
        false => Err(Error::Newer { path: path.to_owned(), found, known: FORM }),
    }
}

fn intact(db: &Connection, path: &Path) -> Result<(), Error> {
    let step = "check the history";
    let said: String =
        db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(fault(step, path))?;
    match said.as_str() {
        "ok" => Ok(()),
        _ => Err(Error::Damaged { step, path: path.to_owned(), cause: said }),
    }
}
