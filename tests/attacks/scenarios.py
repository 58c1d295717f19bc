"""Attacks that are no single program: they need somebody else's act at the right moment.

A scenario is given the scene and `check(label, good, why)`; it brings its own control.
"""

import json
import os
import pathlib
import subprocess
import threading
import time

import lab as measure
from harness import SHARED, inside, ok, run, show, start, unit, wait
from inside import marker, port_of
from rows import ROWS
from scene import RACE

SCENARIOS = {}


def scenario(ident, title, held):
    """`held`: what holds it, in words."""
    def add(function):
        SCENARIOS[ident] = (title, held, function)
        return function
    return add


def entries(match):
    out = ok("journalctl", "-q", "-o", "json", "--no-pager", *match)
    found = [json.loads(line) for line in out.splitlines()]
    return [entry for entry in found if entry.get("_TRANSPORT") == "stdout"]


@scenario("IP-07", "shout: lines that begin with <0>, which journald writes on every terminal", "`SyslogLevelPrefix=no`; flock-agent")
def _(scene, check):
    shouted = scene.canaries["shout"]
    ok("systemd-run", "-q", "--wait", "-u", "shout-control", "sh", "-c", f"echo '<0>{shouted}'")
    ok("journalctl", "--sync")
    found = [e["PRIORITY"] for e in entries(("-u", "shout-control")) if shouted in str(e.get("MESSAGE"))]
    check("control: without flock it is an emergency", found == ["0"], found)
    for agent in ("shouter", "zero-shouter"):
        found = [e["PRIORITY"] for e in entries(("-u", unit(agent))) if shouted in str(e.get("MESSAGE"))]
        check(f"{agent}: it is a line like any other", found == ["6"], found)
    inside("attacker", f"echo '<0>{shouted}' >&2; echo '<0>{shouted}'")
    ok("journalctl", "--sync")
    found = {e["PRIORITY"] for e in entries(("-u", unit("attacker"))) if shouted in str(e.get("MESSAGE"))}
    check("a task's output too", found and found <= {"5", "6"}, found)


@scenario("FS-05", "links to the host's and another's files in the places where flock, as root or as the agent, writes", "descriptors only (`openat2`), as the agent's own user where it can be")
def _(scene, check):
    target = pathlib.Path("/etc/flock-tripwire")
    target.mkdir(mode=0o700, exist_ok=True)
    (target / "file").write_text("untouched")
    wire = lambda: [ok("getfacl", "-p", str(p)) + str(p.stat()) for p in (target, target / "file", SHARED / "agents/victim", SHARED / "agents/victim/canary")]
    wire_now = lambda: [text.split("st_atime")[0] for text in wire()] + sorted(map(str, target.rglob("*")))
    before = wire_now()
    script = f"""cd /shared/agents/attacker; mv results results-away; mv tasks tasks-away
        for name in results tasks config log report; do ln -sfn {target} $name; done
        ln -s {target}/file .env; ln -sfn /shared/agents/victim work; ls"""
    inside("attacker", script)
    own = SHARED / "agents/attacker"
    check("the links stand", (own / "results").is_symlink() and (own / "tasks").is_symlink(), os.listdir(own))
    # The control: what a careless root operation does here.
    ok("setfacl", "-R", "-L", "-m", "u:plain:r", str(own / "config"))
    check("control: a careless setfacl -R follows them", wire_now() != before, "")
    ok("setfacl", "-R", "-b", str(target))
    before = wire_now()
    run("flockctl", "task", "send", "--to", "attacker", "echo through")
    for command in (("flockctl", "apply"), ("flockctl", "status", "attacker"), ("flockctl", "logs", "attacker"),
                    ("systemctl", "restart", "flock@attacker"), ("flockctl", "doctor"), ("flockctl", "apply")):
        run(*command)
    check("nothing behind the links has changed", wire_now() == before, wire_now())
    for name in ("results", "tasks"):
        (own / name).unlink(missing_ok=True)
        if (own / f"{name}-away").exists():
            (own / f"{name}-away").rename(own / name)
    start("attacker")


