"""What members of the group `flock` may do without root, and what nobody else may."""

import json

from harness import *


def user(name, *groups):
    if run("id", name).status:
        ok("useradd", "--create-home", name)
        for group in groups:
            ok("usermod", "-aG", group, name)
    return name


def test_an_operator_reads_and_sends_tasks():
    start("agent-1")
    operator = user("operator1", "flock")
    assert "agent-1" in run("flockctl", "status", user=operator).out
    out = ok("flockctl", "task", "send", "--to", "agent-1", "--wait", "echo hello", user=operator)
    assert "hello" in out, out
    assert wait("a log", lambda: ok("flockctl", "logs", "agent-1", user=operator).strip())


def test_what_needs_root_says_so():
    operator = user("operator1", "flock")
    for verb in (("start", "agent-1"), ("stop", "agent-1"), ("apply",), ("agent", "remove", "agent-1")):
        said = fails("flockctl", *verb, user=operator)
        assert "root" in said, (verb, said)


def test_others_are_refused():
    start("agent-1")
    stranger = user("stranger")
    for verb in (("task", "send", "--to", "agent-1", "id"), ("logs", "agent-1")):
        said = fails("flockctl", *verb, user=stranger)
        assert "flock" in said, (verb, said)


def test_an_agents_user_is_refused_even_as_a_member():
    start("agent-1")
    ok("usermod", "-aG", "flock", "flock-agent-1")
    try:
        said = fails("flockctl", "task", "send", "--to", "agent-2", "id", user="flock-agent-1")
        assert said.strip()
    finally:
        ok("gpasswd", "-d", "flock-agent-1", "flock")


def test_escapes_in_a_log_do_not_reach_the_terminal():
    start("agent-1")
    inside("agent-1", "printf 'a\\033]0;title\\007b\\n' >&2; printf '\\033[2Jresult\\n'")
    out = wait("the line", lambda: (t := ok("flockctl", "logs", "agent-1")) and "title" in t and t)
    assert "\x1b" not in out and "\x07" not in out, out
    out = ok("script", "-qc", "flockctl task send --to agent-1 --wait \"printf '\\\\033[2Jx'\"", "/dev/null")
    assert "\x1b[2J" not in out, repr(out)
