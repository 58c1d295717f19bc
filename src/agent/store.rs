//! A task's folder and its result file, below the agent's own directory.
//!
//! Names come from [`TaskId`], which allows nothing that means something in a path.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use crate::bus::message::{TaskId, TaskResult};
use crate::names::AgentId;

/// No result file is larger: six bytes for each byte of the largest output would be.
const RESULT_MAX: u64 = 64 * 1024 * 1024;

/// The agent's directory in the shared tree.
#[derive(Clone, Debug)]
pub struct Store {
    home: PathBuf,
}

impl Store {
    /// The directory of `id` below the shared tree.
    #[must_use]
    pub fn new(shared: &Path, id: &AgentId) -> Self {
        Self { home: shared.join("agents").join(id.as_str()) }
    }

    /// The task's own folder, in which its command runs. It is kept: a second attempt finds what the
    /// first one left.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn task_dir(&self, task: &TaskId) -> io::Result<PathBuf> {
        let dir = self.home.join("tasks").join(task.as_str());
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    /// Where the task's result lies.
    #[must_use]
    pub fn result_path(&self, task: &str) -> PathBuf {
        self.home.join("results").join(format!("{task}.json"))
    }

    /// Writes a result so that a reader sees all of it or nothing, also after a power cut.
    ///
    /// # Errors
    /// When the disk is full or the directory may not be written.
    pub fn save(&self, task: &TaskId, result: &TaskResult) -> io::Result<PathBuf> {
        let path = self.result_path(task.as_str());
        let dir = self.home.join("results");
        fs::create_dir_all(&dir)?;
        let temp = dir.join(format!(".{task}.new"));
        let mut file = File::create(&temp)?;
        file.write_all(serde_json::to_string_pretty(result)?.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        fs::rename(&temp, &path)?;
        File::open(&dir)?.sync_all()?;
        Ok(path)
    }

    /// The result that an earlier attempt left, if it is whole.
    #[must_use]
    pub fn load(&self, task: &TaskId) -> Option<TaskResult> {
        let file = File::open(self.result_path(task.as_str())).ok()?;
        let mut text = String::new();
        file.take(RESULT_MAX).read_to_string(&mut text).ok()?;
        let result: TaskResult = serde_json::from_str(&text).ok()?;
        (result.task == task.as_str()).then_some(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_found_again_and_a_damaged_one_is_not() {
        let temp = tempfile::tempdir().unwrap();
        let store = Store::new(temp.path(), &AgentId::parse("a").unwrap());
        let task = TaskId::parse("t1").unwrap();
        assert_eq!(store.load(&task), None);
        let result: TaskResult = serde_json::from_str(r#"{"task":"t1","output":"x"}"#).unwrap();
        let path = store.save(&task, &result).unwrap();
        assert_eq!(path, temp.path().join("agents/a/results/t1.json"));
        assert_eq!(store.load(&task), Some(result.clone()));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no rest is left");
        assert!(store.save(&task, &result).is_ok(), "a second attempt replaces it");
        fs::write(&path, "{\"task\":\"t1\"").unwrap();
        assert_eq!(store.load(&task), None);
        fs::write(&path, "{\"task\":\"other\"}").unwrap();
        assert_eq!(store.load(&task), None);
    }
}
