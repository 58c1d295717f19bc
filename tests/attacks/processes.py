"""Processes: what an agent sees of others and does to them, and what it can take for itself."""

import ctypes
import os
import resource
import signal

from files import canary
from inside import call, first, libc, read, tried, write
from table import row


@row("PR-01", "see the processes of others", ["ProtectProc"], says="BLOCKED", zero="works")
def _(at):
    # At level 0 agents share a user: another's process is one outside of the own control group.
    others, mine = [], read("/proc/self/cgroup")
    for name in os.listdir("/proc"):
        if name.isdigit():
            its = tried(lambda: read(f"/proc/{name}/cgroup"))
            if tried(lambda: os.stat(f"/proc/{name}").st_uid != os.getuid()) == "GOT True" or at.agent == "zero" and its.startswith("GOT") and its != mine:
                others.append(name)
    return f"GOT {' '.join(others)}" if others else "BLOCKED"


def part(name):
    return lambda at: read(f"/proc/{at.victim['pid']}/{name}", 1 << 16)


row("PR-02", "read another's environment", ["PrivateUsers", "User"], says="ENOENT EACCES", seen=canary, zero="works")(part("environ"))
row("PR-02b", "read another's command line", ["ProtectProc"], says="ENOENT", zero="works")(part("cmdline"))
row("PR-02c", "read another's memory map", ["PrivateUsers", "User"], says="ENOENT EACCES", zero="works")(part("maps"))


@row("PR-02d", "read another's memory", ["PrivateUsers", "User"], says="ENOENT EACCES", seen=canary, zero="either")
def _(at):
    pid = at.victim["pid"]
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb") as memory:
        for line in maps:
            if "heap" in line or "SYSV" in line or "stack" in line:
                start, end = (int(x, 16) for x in line.split()[0].split("-"))
                memory.seek(start)
                content = memory.read(min(end - start, 4 << 20))
                where = content.find(b"CANARY-")
                if where >= 0:
                    return "GOT " + content[where:where + 80].decode("latin-1")
    return "NOTHING"


@row("PR-02e", "read the bus identity of another by its environment, and flock-agent's own", ["PrivateUsers", "User"],
     says="ENOENT EACCES", seen=lambda lab, tag, said: lab.has_identity(said), zero="blocked")
def _(at):
    # The parents of a task are flock-agent, of the agent's own user.
    pids, pid = [at.scene["runtimes"]["zero-worker" if at.agent == "zero" else "worker"]], os.getpid()
    for _ in range(6):
        pid = int(read(f"/proc/{pid}/stat").rsplit(")", 1)[1].split()[1])
        if pid <= 1:
            break
        pids.append(pid)
    return first(*(lambda p=p: read(f"/proc/{p}/environ", 1 << 16) for p in pids if "flock-agent" in tried(lambda: read(f"/proc/{p}/comm")) or p == pids[0]))


def signalled(lab, tag, said):
    return lab.signals(tag, said)


@row("PR-03", "signal another agent, by every call", ["User", "PrivateUsers"], says="EPERM ESRCH ENOENT", seen=signalled, zero="works")
def _(at):
    pid, info = at.victim["pid"], ctypes.create_string_buffer(128)

    def by_descriptor():
        opened = call("pidfd_open", pid, 0)
        return call("pidfd_send_signal", int(opened.split()[1]), signal.SIGUSR1, 0, 0) if opened.startswith("GOT") else opened
    return first(lambda: call("kill", pid, signal.SIGUSR1), lambda: call("tgkill", pid, pid, signal.SIGUSR1), by_descriptor)


@row("PR-03b", "signal flockd, the bus and PID 1", ["User"], says="EPERM ESRCH")
def _(at):
    return first(*(lambda p=p: call("kill", p, 0) for p in (*at.scene["services"], 1)))


@row("PR-04", "trace another agent, or read and write its memory by system calls", ["User", "PrivateUsers"], seen=canary, zero="either",
     says="EPERM ESRCH")
def _(at):
    pid, address = at.victim["pid"], at.victim["address"]
    buffer = ctypes.create_string_buffer(100)
    vector = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 80)
    remote = (ctypes.c_void_p * 2)(address, 80)

    def steal():
        said = call("process_vm_readv", pid, vector, 1, remote, 1, 0)
        return "GOT " + buffer.raw[:80].decode("latin-1") if said.startswith("GOT") else said
    said = first(steal)
    return said


