//! How an agent ended: the record that the handle, `status` and `halt` read.
//!
//! `/run/flock/failed/<id>.json` exists while an agent's last end of this boot was a failure;
//! `/var/lib/flock/state/<id>.json` holds the last end of any kind.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::names::{AgentId, RUN_DIR, STATE_DIR};
use crate::status::facts::Facts;
use crate::status::reason::reason;

/// How an agent ended, once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// The kind of end.
    pub kind: Kind,
    /// Why, in words.
    pub reason: String,
    /// systemd's own word; empty when no process ever ran.
    pub result: String,
    /// Exit status or signal number of the main process.
    pub exit_status: i32,
    /// Restarts before this end.
    pub restarts: u32,
    /// The start that ended; empty when there was none.
    pub invocation: String,
    /// When it was recorded.
    pub at: Timestamp,
}

/// The kinds of end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Exit status 0.
    Finished,
    /// An error, or too many restarts.
    Failed,
    /// Somebody asked for it.
    Stopped,
}

/// Why a record could not be written or removed.
#[derive(Debug, thiserror::Error)]
#[error("record how {agent} ended in {}: {cause}", path.display())]
pub struct RecordError {
    /// Whose record.
    agent: AgentId,
    /// Which file.
    path: PathBuf,
    /// What the system said.
    cause: io::Error,
}

impl Ending {
    /// The end that these facts describe.
    #[must_use]
    pub fn of(kind: Kind, facts: &Facts) -> Self {
        let reason = match kind {
            Kind::Failed => reason(facts),
            Kind::Finished => "exit status 0".to_owned(),
            Kind::Stopped => "stopped on request".to_owned(),
        };
        Self {
            kind,
            reason,
            result: facts.result.clone(),
            exit_status: facts.exit_status,
            restarts: facts.restarts,
            invocation: facts.invocation.clone(),
            at: Timestamp::now(),
        }
    }

    /// The agent could not be started at all.
    #[must_use]
    pub fn refused(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), ..Self::of(Kind::Failed, &Facts::default()) }
    }

    #[cfg(test)]
    pub(crate) fn finished_for_test() -> Self {
        Self::of(Kind::Finished, &Facts::default())
    }
}

/// Where the records lie. Tests use another root.
#[derive(Clone, Debug)]
pub struct Records {
    failed: PathBuf,
    last: PathBuf,
}

impl Default for Records {
    fn default() -> Self {
        Self { failed: Path::new(RUN_DIR).join("failed"), last: Path::new(STATE_DIR).join("state") }
    }
}

impl Records {
    /// Records below another directory.
    #[must_use]
    pub fn below(dir: &Path) -> Self {
        Self { failed: dir.join("failed"), last: dir.join("state") }
    }

    /// Why the agent failed, while that is its last end in this boot.
    #[must_use]
    pub fn failed(&self, agent: &AgentId) -> Option<Ending> {
        read(&file(&self.failed, agent))
    }

    /// How the agent last ended.
    #[must_use]
    pub fn last(&self, agent: &AgentId) -> Option<Ending> {
        read(&file(&self.last, agent))
    }

    /// Records an end: the whole new record stands on disk, or the old one does.
    ///
    /// # Errors
    /// When a directory or a file cannot be written.
    pub fn save(&self, agent: &AgentId, ending: &Ending) -> Result<(), RecordError> {
        write(&self.last, agent, ending)?;
        match ending.kind {
            Kind::Failed => write(&self.failed, agent, ending),
            Kind::Finished | Kind::Stopped => self.forgive(agent),
        }
    }

    /// The agent's last end is no failure any more: it runs again, or somebody stopped it.
    ///
    /// # Errors
    /// When the file exists and cannot be removed.
    pub fn forgive(&self, agent: &AgentId) -> Result<(), RecordError> {
        let path = file(&self.failed, agent);
        match fs::remove_file(&path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                Err(RecordError { agent: agent.clone(), path, cause })
            }
            _ => Ok(()),
        }
    }

    /// Forgets agents that are none of these.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn forget_others(&self, keep: &[AgentId]) -> Result<(), RecordError> {
        for dir in [&self.failed, &self.last] {
            let Ok(entries) = fs::read_dir(dir) else { continue };
            for path in entries.flatten().map(|entry| entry.path()) {
                let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
                let Ok(agent) = AgentId::parse(stem) else { continue };
                if keep.contains(&agent) {
                    continue;
                }
                match fs::remove_file(&path) {
                    Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                        return Err(RecordError { agent, path, cause });
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

fn file(dir: &Path, agent: &AgentId) -> PathBuf {
    dir.join(format!("{agent}.json"))
}

/// A record that is missing or torn counts as none: it only explains, it decides nothing.
fn read(path: &Path) -> Option<Ending> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn write(dir: &Path, agent: &AgentId, ending: &Ending) -> Result<(), RecordError> {
    let path = file(dir, agent);
    let put = || {
        let mut text = serde_json::to_vec(ending)?;
        text.push(b'\n');
        fs::DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
        replace(&path, &text, 0o644)
    };
    put().map_err(|cause| RecordError { agent: agent.clone(), path: path.clone(), cause })
}

/// Writes a small file of flockd's own state as a whole: the new text stands on disk, or the old one
/// does. The directory must be one that root alone can write.
pub(crate) fn replace(path: &Path, text: &[u8], mode: u32) -> io::Result<()> {
    let next = path.with_extension("new");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&next)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&next, path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_configured_no_more_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::below(dir.path());
        let [stays, goes] = ["agent-1", "agent-2"].map(|id| AgentId::parse(id).unwrap());
        records.forget_others(&[]).unwrap();
        for id in [&stays, &goes] {
            records.save(id, &Ending::refused("x")).unwrap();
        }
        fs::write(dir.path().join("state/.others"), "x").unwrap();
        records.forget_others(std::slice::from_ref(&stays)).unwrap();
        assert!(records.failed(&stays).is_some() && records.last(&stays).is_some());
        assert!(records.failed(&goes).is_none() && records.last(&goes).is_none());
        assert!(dir.path().join("state/.others").exists());
    }

    #[test]
    fn a_failure_is_kept_until_it_is_forgiven() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::below(dir.path());
        let id = AgentId::parse("agent-1").unwrap();
        assert_eq!(records.failed(&id), None);
        let refused = Ending::refused("no such user");
        records.save(&id, &refused).unwrap();
        assert_eq!(records.failed(&id), Some(refused.clone()));
        assert_eq!(records.last(&id), Some(refused.clone()));
        records.forgive(&id).unwrap();
        records.forgive(&id).unwrap();
        assert_eq!(records.failed(&id), None);
        assert_eq!(records.last(&id), Some(refused));
        records.save(&id, &Ending::refused("again")).unwrap();
        records.save(&id, &Ending::finished_for_test()).unwrap();
        assert_eq!(records.failed(&id), None);
        assert_eq!(records.last(&id).unwrap().kind, Kind::Finished);
    }

    #[test]
    fn a_torn_record_counts_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::below(dir.path());
        let id = AgentId::parse("agent-1").unwrap();
        records.save(&id, &Ending::refused("x")).unwrap();
        fs::write(dir.path().join("failed/agent-1.json"), b"{\"kind\":").unwrap();
        assert_eq!(records.failed(&id), None);
    }
}
