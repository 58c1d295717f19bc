//! Files of `agents.d`: one made, one removed. Nothing that is there is ever overwritten.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use rustix::fd::OwnedFd;
use rustix::fs::{
    AtFlags, Mode, OFlags, RenameFlags, fchmod, fsync, openat, renameat_with, unlinkat,
};

use crate::fail::{self, Point};
use crate::names::AgentId;

/// Why a file was not made or removed.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// The name is taken.
    #[error("write {}: the file is there already: edit it, or remove it first", .0.display())]
    Exists(PathBuf),
    /// The system refused.
    #[error("{step} {}: {cause}", path.display())]
    System {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
}

/// The file of its own that an agent gets, beside this main file.
#[must_use]
pub fn file_of(main: &Path, id: &AgentId) -> PathBuf {
    main.with_file_name("agents.d").join(format!("{id}.toml"))
}

/// Makes a file with mode 0640, whole or not at all; its directory too, if it is missing. After
/// return it survives a power cut. `group` is who may read it.
///
/// # Errors
/// When the name is taken, or the system refuses. Nothing is changed then.
pub fn create(path: &Path, text: &str, group: Option<u32>) -> Result<(), EditError> {
    let system = |step, path: &Path, cause: io::Error| EditError::System {
        step,
        path: path.to_owned(),
        cause,
    };
    let folder = path.parent().unwrap_or(Path::new("/"));
    let name = path.file_name().unwrap_or_default();
    let handle = open_folder(folder, group).map_err(|cause| system("open", folder, cause))?;
    let temporary = format!(".{}.{}", name.to_string_lossy(), std::process::id());
    fill(&handle, &temporary, text, group).map_err(|cause| system("write", path, cause))?;
    fail::at(Point::ConfigFileFilled);
    let moved = renameat_with(&handle, &temporary, &handle, name, RenameFlags::NOREPLACE);
    if let Err(error) = moved {
        let _ = unlinkat(&handle, &temporary, AtFlags::empty());
        return Err(match error {
            rustix::io::Errno::EXIST => EditError::Exists(path.to_owned()),
            error => system("write", path, error.into()),
        });
    }
    fail::at(Point::ConfigFileMade);
    fsync(&handle).map_err(|error| system("flush", folder, error.into()))
}

/// Removes what runs left beside this file that were broken off while they made it. Only one at a
/// time may make or sweep files here.
///
/// # Errors
/// When the system refuses.
pub fn sweep(path: &Path) -> Result<(), EditError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let fail = |cause| EditError::System { step: "list", path: folder.to_owned(), cause };
    let head = format!(".{}.", path.file_name().unwrap_or_default().to_string_lossy());
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(fail)?,
    };
    for entry in entries {
        let name = entry.map_err(fail)?.file_name().to_string_lossy().into_owned();
        let number = name.strip_prefix(&head).unwrap_or_default();
        if !number.is_empty() && number.bytes().all(|c| c.is_ascii_digit()) {
            remove(&folder.join(name))?;
        }
    }
    Ok(())
}

/// Removes a file; that it was removed survives a power cut.
///
/// # Errors
/// When the system refuses.
pub fn remove(path: &Path) -> Result<(), EditError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let gone = std::fs::remove_file(path);
    fail::at(Point::ConfigFileRemoved);
    let gone = gone.and_then(|()| File::open(folder)?.sync_all());
    gone.map_err(|cause| EditError::System { step: "remove", path: path.to_owned(), cause })
}

/// Opens the directory, and makes it first if it is missing.
fn open_folder(folder: &Path, group: Option<u32>) -> io::Result<OwnedFd> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = std::fs::DirBuilder::new().mode(0o750).create(folder);
    match made {
        Ok(()) => std::os::unix::fs::lchown(folder, None, group)?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(rustix::fs::CWD, folder, flags, Mode::empty())?)
}

/// Writes a file of a name that is free.
fn fill(folder: &OwnedFd, name: &str, text: &str, group: Option<u32>) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(openat(folder, name, flags, Mode::RUSR | Mode::WUSR)?);
    let mut all = || {
        file.write_all(text.as_bytes())?;
        std::os::unix::fs::fchown(&file, None, group)?;
        fchmod(&file, Mode::from_raw_mode(0o640))?;
        file.sync_all()
    };
    all().inspect_err(|_| {
        let _ = unlinkat(folder, name, AtFlags::empty());
    })
}
