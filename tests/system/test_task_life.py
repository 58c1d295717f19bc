"""The life of a task: handed out again, cancelled, expired, done once more, given up; and told truly."""

from harness import *
from rawbus import RawBus


def send(*arguments, user=None):
    """Sends without waiting and gives the task's id."""
    return json.loads(ok("flockctl", "task", "send", "--json", *arguments, user=user))["task"]


def task(id):
    """Its record now; None while flockd has none."""
    ran = run("flockctl", "task", "show", "--json", id)
    return json.loads(ran.out.splitlines()[0]) if ran.status == 0 else None


def until(id, *states, seconds=40):
    """Its record once it has one of these states."""
    last = []

    def look():
        last[:] = [task(id)]
        return last[0] and last[0]["state"] in states and last[0]
    try:
        return wait(f"task {id} to be {states}", look, seconds)
    except TooLate as error:
        raise TooLate(f"{error}; it is {last}") from None


def ended(id, seconds=60):
    return until(id, "done", "failed", "expired", "cancelled", seconds=seconds)


def begun(id):
    return until(id, "running")


def marks(id):
    """What the task wrote into `marks` of its folder, at every agent and attempt."""
    return [word for file in SHARED.glob(f"agents/*/tasks/{id}/marks") for word in file.read_text().split()]


def audited(what, id):
    lines = ok("flockctl", "audit", "show", "--json").splitlines()
    return [r for r in map(json.loads, lines) if r["what"] == what and r["object"] == id]


def dead(id):
    letters = map(json.loads, ok("flockctl", "task", "dead", "--json").splitlines())
    return [letter for letter in letters if letter["task"] == id]


def test_the_queue_takes_a_task_from_an_agent_that_died_or_fell_silent_and_refuses_what_it_says_later():
    with agents('[agents.mortal]\nrestart = { policy = "never" }\ntask = { parallel = 1 }\n[agents.mute]\n'):
        ok("flockctl", "apply")
        start("mortal")
        died = send("--any", "echo $AGENT_ID.$TASK_ATTEMPT >> marks; [ $AGENT_ID = agent-1 ] || sleep 600; echo $AGENT_ID")
        assert begun(died)["agent"] == "mortal"
        # That it begins is said before the command runs.
        wait("its first mark", lambda: marks(died))
        mute = RawBus("mute")
        mute.publish("agent.mute.heartbeat", "{}")
        mute.ping()
        silent = send("--any", "sleep 5; echo $AGENT_ID")
        _, _, payload = wait("the silent agent to get it", lambda: mute.next_task("mute"))
        assert json.loads(payload)["id"] == silent, payload
        # Not before: what it had could come to the one that is silent, whose only place is taken now.
        ok("systemctl", "kill", "--signal=KILL", unit("mortal"))
        # The control: a living agent keeps what it works on for longer than the silence may be.
        start("agent-1")
        kept = send("--any", "sleep 100; echo $TASK_ATTEMPT")
        assert begun(kept)["agent"] == "agent-1"
        again = wait("agent-1 to have it", lambda: (r := task(silent))["attempt"] == 2 and r, 120)
        assert again["agent"] == "agent-1" and again["state"] in ("queued", "running"), again
        lie = {"task": silent, "output": "too late", "attempt": 1}
        mute.request("task.result", json.dumps(lie))
        record = ended(silent)
        assert (record["agent"], record["attempt"], record["output"]) == ("agent-1", 2, "agent-1\n"), record
        wait("flockd to tell", lambda: f"its result of {silent} does not count" in journal("-u", "flockd"))
        record = ended(died, 120)
        assert (record["state"], record["agent"], record["attempt"]) == ("done", "agent-1", 2), record
        assert sorted(marks(died)) == ["agent-1.2", "mortal.1"], marks(died)
        record = ended(kept)
        assert (record["attempt"], record["output"]) == (1, "1\n"), record


