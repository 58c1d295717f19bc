"""The world moves: what others do to the firewall, the services, the disk and the files, and by hand.

Agents run on through all of it; what was changed is noticed, named, and repaired or refused. Jumps of
the clock are not here: a container has the clock of its host; tests/lab/vm has one of its own.
"""

import concurrent.futures
import fcntl
import json
import os
import pathlib
import random
import re
import threading
import time

from harness import *
import watcher

STATE = pathlib.Path("/var/lib/flock")
FOREIGN = """
table ip filter { chain ufw-user-input { tcp dport 22 accept; }; chain INPUT { type filter hook input priority 0; policy accept; jump ufw-user-input; }; }
table inet firewalld { chain filter_OUTPUT { type filter hook output priority filter + 10; policy accept; oifname "lo" accept; }; }
table ip nat { chain DOCKER { ip daddr 172.17.0.2 tcp dport 80 dnat to 172.17.0.2:80; }; }
"""


def incarnations(*agents):
    return [show(unit(agent), "MainPID", "InvocationID") for agent in agents or AGENTS]


def table():
    """The egress table without what it counted of each agent."""
    out = run("nft", "-s", "list", "table", "inet", "flock").out
    return re.sub(r"(set rates \{[^}]*?)\n\s*elements = \{[^}]*\}", r"\1", out)


def drift(*agents):
    """The differences that `flockctl plan --diff` names; its exit status says whether there are any."""
    ran = run("flockctl", "plan", "--diff", "--json", *agents)
    found = json.loads(ran.out)
    assert ran.status == (3 if found else 0), ran
    return found


def assert_as_planned():
    assert drift() == [], drift()
    assert "nothing differs" in ok("flockctl", "plan", "--diff")


@contextlib.contextmanager
def watched():
    """No agent may run with a layer missing, meanwhile."""
    watch = watcher.Watch()
    try:
        yield
    finally:
        found = watch.end()
    assert not found, found


@contextlib.contextmanager
def without_flockd():
    """It would repair what the test wants to see named."""
    ok("systemctl", "stop", "flockd")
    try:
        yield
    finally:
        ok("systemctl", "start", "flockd")


# ---- the firewall

def test_foreign_tables_are_nobodys_to_touch():
    start("agent-1")
    ours = table()
    ok("nft", "-f", "-", input=FOREIGN)
    try:
        others = lambda: re.sub(r"table inet flock \{.*?\n\}\n", "", ok("nft", "-s", "list", "ruleset"), flags=re.S)
        before = others()
        assert "ufw-user-input" in before and "firewalld" in before and "DOCKER" in before
        ok("nft", "delete", "table", "inet", "flock")
        wait("the table to be back", lambda: table() == ours)
        ok("systemctl", "reload", "flock-net")
        with agents('[agents.open]\negress = ["192.0.2.1:8080"]\n'):
            start("open")
            ok("systemctl", "stop", "flock@open")
        assert others() == before and table() == ours
        # What they do to each other is not ours to mend, and ours comes back beside them.
        ok("nft", "flush", "ruleset")
        ok("nft", "-f", "-", input=FOREIGN)
        wait("the table to be back", lambda: table() == ours)
        assert others() == before
    finally:
        run("nft", "delete", "table", "ip", "filter")
        run("nft", "delete", "table", "inet", "firewalld")
        run("nft", "delete", "table", "ip", "nat")


def is_steady(what):
    before = what()
    time.sleep(1)
    return what() == before


