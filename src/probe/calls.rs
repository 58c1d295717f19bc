//! Which system calls get past the filter: each is made once with arguments that mean nothing.
//!
//! A call that the filter refuses fails with EPERM before the kernel looks at it; any other error is
//! the kernel's own word about the arguments. What a call that is let through can still do is only to
//! the process that makes it, so that process does nothing else and ends.

use std::io::Write as _;
use std::process::Command;

use nix::errno::Errno;

use super::numbers::{EVERYWHERE, ONLY_HERE};
use crate::host::sys;
use crate::names::LIB_DIR;

/// The argument with which `flock-probe` makes the calls.
pub(super) const ARGUMENT: &str = "calls";

/// The names of those that get through, by a process of its own.
pub(super) fn list() -> Vec<String> {
    let ran = Command::new(format!("{LIB_DIR}/flock-probe")).arg(ARGUMENT).output();
    match ran {
        Ok(done) if done.status.success() => {
            String::from_utf8_lossy(&done.stdout).lines().map(str::to_owned).collect()
        }
        Ok(done) => vec![format!("not made: {}", done.status)],
        Err(error) => vec![format!("not made: {error}")],
    }
}

/// Makes the calls and prints the names of those that got through.
///
/// # Errors
/// When they cannot be printed.
pub(super) fn make() -> Result<(), String> {
    let mut through = String::new();
    for (name, number) in EVERYWHERE.iter().chain(ONLY_HERE) {
        let first = match *name {
            // With -1 this one says "no such call", and that one makes a queue that stays.
            "futex" => [usize::MAX, 1, 0],
            "msgget" => [usize::MAX, 0, 0],
            _ => [usize::MAX; 3],
        };
        let errno = sys::meaningless(*number, first).err().and_then(|e| e.raw_os_error());
        if !errno.is_some_and(|e| [Errno::EPERM as i32, Errno::ENOSYS as i32].contains(&e)) {
            through.push_str(name);
            through.push('\n');
        }
    }
    std::io::stdout().write_all(through.as_bytes()).map_err(|e| format!("write: {e}"))
}
