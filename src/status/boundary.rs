//! What the last measurement of the running agents found: a file that `flockctl verify --enforce`
//! writes and that flockd shows.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::names::{AgentId, RUN_DIR};

/// No record is larger.
const RECORD_MAX: u64 = 16 << 20;

/// One measurement of all agents that ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// When it began.
    pub at: Timestamp,
    /// What was found of each.
    pub agents: BTreeMap<AgentId, Standing>,
}

/// What was found of one agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Promises that were measured and held.
    pub held: usize,
    /// Promises that did not hold, one line each.
    pub violations: Vec<String>,
    /// What could not be measured, one line each.
    pub unknown: Vec<String>,
    /// What was done about it: `frozen`, `stopped`, or why neither could be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done: Option<String>,
}

impl Record {
    /// Where it lies. Gone after a boot, as the agents are.
    #[must_use]
    pub fn place() -> PathBuf {
        Path::new(RUN_DIR).join("verify.json")
    }

    /// The last one; `None` when nothing was measured yet.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn load(path: &Path) -> io::Result<Option<Self>> {
        match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
            Ok(metadata) if metadata.len() > RECORD_MAX => {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            Ok(_) => {}
        }
        Ok(Some(serde_json::from_slice(&fs::read(path)?)?))
    }

    /// Replaces the last one as a whole.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let beside = path.with_extension("new");
        let _ = fs::remove_file(&beside);
        let file = fs::File::options().write(true).create_new(true).mode(0o600).open(&beside)?;
        serde_json::to_writer(&file, self)?;
        fs::rename(beside, path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_read_again_and_half_of_it_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("verify.json");
        assert_eq!(Record::load(&path).unwrap(), None);
        let standing = Standing { held: 3, violations: vec!["x".into()], ..Standing::default() };
        let agents = BTreeMap::from([(AgentId::parse("a").unwrap(), standing)]);
        let record = Record { at: Timestamp::UNIX_EPOCH, agents };
        record.save(&path).unwrap();
        record.save(&path).unwrap();
        assert_eq!(Record::load(&path).unwrap(), Some(record));
        let text = fs::read(&path).unwrap();
        fs::write(&path, &text[..text.len() / 2]).unwrap();
        Record::load(&path).unwrap_err();
    }
}
