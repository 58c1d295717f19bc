"""The bus on bad days, and those who speak on it badly: a clear state, and nothing acknowledged is lost."""

import threading

from harness import *
from rawbus import RawBus

STORE = pathlib.Path("/var/lib/flock/bus/jetstream")


def tasks(*arguments):
    out = ok("flockctl", "task", "list", "--json", "--limit", "1000", *arguments)
    return [json.loads(line) for line in out.splitlines()]


def record(task, seconds=40, state=("done", "failed", "expired", "cancelled")):
    """The record of a task once it has one of these states."""
    def find():
        rows = [row for row in tasks() if row["task"].startswith(task)]
        return rows[0] if rows and rows[0]["state"] in state else None
    return wait(f"task {task} to be {state}: {run('flockctl', 'task', 'show', task)!r}", find, seconds)


def send(to, text, *arguments):
    """Sends a task that nobody waits for and gives its id."""
    return json.loads(ok("flockctl", "task", "send", "--json", "--to", to, *arguments, text))["task"]


def bus_is_back():
    ok("systemctl", "start", "flock-bus")
    wait("flockd to have the bus", lambda: "bus" not in run("flockctl", "status").out.lower().split("problems")[-1]
         or run("flockctl", "task", "send", "--to", "agent-3", "true").status == 0, 60)


def test_dead_at_the_start_then_all_is_caught_up():
    ok("systemctl", "stop", "flock-bus")
    try:
        said = fails("flockctl", "task", "send", "--to", "agent-1", "true")
        assert "flock-bus" in said, said
    finally:
        ok("systemctl", "start", "flock-bus")
    start("agent-1")
    wait("a task to get through", lambda: run("flockctl", "task", "send", "--to", "agent-1", "true").status == 0, 60)
    assert inside("agent-1", "echo up")["output"] == "up\n"


def test_killed_again_and_again_during_work_nothing_is_lost_or_done_twice_unnoticed():
    start(*AGENTS)
    sent = [send(agent, f"sleep 0.4; echo $TASK_ID >> marks") for agent in AGENTS for _ in range(8)]
    for _ in range(3):
        time.sleep(1)
        ok("systemctl", "kill", "-s", "KILL", "flock-bus")
        wait("the bus to run", lambda: show("flock-bus", "ActiveState") == "active", 30)
    for task in sent:
        assert record(task, 120)["state"] == "done", task
    # Done twice can only be seen from inside; where it was, the record's attempts say so.
    for task in sent:
        ran = sum(f.read_text().split().count(task) for f in SHARED.glob(f"agents/*/tasks/{task}/marks"))
        assert 1 <= ran <= record(task)["attempt"], (task, ran)


def test_a_store_that_is_full_refuses_aloud_and_keeps_what_it_took():
    ok("systemctl", "stop", "flock-bus")
    ok("mount", "-t", "tmpfs", "-o", "size=3m,mode=0700,uid=flock-bus,gid=flock-bus", "tmpfs", str(STORE))
    taken, refused = [], ""
    try:
        ok("systemctl", "start", "flock-bus")
        wait("the bus", lambda: run("flockctl", "task", "send", "--to", "agent-2", "true").status == 0, 60)
        for n in range(40):
            text = f"echo {n}: " + "x" * 200_000
            ran = run("flockctl", "task", "send", "--json", "--to", "agent-1", "-", input=text)
            if ran.status:
                refused = ran.err
                break
            taken.append(json.loads(ran.out)["task"])
        assert taken and refused, (taken, refused)
        assert "agent-1" in refused and ("space" in refused or "full" in refused or "resources" in refused), refused
        wait("status to say so", lambda: re_bus(run("flockctl", "status").out), 90)
        ok("mount", "-o", "remount,size=100m", str(STORE))
        ok("systemctl", "restart", "flock-bus")
        start("agent-1")
        for task in taken:
            assert record(task, 90)["state"] in ("failed", "done"), task
        wait("status to be content", lambda: not re_bus(run("flockctl", "status").out), 90)
    finally:
        run("systemctl", "stop", "flock@agent-1", "flock-bus")
        ok("umount", str(STORE))
        ok("systemctl", "start", "flock-bus")
        wait("the bus", lambda: run("flockctl", "task", "send", "--to", "agent-3", "true").status == 0, 60)


def re_bus(text):
    return [line for line in text.splitlines() if "bus" in line]


