//! The dangerous opens, all of them: whatever root does below a directory goes through here.
//!
//! A path that an agent can write to may change between a check and its use. So nothing here goes
//! by path twice: every object is opened once, with `openat2` and BENEATH, NO_SYMLINKS and
//! NO_MAGICLINKS, and is judged and used by its file descriptor. What is not what it should be (a
//! symbolic link instead of a directory, a file with a second name, another owner) is refused and
//! named, never followed and never repaired.

/// An open directory and what can be done below it.
mod dir;
/// Why a file was not touched.
mod error;
/// One open object, to be judged and used by its descriptor.
mod handle;
/// Files and links that are replaced as a whole.
mod whole;

use std::fmt;
use std::path::Path;

use rustix::io::Errno;

pub use dir::Dir;
pub use error::FilesError;
pub use handle::{Handle, Kind};

use error::system;

type Result<T> = std::result::Result<T, FilesError>;

/// A user and a group by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

impl Owner {
    /// Root, and root's group.
    pub const ROOT: Self = Self { uid: 0, gid: 0 };
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.uid, self.gid)
    }
}

/// The content of a secret that an operator keeps for an agent.
///
/// # Errors
/// When others than root may write it, replace it or read it, when it has a second name, or is
/// larger than `limit`: then it is either no secret, or somebody else decides what it says.
pub fn read_secret(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let bad = || FilesError::Name { path: path.into() };
    let dir = Dir::open_guarded(path.parent().ok_or_else(bad)?)?;
    let missing = || system("open", path, Errno::NOENT);
    let name = Path::new(path.file_name().ok_or_else(bad)?);
    let handle = dir.handle(name)?.ok_or_else(missing)?;
    if handle.kind() == Kind::Link {
        return Err(FilesError::Symlink { path: path.into() });
    }
    handle.expect(Kind::File, Owner { gid: handle.stat.st_gid, ..Owner::ROOT })?;
    handle.expect_owner_writes_alone()?;
    if handle.mode() & 0o004 != 0 {
        return Err(FilesError::Mode {
            path: path.into(),
            mode: handle.mode(),
            why: "every user of this host may read the secret",
            remedy: "o-r",
        });
    }
    handle.read(limit)
}
