//! Bounds the history: by age, then by size. What has not ended is never forgotten.

use jiff::Timestamp;
use rusqlite::Connection;

use super::row::Micros;

/// So many records are forgotten at once; between, others may write.
const PRUNE_STEP: u32 = 200;

/// What [`Store::prune`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// So many records are gone.
    pub records: u64,
    /// The database's size now, in bytes.
    pub bytes: u64,
}

/// Forgets what ended before `oldest`, then the oldest ends until at most `max_bytes` are in use.
pub(super) fn prune(
    db: &mut Connection,
    oldest: Timestamp,
    max_bytes: u64,
) -> rusqlite::Result<Pruned> {
    let mut records = 0;
    loop {
        let over = used(db)? > max_bytes;
        // All that are too old, and while there is too much, the next of the others.
        let before = if over { Timestamp::MAX } else { oldest };
        let gone = forget(db, before)?;
        records += gone;
        if gone == 0 {
            break;
        }
    }
    shrink(db)?;
    Ok(Pruned { records, bytes: used(db)? })
}

/// Gives free pages back to the file system, and empties the log.
fn shrink(db: &Connection) -> rusqlite::Result<()> {
    // One page a step, as rows: it must be read to its end.
    let mut vacuum = db.prepare("PRAGMA incremental_vacuum")?;
    let mut pages = vacuum.query([])?;
    while pages.next()?.is_some() {}
    drop(pages);
    db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
}

/// The bytes in use, without those that the next record can have.
fn used(db: &Connection) -> rusqlite::Result<u64> {
    let sql = "SELECT (page_count - freelist_count) * page_size \
               FROM pragma_page_count, pragma_freelist_count, pragma_page_size";
    db.query_row(sql, [], |row| Ok(u64::try_from(row.get::<_, i64>(0)?).unwrap_or_default()))
}

/// Forgets some of the records that ended before, the oldest end first; says how many.
fn forget(db: &mut Connection, before: Timestamp) -> rusqlite::Result<u64> {
    let change = db.transaction()?;
    let records = "DELETE FROM records WHERE id IN (SELECT id FROM records \
                   WHERE open = 0 AND finished < ?1 ORDER BY finished LIMIT ?2) RETURNING task";
    let gone: Vec<String> = change
        .prepare_cached(records)?
        .query_map((Micros(before), PRUNE_STEP), |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let lone = "DELETE FROM tasks WHERE task = ?1 \
                AND NOT EXISTS (SELECT 1 FROM records r WHERE r.task = ?1)";
    for task in &gone {
        change.prepare_cached(lone)?.execute([task])?;
    }
    change.commit()?;
    Ok(gone.len() as u64)
}
