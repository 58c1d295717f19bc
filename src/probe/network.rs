//! Sockets of every kind. What has to wait for an answer waits together.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixStream};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::wire::{Act, Attempt, Ended, Finding};
use super::{finding, wire};

/// So long an answer is waited for. Every target is on this host.
const ANSWER: Duration = Duration::from_millis(700);
/// So many sockets are open at the same time: agents may have few descriptors.
const TOGETHER: usize = 48;

/// Whether the attempt waits for an answer.
pub(super) fn is(act: &Act) -> bool {
    matches!(act, Act::Tcp { .. } | Act::Udp { .. } | Act::Ping(_))
}

/// All attempts that wait for an answer.
pub(super) async fn all(attempts: &[Attempt]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let waiting: Vec<&Attempt> = attempts.iter().filter(|a| is(&a.act)).collect();
    for some in waiting.chunks(TOGETHER) {
        let run = |attempt: &&Attempt| {
            let attempt: &Attempt = attempt;
            let attempt = attempt.clone();
            async move {
                let began = Instant::now();
                let ended = one(&attempt.act).await;
                finding(&attempt, ended, began)
            }
        };
        findings.extend(join_all(some.iter().map(run)).await);
    }
    findings
}

async fn one(act: &Act) -> Ended {
    match act {
        Act::Tcp { to, mark } => tcp(*to, mark).await,
        Act::Udp { to, mark } => udp(*to, mark).await,
        Act::Ping(to) => ping(*to).await,
        _ => Ended::error("not of the network"),
    }
}

/// Connected is enough; what the other side says first is kept as evidence.
async fn tcp(to: SocketAddr, mark: &str) -> Ended {
    let mut stream = match timeout(ANSWER, TcpStream::connect(to)).await {
        Err(_) => return Ended::refused("no answer"),
        Ok(Err(error)) => return refusal(&error),
        Ok(Ok(stream)) => stream,
    };
    let mut byte = [0u8; 32];
    let _ = stream.write_all(mark.as_bytes()).await;
    match timeout(ANSWER, stream.read(&mut byte)).await {
        Ok(Ok(n)) if n > 0 => {
            Ended::done(format!("connected, heard {}", String::from_utf8_lossy(&byte[..n])))
        }
        _ => Ended::done("connected"),
    }
}

/// Sent is not enough: the packet may be dropped afterwards.
async fn udp(to: SocketAddr, mark: &str) -> Ended {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let talk = async {
        let socket = UdpSocket::bind(any).await?;
        socket.connect(to).await?;
        socket.send(mark.as_bytes()).await?;
        let mut answer = [0u8; 64];
        socket.recv(&mut answer).await
    };
    answered(timeout(ANSWER, talk).await)
}

/// A ping socket needs no privilege; its kernel answers on loopback.
async fn ping(to: Ipv4Addr) -> Ended {
    let talk = async {
        let icmp = Protocol::from_raw(std::num::NonZeroU32::MIN);
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let raw =
            rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, flags, Some(icmp))?;
        let socket = UdpSocket::from_std(std::net::UdpSocket::from(raw))?;
        socket.connect((to, 0)).await?;
        // Echo request; the kernel fills in the checksum and the identifier.
        socket.send(&[8, 0, 0, 0, 0, 0, 0, 1, b'f', b'l', b'o', b'c', b'k']).await?;
        let mut answer = [0u8; 64];
        socket.recv(&mut answer).await
    };
    answered(timeout(ANSWER, talk).await)
}

fn answered(result: Result<io::Result<usize>, tokio::time::error::Elapsed>) -> Ended {
    match result {
        Err(_) => Ended::refused("sent, and no answer"),
        Ok(Err(error)) => refusal(&error),
        Ok(Ok(length)) => Ended::done(format!("answered with {length} bytes")),
    }
}

/// Every error on the way is a refusal, but for those of the probe's own.
fn refusal(error: &io::Error) -> Ended {
    let ended = Ended::system(error);
    match ended.outcome {
        wire::Outcome::NothingThere => Ended { outcome: wire::Outcome::Refused, ..ended },
        _ => ended,
    }
}

/// Whether such a socket can be had at all.
pub(super) fn socket(family: u16, kind: u32, protocol: u32) -> Ended {
    let protocol = std::num::NonZeroU32::new(protocol).map(Protocol::from_raw);
    let made = rustix::net::socket_with(
        AddressFamily::from_raw(family),
        SocketType::from_raw(kind),
        SocketFlags::CLOEXEC,
        protocol,
    );
    Ended::from(made.map(|_| "a socket was made".to_owned()).map_err(io::Error::from))
}

/// Reached is enough: of whatever type it is, and also when its queue is full.
pub(super) fn unix(path: &str) -> Ended {
    let connect = |kind| -> io::Result<String> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
        let address = rustix::net::SocketAddrUnix::new(path)?;
        match rustix::net::connect(&socket, &address) {
            Ok(()) => Ok("connected".to_owned()),
            Err(rustix::io::Errno::AGAIN) => Ok("reached, its queue is full".to_owned()),
            Err(error) => Err(error.into()),
        }
    };
    let mut last = connect(SocketType::STREAM);
    for kind in [SocketType::DGRAM, SocketType::SEQPACKET] {
        let other = |e: &io::Error| e.raw_os_error() == Some(nix::libc::EPROTOTYPE);
        if last.as_ref().is_err_and(other) {
            last = connect(kind);
        }
    }
    Ended::from(last)
}

/// Whether somebody listens there, by the kernel's list: nothing is connected, so nothing is started.
pub(super) fn listens(path: &str) -> Ended {
    let list = match std::fs::read_to_string("/proc/net/unix") {
        Ok(list) => list,
        Err(error) => return Ended::system(&error),
    };
    let there = |line: &str| {
        let bound = line.split_whitespace().nth(7).unwrap_or_default();
        bound.replacen("/var/run/", "/run/", 1) == path
    };
    match list.lines().any(there) {
        true => Ended::done("somebody listens"),
        false => Ended::refused("nobody listens"),
    }
}

pub(super) fn abstract_unix(name: &str) -> Ended {
    let address = UnixAddr::from_abstract_name(name);
    let stream = address.and_then(|address| UnixStream::connect_addr(&address));
    // The kernel's word for "no such name".
    match stream {
        Err(error) if error.raw_os_error() == Some(nix::libc::ECONNREFUSED) => {
            Ended { outcome: wire::Outcome::NothingThere, ..Ended::system(&error) }
        }
        other => Ended::from(other.map(|_| "connected".to_owned())),
    }
}
