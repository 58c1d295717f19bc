"""The boundary is measured without anybody asking: before an agent runs, on a timer, after each apply."""

import re
import socket

from harness import *
from test_verify import NO_FILTER, verify, weakened

MESSAGE_ID = "d0176326d87343e7ac237436adff0afa"
PROBE = pathlib.Path("/usr/lib/flock/flock-probe")
IDENTITY = pathlib.Path("/var/lib/flock/identity")


@contextlib.contextmanager
def settings(text):
    """The table [verify], in force."""
    try:
        with configured(f"[verify]\n{text}\n"):
            ok("systemctl", "reload", "flockd")
            yield
    finally:
        ok("systemctl", "reload", "flockd")


@contextlib.contextmanager
def readable_secret():
    """Every agent's user can read the host's password hashes; its sandbox still keeps it from them."""
    shadow = pathlib.Path("/etc/shadow")
    mode = shadow.stat().st_mode & 0o777
    os.chmod(shadow, 0o644)
    try:
        yield
    finally:
        os.chmod(shadow, mode)


def refused(agent):
    """The words with which a start was refused."""
    ran = run("flockctl", "launch", agent)
    assert ran.status != 0, ran
    return ran.err


def boundary(agent):
    """What the last measurement found."""
    record = json.loads(pathlib.Path("/run/flock/verify.json").read_text())
    return record["agents"].get(agent)


def done(agent):
    """What the last measurement did to it. It does that first, and says so when it has done so to all."""
    return (boundary(agent) or {}).get("done") or ""


def measure():
    """A measurement that begins now. To start one that flockd has begun before would be to wait for that one."""
    wait("the end of the one under way", lambda: show("flock-verify", "ActiveState") in ("inactive", "failed"), 120)
    return run("systemctl", "start", "flock-verify")


def test_nothing_runs_before_its_boundary_was_measured():
    trace = SHARED / "agents/tracer/ran"
    with agents('[agents.tracer]\nmode = "service"\ncommand = ["/bin/sh", "-c", "touch ran; sleep 600"]\n'):
        ok("flockctl", "apply")
        with weakened(NO_FILTER):
            said = refused("tracer")
            assert "not started, because its boundary did not hold when it was measured" in said, said
            assert "gain privileges by exec: VIOLATION" in said and "io_uring: VIOLATION" in said, said
            assert not trace.exists() and pid("tracer") == 0
        ok("flockctl", "launch", "tracer")
        wait("the agent", trace.exists)
        # Nothing of the measurement is left, and one that runs is not measured again by launch.
        assert run("systemctl", "list-units", "--plain", "--no-legend", "--all", "*.gate.service").out == ""
        assert not os.listdir("/run/flock/gate"), os.listdir("/run/flock/gate")
        with weakened("LimitNOFILE=4096"):
            said = refused("tracer")
            assert "stopped, because its boundary did not hold" in said, said


def test_a_probe_that_does_not_report_keeps_agents_from_starting():
    kept = PROBE.with_name("kept")
    PROBE.rename(kept)
    try:
        for text in ("#!/bin/sh\nexit 0\n", "#!/bin/sh\nexit 3\n", "#!/bin/sh\necho '{}'\n"):
            PROBE.write_text(text)
            PROBE.chmod(0o755)
            assert "when it was measured: run the" in refused("agent-1")
            assert_nothing_left("agent-1")
    finally:
        kept.rename(PROBE)
    start("agent-1")


def test_it_can_be_turned_off_and_that_is_said():
    with settings('before-ready = "skip"\nevery = "never"'):
        assert "verify.before-ready is skip" in ok("flockctl", "plan", "agent-1")
        doctor = run("flockctl", "doctor").out
        assert re.search(r"warn +measured boundary +agents start without a measurement", doctor), doctor
        assert "flockd never measures" in doctor
        with weakened(NO_FILTER):
            # What is read back after the start is not turned off.
            assert "stopped, because its boundary did not hold" in refused("agent-1")
        kept = PROBE.with_name("kept")
        PROBE.rename(kept)
        try:
            start("agent-1")
        finally:
            kept.rename(PROBE)
    assert "before-ready" not in ok("flockctl", "plan", "agent-1")


