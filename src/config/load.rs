//! Reads the configuration from files that nobody but the operator can have written.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, openat, statat};
use rustix::io::Errno;

use super::Config;
use super::check;
use super::cite::{Fault, Faults, Report, Resolve};
use crate::names::{AgentId, CONFIG_FILE};

/// The largest file, all files together, and the most files.
const FILE_MAX: u64 = 1 << 20;
const TOTAL_MAX: usize = 64 << 20;
const FILES_MAX: usize = 10_000;

/// Where an agent is defined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// The line, from 1.
    pub line: usize,
}

/// Loads `path` and the files of `agents.d` beside it.
///
/// # Errors
/// When a file cannot be read or must not be trusted, or when anything in any of them is wrong.
/// All faults of all files come back at once.
pub fn load(path: &Path) -> Result<Config, Faults> {
    let (files, refused) = gather(path);
    let config = compile(&files, refused, follow)?;
    Ok(Config { file: Some(path.to_owned()), ..config })
}

/// Where a path leads today.
fn follow(path: &Path) -> Option<PathBuf> {
    std::fs::canonicalize(path).ok()
}

/// Checks texts as if they were files; the first is the main one. Touches no file.
///
/// # Errors
/// All faults of all texts.
pub fn parse(files: &[(PathBuf, String)]) -> Result<Config, Faults> {
    compile(files, Vec::new(), |_| None)
}

/// Checks texts as if they were files of this host; what they name is looked at, as in [`load`].
///
/// # Errors
/// All faults of all texts.
pub fn parse_here(files: &[(PathBuf, String)]) -> Result<Config, Faults> {
    compile(files, Vec::new(), follow)
}

/// The texts that [`load`] would check.
///
/// # Errors
/// When a file cannot be read or must not be trusted.
pub fn read(path: &Path) -> Result<Vec<(PathBuf, String)>, Faults> {
    let (files, list) = gather(path);
    let count = list.len();
    if count == 0 { Ok(files) } else { Err(Faults { list, count }) }
}

/// Where each agent is defined. Faults do not matter: what can be found is found.
#[must_use]
pub fn places(files: &[(PathBuf, String)]) -> BTreeMap<AgentId, Place> {
    let place = |(file, line): (usize, usize)| Place { path: files[file].0.clone(), line };
    check::places(files).into_iter().map(|(id, at)| (id, place(at))).collect()
}

fn compile(
    files: &[(PathBuf, String)],
    refused: Vec<Fault>,
    resolve: Resolve,
) -> Result<Config, Faults> {
    let mut report = Report::new(files, resolve);
    let config = check::config(files, refused.is_empty(), &mut report);
    match (report.finish(refused), config) {
        (None, Some(config)) => Ok(config),
        (Some(faults), _) => Err(faults),
        // A Config is withheld only when a fault was reported.
        (None, None) => Err(Faults { list: Vec::new(), count: 0 }),
    }
}

/// The texts that were read and the files that were refused. In the place of a main file that was
/// refused stands an empty text.
type Gathered = (Vec<(PathBuf, String)>, Vec<Fault>);

/// Reads the main file and those of `agents.d` beside it.
fn gather(path: &Path) -> Gathered {
    let trust = Trust::of(path);
    let mut texts = vec![(path.to_owned(), String::new())];
    let mut faults = Vec::new();
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    match open_folder(CWD, folder, folder.as_os_str(), &trust) {
        Err(fault) => faults.push(fault),
        Ok(folder_fd) => {
            let name = path.file_name().unwrap_or(OsStr::new("."));
            match read_file(&folder_fd, name, &trust) {
                Ok(text) => texts[0].1 = text,
                Err(why) => faults.push(Fault::of_file(path, why)),
            }
            more(&folder_fd, &folder.join("agents.d"), &trust, &mut texts, &mut faults);
        }
    }
    (texts, faults)
}

/// Reads the files of `agents.d`, in the order of their names. That there is none is no fault.
fn more(
    parent: &OwnedFd,
    path: &Path,
    trust: &Trust,
    texts: &mut Vec<(PathBuf, String)>,
    faults: &mut Vec<Fault>,
) {
    let name = OsStr::new("agents.d");
    if statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).is_err_and(|error| error == Errno::NOENT) {
        return;
    }
    let folder = open_folder(parent, path, name, trust);
    let names = folder.and_then(|folder| {
        let names = names(&folder).map_err(|why| Fault::of_file(path, why))?;
        Ok((folder, names))
    });
    let (folder, names) = match names {
        Ok(found) => found,
        Err(fault) => return faults.push(fault),
    };
    let mut total = texts[0].1.len();
    for name in names {
        let path = path.join(&name);
        match read_file(&folder, &name, trust) {
            Ok(text) if total + text.len() > TOTAL_MAX => {
                let why = format!("all files together are larger than {} MiB", TOTAL_MAX >> 20);
                return faults.push(Fault::of_file(&path, why));
            }
            Ok(text) => {
                total += text.len();
                texts.push((path, text));
            }
            Err(why) => faults.push(Fault::of_file(&path, why)),
        }
    }
}

