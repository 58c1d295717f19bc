"""The examples that need no library, installed as plain-agents.toml says, at level 1, each with real tasks."""

import contextlib
import shutil

from harness import *
from rawbus import RawBus
from test_talk import Follow

EXAMPLES = pathlib.Path("/usr/share/doc/ai-flock/examples")
COUNTERS = ["plain-python", "plain-node", "plain-shell"]
PLACE = pathlib.Path("/opt/plain")


@contextlib.contextmanager
def installed():
    PLACE.mkdir()
    for name in ("plain.py", "plain.mjs", "plain.sh", "ask.py", "answer.py"):
        shutil.copy(EXAMPLES / name, PLACE)
    try:
        with agents((EXAMPLES / "plain-agents.toml").read_text()) as ids:
            ok("flockctl", "apply")
            assert set(COUNTERS) < set(ids), ids
            wait("flockd to know them", lambda: run("flockctl", "events", *ids).status == 0)
            yield
    finally:
        shutil.rmtree(PLACE)


def ask(agent, text, *arguments):
    """Sends a task and gives its result."""
    ran = run("flockctl", "task", "send", "--to", agent, "--wait", "--timeout", "60s", "--json", *arguments, "-",
              input=text)
    try:
        result = json.loads(ran.out.splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        raise AssertionError(f"no result: {ran!r} {journal('-u', unit(agent), '-n', '20')}") from None
    assert result["agent"] == agent, result
    return result


def test_each_does_tasks_says_so_and_sends_heartbeats():
    texts = ["one two three", 'a "quoted" \\ back\\nslash\nline\ttab é \u0001 x', " ",
             'x","id":"other","text":"no\\"', "word " * 50_000]
    with installed(), Follow("events", "-f", "--heartbeats", "--json", *COUNTERS) as told:
        # An event is kept for whoever follows later, a heartbeat is not: when this one shows, none is missed.
        bus = RawBus(COUNTERS[0])
        bus.publish(f"agent.{COUNTERS[0]}.events", '{"event":"hello"}')
        told.until("hello")
        bus.close()
        began = time.monotonic()
        start(*COUNTERS)
        for agent in COUNTERS:
            # A sandbox of level 1: a user and a root of its own.
            who, root = show(unit(agent), "User", "RootDirectory")
            assert who == f"flock-{agent}" and root.endswith(f"/roots/{agent}"), (who, root)
            done = [ask(agent, text) for text in texts]
            assert [d["status"] for d in done] == ["done"] * len(texts), done
            assert [d["output"] for d in done] == [f"{len(text.split())} words" for text in texts], done
            log = wait("its line", lambda: (l := ok("flockctl", "logs", agent, "--task", done[0]["task"])) and "3 words" in l and l)
            assert agent in run("flockctl", "status").out, log
            wait("its event", lambda: any((e["event"], e["task"]) == ("task-started", done[0]["task"]) for e in told.json()))
        beats = lambda: [event["agent"] for event in told.json() if event["heartbeat"]]
        wait("a heartbeat of each at once", lambda: set(beats()) == set(COUNTERS), 5)
        wait("a second one of each", lambda: all(beats().count(agent) == 2 for agent in COUNTERS), 45)
        assert time.monotonic() - began > 29, "every 30 s"


def test_each_is_back_when_the_bus_was_restarted():
    with installed():
        start(*COUNTERS)
        for agent in COUNTERS:
            assert ask(agent, "x")["output"] == "1 words"
        before = {agent: pid(agent) for agent in COUNTERS}
        ok("systemctl", "restart", "flock-bus")
        for agent in COUNTERS:
            wait(f"{agent} to run again", lambda: pid(agent) not in (0, before[agent]), 60)
        wait("flockd to have the bus", lambda: run("flockctl", "broadcast", "x").status == 0, 60)
        for agent in COUNTERS:
            assert ask(agent, "still here")["output"] == "2 words"


def test_two_that_talk():
    with installed():
        start("asker", "answerer")
        # It listens before it says so.
        wait("the answerer's heartbeat", lambda: status()["answerer"]["health"]["word"] == "ok")
        with Follow("channel", "watch", "flock") as channel:
            channel.until("listening")
            result = ask("asker", "which of these words is the longest é")
            assert (result["status"], result["output"]) == ("done", "the longest word is longest"), result
            channel.until("answerer answered asker")
        # Both logs tell it, and who spoke is the server's word.
        wait("the asker's log", lambda: "answerer says on the channel: 'answered asker'" in ok("flockctl", "logs", "asker"))
        wait("the answerer's log", lambda: "asker asked: 'which of these" in ok("flockctl", "logs", "answerer"))
        # Control: without the other there is no answer, and the task says so.
        ok("flockctl", "stop", "answerer")
        result = ask("asker", "anybody?")
        assert (result["status"], result["reason"]) == ("failed", "answerer is not there"), result
