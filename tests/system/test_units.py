"""The units and policies as they were installed: their form, their exposure, how they hang together."""

import pathlib
import shutil

from harness import *

# `systemd-analyze security`, times ten: what each unit may reach at most.
EXPOSURE = {"flockd": 26, "flock-bus": 12, "flock-net": 20}
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
    for service, most in EXPOSURE.items():
        ok("systemd-analyze", "security", "--no-pager", f"--threshold={most}", f"{service}.service")


def test_a_restart_of_nftables_leaves_the_fence_without_flockd():
    ok("systemctl", "stop", "flockd")
    try:
        ok("systemctl", "start", "nftables")
        wait("the fence after a start", fence, 5)
        # Each of these begins with `flush ruleset`.
        ok("systemctl", "reload", "nftables")
        wait("the fence after a reload", fence, 5)
        ok("systemctl", "restart", "nftables")
        wait("the fence after a restart", fence, 5)
        ok("systemctl", "stop", "nftables")
        assert not fence(), "the control: a stop of nftables must have flushed it"
        ok("systemctl", "reload", "flock-net")
        assert fence()
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
    for wanted in ("man1/flockctl.1.gz", "man5/flock.toml.5.gz", "man7/flock.7.gz", "man8/flockd.8.gz",
                   "completions/flockctl", "_flockctl", "flockctl.fish"):
        assert any(path.endswith(wanted) for path in listed), wanted
    ok("bash", "-c", "source /usr/share/bash-completion/completions/flockctl && complete -p flockctl")
