//! The agents' log files, and how far they have come.
//!
//! `/var/lib/flock/log.state` names a place in the journal and, for each file, its inode and its
//! length when everything up to that place stood in it. It is replaced as a whole after the lines
//! are on disk. What stands in a file behind its length was written by a flockd that did not live to
//! say so: it is cut off at the start, and comes again from the journal. So no line is missing or
//! twice. A file of more than 8 MiB is set aside as `<id>.log.1`; three of these are kept.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::journal::Place;
use crate::names::AgentId;
use crate::status::ending::replace;

/// A file that would grow beyond this is set aside first.
const FILE_MAX: u64 = 8 << 20;
/// So many files that were set aside are kept.
const KEEP: u32 = 3;
/// The access list of a file, as Linux stores it.
const ACCESS_LIST: &str = "system.posix_acl_access";

/// Makes the log file of an agent, with its access list.
type Make = Box<dyn Fn(&AgentId) -> io::Result<()> + Send + Sync>;

/// Why the lines are not in the files; nothing of them counts then.
#[derive(Debug, thiserror::Error)]
#[error("{step} {}: {cause}: see df and dmesg for the file system of /var/lib/flock", path.display())]
pub struct StoreError {
    step: &'static str,
    path: PathBuf,
    cause: io::Error,
}

/// What `log.state` holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    /// Everything up to this entry is in the files.
    cursor: Option<String>,
    /// Whose entry that is.
    anchor: Option<AgentId>,
    /// The files at that place.
    files: BTreeMap<AgentId, Kept>,
}

/// One file at that place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    inode: u64,
    length: u64,
}

/// The files and their state.
pub struct Store {
    dir: PathBuf,
    path: PathBuf,
    state: State,
    make: Make,
    file_max: u64,
}

impl Store {
    /// Opens the state and brings every file back to it.
    ///
    /// # Errors
    /// When a file or the state cannot be read or written.
    pub fn open(dir: &Path, path: &Path, make: Make) -> Result<Self, StoreError> {
        let state = read_state(path)?;
        let (dir, path) = (dir.to_owned(), path.to_owned());
        let mut store = Self { dir, path, state, make, file_max: FILE_MAX };
        store.recover()?;
        Ok(store)
    }

    /// Where reading goes on; `None`: from the oldest entry.
    pub fn place(&self) -> Option<Place> {
        self.state.cursor.as_deref().and_then(Place::parse)
    }

    /// Whether everything up to `place` is in the files.
    pub fn is_at(&self, place: &Place) -> bool {
        self.place().is_some_and(|here| here.is(place))
    }

    /// Whose entry stands at that place.
    pub fn anchor(&self) -> Option<AgentId> {
        self.state.anchor.clone()
    }

    /// Agents that have a log here and are none of these.
    pub fn others(&self, agents: &[AgentId]) -> Vec<AgentId> {
        self.state.files.keys().filter(|id| !agents.contains(id)).cloned().collect()
    }

    /// Those of these agents that have no log here yet.
    pub fn newcomers(&self, agents: &[AgentId]) -> Vec<AgentId> {
        agents.iter().filter(|id| !self.state.files.contains_key(id)).cloned().collect()
    }

    /// Writes these lines, waits until they are on disk, then says that they are.
    ///
    /// # Errors
    /// When they are not: the files are as they were before.
    pub fn take(
        &mut self,
        lines: &BTreeMap<AgentId, String>,
        place: Option<&Place>,
        anchor: &AgentId,
    ) -> Result<(), StoreError> {
        let done = self.append(lines).and_then(|()| {
            self.state.cursor = place.map(|place| place.cursor().to_owned());
            self.state.anchor = Some(anchor.clone());
            self.save()
        });
        if done.is_err() {
            // As after a crash.
            self.state = read_state(&self.path)?;
            self.recover()?;
        }
        done
    }

