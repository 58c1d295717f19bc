"""`flockctl verify`: green only when every promise was measured and held.

Each layer is taken away in turn, and the cell that it guards must turn red: a green table proves
something only then.
"""

import contextlib
import json
import pathlib
import pty
import re
import socket

from harness import *
from rawbus import RawBus

DROP_INS = pathlib.Path("/run/systemd/system/flock-agent@.service.d")
TWO = '[agents.zero]\nlevel = 0\n[agents.other]\nlevel = 0\n'


def verify(*arguments, timeout=300):
    """The matrix, and the exit status."""
    ran = run("flockctl", "verify", "--json", *arguments, timeout=timeout)
    try:
        return json.loads(ran.out), ran.status
    except json.JSONDecodeError:
        raise AssertionError(f"no matrix: {ran!r}") from None


def cells(matrix, agent, check=None, vantage=None):
    """The cells of an agent."""
    row = next(row for row in matrix["agents"] if row["agent"] == agent)
    return [c for c in row["cells"] if check in (None, c["check"]) and vantage in (None, c["vantage"])]


def bad(matrix):
    """What is not good, readable."""
    return [(row["agent"], c["check"], c["vantage"], c["targets"][:3], c["verdict"], c["evidence"], c["control"])
            for row in matrix["agents"] for c in row["cells"] if c["verdict"] in ("violation", "unknown")] + \
        [(row["agent"], row["fault"]) for row in matrix["agents"] if row["fault"]]


def broken(matrix, check, vantage="sandbox", agent=None):
    """The cells of a check that are violations."""
    return [c for row in matrix["agents"] for c in row["cells"]
            if agent in (None, row["agent"]) and c["check"] == check and c["vantage"] == vantage
            and c["verdict"] == "violation"]


@contextlib.contextmanager
def weakened(text):
    """A drop-in for all agents, read by systemd after the agents were started."""
    DROP_INS.mkdir(parents=True, exist_ok=True)
    (DROP_INS / "weak.conf").write_text(f"[Service]\n{text}\n")
    ok("systemctl", "daemon-reload")
    try:
        yield
    finally:
        (DROP_INS / "weak.conf").unlink()
        DROP_INS.rmdir()
        ok("systemctl", "daemon-reload")


def test_every_promise_is_measured_and_holds():
    start("agent-1", "agent-2", "agent-3")
    matrix, status = verify()
    assert bad(matrix) == [] and status == 0, bad(matrix)
    for agent in AGENTS:
        # Every check stands in it, aimed at each of the other two where it is aimed at agents.
        checks = {c["check"] for c in cells(matrix, agent)}
        assert len(checks) > 80, checks
        for check in ("file.read", "proc.signal", "net.tcp", "bus.task"):
            targets = {t for c in cells(matrix, agent, check, "sandbox") for t in c["targets"]}
            assert targets >= set(AGENTS) - {agent}, (check, targets)
        layers = {c["layer"] for c in cells(matrix, agent)}
        assert {"mount", "dac", "acl", "seccomp", "nft", "namespace", "capability", "nats"} <= layers, layers
        # What no level promises is said, not hidden.
        assert cells(matrix, agent, "ipc.abstract")[0]["verdict"] == "not-promised"
        assert cells(matrix, agent, "ipc.abstract")[0]["measured"] == "done"


@contextlib.contextmanager
def quiet():
    """Nobody else measures."""
    ok("systemctl", "stop", "flockd")
    # One that is broken off leaves its targets to the next.
    wait("the end of its last measurement", lambda: show("flock-verify", "ActiveState") in ("inactive", "failed"), 120)
    try:
        yield
    finally:
        ok("systemctl", "start", "flockd")


def test_nothing_is_left_of_a_run():
    start("agent-1")
    # By then it has made what it makes in its directory.
    wait("its sign of life", lambda: status()["agent-1"]["health"]["word"] == "ok", 60)
    with quiet():
        before = places()
        verify()
        wait("those that it ended to be gone", lambda: run("pgrep", "-x", "flock-probe").out in before, 60)
        assert places() == before, (before, places())


