"""Runs rows of the table where they must succeed and where they must fail, and judges each.

Three kinds of runs. The control: no sandbox, no fence, open directories; the attack must succeed, or
the row proves nothing. The attack: a task of a real agent, at level 1 and level 0. And each layer
alone: a unit with nothing but one layer of the agent's real unit must stop what the row says.
"""

import contextlib
import json
import os
import pathlib
import subprocess

from harness import SHARED, inside, ok, run, show, start, unit, wait
from inside import marker
from scene import PROGRAMS, WORK

TRANSIENT = pathlib.Path("/run/systemd/transient")
UNITS = pathlib.Path("/run/systemd/system")
# Layers that are more than one property: one is nothing without the others.
TOGETHER = {"view": ("RootDirectory", "MountAPIVFS", "BindReadOnlyPaths", "BindPaths", "TemporaryFileSystem", "WorkingDirectory", "BindLogSockets"),
            "User": ("User", "Group"), "IPAddressDeny": ("IPAddressDeny", "IPAddressAllow"),
            "SystemCallFilter": ("SystemCallFilter", "SystemCallErrorNumber"),
            "ProtectControlGroups": ("ProtectControlGroups", "InaccessiblePaths"),
            # A limit of the kernel cannot be raised any more once the process is not root's.
            "LimitNOFILE": ("LimitNOFILE", "User", "Group"), "LimitCORE": ("LimitCORE", "User", "Group"),
            "OOMScoreAdjust": ("OOMScoreAdjust", "User", "Group")}
# Layers that are not properties of the unit.
AROUND = ("tree", "nft", "policy")
POLICIES = ("/usr/share/dbus-1/system.d/flock.conf", "/usr/share/polkit-1/rules.d/00-flock.rules")
# Has no place in a unit that runs one program once and ends.
NEVER = ("Type", "ExecStart", "RemainAfterExit", "Restart", "RestartSec", "RestartMode", "RestartSteps", "RestartMaxDelaySec",
         "RestartPreventExitStatus", "StartLimitIntervalSec", "StartLimitBurst", "StopPropagatedFrom", "After", "CollectMode",
         "Description", "StandardInput", "StandardOutput", "StandardError", "TimeoutStopSec", "RuntimeMaxSec")


def lines(agent="attacker"):
    """The settings of the agent's real unit, in order: (name, value)."""
    text = (TRANSIENT / unit(agent)).read_text()
    return [tuple(line.split("=", 1)) for line in text.splitlines() if "=" in line and not line.startswith("#")]


def keys(layers):
    return {key for layer in layers for key in TOGETHER.get(layer, (layer,))}


def fresh():
    """A tag that no run had before; its last number makes the ports."""
    fresh.count += 1
    return f"t{os.getpid()}x{fresh.count}"


fresh.count = 0


class Unit:
    """A unit made of some settings of the agent's real one, which runs rows and keeps what they said."""

    def __init__(self, settings, ids, label, root=False):
        self.label, self.ids, self.tag = label, ids, fresh()
        self.name = f"flock-attack-{self.tag}.service"
        self.out = WORK / f"{self.tag}.out"
        keep = [(key, value) for key, value in settings if key not in NEVER]
        if not any(key == "User" for key, _ in keep) and not root:
            keep += [("User", "flock-attacker"), ("Group", "flock-attacker")]
        body = [f"{key}={value}" for key, value in keep]
        command = f"/usr/bin/python3 {PROGRAMS}/inside.py {self.tag} {' '.join(ids)}"
        (UNITS / self.name).write_text("\n".join([
            "[Service]", "Type=oneshot", f"ExecStart={command}", "TimeoutStartSec=300", f"StandardOutput=truncate:{self.out}",
            f"StandardError=truncate:{self.out}.err", 'Environment="AGENT_ID=attacker"', *body, ""]))

    def said(self):
        text = self.out.read_text() if self.out.exists() else ""
        try:
            return json.loads(text.strip().splitlines()[-1])
        except (IndexError, ValueError):
            error = pathlib.Path(f"{self.out}.err")
            why = error.read_text()[-300:] if error.exists() else ""
            why += " ".join(show(self.name, "Result", "ExecMainStatus"))
            return {ident: f"BROKEN the unit did not run: {why}" for ident in self.ids}


