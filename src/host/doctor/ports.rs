//! Who listens where.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Finding;

/// The port of a nats-server that nobody configured, such as the one Debian starts on installation.
const NATS_PORT: u16 = 4222;
/// `TCP_LISTEN` in /proc/net/tcp.
const LISTEN: &str = "0A";

/// Debian's own nats-server runs without passwords, for everybody who can reach this host. flock
/// does not use it.
pub(super) fn foreign_bus() -> Finding {
    const SUBJECT: &str = "other nats-server";
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let open = listeners(&read("/proc/net/tcp"), NATS_PORT)
        .chain(listeners(&read("/proc/net/tcp6"), NATS_PORT).collect::<Vec<_>>())
        .find(|address| !address.is_loopback());
    match open {
        Some(address) => Finding::warn(
            SUBJECT,
            format!(
                "something listens on {address} port {NATS_PORT}; as Debian starts it, \
                     nats-server asks nobody for a password"
            ),
            "systemctl disable --now nats-server, unless it is yours (flock runs its own)",
        ),
        None => Finding::ok(SUBJECT, format!("nothing is open to others on port {NATS_PORT}")),
    }
}

/// The addresses on which somebody listens at this port.
fn listeners(table: &str, port: u16) -> impl Iterator<Item = IpAddr> {
    table.lines().filter_map(move |line| {
        let mut fields = line.split_whitespace();
        let (local, state) = (fields.nth(1)?, fields.nth(1)?);
        let (address, found) = local.split_once(':')?;
        let ours = state == LISTEN && u16::from_str_radix(found, 16).ok()? == port;
        if ours { parse(address) } else { None }
    })
}

/// The kernel prints each four bytes as a number of this machine's byte order.
fn parse(hex: &str) -> Option<IpAddr> {
    let word = |n: usize| {
        let part = hex.get(n * 8..n * 8 + 8)?;
        u32::from_str_radix(part, 16).ok().map(u32::to_ne_bytes)
    };
    match hex.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut bytes = [0; 16];
            for (n, four) in bytes.chunks_exact_mut(4).enumerate() {
                four.copy_from_slice(&word(n)?);
            }
            Some(IpAddr::from(Ipv6Addr::from(bytes)).to_canonical())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn addresses(table: &str, port: u16) -> Vec<String> {
        listeners(table, port).map(|address| address.to_string()).collect()
    }

    #[test]
    fn the_kernel_s_own_table_is_read_right() {
        for (bind, file) in [
            ("127.0.0.1:0", "/proc/net/tcp"),
            ("0.0.0.0:0", "/proc/net/tcp"),
            ("[::1]:0", "/proc/net/tcp6"),
            ("[::]:0", "/proc/net/tcp6"),
        ] {
            let listener = TcpListener::bind(bind).unwrap();
            let local = listener.local_addr().unwrap();
            let table = fs::read_to_string(file).unwrap();
            assert_eq!(addresses(&table, local.port()), [local.ip().to_string()]);
            drop(listener);
        }
        assert!(addresses("garbage\n a b c d\n 0: XX:107E 0:0 0A\n", NATS_PORT).is_empty());
    }

    #[test]
    fn a_connection_is_no_listener() {
        let table = " 0: 0100007F:107E 0100007F:AAAA 01 0\n 1: 0100007F:107E 00000000:0000 0A 0\n";
        assert_eq!(addresses(table, NATS_PORT), ["127.0.0.1"]);
    }
}
