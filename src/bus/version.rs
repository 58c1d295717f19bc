//! Which nats-server this is, and whether it can hold what flock promises.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A release of nats-server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

/// The oldest that knows `sync_interval` and subject transforms in streams.
pub const OLDEST: Version = Version(2, 10, 0);

/// Why this nats-server cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be run.
    #[error("ask {} for its version: {cause}: install the package nats-server", path.display())]
    Run {
        /// The program.
        path: PathBuf,
        /// What the kernel said.
        cause: std::io::Error,
    },
    /// It did not say its version.
    #[error("ask {} for its version: it answered {answer:?}, which names none", path.display())]
    Answer {
        /// The program.
        path: PathBuf,
        /// The beginning of what it said.
        answer: String,
    },
    /// It is too old.
    #[error(
        "{} is nats-server {version}, which cannot keep a task through a power cut: \
         install {OLDEST} or newer (Debian 13 has one)", path.display()
    )]
    Old {
        /// The program.
        path: PathBuf,
        /// What it is.
        version: Version,
    },
}

/// The version of the nats-server at `path`, which is new enough.
///
/// # Errors
/// When it cannot be run, does not say its version, or is older than [`OLDEST`].
pub fn check(path: &Path) -> Result<Version, Error> {
    let run = |cause| Error::Run { path: path.to_owned(), cause };
    let output = Command::new(path).arg("--version").env_clear().output().map_err(run)?;
    let answer = String::from_utf8_lossy(&output.stdout);
    match parse(&answer) {
        Some(version) if version < OLDEST => Err(Error::Old { path: path.to_owned(), version }),
        Some(version) => Ok(version),
        None => {
            Err(Error::Answer { path: path.to_owned(), answer: answer.chars().take(80).collect() })
        }
    }
}

/// Reads `nats-server: v2.10.27` and what distributions append to it.
fn parse(answer: &str) -> Option<Version> {
    let text = answer.trim().strip_prefix("nats-server: v")?;
    let digits = |part: &str| {
        let end = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        part[..end].parse().ok()
    };
    let mut parts = text.splitn(3, '.');
    Some(Version(digits(parts.next()?)?, digits(parts.next()?)?, digits(parts.next()?)?))
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_ordered() {
        assert_eq!(parse("nats-server: v2.10.27\n"), Some(Version(2, 10, 27)));
        assert_eq!(parse("nats-server: v2.12.6-RC.1"), Some(Version(2, 12, 6)));
        assert_eq!(parse("nats-server: v2.9"), None);
        assert_eq!(parse("hello"), None);
        assert!(
            Version(2, 9, 10) < OLDEST && Version(2, 10, 0) >= OLDEST && Version(3, 0, 0) > OLDEST
        );
    }

    #[test]
    fn what_is_no_server_is_refused() {
        assert!(matches!(check(Path::new("/nonexistent")), Err(Error::Run { .. })));
        assert!(matches!(check(Path::new("/bin/echo")), Err(Error::Answer { .. })));
    }
}