/// The names that end in `.toml`, sorted. What an editor hides with a dot in front is left out.
fn names(folder: &OwnedFd) -> Result<Vec<OsString>, String> {
    let failed = |error: Errno| format!("list the directory: {error}");
    let mut names = Vec::new();
    for entry in Dir::read_from(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name().to_bytes().to_vec();
        if name.ends_with(b".toml") && !name.starts_with(b".") {
            names.push(OsString::from_vec(name));
        }
        if names.len() > FILES_MAX {
            return Err(format!("more than {FILES_MAX} files"));
        }
    }
    names.sort();
    Ok(names)
}

/// Whose files are believed.
struct Trust {
    /// The user who may own the files besides root: whoever tries out a file of their own.
    user: Option<u32>,
}

impl Trust {
    /// The installed configuration must be root's. A file that somebody names may be their own.
    fn of(path: &Path) -> Self {
        let installed = path == Path::new(CONFIG_FILE);
        Self { user: (!installed).then(|| rustix::process::geteuid().as_raw()) }
    }

    /// Why this file or directory is not believed: only its owner may be able to change it.
    fn refuses(&self, stat: &Stat) -> Option<String> {
        if stat.st_uid != 0 && Some(stat.st_uid) != self.user {
            return Some(format!("user {} owns it: it must be root's (chown root)", stat.st_uid));
        }
        let mode = stat.st_mode & 0o7777;
        // In a sticky directory such as /tmp nobody can replace what is another's.
        let sticky = self.user.is_some()
            && mode & 0o1000 != 0
            && FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let who = match mode & 0o022 {
            0 => return None,
            _ if sticky => return None,
            0o020 => "its group",
            _ => "everybody",
        };
        Some(format!("{who} can write it (mode {mode:04o}): chmod go-w"))
    }
}

/// Opens a directory that can be believed. `path` is its name in messages.
fn open_folder(
    parent: impl AsFd,
    path: &Path,
    name: &OsStr,
    trust: &Trust,
) -> Result<OwnedFd, Fault> {
    let refuse = |why: String| Fault::of_file(path, why);
    let mut flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // A person's own directory may lie behind a link; flock's may not.
    if trust.user.is_none() || name == "agents.d" {
        flags |= OFlags::NOFOLLOW;
    }
    let folder = openat(parent, name, flags, Mode::empty()).map_err(|error| {
        refuse(match error {
            Errno::LOOP | Errno::NOTDIR => "it is not a directory, or a symbolic link".to_owned(),
            error => open_failed(error),
        })
    })?;
    let stat = fstat(&folder).map_err(|error| refuse(format!("read its owner: {error}")))?;
    match trust.refuses(&stat) {
        Some(why) => Err(refuse(why)),
        None => Ok(folder),
    }
}

fn open_failed(error: Errno) -> String {
    match error {
        Errno::NOENT => "there is no such file or directory".to_owned(),
        Errno::ACCESS => "permission denied: this needs root, or the group flock".to_owned(),
        error => format!("open it: {error}"),
    }
}

/// Reads a file that can be believed.
fn read_file(folder: &OwnedFd, name: &OsStr, trust: &Trust) -> Result<String, String> {
    // NONBLOCK: a pipe somebody put there must not hold us up.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(folder, name, flags | OFlags::NOCTTY, Mode::empty());
    let file = file.map_err(|error| match error {
        Errno::LOOP => "it is a symbolic link: the file itself must stand here".to_owned(),
        error => open_failed(error),
    })?;
    let stat = fstat(&file).map_err(|error| format!("read its owner: {error}"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err("it is not a regular file".to_owned());
    }
    if let Some(why) = trust.refuses(&stat) {
        return Err(why);
    }
    let mut bytes = Vec::new();
    let read = File::from(file).take(FILE_MAX + 1).read_to_end(&mut bytes);
    match read {
        Err(error) => Err(format!("read it: {error}")),
        Ok(_) if bytes.len() as u64 > FILE_MAX => {
            Err(format!("it is larger than {} MiB", FILE_MAX >> 20))
        }
        Ok(_) => decode(bytes),
    }
}

/// UTF-8 without a byte order mark.
fn decode(bytes: Vec<u8>) -> Result<String, String> {
    if bytes.starts_with(b"\xef\xbb\xbf") {
        return Err("it begins with a byte order mark: save it as plain UTF-8".to_owned());
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..good].iter().filter(|&&byte| byte == b'\n').count() + 1;
        format!("line {line} is not UTF-8")
    })
}
