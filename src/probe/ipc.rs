//! Objects by which processes talk past the file system.

use nix::mqueue::{MQ_OFlag, mq_close, mq_open};
use nix::sys::stat::Mode;

use super::wire::Ended;
use crate::host::sys::{self, SysV};

pub(super) fn sysv(kind: SysV, key: i32) -> Ended {
    Ended::from(sys::sysv(kind, key, false).map(|_| "found, and open to it".to_owned()))
}

pub(super) fn queue(name: &str) -> Ended {
    // Who made it had a umask: it can be read by all.
    let opened = mq_open(name, MQ_OFlag::O_RDONLY, Mode::empty(), None);
    let closed = opened.and_then(mq_close);
    Ended::from(closed.map(|()| "opened".to_owned()).map_err(std::io::Error::from))
}
