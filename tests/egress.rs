//! The egress table on a real kernel. Each promise has its control: what the table refuses works
//! without it, and works again when it is gone.

mod netns;

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use flock::host::egress::{self, EgressError, Grant, Table, Watch};
use flock::names::UidBlock;
use netns::{LONG, add_v6, as_user, echo, enter, ping, process, serve, sh, succeeds, tcp, udp};

const A: u32 = 65_537;
const B: u32 = 65_538;
/// The one without restriction, and another such.
const FREE: u32 = 65_539;
const FREE2: u32 = 65_540;
/// No agents.
const ALICE: u32 = 1000;

fn table(grants: &[(u32, &str, u16)]) -> Table {
    let grant =
        |&(uid, addr, port): &(u32, &str, u16)| Grant { uid, addr: addr.parse().unwrap(), port };
    Table {
        block: UidBlock::DEFAULT,
        bus_port: 14_222,
        bus_rate: Some(1 << 30),
        grants: grants.iter().map(grant).collect(),
        unrestricted: BTreeSet::from([FREE, FREE2]),
    }
}

fn wait<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

fn load(table: &Table) {
    wait(egress::load(table)).unwrap();
    wait(egress::check(table)).unwrap();
}

fn unload() {
    sh("nft delete table inet flock");
}

#[test]
fn an_agent_reaches_nothing_by_any_protocol() {
    let Some(()) = enter("egress_nothing") else { return };
    sh("ip addr add 192.0.2.1/32 dev lo");
    add_v6("2001:db8::1");
    let tcps = ["127.0.0.1:8080", "[::1]:8080", "192.0.2.1:8080", "[2001:db8::1]:8080"];
    tcps.iter().for_each(|address| echo(address));
    let udps =
        ["127.0.0.1:9000", "[::1]:9000", "192.0.2.1:9000"].map(|a| UdpSocket::bind(a).unwrap());
    let pings = ["127.0.0.1", "::1", "192.0.2.1"];
    let stopped = |uid| {
        let mut stopped = Vec::new();
        stopped.extend(tcps.iter().filter(|at| !tcp(uid, at)).map(|at| format!("tcp {at}")));
        stopped.extend(udps.iter().filter(|at| !udp(uid, at)).map(|at| format!("udp {at:?}")));
        stopped.extend(pings.iter().filter(|at| !ping(uid, at)).map(|at| format!("ping {at}")));
        stopped
    };
    let none: [String; 0] = [];
    assert_eq!(stopped(A), none, "the control: without a table everything works");
    load(&table(&[]));
    assert_eq!(stopped(A).len(), 10);
    assert_eq!(stopped(ALICE), none, "other users are not touched");
    unload();
    assert_eq!(stopped(A), none, "the control: it was the table");
}

#[test]
fn a_real_process_of_an_agent_is_held_and_told_at_once() {
    let Some(()) = enter("egress_process") else { return };
    echo("127.0.0.1:8080");
    echo("127.0.0.1:14222");
    let connect =
        |port| format!("exec 3<>/dev/tcp/127.0.0.1/{port} && echo hi >&3 && read -t 10 x <&3");
    assert!(process(A, &connect(8080)));
    load(&table(&[]));
    let start = Instant::now();
    assert!(!process(A, &connect(8080)));
    assert!(start.elapsed() < Duration::from_secs(5), "refused, not timed out");
    assert!(process(A, &connect(14_222)));
    assert!(!process(A, "echo hi >/dev/udp/127.0.0.1/53"));
    // In a user namespace of its own it is still the same user.
    assert!(!process(A, &format!("exec unshare -U /bin/bash -c '{}'", connect(8080))));
}

#[test]
fn the_whole_block_is_held_and_nobody_beside_it() {
    let Some(()) = enter("egress_block") else { return };
    echo("127.0.0.1:8080");
    load(&table(&[]));
    let UidBlock { first, last } = UidBlock::DEFAULT;
    for (uid, open) in [(first - 1, true), (first, false), (last, false), (last + 1, true)] {
        assert_eq!(tcp(uid, "127.0.0.1:8080"), open, "{uid}");
    }
}

#[test]
fn the_bus_is_open_at_its_one_address() {
    let Some(()) = enter("egress_bus") else { return };
    sh("ip addr add 192.0.2.1/32 dev lo");
    let others = ["127.0.0.2:14222", "[::1]:14222", "192.0.2.1:14222", "127.0.0.1:14223"];
    echo("127.0.0.1:14222");
    others.iter().for_each(|address| echo(address));
    load(&table(&[]));
    assert!(tcp(A, "127.0.0.1:14222"));
    for address in others {
        assert!(!tcp(A, address), "{address}");
    }
    let datagrams = UdpSocket::bind("127.0.0.1:14222").unwrap();
    assert!(!udp(A, &datagrams) && udp(ALICE, &datagrams));
}

