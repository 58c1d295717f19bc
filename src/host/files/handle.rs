//! One open object, to be judged and used by its descriptor.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{self as fs, FileType, Mode, OFlags, Stat};

use super::error::system;
use super::{FilesError, Owner, Result};

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Dir,
    /// An ordinary file.
    File,
    /// A symbolic link.
    Link,
    /// A socket, a pipe or a device.
    Other,
}

impl Kind {
    fn of(stat: &Stat) -> Self {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Self::Dir,
            FileType::RegularFile => Self::File,
            FileType::Symlink => Self::Link,
            _ => Self::Other,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Dir => "directory",
            Self::File => "file",
            Self::Link => "symbolic link",
            Self::Other => "socket, pipe or device",
        }
    }
}

/// One object, opened without the right to read or write it: a handle to judge it by.
#[derive(Debug)]
pub struct Handle {
    pub(super) fd: OwnedFd,
    pub(super) path: PathBuf,
    pub(super) stat: Stat,
}

impl Handle {
    /// Where it was found; for messages, never to be opened again.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        Kind::of(&self.stat)
    }

    /// Permission bits with set-user-id, set-group-id and sticky.
    #[must_use]
    pub fn mode(&self) -> u32 {
        self.stat.st_mode & 0o7777
    }

    /// A path that leads to this very object, whatever happens to its name. Valid while the
    /// handle lives, in this process.
    #[must_use]
    pub fn proc_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_fd().as_raw_fd()))
    }

    /// Refuses another kind, another owner, and a file with a second name.
    ///
    /// # Errors
    /// Naming the first of these that is so.
    pub fn expect(&self, kind: Kind, owner: Owner) -> Result<()> {
        let path = self.path.clone();
        if self.kind() != kind {
            return Err(FilesError::Kind { path, found: self.kind().word(), wanted: kind.word() });
        }
        let found = Owner { uid: self.stat.st_uid, gid: self.stat.st_gid };
        if found != owner {
            let (found, wanted) = (names(found), names(owner));
            return Err(FilesError::Owner { path, found, wanted, wanted_ids: owner });
        }
        if kind == Kind::File && self.stat.st_nlink > 1 {
            return Err(FilesError::Links { path, links: self.stat.st_nlink });
        }
        Ok(())
    }

    /// Refuses an object that others than its owner may write to.
    pub(super) fn expect_owner_writes_alone(&self) -> Result<()> {
        match self.mode() & 0o022 {
            0 => Ok(()),
            _ => Err(FilesError::Mode {
                path: self.path.clone(),
                mode: self.mode(),
                why: "others than its owner may write to it",
                remedy: "go-w",
            }),
        }
    }

    /// Opens this very object for use.
    fn reopen(&self, flags: OFlags) -> Result<File> {
        let again = fs::open(self.proc_path(), flags | OFlags::CLOEXEC, Mode::empty());
        again.map(File::from).map_err(|error| system("open", &self.path, error))
    }

    /// Sets the permission bits.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn set_mode(&self, mode: u32) -> Result<()> {
        fs::chmod(self.proc_path(), Mode::from_raw_mode(mode))
            .map_err(|error| system("set the mode of", &self.path, error))
    }

    /// The content, if it is not longer than `limit`.
    pub(super) fn read(&self, limit: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = self.reopen(OFlags::RDONLY)?;
        let fail = |source| FilesError::System { step: "read", path: self.path.clone(), source };
        file.take(limit + 1).read_to_end(&mut bytes).map_err(fail)?;
        if bytes.len() as u64 > limit {
            return Err(FilesError::Size { path: self.path.clone(), limit });
        }
        Ok(bytes)
    }
}

/// An owner for people: names where the user database has them.
pub(super) fn names(owner: Owner) -> String {
    let user = users::get_user_by_uid(owner.uid);
    let group = users::get_group_by_gid(owner.gid);
    let user = user.map_or(owner.uid.to_string(), |u| u.name().to_string_lossy().into_owned());
    let group = group.map_or(owner.gid.to_string(), |g| g.name().to_string_lossy().into_owned());
    format!("{user}:{group}")
}
