//! Where an agent may connect to: `host:port`, with a name or an address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::HostPort;

/// Names of this host and of the services that hand out a machine's own credentials.
const REFUSED_NAMES: [(&str, &str); 5] = [
    ("localhost", LOOPBACK),
    ("localhost.localdomain", LOOPBACK),
    ("ip6-localhost", LOOPBACK),
    ("metadata.google.internal", METADATA),
    ("instance-data", METADATA),
];
const LOOPBACK: &str = "it is this host; the bus is always reachable, other local services never";
const METADATA: &str = "it hands out this machine's own credentials (cloud metadata)";

/// Metadata services outside the link-local range: AWS over IPv6, Alibaba, Azure.
const METADATA_ADDRESSES: [IpAddr; 3] = [
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
];

/// Checks one entry. A name comes back in lower case without a final dot, an address in its
/// shortest form.
pub(in crate::config) fn host_port(text: &str) -> Result<HostPort, String> {
    if text.contains("://") || text.contains('/') {
        return Err("it is no host and port, without a scheme or a path".to_owned());
    }
    let (host, port) = split(text)?;
    Ok(HostPort { host: self::host(host)?, port: self::port(port)? })
}

/// Splits at the colon before the port; an IPv6 address stands in brackets.
fn split(text: &str) -> Result<(&str, &str), String> {
    if let Some(rest) = text.strip_prefix('[') {
        let parts = rest.split_once("]:").filter(|(host, _)| host.contains(':'));
        return parts.ok_or_else(|| "it is no [IPv6 address]:port".to_owned());
    }
    match text.rsplit_once(':') {
        None => Err("it has no port".to_owned()),
        Some((host, _)) if host.contains(':') => {
            Err("an IPv6 address stands in brackets".to_owned())
        }
        Some(parts) => Ok(parts),
    }
}

fn port(text: &str) -> Result<u16, String> {
    let digits = !text.starts_with('0') && text.bytes().all(|c| c.is_ascii_digit());
    let number = if digits { text.parse().ok() } else { None };
    number.ok_or_else(|| "the port is not from 1 to 65535".to_owned())
}

fn host(text: &str) -> Result<String, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return match refused_address(address) {
            Some(why) => Err(why.to_owned()),
            None => Ok(address.to_canonical().to_string()),
        };
    }
    if text.contains(':') {
        return Err("it is no IPv6 address".to_owned());
    }
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    name_form(&name)?;
    let local = name.ends_with(".localhost").then_some(LOOPBACK);
    let known = REFUSED_NAMES.iter().find(|(refused, _)| *refused == name);
    match known.map(|(_, why)| *why).or(local) {
        Some(why) => Err(why.to_owned()),
        None => Ok(name),
    }
}

/// RFC 1123: labels of letters, digits and inner dashes.
fn name_form(name: &str) -> Result<(), String> {
    if name.contains('*') {
        return Err("a name is resolved to addresses, so * cannot stand in it".to_owned());
    }
    let label = |label: &str| {
        let plain = label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-');
        let dash = label.starts_with('-') || label.ends_with('-');
        plain && !dash && (1..=63).contains(&label.len())
    };
    if name.len() > 253 || !name.split('.').all(label) {
        return Err("it is no host name of letters, digits, dashes and dots".to_owned());
    }
    // Resolvers read 127.1, 2130706433 and 0x7f.1 as addresses: what looks like one must be one.
    let last = name.rsplit('.').next().unwrap_or("");
    let hex = last.strip_prefix("0x");
    let numeric = hex.is_some_and(|hex| hex.bytes().all(|c| c.is_ascii_hexdigit()));
    if numeric || last.bytes().all(|c| c.is_ascii_digit()) {
        return Err("it is neither a name nor an IPv4 address of four numbers".to_owned());
    }
    Ok(())
}

/// Why no agent may be given this address, in whatever form it comes: this host itself, cloud
/// metadata services, and what is no address to connect to. A name that leads here is as bad.
#[must_use]
pub fn refused_address(address: IpAddr) -> Option<&'static str> {
    let address = address.to_canonical();
    if METADATA_ADDRESSES.contains(&address) {
        return Some(METADATA);
    }
    match address {
        IpAddr::V4(v4) => refused_v4(v4),
        IpAddr::V6(v6) if v6.is_loopback() => Some(LOOPBACK),
        IpAddr::V6(v6) => match embedded(v6) {
            Some(v4) => refused_v4(v4),
            None => refused_v6(v6),
        },
    }
}

