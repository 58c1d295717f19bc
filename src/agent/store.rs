//! A task's folder and its result file, below the agent's own directory.
//!
//! Names come from [`TaskId`], which allows nothing that means something in a path.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::bus::message::{TaskId, TaskResult};
use crate::names::AgentId;

/// What a result says besides the output, at most.
const FRAME: u64 = 64 * 1024;
/// `O_NOFOLLOW` of this system.
const NO_FOLLOW: i32 = nix::fcntl::OFlag::O_NOFOLLOW.bits();

/// The agent's directory in the shared tree.
#[derive(Clone, Debug)]
pub struct Store {
    home: PathBuf,
    /// No result file is larger.
    result_max: u64,
}

impl Store {
    /// The directory of `id` below the shared tree.
    #[must_use]
    pub fn new(shared: &Path, id: &AgentId, output_limit: usize) -> Self {
        // As JSON, a byte of output can become six.
        let result_max = FRAME.saturating_add(6 * output_limit as u64);
        Self { home: shared.join("agents").join(id.as_str()), result_max }
    }

    /// The agent's own directory.
    #[must_use]
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// The task's own folder, in which its command runs. It is kept: a second attempt finds what the
    /// first one left.
    ///
    /// # Errors
    /// When it cannot be made, or a command has put something else in its place.
    pub fn task_dir(&self, task: &TaskId) -> io::Result<PathBuf> {
        let all = self.home.join("tasks");
        let dir = all.join(task.as_str());
        folder(&all)?;
        folder(&dir)?;
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
        folder(&dir)?;
        let temp = dir.join(format!(".{task}.new"));
        let written = write(&temp, serde_json::to_string_pretty(result)?.as_bytes())
            .and_then(|()| fs::rename(&temp, &path));
        if let Err(e) = written {
            // What a full disk left of it would only take room.
            let _ = fs::remove_file(&temp);
            return Err(e);
        }
        File::open(&dir)?.sync_all()?;
        Ok(path)
    }

    /// The result that an earlier attempt left, if it is whole.
    #[must_use]
    pub fn load(&self, task: &TaskId) -> Option<TaskResult> {
        // A command could have put a pipe there, on which opening would wait for ever.
        let path = self.result_path(task.as_str());
        fs::symlink_metadata(&path).ok().filter(|is| is.is_file())?;
        let file = File::open(path).ok()?;
        let mut text = String::new();
        file.take(self.result_max).read_to_string(&mut text).ok()?;
        let result: TaskResult = serde_json::from_str(&text).ok()?;
        (result.task == task.as_str()).then_some(result)
    }

    /// Removes the oldest folders and the oldest results until `keep` of each are left. Those of tasks
    /// in `running` stay in any case. Says what could not be removed.
    pub fn prune(&self, keep: usize, running: &BTreeSet<String>) -> Vec<String> {
        let mut trouble = Vec::new();
        for (folder, result) in [("tasks", false), ("results", true)] {
            let folder = self.home.join(folder);
            let mut found = aged(&folder, result);
            let surplus = found.len().saturating_sub(keep);
            found.sort();
            for (_, task, path) in found.into_iter().take(surplus) {
                if running.contains(&task) {
                    continue;
                }
                // Neither follows a link that a command has put there.
                let removed = if result { fs::remove_file(&path) } else { remove_folder(&path) };
                match removed {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => {
                        trouble.push(format!("{}: {e}", path.display()));
                    }
                    _ => {}
                }
            }
        }
        trouble
    }
}

/// Makes a folder if it is not there. What lies there under its name must be a folder itself: a link
/// would take what is written somewhere else.
fn folder(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(is) if is.is_dir() => Ok(()),
        Ok(_) => {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Err(io::Error::other(format!("{name} is no folder; something has replaced it")))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => fs::create_dir(path),
        Err(e) => Err(e),
    }
}

/// Writes a new file to the disk itself.
fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file =
        options.write(true).create(true).truncate(true).custom_flags(NO_FOLLOW).open(path)?;
    file.write_all(text)?;
    file.write_all(b"\n")?;
    file.sync_all()
}