def test_firewalls_beside_ours():
    """The real ones: each is begun, read anew and ended, and neither they nor flock touch the other's."""
    start("agent-1")
    ours, before = table(), incarnations("agent-1")
    others = lambda: re.sub(r"table inet flock \{.*?\n\}\n", "", ok("nft", "-s", "list", "ruleset"), flags=re.S)
    walls = [("ufw-before-input", ("ufw", "--force", "enable"), ("ufw", "reload"), ("ufw", "--force", "disable")),
             ("table inet firewalld", ("systemctl", "start", "firewalld"), ("firewall-cmd", "--reload"),
              ("systemctl", "stop", "firewalld"))]
    try:
        for word, begin, again, end in walls:
            ok(*begin)
            # Debian 12's firewalld has begun before its rules are loaded, and it loads them in parts.
            wait("its rules", lambda: word in others())
            wait("all of them", lambda: is_steady(others))
            theirs = others()
            assert table() == ours
            ok("nft", "delete", "table", "inet", "flock")
            wait("the table to be back", lambda: table() == ours)
            assert others() == theirs
            with agents('[agents.open]\negress = ["192.0.2.1:8080"]\n'):
                start("open")
                assert "192.0.2.1" in table()
            ok(*again)
            assert table() == ours and word in others()
            refused = "python3 -c 'import socket; socket.create_connection((\"192.0.2.1\", 80), 5)' 2>&1; echo on the bus"
            output = inside("agent-1", refused)["output"]
            assert "on the bus" in output and re.search("refused|unreachable|not permitted|No route", output), output
            ok(*end)
            assert table() == ours and incarnations("agent-1") == before
    finally:
        for *_, end in walls:
            run(*end)
        run("nft", "delete", "table", "ip", "filter")
        run("nft", "delete", "table", "ip6", "filter")


def test_a_rule_that_opens_the_fence_is_removed_and_named():
    start("agent-1")
    ours = table()
    chain = re.search(r"chain (\S+) \{\s*type filter hook output", ours)[1]
    ok("nft", "insert", "rule", "inet", "flock", chain, "accept")
    wait("the rule to be gone", lambda: table() == ours)
    wait("flockd to have said so", lambda: "not as it has to be" in journal("-u", "flockd", "-n", "20"))
    with without_flockd():
        ok("nft", "insert", "rule", "inet", "flock", chain, "accept")
        found = drift()
        assert [d["part"] for d in found] == ["egress"] and "accept" in found[0]["what"], found
        assert "egress table" in ok("flockctl", "apply")
        assert table() == ours, table()
        assert_as_planned()


# ---- PID 1, the bus of the system, the journal, our bus

def test_reload_and_reexec_under_load():
    """PID 1 serves nobody while it does that, and drops its connections when it executes itself anew."""
    start("agent-3")
    before, stop, broken = incarnations("agent-3"), threading.Event(), []

    def load(agent):
        while not stop.is_set():
            ran = run("flockctl", "restart", agent)
            if ran.status:
                broken.append(repr(ran))

    with watched(), concurrent.futures.ThreadPoolExecutor() as pool:
        for agent in ("agent-1", "agent-2"):
            pool.submit(load, agent)
        try:
            for n in range(6):
                ok("systemctl", "daemon-reload")
                ok("systemctl", "daemon-reexec")
                time.sleep(0.2)
        finally:
            stop.set()
    assert not broken, broken[0]
    assert incarnations("agent-3") == before
    for agent in ("agent-1", "agent-2"):
        assert show(unit(agent), "SubState") == "running", agent


