"""The units and policies as they were installed: their form, their exposure, how they hang together."""

import os
import pathlib
import shutil
import socket
import struct
import subprocess
import time

from harness import *

# `systemd-analyze security`, times ten: what each unit may reach at most, in the release where it is most. It takes an
# agent's RestrictNamespaces=, where nothing is allowed, for one where everything is; test_boundary tries it.
EXPOSURE = {"flockd": 26, "flock-bus": 12, "flock-net": 20, "flock-agent@agent-1": 21}
DBUS_POLICY = pathlib.Path("/usr/share/dbus-1/system.d/flock.conf")
POLKIT_RULE = pathlib.Path("/usr/share/polkit-1/rules.d/00-flock.rules")
LINGER = pathlib.Path("/var/lib/systemd/linger/flock-agent-1")


def fence():
    return "table inet flock" in ok("nft", "list", "tables")


def incarnations():
    return [show(unit(agent), "MainPID", "InvocationID") for agent in AGENTS]


def test_the_files_are_well_formed():
    units = ("flockd.service", "flock-bus.service", "flock-net.service", "flock-net-restore.service",
             "flock.target", "flock-agents.slice", "flock@agent-1.service")
    ran = run("systemd-analyze", "verify", "--man=no", *units)
    ours = [line for line in (ran.out + ran.err).splitlines() if "flock" in line]
    assert ran.status == 0 and not ours, ran
    ok("systemd-tmpfiles", "--create", "flock.conf")


def test_exposure_stays_low():
    start("agent-1")
    for service, most in EXPOSURE.items():
        ok("systemd-analyze", "security", "--no-pager", f"--threshold={most}", f"{service}.service")


def test_a_restart_of_nftables_leaves_the_fence_without_flockd():
    ok("systemctl", "stop", "flockd")
    try:
        ok("systemctl", "start", "nftables")
        wait("the fence after a start", fence)
        # Each of these begins with `flush ruleset`.
        ok("systemctl", "reload", "nftables")
        wait("the fence after a reload", fence)
        ok("systemctl", "restart", "nftables")
        wait("the fence after a restart", fence)
        ok("systemctl", "stop", "nftables")
        assert not fence(), "the control: a stop of nftables must have flushed it"
        ok("systemctl", "reload", "flock-net")
        assert fence()
    finally:
        run("systemctl", "reload", "flock-net")
        ok("systemctl", "start", "flockd")


def test_restarts_of_nftables_in_a_row_leave_the_fence_without_flockd():
    """The last of them too, while what puts the fence back after the one before is still at work."""
    ok("systemctl", "stop", "flockd")
    try:
        for count in (1, 2, 3, 1, 2, 3, 1, 2, 3):
            ok("systemctl", "start", "nftables")
            for _ in range(count):
                ok("systemctl", "restart", "nftables")
            wait(f"the fence after {count} restarts", fence)
            ok("systemctl", "stop", "nftables")
            assert not fence(), "the control: a stop of nftables must have flushed it"
            ok("systemctl", "reload", "flock-net")
            ok("systemctl", "reset-failed", "nftables")
    finally:
        run("systemctl", "reload", "flock-net")
        ok("systemctl", "start", "flockd")


def test_services_come_and_go_and_agents_stay():
    start(*AGENTS)
    before = incarnations()
    for command in (("restart", "flock-net"), ("stop", "flock-net"), ("start", "flock-net"),
                    ("restart", "flock-bus"), ("restart", "flockd"), ("reload", "flockd"),
                    ("stop", "flockd"), ("start", "flockd"), ("daemon-reload",)):
        ok("systemctl", *command)
        assert incarnations() == before, command
    assert all(pid != "0" for pid, _ in before)


