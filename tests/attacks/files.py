"""Files: what an agent reads and writes beyond its own directory."""

import ctypes
import errno
import os
import pathlib
import re
import subprocess

from inside import call, first, libc, read, tried, write
from table import row


def canary(lab, tag, said):
    """Success is the canary of a victim in what the program says; nobody could guess it."""
    return lab.has_canary(said)


def victims_file(at, name="canary"):
    return at.places(f"agents/{at.victim['id']}/{name}")


@row("FS-01", "read another agent's file, whose mode says everybody may", ["view", "tree"], says="ENOENT", seen=canary, base="agent")
def _(at):
    return first(*(lambda p=p: read(p) for p in victims_file(at)),
                 *(lambda p=p: read(p.parent.parent / "." / p.parent.name / p.name) for p in victims_file(at)))


@row("FS-02", "list the agents", ["view", "tree"], says="BLOCKED", base="agent")
def _(at):
    for place in at.places("agents"):
        names = tried(lambda: "GOT " + " ".join(os.listdir(place)))
        if names.startswith("GOT") and names.split()[1:] != [at.agent]:
            return names
    return "BLOCKED"


def changed(lab, tag, said):
    return lab.victims_changed(tag)


@row("FS-03", "change another agent's directory: create, write, rename, remove, utimes, attributes", ["view", "tree"],
     says="ENOENT", seen=changed, base="agent")
def _(at):
    # A file for each run, so that runs do not find each other's marks; what is renamed and removed is its own.
    done = []
    for place in victims_file(at, f"by-{at.tag}"):
        other = place.with_name(place.name + "-2")
        done += [tried(act) for act in (
            lambda: write(place, "planted"), lambda: os.rename(place, other), lambda: os.mkdir(place), lambda: os.symlink("/etc/shadow", f"{place}-link"),
            lambda: os.utime(place.with_name("canary")), lambda: write(place.with_name("signals"), "", "ab"),
            lambda: os.setxattr(place.with_name("canary"), f"user.{at.tag}", b"x"), lambda: os.truncate(place.with_name("signals"), 0),
            lambda: write(place.parent.parent / f"by-{at.tag}", "planted"))]
    works = [said for said in done if said.startswith("GOT")]
    return works[0] if works else done[0]


@row("FS-04", "open its own directory to others", ["tree"], base="agent", says="EPERM")
def _(at):
    access = b"\2\0\0\0\1\0\7\0\xff\xff\xff\xff\4\0\7\0\xff\xff\xff\xff\x20\0\7\0\xff\xff\xff\xff"
    return first(lambda: os.chmod(at.own, 0o777), lambda: os.setxattr(at.own, "system.posix_acl_access", access),
                 lambda: os.setxattr(at.own, "system.posix_acl_default", access), lambda: call("chmod", str(at.own).encode(), 0o777))


@row("FS-07", "link a program of the host, to take over what root does to it", ["view", "User"], says="EXDEV EPERM")
def _(at):
    link = at.own / f"link-{at.tag}"
    said = tried(lambda: os.link("/usr/bin/passwd", link))
    link.unlink(missing_ok=True)
    return said


@row("FS-11", "make device nodes", ["User", "PrivateUsers", "CapabilityBoundingSet", "PrivateDevices"])
def _(at):
    node = str(at.own / f"node-{at.tag}").encode()
    said = first(lambda: call("mknod", node, 0o60666, 8 << 8), lambda: call("mknod", node, 0o20666, 0x101))
    tried(lambda: os.unlink(node))
    return said


@row("FS-12", "a set-user-id file, by every call that can make one", ["RestrictSUIDSGID"], zero="works")
def _(at):
    path = at.own / f"suid-{at.tag}"
    name = str(path).encode()
    path.unlink(missing_ok=True)
    path.write_text("x")
    fd = os.open(path, os.O_RDWR)

    def bits(act):
        def attempt():
            said = act()
            if isinstance(said, str) and not said.startswith("GOT"):
                return said
            mode = os.stat(name + b"-2").st_mode if os.path.exists(name + b"-2") else os.stat(path).st_mode
            return "GOT" if mode & 0o6000 else "NOBIT"
        return attempt

    said = first(*map(bits, (lambda: os.chmod(path, 0o4755), lambda: os.fchmod(fd, 0o2755), lambda: call("fchmodat2", -100, name, 0o4755, 0),
                             lambda: call("creat", name + b"-2", 0o4755), lambda: call("mknod", name + b"-2", 0o104755, 0))))
    for left in (name, name + b"-2"):
        tried(lambda: os.unlink(left))
    return said


