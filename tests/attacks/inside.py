"""Runs attack programs where it stands and prints what became of each: one line of JSON.

usage: inside.py TAG ID...

Standard library only, no root, no help from outside: this is the attacker.
"""

import ctypes
import errno
import json
import os
import pathlib
import signal
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
HOST_TREE, OWN_TREE = pathlib.Path("/var/lib/flock/shared"), pathlib.Path("/shared")
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

# Numbers of x86-64.
CALLS = {"mmap": 9, "mprotect": 10, "ioctl": 16, "shmget": 29, "socket": 41, "ptrace": 101, "syslog": 103,
         "personality": 135, "mknod": 133, "sched_setscheduler": 144, "setpriority": 141, "mount": 165,
         "umount2": 166, "pivot_root": 155, "chroot": 161, "acct": 163, "settimeofday": 164, "swapon": 167,
         "reboot": 169, "sethostname": 170, "iopl": 172, "ioperm": 173, "init_module": 175, "quotactl": 179,
         "add_key": 248, "request_key": 249, "keyctl": 250, "ioprio_set": 251, "unshare": 272, "kexec_load": 246,
         "perf_event_open": 298, "fanotify_init": 300, "open_by_handle_at": 304, "clock_adjtime": 305, "setns": 308,
         "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "finit_module": 313, "bpf": 321,
         "userfaultfd": 323, "memfd_create": 319, "io_uring_setup": 425, "open_tree": 428, "move_mount": 429,
         "fsopen": 430, "pidfd_open": 434, "clone3": 435, "pidfd_getfd": 438, "mount_setattr": 442,
         "fchmodat2": 452, "pidfd_send_signal": 424, "kill": 62, "tgkill": 234, "seccomp": 317, "prctl": 157,
         "shmat": 30, "mq_open": 240, "name_to_handle_at": 303, "vhangup": 153, "get_mempolicy": 239, "delete_module": 176,
         "prlimit64": 302, "open_tree_attr": 467, "lookup_dcookie": 212, "nfsservctl": 180, "memfd_secret": 447,
         "chmod": 90, "mkdir": 83, "creat": 85, "openat2": 437, "clone": 56, "sched_setattr": 314}


def call(name, *args, passed=()):
    """A raw system call. `passed`: errors that come only after the check that should refuse it."""
    ctypes.set_errno(0)
    wide = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    result = libc.syscall(ctypes.c_long(CALLS[name] if isinstance(name, str) else name), *wide)
    if result >= 0:
        return f"GOT {result}"
    name = errno.errorcode.get(ctypes.get_errno(), "?")
    return f"GOT as far as {name}" if name in passed else name


def number(said):
    """The result of `call` when it succeeded, else None."""
    return int(said.split()[1]) if said.startswith("GOT ") and said.split()[1].isdigit() else None


def first(*tries):
    """Several ways to the same: what succeeded first, else how each failed."""
    failed = []
    for attempt in tries:
        said = tried(attempt)
        if said.startswith("GOT"):
            return said
        failed.append(said)
    return " ".join(dict.fromkeys(failed))


def tried(attempt):
    """What became of an attempt: its own word, GOT, or the name of the error."""
    try:
        said = attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno, repr(error))
    except Exception as error:  # the attacker's own fault: never taken for a success or a refusal
        return f"BROKEN {error!r}"
    return said if isinstance(said, str) else "GOT" if said is None else f"GOT {said!r}"


def read(path, size=4096):
    with open(path, "rb") as file:
        return "GOT " + file.read(size).decode("latin-1")


def write(path, data, mode="xb"):
    with open(path, mode) as file:
        file.write(data if isinstance(data, bytes) else str(data).encode())


def marker(tag, ident):
    """What one row of one run leaves its marks with."""
    return f"{tag}-{ident}".lower()


def port_of(tag):
    """The port for such a mark: no two of one session are the same."""
    from rows import ROWS
    run, ident = tag.split("-", 1)
    place = [row.lower() for row in ROWS].index(ident) if ident in map(str.lower, ROWS) else 0
    return 2000 + (int(run.rsplit("x", 1)[1]) * len(ROWS) + place) % 60000


class At:
    """Where the attacker is: its tag, its places, and what anybody could know of the victims."""

    def __init__(self, tag):
        self.tag = tag
        self.scene = json.loads((HERE / "scene.json").read_text())
        self.on_host = HOST_TREE.is_dir()
        self.tree = HOST_TREE if self.on_host else OWN_TREE
        self.agent = os.environ.get("AGENT_ID", self.scene["attacker"])
        self.own = self.tree / "agents" / self.agent
        if not os.access(self.own, os.W_OK):
            # Somebody who is no agent at all.
            for place in ("/var/tmp", "/tmp", "/dev/shm"):
                if os.access(place, os.W_OK):
                    self.own = pathlib.Path(tempfile.mkdtemp(prefix="attack-", dir=place))
                    break
        # Level 0 is measured against another agent of level 0.
        self.victim = self.scene["victims"]["zero-victim" if self.agent == "zero" else "victim"]
        # A port that only this row of this run connects to, so that a packet says whose it is.
        self.port = port_of(tag)

    def places(self, path):
        """The ways to write a path of the shared tree."""
        return [self.tree / path, HOST_TREE / path, OWN_TREE / path]


def alone(program, at, seconds):
    """Runs one program in a process of its own; gives a pipe and the process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.setpgid(0, 0)
        signal.alarm(seconds)
        said = tried(lambda: program(at))
        os.write(writer, said.encode("utf-8", "replace")[:60000])
        os._exit(0)
    os.close(writer)
    return reader, child


def finish(reader, child):
    said = b""
    while part := os.read(reader, 65536):
        said += part
    os.close(reader)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return f"{signal.Signals(os.WTERMSIG(status)).name} {said.decode(errors='replace')}".strip()
    return said.decode(errors="replace")


def main():
    from rows import ROWS
    tag, wanted = sys.argv[1], sys.argv[2:]
    said, running = {}, []
    for ident in wanted:
        if len(running) >= 8:
            done = running.pop(0)
            said[done[0]] = finish(*done[1:])
        running.append((ident, *alone(ROWS[ident].program, At(marker(tag, ident)), 60)))
    for done in running:
        said[done[0]] = finish(*done[1:])
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    sys.modules["inside"] = sys.modules["__main__"]
    main()
