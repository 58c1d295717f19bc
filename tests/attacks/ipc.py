"""Talk between processes of the host: sockets, buses, shared memory, queues, the journal."""

import ctypes
import os
import pathlib
import socket
import subprocess

from files import canary
from inside import call, first, libc, number, read, tried, write
from table import row


def connected(path, kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_UNIX, kind) as client:
        client.settimeout(3)
        client.connect(path)


@row("IP-01", "connect to every socket with a path that there is", ["view"], says="BLOCKED")
def _(at):
    found = []
    for top, folders, names in os.walk("/", followlinks=False):
        folders[:] = [f for f in folders if os.path.join(top, f) not in ("/proc", "/sys", "/usr", "/work", "/var/lib/dpkg")]
        for name in names:
            path = os.path.join(top, name)
            try:
                if not os.path.islink(path) and (os.lstat(path).st_mode & 0o170000) == 0o140000 and not path.startswith(str(at.own)):
                    if any(tried(lambda k=kind: connected(path, k)).startswith("GOT") for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET)):
                        found.append(path)
            except OSError:
                pass
    return "GOT " + " ".join(found) if found else "BLOCKED"


@row("IP-02", "groups that open doors", ["User"], says="BLOCKED", base="root")
def _(at):
    # Its own, and the one that keeps agents off the system bus; a number that its user namespace does not know is 65534.
    others = [g for g in (*os.getgroups(), os.getegid()) if g not in (*at.scene["groups"][at.agent], 65534)]
    return f"GOT {others}" if others else "BLOCKED"


@row("IP-03", "the system bus: what runs, and how", ["view", "policy"], says="BLOCKED")
def _(at):
    ran = subprocess.run(["busctl", "--system", "call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager",
                          "GetUnit", "s", f"flock-agent@{at.victim['id']}.service"], capture_output=True, text=True, timeout=10)
    return f"GOT {ran.stdout}" if ran.returncode == 0 else "BLOCKED"


@row("IP-03b", "the system bus: change another agent's unit", ["view", "User"], says="BLOCKED")
def _(at):
    ran = subprocess.run(["busctl", "--system", "call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager",
                          "SetUnitProperties", "sba(sv)", f"flock-agent@{at.victim['id']}.service", "true", "1", "Description", "s", f"by {at.tag}"],
                         capture_output=True, text=True, timeout=10)
    return "GOT" if ran.returncode == 0 else "BLOCKED"


@row("IP-04", "systemd's own sockets (private, userdb, resolve, …)", ["view"], says="ENOENT", base="root")
def _(at):
    paths = ["/run/systemd/private", "/run/systemd/notify", "/run/systemd/userdb/io.systemd.DynamicUser", "/run/systemd/io.systemd.ManagedOOM"]
    return first(*(lambda p=p, k=k: connected(p, k) for p in paths for k in (socket.SOCK_STREAM, socket.SOCK_DGRAM)))


def journal(ident, title, path, kind, text, **more):
    def program(at):
        with socket.socket(socket.AF_UNIX, kind) as client:
            client.connect(path)
            client.send(text(at).encode())
    row(ident, title, ["view"], says="ENOENT", seen=lambda lab, tag, said: lab.journal_has(tag), **more)(program)


journal("IP-06", "write to the journal as flockd", "/run/systemd/journal/socket", socket.SOCK_DGRAM,
        lambda at: f"MESSAGE=forged {at.tag}\nPRIORITY=3\nSYSLOG_IDENTIFIER=flockd\n_SYSTEMD_UNIT=flockd.service\nFLOCK_AGENT={at.victim['id']}\n")
journal("IP-06b", "write to the journal by the syslog socket", "/run/systemd/journal/dev-log", socket.SOCK_DGRAM, lambda at: f"<3>flockd: forged {at.tag}")


@row("IP-11", "connect to another agent's abstract socket", one="works", zero="works", seen=canary)
def _(at):
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(3)
        client.connect(f"\0canary-{at.victim['id']}")
        return "GOT " + client.recv(200).decode()


@row("IP-11b", "read the table of the host's connections and abstract sockets", one="works", zero="works")
def _(at):
    text = read("/proc/self/net/unix", 1 << 20)
    return "GOT names" if f"canary-{at.victim['id']}" in text else "NOTHING"


@row("IP-12", "connect to a socket with a path in another agent's directory", ["view", "tree"], says="ENOENT", seen=canary, base="agent")
def _(at):
    def ask(path):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(3)
            client.connect(str(path))
            return "GOT " + client.recv(200).decode()
    return first(*(lambda p=p: ask(p) for p in at.places(f"agents/{at.victim['id']}/socket")))


@row("IP-14", "System V shared memory that everybody may open", ["PrivateIPC"], says="ENOENT", seen=canary, zero="works", before=lambda lab: lab.shared_memory())
def _(at):
    for key in (at.victim["key"], at.scene["host_key"]):
        segment = number(call("shmget", key, 0, 0))
        if segment is not None:
            libc.shmat.restype = ctypes.c_void_p
            address = libc.shmat(segment, None, 0o10000)
            return "GOT " + ctypes.string_at(address, 80).split(b"\0")[0].decode("latin-1")
    return "ENOENT"


@row("IP-15", "POSIX message queues that everybody may open", ["PrivateIPC"], says="ENOENT", zero="works", before=lambda lab: lab.queue())
def _(at):
    return first(*(lambda n=n: call("mq_open", n, 0, 0, None) for n in (f"canary-{at.victim['id']}".encode(), b"canary-host")))


@row("IP-16", "files in /dev/shm, /tmp and /var/tmp that everybody may read", ["view"], says="ENOENT", seen=canary, before=lambda lab: lab.temporary_files())
def _(at):
    return first(*(lambda p=p: read(f"{p}/canary") for p in ("/dev/shm", "/tmp", "/var/tmp")))


@row("IP-19", "have something started outside: cron, at, a user manager, an activated service", ["view", "policy"], says="BLOCKED", seen=lambda lab, tag, said: lab.started(tag, said))
def _(at):
    tries = (["systemd-run", "--user", "true"], ["systemctl", "--user", "start", "x"], ["loginctl", "enable-linger"], ["crontab", "-"], ["at", "now"],
             ["busctl", "call", "org.freedesktop.timedate1", "/org/freedesktop/timedate1", "org.freedesktop.DBus.Peer", "Ping"])
    for command in tries:
        try:
            if subprocess.run(command, input=f"touch /tmp/{at.tag}\n", capture_output=True, text=True, timeout=10).returncode == 0:
                return f"GOT {command[0]}"
        except FileNotFoundError:
            pass
    return "BLOCKED"