#[test]
fn an_exception_is_one_agent_s_one_address_and_one_port() {
    let Some(()) = enter("egress_exception") else { return };
    sh("ip addr add 192.0.2.1/32 dev lo; ip addr add 192.0.2.2/32 dev lo");
    add_v6("2001:db8::1");
    let all = ["192.0.2.1:443", "192.0.2.1:444", "192.0.2.2:443", "[2001:db8::1]:443"];
    all.iter().for_each(|address| echo(address));
    let open = |uid| all.map(|address| tcp(uid, address));
    load(&table(&[(A, "192.0.2.1", 443), (B, "2001:db8::1", 443), (B, "::ffff:192.0.2.2", 443)]));
    assert_eq!(open(A), [true, false, false, false]);
    assert_eq!(open(B), [false, false, true, true]);
    // An IPv4 address in IPv6 form goes out as IPv4 and is judged as such.
    assert!(tcp(A, "[::ffff:192.0.2.1]:443") && !tcp(A, "[::ffff:192.0.2.1]:444"));
    let datagrams = UdpSocket::bind("192.0.2.1:443").unwrap();
    assert!(!udp(A, &datagrams), "TCP only");
    load(&table(&[(B, "192.0.2.1", 443)]));
    assert_eq!(open(A), [false; 4], "what the new table does not name is closed");
    assert_eq!(open(B), [true, false, false, false]);
}

#[test]
fn a_flood_to_the_bus_is_held_to_the_rate_of_its_user() {
    let Some(()) = enter("egress_rate") else { return };
    sink("127.0.0.1:14224");
    let rate = 4 << 20;
    let table = |rate| Table { bus_port: 14_224, bus_rate: rate, ..table(&[]) };
    // The control: without a rate loopback carries far more than is allowed below.
    load(&table(None));
    assert!(flood(A, 2) > 40 * rate, "the control");
    load(&table(Some(rate)));
    // Five seconds, the burst, and what both ends' buffers took without having sent it.
    let sent = flood(A, 5);
    assert!((3 * rate..10 * rate).contains(&sent), "{sent} bytes in 5 s at {rate} a second");
    // Whoever floods waits alone: another user's connections and round trips go on.
    let flooding = std::thread::spawn(|| flood(A, 3));
    let start = Instant::now();
    let other = flood(B, 1);
    assert!(other >= rate, "{other} bytes of the other in 1 s");
    flooding.join().unwrap();
    assert!(start.elapsed() < Duration::from_secs(10), "the flooder's connection ends in order");
    // The kernel counted for both in the set; a listing with it is still the planned table.
    wait(egress::check(&table(Some(rate)))).unwrap();
    for (element, why) in
        [("65541 limit rate over 1 gbytes/second", "set rates"), ("65541", "set rates")]
    {
        if succeeds(&format!("nft add element inet flock rates '{{ {element} }}' 2>/dev/null")) {
            let error = wait(egress::check(&table(Some(rate)))).unwrap_err().to_string();
            assert!(error.contains(why), "{element}: {error}");
            load(&table(Some(rate)));
        }
    }
    let error = wait(egress::check(&table(Some(2 * rate)))).unwrap_err().to_string();
    assert!(error.contains("mbytes/second"), "{error}");
    let error = wait(egress::check(&table(None))).unwrap_err().to_string();
    assert!(error.contains("set rates is not flock's"), "{error}");
}

/// Takes what comes, for the rest of the test.
fn sink(address: &str) {
    netns::accept(0, address, |mut stream| {
        std::thread::spawn(move || std::io::copy(&mut stream, &mut std::io::sink()));
    });
}

/// Sends as fast as it can for some seconds; how many bytes the connection took.
fn flood(uid: u32, seconds: u64) -> u64 {
    let mut stream = as_user(uid, || TcpStream::connect("127.0.0.1:14224").unwrap());
    let (end, block) = (Instant::now() + Duration::from_secs(seconds), [0; 16 * 1024]);
    let mut sent = 0;
    while Instant::now() < end {
        sent += stream.write(&block).unwrap() as u64;
    }
    sent
}

#[test]
fn agents_cannot_reach_each_other_over_loopback() {
    let Some(()) = enter("egress_peers") else { return };
    serve(B, "127.0.0.1:9001");
    serve(FREE2, "127.0.0.1:9002");
    let datagrams = as_user(B, || UdpSocket::bind("127.0.0.1:9003").unwrap());
    // Whom it is tried for: an agent, one without restriction, another user, root.
    let reach =
        |uid| (tcp(uid, "127.0.0.1:9001"), tcp(uid, "127.0.0.1:9002"), udp(uid, &datagrams));
    for uid in [A, FREE, ALICE, 0] {
        assert_eq!(reach(uid), (true, true, true), "the control: {uid}");
    }
    load(&table(&[]));
    assert_eq!(reach(A), (false, false, false));
    assert_eq!(reach(FREE), (false, false, false));
    // Others get no answer. A datagram of theirs arrives, the table looks at what goes out.
    assert_eq!(reach(ALICE), (false, false, true));
    assert_eq!(reach(0), (false, false, true));
    unload();
    assert_eq!(reach(A), (true, true, true));
}

