//! Every check: what it is called, and at which level its refusal is promised. The one table that
//! verdicts stand on; `docs/promises.md` says the same in words.

use serde::{Serialize, Serializer};

use crate::config::{Access, Egress};
use crate::names::Level;
use crate::plan::{Plan, Value};

/// A part of the boundary; a column of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Area {
    /// Files of others and of the host.
    Files,
    /// Other processes.
    Processes,
    /// Objects and sockets by which processes talk.
    Ipc,
    /// The network.
    Network,
    /// The message bus.
    Bus,
    /// System calls and devices.
    Kernel,
    /// Its own privileges.
    Privileges,
    /// What it may use up.
    Limits,
    /// Whether the machine is as it was planned, seen from outside.
    Machine,
}

impl Area {
    /// In the order of the columns.
    pub const ALL: [Self; 9] = [
        Self::Files,
        Self::Processes,
        Self::Ipc,
        Self::Network,
        Self::Bus,
        Self::Kernel,
        Self::Privileges,
        Self::Limits,
        Self::Machine,
    ];

    /// The head of the column.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Files => "files",
            Self::Processes => "processes",
            Self::Ipc => "ipc",
            Self::Network => "network",
            Self::Bus => "bus",
            Self::Kernel => "kernel",
            Self::Privileges => "privileges",
            Self::Limits => "limits",
            Self::Machine => "machine",
        }
    }
}

/// From where an attempt is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Vantage {
    /// Inside the agent's own sandbox.
    Sandbox,
    /// The agent's user alone, without the sandbox: does the wall behind it hold as well?
    User,
}

/// When a refusal is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// At every level.
    Always,
    /// From level 1 on.
    Level1,
    /// Where attacker and target have different users.
    OtherUser,
    /// Either of the two above.
    Level1OrOtherUser,
    /// Unless the configuration opens the network.
    Fenced,
    /// Unless the configuration lets it write the common directory.
    CommonReadOnly,
    /// From level 1 on, unless the configuration allows just-in-time compilers.
    NoJit,
    /// Unless the host cannot, and the configuration accepts that.
    Enforced,
    /// At no level.
    Never,
}

/// What a promise depends on.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// The attacker's level.
    pub level: Level,
    /// Whether the target belongs to another Unix user.
    pub other_user: bool,
    /// Whether the network is closed but for the bus and what is listed.
    pub fenced: bool,
    /// Whether the common directory is read-only for it.
    pub common_read_only: bool,
    /// Whether its memory may not be writable and executable.
    pub no_jit: bool,
    /// Whether limits have their controllers.
    pub enforced: bool,
}

impl Case {
    /// The case of an agent against one of `uid`; `None` for what is the host's.
    #[must_use]
    pub fn of(plan: &Plan, uid: Option<u32>, enforced: bool) -> Self {
        Self {
            level: plan.level,
            other_user: uid != Some(plan.user.uid),
            fenced: plan.egress != Egress::Unrestricted,
            common_read_only: plan.tree.common == Access::ReadOnly,
            no_jit: plan.unit.value("MemoryDenyWriteExecute") == Some(&Value::Bool(true)),
            enforced,
        }
    }
}

impl When {
    /// Whether the refusal is promised in this case.
    #[must_use]
    pub fn holds(self, case: &Case) -> bool {
        let level1 = case.level >= Level::Process;
        match self {
            Self::Always => true,
            Self::Level1 => level1,
            Self::OtherUser => case.other_user,
            Self::Level1OrOtherUser => level1 || case.other_user,
            Self::Fenced => case.fenced,
            Self::CommonReadOnly => case.common_read_only,
            Self::NoJit => level1 && case.no_jit,
            Self::Enforced => case.enforced,
            Self::Never => false,
        }
    }

    /// Why nothing is promised, for people.
    #[must_use]
    pub fn why_not(self, case: &Case) -> &'static str {
        match self {
            Self::Fenced => "the configuration opens its network",
            Self::CommonReadOnly => "the configuration lets it write there",
            Self::NoJit if case.level >= Level::Process => "the configuration allows it (jit)",
            Self::Enforced => {
                "the host has no controller for it, and the configuration accepts that"
            }
            Self::OtherUser => "they share a user (level 0)",
            Self::Never => "no level of this host promises it",
            _ => "level 0 does not promise it",
        }
    }
}

/// One check.
#[derive(Debug, PartialEq, Eq)]
pub struct Check {
    /// Its name in reports; stable.
    pub id: &'static str,
    /// The part of the boundary.
    pub area: Area,
    /// What is tried, in few words.
    pub words: &'static str,
    /// When the sandbox is promised to refuse it.
    pub sandbox: When,
    /// When the agent's user alone is promised to be refused; `None`: there is no such wall.
    pub user: Option<When>,
    /// Whether hosts may be without the target: then nothing was promised about it.
    pub optional: bool,
    /// For a state instead of an attempt: the value that protects.
    pub wanted: Option<&'static str>,
}

impl Serialize for Check {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.id)
    }
}

