"""Tasks through the bundled agent: to one, to all, to the queue; in parallel; with bounds."""

import json
import threading

from harness import *


def send(*arguments, input=None):
    ran = run("flockctl", "task", "send", "--wait", "--timeout", "90s", "--json", *arguments, input=input)
    return [json.loads(line) for line in ran.out.splitlines()], ran


def test_to_one_agent_with_its_result_on_disk():
    start("agent-1")
    [result], _ = send("--to", "agent-1", "echo out; echo err >&2")
    assert (result["agent"], result["status"], result["output"].strip()) == ("agent-1", "done", "out"), result
    files = list((SHARED / "agents/agent-1/results").glob("*.json"))
    assert any(json.loads(f.read_text())["task"] == result["task"] for f in files)
    wait("stderr in its log", lambda: "err" in ok("flockctl", "logs", "agent-1"))


def test_to_all_agents():
    start(*AGENTS)
    results, ran = send("--all", "echo $AGENT_ID")
    assert sorted(r["output"].strip() for r in results) == AGENTS, ran


def test_the_queue_gives_each_task_to_one_agent_and_they_work_in_parallel():
    start(*AGENTS)
    results = []
    threads = [threading.Thread(target=lambda: results.extend(send("--any", "sleep 2; echo $AGENT_ID")[0]))
               for _ in range(6)]
    began = time.monotonic()
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(results) == 6 and len({r["task"] for r in results}) == 6, results
    assert len({r["agent"] for r in results}) == 3, [r["agent"] for r in results]
    assert time.monotonic() - began < 11, "one after the other"


def test_a_failure_a_timeout_and_too_much_output():
    with agents('[agents.small.task]\ntimeout = "1s"\noutput-limit = "1KiB"\n'):
        start("small")
        [failed], ran = send("--to", "small", "exit 9")
        assert failed["status"] == "failed" and ran.status != 0, (failed, ran)
        [late], _ = send("--to", "small", "sleep 100 & sleep 100")
        assert late["status"] == "timeout", late
        assert run("pgrep", "-u", "flock-small", "sleep").out == ""
        [long], _ = send("--to", "small", "head -c 100000 /dev/zero | tr '\\0' x")
        assert len(long["output"]) <= 1024, len(long["output"])


def test_a_task_is_done_again_when_its_agent_dies():
    start("agent-1")
    results = []
    thread = threading.Thread(target=lambda: results.extend(
        send("--to", "agent-1", "echo $TASK_ATTEMPT >> tries-$TASK_ID; sleep 3; echo $TASK_ATTEMPT; ")[0]))
    thread.start()
    wait("the task to run", lambda: run("pgrep", "-u", "flock-agent-1", "sleep").out)
    os.kill(pid("agent-1"), 9)
    thread.join(120)
    assert results and results[0]["status"] == "done", results
    assert int(results[0]["output"]) >= 2, results