def test_a_reload_while_a_start_waits():
    """PID 1 reads a unit again from what it wrote down of it: whatever was sent has to be there."""
    for name in ("flock-host-check.service", unit("agent-1").replace(".service", ".gate.service"), unit("agent-1")):
        pathlib.Path("/run/flock/egress-filter").unlink(missing_ok=True)
        ok("systemd-run", "--quiet", "--no-block", "--collect", "--unit=first", "-p", "Type=oneshot", "-p", f"Before={name}", "sleep", "90")
        try:
            starting = subprocess.Popen(["flockctl", "start", "agent-1"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            wait("its job", lambda: re.search(rf"{re.escape(name)} +start +waiting", ok("systemctl", "list-jobs", "--full")), 60)
            ok("systemctl", "daemon-reload")
        finally:
            ok("systemctl", "stop", "first")
        said = starting.communicate(timeout=120)[0]
        assert starting.returncode == 0 and show(unit("agent-1"), "SubState") == "running", (name, said)
        ok("flockctl", "stop", "agent-1")


def test_the_system_bus_is_killed():
    start(*AGENTS)
    before = incarnations()
    ok("systemctl", "kill", "-s", "KILL", "dbus")
    wait("the bus to be back", lambda: run("busctl", "status").status == 0)
    assert incarnations() == before
    ok("flockctl", "restart", "agent-1")
    assert incarnations("agent-2", "agent-3") == before[1:]
    os.kill(pid("agent-2"), 9)  # flockd hears PID 1 again when it notices this
    wait("the restart in status", lambda: status("agent-2")["agent-2"]["restarts"] == 1)
    ok("flockctl", "stop", "agent-2")
    assert show("flock@agent-2", "ActiveState") == "inactive"


def test_the_journal_is_restarted_and_rotated():
    start("agent-1")
    before = incarnations("agent-1")
    for n, command in enumerate((("systemctl", "restart", "systemd-journald"), ("journalctl", "-q", "--rotate"),
                                 ("journalctl", "-q", "--rotate", "--vacuum-time=1s"))):
        ok(*command)
        ok("flockctl", "restart", "agent-2") if n == 0 else None
        assert "x" in inside("agent-1", f"echo line-{n} >&2; echo x")["output"]
        log = SHARED / "logs/agent-1.log"
        # An emptied journal of Debian 12 says nothing of what is new; flockd looks twice a minute.
        wait("its line in its log", lambda: log.read_text().count(f"line-{n}") >= 1, 60)
        time.sleep(0.5)
        assert log.read_text().count(f"line-{n}") == 1, log.read_text()
    assert incarnations("agent-1") == before


def test_the_bus_of_the_agents_is_restarted():
    start("agent-1")
    before = incarnations("agent-1")
    server = show("flock-bus", "MainPID")
    ok("systemctl", "kill", "-s", "KILL", "flock-bus")
    wait("the bus", lambda: show("flock-bus", "SubState") == "running" and show("flock-bus", "MainPID") != server)
    assert "again" in inside("agent-1", "echo again", timeout=40)["output"]
    assert incarnations("agent-1") == before


# ---- the disk

@contextlib.contextmanager
def small_disk():
    """A copy of the state on a file system of its own; gives the mount point."""
    ok("systemctl", "stop", "flockd", "flock-bus")
    ok("mkdir", "-p", "/srv/small")
    ok("mount", "-t", "tmpfs", "-o", "size=64M,mode=0711", "small", "/srv/small")
    try:
        ok("flockctl", "audit-release")  # Else it could only be appended to, and the copy back is refused.
        ok("cp", "-a", "/var/lib/flock/.", "/srv/small/")
        ok("mount", "--bind", "/srv/small", "/var/lib/flock")
        ok("systemctl", "start", "flock-bus", "flockd")
        yield pathlib.Path("/srv/small")
    finally:
        run("systemctl", "stop", "flock.target", *(f"flock@{a}" for a in AGENTS), "flockd", "flock-bus")
        run("umount", "-l", "/var/lib/flock")
        # Its users and what the journal knows of its records stay, so all else does too.
        (pathlib.Path("/srv/small") / "filled").unlink(missing_ok=True)
        ok("cp", "-a", "/srv/small/.", "/var/lib/flock/")
        run("umount", "-l", "/srv/small")
        ok("systemctl", "start", "flock-bus", "flockd")
        run("flockctl", "apply")


def test_a_full_disk_loses_nothing():
    with small_disk() as disk:
        start("agent-1")
        before, ledger = incarnations("agent-1"), (STATE / "uids.json").read_bytes()
        accounts = (STATE / "bus/accounts.conf").read_bytes()
        run("sh", "-c", f"cat /dev/zero > {disk}/filled")
        # At last single bytes: no room for a page may be left.
        with contextlib.suppress(OSError), open(disk / "filled", "ab") as filled:
            filled.write(b"x" * 4096)
        with watched():
            said = fails("flockctl", "agent", "add", "full")
            assert "No space left" in said, said
            assert "panicked" not in said, said
            assert (STATE / "uids.json").read_bytes() == ledger
            assert (STATE / "bus/accounts.conf").read_bytes() == accounts
            # What is prepared starts, and what runs stops: neither needs the disk.
            ok("flockctl", "start", "agent-2")
            ok("flockctl", "stop", "agent-2")
            ok("systemctl", "restart", "flockd") if run("systemctl", "restart", "flockd").status == 0 else None
            assert incarnations("agent-1") == before
        (disk / "filled").unlink()
        # What was asked for is written in /etc; flockd or this makes it true.
        ok("flockctl", "apply")
        try:
            start("full")
            assert incarnations("agent-1") == before
            assert not [d for d in drift() if d["part"] != "unit"], drift()
            assert not list(STATE.rglob(".new-*")), list(STATE.rglob(".new-*"))
        finally:
            ok("flockctl", "agent", "remove", "--stop", "full")


def test_a_disk_that_became_read_only():
    with small_disk() as disk:
        start("agent-1")
        before = incarnations("agent-1")
        (AGENTS_D / "late.toml").write_text("[agents.late]\n")
        os.chmod(AGENTS_D / "late.toml", 0o640)
        try:
            for mount in ("/var/lib/flock", "/srv/small"):
                ok("mount", "-o", "remount,bind,ro", mount)
            said = fails("flockctl", "apply")
            assert "Read-only file system" in said, said
            assert incarnations("agent-1") == before
            assert "running" in run("flockctl", "status", "agent-1").out
            ok("flockctl", "stop", "agent-1")
            for mount in ("/srv/small", "/var/lib/flock"):
                ok("mount", "-o", "remount,bind,rw", mount)
            ok("flockctl", "apply")
            start("late")
        finally:
            run("systemctl", "stop", "flock@late")
            (AGENTS_D / "late.toml").unlink()


# ---- by hand

AGENT, USER = "agent-2", "flock-agent-2"
ACCOUNTS = STATE / "bus/accounts.conf"
# What is done, what names it, and whether apply mends it ("mends") or says what to do ("refuses").
BY_HAND = [
    ("chmod 777 /var/lib/flock/shared/common", "tree", "shared/common", "mends"),
    (f"setfacl -m u:flock-agent-1:rwx /var/lib/flock/shared/agents/{AGENT}", "tree", f"agents/{AGENT}", "mends"),
    (f"setfacl -b -k /var/lib/flock/shared/agents/{AGENT}", "tree", f"agents/{AGENT}", "mends"),
    (f"chmod 666 /var/lib/flock/shared/logs/{AGENT}.log", "tree", f"{AGENT}.log", "mends"),
    (f"chown {USER} /var/lib/flock/shared/agents/{AGENT}", "tree", "should belong to", "refuses"),
    (f"echo evil > /var/lib/flock/roots/{AGENT}/etc/hosts", "root", "etc/hosts", "mends"),
    (f"rm -r /var/lib/flock/roots/{AGENT}", "root", "does not exist", "mends"),
    (f"ln -s /etc /var/lib/flock/roots/{AGENT}/host", "root", "no plan asks for it", "mends"),
    (f"usermod --shell /bin/sh {USER}", "user", "shell", "refuses"),
    (f"usermod --append --groups daemon {USER}", "user", "group daemon", "refuses"),
    (f"gpasswd --delete {USER} flock-agents", "user", "flock-agents", "mends"),
    (f"userdel {USER}", "user", "does not exist", "mends"),
    (f"mkdir -p /var/lib/systemd/linger; touch /var/lib/systemd/linger/{USER}", "user", "linger", "refuses launch"),
    (f"echo '#' >> {ACCOUNTS}", "bus", "accounts.conf", "mends"),
    (f"rm {STATE}/identity/{AGENT}.env", "bus", "identity", "mends"),
    (f"chmod 644 {STATE}/identity/{AGENT}.env", "bus", "owner or mode is wrong", "refuses"),
    ("nft delete table inet flock", "egress", "not loaded", "mends"),
    ("echo '{' > /run/flock/egress.json", "egress", "egress.json", "mends"),
]
UNDO = {"usermod --shell": f"usermod --shell /usr/sbin/nologin {USER}",
        "usermod --append": f"gpasswd --delete {USER} daemon",
        "chown": f"chown root /var/lib/flock/shared/agents/{AGENT}",
        "mkdir -p /var/lib/systemd/linger": f"rm /var/lib/systemd/linger/{USER}",
        "chmod 644": f"chmod 600 {STATE}/identity/{AGENT}.env"}


def test_what_is_changed_by_hand_is_named_and_repaired_or_refused():
    start("agent-1")
    before, number = incarnations("agent-1"), ok("id", "-u", USER)
    wrong = []
    with without_flockd():
        assert_as_planned()
        assert "as planned" in ok("flockctl", "doctor").split("plans", 1)[1]
        for command, part, word, what in BY_HAND:
            ok("sh", "-c", command)
            try:
                found = drift()
                assert any(d["part"] == part and word in d["what"] for d in found), f"not named: {found}"
                shown = run("flockctl", "plan", "--diff")
                assert shown.status == 3 and word in shown.out, shown
                assert part == "egress" or "flockctl plan --diff" in run("flockctl", "doctor").out
                applied = run("flockctl", "apply")
                if what == "mends":
                    assert applied.status == 0, applied
                    assert_as_planned()
                    ok("flockctl", "start", AGENT)
                else:
                    assert (applied.status == 0) == (what == "refuses launch"), applied
                    refused = run("flockctl", "start", AGENT)
                    assert refused.status == 1, refused
                    assert any(d["part"] == part and word in d["what"] for d in drift()), drift()
                assert ok("id", "-u", USER) == number
                assert incarnations("agent-1") == before
            except AssertionError as error:
                wrong.append(f"{command}: {error}")
            finally:
                for head, undo in UNDO.items():
                    if command.startswith(head):
                        ok("sh", "-c", undo)
                run("flockctl", "stop", AGENT)
                run("systemctl", "reset-failed")
                run("flockctl", "apply")
    assert not wrong, "\n\n".join(wrong)


def test_a_unit_that_is_changed_while_it_runs_is_named():
    start("agent-1")
    ok("systemctl", "set-property", "--runtime", unit("agent-1"), "TasksMax=infinity", "IPAddressAllow=any")
    found = drift("agent-1")
    assert [d["part"] for d in found] == ["unit"] and "TasksMax" in found[0]["what"], found
    assert "50-TasksMax.conf" in found[0]["what"] and "flockctl restart agent-1" in found[0]["what"], found
    ok("flockctl", "restart", "agent-1")
    assert_as_planned()
    # A file that holds for the next start too: refused, with its name.
    file = pathlib.Path(f"/run/systemd/system/{unit('agent-1')}.d/mine.conf")
    file.parent.mkdir()
    try:
        file.write_text("[Service]\nNoNewPrivileges=no\nMemoryDenyWriteExecute=no\n")
        ok("systemctl", "daemon-reload")
        said = fails("flockctl", "restart", "agent-1")
        assert "MemoryDenyWriteExecute" in said and str(file) in said, said
        assert_nothing_left("agent-1")
    finally:
        ok("rm", "-r", str(file.parent))
        ok("systemctl", "daemon-reload")
    start("agent-1")
    assert_as_planned()


# ---- what cannot be read

def nothing_happens(name, path, before, damaged):
    """Neither an operator nor flockd gets anything done, and nothing ends but what an operator stops."""
    keeps = {p: p.read_bytes() for p in (STATE / "uids.json", ACCOUNTS, STATE / "identity/agent-1.env",
                                         STATE / "identity/agent-2.env") if not damaged(p)}
    handles = ("flock@agent-1", "flock@agent-2")
    enabled = ok("systemctl", "is-enabled", *handles)
    said = fails("flockctl", "apply")
    assert path.name in said and "panicked" not in said, (name, said)
    fails("flockctl", "start", "agent-2")
    run("systemctl", "reload", "flockd")
    if path in (CONFIG, AGENTS_D):
        fails("flockctl", "plan", "--diff")
    assert incarnations("agent-1") == before, name
    assert all(p.read_bytes() == text for p, text in keeps.items()), name
    assert ok("systemctl", "is-enabled", *handles) == enabled, name
    # An operator can always stop what runs.
    ok("flockctl", "stop", "agent-1")


def again():
    """The fault is mended: all is well again."""
    run("systemctl", "reset-failed")
    ok("systemctl", "start", "flockd")
    start("agent-1")
    return incarnations("agent-1")


def test_what_cannot_be_read_stops_and_deletes_nothing():
    start("agent-1")
    before = incarnations("agent-1")
    faults = [("truncated TOML", CONFIG, b"[defaults\nlevel = "), ("binary", CONFIG, b"\xff\xfe\x00"),
              ("a damaged ledger", STATE / "uids.json", b'{"version": 1, "uids": {"agent'),
              ("an empty ledger", STATE / "uids.json", b""),
              ("a newer ledger", STATE / "uids.json", b'{"version": 2, "uids": {}, "more": 1}'),
              ("a damaged identity", STATE / "identity/agent-2.env", b"NATS_USER=agent-2\n")]
    for name, path, damage in faults:
        good, mode = path.read_bytes(), path.stat().st_mode & 0o7777
        path.write_bytes(damage)
        try:
            nothing_happens(name, path, before, lambda p: p == path)
            assert path.read_bytes() == damage, f"{name}: it was replaced"
        finally:
            path.write_bytes(good)
            os.chmod(path, mode)
        before = again()
    for name, path, make in (("no configuration", CONFIG, "true"), ("a folder for it", CONFIG, "mkdir"),
                             ("a loop for it", CONFIG, "ln -s flock.toml"), ("a file for its folder", AGENTS_D, "touch")):
        path.rename(f"{path}.away")
        ok("sh", "-c", f"{make} {path}")
        try:
            nothing_happens(name, path, before, lambda p: False)
        finally:
            ok("rm", "-rf", str(path))
            pathlib.Path(f"{path}.away").rename(path)
        before = again()
    STATE.joinpath("uids.json").rename(STATE / "uids.json.away")
    try:
        assert "missing" in fails("flockctl", "apply")
        assert not (STATE / "uids.json").exists(), "a new ledger would give numbers again"
    finally:
        STATE.joinpath("uids.json.away").rename(STATE / "uids.json")
    ok("flockctl", "apply")


def test_a_configuration_that_others_can_write_is_refused():
    start("agent-1")
    before = incarnations("agent-1")
    file = AGENTS_D / "mine.toml"
    file.write_text("[agents.mine]\n")
    file.chmod(0o640)
    try:
        for change, target, word in (("chmod 666", file, "can write it"), ("chown nobody", file, "owns it"),
                                     ("chmod 777", AGENTS_D, "everybody"), ("chmod 666", CONFIG, "can write it"),
                                     ("chown nobody", CONFIG, "owns it"), ("chmod 777", CONFIG.parent, "everybody")):
            was = target.stat()
            ok("sh", "-c", f"{change} {target}")
            try:
                said = fails("flockctl", "apply")
                assert word in said and str(target) in said, (change, target, said)
                fails("flockctl", "start", "agent-2")
                assert incarnations("agent-1") == before
            finally:
                os.chown(target, was.st_uid, was.st_gid)
                os.chmod(target, was.st_mode & 0o7777)
    finally:
        file.unlink()
    run("systemctl", "reset-failed")
    ok("flockctl", "apply")


# ---- what is configured and cannot be

def test_agents_named_like_users_of_the_host_are_none_of_them():
    rows = lambda: [row for name in ("passwd", "group", "shadow") for row in pathlib.Path("/etc", name).read_text().splitlines()
                    if row.split(":")[0] in ("root", "daemon", "nobody")]
    before = rows()
    with agents("[agents.root]\n[agents.daemon]\n[agents.nobody]\n") as ids:
        start(*ids)
        for id in ids:
            number = int(inside(id, "id -u")["output"])
            assert 65536 <= number < 100000 and int(ok("id", "-u", f"flock-{id}")) == number, (id, number)
        assert_as_planned()
    assert rows() == before


def test_a_command_that_cannot_be_executed_leaves_nothing():
    folder = pathlib.Path("/opt/commands")
    folder.mkdir()
    files = {"plain": ("echo 1\n", 0o644), "no-interpreter": ("#!/opt/commands/none\n", 0o755),
             "no-program": ("\x7fELF", 0o755), "folder": (None, 0o755)}
    for name, (text, mode) in files.items():
        (folder / name).write_text(text) if text else (folder / name).mkdir()
        (folder / name).chmod(mode)
    try:
        with agents("".join(f'[agents.{name}]\nmode = "service"\ncommand = ["/opt/commands/{name}"]\n'
                            f'read-only-paths = ["/opt/commands"]\n' for name in files)) as ids:
            for id in ids:
                said = fails("flockctl", "start", id)
                assert f"/opt/commands/{id}" in said and "panicked" not in said, said
                assert_nothing_left(id)
                assert not run("pgrep", "-u", f"flock-{id}").out, id
    finally:
        ok("rm", "-r", str(folder))


def test_a_bus_server_that_is_missing_or_too_old_is_named_and_stops_nobody():
    start("agent-1")
    before, shipped = incarnations("agent-1"), CONFIG.read_text()
    server = pathlib.Path("/usr/local/bin/nats-here")
    said = {"missing": (None, "install the package nats-server"),
            "too old": ("nats-server: v2.9.25", "install 2.10.0 or newer"),
            "another program": ("hello", "names none")}
    bus = show("flock-bus", "MainPID")
    try:
        # Debian 12's names a server already.
        without = re.sub(r"(?ms)^\[bus\]\n.*?(?=^\[|\Z)", "", shipped)
        CONFIG.write_text(f'{without}\n[bus]\nserver = "{server}"\n')
        for answer, word in said.values():
            server.unlink(missing_ok=True)
            if answer:
                server.write_text(f"#!/bin/sh\necho '{answer}'\n")
                server.chmod(0o755)
            for ran in (run("flockctl", "apply"), run("flockctl", "doctor")):
                assert word in ran.out + ran.err and str(server) in ran.out + ran.err, ran
            # The one that runs is a good one: it stays until somebody restarts it.
            assert show("flock-bus", "MainPID") == bus and incarnations("agent-1") == before
        ok("systemctl", "stop", "flock-bus")
        run("systemctl", "start", "flock-bus")
        wait("flockd to say so", lambda: "the bus: " in run("flockctl", "status").out)
        wait("its own words in the journal", lambda: "hello" in journal("-u", "flock-bus", "-n", "5"))
        assert incarnations("agent-1") == before
    finally:
        CONFIG.write_text(shipped)
        server.unlink(missing_ok=True)
        run("systemctl", "reset-failed", "flock-bus")
        ok("flockctl", "apply")
        ok("systemctl", "restart", "flock-bus")
    wait("flockd to be back on the bus", lambda: "the bus: " not in run("flockctl", "status").out)
    assert incarnations("agent-1") == before


# ---- apply without change

@contextlib.contextmanager
def calls():
    """The calls of methods on the system bus, meanwhile: a list of (sender, member, object of the call)."""
    found = []
    process = subprocess.Popen(["busctl", "monitor", "--json=short", "--match=type='method_call'"],
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    reader = threading.Thread(target=lambda: found.extend(json.loads(line) for line in process.stdout))
    reader.start()
    ask = ("busctl", "call", "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "GetId")
    wait("the monitor to see a call", lambda: run(*ask) and found)
    found.clear()
    try:
        yield found
    finally:
        # What was called before this has been seen when this is.
        seen = len(found)
        run(*ask)
        wait("the monitor to see the last call", lambda: any(call.get("member") == "GetId" for call in found[seen:]))
        process.terminate()
        process.wait()
        reader.join()


def by_one(found, member):
    """The calls of the connection that made this one."""
    senders = {c["sender"] for c in found if c.get("member") == member}
    assert len(senders) == 1, [(c["sender"], c["member"]) for c in found]
    return [c["member"] for c in found if c["sender"] in senders]


def test_apply_without_change_writes_nothing_and_asks_pid_1_a_fixed_number_of_times():
    lives = ("*/jetstream/*", "*/uids.json.lock", "*/logs/*", "*/log.state*", "*/history.db*", "*/audit*", "*/locks/*",
             "*/agents/*/*", "*/verify*", "*/run/flock", "*/boundary*")
    look = lambda: ok("find", "/etc", "/var/lib/flock", "/run/flock",
                      *(word for path in lives for word in ("-not", "-path", path)), "-printf", "%p %i %C@ %T@\n")
    counts = {}
    with without_flockd():
        wait("the end of its last measurement", lambda: show("flock-verify", "ActiveState") in ("inactive", "failed"), 120)
        for number in (0, 20):
            with agents("".join(f"[agents.many-{n}]\n" for n in range(number))):
                ok("flockctl", "apply")
                before = look()
                with calls() as found:
                    said = ok("flockctl", "apply")
                assert "nothing to change" in said, said
                assert look() == before
                counts[number] = by_one(found, "ListUnitsByPatterns")
                assert not {"Reload", "EnableUnitFiles", "StartUnit", "ReloadOrRestartUnit"} & set(counts[number])
    assert counts[0] == counts[20] and len(counts[0]) <= 8, counts


# ---- many at once

def test_two_at_once_on_one_agent():
    def both(*verbs):
        processes = [subprocess.Popen(["flockctl", *verb], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
                     for verb in verbs]
        ends = [(p.communicate(timeout=120)[0], p.returncode) for p in processes]
        assert all(text.strip() and "panicked" not in text for text, _ in ends), ends
        return ends

    with watched():
        for _ in range(3):
            ends = both(("agent", "add", "twin"), ("agent", "add", "twin"))
            assert [status for _, status in ends].count(0) >= 1, ends
            assert not list(AGENTS_D.glob(".*")), list(AGENTS_D.glob(".*"))
            assert_as_planned()
            ends = both(("start", "twin"), ("start", "twin"), ("apply",))
            assert [status for _, status in ends] == [0, 0, 0], ends
            both(("stop", "twin"), ("restart", "twin"))
            both(("agent", "remove", "--stop", "twin"), ("agent", "remove", "--stop", "twin"))
            run("flockctl", "stop", "twin")
            ok("flockctl", "apply")
            assert not (AGENTS_D / "twin.toml").exists()
            assert_nothing_left("twin")
            run("systemctl", "reset-failed")
    run("rm", "-rf", str(SHARED / "agents/twin"))


def test_an_apply_makes_what_the_files_say_when_its_turn_comes():
    """Who changed them may have applied that before; an apply takes away what is not configured."""
    lock, file, identity = pathlib.Path("/run/flock/locks/machine"), AGENTS_D / "test.toml", STATE / "identity/late.env"
    # /proc/locks marks who waits with an arrow.
    waits = lambda: re.search(rf"-> .*:{lock.stat().st_ino} ", pathlib.Path("/proc/locks").read_text())
    for command in (["flockctl", "apply"], ["systemctl", "reload", "flockd"]):
        try:
            with lock.open("a") as held:
                fcntl.flock(held, fcntl.LOCK_EX)
                waiting = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
                wait(f"{command} to wait", waits)
                file.write_text("[agents.late]\n")
            said = waiting.communicate(timeout=120)[0]
            assert waiting.returncode == 0, (command, said)
            # A reload only hands the wish on.
            assert identity.exists() or command[0] == "systemctl", (command, said)
            wait("its identity", identity.exists)
            wait("flockd to know the agent", lambda: is_known_to_flockd("late"))
            assert_as_planned()
        finally:
            file.unlink()
            ok("flockctl", "apply")
        assert not identity.exists()
        wait("flockd to have forgotten it", lambda: not is_known_to_flockd("late"))
    run("rm", "-rf", str(SHARED / "agents/late"))


def test_a_hundred_clients_on_mixed_verbs_leave_a_linear_history():
    """The last call that PID 1 took for a handle is what the agent does in the end."""
    choose = random.Random(5)
    verbs = [choose.choice(["start"] * 6 + ["stop"] * 5 + ["restart"] * 4 + ["status"] * 4 + ["apply"]) for _ in range(100)]
    commands = [["flockctl", verb, *([] if verb == "apply" else [choose.choice(AGENTS)])] for verb in verbs]
    with watched(), calls() as found:
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for command in commands]
        ends = [(command, *p.communicate(timeout=300), p.returncode) for command, p in zip(commands, processes)]
        settled = lambda: not [line for line in ok("systemctl", "list-jobs", "--no-legend").splitlines() if "flock" in line]
        wait("the jobs to be done", settled, 60)
    for command, text, _, code in ends:
        assert code in (0, 1) and text.strip() and "panicked" not in text, (command, code, text)
        assert code == 0 or re.search(r"flockctl: .*(canceled|stopped|failed|running|not as it should be|did not stay as asked)", text), (command, code, text)
    assert run("flockctl", "apply").status == 0
    for agent in AGENTS:
        last = [c["member"] for c in found if c.get("member") in ("StartUnit", "StopUnit", "RestartUnit")
                and c["payload"]["data"][0] == f"flock@{agent}.service"][-1]
        states = show(f"flock@{agent}", "ActiveState"), show(unit(agent), "ActiveState")
        wanted = ("inactive", "inactive") if last == "StopUnit" else ("active", "active")
        assert states == wanted, (agent, last, states, journal("-u", f"flock@{agent}", "-n", "20"))
        word = status(agent)[agent]["state"]
        assert (word if isinstance(word, str) else word["word"]) == ("stopped" if last == "StopUnit" else "running"), word
    ok("flockctl", "audit", "verify")
