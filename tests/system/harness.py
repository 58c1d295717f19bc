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


def wait(what, condition, seconds=20):
    """Waits until condition() is true and gives its value."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"waited {seconds} s for: {what}"
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
        for id in ids:
            run("rm", "-rf", str(SHARED / "agents" / id))


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
    loaded = ok("systemctl", "list-units", "--all", "--plain", "--no-legend", f"flock-agent@{agent}*")
    assert not loaded.strip(), loaded
    slice = f"flock-agents-{agent.replace('-', chr(92) + 'x2d')}.slice"
    assert show(slice, "ActiveState") == "inactive", slice
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


def main(modules):
    """Runs every test of the modules; prints a line each and the count."""
    wanted = sys.argv[1:]
    passed, failed = 0, []
    for module in modules:
        for name, test in list(vars(module).items()):
            label = f"{module.__name__}.{name}"
            if not name.startswith("test_") or (wanted and not any(w in label for w in wanted)):
                continue
            began = time.monotonic()
            try:
                clean()
                test()
                passed += 1
                print(f"ok    {label}  {time.monotonic() - began:.1f}s", flush=True)
            except Exception:
                failed.append(label)
                print(f"FAIL  {label}  {time.monotonic() - began:.1f}s", flush=True)
                traceback.print_exc(file=sys.stdout)
    for label in failed:
        print(f"failed: {label}")
    print(f"{passed} passed, {len(failed)} failed")
    sys.exit(1 if failed or not passed else 0)
