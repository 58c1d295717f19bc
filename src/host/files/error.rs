//! Why a file was not touched.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::Owner;

/// Why a file was not touched.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// There is a symbolic link on the way.
    #[error("{path}: a symbolic link is in the way: flock follows none here; remove it, or bind-mount the real directory in its place", path = path.display())]
    Symlink {
        /// What was to be opened.
        path: PathBuf,
    },
    /// It is of another kind.
    #[error("{path}: it is a {found}, should be a {wanted}: move it away", path = path.display())]
    Kind {
        /// The object.
        path: PathBuf,
        /// What it is.
        found: &'static str,
        /// What it should be.
        wanted: &'static str,
    },
    /// Somebody else owns it.
    #[error("{path}: it belongs to {found}, should belong to {wanted}: find out who made it, then move it away or run chown {wanted_ids} on it", path = path.display())]
    Owner {
        /// The object.
        path: PathBuf,
        /// Its owner, by name where there is one.
        found: String,
        /// Who should own it.
        wanted: String,
        /// The same, as numbers.
        wanted_ids: Owner,
    },
    /// It has a second name, somewhere else.
    #[error("{path}: it has {links} names (hard links): remove the others", path = path.display())]
    Links {
        /// The object.
        path: PathBuf,
        /// How many.
        links: u64,
    },
    /// Others than its owner may write to it, or read it.
    #[error("{path}: its mode is {mode:04o}: {why}: chmod {remedy}", path = path.display())]
    Mode {
        /// The object.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// What must not be.
        why: &'static str,
        /// The argument of chmod that mends it.
        remedy: &'static str,
    },
    /// More than anything of flock's has.
    #[error("{path}: it is larger than {limit} bytes", path = path.display())]
    Size {
        /// The object.
        path: PathBuf,
        /// The bound.
        limit: u64,
    },
    /// A name that could lead elsewhere.
    #[error("{path}: not a plain path below its directory", path = path.display())]
    Name {
        /// What was asked for.
        path: PathBuf,
    },
    /// The system refused.
    #[error("{step} {path}: {source}", path = path.display())]
    System {
        /// What was being done.
        step: &'static str,
        /// The object.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The system refused.
pub(super) fn system(step: &'static str, path: &Path, error: Errno) -> FilesError {
    FilesError::System { step, path: path.into(), source: error.into() }
}