    /// Begins the log of an agent with an empty file. What is there comes again from the journal.
    ///
    /// # Errors
    /// When it cannot be emptied.
    pub fn begin(&mut self, id: &AgentId) -> Result<(), StoreError> {
        for number in 1..=KEEP {
            let _ = fs::remove_file(self.aside(id, number));
        }
        if let Some(file) = self.file(id)? {
            self.cut(id, &file, 0)?;
            let kept = kept(&file).map_err(fault("read", &self.log(id)))?;
            self.state.files.insert(id.clone(), kept);
        }
        Ok(())
    }

    /// Writes lines and waits until they are on disk; [`Store::save`] makes them count.
    ///
    /// # Errors
    /// When one cannot be written.
    pub fn append(&mut self, lines: &BTreeMap<AgentId, String>) -> Result<(), StoreError> {
        for (id, text) in lines {
            self.append_one(id, text)?;
        }
        Ok(())
    }

    /// Replaces the state as a whole.
    ///
    /// # Errors
    /// When it cannot be written; the old one stands then.
    pub fn save(&self) -> Result<(), StoreError> {
        let fault = fault("write", &self.path);
        let text = serde_json::to_vec(&self.state).map_err(|error| fault(error.into()))?;
        replace(&self.path, &text, 0o600).map_err(fault)
    }

    fn append_one(&mut self, id: &AgentId, text: &str) -> Result<(), StoreError> {
        let Some(mut file) = self.file(id)? else { return Ok(()) };
        let path = self.log(id);
        let fault = fault("write", &path);
        let mut kept = kept(&file).map_err(&fault)?;
        if self.state.files.get(id) != Some(&kept) {
            // Somebody replaced or changed it: what is there stays, our lines begin on a new one.
            end_line(&mut file).map_err(&fault)?;
            kept = self::kept(&file).map_err(&fault)?;
        }
        if kept.length > 0 && kept.length + text.len() as u64 > self.file_max {
            self.rotate(id, &file).map_err(&fault)?;
            let Some(next) = self.file(id)? else { return Ok(()) };
            file = next;
        }
        file.write_all(text.as_bytes()).and_then(|()| file.sync_data()).map_err(&fault)?;
        let kept = self::kept(&file).map_err(&fault)?;
        self.state.files.insert(id.clone(), kept);
        Ok(())
    }

