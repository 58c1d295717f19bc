//! System calls, and what the kernel says of the probe itself.

use std::fs;

use nix::errno::Errno;

use super::wire::{Ended, Outcome};
use crate::host::sys::{self, Call};

/// Any error but a refusal means that the kernel looked at the call: the way to it is open.
pub(super) fn call(call: Call) -> Ended {
    let Err(error) = sys::attempt(call) else { return Ended::done("it succeeded") };
    let errno = error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw);
    let refused = [Errno::EPERM, Errno::EACCES, Errno::ENOSYS, Errno::ENOSPC, Errno::EUSERS];
    let refusal = refused.contains(&errno);
    Ended {
        outcome: if refusal { Outcome::Refused } else { Outcome::Done },
        errno: error.raw_os_error().unwrap_or(0),
        evidence: if refusal { format!("{errno:?}") } else { format!("let through: {errno:?}") },
    }
}

/// The value of a field is the evidence; what it should be is judged outside.
pub(super) fn status(field: &str) -> Ended {
    let value = fs::read_to_string("/proc/self/status").map(|status| {
        let of = |line: &str| Some(line.strip_prefix(field)?.strip_prefix(":\t")?.to_owned());
        status.lines().find_map(of)
    });
    match value {
        Ok(Some(value)) => Ended::done(value),
        Ok(None) => Ended::error("the kernel shows no such field"),
        Err(error) => Ended::error(error.to_string()),
    }
}
