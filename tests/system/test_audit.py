"""The audit log: who did what, and what happens to one who changes it."""

import fcntl
import json
import os
import pathlib

from harness import *
from test_operator import user

STATE = pathlib.Path("/var/lib/flock")
LOG = STATE / "audit.log"


def records(*filter):
    return [json.loads(line) for line in ok("flockctl", "audit", "show", "--json", "-n", "10000", *filter).splitlines()]


def newest(what):
    return records("--what", what)[-1]


def test_what_people_do_is_recorded_with_who_they_are():
    operator = user("operator1", "flock")
    uid = int(ok("id", "-u", operator))
    start("agent-1")
    ok("flockctl", "task", "send", "--to", "agent-1", "--wait", "echo hello", user=operator)
    sent = newest("task-send")
    assert sent["who"] == {"uid": uid, "name": operator, "how": "socket"}, sent
    assert sent["object"] == "agent-1" and "hello" not in json.dumps(sent), sent
    ok("flockctl", "stop", "agent-1", env={"SUDO_UID": str(uid)})
    stopped = newest("stop")
    assert stopped["object"] == "agent-1" and stopped["who"]["how"] == "root", stopped
    if not login_uid():
        assert stopped["who"]["uid"] == uid, stopped
    ok("flockctl", "start", "agent-1")
    assert newest("launched")["object"] == "agent-1"
    assert newest("launched")["who"]["how"] == "unit"
    assert newest("halted")["n"] < newest("start")["n"] < newest("launched")["n"]
    # An operator reads it through flockd, and cannot reach the file.
    assert "task-send agent-1" in ok("flockctl", "audit", "show", "--agent", "agent-1", user=operator)
    assert "records" in ok("flockctl", "audit", "verify", user=operator)
    fails("cat", str(LOG), user=operator)
    assert oct(os.stat(LOG).st_mode & 0o777) == "0o600"


def login_uid():
    uid = int(pathlib.Path("/proc/self/loginuid").read_text())
    return None if uid == 2**32 - 1 else uid


def test_a_changed_configuration_is_recorded_and_a_level_by_itself():
    with agents('[agents.audited]\nlevel = 1\n'):
        ok("systemctl", "reload", "flockd")
        added = wait("the record", lambda: (r := newest("config-changed")) and "audited" in r["detail"] and r)
        assert "added: audited" in added["detail"] and added["who"]["how"] == "flockd", added
        (AGENTS_D / "test.toml").write_text('[agents.audited]\nlevel = 0\n')
        # Also when it is changed while flockd is down.
        ok("systemctl", "restart", "flockd")
        changed = wait("the record", lambda: records("--what", "level-changed", "--agent", "audited"))[-1]
        assert changed["detail"] == "level 1 before, level 0 now", changed
    ok("systemctl", "reload", "flockd")
    wait("the record", lambda: "removed: audited" in newest("config-changed")["detail"])


def append_only():
    """Whether the file has the attribute, see ioctl_iflags(2)."""
    flags = bytearray(8)
    with LOG.open() as file:
        try:
            fcntl.ioctl(file, 0x80086601, flags)
        except OSError:
            return False
    return bool(int.from_bytes(flags[:4], "little") & 0x20)


def test_tampering_is_found():
    ok("flockctl", "apply")
    ok("flockctl", "apply")
    ok("flockctl", "apply")
    # Only by what stands in the journal is the end of the log missed.
    ok("journalctl", "--sync")
    report = json.loads(ok("flockctl", "audit", "verify", "--json"))
    assert report["fault"] is None and report["records"] == report["last"] >= 3, report
    assert report["witnessed"] >= 3, report
    if append_only():
        assert run("sh", "-c", f"echo x > {LOG}").status != 0
        assert run("rm", "-f", str(LOG)).status != 0
    else:
        print("      this file system has no append-only attribute")
    ok("flockctl", "audit-release")
    whole = LOG.read_bytes()
    rows = whole.splitlines(keepends=True)
    try:
        for kind, bad in {
            "changed": rows[:-2] + [rows[-2].replace(b'"apply"', b'"halted"')] + rows[-1:],
            "removed": rows[:-2] + rows[-1:],
            "inserted": rows[:-1] + [rows[-2]] + rows[-1:],
            "reordered": rows[:-2] + [rows[-1], rows[-2]],
            "torn": rows[:-1] + [rows[-1][:-20]],
            "the log ends at": rows[:-2],
        }.items():
            LOG.write_bytes(b"".join(bad))
            said = fails("flockctl", "audit", "verify")
            assert kind in said and "audit.log:" in said, (kind, said)
    finally:
        LOG.write_bytes(whole)
    ok("flockctl", "audit", "verify")


def test_nothing_is_done_for_an_operator_that_cannot_be_recorded():
    operator = user("operator1", "flock")
    start("agent-1")
    (STATE / "audit.lock").rename(STATE / "audit.lock.away")
    (STATE / "audit.lock").mkdir()
    try:
        said = fails("flockctl", "task", "send", "--to", "agent-1", "touch unrecorded", user=operator)
        assert "not done" in said and "audit" in said, said
        # Root is warned, and the agents can be stopped all the same.
        ran = run("flockctl", "stop", "agent-1")
        assert ran.status == 0 and "not recorded" in ran.err, ran
    finally:
        (STATE / "audit.lock").rmdir()
        (STATE / "audit.lock.away").rename(STATE / "audit.lock")
    assert not (SHARED / "agents/agent-1/unrecorded").exists()
    ok("flockctl", "audit", "verify")
