"""Limits, which need cgroup v2 controllers: these run in the virtual machine."""

import pathlib

from harness import *


def cgroup(agent):
    return pathlib.Path("/sys/fs/cgroup" + show(unit(agent), "ControlGroup"))


def value(agent, file):
    return (cgroup(agent) / file).read_text().strip()


def counter(agent, file, key):
    return dict(l.split() for l in value(agent, file).splitlines())[key]


def test_the_kernel_holds_the_shipped_limits():
    start("agent-1")
    assert value("agent-1", "memory.max") == str(256 << 20)
    assert value("agent-1", "pids.max") == "50"
    assert value("agent-1", "cpu.max") == "50000 100000"
    row = status("agent-1")["agent-1"]
    assert row["memory"]["max"] == 256 << 20 and row["tasks"]["max"] == 50, row
    assert not [w for w in row["warnings"] if "enforce" in w], row


def test_doctor_is_content():
    ok("flockctl", "doctor")


def test_a_fork_bomb_stays_inside_and_dies_with_its_agent():
    # Agents of their own: a task that is cut short comes again, and would disturb the next test.
    with agents("[agents.bomber]\n"):
        start("bomber", "agent-2")
        ok("flockctl", "task", "send", "--to", "bomber", "bomb() { bomb | bomb & }; bomb; sleep 60")
        wait("the limit to be hit", lambda: int(counter("bomber", "pids.events", "max")) > 0, 60)
        assert int(value("bomber", "pids.current")) <= 50
        assert "alive" in inside("agent-2", "echo alive", timeout=60)["output"]
        ok("systemctl", "stop", "flock@bomber", timeout=90)
        # PID 1 has many dead to bury.
        wait("its processes to be gone", lambda: run("pgrep", "-u", "flock-bomber").out == "")


def test_memory_kills_the_task_and_not_its_neighbour():
    start("agent-1", "agent-2")
    before = pid("agent-1"), pid("agent-2")
    result = inside("agent-1", "python3 -c \"x = bytearray(400 << 20); print(len(x))\"; echo status $?", timeout=120)
    assert "419430400" not in result["output"], result
    assert int(counter("agent-1", "memory.events", "oom_kill")) > 0, result
    assert (pid("agent-1"), pid("agent-2")) == before
    assert counter("agent-2", "memory.events", "oom_kill") == "0"


def test_out_of_memory_is_the_reason_of_an_agent_that_died_of_it():
    with agents("""
[agents.big]
mode = "service"
command = ["/usr/bin/python3", "-c", "x = bytearray(400 << 20)"]
[agents.big.restart]
policy = "never"
"""):
        run("systemctl", "start", "flock@big")
        wait("the handle to fail", lambda: show("flock@big", "ActiveState") == "failed", 60)
        assert "memory" in status("big")["big"]["reason"], status("big")


def test_cpu_stays_at_half_a_core():
    with agents("[agents.burner]\n"):
        start("burner")
        usage = lambda: int(counter("burner", "cpu.stat", "usage_usec"))
        ok("flockctl", "task", "send", "--to", "burner",
           "for i in 1 2 3 4; do (while :; do :; done) & done; sleep 20; kill $(jobs -p)")
        wait("it to burn", lambda: int(counter("burner", "cpu.stat", "nr_throttled")) > 5, 60)
        began, used = time.monotonic(), usage()
        time.sleep(5)
        share = (usage() - used) / 1e6 / (time.monotonic() - began)
        assert 0.3 < share < 0.65, share


def test_temporary_files_are_bounded():
    start("agent-1")
    out = inside("agent-1", "head -c 100M /dev/zero > /tmp/big; echo status $?; rm /tmp/big; "
                            "df -m /tmp | tail -1", timeout=120)["output"]
    assert "status 0" not in out, out


def test_open_files_are_bounded():
    start("agent-1")
    out = inside("agent-1", "python3 -c \"import os\ntry:\n  while True: os.dup(0)\nexcept OSError as e: print(e.errno)\"")
    assert out["output"].strip() == "24", out


def before_the_reboot():
    """Not a test of its own: the state that the next boot is compared with."""
    ok("systemctl", "enable", "flock.target")
    ok("systemctl", "start", "flock.target")


def after_the_reboot():
    """Every enabled agent is back, behind its fence, and does its work."""
    for agent in AGENTS:
        wait(f"{agent} to run", lambda: show(unit(agent), "SubState") == "running", 90)
    table, first = (int(show(u, p)) for u, p in
                    (("flock-net", "ActiveEnterTimestampMonotonic"),
                     (unit("agent-1"), "ExecMainStartTimestampMonotonic")))
    assert 0 < table < first, (table, first)
    assert "skuid" in ok("nft", "list", "table", "inet", "flock")
    assert "back" in inside("agent-1", "echo back", timeout=60)["output"]
