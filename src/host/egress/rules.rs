//! `Table` to nft text: pure. `nftables/flock.nft` is what this gives for the defaults.

use std::fmt::Write as _;
use std::net::IpAddr;

use super::{Grant, Table};
use crate::names::UidBlock;

/// The set that the kernel fills by itself.
pub(super) const RATES: &str = "rates";

/// Stands above the table in the text; nft drops it.
const HEADER: &str = "\
# The egress fence of flock: what the processes of agents may reach on the network.
# flockctl net-load writes such a text from the configuration and loads it; do not edit the table
# by hand, flockd puts it back. nftables/README.md explains each rule and names what it cannot see.
#
# The table inet flock is flock's alone, with both chains and all sets: `output` looks at every
# packet that leaves this host and passes on those of agents, `agents` judges these. Nothing else
# belongs in it. Your own rules stand in your own tables: a packet must pass all of them, so that
# neither side can open what the other closes.

# Replaced as a whole in one transaction: there is no moment without the table.
add table inet flock
delete table inet flock
";

/// The nft text that replaces the table.
pub(super) fn render(table: &Table) -> String {
    let Table { block, bus_port, bus_rate, grants, unrestricted } = table;
    let allow4 = elements(grants.iter().filter_map(|grant| match grant.addr.to_canonical() {
        IpAddr::V4(addr) => Some(element(grant, addr.to_string())),
        IpAddr::V6(_) => None,
    }));
    let allow6 = elements(grants.iter().filter_map(|grant| match grant.addr.to_canonical() {
        IpAddr::V4(_) => None,
        IpAddr::V6(addr) => Some(element(grant, addr.to_string())),
    }));
    let unrestricted = elements(unrestricted.iter().map(u32::to_string));
    let (rates, hold) =
        bus_rate.map_or_else(Default::default, |rate| bus_limit(rate, *bus_port, *block));
    format!(
        "{HEADER}
table inet flock {{
	# User, address and TCP port of each configured exception.
	set allow4 {{
		type uid . ipv4_addr . inet_service
{allow4}	}}

	set allow6 {{
		type uid . ipv6_addr . inet_service
{allow6}	}}

	# Users with `egress = \"unrestricted\"`.
	set unrestricted {{
		type uid
{unrestricted}	}}
{rates}
	# After every address translation of outgoing packets (priority dstnat), so that what is
	# judged is where the packet really goes. One comparison for the packets of everybody else.
	chain output {{
		type filter hook output priority filter; policy accept;
		meta skuid {block} goto agents
	}}

	chain agents {{
		# Agents serve nobody: no connection is ever answered, whoever asks.
		tcp flags & (syn | ack) == (syn | ack) counter reject with tcp reset
		# Nor does an agent speak as the bus, should it get hold of its port.
		tcp sport {bus_port} counter reject with tcp reset

{hold}		# The bus.
		oifname \"lo\" ip daddr 127.0.0.1 tcp dport {bus_port} counter accept

		# Configured exceptions.
		meta skuid . ip daddr . tcp dport @allow4 counter accept
		meta skuid . ip6 daddr . tcp dport @allow6 counter accept

		# Without restriction: everything outside; on this host TCP, and UDP to the ports that
		# agents cannot have (a name server's), so that it cannot send to another agent.
		meta skuid @unrestricted oifname != \"lo\" counter accept
		meta skuid @unrestricted tcp dport 1-65535 counter accept
		meta skuid @unrestricted udp dport 1-1023 counter accept

		# Everything else. On loopback a reset tells a connection at once. Elsewhere it would not
		# pass IPAddressDeny= on its way back, and nobody would be told; the ICMP error passes, and
		# TCP heeds it with its next try, after a second.
		oifname \"lo\" ip daddr 127.0.0.1 tcp dport 1-65535 counter reject with tcp reset
		counter reject with icmpx admin-prohibited
	}}
}}
"
    )
}

/// What a user may send at once before its rate counts: one message of the largest size, so that
/// the result of a task is not slowed down, and enough for a high rate to be reached.
fn burst(rate: u64) -> u64 {
    (rate / 4).clamp(2 << 20, 64 << 20)
}

