"""The history of tasks: complete after flockd was down or killed, and who may read it."""

import json
import socket

from harness import *

DATABASE = pathlib.Path("/var/lib/flock/history.db")


def records(*arguments, user=None):
    """All records, the newest first; empty while flockd does not answer."""
    ran = run("flockctl", "task", "list", "--since", "2000-01-01", "--json", *arguments, user=user)
    return [json.loads(line) for line in ran.out.splitlines()] if ran.status == 0 else []


def send(*arguments, user=None):
    """Sends without waiting and gives the task's id."""
    return json.loads(ok("flockctl", "task", "send", "--json", *arguments, user=user))["task"]


def ended(tasks, seconds=90):
    """Waits until flockd has written the end of all these tasks, and gives their records."""
    def all_of_them():
        found = [r for r in records() if r["task"] in tasks]
        final = [r for r in found if r["state"] not in ("queued", "running")]
        return len(final) >= len(tasks) and len(final) == len(found) and found
    return wait(f"the ends of {len(tasks)} tasks", all_of_them, seconds)


def flockd(verb):
    ok("systemctl", verb, "flockd")


def test_a_task_is_in_the_history_with_all_that_is_known():
    start("agent-1")
    ran = run("flockctl", "task", "send", "--to", "agent-1", "--wait", "--json", "echo out; exit 3")
    task = json.loads(ran.out.splitlines()[-1])["task"]
    [record] = ended({task})
    assert (record["agent"], record["state"], record["exit"]) == ("agent-1", "failed", 3), record
    assert record["queued"] <= record["started"] <= record["finished"], record
    assert record["command"] == ["/bin/sh"], record
    assert record["usage"] and record["usage"]["memory_peak"] > 0, record
    whole = json.loads(ok("flockctl", "task", "show", "--json", task))
    assert (whole["text"], whole["output"].strip()) == ("echo out; exit 3", "out"), whole
    shown = ok("flockctl", "task", "show", task)
    assert "failed" in shown and f"/var/lib/flock/shared/agents/agent-1/results/{task}" in shown, shown
    assert ok("flockctl", "task", "show", "--output", task) == "out\n"
    assert task in ok("flockctl", "history", "--agent", "agent-1", "--since", "1h")
    assert "failed in the last 24 h" in run("flockctl", "status").out


def test_tasks_to_all_have_a_record_for_each_agent():
    start(*AGENTS)
    task = send("--all", "echo $AGENT_ID")
    found = wait("three ends", lambda: (r := [r for r in records() if r["task"] == task])
                 and [x["state"] for x in r] == ["done"] * 3 and r, 60)
    assert sorted(r["agent"] for r in found) == AGENTS, found


def test_what_happened_while_flockd_was_down_is_written_when_it_is_back():
    start(*AGENTS)
    flockd("stop")
    try:
        tasks = {send("--to", agent, f"echo {n}") for agent in AGENTS for n in range(4)}
        results = SHARED / "agents/agent-3/results"
        wait("results without flockd", lambda: len(list(results.glob("*.json"))) >= 4, 60)
        # Root reads the file itself, and is told so.
        ran = run("flockctl", "task", "list")
        assert ran.status == 0 and "flockd is not running" in ran.err, ran
        assert not any(r["task"] in tasks for r in records())
    finally:
        flockd("start")
    found = ended(tasks)
    assert len(found) == 12 and {r["state"] for r in found} == {"done"}, found


def test_kill_in_the_middle_of_200_tasks_loses_and_doubles_nothing():
    start(*AGENTS)
    tasks = set()
    for number in range(200):
        to = ("--any",) if number % 2 else ("--to", AGENTS[number % 3])
        tasks.add(send(*to, f"echo {number}"))
        if number % 50 == 25:
            ok("systemctl", "kill", "--signal=KILL", "flockd")
    wait("flockd", lambda: show("flockd.service", "ActiveState") == "active", 60)
    found = ended(tasks, 240)
    assert len(tasks) == 200 and len(found) == 200, (len(tasks), len(found))
    assert {r["state"] for r in found} == {"done"}, [r for r in found if r["state"] != "done"]


def test_a_database_that_is_gone_or_damaged_is_begun_anew():
    start("agent-1")
    ended({send("--to", "agent-1", "echo before")})
    for harm in ("gone", "damaged"):
        flockd("stop")
        for file in DATABASE.parent.glob("history.db*"):
            if harm == "gone" or file != DATABASE:
                file.unlink()
        if harm == "damaged":
            DATABASE.write_bytes(b"x" * 10000)
        task = send("--to", "agent-1", "echo after")
        flockd("start")
        [record] = ended({task})
        assert record["state"] == "done", record
        assert show("flockd.service", "ActiveState") == "active"
        if harm == "damaged":
            aside = list(DATABASE.parent.glob("history.db.damaged-*"))
            assert len(aside) == 1 and aside[0].read_bytes() == b"x" * 10000, aside
            wait("flockd's word", lambda: "damaged" in journal("-u", "flockd", "-n", "200"))
            aside[0].unlink()
    assert DATABASE.stat().st_mode & 0o777 == 0o600, oct(DATABASE.stat().st_mode)


def test_operators_read_it_and_strangers_do_not():
    start("agent-1")
    task = send("--to", "agent-1", "echo seen")
    ended({task})
    for name, group in (("operator1", "flock"), ("stranger", None)):
        if run("id", name).status:
            ok("useradd", "--create-home", name)
            if group:
                ok("usermod", "-aG", group, name)
    assert task in [r["task"] for r in records(user="operator1")]
    assert "echo seen" in ok("flockctl", "task", "show", task, user="operator1")
    assert task in ok("flockctl", "history", user="operator1")
    for verb in (("task", "list"), ("task", "show", task), ("history",)):
        assert "flock" in fails("flockctl", *verb, user="stranger"), verb
    fails("cat", str(DATABASE), user="operator1")
    said = fails("flockctl", "history", "--database", str(DATABASE), user="stranger")
    assert task not in said, said


def test_a_results_lie_is_refused_and_harmless():
    start("agent-1", "agent-2")
    mine = send("--to", "agent-1", "sleep 5; echo honest")
    shown = lambda: json.loads(ok("flockctl", "task", "show", "--json", mine))
    # flockd writes it down a moment after it was stored.
    wait("it to run", lambda: [r for r in records() if r["task"] == mine and r["state"] == "running"], 30)
    lie = json.dumps({"task": mine, "output": "forged", "attempt": 1})
    # With the password of agent-2 and the wire protocol by hand: the worst that it could do.
    lines = pathlib.Path("/var/lib/flock/identity/agent-2.env").read_text().split()
    identity = dict(line.split("=", 1) for line in lines)
    host, port = identity["NATS_URL"].split("//")[-1].split(":")
    who = {"user": identity["NATS_USER"], "pass": identity["NATS_PASSWORD"], "verbose": False}
    with socket.create_connection((host, int(port)), timeout=10) as bus:
        bus.sendall(f"CONNECT {json.dumps(who)}\r\nPUB task.result {len(lie)}\r\n{lie}\r\nPING\r\n".encode())
        said = b""
        while b"PONG" not in said:
            said += bus.recv(4096)
    assert b"-ERR" not in said, said
    [record] = ended({mine})
    assert (record["agent"], record["state"]) == ("agent-1", "done"), record
    assert shown()["output"].strip() == "honest", shown()