#[test]
fn an_agent_that_takes_the_port_of_the_bus_says_nothing() {
    squat("egress_squatter", B);
}

#[test]
fn nor_does_one_without_restriction() {
    squat("egress_squatter_free", FREE2);
}

/// With SYN cookies the kernel answers a handshake without a socket, and so without a user. What
/// the listener itself says is refused all the same.
fn squat(test: &str, squatter: u32) {
    let Some(()) = enter(test) else { return };
    // It speaks first, as a NATS server does, and waits for the password.
    let mut held = Vec::new();
    netns::accept(squatter, "127.0.0.1:14222", move |mut stream| {
        let _ = stream.write_all(b"INFO");
        held.push(stream);
    });
    let short = Duration::from_millis(400);
    let hears = |uid, patience| {
        as_user(uid, || {
            let address = "127.0.0.1:14222".parse().unwrap();
            let Ok(mut stream) = TcpStream::connect_timeout(&address, patience) else {
                return false;
            };
            stream.set_read_timeout(Some(patience)).unwrap();
            stream.read(&mut [0; 4]).is_ok_and(|n| n > 0)
        })
    };
    for cookies in ["1", "2"] {
        std::fs::write("/proc/sys/net/ipv4/tcp_syncookies", cookies).unwrap();
        assert!(hears(A, LONG), "the control");
        load(&table(&[]));
        for uid in [A, FREE, 0] {
            assert!(!hears(uid, short), "cookies {cookies}: {uid}");
        }
        unload();
    }
}

#[test]
fn a_connection_that_exists_is_cut() {
    let Some(()) = enter("egress_existing") else { return };
    echo("127.0.0.1:8080");
    let mut stream = as_user(A, || TcpStream::connect("127.0.0.1:8080").unwrap());
    let mut exchange = |patience| {
        stream.set_read_timeout(Some(patience)).unwrap();
        let _ = stream.write_all(b"x");
        stream.read(&mut [0; 1]).is_ok_and(|n| n == 1)
    };
    assert!(exchange(LONG));
    load(&table(&[]));
    assert!(!exchange(Duration::from_millis(400)));
}

#[test]
fn without_restriction_means_outwards() {
    let Some(()) = enter("egress_unrestricted") else { return };
    let (ready, is_ready) = std::sync::mpsc::channel();
    let (done, is_done) = std::sync::mpsc::channel::<()>();
    // Another machine: a thread with a network of its own, joined by a cable.
    let remote = std::thread::spawn(move || {
        enter("egress_unrestricted").unwrap();
        ready.send(nix::unistd::gettid()).unwrap();
        is_done.recv().unwrap();
        sh("ip addr add 198.51.100.2/24 dev far && ip link set far up");
        echo("198.51.100.2:8080");
        let datagrams = UdpSocket::bind("198.51.100.2:9000").unwrap();
        datagrams.set_read_timeout(Some(Duration::from_millis(400))).unwrap();
        ready.send(nix::unistd::gettid()).unwrap();
        is_done.recv().unwrap();
        let arrived = (0..2).take_while(|_| datagrams.recv(&mut [0; 16]).is_ok()).count();
        (arrived, talk_to("198.51.100.1:9001"))
    });
    let tid = is_ready.recv().unwrap();
    sh(&format!("ip link add near type veth peer name far netns {tid}"));
    sh("ip addr add 198.51.100.1/24 dev near && ip link set near up");
    done.send(()).unwrap();
    is_ready.recv().unwrap();
    load(&table(&[]));
    assert!(tcp(FREE, "198.51.100.2:8080") && ping(FREE, "198.51.100.2"));
    assert!(!tcp(A, "198.51.100.2:8080") && !ping(A, "198.51.100.2"));
    netns::udp_to(FREE, "198.51.100.2:9000");
    netns::udp_to(A, "198.51.100.2:9000");
    // Here: services that answer by TCP, and name servers.
    echo("127.0.0.1:8080");
    let dns = UdpSocket::bind("127.0.0.53:53").unwrap();
    assert!(tcp(FREE, "127.0.0.1:8080") && udp(FREE, &dns));
    assert!(!udp(A, &dns));
    // It serves nobody, from outside neither.
    serve(FREE, "198.51.100.1:9001");
    done.send(()).unwrap();
    assert_eq!(remote.join().unwrap(), (1, false));
}

