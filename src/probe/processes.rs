//! Other processes.

use std::fs::{self, File};
use std::io::{self, IoSliceMut, Read as _};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::wire::Ended;

/// Whether it has a directory below /proc.
pub(super) fn see(pid: i32) -> Ended {
    let name = fs::read_to_string(format!("/proc/{pid}/comm"));
    Ended::from(name.map(|name| format!("named {}", name.trim())))
}

/// Signal 0 asks; any other is one that the target has blocked.
pub(super) fn signal(pid: i32, signal: i32) -> Ended {
    let result = match nix::sys::signal::Signal::try_from(signal) {
        Ok(signal) => nix::sys::signal::kill(Pid::from_raw(pid), signal),
        Err(_) => nix::sys::signal::kill(Pid::from_raw(pid), None),
    };
    of(result.map(|()| "a signal is let through".to_owned()))
}

/// The target is let go of at once: the next one who tries must not find it taken.
pub(super) fn trace(pid: i32) -> Ended {
    let pid = Pid::from_raw(pid);
    if let Err(errno) = ptrace::seize(pid, ptrace::Options::empty()) {
        return Ended::system(&errno.into());
    }
    let release = ptrace::interrupt(pid)
        .and_then(|()| waitpid(pid, Some(WaitPidFlag::__WALL)))
        .and_then(|_| ptrace::detach(pid, None));
    match release {
        Ok(()) => Ended::done("traced, and let go of"),
        Err(errno) => Ended::done(format!("traced until the probe ended: {errno}")),
    }
}

/// No address of the target is known: "bad address" comes after the rights have been looked at.
pub(super) fn memory(pid: i32) -> Ended {
    let mut buffer = [0u8; 1];
    let remote = [RemoteIoVec { base: 4096, len: 1 }];
    match process_vm_readv(Pid::from_raw(pid), &mut [IoSliceMut::new(&mut buffer)], &remote) {
        Ok(_) | Err(Errno::EFAULT) => Ended::done("its memory is open to reads"),
        Err(errno) => Ended::system(&errno.into()),
    }
}

/// Its standard input.
pub(super) fn descriptor(pid: i32) -> Ended {
    let take = || {
        let pid = rustix::process::Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        pidfd_getfd(&process, 0, PidfdGetfdFlags::empty())?;
        Ok("its descriptor 0 was taken".to_owned())
    };
    Ended::from(take())
}

/// `root` and `cwd` are looked through, the others opened and read.
pub(super) fn proc(pid: i32, part: &str) -> Ended {
    let path = format!("/proc/{pid}/{part}");
    let look = || -> io::Result<String> {
        if matches!(part, "root" | "cwd") {
            fs::read_dir(Path::new(&path))?;
            return Ok("looked through".to_owned());
        }
        let mut file = File::open(&path)?;
        if part == "mem" {
            return Ok("opened".to_owned());
        }
        let mut head = Vec::new();
        file.by_ref().take(4096).read_to_end(&mut head)?;
        // A file of a process that may not be looked into can be empty instead of refused.
        match head.is_empty() {
            true => Err(io::ErrorKind::PermissionDenied.into()),
            false => Ok(String::from_utf8_lossy(&head).into_owned()),
        }
    };
    match look() {
        Err(error) if error.raw_os_error().is_none() => Ended::refused("empty"),
        other => Ended::from(other),
    }
}

fn of(result: nix::Result<String>) -> Ended {
    Ended::from(result.map_err(io::Error::from))
}
