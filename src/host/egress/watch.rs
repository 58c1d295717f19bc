//! Notices that somebody changed the ruleset: `nft flush ruleset` opens every agent.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, timeout_at};

use super::EgressError;
use crate::host::sys;

/// `NFNLGRP_NFTABLES` of linux/netfilter/nfnetlink.h, as a bit of the groups of a netlink address.
const NFTABLES_GROUP: u32 = 1 << (7 - 1);
/// How long to wait for the rest of a change that comes in many messages.
const QUIET: Duration = Duration::from_millis(50);
/// Never longer than this, however long the rest is: a busy ruleset must not keep us from looking.
const LONGEST: Duration = Duration::from_millis(300);

/// A subscription to changes of the nftables ruleset, those of flock itself included.
///
/// A message says only "look again": what it contains is not read, and when the kernel had to drop
/// some, that is a message as well. So no change passes unseen.
#[derive(Debug)]
pub struct Watch {
    socket: AsyncFd<OwnedFd>,
    /// A change was seen and not yet told.
    pending: bool,
}

impl Watch {
    /// Subscribes. Changes from now on are told; look once yourself after this. Needs root, and a
    /// tokio runtime.
    ///
    /// # Errors
    /// When the kernel has no nftables or refuses.
    pub fn new() -> Result<Self, EgressError> {
        let open = || -> io::Result<AsyncFd<OwnedFd>> {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let protocol = SockProtocol::NetlinkNetFilter;
            let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
            bind(fd.as_raw_fd(), &NetlinkAddr::new(0, NFTABLES_GROUP))?;
            sys::pollable(fd)
        };
        Ok(Self { socket: open().map_err(EgressError::Watch)?, pending: false })
    }

    /// Waits until the ruleset may have changed. Many changes at once are told once.
    /// Loses nothing when it is dropped before it is done, so that it fits in a `select!`.
    ///
    /// # Errors
    /// When the socket fails; subscribe anew then.
    pub async fn changed(&mut self) -> Result<(), EgressError> {
        if !self.pending {
            self.some_message().await.map_err(EgressError::Watch)?;
            self.pending = true;
        }
        let latest = Instant::now() + LONGEST;
        while Instant::now() < latest {
            let quiet = (Instant::now() + QUIET).min(latest);
            match timeout_at(quiet, self.some_message()).await {
                Ok(more) => more.map_err(EgressError::Watch)?,
                Err(_) => break,
            }
        }
        self.pending = false;
        Ok(())
    }

    /// Waits for a message and takes all that are there.
    async fn some_message(&self) -> io::Result<()> {
        let mut buffer = [0; 16 * 1024];
        loop {
            let mut ready = self.socket.readable().await?;
            let mut any = false;
            let drained = ready.try_io(|fd| {
                loop {
                    match recv(fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                        // The kernel dropped messages: something has changed.
                        Ok(_) | Err(Errno::ENOBUFS) => any = true,
                        Err(Errno::EINTR) => {}
                        Err(error) => return Err::<(), io::Error>(error.into()),
                    }
                }
            });
            if let Ok(Err(error)) = drained {
                return Err(error);
            }
            if any {
                return Ok(());
            }
        }
    }
}
