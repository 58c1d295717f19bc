//! Writes what each agent says into `/shared/logs/<id>.log`, where the agent can read it and not
//! change it.
//!
//! The journal is the log; this is a copy for agents, of bounded size. A saved cursor says how far it
//! has come: after a crash some lines may stand twice, none is missing.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use nix::fcntl::OFlag;
use tokio::sync::{mpsc, watch};
use tokio::time::{interval, sleep};

use crate::config::Config;
use crate::daemon::world::World;
use crate::journal::{Follow, JournalError, Written};
use crate::names::{AgentId, STATE_DIR, shared_dir};
use crate::status::ending::replace;

/// A copy that has grown beyond this is cut to its newer half.
const FILE_MAX: u64 = 8 << 20;
/// Lines are written together at this interval.
const FLUSH_EVERY: Duration = Duration::from_millis(500);
/// Entries that wait to be written. When there are more, journalctl waits.
const WAITING: usize = 1024;
/// Between two tries.
const RETRY: Duration = Duration::from_secs(5);

/// Runs for ever. Starts after `applied`, which makes the files.
pub async fn run(world: Arc<World>, mut applied: watch::Receiver<bool>) {
    // An error means that flockd ends.
    let _ = applied.wait_for(|done| *done).await;
    let mut copy = Copy::new(&shared_dir().join("logs"), &Path::new(STATE_DIR).join("log.cursor"));
    let mut config = world.config.subscribe();
    loop {
        let agents = Arc::clone(&config.borrow_and_update());
        let end = tokio::select! {
            end = follow(&agents, &mut copy) => end,
            // Other agents: read on from the same place, with other matches.
            _ = config.changed() => Ok(()),
        };
        copy.flush();
        if let Err(error) = end {
            tracing::warn!("copy the agents' logs: {error}");
            sleep(RETRY).await;
        }
    }
}

/// Copies until journalctl fails.
async fn follow(config: &Config, copy: &mut Copy) -> Result<(), JournalError> {
    if config.agents.is_empty() {
        return std::future::pending().await;
    }
    let mut journal = Follow::open(config.agents.keys(), copy.cursor.as_deref())?;
    let (sender, mut entries) = mpsc::channel(WAITING);
    // A task of its own, because a line must not be dropped half read.
    let reader = tokio::spawn(async move {
        loop {
            let written = journal.next().await?;
            if sender.send(written).await.is_err() {
                return Ok(());
            }
        }
    });
    let _reader = AbortOnDrop(reader.abort_handle());
    let mut tick = interval(FLUSH_EVERY);
    loop {
        tokio::select! {
            written = entries.recv() => match written {
                Some(written) => copy.take(&written),
                None => return reader.await.unwrap_or_else(|error| {
                    Err(JournalError::Failed(error.to_string()))
                }),
            },
            _ = tick.tick() => copy.flush(),
        }
    }
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The copies, and how far they have come.
struct Copy {
    dir: PathBuf,
    place: PathBuf,
    cursor: Option<String>,
    waiting: BTreeMap<AgentId, String>,
    dirty: bool,
}

impl Copy {
    fn new(dir: &Path, place: &Path) -> Self {
        let cursor = fs::read_to_string(place).ok().map(|text| text.trim().to_owned());
        // journald's own form; anything else would be an argument that somebody made up.
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '=' || c == ';';
        let cursor = cursor.filter(|text| !text.is_empty() && text.chars().all(plain));
        let (dir, place) = (dir.to_owned(), place.to_owned());
        Self { dir, place, cursor, waiting: BTreeMap::new(), dirty: false }
    }

    fn take(&mut self, written: &Written) {
        let lines = self.waiting.entry(written.agent.clone()).or_default();
        lines.push_str(&written.entry.render(&TimeZone::UTC));
        lines.push('\n');
        self.cursor = Some(written.cursor.clone());
        self.dirty = true;
    }

    /// First the lines, then the cursor: a crash in between writes lines twice and loses none.
    fn flush(&mut self) {
        if !std::mem::take(&mut self.dirty) {
            return;
        }
        for (agent, lines) in std::mem::take(&mut self.waiting) {
            let path = self.dir.join(format!("{agent}.log"));
            match append(&path, &lines) {
                // Made by apply; an agent that was just removed has none.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => tracing::warn!(agent = %agent, "write {}: {error}", path.display()),
                Ok(()) => {}
            }
        }
        if let Some(cursor) = &self.cursor
            && let Err(error) = replace(&self.place, cursor.as_bytes(), 0o600)
        {
            tracing::warn!("write {}: {error}", self.place.display());
        }
    }
}

/// Appends to a file that is there; never makes one, because its access list is apply's.
fn append(path: &Path, lines: &str) -> io::Result<()> {
    let nofollow = OFlag::O_NOFOLLOW.bits();
    let mut file = File::options().read(true).append(true).custom_flags(nofollow).open(path)?;
    if file.metadata()?.len() > FILE_MAX {
        keep_newer_half(&mut file)?;
    }
    file.write_all(lines.as_bytes())
}

/// Cuts the file in place, so that its access list stays and `tail -f` goes on.
fn keep_newer_half(file: &mut File) -> io::Result<()> {
    file.seek(SeekFrom::End(-i64::try_from(FILE_MAX / 2).unwrap_or(0)))?;
    let mut rest = Vec::new();
    file.read_to_end(&mut rest)?;
    let begin = rest.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    file.set_len(0)?;
    file.write_all(&rest[begin..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{Entry, Source};

    fn written(agent: &str, text: &str, cursor: &str) -> Written {
        let entry = Entry {
            at: jiff::Timestamp::UNIX_EPOCH,
            source: Source::Agent,
            level: "info".into(),
            pid: None,
            text: text.into(),
        };
        Written { agent: AgentId::parse(agent).unwrap(), entry, cursor: cursor.into() }
    }

    #[test]
    fn lines_reach_their_agents_file_and_the_cursor_follows() {
        let dir = tempfile::tempdir().unwrap();
        let (logs, place) = (dir.path().join("logs"), dir.path().join("log.cursor"));
        fs::create_dir(&logs).unwrap();
        fs::write(logs.join("a.log"), "").unwrap();
        let mut copy = Copy::new(&logs, &place);
        copy.take(&written("a", "one\u{1b}", "s=1;i=1"));
        copy.take(&written("gone", "x", "s=1;i=2"));
        copy.flush();
        let text = fs::read_to_string(logs.join("a.log")).unwrap();
        assert_eq!(text, "1970-01-01 00:00:00 agent   info    one\\u{1b}\n");
        assert!(!logs.join("gone.log").exists());
        assert_eq!(Copy::new(&logs, &place).cursor.as_deref(), Some("s=1;i=2"));
        fs::write(&place, "--file=/etc/shadow").unwrap();
        assert_eq!(Copy::new(&logs, &place).cursor, None);
    }

    #[test]
    fn a_copy_is_bounded_and_cut_between_lines_and_a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        let line = format!("{}\n", "x".repeat(99));
        let times = usize::try_from(FILE_MAX).unwrap() / line.len() + 1;
        fs::write(&path, line.repeat(times)).unwrap();
        append(&path, "last\n").unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.len() <= usize::try_from(FILE_MAX).unwrap() / 2 + 5);
        assert!(text.starts_with(&line) && text.ends_with("x\nlast\n"));
        let link = dir.path().join("b.log");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(append(&link, "no").is_err());
    }
}