def test_a_daemon_reload_takes_nothing_away():
    """From then on the next start of an agent is by what systemd wrote down, not by what it was told."""
    odd = '[agents.odd]\nmode = "service"\nenvironment = { ODD = "a;b $c `d` 100% %%n" }\n' \
          'command = ["/bin/sh", "-c", "trap : TERM; while :; do sleep 1; done", "$HOME", "${X} 5%n", "`id`", "a b"]\n'
    with agents('[agents.zero]\nlevel = 0\n[agents.open]\negress = ["192.0.2.1:80"]\nneeds = ["jit"]\n' + odd):
        start("agent-1", "zero", "open", "odd")

        def words():
            process = pathlib.Path("/proc", show(unit("odd"), "MainPID"))
            variables = process.joinpath("environ").read_bytes().split(b"\0")
            return process.joinpath("cmdline").read_bytes(), [v for v in variables if v.startswith(b"ODD=")]
        said = words()
        assert said[0].endswith(b"\0$HOME\0${X} 5%n\0`id`\0a b\0") and said[1] == [b"ODD=a;b $c `d` 100% %%n"], said
        names = {}
        for agent in ("agent-1", "zero", "open", "odd"):
            text = pathlib.Path(f"/run/systemd/transient/{unit(agent)}").read_text()
            names[agent] = sorted({l.split("=")[0] for l in text.splitlines() if "=" in l and not l.startswith("#")} - {"ExecStart", "ExecStartEx", "After"})

        def settings():
            # Two words of a unit file are called otherwise in `show`.
            found = {a: ok("systemctl", "show", unit(a), *(f"-p{n.replace('Sec', 'USec')}" for n in names[a])) for a in names}
            # Addresses come back in another order.
            in_order = lambda line: line if not line.startswith("IPAddress") else " ".join(sorted(line.partition("=")[2].split()))
            return {agent: sorted(map(in_order, text.splitlines())) for agent, text in found.items()}
        before = settings()
        assert "RestrictNamespaces=uts" in before["agent-1"] and len(before["agent-1"]) > 60, before["agent-1"]
        ok("systemctl", "daemon-reload")
        after = settings()
        lost = {agent: sorted(set(before[agent]) ^ set(after[agent])) for agent in names}
        assert after == before, lost
        ok("kill", "-KILL", show(unit("odd"), "MainPID"))
        wait("odd's next one", lambda: show(unit("odd"), "NRestarts") == "1" and show(unit("odd"), "SubState") == "running")
        assert words() == said, words()
        # And it is what holds the next process.
        ok("kill", "-KILL", show(unit("agent-1"), "MainPID"))
        wait("the next one", lambda: int(show(unit("agent-1"), "NRestarts") or 0) >= 1 and show(unit("agent-1"), "SubState") == "running")
        said = inside("agent-1", "unshare -Ur id 2>&1; echo status $?")["output"]
        assert "status 0" not in said and "not permitted" in said, said


def test_a_fence_that_fails_to_load_stops_nobody():
    start(*AGENTS)
    before, good = incarnations(), CONFIG.read_text()
    try:
        CONFIG.write_text(good + "\nno-such-key = 1\n")
        fails("systemctl", "reload", "flock-net")
        assert fence() and show("flock-net.service", "ActiveState") == "active"
        fails("systemctl", "restart", "flock-net")
        assert fence(), "a failed load may not take the table away"
        fails("systemctl", "reload", "flockd")
        assert show("flockd.service", "ActiveState") == "active"
        assert incarnations() == before
    finally:
        CONFIG.write_text(good)
        ok("systemctl", "restart", "flock-net")


def test_the_target_brings_up_what_is_enabled():
    ok("systemctl", "disable", "flock@agent-2")
    try:
        ok("flockctl", "apply")
        ok("systemctl", "start", "flock.target")
        states = {agent: show(unit(agent), "ActiveState") for agent in AGENTS}
        assert states == {"agent-1": "active", "agent-2": "inactive", "agent-3": "active"}, states
        ok("systemctl", "stop", "flock.target")
        # The target's own stop ends first; the agents' are under way.
        wait("no agent", lambda: all(show(unit(agent), "ActiveState") == "inactive" for agent in AGENTS))
    finally:
        ok("systemctl", "enable", "flock@agent-2")


def test_the_bus_stops_cleanly_and_comes_back():
    ok("systemctl", "stop", "flock-bus")
    assert show("flock-bus.service", "ActiveState", "Result") == ["inactive", "success"]
    ok("systemctl", "start", "flock-bus")
    killed = show("flock-bus.service", "MainPID")
    assert killed != "0", "the bus does not run"
    ok("kill", "-KILL", killed)
    wait("another bus", lambda: show("flock-bus.service", "MainPID", "ActiveState")[0] not in ("0", killed))


def test_a_change_of_the_bus_reaches_a_server_that_cannot_reload_it():
    start("agent-1")
    before, bus, shipped = show(unit("agent-1"), "MainPID"), show("flock-bus", "MainPID"), CONFIG.read_text()
    try:
        with agents('[agents.late]\n'):
            # In the lab of Debian 12 the table is there: it names a newer server.
            head = "" if "\n[bus]\n" in shipped else "\n[bus]\n"
            CONFIG.write_text(f"{shipped}{head}".replace("\n[bus]\n", '\n[bus]\nsync = "2min"\n', 1))
            ok("flockctl", "apply")
            assert show("flock-bus", "MainPID") != bus, "it runs as before"
            assert "sync_interval: always" not in pathlib.Path("/var/lib/flock/bus/nats-server.conf").read_text()
            # A server that had refused the change would not know the new agent.
            start("late")
            assert "there" in inside("late", "echo there", timeout=60)["output"]
            again = show("flock-bus", "MainPID")
            ok("flockctl", "apply")
            assert show("flock-bus", "MainPID") == again, "an apply without a change disturbs it"
        # The accounts alone are reloaded.
        assert show("flock-bus", "MainPID") == again
    finally:
        CONFIG.write_text(shipped)
        ok("flockctl", "apply")
    assert show(unit("agent-1"), "MainPID") == before
    wait("its sign of life", lambda: status()["agent-1"]["health"]["word"] == "ok", 60)


