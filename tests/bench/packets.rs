//! What the egress table costs a packet: UDP on loopback, sent and received by one thread, with the
//! table and without one. Needs root and a network namespace of its own, whose ruleset it replaces.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use flock::host::egress::{self, Grant, Table};
use flock::names::UidBlock;
use nix::unistd::{Uid, seteuid};

use super::stats::Comparison;

/// Packets that are timed together.
const AT_ONCE: u32 = 20_000;
/// A port that agents cannot have: the only UDP on loopback that the table lets through, and only
/// for agents without restriction, by the last of all rules that accept. So this is the longest way.
const PORT: u16 = 1000;
/// An agent that is in every table.
const AGENT: u32 = 65_540;
/// A user whom flock has nothing to do with.
const OTHER: u32 = 1000;

/// All figures of packets.
pub async fn compare(pairs: usize) -> Vec<Comparison> {
    let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, PORT)).expect("the receiver");
    let (agent, other) = (sender(AGENT), sender(OTHER));
    let time = |socket| round(&receiver, socket);
    let mut found = Vec::new();
    for (name, agents, socket) in [
        ("control: no table against no table, packets of another user", (0, 0), &other),
        ("PF-12 packets of an agent, 1,000 agents against no table", (1000, 0), &agent),
        ("PF-13 packets of another user, 1,000 agents against no table", (1000, 0), &other),
        ("PF-13 packets of another user, 5,000 agents against 10", (5000, 10), &other),
    ] {
        let mut times = Vec::new();
        for turn in 0..pairs + 2 {
            let mut pair = [Duration::ZERO; 2];
            for side in if turn % 2 == 0 { [0, 1] } else { [1, 0] } {
                set([agents.0, agents.1][side]).await;
                time(socket);
                pair[side] = time(socket);
            }
            times.push((pair[0], pair[1]));
        }
        let name = format!("{name}, {AT_ONCE} of them");
        // The first two warm up.
        found.push(Comparison::of(&name, &times[2..]));
    }
    set(0).await;
    found
}

/// A socket that this user opened: that is whose packets they are.
fn sender(uid: u32) -> UdpSocket {
    seteuid(Uid::from_raw(uid)).expect("root");
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("the sender");
    seteuid(Uid::from_raw(0)).expect("root again");
    socket.connect((Ipv4Addr::LOCALHOST, PORT)).expect("connected");
    socket
}

fn round(receiver: &UdpSocket, sender: &UdpSocket) -> Duration {
    let (text, mut read) = ([7; 64], [0; 64]);
    let begun = Instant::now();
    for _ in 0..AT_ONCE {
        sender.send(&text).expect("the table lets it through");
        receiver.recv(&mut read).expect("it came");
    }
    begun.elapsed()
}

/// The table of so many agents, each with an exception and every second one without restriction; for
/// none: no table.
async fn set(agents: u32) {
    if agents == 0 {
        // An error says that there is none.
        let _ = Command::new("/usr/sbin/nft").args(["delete", "table", "inet", "flock"]).output();
        return;
    }
    let block = UidBlock::DEFAULT;
    let uids = block.first..block.first + agents.max(AGENT - block.first + 1);
    let addr = |uid: u32| IpAddr::from(Ipv4Addr::from(0xC000_0200 + uid % 256));
    let table = Table {
        block,
        bus_port: 14_222,
        bus_rate: Some(16 << 20),
        grants: uids.clone().map(|uid| Grant { uid, addr: addr(uid), port: 443 }).collect(),
        unrestricted: uids.filter(|uid| uid % 2 == 0).collect(),
    };
    egress::load(&table).await.expect("the table is loaded");
}
