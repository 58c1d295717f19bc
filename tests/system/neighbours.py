"""One agent attacks while its neighbours are measured: quiet and attacked in turn, in one run."""

import random
import shutil
import statistics
import struct
import time

import neighbour
from harness import *

PROGRAM = "/opt/neighbours/neighbour.py"
MEASURED = ("pinger", "worker")
QUOTA = '\n[agents.{0}.limits]\ndisk = "64MiB"\nfiles = 1000\n'


def toml(attacks, quota):
    text = ""
    for name in (*MEASURED, *attacks):
        # One that is ended for what it does comes again at once.
        policy = 'policy = "never"' if name in MEASURED else 'policy = "always", delay = "100ms", attempts = 10000'
        text += f"""[agents.{name}]
mode = "service"
command = ["/usr/bin/python3", "{PROGRAM}", "{name}"]
read-only-paths = ["/opt/neighbours"]
restart = {{ {policy} }}
"""
        if quota and name == "disk":
            text += QUOTA.format(name)
    return text


def cgroup(agent, file):
    return pathlib.Path("/sys/fs/cgroup" + show(unit(agent), "ControlGroup"), file).read_text()


def counters(agent, file):
    return {key: int(value) for key, value in (line.split() for line in cgroup(agent, file).splitlines())}


def trips(began, ended):
    """The round trips that began in this time, in seconds."""
    data = (SHARED / "agents/pinger/trips").read_bytes()
    pairs = struct.iter_unpack("dd", data[:len(data) // 16 * 16])
    return [took for at, took in pairs if began <= at < ended]


class Window:
    """What the neighbours had in some seconds."""

    def __init__(self, seconds):
        began, used = time.monotonic(), counters("worker", "cpu.stat")["usage_usec"]
        time.sleep(seconds)
        ended = time.monotonic()
        self.share = (counters("worker", "cpu.stat")["usage_usec"] - used) / 1e6 / (ended - began)
        time.sleep(1)  # What is noted is written every half second.
        found = sorted(trips(began, ended))
        self.count = len(found)
        self.p99 = found[len(found) * 99 // 100] if found else float("inf")
        self.median = found[len(found) // 2] if found else float("inf")


def life(agent):
    """What changes when something of an agent was killed."""
    return (pid(agent), show(unit(agent), "NRestarts"), counters(agent, "memory.events")["oom_kill"])


def measure(attacks, pairs, seconds, settle=2.0, quota=True, tell=lambda line: None):
    """For each attack its pairs of windows, quiet and attacked. Fails when a neighbour was harmed."""
    shutil.rmtree("/opt/neighbours", ignore_errors=True)
    pathlib.Path("/opt/neighbours").mkdir()
    shutil.copy(neighbour.__file__, PROGRAM)
    found = {}
    # The measurement before a start is a load of its own, between the windows.
    unmeasured = configured('[verify]\nbefore-ready = "skip"\nevery = "never"\n')
    with unmeasured, agents(toml(attacks, quota)):
        ok("flockctl", "apply")
        start(*MEASURED)
        wait("round trips", lambda: (SHARED / "agents/pinger/trips").exists())
        time.sleep(settle)
        alive = [life(agent) for agent in MEASURED]
        for attack in attacks:
            found[attack] = []
            for _ in range(pairs):
                quiet = Window(seconds)
                start(attack)
                time.sleep(settle)
                attacked = Window(seconds)
                # One that the kernel killed comes again: it may be on its way.
                assert show(unit(attack), "ActiveState") in ("active", "activating", "deactivating"), \
                    f"{attack} has ended: {journal('-u', unit(attack), '-n', '5')}"
                ok("systemctl", "stop", f"flock@{attack}", timeout=90)
                run("rm", "-rf", str(SHARED / "agents" / attack / "full-a"), str(SHARED / "agents" / attack / "full-b"))
                time.sleep(settle)
                assert quiet.count and attacked.count, f"{attack}: no answer for {seconds} s"
                assert [life(agent) for agent in MEASURED] == alive, f"{attack}: something of a neighbour was killed"
                found[attack].append((quiet, attacked))
            tell(row(attack, found[attack]))
    return found


def interval(values):
    """The median, and where it lies with 95 %."""
    chance = random.Random(0)
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(2000))
    return statistics.median(values), medians[50], medians[1949]


def row(attack, pairs):
    """A line of docs/performance.md."""
    middle = lambda get: statistics.median(get(pair) for pair in pairs)
    ratios = [f"{m:.2f} [{low:.2f}, {high:.2f}]" for m, low, high in (
        interval([attacked.p99 / quiet.p99 for quiet, attacked in pairs]),
        interval([attacked.median / quiet.median for quiet, attacked in pairs]),
        interval([attacked.share / quiet.share for quiet, attacked in pairs]))]
    p99 = f"{middle(lambda p: p[0].p99) * 1000:.1f} ms | {middle(lambda p: p[1].p99) * 1000:.1f} ms"
    share = f"{middle(lambda p: p[1].share) * 100:.0f} %"
    return f"| {attack} | {p99} | {' | '.join(ratios)} | {share} |"


HEAD = """| attack | p99 quiet | p99 attacked | ratio of p99 | ratio of the median | ratio of the share | share |
| --- | --- | --- | --- | --- | --- | --- |"""
