"""What the system tests share: they run as root inside a booted lab with the package installed.

A test is a function whose name begins with `test_`. It fails by an exception. Every test starts
from a machine where no agent runs and the configuration is the shipped one, and leaves it so.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time
import traceback

CONFIG = pathlib.Path("/etc/flock/flock.toml")
AGENTS_D = pathlib.Path("/etc/flock/agents.d")
SHARED = pathlib.Path("/var/lib/flock/shared")
AGENTS = ["agent-1", "agent-2", "agent-3"]


class Ran:
    """What a command did."""

    def __init__(self, done):
        self.status, self.out, self.err = done.returncode, done.stdout, done.stderr

    def __repr__(self):
        return f"status {self.status}\n--- out\n{self.out}--- err\n{self.err}"


def run(*argv, input=None, timeout=120, env=None, user=None):
    """Runs a command; never raises for its exit status."""
    if user:
        argv = ("setpriv", "--reuid", user, "--regid", user, "--init-groups", *argv)
    done = subprocess.run(argv, input=input, capture_output=True, text=True, timeout=timeout,
                          env={**os.environ, **(env or {})}, errors="replace")
    return Ran(done)


def ok(*argv, **options):
    """Runs a command that must succeed and gives what it printed."""
    ran = run(*argv, **options)
    assert ran.status == 0, f"{' '.join(argv)}: {ran!r}"
    return ran.out


def fails(*argv, **options):
    """Runs a command that must fail and gives what it printed, both streams."""
    ran = run(*argv, **options)
    assert ran.status != 0, f"{' '.join(argv)} should have failed: {ran!r}"
    return ran.out + ran.err


class TooLate(AssertionError):
    """What was waited for did not come in time: a machine that is too busy, perhaps."""


def wait(what, condition, seconds=20):
    """Waits until condition() is true and gives its value."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise TooLate(f"waited {seconds} s for: {what}")
        time.sleep(0.1)


def show(unit, *names):
    """Properties of a unit as systemd shows them; one name gives a text, several a list."""
    out = ok("systemctl", "show", unit, *(f"-p{name}" for name in names))
    found = dict(line.split("=", 1) for line in out.splitlines() if "=" in line)
    values = [found.get(name, "") for name in names]
    return values[0] if len(values) == 1 else values


def unit(agent):
    return f"flock-agent@{agent}.service"


def pid(agent):
    return int(show(unit(agent), "MainPID"))


def status(*agents):
    """`flockctl status --json`, by agent. Its exit status says whether all is well, so it is not looked at."""
    rows = json.loads(run("flockctl", "status", "--json", *agents).out)
    return {row["agent"]: row for row in rows["agents"]}


def start(*agents):
    for agent in agents:
        ran = run("systemctl", "start", f"flock@{agent}")
        assert ran.status == 0, f"start {agent}: {journal('-u', f'flock@{agent}', '-n', '15')}"


def journal(*match):
    return ok("journalctl", "-q", "-o", "cat", "--no-pager", *match)


@contextlib.contextmanager
def configured(toml):
    """A section at the head of the configuration for a while, that is not there otherwise."""
    text, section = CONFIG.read_text(), toml.splitlines()[0]
    assert f"\n{section}\n" not in text, text
    CONFIG.write_text(toml + text)
    try:
        yield
    finally:
        CONFIG.write_text(text)


@contextlib.contextmanager
def agents(toml):
    """Further agents for one test, removed again with all that they left."""
    file = AGENTS_D / "test.toml"
    AGENTS_D.mkdir(exist_ok=True)
    file.write_text(toml)
    os.chmod(file, 0o640)
    ids = [line.split(".")[1].rstrip("]") for line in toml.splitlines()
           if line.startswith("[agents.") and line.count(".") == 1]
    try:
        yield ids
    finally:
        for id in ids:
            run("systemctl", "stop", f"flock@{id}")
            run("systemctl", "reset-failed", f"flock@{id}", unit(id))
        file.unlink()
        run("flockctl", "apply")
        # flockd reads the files when it was told, a moment later: the next test's are not read between.
        end = time.monotonic() + 20
        while ids and is_known_to_flockd(ids[0]) and time.monotonic() < end:
            time.sleep(0.1)
        for id in ids:
            run("rm", "-rf", str(SHARED / "agents" / id))


