//! `Table` to nft text: pure. `nftables/flock.nft` is what this gives for the defaults.

use std::fmt::Write as _;
use std::net::IpAddr;

use super::{Grant, Table};

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
    let Table { block, bus_port, grants, unrestricted } = table;
    let allow4 = elements(grants.iter().filter_map(|grant| match grant.addr.to_canonical() {
        IpAddr::V4(addr) => Some(element(grant, addr.to_string())),
        IpAddr::V6(_) => None,
    }));
    let allow6 = elements(grants.iter().filter_map(|grant| match grant.addr.to_canonical() {
        IpAddr::V4(_) => None,
        IpAddr::V6(addr) => Some(element(grant, addr.to_string())),
    }));
    let unrestricted = elements(unrestricted.iter().map(u32::to_string));
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

		# The bus.
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
    use crate::names::UidBlock;

    const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/nftables/flock.nft");

    #[test]
    fn the_shipped_table_is_the_default_one() {
        let table = Table {
            block: UidBlock::DEFAULT,
            bus_port: 14_222,
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
    }
}