impl Check {
    /// The promise for a vantage; `None`: it is not judged from there.
    #[must_use]
    pub fn when(&self, vantage: Vantage) -> Option<When> {
        match vantage {
            Vantage::Sandbox => Some(self.sandbox),
            Vantage::User => self.user,
        }
    }
}

const fn check(
    id: &'static str,
    area: Area,
    words: &'static str,
    sandbox: When,
    user: Option<When>,
) -> Check {
    Check { id, area, words, sandbox, user, optional: false, wanted: None }
}

/// A host may be without it.
const fn maybe(check: Check) -> Check {
    Check { optional: true, ..check }
}

/// A state of the probe itself.
const fn state(check: Check, wanted: &'static str) -> Check {
    Check { wanted: Some(wanted), ..check }
}

/// A call that the sandbox keeps from the kernel.
const fn call(id: &'static str, words: &'static str, when: When) -> Check {
    maybe(check(id, Area::Kernel, words, when, None))
}

/// The check with this name.
#[must_use]
pub fn find(id: &str) -> Option<&'static Check> {
    CHECKS.iter().find(|check| check.id == id)
}

use Area::{Bus, Files, Ipc, Kernel, Limits, Machine, Network, Privileges, Processes};
use When::{
    Always, CommonReadOnly, Enforced, Fenced, Level1, Level1OrOtherUser, Never, NoJit, OtherUser,
};

