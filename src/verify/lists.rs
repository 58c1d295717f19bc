//! What is tried one by one: calls, devices, lists of what is there.

use crate::host::sys::Call;
use crate::probe::inventory::Kind;

/// Calls, with the names of their checks. The user namespace comes last: it would give the probe
/// rights that the others are refused.
pub(super) const CALLS: [(&str, Call); 26] = [
    ("call.io-uring", Call::IoUring),
    ("call.setns", Call::Setns),
    ("call.mount", Call::Mount),
    ("call.bpf", Call::Bpf),
    ("call.perf", Call::Perf),
    ("call.add-key", Call::AddKey),
    ("call.keyctl", Call::Keyctl),
    ("call.userfaultfd", Call::Userfaultfd),
    ("call.init-module", Call::InitModule),
    ("call.kexec", Call::Kexec),
    ("call.reboot", Call::Reboot),
    ("call.swapoff", Call::Swapoff),
    ("call.set-clock", Call::SetClock),
    ("call.set-hostname", Call::SetHostname),
    ("call.kernel-log", Call::KernelLog),
    ("call.personality", Call::Personality),
    ("call.writable-code", Call::WritableCode),
    ("call.open-by-handle", Call::OpenByHandle),
    ("call.fanotify", Call::Fanotify),
    ("call.realtime", Call::Realtime),
    ("call.uts-namespace", Call::UtsNamespace),
    ("call.ipc-namespace", Call::IpcNamespace),
    ("call.cgroup-namespace", Call::CgroupNamespace),
    ("call.net-namespace", Call::NetNamespace),
    ("call.mount-namespace", Call::MountNamespace),
    ("call.user-namespace", Call::UserNamespace),
];

/// Devices that a host may have.
pub(super) const DEVICES: [&str; 9] = [
    "/dev/mem",
    "/dev/kmsg",
    "/dev/fuse",
    "/dev/kvm",
    "/dev/net/tun",
    "/dev/vda",
    "/dev/sda",
    "/dev/nvme0n1",
    "/dev/console",
];

/// The name under which a list is reported, and what is listed.
pub(super) const INVENTORIES: [(&str, Kind); 9] = [
    ("inventory.descriptors", Kind::Descriptors),
    ("inventory.environment", Kind::Environment),
    ("inventory.mounts", Kind::Mounts),
    ("inventory.devices", Kind::Devices),
    ("inventory.writable", Kind::Writable),
    ("inventory.sockets", Kind::Sockets),
    ("inventory.groups", Kind::Groups),
    ("inventory.calls", Kind::Calls),
    ("inventory.capabilities", Kind::Capabilities),
];
