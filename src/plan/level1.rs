//! Level 1, process isolation: what the sandbox adds to the workspace.
//!
//! The list closed every probe that was tried on systemd 252, 255 and 257; each line closes one
//! way out. `docs/promises.md` names them.

use crate::config::{AgentConfig, Need};
use crate::plan::level0::CLOSED;
use crate::plan::{Property, Value};

/// The namespaces that may be made: that of the host's name alone, and that one needs a privilege
/// which the agent has not.
///
/// An empty mask would say it better. But systemd writes that one down as `RestrictNamespaces=`,
/// which means "no restriction" when it reads it again: after a daemon-reload, and every update of
/// a package does one, the next restart of the agent would come without it.
pub(super) const NAMESPACES: u64 = 0x0400_0000;

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
    let homes = ["/home", "/root", "/run/user"];
    let homes = homes.map(|path| (path.to_owned(), CLOSED.to_owned())).to_vec();
    vec![
        Property::new("ProtectSystem", "strict"),
        // Not "yes": a path below /home that the operator grants could not be bound in then.
        Property::since(257, "ProtectHome", "tmpfs"),
        // The same by hand: before, those were open to everybody, without a size.
        Property::new("TemporaryFileSystem", Value::Pairs(homes)).until(257),
        Property::new("PrivateDevices", true),
        Property::new("DevicePolicy", "closed"),
        // Other users' processes do not exist, and /proc holds nothing but processes.
        Property::new("ProtectProc", "invisible"),
        Property::new("ProcSubset", "pid"),
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
        // "+": of the agent's root. Without it this is a path of the host, which is not in there.
        Property::new("InaccessiblePaths", ["-+/sys/fs/cgroup"]).until(257),
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
        Property::new("RestrictNamespaces", Value::U64(NAMESPACES)),
    ]
}
