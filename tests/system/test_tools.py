"""Tool rules: what runs, what is denied, what an operator decides, and what the kernel refuses."""

import contextlib
import json
import threading

from harness import *
from rawbus import RawBus

RULES = """
[agents.coder]
level = LEVEL

[agents.coder.tools.say]
command = ["/usr/bin/echo", "said:"]
allow = [["hello", "*"]]
ask = [["ask", "**"]]
ask-timeout = "150s"

[agents.coder.tools.soon]
command = ["/usr/bin/echo"]
decision = "ask"
ask-timeout = "3s"

[agents.coder.tools.slow]
command = ["/usr/bin/sleep"]
timeout = "3s"

[agents.coder.tools.big]
command = ["/usr/bin/head", "-c", "100000", "/dev/zero"]
output-limit = "1KiB"

[agents.plain]
level = LEVEL
"""


@contextlib.contextmanager
def coder(level):
    with agents(RULES.replace("LEVEL", str(level))):
        ok("flockctl", "apply")
        start("coder", "plain")
        yield


def lines(agent, script):
    """The output of a script, by line; standard error goes the same way."""
    return inside(agent, "exec 2>&1\n" + script)["output"].splitlines()


def asks():
    return [json.loads(line) for line in ok("flockctl", "asks", "--json").splitlines()]


@contextlib.contextmanager
def waiting(script):
    """A task of coder that waits for an operator: the call, and the result when all is over."""
    result = {}
    thread = threading.Thread(target=lambda: result.update(inside("coder", "exec 2>&1\n" + script, timeout=200)))
    thread.start()
    try:
        yield wait("the call", asks)[0], result
    finally:
        thread.join(220)


def audit(what, text):
    """Whether the audit log has a record of this kind that says this."""
    # One that is being written is not there yet.
    found = pathlib.Path("/var/lib/flock/audit.log").read_text().split("\n")[:-1]
    records = [json.loads(line) for line in found]
    return [r for r in records if what in json.dumps(r) and text in json.dumps(r)]


def rules_hold(level):
    with coder(level):
        got = lines("coder", "say hello you; say hello -n; say other; nothing; echo status $?")
        assert got[0] == "said: hello you", got
        denied = "flock: say: denied: no rule allows these arguments"
        assert got[1:3] == [denied, denied] and got[-1] == "status 127", got
        assert lines("coder", "slow 50; echo $?") == ["flock: slow: ended after 3 s", "124"]
        assert lines("coder", "slow 0; echo $?") == ["0"]
        cut = inside("coder", "big > out")
        out = SHARED / "agents/coder/tasks" / cut["task"] / "out"
        assert cut["status"] == "done" and out.stat().st_size == 1024, (cut, out.stat())
        wait("its log", lambda: "output was cut after 1024 bytes" in ok("flockctl", "logs", "coder"))
        # The script itself comes on standard input: no tool may eat the rest of it.
        assert lines("coder", "say hello 1\nsay hello 2\nsay hello 3\n")[2] == "said: hello 3"
        ok("journalctl", "--sync")
        log = ok("flockctl", "logs", "coder")
        assert "tool say hello you: allowed: allow = hello *" in log, log
        assert "tool say other: denied: no rule" in log, log
        wait("the record", lambda: audit("tool-allowed", "say hello you") and audit("tool-denied", "say other"))


def kernel_holds(level):
    with coder(level):
        # A program that is a tool, one that is none, and one of its own making.
        for agent in ("coder", "plain"):
            own = SHARED / "agents" / agent / "own"
            own.write_bytes(pathlib.Path("/usr/bin/echo").read_bytes())
            own.chmod(0o755)
        attacks = ["/usr/bin/echo x", "/usr/bin/id -u", "../../own x"]
        for attack in attacks:
            got = lines("coder", attack)
            assert got and all("Permission denied" in line for line in got), (attack, got)
            # The control: the same, without tool rules.
            control = lines("plain", attack)
            assert control and "denied" not in control[0], (attack, control)
        # What starts the programs cannot be traced by them, and the rules are root's.
        got = lines("coder", "read -r x < /proc/$PPID/environ; echo x >> /etc/flock/tools.json; read -r x < /etc/flock/tools.json; echo $x")
        assert sum("ermission denied" in line or "cannot" in line for line in got) >= 2 and got[-1] == "{", got
        said = ok("flockctl", "explain", "coder")
        assert ("guard-rails, not a boundary" if level == 0 else "guard-rails inside it") in said, said


def test_rules_hold_at_level_0():
    rules_hold(0)


def test_rules_hold_at_level_1():
    rules_hold(1)


def test_the_kernel_holds_the_command_at_level_0():
    kernel_holds(0)


def test_the_kernel_holds_the_command_at_level_1():
    kernel_holds(1)


LINES = """
[agents.liner]
mode = "json-lines"
command = ["/usr/bin/python3", "-uc", "SCRIPT"]

[agents.liner.tools]
direct = ["/bin/sh"]

[agents.liner.tools.say]
command = ["/usr/bin/echo", "said:"]
"""
SCRIPT = ("import sys, json, subprocess as s; "
          "[print(json.dumps({'id': (t := json.loads(l))['id'], 'output': "
          "s.run(t['text'], shell=True, stdout=-1, stderr=-2, text=True).stdout})) for l in sys.stdin]")