fn refused_v4(address: Ipv4Addr) -> Option<&'static str> {
    match address.octets() {
        [127, ..] => Some(LOOPBACK),
        [0, ..] => Some("it is no address to connect to"),
        [169, 254, ..] => Some("it is link-local, where cloud metadata services are"),
        [224..=239, ..] => Some("it is a multicast address"),
        [240..=255, ..] => Some("it is reserved or a broadcast address"),
        _ => None,
    }
}

fn refused_v6(address: Ipv6Addr) -> Option<&'static str> {
    match address.segments()[0] {
        0xfe80..=0xfebf => Some("it is link-local, where cloud metadata services are"),
        0xff00..=0xffff => Some("it is a multicast address"),
        _ => None,
    }
}

/// The IPv4 address inside a translated one: `64:ff9b::/96` (NAT64), `2002::/16` (6to4) and the
/// old `::a.b.c.d`. The mapped form is already gone.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let s = address.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Ipv4Addr::new(a, b, c, d)
    };
    match s {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(v4(high, low)),
        [0x2002, high, low, ..] => Some(v4(high, low)),
        [0, 0, 0, 0, 0, 0, high, low] => Some(v4(high, low)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_that_may_stand() {
        let good = [
            ("api.example.com:443", "api.example.com"),
            ("API.Example.COM.:443", "api.example.com"),
            ("intranet:443", "intranet"),
            ("3com.com:443", "3com.com"),
            ("xn--bcher-kva.example:443", "xn--bcher-kva.example"),
            ("192.0.2.1:443", "192.0.2.1"),
            ("10.0.0.7:443", "10.0.0.7"),
            ("[2001:db8:0:0::1]:443", "2001:db8::1"),
            ("[::ffff:192.0.2.1]:443", "192.0.2.1"),
        ];
        for (text, host) in good {
            let expected = HostPort { host: host.to_owned(), port: 443 };
            assert_eq!(host_port(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn hosts_that_may_not_stand() {
        let bad = [
            "",
            ":",
            ":443",
            "a",
            "a:",
            "a:0",
            "a:65536",
            "a:-1",
            "a:+1",
            "a:443x",
            "a:0443",
            "a b:443",
            "a\n:443",
            "-a:443",
            "a-:443",
            "a..b:443",
            ".:443",
            "a_b:443",
            "é:443",
            "*.example.com:443",
            "https://a:443",
            "a:443/x",
            "user@a:443",
            "localhost:443",
            "LOCALHOST.:443",
            "x.localhost:443",
            "127.0.0.1:443",
            "127.8.9.1:1",
            "0.0.0.0:443",
            "127.1:443",
            "2130706433:443",
            "0x7f000001:443",
            "0177.0.0.1:443",
            "1.2.3:443",
            "1.2.3.4.5:443",
            "a.0x10:443",
            "169.254.169.254:80",
            "224.0.0.1:443",
            "255.255.255.255:443",
            "100.100.100.200:80",
            "168.63.129.16:80",
            "::1:443",
            "2001:db8::1:443",
            "[::1]:443",
            "[::]:443",
            "[fe80::1]:443",
            "[fe80::1%eth0]:443",
            "[ff02::1]:443",
            "[::ffff:127.0.0.1]:443",
            "[::127.0.0.1]:443",
            "[64:ff9b::7f00:1]:443",
            "[2002:7f00:1::1]:443",
            "[::ffff:a9fe:a9fe]:80",
            "[fd00:ec2::254]:80",
            "[192.0.2.1]:443",
            "[a]:443",
            "[::1]",
            "[::1:443",
            "metadata.google.internal:80",
            "Metadata.Google.Internal.:80",
            "instance-data:80",
        ];
        for text in bad {
            assert!(host_port(text).is_err(), "{text:?}");
        }
        assert!(host_port(&format!("{}:443", "a".repeat(64))).is_err());
        assert!(host_port(&format!("{}:443", "a.".repeat(127) + "com")).is_err());
    }
}