@row("PR-04b", "attach to another agent as its debugger", ["User", "PrivateUsers", "SystemCallFilter"], zero="either", says="EPERM")
def _(at):
    pid = at.victim["pid"]
    # SEIZE does not stop it; the end of this process lets go.
    return call("ptrace", 0x4206, pid, 0, 0)


@row("PR-04c", "take an open socket out of another agent", ["User", "PrivateUsers", "SystemCallFilter"], zero="either", says="EPERM ESRCH ENOSYS")
def _(at):
    opened = call("pidfd_open", at.victim["pid"], 0)
    return call("pidfd_getfd", int(opened.split()[1]), 3, 0) if opened.startswith("GOT") else opened


@row("PR-04d", "trace a process of its own, to get past filters of descendants", ["SystemCallFilter"], zero="works")
def _(at):
    return call("ptrace", 0, 0, 0, 0)


@row("PR-13", "be killed last when memory ends", ["OOMScoreAdjust"], says="EACCES",
     needs=lambda: None if int(read("/proc/1/status").split("CapEff:")[1].split()[0], 16) >> 24 & 1 else "PID 1 has no CAP_SYS_RESOURCE here")
def _(at):
    # A plain process has 0 and may go up and back; an agent has 500 and may not go below.
    write("/proc/self/oom_score_adj", "0", "wb")
    return "GOT " + read("/proc/self/oom_score_adj")


@row("PR-13b", "raise its own limits", ["LimitNOFILE"], says="EPERM")
def _(at):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard > 4096:
        return f"GOT {hard}"
    return call("prlimit64", 0, 7, (ctypes.c_uint64 * 2)(8192, 8192), 0)


@row("PR-14", "open files without end", ["LimitNOFILE"], says="EMFILE", heavy=True)
def _(at):
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(5000, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2)
    held = []
    while len(held) < 4000:
        held.append(os.dup(0))


@row("PR-20", "write in the control groups: raise a limit, move itself out, make a group", ["ProtectControlGroups", "User"], says="EROFS EACCES ENOENT EPERM")
def _(at):
    group = "/sys/fs/cgroup" + read("/proc/self/cgroup").split("::")[1].strip()
    tries = []
    for place in (group, "/sys/fs/cgroup"):
        tries += [lambda p=place: os.mkdir(f"{p}/by-{at.tag}"), lambda p=place: write(f"{p}/cgroup.procs", str(os.getpid()), "r+b"),
                  lambda p=place: write(f"{p}/cgroup.max.descendants", "max", "r+b")]
    said = first(*tries)
    for place in (group, "/sys/fs/cgroup"):
        tried(lambda: os.rmdir(f"{place}/by-{at.tag}"))
    return said


@row("PR-21", "leave a core file", ["LimitCORE"], says="BLOCKED")
def _(at):
    if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        return "BLOCKED"
    resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20))


@row("PR-23", "real-time scheduling", ["RestrictRealtime", "User", "CapabilityBoundingSet", "PrivateUsers"])
def _(at):
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    os.sched_setscheduler(0, *before)


@row("PR-24", "a better priority than others, for processor and disk", ["User", "CapabilityBoundingSet", "PrivateUsers"], says="EACCES EPERM")
def _(at):
    return first(lambda: call("setpriority", 0, 0, -5), lambda: call("ioprio_set", 1, 0, 1 << 13))


@row("PR-25", "turn off what makes addresses hard to guess (personality)", ["LockPersonality"], zero="works")
def _(at):
    return call("personality", 0x0040000)


@row("PR-26", "memory that is writable and executable", ["MemoryDenyWriteExecute"], zero="works", says="EPERM EACCES")
def _(at):
    both = call("mmap", None, 4096, 7, 0x22, -1, 0)
    if both.startswith("GOT"):
        return both
    plain = call("mmap", None, 4096, 3, 0x22, -1, 0)
    return call("mprotect", int(plain.split()[1]), 4096, 5)


@row("PR-26b", "code of its own without such memory: a file in memory, mapped again to execute it", one="works", zero="works")
def _(at):
    fd = os.memfd_create("code")
    os.write(fd, b"\xb8\x2a\x00\x00\x00\xc3" + b"\x90" * 100)
    import mmap
    code = mmap.mmap(fd, 106, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)
    return "GOT" if code else "NOTHING"


@row("PR-27", "a program without a file (memfd and execve)", one="works", zero="works")
def _(at):
    fd = os.memfd_create("program", 0)
    with open("/usr/bin/true", "rb") as program:
        os.write(fd, program.read())
    child = os.fork()
    if child == 0:
        os.execve(f"/proc/self/fd/{fd}", ["x"], {})
    return f"GOT {os.waitpid(child, 0)[1]}"
