//! A network of a test's own: real kernel, real nftables, nothing of the host's.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use nix::unistd::{Uid, setfsuid};

/// Long enough for loopback, short enough for the many connects that must not succeed.
const PATIENCE: Duration = Duration::from_millis(400);
/// For an answer of another thread's, once the kernel has made the connection.
pub const LONG: Duration = Duration::from_secs(10);

/// A new network namespace for this thread, with loopback up. `None`: it cannot run here, and says
/// so. With FLOCK_TEST_NO_SKIP set that is a failure.
pub fn enter(test: &str) -> Option<()> {
    let missing = if !nix::unistd::geteuid().is_root() {
        Some("root")
    } else if !Path::new("/usr/sbin/nft").exists() {
        Some("the package nftables")
    } else if !["/sbin/ip", "/usr/sbin/ip"].iter().any(|path| Path::new(path).exists()) {
        Some("the package iproute2")
    } else {
        None
    };
    if let Some(missing) = missing {
        assert!(std::env::var_os("FLOCK_TEST_NO_SKIP").is_none(), "{test} needs {missing}");
        eprintln!("SKIPPED {test}: it needs {missing}");
        return None;
    }
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    sh("ip link set lo up");
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647").unwrap();
    Some(())
}

/// Runs a shell command in this thread's network; panics when it fails.
pub fn sh(command: &str) {
    assert!(succeeds(command), "{command}");
}

/// Runs a shell command in this thread's network.
pub fn succeeds(command: &str) -> bool {
    Command::new("/bin/sh").args(["-c", command]).status().unwrap().success()
}

/// Gives loopback an address of IPv6, and waits for its route: the kernel makes that a moment later.
pub fn add_v6(address: &str) {
    sh(&format!("ip addr add {address}/128 dev lo nodad"));
    let is_there = format!("ip -6 route show table local | grep -q {address}");
    sh(&format!("for n in $(seq 500); do {is_there} && exit; sleep 0.02; done; exit 1"));
}

/// Does something with sockets that this user opens: the kernel's filter goes by the user that a
/// thread had for files when it opened the socket.
pub fn as_user<T>(uid: u32, work: impl FnOnce() -> T) -> T {
    setfsuid(Uid::from_raw(uid));
    let result = work();
    setfsuid(Uid::from_raw(0));
    result
}

/// A whole process of another user, started as systemd starts one; says whether it succeeded.
pub fn process(uid: u32, script: &str) -> bool {
    let id = uid.to_string();
    let mut command = Command::new("/usr/bin/setpriv");
    command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "/bin/bash", "-c", script]);
    command.stderr(Stdio::null()).status().unwrap().success()
}

/// Answers every TCP connection with what it receives, for the rest of the test.
pub fn echo(address: &str) {
    serve(0, address);
}

/// The same as a user: what it accepts is this user's as well.
pub fn serve(uid: u32, address: &str) {
    accept(uid, address, |stream| {
        thread::spawn(move || {
            let mut reader = &stream;
            let _ = io::copy(&mut reader, &mut &stream);
        });
    });
}

/// Listens as a user, and gives each connection to `work`, for the rest of the test.
pub fn accept(uid: u32, address: &str, work: impl FnMut(TcpStream) + Send + 'static) {
    let listener = as_user(uid, || TcpListener::bind(address).unwrap());
    thread::spawn(move || {
        setfsuid(Uid::from_raw(uid));
        listener.incoming().flatten().for_each(work);
    });
}

/// Connects, sends and receives an answer.
pub fn tcp(uid: u32, address: &str) -> bool {
    as_user(uid, || talk(address).is_ok())
}

fn talk(address: &str) -> io::Result<()> {
    let address: SocketAddr = address.parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(LONG))?;
    stream.write_all(b"ping")?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer)?;
    assert_eq!(&answer, b"ping");
    Ok(())
}

/// Whether a datagram arrives at the socket.
pub fn udp(uid: u32, to: &UdpSocket) -> bool {
    let address = to.local_addr().unwrap();
    udp_to(uid, &address.to_string());
    to.set_read_timeout(Some(PATIENCE)).unwrap();
    to.recv(&mut [0; 16]).is_ok()
}

/// Sends a datagram; says whether the kernel took it.
pub fn udp_to(uid: u32, address: &str) -> bool {
    let address: SocketAddr = address.parse().unwrap();
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    as_user(uid, || UdpSocket::bind(any).unwrap().send_to(b"ping", address).is_ok())
}

/// Whether an ICMP echo is answered.
pub fn ping(uid: u32, address: &str) -> bool {
    let address: IpAddr = address.parse().unwrap();
    let (family, protocol, request) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128),
    };
    as_user(uid, || -> io::Result<usize> {
        // A ping socket takes the same calls as a datagram socket.
        let socket =
            UdpSocket::from(socket(family, SockType::Datagram, SockFlag::empty(), protocol)?);
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect((address, 0))?;
        socket.send(&[request, 0, 0, 0, 0, 0, 0, 1, b'h', b'i'])?;
        socket.recv(&mut [0; 64])
    })
    .is_ok()
}
