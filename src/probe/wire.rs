//! What the probe is told to try, and what it reports: one JSON object, and a line of JSON for each
//! attempt.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::inventory::Kind;
use crate::host::sys::{Call, SysV};

/// No text of a report is longer than this.
pub const EVIDENCE_MAX: usize = 200;

/// Everything one run of the probe tries, in this order. What changes the probe itself comes last.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// The attempts.
    pub attempts: Vec<Attempt>,
}

/// One thing to try.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// Which check of the matrix it is for.
    pub check: String,
    /// Whom or what it is aimed at, in the words of the matrix.
    pub target: String,
    /// What is done.
    pub act: Act,
}

/// What an attempt does. Each is harmless when it succeeds: it touches what root made for the run,
/// or changes nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Act {
    /// Reads the beginning of a file.
    Read(String),
    /// Appends a mark to a file.
    Append {
        /// The file.
        path: String,
        /// What is written.
        mark: String,
    },
    /// Lists a directory.
    List(String),
    /// Makes a file in a directory, and removes it again.
    Create(String),
    /// Makes a file of its own that runs as its owner, and removes it again.
    SetUid(String),
    /// Makes a device node, and removes it again.
    Device(String),
    /// Opens a device for reading.
    Open(String),
    /// Whether a process can be seen.
    See(i32),
    /// Sends a signal that the process does not take; 0 only asks whether one could be sent.
    Signal {
        /// The process.
        pid: i32,
        /// The signal.
        signal: i32,
    },
    /// Becomes the tracer of a process, and lets go of it.
    Trace(i32),
    /// Reads the memory of a process.
    Memory(i32),
    /// Takes a descriptor of a process.
    Descriptor(i32),
    /// Opens a file of a process below /proc.
    Proc {
        /// The process.
        pid: i32,
        /// `environ`, `mem`, `root`, …
        part: String,
    },
    /// Connects by TCP, says who it is, and waits for an answer.
    Tcp {
        /// Where to.
        to: SocketAddr,
        /// What is said.
        mark: String,
    },
    /// Sends a datagram and waits for its echo.
    Udp {
        /// Where to.
        to: SocketAddr,
        /// What is sent.
        mark: String,
    },
    /// Asks for an echo by ICMP.
    Ping(std::net::Ipv4Addr),
    /// Makes a socket.
    Socket {
        /// The address family.
        family: u16,
        /// The type.
        kind: u32,
        /// The protocol.
        protocol: u32,
    },
    /// Connects to a Unix socket at a path.
    Unix(String),
    /// Whether somebody listens at a path.
    Listens(String),
    /// Connects to an abstract Unix socket.
    Abstract(String),
    /// Finds a System V object.
    SysV {
        /// What it is.
        kind: SysV,
        /// Its key.
        key: i32,
    },
    /// Opens a POSIX message queue.
    Queue(String),
    /// Makes a system call.
    Call(Call),
    /// Reads a field of its own /proc/self/status.
    Status(String),
    /// Publishes on the bus.
    Publish {
        /// The subject.
        subject: String,
        /// What is said.
        mark: String,
    },
    /// Subscribes on the bus.
    Subscribe(String),
    /// Subscribes on the bus, and listens for what is said elsewhere.
    Hear {
        /// The subject.
        subject: String,
        /// What is said elsewhere.
        canary: String,
    },
    /// Makes so many tasks.
    Tasks(u64),
    /// Opens so many files.
    Files(u64),
    /// Asks for space.
    Space {
        /// Where.
        dir: String,
        /// How much.
        bytes: u64,
    },
    /// Lists what is there.
    Inventory(Kind),
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It succeeded.
    Done,
    /// It was refused.
    Refused,
    /// What it was aimed at does not exist where the probe is.
    NothingThere,
    /// It could not be tried.
    Error,
}

/// What came of one attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// As in the order.
    pub check: String,
    /// As in the order.
    pub target: String,
    /// How it ended.
    pub outcome: Outcome,
    /// The error number; 0 for none.
    pub errno: i32,
    /// What was seen, in few words.
    pub evidence: String,
    /// How long it took.
    pub micros: u64,
    /// What is there, for an inventory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub list: Vec<String>,
}

/// How an attempt ended, before it is written down.
#[derive(Debug)]
pub struct Ended {
    pub(super) outcome: Outcome,
    pub(super) errno: i32,
    pub(super) evidence: String,
}

impl Ended {
    /// It succeeded, and this was seen.
    pub fn done(evidence: impl Into<String>) -> Self {
        Self { outcome: Outcome::Done, errno: 0, evidence: evidence.into() }
    }

    /// It could not be tried.
    pub fn error(evidence: impl Into<String>) -> Self {
        Self { outcome: Outcome::Error, errno: 0, evidence: evidence.into() }
    }

    /// It was refused without an error number.
    pub fn refused(evidence: impl Into<String>) -> Self {
        Self { outcome: Outcome::Refused, errno: 0, evidence: evidence.into() }
    }

    /// What an error of the system means.
    pub fn system(error: &std::io::Error) -> Self {
        use nix::errno::Errno;
        let errno = error.raw_os_error().unwrap_or(0);
        let outcome = match Errno::from_raw(errno) {
            Errno::ENOENT | Errno::ESRCH | Errno::ENOTDIR | Errno::ENXIO => Outcome::NothingThere,
            Errno::UnknownErrno
            | Errno::EMFILE
            | Errno::ENFILE
            | Errno::EINTR
            | Errno::ENOMEM
            | Errno::EAGAIN => Outcome::Error,
            _ => Outcome::Refused,
        };
        let evidence = match Errno::from_raw(errno) {
            Errno::UnknownErrno => error.to_string(),
            known => format!("{known:?}"),
        };
        Self { outcome, errno, evidence }
    }
}

impl From<std::io::Result<String>> for Ended {
    fn from(result: std::io::Result<String>) -> Self {
        match result {
            Ok(evidence) => Self::done(evidence),
            Err(error) => Self::system(&error),
        }
    }
}