def places():
    """Everywhere that a run puts something."""
    return (sorted(os.listdir(SHARED / "agents/agent-1")), sorted(os.listdir("/dev/shm")), os.listdir("/dev/mqueue"),
            ok("ipcs", "-m", "-s", "-q"), sorted(os.listdir("/run/flock/verify")) if os.path.exists("/run/flock/verify") else [],
            run("pgrep", "-x", "flock-probe").out,
            ok("systemctl", "list-units", "--all", "--plain", "--no-legend", "flock-*probe*", "flock-*gate*"))


def test_an_agent_that_waits_for_its_next_start_is_left_alone():
    with agents('[agents.pause]\nrestart = { policy = "on-failure", delay = "30s" }\n'):
        ok("flockctl", "apply")
        start("pause")
        ok("kill", "-KILL", show(unit("pause"), "MainPID"))
        wait("the pause", lambda: show(unit("pause"), "SubState").startswith("auto-restart"))
        verify("pause")
        # The control: it was measured in the pause, not after it.
        assert show(unit("pause"), "SubState") != "running"
        wait("its next start", lambda: show(unit("pause"), "NRestarts", "SubState") == ["1", "running"], 90)


def test_a_run_that_was_killed_is_cleaned_up_by_the_next():
    start("agent-1")
    # By then it has made what it makes in its directory.
    wait("its sign of life", lambda: status()["agent-1"]["health"]["word"] == "ok", 60)
    with quiet():
        before = places()
        process = subprocess.Popen(["flockctl", "verify"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait("a canary", lambda: list((SHARED / "agents/agent-1").glob(".flock-verify-*")))
        process.kill()
        process.wait()
        matrix, exit_status = verify()
        assert exit_status == 0, bad(matrix)
        wait("those that it ended to be gone", lambda: run("pgrep", "-x", "flock-probe").out in before, 60)
        assert places() == before, (before, places())


def test_agents_that_do_not_run_are_measured_too():
    matrix, status = verify("agent-1", "agent-2")
    assert status == 0, bad(matrix)
    assert not any(row["runs"] for row in matrix["agents"])
    for agent in ("agent-1", "agent-2"):
        assert_nothing_left(agent)


# systemd gives no new privileges with each of these as well.
NO_FILTER = "\n".join(f"{name}=no" for name in (
    "NoNewPrivileges", "RestrictSUIDSGID", "RestrictNamespaces", "MemoryDenyWriteExecute", "RestrictRealtime",
    "LockPersonality", "ProtectClock", "ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables",
    "ProtectHostname", "PrivateDevices")) + "\nSystemCallFilter=\nSystemCallArchitectures=\nRestrictAddressFamilies="
# An entry more for a path that is mounted already changes nothing.
LARGE_TMP = "TemporaryFileSystem=\nTemporaryFileSystem=/shared:ro,mode=0755 /tmp:mode=1777,size=1G " \
    "/var/tmp:mode=1777 /dev/shm:mode=1777 /run/agent:mode=0777"

# A property of the unit, and the cells that must turn red without it.
PROPERTIES = {
    "NoNewPrivileges=no": ["machine.unit"],
    NO_FILTER: ["own.no-new-privileges", "call.perf", "file.setuid", "machine.unit"],
    "PrivateIPC=no": ["ipc.memory", "ipc.semaphores", "ipc.queue", "ipc.posix-queue"],
    "ProtectProc=default": ["proc.see"],
    "RestrictAddressFamilies=": ["net.netlink"],
    "RestrictAddressFamilies=\nIPAddressDeny=\nIPAddressAllow=any": ["net.netlink"],
    "SystemCallFilter=": ["call.io-uring", "call.userfaultfd", "call.add-key"],
    "RestrictNamespaces=no\nSystemCallFilter=": ["call.user-namespace"],
    "MemoryDenyWriteExecute=no": ["call.writable-code"],
    "RestrictRealtime=no\nSystemCallFilter=": ["machine.unit"],
    "LockPersonality=no\nSystemCallFilter=": ["call.personality"],
    "BindReadOnlyPaths=/run/dbus": ["ipc.host"],
    "CapabilityBoundingSet=CAP_NET_RAW\nAmbientCapabilities=CAP_NET_RAW": ["own.bounding"],
    "LimitNOFILE=4096": ["limit.files"],
    LARGE_TMP: ["limit.tmp"],
}


def test_each_property_that_goes_turns_its_cell_red():
    start("agent-1", "agent-2")
    green, status = verify("agent-1", "agent-2")
    assert status == 0, bad(green)
    survivors = []
    for text, checks in PROPERTIES.items():
        with weakened(text):
            matrix, status = verify("agent-1", "agent-2")
        for check in checks:
            if status == 0 or not broken(matrix, check):
                survivors.append((text, check, [c["evidence"] for c in cells(matrix, "agent-1", check)]))
    assert not survivors, survivors
    matrix, status = verify("agent-1", "agent-2")
    assert status == 0, bad(matrix)


def test_without_the_egress_table_its_cells_turn_red():
    start("agent-1", "agent-2")
    # flockd would put it back at once.
    ok("systemctl", "stop", "flockd")
    # This machine lets nobody ping; a server lets everybody.
    ping = pathlib.Path("/proc/sys/net/ipv4/ping_group_range")
    before = ping.read_text()
    ping.write_text("0 2147483647")
    try:
        matrix, status = verify("agent-1", "agent-2")
        assert status == 0 and {c["verdict"] for c in cells(matrix, "agent-1", "net.ping")} == {"blocked"}, bad(matrix)
        ok("nft", "delete", "table", "inet", "flock")
        matrix, status = verify("agent-1", "agent-2")
        assert status == 1
        for check in ("net.tcp", "net.udp", "net.ping"):
            assert broken(matrix, check, "user"), cells(matrix, "agent-1", check)
        assert broken(matrix, "machine.fence")
        # The second wall holds on its own, and is named. It knows addresses and no ports.
        dns = cells(matrix, "agent-1", "net.dns", "sandbox")
        assert {c["verdict"] for c in dns} == {"blocked"} and {c["layer"] for c in dns} == {"bpf"}, dns
        assert broken(matrix, "net.tcp", "sandbox")
    finally:
        ping.write_text(before)
        ok("systemctl", "restart", "flock-net")
        ok("systemctl", "start", "flockd")
    matrix, status = verify("agent-1", "agent-2")
    assert status == 0, bad(matrix)


def test_a_rule_of_the_table_that_goes_is_found():
    start("agent-1", "agent-2")
    ok("systemctl", "stop", "flockd")
    try:
        # The rule that refuses everything on loopback.
        ok("nft", "insert", "rule", "inet", "flock", "agents", "oifname", "lo", "accept")
        matrix, status = verify("agent-1", "agent-2")
        assert status == 1 and broken(matrix, "machine.fence") and broken(matrix, "net.tcp", "user"), bad(matrix)
    finally:
        ok("systemctl", "restart", "flock-net")
        ok("systemctl", "start", "flockd")


def test_an_acl_entry_that_is_widened_is_found():
    start("agent-1", "agent-2")
    folder = str(SHARED / "agents/agent-2")
    ok("setfacl", "-m", "u:flock-agent-1:rwx", folder)
    try:
        matrix, status = verify("agent-1", "agent-2")
        # flock itself sees that the machine differs: nothing of that agent is called measured.
        assert status == 1
        row = next(r for r in matrix["agents"] if r["agent"] == "agent-2")
        assert row["fault"] or broken(matrix, "file.list", "user", "agent-1"), bad(matrix)
    finally:
        ok("setfacl", "-x", "u:flock-agent-1", folder)
        ok("flockctl", "apply")
    matrix, status = verify("agent-1", "agent-2")
    assert status == 0, bad(matrix)


def test_a_secret_that_everybody_may_read_is_found():
    start("agent-1", "agent-2")
    identity = pathlib.Path("/var/lib/flock/identity")
    modes = identity.stat().st_mode & 0o777, (identity / "agent-2.env").stat().st_mode & 0o777
    os.chmod(identity, 0o755)
    os.chmod(identity / "agent-2.env", 0o644)
    try:
        matrix, status = verify("agent-1", "agent-2")
        # flock itself sees it: nothing of that agent is called measured.
        row = next(r for r in matrix["agents"] if r["agent"] == "agent-2")
        assert status == 1 and (row["fault"] or broken(matrix, "file.identity", "user", "agent-1")), bad(matrix)
    finally:
        os.chmod(identity, modes[0])
        os.chmod(identity / "agent-2.env", modes[1])
    shadow = pathlib.Path("/etc/shadow")
    mode = shadow.stat().st_mode & 0o777
    os.chmod(shadow, 0o644)
    try:
        matrix, status = verify("agent-1", "agent-2")
        assert status == 1 and broken(matrix, "file.shadow", "user", "agent-1"), bad(matrix)
        assert not broken(matrix, "file.shadow", "sandbox"), bad(matrix)
    finally:
        os.chmod(shadow, mode)


def test_a_permission_of_the_bus_that_is_widened_is_found():
    start("agent-1", "agent-2")
    accounts = pathlib.Path("/var/lib/flock/bus/accounts.conf")
    before = accounts.read_text()
    head, tail = before.split('"agent-1" {', 1)
    # Everything may be said and heard inside its account; and the hub's tasks come in.
    wide = re.sub(r"publish: \[[^\]]*\]", 'publish: [">"]', tail, count=1)
    wide = re.sub(r"subscribe: \[[^\]]*\]", 'subscribe: [">"]', wide, count=1)
    accounts.write_text(head + '"agent-1" {' + wide)
    try:
        ok("systemctl", "reload", "flock-bus")
        wait("the server to have read it", lambda: may_say_anything("agent-1"))
        time.sleep(1)
        matrix, status = verify("agent-1", "agent-2")
        assert status == 1
        for check in ("bus.task", "bus.result", "bus.listen", "bus.streams"):
            assert broken(matrix, check, agent="agent-1"), (check, cells(matrix, "agent-1", check))
        assert not broken(matrix, "bus.task", agent="agent-2")
    finally:
        accounts.write_text(before)
        ok("systemctl", "reload", "flock-bus")
        wait("the server to have read it", lambda: not may_say_anything("agent-1"))
        time.sleep(1)
    matrix, status = verify("agent-1", "agent-2")
    assert status == 0, bad(matrix)


def may_say_anything(agent):
    """Whether the bus takes what no agent may say."""
    bus = RawBus(agent)
    bus.publish("of.no.agent", "x")
    refused = bus.ping()
    bus.close()
    return not refused


def test_results_that_share_a_stream_are_found():
    """With a stream for two, the one that uses a message id first makes the other's result vanish."""
    start("agent-1")
    matrix, _ = verify("agent-1", "agent-2")
    assert [c["verdict"] for c in cells(matrix, "agent-1", "bus.copied")] == ["blocked"], bad(matrix)
    operator = RawBus("operator")
    config = json.loads(operator.request("$JS.API.STREAM.INFO.RESULTS_agent-1", "")[2])["config"]
    shared = {**config, "subjects": [*config["subjects"], "task.result.stranger"]}
    update = lambda wanted: json.loads(operator.request("$JS.API.STREAM.UPDATE.RESULTS_agent-1", json.dumps(wanted))[2])
    with quiet():
        try:
            assert "error" not in update(shared)
            matrix, status = verify("agent-1", "agent-2")
        finally:
            update(config)
            operator.close()
    assert status == 1 and broken(matrix, "bus.copied", agent="agent-1"), bad(matrix)
    assert not broken(matrix, "bus.copied", agent="agent-2")


def test_without_the_bus_its_cells_are_unknown_not_blocked():
    start("agent-1")
    ok("systemctl", "stop", "flock-bus")
    try:
        matrix, status = verify("agent-1", "agent-2")
        assert status == 1
        verdicts = {c["verdict"] for c in cells(matrix, "agent-1") if c["check"].startswith("bus.")}
        assert verdicts == {"unknown"}, verdicts
    finally:
        ok("systemctl", "start", "flock-bus")


def test_an_agent_that_does_away_with_the_targets_hides_nothing():
    """A canary that its own agent removes, or a tripwire that it kills, makes its cells unknown."""
    start("agent-1", "agent-2")
    with quiet():
        process = subprocess.Popen(["flockctl", "verify", "--json", "agent-1", "agent-2"], stdout=subprocess.PIPE, text=True)
        canary = wait("a canary", lambda: list((SHARED / "agents/agent-2").glob(".flock-verify-*")))[0]
        canary.unlink()
        matrix = json.loads(process.communicate(timeout=120)[0])
    read = [c for c in cells(matrix, "agent-1", "file.read") if "agent-2" in c["targets"]]
    assert read and all(c["verdict"] == "unknown" for c in read), read
    assert process.returncode == 1


def test_level_0_is_called_what_it_is():
    with agents(TWO):
        ok("flockctl", "apply")
        start("zero", "other", "agent-1")
        matrix, status = verify("zero", "other", "agent-1")
        assert status == 0, bad(matrix)
        row = next(r for r in matrix["agents"] if r["agent"] == "zero")
        assert row["boundary"] == "workspace (not a security boundary)"
        of = lambda check, target, vantage="sandbox": next(
            c["verdict"] for c in cells(matrix, "zero", check, vantage) if target in c["targets"])
        assert of("proc.signal", "other") == "not-promised" and of("proc.signal", "agent-1") == "blocked"
        assert of("file.read", "other", "user") == "not-promised" and of("file.read", "agent-1", "user") == "blocked"
        assert of("call.io-uring", "kernel") == "blocked" and of("call.user-namespace", "kernel") == "not-promised"
        text = run("flockctl", "verify", "zero", "other", "agent-1").out
        assert "workspace (not a security boundary)" in text and "they share a user (level 0)" in text, text


def test_what_a_level_adds_is_seen_behind_the_lower_one():
    start("agent-1", "agent-2")
    matrix, status = verify("--all-levels", "agent-1", "agent-2")
    assert status == 0, bad(matrix)
    assert [(r["agent"], r["level"], r["lowered"]) for r in matrix["agents"] + matrix["lower"]] == [
        ("agent-1", 1, False), ("agent-2", 1, False), ("agent-1", 0, True), ("agent-2", 0, True)]
    of = lambda row, check: {(c["verdict"], c["measured"]) for c in row["cells"]
                             if c["check"] == check and c["vantage"] == "sandbox"}
    for row in matrix["lower"]:
        # Open at level 0, and said; closed at level 0 too.
        assert of(row, "ipc.memory") == {("not-promised", "done")}, of(row, "ipc.memory")
        assert of(row, "proc.see") == {("not-promised", "done")}, of(row, "proc.see")
        assert of(row, "net.port") == of(row, "call.io-uring") == {("blocked", "refused")}
    text = ok("flockctl", "verify", "--all-levels", "agent-1", "agent-2")
    assert "agent-1 at level 0" in text and "all agents at level 0: find System V memory" in text, text
    # The agents themselves were left alone.
    assert status_of_units() == ["active", "active"]


def status_of_units():
    return [show(unit(agent), "ActiveState") for agent in ("agent-1", "agent-2")]


def test_what_is_there_was_approved_and_an_addition_is_a_violation():
    with agents('[agents.zero]\nlevel = 0\n[agents.one]\nlevel = 1\n'
                '[agents.more]\nenvironment = { KEY = "x" }\nread-write-paths = ["/srv/more"]\n'):
        pathlib.Path("/srv/more").mkdir(exist_ok=True)
        ok("flockctl", "apply")
        start("zero", "one", "more")
        matrix, status = verify("zero", "one", "more")
        assert status == 0, bad(matrix)
        for row in matrix["agents"]:
            lists = {c["check"]: c for c in row["cells"] if c["check"].startswith("list.")}
            assert len(lists) == 9 and {c["verdict"] for c in lists.values()} == {"blocked"}, lists
            assert all("which is there" in c["control"] for c in lists.values()), lists
        # The proof that each list shows an addition.
        with weakened("BindReadOnlyPaths=/run/dbus\nSystemCallFilter=\nCapabilityBoundingSet=CAP_NET_RAW\n"
                      "Environment=ODD=1\nBindPaths=/tmp:/run/open\nPrivateDevices=no\n"
                      "SupplementaryGroups=tty"):
            matrix, status = verify("one")
        lists = {c["check"]: c for c in matrix["agents"][0]["cells"] if c["check"].startswith("list.")}
        for check, words in {"sockets": "/run/dbus/system_bus_socket", "calls": "not approved: ", "environment": "ODD",
                             "capabilities": "CapBnd", "writable": "/run/open", "mounts": "/run/open rw",
                             "groups": "group 3", "devices": "/dev/"}.items():
            cell = lists[f"list.{check}"]
            assert cell["verdict"] == "violation" and words in cell["evidence"], cell
        found = matrix["agents"][0]["inventories"]
        assert status == 1 and {"bpf", "ptrace", "io_uring_setup"} <= set(found["calls"]), found["calls"]
    pathlib.Path("/srv/more").rmdir()


def test_the_table_is_for_people():
    start("agent-1", "agent-2")
    plain = ok("flockctl", "verify")
    assert "\x1b" not in plain, plain
    assert "agent-1: level 1, process isolation: every promise was measured and held" in plain, plain
    coloured = []
    status = pty.spawn(["flockctl", "verify", "agent-1", "agent-2"],
                       lambda fd: coloured.append(os.read(fd, 65536)) or coloured[-1])
    text = b"".join(coloured).decode()
    assert status == 0 and "\x1b[32m" in text, text


def test_the_page_stands_alone():
    page = pathlib.Path("/root/verify.html")
    trap = pathlib.Path("/root/trap")
    trap.write_text("mine")
    page.unlink(missing_ok=True)
    page.symlink_to(trap)
    ok("flockctl", "verify", "--html", str(page))
    text = page.read_text()
    assert not page.is_symlink() and trap.read_text() == "mine"
    assert text.startswith("<!doctype html>") and "http://" not in text and "https://" not in text
    assert "<script" not in text and "agent-3" in text


def test_only_root_may():
    if run("id", "plain").status:
        ok("useradd", "--create-home", "plain")
    ran = run("flockctl", "verify", user="plain")
    assert ran.status == 77 and "needs root" in ran.err, ran
    ran = run("flockctl", "verify", "nobody-here")
    assert ran.status == 2 and "agent-1" in ran.err, ran


def test_an_agent_cannot_look_into_its_probe():
    """Not even its own user can read the probe's program, so the kernel hides the process from it."""
    ran = run("cat", "/usr/lib/flock/flock-probe", user="flock-agent-1")
    assert ran.status != 0, "the program can be read"
    process = subprocess.Popen(["setpriv", "--reuid", "flock-agent-1", "--clear-groups", "/usr/lib/flock/flock-probe"],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait("it to be the probe", lambda: os.readlink(f"/proc/{process.pid}/exe") == "/usr/lib/flock/flock-probe")
    for part in ("environ", "mem", "fd/0", "root"):
        ran = run("cat", f"/proc/{process.pid}/{part}", user="flock-agent-1")
        assert ran.status != 0 and "Permission denied" in ran.err, (part, ran)
    process.stdin.close()
    process.wait(10)
