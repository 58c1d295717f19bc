//! Listeners that write down whose mark they hear.

use std::io;
use std::net::SocketAddr;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::StreamExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;

use super::scene::{bus_canary, bus_subjects};
use crate::bus::hub::Hub;

/// No mark is longer.
const MARK_MAX: usize = 128;
/// A hostile agent that gets through must not fill our memory.
const MARKS_MAX: usize = 100_000;

type Marks = Arc<Mutex<Vec<(&'static str, String, String)>>>;

/// All listeners of a run. They end when this is dropped.
pub(super) struct Sinks {
    marks: Marks,
    tasks: JoinSet<()>,
    unix: Vec<UnixListener>,
}

impl Sinks {
    pub(super) fn new() -> Self {
        Self { marks: Marks::default(), tasks: JoinSet::new(), unix: Vec::new() }
    }

    /// A TCP and a UDP listener that stand for somebody.
    pub(super) async fn pair(&mut self, who: &str) -> io::Result<(SocketAddr, SocketAddr)> {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Ok((self.tcp(any, "net.tcp", who).await?, self.udp(any, "net.udp", who).await?))
    }

    /// A TCP listener that is nobody's.
    pub(super) async fn port(&mut self, who: &str) -> io::Result<SocketAddr> {
        self.tcp(([127, 0, 0, 1], 0).into(), "net.port", who).await
    }

    /// A listener where resolvers are, at a port of its own: address and port are both closed.
    pub(super) async fn beside_resolver(&mut self, who: &str) -> io::Result<SocketAddr> {
        self.udp(([127, 0, 0, 53], 0).into(), "net.dns", who).await
    }

    /// The same over IPv6.
    pub(super) async fn pair_v6(&mut self, who: &str) -> io::Result<(SocketAddr, SocketAddr)> {
        let any = SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 0));
        Ok((self.tcp(any, "net.tcp6", who).await?, self.udp(any, "net.udp6", who).await?))
    }

    /// The address of the host's resolver; where there is none, listeners stand in for it.
    pub(super) async fn resolver(&mut self) -> io::Result<SocketAddr> {
        let address = SocketAddr::from(([127, 0, 0, 53], 53));
        for result in [
            self.tcp(address, "net.dns-tcp", "resolver").await,
            self.udp(address, "net.dns", "resolver").await,
        ] {
            match result {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                other => drop(other?),
            }
        }
        Ok(address)
    }

    async fn tcp(
        &mut self,
        at: SocketAddr,
        check: &'static str,
        who: &str,
    ) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind(at).await?;
        let address = listener.local_addr()?;
        let (marks, who) = (Arc::clone(&self.marks), who.to_owned());
        self.tasks.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (marks, who) = (Arc::clone(&marks), who.clone());
                tokio::spawn(async move {
                    let mut mark = [0u8; MARK_MAX];
                    let _ = stream.write_all(b"flock\n").await;
                    let wait = Duration::from_secs(1);
                    if let Ok(Ok(n)) = tokio::time::timeout(wait, stream.read(&mut mark)).await {
                        note(&marks, check, &who, &mark[..n]);
                    }
                });
            }
        });
        Ok(address)
    }

    async fn udp(
        &mut self,
        at: SocketAddr,
        check: &'static str,
        who: &str,
    ) -> io::Result<SocketAddr> {
        let socket = UdpSocket::bind(at).await?;
        let address = socket.local_addr()?;
        let (marks, who) = (Arc::clone(&self.marks), who.to_owned());
        self.tasks.spawn(async move {
            let mut mark = [0u8; MARK_MAX];
            loop {
                // An error is the answer that an earlier sender did not get.
                let Ok((n, from)) = socket.recv_from(&mut mark).await else { continue };
                note(&marks, check, &who, &mark[..n]);
                let _ = socket.send_to(&mark[..n], from).await;
            }
        });
        Ok(address)
    }

    /// A socket that every user may connect to. Nobody accepts: the kernel does.
    pub(super) fn unix(&mut self, path: &str) -> io::Result<()> {
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777))?;
        self.unix.push(listener);
        Ok(())
    }

    pub(super) fn abstract_unix(&mut self, name: &str) -> io::Result<()> {
        self.unix.push(UnixListener::bind_addr(&UnixAddr::from_abstract_name(name)?)?);
        Ok(())
    }

    /// Hears marks in the hub, where the messages of all agents arrive; and says there, several times
    /// a second, what no agent must hear.
    pub(super) async fn bus(&mut self, hub: Hub, nonce: &str) {
        for (subjects, check) in
            [("tasks.>", "bus.task"), ("task.result.>", "bus.result"), ("agent.>", "bus.event")]
        {
            let Ok(mut heard) = hub.overhear(subjects).await else { continue };
            let marks = Arc::clone(&self.marks);
            self.tasks.spawn(async move {
                while let Some((subject, payload)) = heard.next().await {
                    // Whom it is about stands in a fixed place: see bus::subject.
                    let place = if check == "bus.result" { 2 } else { 1 };
                    let who = subject.split('.').nth(place).unwrap_or_default();
                    let head = &payload[..payload.len().min(MARK_MAX)];
                    note(&marks, check, who, &[head, b"\n"].concat());
                }
            });
        }
        let (canary, subjects) = (bus_canary(nonce), bus_subjects(nonce));
        self.tasks.spawn(async move {
            let mut tick = tokio::time::interval(Duration::from_millis(100));
            loop {
                tick.tick().await;
                for subject in &subjects {
                    // A bus that went away leaves the control without success.
                    let _ = hub.murmur(subject.clone(), canary.clone()).await;
                }
            }
        });
    }

    /// What was heard: the check, whom it was aimed at, the mark.
    pub(super) fn marks(&self) -> Vec<(&'static str, String, String)> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn note(marks: &Marks, check: &'static str, who: &str, mark: &[u8]) {
    let mut marks = marks.lock().unwrap_or_else(PoisonError::into_inner);
    if marks.len() < MARKS_MAX {
        marks.push((check, who.to_owned(), String::from_utf8_lossy(mark).into_owned()));
    }
}
