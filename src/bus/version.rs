//! Which nats-server this is, and whether it can hold what flock promises.

use std::fmt;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

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
        cause: io::Error,
    },
    /// It says nothing and does not end.
    #[error(
        "ask {} for its version: no answer to --version within {} s: it does not seem to be a \
         nats-server; see server in [bus]", path.display(), PATIENCE.as_secs()
    )]
    Silent {
        /// The program.
        path: PathBuf,
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

/// How long it may take to answer: whoever asks holds the lock of the machine.
const PATIENCE: Duration = Duration::from_secs(10);
/// More of an answer is not read.
const ANSWER_MAX: u64 = 4096;

/// The version of the nats-server at `path`, which is new enough.
///
/// # Errors
/// When it cannot be run, does not say its version, or is older than [`OLDEST`].
pub fn check(path: &Path) -> Result<Version, Error> {
    let answer = ask(path, PATIENCE)?;
    match parse(&answer) {
        Some(version) if version < OLDEST => Err(Error::Old { path: path.to_owned(), version }),
        Some(version) => Ok(version),
        None => {
            Err(Error::Answer { path: path.to_owned(), answer: answer.chars().take(80).collect() })
        }
    }
}

fn ask(path: &Path, patience: Duration) -> Result<String, Error> {
    let run = |cause| Error::Run { path: path.to_owned(), cause };
    let mut child = Command::new(path)
        .arg("--version")
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(run)?;
    let (sender, receiver) = mpsc::channel();
    let output = child.stdout.take();
    thread::spawn(move || {
        let mut answer = Vec::new();
        let end = output.map(|output| output.take(ANSWER_MAX).read_to_end(&mut answer));
        let _ = sender.send(end.transpose().map(|_| answer));
    });
    let answer = receiver.recv_timeout(patience);
    // It has said what counts, or never will; that it has ended already is no matter.
    let _ = child.kill();
    child.wait().map_err(run)?;
    let answer = answer.map_err(|_| Error::Silent { path: path.to_owned() })?.map_err(run)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
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
        assert!(matches!(check(Path::new("/usr/bin/yes")), Err(Error::Answer { .. })));
    }

    #[test]
    fn who_does_not_answer_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let (source, program) = (dir.path().join("source"), dir.path().join("program"));
        std::fs::write(&source, "#!/bin/sh\nexec sleep 600\n").unwrap();
        // By another process: one that we start meanwhile must not hold the file open.
        let copy = Command::new("install").args(["-m", "755"]).args([&source, &program]).status();
        assert!(copy.unwrap().success());
        let error = ask(&program, Duration::from_millis(300)).unwrap_err();
        assert!(matches!(error, Error::Silent { .. }), "{error}");
        assert!(error.to_string().contains("no answer to --version within 10 s"), "{error}");
    }
}