def test_a_command_that_lives_on_is_held_to_its_rules_too():
    with agents(LINES.replace("SCRIPT", SCRIPT)):
        ok("flockctl", "apply")
        start("liner")
        assert inside("liner", "say hello --all")["output"] == "said: hello --all\n"
        refused = inside("liner", "/usr/bin/echo hello; /bin/sh -c 'echo shell'")["output"]
        assert "Permission denied" in refused and refused.endswith("shell\n"), refused


def test_an_operator_approves_and_exactly_that_runs():
    with coder(1):
        with waiting("say ask 'to prod'; echo $?") as (ask, result):
            assert (ask["agent"], ask["tool"], ask["arguments"]) == ("coder", "say", ["ask", "to prod"]), ask
            shown = ok("flockctl", "asks")
            assert 'say ask "to prod"' in shown and ask["ask"][:12] in shown and ask["ask"][:20] not in shown
            assert "1 call of a tool waits" in run("flockctl", "status").out
            wait("flockd's word", lambda: f"flockctl approve {ask['ask'][:12]}" in journal("-u", "flockd", "-n", "50"))
            assert "digits" in fails("flockctl", "approve", ask["ask"][:3])
            assert "no call" in fails("flockctl", "approve", "0123456789ab" if ask["ask"][0] != "0" else "f123")
            assert "to prod" in ok("flockctl", "approve", ask["ask"][:8])
        assert result["output"] == "said: ask to prod\n0\n", result
        assert "root approved it" in fails("flockctl", "deny", ask["ask"][:8])
        assert asks() == [] and "waits for you" not in run("flockctl", "status").out
        [record] = audit("approve", ask["ask"])
        assert '"uid": 0' in json.dumps(record), record
        wait("the record", lambda: audit("tool-asked", ask["ask"]))


def test_an_operator_denies_and_silence_denies_too():
    run("useradd", "--create-home", "-G", "flock", "operator2")
    with coder(0):
        with waiting("say ask x; echo $?") as (ask, result):
            ok("flockctl", "deny", ask["ask"][:8], "--reason", "not\x1b[2J today", user="operator2")
        said = "flock: say: denied: an operator said no: not\\u{1b}[2J today\n126\n"
        assert result["output"].replace("\\u{5c}", "\\") == said, result
        [record] = audit("deny", ask["ask"])
        assert "operator2" in json.dumps(record), record
        with waiting("soon x; echo $?") as (ask, result):
            pass
        assert result["output"] == "flock: soon: denied: nobody answered within 3 s\n126\n", result
        assert "too late" in (late := fails("flockctl", "approve", ask["ask"][:8])) or "no call" in late, late
        wait("the record", lambda: audit("tool-denied", "nobody answered"))


def test_a_call_outlives_flockd_and_the_bus():
    with coder(1):
        with waiting("say ask x") as (ask, result):
            ok("systemctl", "kill", "-s", "KILL", "flockd")
            wait("flockd again", lambda: run("systemctl", "is-active", "flockd").out.strip() == "active", 40)
            up = lambda: run("flockctl", "asks", "--json").status == 0
            wait("the call again", lambda: up() and [a["ask"] for a in asks()] == [ask["ask"]], 40)
            ok("systemctl", "restart", "flock-bus")
            wait("the call once more", lambda: run("flockctl", "status").status == 0 and asks(), 60)
            wait("the decision", lambda: run("flockctl", "approve", ask["ask"]).status == 0, 30)
        assert result["output"] == "said: ask x\n", result


def test_without_flockd_the_answer_is_no():
    with coder(0):
        ok("systemctl", "stop", "flockd")
        try:
            # Root sends without flockd, over the bus.
            assert lines("coder", "soon x")[-1] == "flock: soon: denied: nobody answered within 3 s"
        finally:
            ok("systemctl", "start", "flockd")


def test_an_agent_cannot_approve():
    with coder(1):
        with waiting("say ask x; echo $?") as (ask, result):
            for user in ("flock-coder", "flock-plain"):
                said = fails("flockctl", "approve", ask["ask"], user=user)
                assert "ermission" in said or "refused" in said, said
            assert "cannot" in inside("plain", "ls /run/flock/control.sock 2>&1")["output"]
            forger = RawBus("plain")
            answer = json.dumps({"answer": "approved", "ask": ask["ask"]})
            for subject in ("agent.coder.ask", "agent.coder.control", "agent.coder.events", "_INBOX.x"):
                forger.publish(subject, answer)
                assert any("Permissions Violation" in e for e in forger.ping()), subject
            # In its own name it may ask, but not for another's call, nor for what no rule asks.
            got = forger.request("agent.plain.ask", json.dumps({k: ask[k] for k in (
                "ask", "tool", "arguments", "folder", "task", "deadline")} | {"nonce": "x"}))
            assert got and b"refused" in got[2], got
            forger.close()
            assert [a["ask"] for a in asks()] == [ask["ask"]], asks()
            assert not result, result
            ok("flockctl", "deny", ask["ask"][:8])
        assert result["output"].endswith("126\n"), result


def test_a_flood_of_calls_is_bounded():
    with coder(1):
        script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do say ask $i & done; wait"
        with waiting(script) as (_, result):
            wait("sixteen calls", lambda: len(asks()) == 16, 60)
            for ask in asks():
                ok("flockctl", "deny", ask["ask"])
        assert result["output"].count("an operator said no") == 16, result
        assert result["output"].count("too many calls of this agent") == 4, result
