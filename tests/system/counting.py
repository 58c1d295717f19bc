"""Counts what programs of flock do, by strace: programs run, calls over D-Bus, netlink messages, flushes, bytes written."""

import pathlib
import re
import subprocess
import tempfile

from harness import *

CALLS = "execve,sendto,sendmsg,write,pwrite64,writev,fsync,fdatasync,stat,lstat,fstat,statx,newfstatat,open,openat,openat2,\
epoll_wait,epoll_pwait,epoll_pwait2,futex,clock_nanosleep,poll,ppoll"
# -ff: a file for each thread, so that no line is cut in two by another thread's.
STRACE = ("strace", "-ff", "-y", "-qq", "-s", "2048", "-e", "signal=none", "-e", f"trace={CALLS}")
# A method call as it is sent: byte order, type 1, flags, protocol 1. Its header has the member as field 3, a text of less than
# 32 letters, so that its length is always an escape.
METHOD_CALL = re.compile(r'l\\1\\[0-7]{1,3}\\(?:1|001)')
MEMBER = re.compile(r'\\3\\1s\\0\\[0-7a-z]{1,3}\\0\\0\\0([A-Za-z]+)\\0')
# Waiting for something: each return is a wake-up of a thread.
WAITING = re.compile(r"^(epoll_p?wait2?|clock_nanosleep|p?poll|futex\(.*FUTEX_WAIT)")
STAT = re.compile(r"^(l|f)?stat\(|^statx\(|^newfstatat\(")


class Counts(dict):
    """How often each thing happened, with `calls`, the members called, and `programs`, what was run."""

    def over(self, limits):
        """What is above its limit, in words."""
        return [f"{name}: {self[name]}, not more than {most} (calls: {' '.join(self.calls)}; programs: {' '.join(self.programs)})"
                for name, most in limits.items() if self[name] > most]


def read(folder):
    lines = [line for file in sorted(folder.iterdir()) for line in file.read_text(errors="replace").splitlines()]
    sent = [line for line in lines if line.startswith(("sendmsg(", "sendto("))]
    calls = [member for line in sent if METHOD_CALL.search(line) for member in MEMBER.findall(line)]
    programs = re.findall(r'^execve\("([^"]+)".* = 0$', "\n".join(lines), re.M)
    written = sum(int(size) for size in re.findall(r"^(?:p?writev?(?:64)?)\(\d+</(?!dev/|proc/|sys/|memfd:)[^>]*>.* = (\d+)$",
                                                   "\n".join(lines), re.M))
    files = re.compile(r"^open(?:at2?)?\(.* = \d+</(?!dev/|proc/self/fd)")
    counts = Counts({
        "programs run": len(programs), "D-Bus calls": len(calls),
        "netlink messages": sum("nlmsg_len=" in line for line in sent),
        "netlink dumps": sum("NLM_F_DUMP" in line for line in sent),
        "flushes": sum(line.startswith(("fsync(", "fdatasync(")) for line in lines), "bytes written": written,
        "stat calls": sum(bool(STAT.match(line)) for line in lines),
        "files opened": sum(bool(files.match(line)) for line in lines),
        "wake-ups": sum(bool(WAITING.match(line)) for line in lines),
    })
    counts.calls, counts.programs, counts.lines = calls, programs, lines
    return counts


def of(*argv):
    """What a command does that must succeed, less its own execve."""
    with tempfile.TemporaryDirectory() as folder:
        ok(*STRACE, "-o", f"{folder}/trace", "--", *argv)
        counts = read(pathlib.Path(folder))
    assert argv[0] == counts.programs[0].rsplit("/", 1)[-1], f"void: the trace does not begin with {argv[0]}"
    counts.programs.pop(0)
    counts["programs run"] -= 1
    return counts


def while_it_runs(pid, work):
    """What a process and its children do during work()."""
    with tempfile.TemporaryDirectory() as folder:
        tracer = subprocess.Popen([*STRACE, "-f", "-o", f"{folder}/trace", "-p", str(pid)], stderr=subprocess.PIPE)
        try:
            # Threads come and go: one that ended before it was held has no file.
            tasks = lambda: len(list(pathlib.Path(f"/proc/{pid}/task").iterdir()))
            wait("strace to hold every thread", lambda: len(list(pathlib.Path(folder).iterdir())) >= tasks(), 60)
            work()
        finally:
            tracer.terminate()
            tracer.wait()
        return read(pathlib.Path(folder))
