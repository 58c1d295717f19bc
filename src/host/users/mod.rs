//! Which Unix user an agent is, and how that is made true.
//!
//! The ledger says which number belongs to which agent, for ever; `systemd-sysusers` makes the
//! accounts, all of them in one process; what it made is read back, because it gives another
//! number without a word when the wanted one is taken.

/// Making, checking and removing accounts.
mod accounts;
/// Who has which number, on disk.
mod ledger;

use std::io;
use std::path::PathBuf;

pub(super) use accounts::LINGER;
pub use accounts::{check, ensure, gid, remove};
pub use ledger::Ledger;

use super::command::CommandError;
use super::files::FilesError;

/// Why the users are not as they must be.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    /// The ledger cannot be trusted.
    #[error("read the ledger of user ids: {path}: {cause}: {remedy}", path = path.display())]
    Ledger {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
        /// What to do.
        remedy: String,
    },
    /// The ledger could not be stored.
    #[error("store the ledger of user ids: {0}")]
    Store(#[from] FilesError),
    /// No number can be given.
    #[error("give agent {agent} a user id: {cause}")]
    Assign {
        /// For whom.
        agent: String,
        /// Why not, and what to do.
        cause: String,
    },
    /// The account exists and is not what flock makes.
    #[error("user {name}: {cause}: {remedy}")]
    Foreign {
        /// The account.
        name: String,
        /// In what it differs.
        cause: String,
        /// What to do.
        remedy: String,
    },
    /// The account does not exist.
    #[error("user {name}: it does not exist: run flockctl apply")]
    Absent {
        /// The account.
        name: String,
    },
    /// A group of the package does not exist.
    #[error("group {name}: it does not exist: run systemd-sysusers, or install ai-flock again")]
    NoGroup {
        /// The group.
        name: String,
    },
    /// The user database does not answer, which is not the same as "no such user".
    #[error("look up {what} in the user database: {source}: try getent passwd")]
    Lookup {
        /// What was looked for.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// A program failed.
    #[error("{step}: {source}")]
    Command {
        /// What was being done.
        step: String,
        /// How it failed.
        source: CommandError,
    },
}