def is_known_to_flockd(agent):
    """Whether flockd has read the files that name this agent, and brought the machine there."""
    return run("flockctl", "events", agent).status == 0


def inside(agent, script, timeout=60):
    """Runs a shell script as a task of the agent, inside its sandbox: (status, output)."""
    ran = run("flockctl", "task", "send", "--to", agent, "--wait", "--timeout", f"{timeout}s",
              "--json", "-", input=script,
              timeout=timeout + 10)
    try:
        result = json.loads(ran.out.strip().splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        raise AssertionError(f"no result of the task: {ran!r}") from None
    return result


def clean():
    """No agent runs and nothing of one is left; the shipped configuration applies."""
    run("systemctl", "stop", "flock.target", *(f"flock@{a}" for a in AGENTS))
    run("systemctl", "reset-failed")


def assert_nothing_left(agent):
    """What a stopped agent may not leave behind."""
    # A measurement that had begun may take a moment longer; it stops the slice when its own unit is gone.
    wait("no unit of it", lambda: not ok(
        "systemctl", "list-units", "--all", "--plain", "--no-legend", f"flock-agent@{agent}*").strip(), 30)
    slice = f"flock-agents-{agent.replace('-', chr(92) + 'x2d')}.slice"
    wait(f"{slice} to be stopped", lambda: show(slice, "ActiveState") == "inactive", 30)
    mounts = pathlib.Path("/proc/self/mounts").read_text()
    assert f"/{agent}" not in mounts, mounts


def count(label, test):
    """Runs one check that needs the machine as it is, and prints the count."""
    try:
        test()
        print(f"ok    {label}\n1 passed, 0 failed")
    except Exception:
        traceback.print_exc(file=sys.stdout)
        print(f"FAIL  {label}\n0 passed, 1 failed")
        sys.exit(1)


# Even what comes too late is a failure here.
PROTECTIONS = {"test_boundary", "test_egress", "test_verify", "test_measured", "test_limits", "test_quota"}


def attempt(label, test):
    """Runs a test from a clean machine and prints how it went; gives what it failed with, if it did."""
    began = time.monotonic()
    try:
        clean()
        test()
        print(f"ok    {label}  {time.monotonic() - began:.1f}s", flush=True)
        return None
    except Exception as fault:
        print(f"FAIL  {label}  {time.monotonic() - began:.1f}s", flush=True)
        traceback.print_exc(file=sys.stdout)
        sys.stdout.flush()
        return fault


def main(modules):
    """Runs every test of the modules; prints a line each and the count. A test in which something only came too late is
    run once more at the end, and called flaky if it passes then. What was wrong once stays wrong."""
    wanted = sys.argv[1:]
    tests = {f"{module.__name__}.{name}": test for module in modules for name, test in vars(module).items()
             if name.startswith("test_")}
    chosen = [label for label in tests if not wanted or any(word in label for word in wanted)]
    faults = {label: attempt(label, tests[label]) for label in chosen}
    failed = [label for label in chosen if faults[label]]
    for label in list(failed):
        late = isinstance(faults[label], TooLate) and label.split(".")[0] not in PROTECTIONS
        if late and not attempt(label, tests[label]):
            failed.remove(label)
            print(f"flaky: {label}: passed at the second try")
    for label in failed:
        print(f"failed: {label}")
    print(f"{len(chosen) - len(failed)} passed, {len(failed)} failed")
    sys.exit(1 if failed or not chosen else 0)
