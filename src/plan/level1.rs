//! Level 1, process isolation: what the sandbox adds to the workspace.
//!
//! The list closed every probe that was tried on systemd 252, 255 and 257; each line closes one
//! way out. `docs/promises.md` names them.

use crate::config::{AgentConfig, Need};
use crate::plan::{Property, Value};

/// The properties of the sandbox. The system call filter of this level stands with level 0's.
pub(super) fn properties(agent: &AgentConfig) -> Vec<Property> {
    let mut all = files();
    all.extend(kernel());
    all.extend(privileges());
    // Just-in-time compilers need memory that is writable and executable.
    all.push(Property::new("MemoryDenyWriteExecute", !agent.needs.contains(&Need::Jit)));
    all
}

fn files() -> Vec<Property> {
    vec![
        Property::new("ProtectSystem", "strict"),
        // Not "yes": a path below /home that the operator grants could not be bound in then.
        Property::new("ProtectHome", "tmpfs"),
        Property::new("PrivateDevices", true),
        Property::new("DevicePolicy", "closed"),
        // Other users' processes do not exist, and /proc holds nothing but processes.
        Property::new("ProtectProc", "invisible"),
        Property::new("ProcSubset", "pid"),
        // 257 binds the journal's sockets into a RootDirectory=; standard output works without.
        Property::since(257, "BindLogSockets", false),
    ]
}

fn kernel() -> Vec<Property> {
    vec![
        Property::new("ProtectKernelTunables", true),
        Property::new("ProtectKernelModules", true),
        Property::new("ProtectKernelLogs", true),
        Property::new("ProtectClock", true),
        Property::new("ProtectHostname", true),
        // From 257 an agent sees its own cgroup alone; before, the names of all agents would show.
        Property::new("ProtectControlGroups", true).until(257),
        Property::new("InaccessiblePaths", ["-/sys/fs/cgroup"]).until(257),
        Property::since(257, "ProtectControlGroupsEx", "strict"),
        Property::new("PrivateIPC", true),
        Property::new("KeyringMode", "private"),
        Property::new("LockPersonality", true),
        Property::new("RestrictRealtime", true),
    ]
}

fn privileges() -> Vec<Property> {
    vec![
        Property::new("PrivateUsers", true),
        Property::new("CapabilityBoundingSet", 0u64),
        Property::new("AmbientCapabilities", 0u64),
        Property::new("RestrictSUIDSGID", true),
        // The mask of namespaces that may be made: none.
        Property::new("RestrictNamespaces", Value::U64(0)),
    ]
}
