//! Who runs this flockctl.

use std::fs;

use nix::unistd::{Uid, User};

use crate::audit::{How, Who};

/// What the kernel says of a process that no login started.
const NOBODY: u32 = u32::MAX;

/// The person behind a flockctl that has root's rights: who logged in (the kernel keeps that over
/// `su` and `sudo`), else whom sudo names, else root. Root itself can claim to be anybody here; this
/// tells honest administrators apart.
#[must_use]
pub fn root_person() -> Who {
    let sudo = || std::env::var("SUDO_UID").ok().and_then(|uid| uid.parse().ok());
    of(login_uid().or_else(sudo).unwrap_or(0), How::Root)
}

/// Who runs what `flock@<id>.service` runs: PID 1, unless a person who logged in does it by hand.
#[must_use]
pub fn by_unit() -> Who {
    match login_uid() {
        Some(uid) => of(uid, How::Root),
        None => Who { uid: 0, name: "root".to_owned(), how: How::Unit },
    }
}

/// flockd itself.
#[must_use]
pub fn by_flockd() -> Who {
    Who { uid: 0, name: "flockd".to_owned(), how: How::Flockd }
}

fn login_uid() -> Option<u32> {
    let text = fs::read_to_string("/proc/self/loginuid").ok()?;
    text.trim().parse().ok().filter(|uid| *uid != NOBODY)
}

fn of(uid: u32, how: How) -> Who {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    Who { uid, name: user.map_or_else(|| uid.to_string(), |user| user.name), how }
}