def test_a_task_is_cancelled_while_it_waits_and_while_it_runs():
    start("agent-1")
    waits = send("--to", "agent-2", "touch marks")
    runs = send("--to", "agent-1", "sleep 600")
    begun(runs)
    # That it begins is said before the command runs.
    wait("its command", lambda: run("pgrep", "-u", "flock-agent-1", "sleep").out)
    until(waits, "queued")
    said = ok("flockctl", "task", "cancel", waits[:20], runs)
    assert "it had not begun" in said and "told to end it: agent-1" in said, said
    wait("its command to end", lambda: not run("pgrep", "-u", "flock-agent-1", "sleep").out)
    for id in (waits, runs):
        record = task(id)
        assert record["state"] == "cancelled" and record["reason"] == "cancelled by root", record
        assert len(audited("task-cancel", id)) == 1, id
    start("agent-2")
    assert inside("agent-2", "echo next")["output"] == "next\n"
    assert not (SHARED / f"agents/agent-2/tasks/{waits}").exists(), "it was begun"
    again = run("flockctl", "task", "cancel", runs, "no-such-task")
    assert again.status == 1 and "it is cancelled already" in again.out and "no-such-task" in again.out, again
    assert task(runs)["state"] == "cancelled"


def test_whoever_waits_for_a_task_is_told_that_it_was_cancelled():
    start("agent-1")
    for to in (("--to", "agent-1"), ("--any",)):
        waiter = subprocess.Popen(["flockctl", "task", "send", "--wait", "--json", *to, f"sleep 601; echo {to[0]}"],
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        rows = lambda: [r for r in map(json.loads, ok("flockctl", "task", "list", "--json", "--state", "running").splitlines())
                        if f"echo {to[0]}" in r["head"]]
        [row] = wait("it to run", rows)
        ok("flockctl", "task", "cancel", row["task"])
        out, err = waiter.communicate(timeout=60)
        assert waiter.returncode == 1 and json.loads(out.splitlines()[-1])["status"] == "cancelled", (out, err)


def test_a_task_that_nobody_began_in_time_expires_and_is_never_begun():
    late = [send("--deadline", "2s", *to, "touch marks") for to in (("--to", "agent-2"), ("--any",))]
    control = send("--to", "agent-2", "--deadline", "10min", "echo in time")
    for id in late:
        record = ended(id)
        assert record["state"] == "expired" and "deadline" in record["reason"], record
    start("agent-2")
    assert ended(control)["output"] == "in time\n"
    assert not any(list(SHARED.glob(f"agents/*/tasks/{id}")) for id in late), "it was begun"


def test_an_ended_task_is_done_once_more_and_an_open_one_only_by_force():
    start("agent-1", "agent-2")
    first = send("--to", "agent-1", "--env", "WORD=hello", "echo $WORD from $AGENT_ID; exit 3")
    assert ended(first)["state"] == "failed"
    again = json.loads(ok("flockctl", "task", "retry", "--json", "--to", "agent-2", first[:24]))["task"]
    record = ended(again)
    assert again != first and record["retry_of"] == first, record
    assert (record["agent"], record["output"], record["exit"]) == ("agent-2", "hello from agent-2\n", 3), record
    assert len(audited("task-retry", first)) == 1
    runs = send("--to", "agent-1", "sleep 600")
    begun(runs)
    assert "cancel it first" in fails("flockctl", "task", "retry", runs)
    forced = json.loads(ok("flockctl", "task", "retry", "--json", "--force", "--to", "agent-2", runs))["task"]
    begun(forced)
    ok("flockctl", "task", "cancel", runs, forced)


def test_a_task_that_ends_its_agent_each_time_is_given_up_with_the_reason():
    with agents('[agents.weak]\nrestart = { policy = "always", delay = "100ms" }\n'):
        start("weak")
        operator = RawBus("operator")
        operator.publish("tasks.any", '{"id":"no-text-2","to":"any"}')
        poison = send("--any", "echo $TASK_ATTEMPT >> marks; kill -9 -1")
        letter = wait("the one that is no task to be given up", lambda: dead("no-text-2") or dead(None))
        assert "cannot be read" in letter[0]["reason"], letter
        record = ended(poison, 300)
        assert record["state"] == "failed" and "5 times" in record["reason"], record
        assert marks(poison) == ["1", "2", "3", "4", "5"], marks(poison)
        [letter] = wait("it on the list", lambda: dead(poison))
        assert letter["reason"] == record["reason"], letter
        assert poison in ok("flockctl", "task", "dead")
        assert inside("weak", "echo well")["output"] == "well\n"


def test_the_same_key_is_the_same_task_also_after_flockd_was_away():
    start("agent-1")
    order = ("--to", "agent-1", "--key", "bill-7")
    one = send(*order, "echo x >> marks")
    assert ended(one)["state"] == "done"
    ok("systemctl", "restart", "flockd")
    # By flockd, which is up before it has found the bus if that takes long.
    once_more = lambda: run("flockctl", "task", "send", "--json", *order, "echo x >> marks")
    again = wait("an answer", lambda: (ran := once_more()).out and ran)
    assert json.loads(again.out)["task"] == one and "sent before" in again.err, again
    waited = run("flockctl", "task", "send", "--json", "--wait", *order, "echo x >> marks")
    assert json.loads(waited.out)["status"] == "done", waited
    assert "says something else" in fails("flockctl", "task", "send", *order, "echo y")
    other = send("--to", "agent-1", "--key", "bill-8", "echo x >> marks")
    assert other != one and ended(other)["state"] == "done"
    assert marks(one) == ["x"] and marks(other) == ["x"], (marks(one), marks(other))


def test_variables_reach_the_command_and_what_would_steer_it_does_not():
    start("agent-1")
    id = send("--to", "agent-1", "--env", "WORD=a b", "--env", "EMPTY=", 'echo "$WORD|$EMPTY|"')
    assert ended(id)["output"] == "a b||\n"
    for bad in ("PATH=/tmp", "LD_PRELOAD=/tmp/x.so", "NATS_PASSWORD=x", "1X=y", "no-value"):
        fails("flockctl", "task", "send", "--to", "agent-1", "--env", bad, "true")


def test_the_queue_goes_on_where_it_was_when_flockd_is_back():
    start("agent-1")
    under_way = send("--any", "echo x >> marks; sleep 4; echo one")
    begun(under_way)
    ok("systemctl", "kill", "--signal=KILL", "flockd")
    ok("systemctl", "stop", "flockd")
    try:
        meanwhile = [send("--any", f"echo x >> marks; echo {n}") for n in range(5)]
        wait("its result", lambda: (SHARED / f"agents/agent-1/results/{under_way}.json").exists(), 60)
    finally:
        ok("systemctl", "start", "flockd")
    for id in (under_way, *meanwhile):
        record = ended(id, 120)
        assert (record["state"], record["attempt"], marks(id)) == ("done", 1, ["x"]), (record, marks(id))


def test_a_bus_that_is_killed_loses_no_acknowledged_task_of_the_queue():
    start(*AGENTS)
    sent = []
    for kill in range(3):
        sent += [send("--any", "echo x >> marks; sleep 0.5") for _ in range(8)]
        ok("systemctl", "kill", "--signal=KILL", "flock-bus")
        wait("the bus to run", lambda: show("flock-bus", "ActiveState") == "active", 30)
        wait("the bus to answer", lambda: run("flockctl", "task", "send", "--to", "agent-1", "true").status == 0, 30)
    for id in sent:
        record = ended(id, 180)
        assert record["state"] == "done" and 1 <= len(marks(id)) <= record["attempt"], (record, marks(id))


def test_many_tasks_of_one_sender_do_not_delay_anothers():
    if run("id", "operator2").status:
        ok("useradd", "--create-home", "--groups", "flock", "operator2")
    start("agent-1")
    flood = [send("--any", "sleep 2", user="operator2") for _ in range(60)]

    def waiting():
        records = map(json.loads, ok("flockctl", "task", "list", "--json", "--limit", "200").splitlines())
        return {record["task"] for record in records if record["state"] == "queued"} & set(flood)
    before = waiting()
    other = send("--any", "echo other")
    assert ended(other, 30)["state"] == "done"
    passed = len(before - waiting())
    # The control: the flood's own last one still waits.
    assert flood[-1] in waiting() and passed < len(before) / 2, (passed, len(before))
    # Some end by themselves meanwhile, and that is said.
    run("flockctl", "task", "cancel", *flood)
    assert {task(id)["state"] for id in flood} <= {"done", "cancelled"}
    assert inside("agent-1", "echo free")["output"] == "free\n"