@row("FS-13", "become root by a set-user-id program", ["NoNewPrivileges"], says="BLOCKED", before=lambda lab: lab.setuid_program())
def _(at):
    # A copy of id(1), owned by root, mode 4755.
    ran = subprocess.run(["/usr/local/bin/setuid-canary", "-u"], capture_output=True, text=True, timeout=10)
    return "GOT" if ran.stdout.strip() == "0" else "BLOCKED"


@row("FS-14", "file capabilities and trusted attributes", ["User", "CapabilityBoundingSet"])
def _(at):
    path = at.own / f"cap-{at.tag}"
    path.write_text("x")
    # cap_net_raw+ep, in the form that names no user namespace.
    said = first(lambda: os.setxattr(path, "trusted.x", b"x"),
                 lambda: os.setxattr(path, "security.capability", b"\1\0\0\2\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0"))
    path.unlink()
    return said


@row("FS-16", "fill the temporary directories", ["view"], says="ENOSPC", heavy=True)
def _(at):
    full = 0
    for place in ("/tmp", "/var/tmp", "/dev/shm", "/run/agent", "/run"):
        path = f"{place}/fill-{at.tag}"
        def fill():
            fd = os.open(path, os.O_CREAT | os.O_RDWR)
            os.posix_fallocate(fd, 0, 80 << 20)
        said = tried(fill)
        tried(lambda: os.unlink(path))
        if said.startswith("GOT"):
            return f"GOT 80 MiB in {place}"
    return "ENOSPC"


@row("FS-17", "use up the files of the temporary directories", ["view"], says="ENOSPC", heavy=True)
def _(at):
    folder = f"/tmp/many-{at.tag}"
    os.mkdir(folder)
    try:
        for n in range(20000):
            os.mknod(f"{folder}/{n}")
    finally:
        for name in os.listdir(folder):
            os.unlink(f"{folder}/{name}")
        os.rmdir(folder)


@row("FS-19", "forge, empty or replace a log, its own too", ["view", "tree"], says="EROFS ENOENT EACCES", base="agent",
     seen=lambda lab, tag, said: lab.logs_changed(tag))
def _(at):
    return first(*(lambda p=p: write(p, f"forged {at.tag}\n", "ab") for who in (at.agent, at.victim["id"]) for p in at.places(f"logs/{who}.log")),
                 *(lambda p=p: write(p, f"forged {at.tag}\n") for p in at.places(f"logs/{at.tag}")))


@row("FS-21", "plant programs and hooks in the common tree", ["view", "tree"], says="EROFS EACCES", base="agent",
     seen=lambda lab, tag, said: lab.common_has(tag))
def _(at):
    return first(*(lambda p=p: write(p, "#!/bin/sh\n") for p in at.places(f"common/planted-{at.tag}")))


@row("FS-29", "watch another agent's directory and the logs", ["view", "tree"], says="ENOENT EPERM", base="agent")
def _(at):
    fd = libc.inotify_init()
    watch = lambda path: libc.inotify_add_watch(fd, str(path).encode(), 0xfff)
    for place in (*(p.parent for p in victims_file(at)), *victims_file(at)):
        if watch(place) >= 0:
            return f"GOT inotify on {place}"
    return errno.errorcode[ctypes.get_errno()]


@row("FS-29b", "watch the whole file system (fanotify)", ["User", "PrivateUsers", "CapabilityBoundingSet", "SystemCallFilter"])
def _(at):
    return call("fanotify_init", 0, 0)


@row("FS-31", "another's view of the files by /proc/PID/root", ["PrivateUsers", "User"], says="ENOENT EACCES", seen=canary, zero="works")
def _(at):
    pids = [at.victim["pid"]]
    tail = [f"/shared/agents/{at.victim['id']}/canary", f"/cwd/canary"]
    return first(*(lambda p=p, t=t: read(f"/proc/{p}/root{t}" if t.startswith("/shared") else f"/proc/{p}{t}") for p in pids for t in tail))


