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
    file = SHARED / f"agents/agent-1/results/{result['task']}.json"
    assert json.loads(file.read_text())["task"] == result["task"]
    wait("stderr in its log", lambda: "err" in ok("flockctl", "logs", "agent-1"))


def test_to_all_agents():
    start(*AGENTS)
    results, ran = send("--all", "echo $AGENT_ID")
    assert sorted(r["output"].strip() for r in results) == AGENTS, ran


def test_the_queue_gives_each_task_to_one_agent_and_they_work_in_parallel():
    start(*AGENTS)
    # Whoever was not heard of yet gets none.
    wait("a heartbeat of each", lambda: all(row["health"]["word"] == "ok" for row in status(*AGENTS).values()), 60)
    results, script = [], "date +%s%N; sleep 5; date +%s%N"
    threads = [threading.Thread(target=lambda: results.extend(send("--any", script)[0])) for _ in range(6)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(results) == 6 and len({r["task"] for r in results}) == 6, results
    assert len({r["agent"] for r in results}) == 3, [r["agent"] for r in results]
    times = [(r["agent"], *map(int, r["output"].split())) for r in results]
    at_once = max(len({agent for agent, began, ended in times if began <= at < ended}) for _, at, _ in times)
    assert at_once == 3, f"one after the other: {sorted(times, key=lambda t: t[1])}"


def test_a_failure_a_timeout_and_too_much_output():
    with agents('[agents.small.task]\ntimeout = "4s"\noutput-limit = "1KiB"\n'):
        start("small")
        [failed], ran = send("--to", "small", "exit 9")
        assert failed["status"] == "failed" and ran.status != 0, (failed, ran)
        [late], _ = send("--to", "small", "sleep 100 & sleep 100")
        assert late["status"] == "timeout", late
        wait("its processes to be gone", lambda: run("pgrep", "-u", "flock-small", "sleep").out == "")
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


def test_a_command_that_lives_on_and_one_that_cannot_be_started():
    with agents('[agents.lines]\nmode = "json-lines"\ncommand = ["/bin/sh", "-c", '
                '"read -r line; echo {\\\\\\"id\\\\\\":\\\\\\"$(echo $line | cut -d\\\\\\" -f4)\\\\\\",\\\\\\"output\\\\\\":\\\\\\"once\\\\\\"}; cat"]\n'
                '[agents.none]\nmode = "json-lines"\ncommand = ["/usr/bin/no-such-program"]\nrestart = { policy = "never" }\n'):
        start("lines")
        [result], ran = send("--to", "lines", "x")
        assert (result["status"], result["output"]) == ("done", "once"), (result, ran)
        assert "usage" not in result, result
        run("systemctl", "start", "flock@none")
        wait("its failure", lambda: show(unit("none"), "ActiveState") == "failed")
        assert status("none")["none"]["state"] == "failed", status("none")
        wait("the reason in its journal",
             lambda: "start the command /usr/bin/no-such-program" in journal("-u", unit("none")))


def test_what_a_task_is_given_and_what_it_leaves():
    with agents('[agents.tidy.task]\nkeep = 3\n'):
        start("tidy")
        for n in range(5):
            [result], _ = send("--to", "tidy", "echo $TASK_FOLDER $TASK_ATTEMPT $TASK_TIMEOUT; touch here")
            assert result["output"].split() == [f"/shared/agents/tidy/tasks/{result['task']}", "1", "90"], result
            assert result["usage"]["memory_peak"] > 0, result
        wait("the oldest folders to be removed", lambda: len(list((SHARED / "agents/tidy/tasks").iterdir())) == 3)
        assert (SHARED / "agents/tidy/tasks" / result["task"] / "here").exists()
        wait("the oldest results to be removed", lambda: len(list((SHARED / "agents/tidy/results").iterdir())) == 3)


def test_a_task_right_after_a_restart_is_not_lost_to_the_program_before():
    """What ended has asked the bus for a task, which waits in the server. A measurement that listens to all of the
    agent's answers before the new program has asked makes the old one look alive, and the task comes 30 s late."""
    start("agent-1")
    for n in range(12):
        measurement = subprocess.Popen(["flockctl", "verify", "agent-1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(0.1 * n)
        ok("flockctl", "restart", "agent-1")
        [result], _ = send("--to", "agent-1", "true")
        measurement.wait()
        assert (result["status"], result["attempt"]) == ("done", 1), (n, result)


def test_the_queue_goes_on_when_the_bus_or_flockd_is_back_and_not_at_the_next_heartbeat():
    start("agent-1")
    for change in (("kill", "--signal=KILL", "flock-bus"), ("restart", "flock-bus"), ("restart", "flockd")):
        ok("flockctl", "restart", "agent-1")  # The next heartbeat is 30 s away.
        ok("systemctl", *change)
        wait("the bus to answer", lambda: run("flockctl", "task", "send", "--to", "agent-1", "true").status == 0)
        ran = run("flockctl", "task", "send", "--wait", "--timeout", "20s", "--any", "echo here")
        assert ran.status == 0 and "here" in ran.out, (change, ran)
