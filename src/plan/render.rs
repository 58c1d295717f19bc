//! A plan in words, for `flockctl plan`.

use std::fmt::Write as _;

use crate::config::{Access, Egress};
use crate::plan::{Plan, Property, Value};
use crate::text;

/// Everything that would be done for the agent, in the order in which it is done.
#[must_use]
pub fn render(plan: &Plan) -> String {
    let mut out = String::new();
    let mut section = |title: &str, lines: Vec<String>| {
        let _ = writeln!(out, "{title}");
        for line in lines {
            let _ = writeln!(out, "    {line}");
        }
    };
    section(
        &format!("{}: level {}, {}", plan.agent, plan.level.number(), plan.level.word()),
        plan.loosened.iter().map(|l| format!("loosened: {l}")).collect(),
    );
    section("user", vec![format!("{} uid {}", plan.user.name, plan.user.uid)]);
    section("tree", tree(plan));
    section("root", root(plan));
    section("egress", egress(plan));
    section("bus", bus(plan));
    let unit = plan.unit.properties.iter().map(property);
    section(&format!("unit {}", plan.unit.name), unit.collect());
    out
}

fn tree(plan: &Plan) -> Vec<String> {
    let common = match plan.tree.common {
        Access::ReadOnly => "read",
        Access::ReadWrite => "read and write",
    };
    let mut lines = vec![
        format!("{}: {} may read and write", plan.tree.workspace.display(), plan.user.name),
        format!("common: {} may {common}", plan.user.name),
    ];
    let bytes = plan.quota.bytes.map(text::bytes);
    let files = plan.quota.files.map(|number| format!("{number} files"));
    let quota: Vec<String> = bytes.into_iter().chain(files).collect();
    if !quota.is_empty() {
        lines.push(format!("quota of {}: {}", plan.user.name, quota.join(", ")));
    }
    lines
}

fn root(plan: &Plan) -> Vec<String> {
    let mut lines = vec![format!("{} becomes /", plan.root.dir.display())];
    lines.extend(plan.root.files.keys().map(|path| format!("/{} is its own", path.display())));
    lines.extend(plan.root.secrets.iter().map(|s| {
        format!("/{} is a copy of {}, for this agent alone", s.path.display(), s.source.display())
    }));
    lines
}

fn egress(plan: &Plan) -> Vec<String> {
    let mut lines = vec![format!("the bus at 127.0.0.1:{}", plan.bus_port)];
    match &plan.egress {
        Egress::Bus => lines.push("nothing else".to_owned()),
        Egress::Hosts(hosts) => {
            lines.extend(hosts.iter().map(|h| format!("{} port {}", h.host, h.port)));
        }
        Egress::Unrestricted => lines.push("anything else".to_owned()),
    }
    lines
}

fn bus(plan: &Plan) -> Vec<String> {
    let bus = &plan.bus;
    let rate = bus.rate.map_or_else(
        || "as fast as it can".to_owned(),
        |rate| format!("{} a second", text::bytes(rate)),
    );
    let mut lines = vec![format!("messages up to {}, {rate}", text::bytes(bus.message))];
    lines.extend(bus.channels.iter().map(|name| format!("member of channel {name}")));
    lines.extend(bus.may_request.iter().map(|id| format!("may request something of {id}")));
    lines.extend(bus.requesters.iter().map(|id| format!("{id} may request something of it")));
    lines
}

fn property(property: &Property) -> String {
    let when = match (property.since, property.until) {
        (252, None) => String::new(),
        (252, Some(until)) => format!("  (before systemd {until})"),
        (since, _) => format!("  (from systemd {since})"),
    };
    format!("{}={}{when}", property.name, value(&property.value))
}

fn value(value: &Value) -> String {
    let join = |parts: Vec<String>| parts.join(" ");
    match value {
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::I32(n) => n.to_string(),
        Value::U32(n) => n.to_string(),
        Value::U64(u64::MAX) => "infinity".to_owned(),
        Value::U64(n) => n.to_string(),
        Value::Str(text) => text.clone(),
        Value::Strs(list) | Value::Fields(list) => list.join(" "),
        Value::List(allow, list) => format!("{}{}", if *allow { "" } else { "~" }, list.join(" ")),
        Value::Statuses(statuses, signals) => {
            join(statuses.iter().chain(signals).map(i32::to_string).collect())
        }
        Value::Pairs(list) => join(list.iter().map(|(a, b)| format!("{a}:{b}")).collect()),
        Value::Files(list) => join(list.iter().map(|(path, _)| path.clone()).collect()),
        Value::Binds(list) => {
            let bind = |(source, target, optional, _): &(String, String, bool, u64)| {
                let dash = if *optional { "-" } else { "" };
                if source == target {
                    format!("{dash}{source}")
                } else {
                    format!("{dash}{source}:{target}")
                }
            };
            join(list.iter().map(bind).collect())
        }
        Value::Addresses(list) => join(list.iter().map(address).collect()),
        Value::Exec(list) => join(list.iter().map(|(_, argv, _)| format!("{argv:?}")).collect()),
        Value::Command(list) => join(list.iter().map(|(_, argv, _)| format!("{argv:?}")).collect()),
    }
}

fn address((_, bytes, prefix): &(i32, Vec<u8>, u32)) -> String {
    let text = if let Ok(v4) = <[u8; 4]>::try_from(&bytes[..]) {
        std::net::Ipv4Addr::from(v4).to_string()
    } else if let Ok(v6) = <[u8; 16]>::try_from(&bytes[..]) {
        std::net::Ipv6Addr::from(v6).to_string()
    } else {
        format!("{bytes:?}")
    };
    format!("{text}/{prefix}")
}