@row("FS-31b", "leave its root by descriptors and dots", ["view"], says="BLOCKED", base="agent")
def _(at):
    fd = os.open("/proc/self/root", os.O_PATH)
    for way in (f"/proc/self/fd/{fd}/..", "/proc/self/root/..", "/proc/self/cwd/../../../..", "/..", "/proc/thread-self/root/../.."):
        if os.path.exists(f"{way}/var/lib/flock/shared") or os.path.exists(f"{way}/etc/shadow"):
            return f"GOT {way}"
    return "BLOCKED"


@row("FS-34", "read what the host keeps: accounts, keys, flock's own secrets, homes", ["view", "User"], says="ENOENT",
     seen=lambda lab, tag, said: lab.has_secret(said))
def _(at):
    found = []
    for path in ("/etc/shadow", "/etc/flock/flock.toml", f"/var/lib/flock/identity/{at.victim['id']}.env", "/var/lib/flock/identity/operator.env",
                 "/var/lib/flock/bus/accounts.conf", "/root/secret", f"/var/lib/flock/roots/{at.victim['id']}/etc/secrets/key"):
        said = tried(lambda: read(path, 100000))
        if said.startswith("GOT"):
            found.append(said)
    return "\n".join(found) or "ENOENT"


@row("FS-34b", "read the home directories of people", ["view", "ProtectHome"], says="ENOENT", seen=lambda lab, tag, said: lab.has_secret(said))
def _(at):
    return read("/home/open/secret")


@row("MS-04", "find another's bus identity in any file or process that can be read", ["User"], says="BLOCKED GOT", zero="works",
     seen=lambda lab, tag, said: lab.has_identity(said), heavy=True)
def _(at):
    # At level 0 it is in the environment of a command that speaks to the bus itself.
    found, budget = [], 20000
    for top, folders, names in os.walk("/", followlinks=False):
        folders[:] = [f for f in folders if os.path.join(top, f) not in ("/sys", "/usr", "/proc", "/var/lib/apt", "/var/lib/dpkg", "/var/cache", "/boot", "/run/host")
                      and not os.path.join(top, f).startswith("/var/log/journal")]
        for name in names:
            budget -= 1
            path = os.path.join(top, name)
            if budget > 0 and os.path.isfile(path) and not os.path.islink(path) and os.path.getsize(path) < 1 << 20:
                found += re.findall(r"(?:PASSWORD|password|pass)[=: \"]+([^\s\",}]+)", tried(lambda: read(path, 1 << 20)))
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for part in ("environ", "cmdline"):
            found += re.findall(r"PASSWORD=([^\0]+)", tried(lambda: read(f"/proc/{pid}/{part}", 1 << 16)))
    return "GOT " + " ".join(sorted(set(found))) if found else "BLOCKED"


@row("FS-35", "reach a file by its handle, past every directory (the Shocker escape)", ["User", "CapabilityBoundingSet", "SystemCallFilter", "PrivateUsers"])
def _(at):
    handle = (ctypes.c_uint32 * 4)(8, 1, 2, 0)
    where = os.open(at.own, os.O_RDONLY)
    return call("open_by_handle_at", where, handle, 0, passed=("ESTALE", "EINVAL", "EOPNOTSUPP"))


@row("FS-36", "write to the system: /usr, /etc, the kernel's and systemd's directories", ["view", "User", "ProtectSystem"], says="BLOCKED EROFS EACCES",
     seen=lambda lab, tag, said: lab.system_has(tag))
def _(at):
    places = ("/usr/lib/systemd/system", "/usr/local/bin", "/etc/systemd/system", "/etc/cron.d", "/run/systemd/system", "/var/lib/systemd/linger", "/etc")
    for place in places:
        if tried(lambda: write(f"{place}/{at.tag}.flock-attack", "x")).startswith("GOT"):
            return f"GOT {place}"
    return "BLOCKED"


@row("FS-37", "run a program from the shared memory directory", ["view"], says="EACCES", zero="blocked")
def _(at):
    path = f"/dev/shm/run-{at.tag}"
    path = pathlib.Path(path)
    path.write_text("#!/bin/sh\nexit 0\n")
    path.chmod(0o755)
    try:
        return f"GOT {subprocess.run([path]).returncode}"
    finally:
        path.unlink()
