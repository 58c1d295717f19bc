"""How much work flock makes: counts that do not depend on how fast the machine is, and so keep it from growing unseen.

What is allowed is what was counted; docs/performance.md says where that is more than the goal, and why.
"""

import contextlib
import subprocess
import tempfile
import time

import counting
from harness import *
from test_measured import settings

# Of a launch without the measurement before it: `nft` reads the table back, with 12 messages. The calls: Hello, Subscribe and
# the version make the connection, four are for the signal that says how the job ended, two read the unit before and after.
LAUNCH = {"programs run": 1, "D-Bus calls": 10, "netlink messages": 12, "flushes": 1, "bytes written": 1024}
# With it: the two controls, and the unit of the probe, which is made, read and taken away again.
MEASURED = {"programs run": 3, "D-Bus calls": 20, "netlink messages": 12, "flushes": 1, "bytes written": 8192}
# Whatever the number of agents. The flushes: the line of the audit log, and the directory of the identities.
RECONCILE = {"programs run": 2, "D-Bus calls": 4, "netlink dumps": 9, "flushes": 2, "bytes written": 1024}
# For each agent more: every object of its root and of its part of the tree is looked at.
EACH = {"stat calls": 125, "files opened": 160, "bytes written": 16}
# Of flockd in a minute. What happens every minute can happen twice in one.
IDLE = {"programs run": 5, "D-Bus calls": 2, "flushes": 0, "files opened": 200, "wake-ups": 250}


@contextlib.contextmanager
def stopped(agent):
    """An agent that ran once in this boot: the first start asks the host besides whether it filters packets."""
    start(agent)
    ok("systemctl", "stop", f"flock@{agent}")
    try:
        yield agent
    finally:
        run("flockctl", "halt", agent)


def count_of_a_launch(limits):
    with stopped("agent-1") as agent:
        counts = counting.of("flockctl", "launch", agent)
        assert "StartTransientUnit" in counts.calls and counts["netlink messages"] > 0, f"void: {counts} {counts.calls}"
        assert not counts.over(limits), "; ".join(counts.over(limits))


def test_a_launch_without_the_measurement():
    with settings('before-ready = "skip"\nevery = "never"'):
        count_of_a_launch(LAUNCH)


def test_a_launch_with_the_measurement():
    count_of_a_launch(MEASURED)


def test_a_reconcile_makes_no_calls_for_each_agent():
    few = counting.of("flockctl", "apply")
    assert "ListUnitsByPatterns" in few.calls, f"void: {few.calls}"
    assert not few.over(RECONCILE), "; ".join(few.over(RECONCILE))
    more = 10
    with agents("".join(f"[agents.more-{n}]\n" for n in range(more))):
        ok("flockctl", "apply")
        many = counting.of("flockctl", "apply")
    assert not many.over(RECONCILE), "; ".join(many.over(RECONCILE))
    assert many["stat calls"] > few["stat calls"], f"void: {few} {many}"
    each = {name: (many[name] - few[name]) / more for name in EACH}
    assert all(each[name] <= most for name, most in EACH.items()), f"for each agent: {each}, not more than {EACH}"


@contextlib.contextmanager
def signals_of_pid_1():
    """The signals that PID 1 sends meanwhile, a line of JSON each; complete when it is left."""
    heard = []
    with tempfile.TemporaryFile("w+") as file:
        monitor = subprocess.Popen(["busctl", "monitor", "--json=short",
                                    "--match=type='signal',sender='org.freedesktop.systemd1'"], stdout=file)
        time.sleep(1)
        try:
            yield heard
            time.sleep(1)
        finally:
            monitor.terminate()
            monitor.wait()
        file.seek(0)
        heard += file.read().splitlines()


def test_to_stop_all_agents_loads_no_handle_anew():
    # The target that wants all handles has to stay loaded: PID 1 would load it for each agent that is stopped, and with
    # it every handle, to forget them again at once.
    count = 20
    with agents("".join(f"[agents.many-{n}]\n" for n in range(count))) as ids:
        ok("flockctl", "apply")
        # By the target, and by name while nothing else holds the target.
        for begin in (lambda: ok("flockctl", "up"), lambda: start(*ids)):
            begin()
            with signals_of_pid_1() as heard:
                ok("flockctl", "down")
            ended = [line for line in heard if '"member":"JobRemoved"' in line and '"flock@many-' in line]
            assert len(ended) >= count, f"void: {len(ended)} of {count} were heard to stop"
            loaded = [line for line in heard if '"member":"UnitNew"' in line and '"flock@many-' in line]
            assert len(loaded) <= count, f"{len(loaded)} handles were loaded to stop {count} agents"


def test_an_idle_minute():
    start(*AGENTS)
    time.sleep(10)  # What follows a start: the list of units, the logs.
    counts = counting.while_it_runs(int(show("flockd.service", "MainPID")), lambda: time.sleep(60))
    assert counts["wake-ups"] > 10, f"void: {counts}"
    # Nothing is written, so nothing is read: not every two seconds. The look at open tasks is every half minute.
    opened = [line for line in counts.lines if line.startswith("open") and "/history.db" in line]
    assert len(opened) <= 12, f"the history was opened {len(opened)} times"
    assert not counts.over(IDLE), "; ".join(counts.over(IDLE))