@scenario("FS-28", "locks on all that flock opens: its own directory, its results, its log", "flock takes no lock that an agent can take")
def _(scene, check):
    script = """python3 - <<'P'
import fcntl, os, time
held = []
for path in ("/shared/agents/attacker", "/shared/agents/attacker/results", "/shared/logs/attacker.log", "/shared/common"):
    try:
        fd = os.open(path, os.O_RDONLY); fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB); held.append(fd)
    except OSError as error: print(path, error)
print(len(held), "held", flush=True)
open("/shared/agents/attacker/held", "w").write(str(len(held)))
end = time.monotonic() + 120
while time.monotonic() < end and not os.path.exists("/shared/agents/attacker/enough"): time.sleep(0.1)
P"""
    said, enough = SHARED / "agents/attacker/held", SHARED / "agents/attacker/enough"
    thread = threading.Thread(target=lambda: inside("attacker", script, timeout=150))
    thread.start()
    held = wait("the locks", lambda: said.exists() and said.read_text())
    check("it holds locks", int(held) >= 2, held)
    began = time.monotonic()
    ok("flockctl", "apply", timeout=60)
    ok("systemctl", "restart", "flock@worker", timeout=60)
    done = inside("worker", "echo done")["output"]
    took, holds = time.monotonic() - began, thread.is_alive()
    enough.touch()
    check("flock and others go on while it holds them", "done" in done and holds, took)
    thread.join()


def endless(tag, seconds):
    return f"""python3 - <<'P'
import socket, time
end = time.monotonic() + {seconds}
tries = 0
while time.monotonic() < end:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try: s.sendto({tag!r}.encode(), ("192.0.2.1", {port_of(tag)}))
    except OSError: pass
    s.close(); tries += 1; time.sleep(0.001)
print("tries", tries)
P"""


@scenario("NW-22", "send without a pause while somebody flushes every rule of the host", "`IPAddressDeny=`, until flockd has put the table back")
def _(scene, check):
    tag, result = marker(measure.fresh(), "NW-22"), {}
    begun = SHARED / "agents/attacker/sends"
    script = f"touch /shared/agents/attacker/sends\n{endless(tag, 8)}"
    thread = threading.Thread(target=lambda: result.update(inside("attacker", script)))
    thread.start()
    wait("it to send", begun.exists)
    time.sleep(1)
    for _ in range(3):
        ok("nft", "flush", "ruleset")
        time.sleep(0.7)
    thread.join()
    scene.settle()
    check("it tried all the time", int(result["output"].split()[-1]) > 300, result)
    check("nothing arrived", not scene.arrived(tag), "it did")
    wait("the table", lambda: run("nft", "list", "table", "inet", "flock").status == 0)
    control = marker(measure.fresh(), "NW-22")
    ran = run("bash", "-c", endless(control, 1), user="plain")
    scene.settle()
    check("control: a plain user's arrives", scene.arrived(control), ran)


@scenario("NW-23", "other tables that accept everything, before and after flock's", "a packet has to pass every table")
def _(scene, check):
    for name, priority in (("before", -400), ("after", 400)):
        ok("nft", "add", "table", "inet", name)
        ok("nft", f"add chain inet {name} o {{ type filter hook output priority {priority}; policy accept; }}")
        ok("nft", f"add rule inet {name} o accept")
    try:
        # In a unit without the second wall, so that it is the table that is asked.
        one = measure.Unit([], ["NW-01", "NW-02"], "other tables")
        measure.go(scene, [one])
        said = one.said()
        for ident in one.ids:
            check(f"{ident} does not get through", measure.succeeded(scene, ROWS[ident], one.tag, said[ident]) is False, said)
        measure.forget([one])
    finally:
        for name in ("before", "after"):
            ok("nft", "delete", "table", "inet", name)


@scenario("NW-24", "send with the first instruction, in launch after launch", "the rule is for the whole block of users; the filter is there before the program")
def _(scene, check):
    arrived = lambda: any("race-attack" in text for text in (scene.cache["arrived"],))
    tried = SHARED / "agents/racer/tried"
    for _ in range(6):
        ok("systemctl", "stop", "flock@racer", timeout=60)
        tried.unlink(missing_ok=True)
        ok("systemctl", "start", "flock@racer", timeout=60)
        wait("it to have tried", tried.exists, 30)
    scene.settle()
    check("nothing of six launches arrived", not arrived(), "it did")
    run("bash", "-c", RACE, user="plain", env={"HOME": "/tmp"})
    scene.settle()
    check("control: a plain user's first instruction arrives", arrived(), scene.cache["arrived"][-300:])


@scenario("NW-26", "attack the network while flockd is killed and away", "the kernel holds the table; PID 1 holds the filter")
def _(scene, check):
    ok("systemctl", "kill", "-s", "KILL", "flockd")
    ok("systemctl", "stop", "flockd")
    try:
        tag = measure.fresh()
        ids = [i for i in ROWS if i.startswith("NW-") and not ROWS[i].heavy]
        result = inside("attacker", f"python3 {measure.PROGRAMS}/inside.py {tag} {' '.join(ids)}", timeout=200)
    finally:
        ok("systemctl", "start", "flockd")
    said = json.loads(result["output"].strip().splitlines()[-1])
    scene.settle()
    through = [i for i in ids if measure.succeeded(scene, ROWS[i], tag, said[i])]
    check("every row of the network is stopped", not through, through)