    /// The file of an agent, made if it is missing. `None` when something else stands there, or the
    /// agent is no more: its lines are in the journal.
    fn file(&self, id: &AgentId) -> Result<Option<File>, StoreError> {
        let path = self.log(id);
        let open = || {
            let nofollow = OFlags::NOFOLLOW.bits().cast_signed();
            File::options().read(true).append(true).custom_flags(nofollow).open(&path)
        };
        let opened = open().or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => (self.make)(id).and_then(|()| open()),
            _ => Err(error),
        });
        match opened {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if is_no_file(&error) => {
                tracing::warn!(agent = %id, "write {}: {error}", path.display());
                Ok(None)
            }
            Err(error) => Err(self::fault("open", &path)(error)),
        }
    }

    /// Brings every file back to the state.
    fn recover(&mut self) -> Result<(), StoreError> {
        if self.state == State::default() {
            return Ok(());
        }
        for (id, kept) in self.state.files.clone() {
            match self.recover_one(&id, kept)? {
                Some(now) => self.state.files.insert(id, now),
                None => self.state.files.remove(&id),
            };
        }
        self.save()
    }

    fn recover_one(&self, id: &AgentId, before: Kept) -> Result<Option<Kept>, StoreError> {
        let path = self.log(id);
        let next = self.next(id);
        let fault = fault("recover", &path);
        // Rotation was under way when flockd ended: it is brought to its end.
        if inode(&next) == Some(before.inode) {
            self.set_aside(id, &next).map_err(&fault)?;
        } else {
            let _ = fs::remove_file(&next);
        }
        let Some(mut file) = self.file(id)? else { return Ok(None) };
        let is = kept(&file).map_err(&fault)?;
        if is.inode == before.inode && is.length > before.length {
            self.cut(id, &file, before.length)?;
        } else if is.inode != before.inode && inode(&self.aside(id, 1)) == Some(before.inode) {
            // What is in the new one was not yet said to be there.
            self.cut(id, &file, 0)?;
        } else if is != before {
            // An operator emptied or replaced it.
            end_line(&mut file).map_err(&fault)?;
        }
        kept(&file).map(Some).map_err(fault)
    }

    fn cut(&self, id: &AgentId, file: &File, length: u64) -> Result<(), StoreError> {
        let cut = file.set_len(length).and_then(|()| file.sync_all());
        cut.map_err(fault("shorten", &self.log(id)))
    }

    /// Puts an empty file with the same access list in the place of this one. At no time is the name
    /// without a file, and a crash at any step is seen by where the old inode is.
    fn rotate(&self, id: &AgentId, old: &File) -> io::Result<()> {
        let (path, next) = (self.log(id), self.next(id));
        let _ = fs::remove_file(&next);
        let new = File::options().write(true).create_new(true).mode(0o600).open(&next)?;
        copy_access(old, &new)?;
        new.sync_all()?;
        let here = rustix::fs::CWD;
        rustix::fs::renameat_with(here, &next, here, &path, RenameFlags::EXCHANGE)?;
        self.set_aside(id, &next)
    }

    /// Gives a full file the number 1.
    fn set_aside(&self, id: &AgentId, full: &Path) -> io::Result<()> {
        self.make_room(id, 1)?;
        fs::rename(full, self.aside(id, 1))?;
        File::open(&self.dir)?.sync_all()
    }

    /// Moves what has this number one further; the last one goes.
    fn make_room(&self, id: &AgentId, number: u32) -> io::Result<()> {
        let path = self.aside(id, number);
        if !path.try_exists()? {
            return Ok(());
        }
        if number == KEEP {
            return fs::remove_file(path);
        }
        self.make_room(id, number + 1)?;
        fs::rename(path, self.aside(id, number + 1))
    }

    fn log(&self, id: &AgentId) -> PathBuf {
        self.dir.join(format!("{id}.log"))
    }

    fn next(&self, id: &AgentId) -> PathBuf {
        self.dir.join(format!("{id}.log.new"))
    }

    fn aside(&self, id: &AgentId, number: u32) -> PathBuf {
        self.dir.join(format!("{id}.log.{number}"))
    }
}

fn fault<'a>(step: &'static str, path: &'a Path) -> impl Fn(io::Error) -> StoreError + 'a {
    move |cause| StoreError { step, path: path.to_owned(), cause }
}

/// A state that is missing or no state means that the logs begin anew.
fn read_state(path: &Path) -> Result<State, StoreError> {
    let state: State = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => State::default(),
        Err(error) => return Err(fault("read", path)(error)),
        Ok(text) => serde_json::from_slice(&text).unwrap_or_default(),
    };
    // A cursor that journald did not write is given to no program.
    let good = state.cursor.as_deref().is_none_or(|cursor| Place::parse(cursor).is_some());
    Ok(if good { state } else { State::default() })
}

fn kept(file: &File) -> io::Result<Kept> {
    let stat = file.metadata()?;
    Ok(Kept { inode: stat.ino(), length: stat.len() })
}

fn inode(path: &Path) -> Option<u64> {
    fs::symlink_metadata(path).ok().map(|stat| stat.ino())
}

/// Something that can never be written to, so that waiting helps nobody.
fn is_no_file(error: &io::Error) -> bool {
    let known = [Errno::LOOP, Errno::ISDIR, Errno::NXIO].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|number| known.contains(&number))
}

/// Ends an open line.
fn end_line(file: &mut File) -> io::Result<()> {
    if file.metadata()?.len() == 0 {
        return Ok(());
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    match last {
        [b'\n'] => Ok(()),
        _ => file.write_all(b"\n"),
    }
}

/// A file without a list has none to copy.
fn copy_access(from: &File, to: &File) -> io::Result<()> {
    let mut list = [0_u8; 4096];
    match rustix::fs::fgetxattr(from, ACCESS_LIST, &mut list) {
        Ok(length) => {
            Ok(rustix::fs::fsetxattr(to, ACCESS_LIST, &list[..length], XattrFlags::empty())?)
        }
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests;
