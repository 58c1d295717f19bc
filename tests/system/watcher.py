"""Watches from outside that no process of an agent of level 1 ever runs with a layer missing.

A process of its own, beside the tests: `python3 watcher.py FILE` writes each violation into FILE, once,
and a line `looked N` every second, so that a watcher that died or slept is noticed. Before the first
instruction of an agent PID 1's own executor has the agent's user already and is still taking its
rights away; it is told by its file, which no agent can run: that is not in its root. So has root's flockctl before it
becomes the probe that runs without the sandbox as a control.
"""

import os
import re
import subprocess
import sys
import time

BLOCK = range(65536, 100000)
ROOTS = "/var/lib/flock/roots"
# What PID 1 is before it becomes a program, and the probe: as a control that one runs without the sandbox.
EXECUTORS = ("/usr/lib/systemd/systemd-executor", "/usr/lib/systemd/systemd", "/usr/lib/flock/flock-probe")
TABLE_EVERY = 0.1


def identity(path):
    found = os.stat(path)
    return found.st_dev, found.st_ino


def names():
    with open("/etc/passwd") as passwd:
        rows = [line.split(":") for line in passwd]
    return {int(row[2]): row[0].removeprefix("flock-") for row in rows if int(row[2]) in BLOCK}


class Watcher:
    def __init__(self):
        self.executors = [identity(path) for path in EXECUTORS if os.path.exists(path)]
        self.names, self.table_at, self.said = {}, 0.0, set()

    def look(self):
        """Every violation of this moment, as text."""
        found, agents = [], 0
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                if self.status(pid) is None or identity(f"/proc/{pid}/exe") in self.executors:
                    continue
                # Once more: it may have become a program since, and what it was before is PID 1's.
                if (again := self.status(pid)) is None:
                    continue
                fields, uids = again
                if self.becomes_probe(pid, fields):
                    continue
                agents += 1
                found += [f"{fields['Name'].strip()} of {sorted(uids)}: {what}"
                          for what in self.missing(pid, fields, next(iter(uids)))]
            except (FileNotFoundError, ProcessLookupError, KeyError):
                continue  # it ended meanwhile
        if agents and time.monotonic() - self.table_at > TABLE_EVERY:
            self.table_at = time.monotonic()
            ran = subprocess.run(["/usr/sbin/nft", "-s", "list", "table", "inet", "flock"],
                                 capture_output=True, text=True)
            if ran.returncode or "skuid" not in ran.stdout or "reject" not in ran.stdout:
                found.append("an agent runs and the egress table is not loaded")
        return found

    def status(self, pid):
        """What the kernel shows of a process of an agent's user, and its users; None of any other, or of a dead one."""
        with open(f"/proc/{pid}/status") as status:
            fields = dict(line.split(":", 1) for line in status.read().splitlines())
        uids = {int(uid) for uid in fields["Uid"].split()}
        dead = fields["State"].split()[0] in "ZX"
        return None if dead or not any(uid in BLOCK for uid in uids) else (fields, uids)

    def becomes_probe(self, pid, fields):
        """Whether root's flockctl has just made it: the next thing that it does is to become the probe, as a control."""
        parent = fields["PPid"].strip()
        with open(f"/proc/{parent}/status") as status:
            root = re.search(r"^Uid:\t0\t0\t0\t0$", status.read(), re.M)
        flockctl = identity("/usr/bin/flockctl")
        return root and identity(f"/proc/{parent}/exe") == flockctl and identity(f"/proc/{pid}/exe") in (flockctl, *self.executors)

    def missing(self, pid, fields, uid):
        for field, should in (("Seccomp", "2"), ("NoNewPrivs", "1"), ("CapEff", "0" * 16), ("CapBnd", "0" * 16)):
            if fields[field].strip() != should:
                yield f"{field} is {fields[field].strip()}"
        if uid not in self.names:
            self.names = names()
        id = self.names.get(uid, "nobody")
        if identity(f"/proc/{pid}/root/") != identity(f"{ROOTS}/{id}"):
            yield f"its root is not {ROOTS}/{id}"
        with open(f"/proc/{pid}/cgroup") as cgroup:
            # Its own, or that of what measures it, with the same properties.
            if not re.search(rf"/flock-agent@{re.escape(id)}(\.probe|\.gate)?\.service", cgroup.read()):
                yield "it is not in its unit's control group"


def main(file):
    watcher, looked, told = Watcher(), 0, 0.0
    with open(file, "a", buffering=1) as out:
        while True:
            for what in watcher.look():
                if what not in watcher.said:
                    watcher.said.add(what)
                    out.write(f"{time.time():.3f} {what}\n")
            looked += 1
            if time.monotonic() - told > 1:
                told = time.monotonic()
                out.write(f"looked {looked}\n")
            time.sleep(0.004)


class Watch:
    """Runs the watcher while a test does its work."""

    def __init__(self, file="/run/flock-watch"):
        self.file = file
        open(file, "w").close()
        self.process = subprocess.Popen([sys.executable, __file__, file])

    def violations(self):
        assert self.process.poll() is None, "the watcher ended"
        with open(self.file) as lines:
            lines = lines.read().splitlines()
        return [line for line in lines if not line.startswith("looked")]

    def looked(self):
        with open(self.file) as lines:
            counts = [int(line.split()[1]) for line in lines if line.startswith("looked")]
        return max(counts, default=0)

    def end(self):
        found = self.violations()
        self.process.kill()
        self.process.wait()
        return found


if __name__ == "__main__":
    main(sys.argv[1])