/// The set that counts for each user, and the rule that holds it to the rate. Both are there once,
/// whatever the number of agents; the kernel adds a user to the set with its first packet.
fn bus_limit(rate: u64, bus_port: u16, block: UidBlock) -> (String, String) {
    let (size, limit) = (u64::from(block.last.saturating_sub(block.first)) + 1, limit(rate));
    let set = format!(
        "
	# What each user sent to the bus of late.
	set {RATES} {{
		type uid
		size {size}
		flags dynamic
	}}
"
    );
    let rule = format!(
        "		# The bus, not faster than its rate: the packet is dropped, TCP sends it again and slower.
		oifname \"lo\" ip daddr 127.0.0.1 tcp dport {bus_port} update @{RATES} {{ meta skuid {limit} }} counter drop

"
    );
    (set, rule)
}

/// The limit as nft prints it.
fn limit(rate: u64) -> String {
    let size = |mut number: u64| {
        let mut unit = "bytes";
        for larger in ["kbytes", "mbytes"] {
            if number.is_multiple_of(1024) {
                (number, unit) = (number / 1024, larger);
            } else {
                break;
            }
        }
        (number, unit)
    };
    let ((rate, per), (burst, unit)) = (size(rate), size(burst(rate)));
    format!("limit rate over {rate} {per}/second burst {burst} {unit}")
}

fn element(grant: &Grant, address: String) -> String {
    format!("{} . {address} . {}", grant.uid, grant.port)
}

/// The line of a set's elements; nft has no form for an empty one.
fn elements(list: impl Iterator<Item = String>) -> String {
    let mut line = String::new();
    for (n, element) in list.enumerate() {
        let before = if n == 0 { "\t\telements = { " } else { ",\n\t\t\t     " };
        let _ = write!(line, "{before}{element}");
    }
    if !line.is_empty() {
        line.push_str(" }\n");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/nftables/flock.nft");

    #[test]
    fn the_shipped_table_is_the_default_one() {
        let table = Table {
            block: UidBlock::DEFAULT,
            bus_port: 14_222,
            bus_rate: Some(16 << 20),
            grants: [].into(),
            unrestricted: [].into(),
        };
        let text = render(&table);
        if std::env::var_os("FLOCK_BLESS").is_some() {
            std::fs::write(SHIPPED, &text).unwrap();
        }
        assert_eq!(std::fs::read_to_string(SHIPPED).unwrap(), text, "FLOCK_BLESS=1 writes it anew");
    }

    #[test]
    fn exceptions_stand_in_sets_by_family() {
        let grant = |uid, addr: &str, port| Grant { uid, addr: addr.parse().unwrap(), port };
        let table = Table {
            block: UidBlock { first: 100, last: 200 },
            bus_port: 4000,
            bus_rate: None,
            grants: [
                grant(101, "192.0.2.1", 443),
                grant(102, "::ffff:192.0.2.2", 80),
                grant(102, "2001:db8::1", 80),
            ]
            .into(),
            unrestricted: [103, 104].into(),
        };
        let text = render(&table);
        for part in [
            "elements = { 101 . 192.0.2.1 . 443,\n\t\t\t     102 . 192.0.2.2 . 80 }",
            "elements = { 102 . 2001:db8::1 . 80 }",
            "elements = { 103,\n\t\t\t     104 }",
            "meta skuid 100-200 goto agents",
            "tcp dport 4000 counter accept",
            "tcp sport 4000 counter reject with tcp reset",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(!text.contains("limit rate") && !text.contains("set rates"), "{text}");
    }

    #[test]
    fn a_rate_is_written_as_nft_prints_it() {
        let all = [
            (1 << 20, "limit rate over 1 mbytes/second burst 2 mbytes"),
            (16 << 20, "limit rate over 16 mbytes/second burst 4 mbytes"),
            (10 << 30, "limit rate over 10240 mbytes/second burst 64 mbytes"),
            (1500 << 10, "limit rate over 1500 kbytes/second burst 2 mbytes"),
            (9_000_001, "limit rate over 9000001 bytes/second burst 2250000 bytes"),
        ];
        for (rate, text) in all {
            assert_eq!(limit(rate), text);
        }
    }
}
