//! What may be used up, until it is refused. All of it is given back at once.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::wire::{Ended, Outcome};

/// Makes threads until one is refused, `most` at the most: the kernel counts them as tasks.
pub(super) fn tasks(most: u64) -> Ended {
    let gate = Arc::new(Mutex::new(()));
    let mut threads = Vec::new();
    let mut refused = None;
    {
        // They all wait for this.
        let _closed = gate.lock().unwrap_or_else(PoisonError::into_inner);
        while (threads.len() as u64) < most && refused.is_none() {
            let gate = Arc::clone(&gate);
            let wait = move || drop(gate.lock().unwrap_or_else(PoisonError::into_inner));
            match thread::Builder::new().stack_size(64 << 10).spawn(wait) {
                Ok(thread) => threads.push(thread),
                Err(error) => refused = Some(error),
            }
        }
    }
    let made = threads.len();
    for thread in threads {
        let _ = thread.join();
    }
    stopped(refused, &format!("{made} tasks"))
}

/// Opens a file until that is refused, with as high a limit as it may give itself.
pub(super) fn files(most: u64) -> Ended {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    let mut open = Vec::new();
    let mut refused = None;
    while (open.len() as u64) < most && refused.is_none() {
        match File::open("/proc/self/status") {
            Ok(file) => open.push(file),
            Err(error) => refused = Some(error),
        }
    }
    stopped(refused, &format!("{} open files", open.len()))
}

/// Asks for so much space in one file.
pub(super) fn space(dir: &str, bytes: u64) -> Ended {
    let path = Path::new(dir).join(format!(".flock-probe-{}", std::process::id()));
    let make = || {
        let file = File::options().write(true).create_new(true).open(&path)?;
        let flags = rustix::fs::FallocateFlags::empty();
        let result = rustix::fs::fallocate(&file, flags, 0, bytes).map_err(io::Error::from);
        std::fs::remove_file(&path)?;
        result
    };
    stopped(make().err(), &format!("{bytes} bytes"))
}

fn stopped(refused: Option<io::Error>, what: &str) -> Ended {
    match refused {
        None => Ended::done(format!("had {what}")),
        Some(error) => Ended {
            outcome: Outcome::Refused,
            errno: error.raw_os_error().unwrap_or(0),
            evidence: format!("stopped at {what}"),
        },
    }
}