fn talk_to(address: &str) -> bool {
    tcp(0, address)
}

#[test]
fn every_change_by_another_is_noticed_and_undone() {
    let Some(()) = enter("egress_changes") else { return };
    let table = table(&[(A, "192.0.2.1", 443)]);
    load(&table);
    let changes = [
        ("nft insert rule inet flock agents meta skuid 65538 accept", "skuid 65538 accept"),
        ("nft add rule inet flock agents accept", "in addition"),
        ("nft insert rule inet flock output accept", "chain output has \"accept\""),
        ("nft flush chain inet flock agents", "chain agents has no"),
        ("nft flush chain inet flock output", "chain output has no"),
        ("nft add element inet flock unrestricted '{ 65538 }'", "element 65538 in addition"),
        ("nft flush set inet flock allow4", "no element 65537 . 192.0.2.1 . 443"),
        ("nft add chain inet flock extra", "chain extra is not flock's"),
        ("nft add set inet flock extra '{ type uid; }'", "set extra is not flock's"),
        ("nft 'add chain inet flock output { policy drop; }'", "policy drop"),
        ("nft 'add table inet flock { flags dormant; }'", "flags dormant"),
        ("nft flush table inet flock", "chain agents has no"),
        ("nft flush ruleset", "not loaded"),
        ("nft delete table inet flock", "not loaded"),
    ];
    for (command, why) in changes {
        sh(command);
        let error = wait(egress::check(&table)).unwrap_err();
        assert!(error.to_string().contains(why), "{command}: {error}");
        load(&table);
    }
    assert!(matches!(
        {
            unload();
            wait(egress::check(&table))
        },
        Err(EgressError::Missing)
    ));
}

#[test]
fn there_is_no_moment_without_the_table() {
    let Some(()) = enter("egress_atomic") else { return };
    let receiver = UdpSocket::bind("127.0.0.1:9000").unwrap();
    receiver.set_nonblocking(true).unwrap();
    load(&table(&[]));
    let stop = std::sync::atomic::AtomicBool::new(false);
    let tries = std::thread::scope(|scope| {
        let agent = scope.spawn(|| {
            let socket = as_user(A, || UdpSocket::bind("127.0.0.1:0").unwrap());
            let mut tries = 0u32;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let _ = socket.send_to(b"x", "127.0.0.1:9000");
                tries += 1;
            }
            tries
        });
        for port in 0..20 {
            wait(egress::load(&table(&[(B, "192.0.2.1", 1000 + port)]))).unwrap();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        agent.join().unwrap()
    });
    assert!(tries > 1000, "the agent tried {tries} times");
    assert!(receiver.recv(&mut [0; 1]).is_err(), "something got through");
}

#[test]
fn a_table_that_nft_refuses_leaves_the_former_one() {
    let Some(()) = enter("egress_refused") else { return };
    let sound = table(&[]);
    load(&sound);
    let reversed = Table { block: UidBlock { first: 9, last: 8 }, ..sound.clone() };
    let error = wait(egress::load(&reversed)).unwrap_err().to_string();
    assert!(error.starts_with("load the egress table: /usr/sbin/nft ended with"), "{error}");
    wait(egress::check(&sound)).unwrap();
}

#[test]
fn a_flush_is_noticed_within_a_second_and_quiet_is_quiet() {
    let Some(()) = enter("egress_watch") else { return };
    let table = table(&[]);
    load(&table);
    wait(async {
        let mut watch = Watch::new().unwrap();
        let quiet = tokio::time::timeout(Duration::from_millis(500), watch.changed()).await;
        assert!(quiet.is_err(), "nothing happened");
        let start = Instant::now();
        assert!(succeeds("nft flush ruleset"));
        watch.changed().await.unwrap();
        assert!(matches!(egress::check(&table).await, Err(EgressError::Missing)));
        egress::load(&table).await.unwrap();
        egress::check(&table).await.unwrap();
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        // Our own repair is a change as well, told once; then it is quiet again.
        watch.changed().await.unwrap();
        let quiet = tokio::time::timeout(Duration::from_millis(500), watch.changed()).await;
        assert!(quiet.is_err());
        // More changes than the socket can hold are still a change, and never an error.
        for _ in 0..3 {
            let many: String = (0..20_000).map(|n| format!("add chain ip t c{n}\\n")).collect();
            let script = format!("printf 'add table ip t\\n{many}delete table ip t\\n' | nft -f -");
            std::fs::write("/run/flock-test-many.sh", script).unwrap();
            sh("sh /run/flock-test-many.sh; rm /run/flock-test-many.sh");
        }
        watch.changed().await.unwrap();
        egress::check(&table).await.unwrap();
    });
}