/// What lies in a folder, with its age and its task. Only what flock-agent itself makes counts.
fn aged(folder: &Path, result: bool) -> Vec<(SystemTime, String, PathBuf)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let task = if result { name.strip_suffix(".json") } else { Some(name.as_str()) };
        let Some(task) = task.and_then(|task| TaskId::parse(task).ok()) else { continue };
        let Ok(is) = entry.metadata() else { continue };
        let age = is.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        found.push((age, task.to_string(), entry.path()));
    }
    found
}

fn remove_folder(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path)?.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The store of an agent whose directory is there, as flock makes it.
    fn store(shared: &Path) -> Store {
        fs::create_dir_all(shared.join("agents/a")).unwrap();
        Store::new(shared, &AgentId::parse("a").unwrap(), 1000)
    }

    fn result(task: &str) -> TaskResult {
        serde_json::from_str(&format!("{{\"task\":\"{task}\"}}")).unwrap()
    }

    #[test]
    fn a_folder_that_was_replaced_is_an_error_and_nothing_goes_through_it() {
        let temp = tempfile::tempdir().unwrap();
        let (store, task) = (store(temp.path()), TaskId::parse("t").unwrap());
        let elsewhere = temp.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        for name in ["tasks", "results"] {
            std::os::unix::fs::symlink(&elsewhere, store.home().join(name)).unwrap();
        }
        assert!(store.task_dir(&task).unwrap_err().to_string().contains("replaced"));
        assert!(store.save(&task, &result("t")).unwrap_err().to_string().contains("replaced"));
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
        fs::remove_file(store.home().join("results")).unwrap();
        fs::create_dir(store.home().join("results")).unwrap();
        std::os::unix::fs::symlink(elsewhere.join("x"), store.home().join("results/.t.new"))
            .unwrap();
        assert!(store.save(&task, &result("t")).is_err(), "the name of the new file is a link");
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
        nix::unistd::mkfifo(&store.result_path("t"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(store.load(&task), None, "and does not wait for the pipe");
    }

    #[test]
    fn the_oldest_go_and_those_that_run_stay() {
        let temp = tempfile::tempdir().unwrap();
        let store = store(temp.path());
        for n in 0..6 {
            let task = TaskId::parse(&format!("t{n}")).unwrap();
            let dir = store.task_dir(&task).unwrap();
            fs::create_dir(dir.join("deep")).unwrap();
            fs::write(dir.join("deep/file"), "x").unwrap();
            let path = store.save(&task, &result(&format!("t{n}"))).unwrap();
            // Age is by time, not by name: t5 is the oldest.
            let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1000 - n);
            for path in [&dir, &path] {
                File::open(path).unwrap().set_modified(at).unwrap();
            }
        }
        fs::write(store.home().join("results/notes.txt"), "x").unwrap();
        let running = BTreeSet::from(["t5".to_owned()]);
        assert_eq!(store.prune(3, &running), [""; 0]);
        let names = |folder: &str| {
            let entries = fs::read_dir(store.home().join(folder)).unwrap();
            let mut names: Vec<_> =
                entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        assert_eq!(names("tasks"), ["t0", "t1", "t2", "t5"]);
        assert_eq!(names("results"), ["notes.txt", "t0.json", "t1.json", "t2.json", "t5.json"]);
        // A link in the place of a folder is removed, not what it leads to.
        let elsewhere = temp.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        fs::write(elsewhere.join("kept"), "x").unwrap();
        std::os::unix::fs::symlink(&elsewhere, store.home().join("tasks/link")).unwrap();
        store.prune(1, &BTreeSet::new());
        assert!(elsewhere.join("kept").exists());
        assert_eq!(names("tasks").len(), 1);
    }

    #[test]
    fn a_result_is_found_again_and_a_damaged_one_is_not() {
        let temp = tempfile::tempdir().unwrap();
        let store = store(temp.path());
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
