//! Files and devices.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use nix::libc;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use super::wire::Ended;

/// The name of whatever is made and removed again.
const NAME: &str = ".flock-probe";

/// The beginning of the file is the evidence.
pub(super) fn read(path: &str) -> Ended {
    let read = || {
        let mut head = [0u8; 64];
        let length = opened(path)?.read(&mut head)?;
        Ok(String::from_utf8_lossy(&head[..length]).into_owned())
    };
    Ended::from(read())
}

/// A pipe or a device must not hold the probe up.
fn opened(path: &str) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

pub(super) fn open(path: &str) -> Ended {
    Ended::from(opened(path).map(|_| "opened".to_owned()))
}

pub(super) fn append(path: &str, mark: &str) -> Ended {
    let write = || {
        File::options().append(true).open(path)?.write_all(mark.as_bytes())?;
        Ok("written".to_owned())
    };
    Ended::from(write())
}

/// How many names stand in it is the evidence.
pub(super) fn list(path: &str) -> Ended {
    Ended::from(fs::read_dir(path).map(|names| format!("{} names", names.count())))
}

/// Whether anything can be made in a directory.
pub(super) fn create(dir: &str) -> Ended {
    let path = Path::new(dir).join(format!("{NAME}-{}", std::process::id()));
    let make = || {
        File::options().write(true).create_new(true).open(&path)?;
        fs::remove_file(&path)?;
        Ok("made and removed".to_owned())
    };
    Ended::from(make())
}

pub(super) fn set_uid(dir: &str) -> Ended {
    let path = Path::new(dir).join(format!("{NAME}-{}", std::process::id()));
    let make = || {
        let file = File::options().write(true).create_new(true).open(&path)?;
        let result = file.set_permissions(fs::Permissions::from_mode(0o4755));
        let mode = file.metadata()?.permissions().mode();
        fs::remove_file(&path)?;
        result?;
        Ok(format!("mode {:o}", mode & 0o7777))
    };
    Ended::from(make())
}

/// The null device: harmless where it can be made.
pub(super) fn device(dir: &str) -> Ended {
    let path = Path::new(dir).join(format!("{NAME}-{}", std::process::id()));
    match mknod(&path, SFlag::S_IFCHR, Mode::S_IRUSR, makedev(1, 3)) {
        Ok(()) => {
            let _ = fs::remove_file(&path);
            Ended::done("made and removed")
        }
        Err(errno) => Ended::system(&errno.into()),
    }
}
