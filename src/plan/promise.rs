//! Which property keeps an agent from what. The only list of protections that flock puts in words.

use super::{UnitPlan, Value};

/// Whether a value is the one that protects.
type Holds = fn(&Value) -> bool;

/// A property, the value that protects, and what it means.
const PROMISES: [(&str, Holds, &str); 20] = [
    ("NoNewPrivileges", yes, "gain privileges from a program such as sudo"),
    ("CapabilityBoundingSet", nothing, "hold a capability, whatever it runs"),
    ("PrivateUsers", yes, "act as any user of the host but its own"),
    ("RestrictNamespaces", no_namespaces, "make namespaces"),
    ("RestrictSUIDSGID", yes, "make files that run as their owner"),
    ("SystemCallFilter", services, "make system calls that services do not need"),
    ("SystemCallArchitectures", native, "make system calls of another architecture"),
    ("PrivateDevices", yes, "reach hardware: it has /dev/null and the like"),
    ("ProtectSystem", strict, "write anywhere but where it is said above"),
    ("ProtectKernelTunables", yes, "change kernel settings"),
    ("ProtectKernelModules", yes, "load kernel modules"),
    ("ProtectKernelLogs", yes, "read the kernel's log"),
    ("ProtectClock", yes, "set the clock"),
    ("ProtectHostname", yes, "change the host's name"),
    ("PrivateIPC", yes, "share System V or POSIX queues and memory with others"),
    ("KeyringMode", private, "see the kernel keys of others"),
    ("LockPersonality", yes, "switch the kernel's compatibility modes"),
    ("RestrictRealtime", yes, "take real-time priority"),
    ("MemoryDenyWriteExecute", yes, "make memory that is writable and executable"),
    ("LimitCORE", nothing, "leave a core file"),
];

/// What the properties of a unit keep its processes from, one line each.
pub(super) fn promises(unit: &UnitPlan) -> Vec<String> {
    let mut lines: Vec<String> = PROMISES
        .iter()
        .filter(|(name, holds, _)| always(unit, name, *holds))
        .map(|(_, _, sentence)| (*sentence).to_owned())
        .collect();
    if denied(unit, "io_uring_setup") {
        lines.push("use io_uring, which opens sockets past other rules".to_owned());
    }
    let sockets = unit.properties.iter().find(|p| p.name == "RestrictAddressFamilies");
    if let Some(Value::List(true, families)) = sockets.filter(|p| p.is_for_all()).map(|p| &p.value)
    {
        lines.push(format!("open sockets other than {}", families.join(", ")));
    }
    lines
}

/// Whether the property is sent to every supported systemd, with a value that protects.
fn always(unit: &UnitPlan, name: &str, holds: Holds) -> bool {
    let mut all = unit.properties.iter().filter(|property| property.name == name);
    all.any(|property| property.is_for_all() && holds(&property.value))
}

/// Whether a list that forbids names this system call.
fn denied(unit: &UnitPlan, call: &str) -> bool {
    unit.properties.iter().any(|property| {
        property.name == "SystemCallFilter"
            && property.is_for_all()
            && matches!(&property.value, Value::List(false, calls) if calls.iter().any(|c| c == call))
    })
}

fn yes(value: &Value) -> bool {
    *value == Value::Bool(true)
}

/// An empty set, or none of something.
fn nothing(value: &Value) -> bool {
    *value == Value::U64(0)
}

fn no_namespaces(value: &Value) -> bool {
    *value == Value::U64(super::level1::NAMESPACES)
}

fn services(value: &Value) -> bool {
    matches!(value, Value::List(true, calls) if calls == &["@system-service"])
}

fn native(value: &Value) -> bool {
    matches!(value, Value::Strs(list) if list == &["native"])
}

fn strict(value: &Value) -> bool {
    matches!(value, Value::Str(word) if word == "strict")
}

fn private(value: &Value) -> bool {
    matches!(value, Value::Str(word) if word == "private")
}