/// All checks, in the order of the matrix.
pub const CHECKS: &[Check] = &[
    check("file.read", Files, "read another agent's file", Always, Some(OtherUser)),
    check("file.write", Files, "change another agent's file", Always, Some(OtherUser)),
    check("file.list", Files, "list another agent's directory", Always, Some(OtherUser)),
    check(
        "file.create",
        Files,
        "make a file in another agent's directory",
        Always,
        Some(OtherUser),
    ),
    maybe(check("file.log", Files, "read another agent's log", OtherUser, Some(OtherUser))),
    check("file.identity", Files, "read a bus password file", Always, Some(Always)),
    check("file.agents", Files, "list the agents' directories", Always, Some(Always)),
    check("file.common", Files, "write the common directory", CommonReadOnly, Some(CommonReadOnly)),
    check("file.shadow", Files, "read the host's password hashes", Always, Some(Always)),
    check("file.config", Files, "read flock's configuration", Always, Some(Always)),
    check("file.state", Files, "look into flock's state", Always, Some(Always)),
    check("file.system", Files, "write the host's programs and settings", Always, Some(Always)),
    check("file.setuid", Files, "make a file that runs as its owner", Level1, None),
    check("file.device", Files, "make a device node", Level1, None),
    check("proc.see", Processes, "see a process", Level1, None),
    check("proc.signal", Processes, "signal a process", OtherUser, Some(OtherUser)),
    check("proc.trace", Processes, "trace a process", Level1OrOtherUser, Some(OtherUser)),
    check("proc.memory", Processes, "read a process's memory", Level1OrOtherUser, Some(OtherUser)),
    check("proc.descriptor", Processes, "take a descriptor", Level1OrOtherUser, Some(OtherUser)),
    check("proc.environ", Processes, "read an environment", Level1OrOtherUser, Some(OtherUser)),
    check("proc.mem", Processes, "open a memory file", Level1OrOtherUser, Some(OtherUser)),
    check("proc.root", Processes, "look through a root link", Level1OrOtherUser, Some(OtherUser)),
    check("ipc.memory", Ipc, "find System V memory", Level1, None),
    check("ipc.semaphores", Ipc, "find System V semaphores", Level1, None),
    check("ipc.queue", Ipc, "find a System V queue", Level1, None),
    check("ipc.posix-queue", Ipc, "open a POSIX queue", Level1, None),
    check("ipc.shm", Ipc, "read the host's /dev/shm", Always, None),
    check("ipc.unix", Ipc, "connect to a socket at a path", Always, None),
    check("ipc.abstract", Ipc, "connect to an abstract socket", Never, None),
    maybe(check("ipc.host", Ipc, "connect to a service of the host", Always, None)),
    check("net.tcp", Network, "reach another agent by TCP", Fenced, Some(Fenced)),
    check("net.udp", Network, "reach another agent by UDP", Fenced, Some(Fenced)),
    check("net.port", Network, "reach another port of the host", Fenced, Some(Fenced)),
    check("net.tcp6", Network, "reach the host by TCP over IPv6", Fenced, Some(Fenced)),
    check("net.udp6", Network, "reach the host by UDP over IPv6", Fenced, Some(Fenced)),
    maybe(check("net.ping", Network, "ping the host", Fenced, Some(Fenced))),
    check("net.dns", Network, "ask the host's resolver by UDP", Fenced, Some(Fenced)),
    check("net.dns-tcp", Network, "ask the host's resolver by TCP", Fenced, Some(Fenced)),
    maybe(check("net.metadata", Network, "reach the cloud's metadata", Fenced, Some(Fenced))),
    check("net.raw", Network, "open a raw socket", Always, None),
    check("net.packet", Network, "open a packet socket", Always, None),
    check("net.netlink", Network, "open a netlink socket", Fenced, None),
    maybe(check("net.vsock", Network, "open a socket to the hypervisor", Always, None)),
    check("bus.task", Bus, "give another agent a task", Always, None),
    check("bus.result", Bus, "send a result in another's name", Always, None),
    check("bus.event", Bus, "send an event in another's name", Always, None),
    check("bus.take", Bus, "take another agent's task", Always, None),
    check("bus.listen", Bus, "listen to another agent", Always, None),
    check("bus.all", Bus, "hear what others say, whatever its subject", Always, None),
    check("bus.tasks", Bus, "hear the tasks of others", Always, None),
    check("bus.inbox", Bus, "hear answers that others get", Always, None),
    check("bus.system", Bus, "ask the server about others", Always, None),
    check("bus.streams", Bus, "manage what is stored", Always, None),
    check("bus.copied", Bus, "hide another's result by its message id", Always, None),
    call("call.io-uring", "io_uring", Always),
    call("call.user-namespace", "make a user namespace", Level1),
    call("call.mount-namespace", "make a mount namespace", Level1),
    call("call.net-namespace", "make a network namespace", Level1),
    call("call.uts-namespace", "make a name namespace", Level1),
    call("call.ipc-namespace", "make an IPC namespace", Level1),
    call("call.cgroup-namespace", "make a cgroup namespace", Level1),
    call("call.setns", "enter a namespace", Level1),
    call("call.mount", "mount", Level1),
    call("call.bpf", "load BPF", Level1),
    call("call.perf", "open a performance counter", Level1),
    call("call.add-key", "add a key to a keyring", Level1),
    call("call.keyctl", "ask for a keyring", Level1),
    call("call.userfaultfd", "handle page faults", Level1),
    call("call.init-module", "load a kernel module", Level1),
    call("call.kexec", "load another kernel", Level1),
    call("call.reboot", "reboot", Level1),
    call("call.swapoff", "switch swap off", Level1),
    call("call.set-clock", "set the clock", Level1),
    call("call.set-hostname", "set the host's name", Level1),
    call("call.kernel-log", "read the kernel's log", Level1),
    call("call.personality", "switch compatibility modes", Level1),
    call("call.realtime", "take real-time priority", Level1),
    call("call.writable-code", "make memory writable and executable", NoJit),
    call("call.open-by-handle", "open a file past its path", Level1),
    call("call.fanotify", "watch a file system", Level1),
    maybe(check("device", Kernel, "open a device", Level1, None)),
    state(check("own.no-new-privileges", Privileges, "gain privileges by exec", Always, None), "1"),
    state(check("own.capabilities", Privileges, "hold a capability", Level1, None), NO_CAPS),
    state(check("own.bounding", Privileges, "be given a capability", Level1, None), NO_CAPS),
    check("limit.tasks", Limits, "make more tasks than it may", Enforced, None),
    check("limit.files", Limits, "open more files than it may", Always, None),
    check("limit.tmp", Limits, "fill more of /tmp than it may", Always, None),
    check("limit.memory", Limits, "its memory is bounded as planned", Enforced, None),
    check("limit.cpu", Limits, "its share of the processors is bounded as planned", Enforced, None),
    check("list.writable", Files, "have a directory to write that nobody approved", Always, None),
    check("list.mounts", Files, "have a mount to write that nobody approved", Always, None),
    check("list.sockets", Ipc, "have a socket in sight that nobody approved", Always, None),
    check("list.calls", Kernel, "have a system call that nobody approved", Always, None),
    check("list.devices", Kernel, "have a device that nobody approved", Always, None),
    check("list.capabilities", Privileges, "have a capability that nobody approved", Always, None),
    check("list.descriptors", Privileges, "be given a file that nobody approved", Always, None),
    check("list.environment", Privileges, "be given a variable that nobody approved", Always, None),
    check("list.groups", Privileges, "be in a group that nobody approved", Always, None),
    check("machine.unit", Machine, "its unit is as planned", Always, None),
    check("machine.process", Machine, "its process is as planned", Always, None),
    check("machine.limits", Machine, "every limit is enforced", Always, None),
    check("machine.fence", Machine, "the egress table is as planned", Always, None),
];

/// No capability, as the kernel writes it.
const NO_CAPS: &str = "0000000000000000";

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_plain() {
        let names: BTreeSet<_> = CHECKS.iter().map(|c| c.id).collect();
        assert_eq!(names.len(), CHECKS.len());
        assert!(
            names.iter().all(|n| n.bytes().all(|c| c.is_ascii_lowercase() || b".-6".contains(&c)))
        );
    }

    #[test]
    fn a_higher_level_never_promises_less() {
        for check in CHECKS {
            for bits in 0..16u8 {
                let case = |level| Case {
                    level,
                    other_user: bits & 1 != 0,
                    fenced: bits & 2 != 0,
                    common_read_only: bits & 4 != 0,
                    no_jit: bits & 8 != 0,
                    enforced: bits & 1 != 0,
                };
                let (low, high) = (case(Level::Workspace), case(Level::Process));
                assert!(check.sandbox.holds(&high) || !check.sandbox.holds(&low), "{}", check.id);
            }
        }
    }
}
