"""What `apt install` leaves on the machine."""

import json
import pathlib
import stat

from harness import *


def test_services_run_and_nothing_failed():
    for service in ("flockd", "flock-bus", "flock-net"):
        assert show(f"{service}.service", "ActiveState") == "active", service
    assert not ok("systemctl", "--failed", "--plain", "--no-legend").strip()


def test_no_agent_starts_by_itself():
    assert not ok("systemctl", "list-units", "--plain", "--no-legend", "flock-agent@*").strip()


def test_the_shipped_configuration_is_valid():
    assert "agent-3" in ok("flockctl", "check")


def test_secrets_are_roots():
    for path in ("/var/lib/flock/identity", "/var/lib/flock/bus/accounts.conf", "/etc/flock/flock.toml"):
        mode = pathlib.Path(path).stat().st_mode
        assert not mode & stat.S_IRWXO, f"{path}: {stat.filemode(mode)}"
    for file in pathlib.Path("/var/lib/flock/identity").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600 and file.stat().st_uid == 0, file


def test_the_bus_listens_on_loopback_alone():
    listening = [line.split()[3] for line in ok("ss", "-Hltn").splitlines()]
    assert "127.0.0.1:14222" in listening, listening
    assert all(a.startswith(("127.", "[::1]")) for a in listening if a.endswith("4222")), listening


def test_doctor_finds_nothing_wrong():
    checks = json.loads(ok("flockctl", "doctor", "--json"))
    assert len(checks) > 10, checks


def test_users_of_the_block_cannot_log_in():
    rows = [line.split(":") for line in pathlib.Path("/etc/passwd").read_text().splitlines()]
    ours = [row for row in rows if 65536 <= int(row[2]) <= 99999]
    assert {row[0] for row in ours} >= {"flock-agent-1", "flock-agent-2", "flock-agent-3"}, ours
    for name, password, uid, gid, _, home, shell in ours:
        assert (uid, home, shell) == (gid, "/nonexistent", "/usr/sbin/nologin"), name
        assert password == "x" and ok("getent", "shadow", name).split(":")[1].startswith(("!", "*")), name


def test_apply_again_changes_nothing():
    watched = ["/etc/passwd", "/etc/group", "/var/lib/flock"]
    # What is written all the time: the bus's store, the agents' logs, the history; and that there was an apply.
    lives = ["*/jetstream/*", "*/uids.json.lock", "*/logs/*", "*/log.state*", "*/history.db*", "*/audit*", "*/state/*"]
    look = lambda: ok("find", *watched, *(word for path in lives for word in ("-not", "-path", path)),
                      "-printf", "%p %i %C@ %T@\n")
    ok("flockctl", "apply")
    before = look()
    ok("flockctl", "apply")
    assert look() == before