def test_a_violation_is_told_shown_and_stays_until_it_is_gone():
    start("agent-1", "agent-2")
    assert measure().status == 0
    assert boundary("agent-1")["violations"] == [] and boundary("agent-1")["held"] > 100
    since = ok("date", "+%s").strip()
    with readable_secret():
        assert measure().status != 0
        assert "[file.shadow]" in boundary("agent-1")["violations"][0], boundary("agent-1")
        wait("health", lambda: status()["agent-1"]["health"]["word"] == "violation", 60)
        table = run("flockctl", "status").out
        assert "VIOLATION" in table and "its boundary does not hold: read the host's password hashes" in table, table
        ok("journalctl", "--sync")
        entries = [json.loads(l) for l in ok(
            "journalctl", "-o", "json", f"--since=@{since}", f"MESSAGE_ID={MESSAGE_ID}").splitlines()]
        assert {e["FLOCK_VERIFY_AGENT"] for e in entries} >= {"agent-1"} and entries[0]["PRIORITY"] == "2", entries
        # Alert alone leaves it running.
        assert status()["agent-1"]["state"] == "running"
    assert measure().status == 0
    wait("health", lambda: status()["agent-1"]["health"]["word"] != "violation", 60)
    assert "boundary" not in run("flockctl", "status").out


def hub(subject):
    """A client of the hub that has subscribed."""
    words = dict(l.split("=", 1) for l in (IDENTITY / "operator.env").read_text().split("\n") if "=" in l)
    url = words["NATS_URL"].strip('"').rsplit("//", 1)[1].rsplit("@", 1)[-1]
    host, port = url.rsplit(":", 1)
    client = socket.create_connection((host, int(port)))
    login = {"user": words["NATS_USER"].strip('"'), "pass": words["NATS_PASSWORD"].strip('"'), "verbose": False}
    client.sendall(f"CONNECT {json.dumps(login)}\r\nSUB {subject} 1\r\nPING\r\n".encode())
    heard = b""
    while b"PONG" not in heard:
        heard += client.recv(65536)
    return client


def test_the_bus_is_told_and_no_agent_hears_it():
    start("agent-1", "agent-2")
    client = hub("flock.boundary.*")
    with readable_secret():
        assert measure().status != 0
    client.settimeout(10)
    heard = b""
    while b"boundary-violation" not in heard and (more := client.recv(65536)):
        heard += more
    assert b"MSG flock.boundary.agent-1" in heard and b"boundary-violation" in heard, heard
    client.close()


def test_on_a_timer_and_freeze():
    start("agent-1", "agent-2")
    with settings('every = "10s"\non-violation = "freeze"'):
        with readable_secret():
            wait("a frozen agent", lambda: status()["agent-1"]["state"] == "frozen", 120)
            wait("the record of it", lambda: done("agent-1").startswith("frozen"), 60)
            before = pathlib.Path(f"/proc/{pid('agent-1')}/stat").read_text().split()[13:15]
            time.sleep(1)
            assert pathlib.Path(f"/proc/{pid('agent-1')}/stat").read_text().split()[13:15] == before
        wait("a record without it", lambda: not boundary("agent-1")["violations"], 120)
        ok("systemctl", "thaw", unit("agent-1"))
        wait("health", lambda: status()["agent-1"]["state"] == "running")
    # One that is still frozen can be stopped.
    ok("systemctl", "freeze", unit("agent-1"))
    ok("systemctl", "stop", "flock@agent-1", "flock@agent-2")
    assert_nothing_left("agent-1")


def test_after_an_apply_and_stop():
    start("agent-1", "agent-2")
    with settings('every = "1h"\non-violation = "stop"'):
        with weakened("LimitNOFILE=4096"):
            ok("systemctl", "reload", "flockd")
            wait("a stopped agent", lambda: show("flock@agent-1", "ActiveState") == "inactive", 120)
            wait("the other", lambda: show("flock@agent-2", "ActiveState") == "inactive", 120)
            wait("the record of it", lambda: done("agent-1").startswith("stopped"), 60)
        assert_nothing_left("agent-1")
        # And it can be started again once the cause is gone.
        start("agent-1")