def half(data):
    data[len(data) // 4:3 * len(data) // 4] = b"\xff" * (3 * len(data) // 4 - len(data) // 4)


def everything(data):
    """The server sets the stream back, and leaves its consumers where they were."""
    data[:] = b"\xff" * len(data)


def one_record(data):
    """The server passes over what it cannot read and counts it as handed out."""
    at = data.rfind(b"whole-7")
    if at >= 0:
        data[at:at + 5] = b"WHOLE"


def test_a_store_that_was_damaged_loses_no_acknowledged_task():
    damages = {"agent-1": half, "agent-2": one_record, "agent-3": everything}
    start("agent-3")
    for n in range(3):
        assert inside("agent-3", f"echo {n}")["output"] == f"{n}\n"
    ok("flockctl", "stop", "agent-3")
    sent = {agent: [send(agent, f"echo whole-{n}") for n in range(20)] for agent in damages}
    for task in sum(sent.values(), []):
        record(task, state=("queued",))
    ok("systemctl", "stop", "flock-bus")
    for agent, damage in damages.items():
        before = {block: block.read_bytes() for block in STORE.glob(f"**/TASKS_{agent}/msgs/*.blk")}
        for block, whole in before.items():
            data = bytearray(whole)
            damage(data)
            block.write_bytes(data)
        assert any(block.read_bytes() != whole for block, whole in before.items()), "no file of the stream was damaged"
    ok("systemctl", "start", "flock-bus")
    start(*damages)
    try:
        for agent in damages:
            for n, task in enumerate(sent[agent]):
                ended = record(task, 240)
                assert ended["state"] == "done", ended
                assert f"whole-{n}" in ok("flockctl", "task", "show", task)
    except AssertionError:
        print(*state_of_the_store(), sep="\n", flush=True)
        # The next test is not about this store.
        ok("systemctl", "restart", "flock-bus")
        raise


def state_of_the_store():
    """What the bus and flockd say of agent-1's tasks."""
    for command in (("flockctl", "status"), ("journalctl", "-q", "-o", "cat", "-n", "40", "-u", "flock-bus"),
                    ("journalctl", "-q", "-o", "cat", "-n", "20", "-u", "flockd"), ("flockctl", "logs", "-n", "10", "agent-1")):
        yield f"{command}: {run(*command)!r}"
    operator = RawBus("operator")
    for name in ("STREAM.INFO.TASKS_agent-1", "CONSUMER.INFO.TASKS_agent-1.worker", "CONSUMER.INFO.TASKS_agent-1.history"):
        try:
            yield f"{name}: {operator.request('$JS.API.' + name, '')}"
        except (AssertionError, OSError) as error:
            yield f"{name}: {error!r}"


def test_what_is_no_task_is_refused_with_a_reason_and_the_next_is_done():
    start("agent-1")
    operator = RawBus("operator")
    deep = b'{"id":"deep-1","x":' + b"[" * 50_000 + b"]" * 50_000 + b"}"
    for payload in (b"", b"{", b"\xff\xfe\x00", deep, b'{"id":"no-text-1","to":"agent-1"}', b"[1,2,3]", b"\x00" * 1000):
        operator.publish("tasks.agent-1", payload)
    assert operator.ping() == []
    assert inside("agent-1", "echo next")["output"] == "next\n"
    said = wait("the refusal in its log", lambda: [l for l in ok("flockctl", "logs", "agent-1").splitlines() if "refused" in l])
    assert all(len(line) < 600 for line in said), said
    # 64 MiB: the server ends the connection of whoever tries, and nobody else's.
    operator.say(f"PUB tasks.agent-1 {64 << 20}")
    errors = operator.last_words()
    assert any("Maximum Payload" in e for e in errors), errors
    assert inside("agent-1", "echo still")["output"] == "still\n"


def test_the_command_line_refuses_what_is_no_task_before_anything_is_sent():
    with_wildcards = [run("flockctl", "task", "send", "--to", to, "x") for to in ("*", ">", "agent-1.>", "a b", "../x", "")]
    assert all(ran.status == 2 for ran in with_wildcards), with_wildcards
    big = run("flockctl", "task", "send", "--to", "agent-1", "-", input="x" * (64 << 20))
    assert big.status == 1 and "1048576" in big.err and "shared tree" in big.err, big
    bad = subprocess.run(["flockctl", "task", "send", "--to", "agent-1", "-"], input=b"\xff\xfe", capture_output=True)
    assert bad.returncode == 1 and b"UTF-8" in bad.stderr, bad


def test_results_that_lie_and_floods_disturb_nobody_and_are_told():
    with agents("[agents.liar]\n[agents.honest]\n"):
        start("honest")
        real = send("honest", "sleep 3; echo truth")
        liar = RawBus("liar")
        lies = [{"task": real, "output": "lie"}, {"task": real, "agent": "honest", "output": "lie", "attempt": 1},
                {"task": "never-sent", "output": "lie"}, {"task": "../../etc/passwd", "output": "lie"}]
        for lie in lies:
            liar.request("task.result", json.dumps(lie))
        shown = record(real)
        assert shown["state"] == "done" and shown["agent"] == "honest", shown
        assert "truth" in ok("flockctl", "task", "show", real) and "lie" not in ok("flockctl", "task", "show", real)
        wait("flockd to tell", lambda: "liar" in journal("-u", "flockd", "--since", "-2min"), 30)
        # A flood, and a connection that ends in the middle of a message.
        begun = time.monotonic()
        for n in range(20_000):
            liar.publish("task.result", json.dumps({"task": f"flood-{n}", "output": "x" * 200}))
        liar.say("PUB task.result 5000", b"half of it"[:5])
        liar.close()
        assert inside("honest", "echo undisturbed", timeout=60)["output"] == "undisturbed\n"
        lines = journal("-u", "flockd", "--since", "-2min").splitlines()
        assert len(lines) < 2_000, f"the flood reached the journal: {len(lines)} lines"


def test_an_agent_that_acknowledges_without_work_or_never_is_found_out():
    with agents("[agents.lazy]\n"):
        ok("flockctl", "apply")
        lazy = RawBus("lazy")
        quick = send("lazy", "true")
        _, reply, payload = lazy.next_task("lazy")
        assert json.loads(payload)["id"] == quick
        lazy.request(reply, "+ACK")
        found = record(quick, 240)
        assert found["state"] == "failed" and "without a result" in found["reason"], found
