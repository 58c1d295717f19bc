"""Adding and removing agents."""

import json
import pathlib

from harness import *


def test_add_start_and_remove():
    start("agent-1")
    before = show(unit("agent-1"), "MainPID", "InvocationID")
    bus = show("flock-bus", "MainPID")
    connected = journal("-u", unit("agent-1"))
    ok("flockctl", "agent", "add", "newcomer")
    start("newcomer")
    assert "hello" in inside("newcomer", "echo hello")["output"]
    assert show(unit("agent-1"), "MainPID", "InvocationID") == before
    assert show("flock-bus", "MainPID") == bus
    assert "disconnect" not in journal("-u", unit("agent-1"))[len(connected):].lower()
    fails("flockctl", "agent", "add", "newcomer")
    ok("systemctl", "stop", "flock@newcomer")
    said = ok("flockctl", "agent", "remove", "newcomer")
    assert "shared" in said, said
    fails("systemctl", "start", "flock@newcomer")
    run("systemctl", "reset-failed")
    assert (SHARED / "agents/newcomer/results").is_dir()
    assert "newcomer" not in pathlib.Path("/var/lib/flock/bus/accounts.conf").read_text()
    run("rm", "-r", str(SHARED / "agents/newcomer"))


def test_the_bus_keeps_nothing_of_an_agent_that_is_no_more():
    """But nothing of it goes before its last task has ended."""
    store = pathlib.Path("/var/lib/flock/bus/jetstream")
    streams = lambda: sorted(p.name for p in store.glob("jetstream/*/streams/*_leaver"))
    ok("flockctl", "agent", "add", "leaver")
    assert streams() == ["RESULTS_leaver", "TASKS_leaver"]
    task = json.loads(ok("flockctl", "task", "send", "--json", "--to", "leaver", "x"))["task"]
    ok("flockctl", "agent", "remove", "leaver")
    wait("flockd to know that", lambda: not is_known_to_flockd("leaver"))
    # flockd has looked when it heard that.
    time.sleep(2)
    assert "TASKS_leaver" in streams(), streams()
    ok("flockctl", "task", "cancel", task)
    wait("the streams to go", lambda: not streams(), 60)
    ok("flockctl", "agent", "add", "leaver")
    start("leaver")
    assert "again" in inside("leaver", "echo again")["output"]
    ok("flockctl", "agent", "remove", "--stop", "leaver")
    wait("the streams to go", lambda: not streams(), 60)
    assert "again" in ok("flockctl", "task", "list", "--agent", "leaver", "--json")
    run("rm", "-r", str(SHARED / "agents/leaver"))


def test_a_removed_agents_uid_is_not_given_again():
    ok("flockctl", "agent", "add", "first")
    uid = ok("id", "-u", "flock-first")
    ok("flockctl", "agent", "remove", "first")
    ok("flockctl", "agent", "add", "second")
    try:
        assert ok("id", "-u", "flock-second") != uid
    finally:
        ok("flockctl", "agent", "remove", "second")
        run("rm", "-rf", str(SHARED / "agents/first"), str(SHARED / "agents/second"))


def test_hostile_ids_change_nothing():
    listing = lambda: sorted(str(p) for p in pathlib.Path("/etc/flock").rglob("*"))
    before, users = listing(), pathlib.Path("/etc/passwd").read_text()
    for id in ("../x", "root/", "a\nb", "%n", "a" * 65536, "é", "all", "bus", "-rf", "A", ""):
        fails("flockctl", "agent", "add", "--", id)
        fails("flockctl", "launch", "--", id)
    assert listing() == before and pathlib.Path("/etc/passwd").read_text() == users


def test_a_bad_configuration_stops_nothing():
    start("agent-1")
    before = show(unit("agent-1"), "InvocationID")
    bad = AGENTS_D / "bad.toml"
    bad.write_text('[agents.x]\nmemmory = 1\n')
    try:
        said = fails("flockctl", "apply")
        assert "bad.toml:2" in said and "memmory" in said, said
        fails("systemctl", "start", "flock@agent-2")
        run("systemctl", "reload", "flockd")
        run("systemctl", "restart", "flockd")
        assert show(unit("agent-1"), "InvocationID") == before
    finally:
        bad.unlink()
        run("systemctl", "reset-failed")
        ok("systemctl", "restart", "flockd")