def test_a_bus_that_ends_at_once_is_not_waited_for():
    link = pathlib.Path("/var/lib/flock/bus/nats-server")
    server = os.readlink(link)
    try:
        link.unlink()
        link.symlink_to("/bin/false")
        ran = run("systemctl", "restart", "flock-bus")
        assert ran.status != 0, ran
        wait("the reason in its journal", lambda: "the server has ended" in journal("-u", "flock-bus", "-n", "20"))
    finally:
        link.unlink()
        link.symlink_to(server)
        run("systemctl", "reset-failed", "flock-bus")
        ok("systemctl", "restart", "flock-bus")


def test_an_agents_user_cannot_touch_the_bus():
    bus = show("flock-bus.service", "MainPID")
    assert bus != "0", "the bus does not run"
    for command in (("cat", "/var/lib/flock/bus/accounts.conf"), ("ls", "/var/lib/flock/bus/jetstream"),
                    ("kill", "-KILL", bus), ("cat", f"/proc/{bus}/environ")):
        fails(*command, user="flock-agent-1")
    assert show("flock-bus.service", "MainPID") == bus


@contextlib.contextmanager
def without(*files):
    """Takes policy files away, and has their readers notice."""
    def reread():
        ok("systemctl", "reload", "dbus")
        run("systemctl", "stop", "polkit")  # it is started again by the next question
    kept = pathlib.Path("/root/kept")
    kept.mkdir(exist_ok=True)
    for file in files:
        shutil.move(file, kept / file.name)
    reread()
    try:
        yield
    finally:
        for file in files:
            shutil.move(kept / file.name, file)
        reread()


def linger():
    """The escape: logind starts a service manager outside every limit for whoever asks."""
    ran = run("busctl", "call", "org.freedesktop.login1", "/org/freedesktop/login1",
              "org.freedesktop.login1.Manager", "SetUserLinger", "ubb",
              ok("id", "-u", "flock-agent-1").strip(), "true", "false", user="flock-agent-1")
    return ran.status == 0 and LINGER.exists()


def test_each_layer_against_lingering_holds_alone():
    for layer in ((), (POLKIT_RULE,), (DBUS_POLICY,)):
        with without(*layer):
            assert not linger(), f"lingering, without {layer}"
    try:
        with without(POLKIT_RULE, DBUS_POLICY):
            assert linger(), "the control: without both layers it must succeed, or the test is void"
    finally:
        LINGER.unlink(missing_ok=True)
        run("systemctl", "stop", f"user@{ok('id', '-u', 'flock-agent-1').strip()}")


def test_the_manual_and_completions_are_there():
    # The pages themselves: a lab's root leaves manual pages out, the package's list does not.
    listed = ok("dpkg-query", "--listfiles", "ai-flock").split()
    for wanted in ("man1/flockctl.1.gz", "man5/flock.toml.5.gz", "man7/flock.7.gz", "man8/flockd.8.gz", "man8/flock-agent.8.gz",
                   "completions/flockctl", "_flockctl", "flockctl.fish"):
        assert any(path.endswith(wanted) for path in listed), wanted
    ok("bash", "-c", "source /usr/share/bash-completion/completions/flockctl && complete -p flockctl")


# Says who it is, and Hello: what the broker counts as a connection.
HELLO_FIELDS = ((1, b"o", b"/org/freedesktop/DBus"), (2, b"s", b"org.freedesktop.DBus"), (3, b"s", b"Hello"),
                (6, b"s", b"org.freedesktop.DBus"))


def hello():
    fields = b""
    for code, kind, text in HELLO_FIELDS:
        fields += b"\0" * (-len(fields) % 8) + bytes([code, 1]) + kind + b"\0" + struct.pack("<I", len(text)) + text + b"\0"
    header = b"l\1\0\1" + struct.pack("<III", 0, 1, len(fields)) + fields
    return b"\0AUTH EXTERNAL 30\r\nBEGIN\r\n" + header + b"\0" * (-len(header) % 8)


def fill_the_bus():
    """Connections of root's to the system bus, as many as it takes, and what it said to the one too many."""
    held = []
    while True:
        held.append(socket.socket(socket.AF_UNIX))
        held[-1].connect("/run/dbus/system_bus_socket")
        held[-1].sendall(hello())
        said = b""
        while b"NameAcquired" not in said and b"LimitsExceeded" not in said:
            said += held[-1].recv(4096)
        if b"LimitsExceeded" in said:
            return held
        assert len(held) < 2000, "void: the bus takes as many as one likes"


def test_starts_and_stops_wait_while_the_bus_has_no_room():
    for verb, state in (("start", "active"), ("stop", "inactive")):
        held = fill_the_bus()
        try:
            asked = subprocess.Popen(["systemctl", verb, "flock@agent-1"])
            # It is refused meanwhile, unless somebody else of root's leaves just now.
            time.sleep(2)
        finally:
            for connection in held:
                connection.close()
        assert asked.wait(60) == 0, journal("-u", "flock@agent-1", "-n", "5")
        assert show(unit("agent-1"), "ActiveState") == state
