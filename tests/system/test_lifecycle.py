"""Starting and stopping, and what the supervisor's own end does to agents: nothing."""

import os
import signal

from harness import *


def identity(agent):
    return show(unit(agent), "MainPID", "InvocationID")


def test_start_one_and_look_at_it_everywhere():
    start("agent-1")
    assert show("flock@agent-1", "ActiveState") == "active"
    assert show(unit("agent-1"), "ActiveState", "SubState", "User") == ["active", "running", "flock-agent-1"]
    wait("where its log is, in the handle's", lambda: "flock-agent@agent-1" in journal("-u", "flock@agent-1"))
    wait("a line of the agent in its journal", lambda: journal("-u", unit("agent-1")).strip())
    row = status("agent-1")["agent-1"]
    assert row["state"]["word"] == "running" if isinstance(row["state"], dict) else row["state"] == "running", row
    assert row["level"] == 1 and row["pid"] == pid("agent-1"), row
    assert "agent-1" in run("flockctl", "status").out
    wait("its lines in flockctl logs", lambda: ok("flockctl", "logs", "agent-1").strip())


def test_the_heartbeat_is_seen():
    start("agent-1")
    wait("a heartbeat", lambda: status("agent-1")["agent-1"]["health"]["heartbeat_age_seconds"] is not None, 60)


def test_the_target_brings_up_all_and_stops_all():
    ok("systemctl", "enable", "--now", "flock.target")
    for agent in AGENTS:
        wait(f"{agent} to run", lambda: show(unit(agent), "SubState") == "running")
        # A launch that is broken off fails: it has a word to say after the start.
        wait(f"the launch of {agent}", lambda: show(f"flock@{agent}", "ActiveState") == "active")
    ok("systemctl", "stop", "flock.target")
    for agent in AGENTS:
        wait(f"{agent} to stop", lambda: show(f"flock@{agent}", "ActiveState") == "inactive")
        assert_nothing_left(agent)


def test_a_clean_stop_ends_inactive_and_leaves_nothing():
    start("agent-1")
    ok("systemctl", "stop", "flock@agent-1")
    assert show("flock@agent-1", "ActiveState", "Result") == ["inactive", "success"]
    assert_nothing_left("agent-1")


def test_agents_start_and_stop_while_flockd_is_down():
    ok("systemctl", "stop", "flockd")
    try:
        start("agent-1")
        ran = run("flockctl", "status")
        assert "running" in ran.out and "flockd" in ran.out + ran.err, ran
        ok("systemctl", "stop", "flock@agent-1")
        assert_nothing_left("agent-1")
    finally:
        ok("systemctl", "start", "flockd")


def test_nothing_that_happens_to_the_supervisor_reaches_an_agent():
    start(*AGENTS)
    before = [identity(a) for a in AGENTS]
    os.kill(int(show("flockd", "MainPID")), signal.SIGKILL)
    wait("flockd to be back", lambda: show("flockd", "ActiveState") == "active" and int(show("flockd", "NRestarts")))
    for change in (("restart", "flockd"), ("restart", "flock-bus"), ("reload", "flock-net"),
                   ("daemon-reload",), ("daemon-reexec",)):
        ok("systemctl", *change)
        assert [identity(a) for a in AGENTS] == before, change
    ok("flockctl", "apply")
    assert [identity(a) for a in AGENTS] == before, "apply"


def test_a_second_start_leaves_the_agent_alone():
    start("agent-1")
    before = identity("agent-1")
    start("agent-1")
    ok("flockctl", "launch", "agent-1")
    assert identity("agent-1") == before


def test_fifty_restarts_in_a_row():
    start("agent-1")
    seen = {identity("agent-1")[1]}
    for _ in range(50):
        ok("systemctl", "restart", "flock@agent-1")
        seen.add(identity("agent-1")[1])
    assert len(seen) == 51, len(seen)


def test_two_launches_at_once_make_one_agent():
    launches = [subprocess.Popen(["flockctl", "launch", "agent-1"]) for _ in range(4)]
    assert [l.wait(120) for l in launches] == [0] * 4
    assert show(unit("agent-1"), "SubState") == "running"
    ok("flockctl", "halt", "agent-1")
    assert_nothing_left("agent-1")


def test_agents_run_in_slices_of_their_own():
    start("agent-1", "agent-2")
    groups = [show(unit(a), "ControlGroup") for a in ("agent-1", "agent-2")]
    for agent, group in zip(("1", "2"), groups):
        assert f"flock-agents.slice/flock-agents-agent\\x2d{agent}.slice/" in group, group


def test_up_and_down_from_flockctl():
    ok("flockctl", "up")
    for agent in AGENTS:
        wait(f"{agent} to run", lambda: show(unit(agent), "SubState") == "running")
    ok("flockctl", "restart", "agent-2")
    ok("flockctl", "stop", "agent-3")
    assert show("flock@agent-3", "ActiveState") == "inactive"
    ok("flockctl", "down")
    assert all(show(f"flock@{a}", "ActiveState") == "inactive" for a in AGENTS)


def test_an_unknown_agent_is_named_with_those_that_exist():
    said = fails("flockctl", "start", "agent-9")
    assert "agent-9" in said and "agent-1" in said, said
    fails("systemctl", "start", "flock@agent-9")
    wait("the others in the journal", lambda: "agent-1" in journal("-u", "flock@agent-9"))
    run("systemctl", "reset-failed")