def go(lab, units, parallel=4):
    """Runs the units, some at a time."""
    if not units:
        return
    ok("systemctl", "daemon-reload")
    running = []
    for one in units:
        if len(running) >= parallel:
            running.pop(0).wait(320)
        if "NW-13" in one.ids:
            lab.visit(marker(one.tag, "NW-13"))
        running.append(subprocess.Popen(["systemctl", "start", one.name], stderr=subprocess.DEVNULL))
    for process in running:
        process.wait(320)
    lab.settle()


def forget(units):
    for one in units:
        (UNITS / one.name).unlink(missing_ok=True)
    run("systemctl", "reset-failed", *(one.name for one in units))
    ok("systemctl", "daemon-reload")


@contextlib.contextmanager
def stripped(*but):
    """Nothing around the units holds: no table, directories that are open, nobody to repair them. `but`: what stays."""
    saved = WORK / "acl"
    ok("systemctl", "stop", "flockd")
    try:
        if "nft" not in but:
            run("nft", "delete", "table", "inet", "flock")
        if "tree" not in but:
            saved.write_text(ok("getfacl", "-p", "-R", str(SHARED)))
            attacker = str(SHARED / "agents/attacker")
            ok("setfacl", "-R", "-b", str(SHARED))
            ok("chmod", "-R", "a+rwX", str(SHARED))
            ok("chown", "-R", "flock-attacker", attacker)
        if "policy" not in but:
            policies(away=True)
        yield
    finally:
        if "tree" not in but:
            # What the attacks left goes first: its entries are not in the list.
            ok("setfacl", "-R", "-b", str(SHARED))
            ok("chown", "-R", "root", str(SHARED / "agents/attacker"))
            ok("setfacl", f"--restore={saved}")
        if "policy" not in but:
            policies(away=False)
        ok("systemctl", "reload", "flock-net")
        ok("systemctl", "start", "flockd")


def policies(away):
    """Takes the rules for the system bus and polkit away, or puts them back, and has them read."""
    for path in POLICIES:
        kept = f"{path}.away"
        os.rename(*((path, kept) if away else (kept, path)))
    ok("systemctl", "reload", "dbus")
    run("systemctl", "stop", "polkit")  # the next question starts it again


def succeeded(lab, row, tag, said):
    """Whether the attack succeeded; None when the attacker itself went wrong."""
    if said.startswith("BROKEN"):
        return None
    return bool(row.seen(lab, marker(tag, row.id), said)) if row.seen else said.startswith("GOT")


class Judge:
    """Counts and tells."""

    def __init__(self):
        self.passed, self.failed, self.notes = 0, [], []

    def check(self, label, good, why=""):
        if good:
            self.passed += 1
        else:
            self.failed.append(f"{label}: {why}")
            print(f"FAIL  {label}: {str(why)[:400]!r}", flush=True)

    def close(self):
        for line in self.notes:
            print(f"note  {line}")
        print(f"{self.passed} passed, {len(self.failed)} failed", flush=True)
        return 1 if self.failed or not self.passed else 0


def plainly(lab, user, ids):
    """The programs as a user of the host, in no unit at all: (tag, what they said)."""
    tag = fresh()
    if "NW-13" in ids:
        lab.visit(marker(tag, "NW-13"))
    argv = ["python3", f"{PROGRAMS}/inside.py", tag, *ids]
    ran = run(*argv, user=None if user == "root" else user, timeout=400, env={"HOME": "/"})
    assert ran.status == 0, f"the control as {user}: {ran!r}"
    return tag, json.loads(ran.out.strip().splitlines()[-1])


def controls(lab, judge, rows):
    """Runs every row where nothing protects, as a plain user, else as root. Gives who could do it, by row."""
    able = {}
    for user in ("plain", "flock-attacker", "root"):
        base = {"flock-attacker": "agent"}.get(user, user)
        ids = [i for i, row in rows.items() if i not in able and (row.base == base or user == "root")]
        if not ids:
            continue
        tag, said = plainly(lab, user, ids)
        lab.settle()
        for ident in ids:
            if succeeded(lab, rows[ident], tag, said[ident]):
                able[ident] = base
            elif user == "root":
                judge.check(f"{ident} control", False, f"void: it fails without flock too: {said[ident]}")
    for ident in able:
        judge.check(f"{ident} control", True)
    return able


def attack(lab, judge, rows, agent, level):
    """The rows as a task of a real agent. Gives what they said."""
    tag = fresh()
    if "NW-13" in rows:
        lab.visit(marker(tag, "NW-13"))
    result = inside(agent, f"python3 {PROGRAMS}/inside.py {tag} {' '.join(rows)}", timeout=400)
    try:
        said = json.loads(result["output"].strip().splitlines()[-1])
    except (IndexError, ValueError, KeyError):
        raise AssertionError(f"the task of {agent} said nothing to the point: {result}") from None
    lab.settle()
    for ident, row in rows.items():
        verdict(lab, judge, row, level, tag, said[ident])
    return tag, said


def verdict(lab, judge, row, level, tag, said):
    expected = row.zero if level == 0 else row.one
    works = succeeded(lab, row, tag, said)
    label = f"{row.id} level {level}"
    if expected == "either" and works is not None:
        judge.notes.append(f"{label}: {'works' if works else 'is stopped'} on this kernel: not promised")
    elif expected == "works":
        judge.check(label, works is True, f"it is stopped, better than documented: {said}")
    else:
        fitting = level == 0 or bool(set(said.split()) & set(row.says))
        judge.check(label, works is False and fitting, said)


def alone(lab, judge, rows, able, layers=None):
    """Each layer that a row names, as the only one. Gives what was measured: {layer: {row: stopped}}."""
    settings = lines()
    common = [(key, value) for key, value in settings if key in ("Environment", "UMask")]
    measured = {}

    def units(wanted):
        made = []
        for layer in wanted:
            for root in (False, True):
                ids = [i for i, row in rows.items() if (layers or layer in row.layers or layer is None) and (able.get(i) == "root") == root and i in able]
                if layer == "User" and not root:
                    continue  # everybody who is not root is a user
                if not ids:
                    continue
                inside_only = keys([layer]) if layer and layer not in AROUND else set()
                kept = common + [(k, v) for k, v in settings if k in inside_only]
                made.append((layer, Unit(kept, ids, f"{layer} alone", root=root)))
        return made

    of_units = sorted({layer for row in rows.values() for layer in row.layers if layer not in AROUND}) if layers is None else layers
    with stripped():
        made = units([None, *of_units])
        go(lab, [one for _, one in made])
        judge_alone(lab, judge, rows, made, measured)
    for around in AROUND:
        if layers is None or around in layers:
            with stripped(around):
                made = units([around])
                go(lab, [one for _, one in made])
                judge_alone(lab, judge, rows, made, measured)
    return measured


def judge_alone(lab, judge, rows, made, measured):
    for layer, one in made:
        said = one.said()
        for ident in one.ids:
            works = succeeded(lab, rows[ident], one.tag, said[ident])
            if layer is None:
                judge.check(f"{ident} with every layer removed", works is True, f"something else stops it: {said[ident]}")
                continue
            measured.setdefault(layer, {})[ident] = works is False, said[ident]
            if layer in rows[ident].layers:
                judge.check(f"{ident} stopped by {layer} alone", works is False, said[ident])
    forget([one for _, one in made])
