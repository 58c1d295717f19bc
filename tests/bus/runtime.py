"""The real flock-agent: what it does with tasks, good and bad, and when something dies."""
import asyncio, json, os, pathlib, shutil, signal, subprocess, tempfile, time
from datetime import datetime

from contract import environment
from harness import HERE, Bus, task, until

ME = "agent-1"
NOBODY = 65534


def program():
    for path in (os.environ.get("FLOCK_AGENT"), HERE.parents[1] / "target/debug/flock-agent", "/usr/lib/flock/flock-agent"):
        if path and os.path.exists(path):
            return str(path)
    raise SystemExit("there is no flock-agent; set FLOCK_AGENT")


class Agent:
    """flock-agent as the unit would start it: its variables, its user if we are root, its own directory."""

    def __init__(self, bus, *command, **variables):
        self.bus, self.command = bus, command
        self.shared = pathlib.Path(tempfile.mkdtemp(prefix="flock-shared-"))
        self.home = self.shared / "agents" / ME
        self.home.mkdir(parents=True)
        self.program = str(self.shared / "flock-agent")
        shutil.copy(program(), self.program)
        self.env = {**environment(bus, ME), "SHARED_DIR": str(self.shared), "HOME": str(self.home), **variables}
        self.user = {}
        if os.geteuid() == 0:
            os.chmod(self.shared, 0o755)
            os.chown(self.home, NOBODY, NOBODY)
            self.user = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        self.log = self.shared / "log"
        self.process = None

    def start(self):
        with open(self.log, "a") as log:
            self.process = subprocess.Popen([self.program, *self.command], env=self.env, stdout=log, stderr=log,
                                            stdin=subprocess.DEVNULL, start_new_session=True, **self.user)
        return self

    def kill(self, number=signal.SIGKILL):
        self.process.send_signal(number)
        return self.process.wait(20)

    def end(self):
        if self.process and self.process.poll() is None:
            self.kill()
        shutil.rmtree(self.shared, ignore_errors=True)

    def result(self, ident):
        return json.loads((self.home / "results" / f"{ident}.json").read_text())


class Scene:
    async def __aenter__(self):
        self.bus = await Bus().__aenter__()
        self.results, self.agents = [], []

        async def take(m):
            self.results.append((m.subject, json.loads(m.data)))

        await self.bus.hub.subscribe("task.result.*", cb=take)
        self.events = await self.bus.listen(f"agent.{ME}.events")
        self.beats = await self.bus.listen(f"agent.{ME}.heartbeat")
        return self

    async def __aexit__(self, *error):
        for agent in self.agents:
            if error[0]:
                print(agent.log.read_text()[-3000:])
            agent.end()
        await self.bus.__aexit__()

    async def agent(self, *command, **variables):
        agent = Agent(self.bus, *command, **variables).start()
        self.agents.append(agent)
        count = len(self.beats)
        await until(lambda: len(self.beats) > count, 30, "flock-agent sends no heartbeat")
        return agent

    async def send(self, ident, text="", **more):
        return await self.bus.send(f"tasks.{ME}", task(ident, text, **more))

    async def result(self, ident, seconds=30):
        await until(lambda: any(r["task"] == ident for _, r in self.results), seconds, f"no result of {ident}")
        return next(r for _, r in self.results if r["task"] == ident)

    async def idle(self):
        async def rest():
            info = await self.bus.api(f"CONSUMER.INFO.TASKS_{ME}.worker")
            return info["num_pending"] + info["num_ack_pending"]
        end = time.monotonic() + 30
        while await rest():
            assert time.monotonic() < end, "tasks stay unacknowledged"
            await asyncio.sleep(0.05)


async def ordinary(report):
    async with Scene() as s:
        await s.send("early", "echo before")
        agent = await s.agent("/bin/sh", FLOCK_TASK_PARALLEL="3", FLOCK_TASK_OUTPUT_LIMIT="1000", FLOCK_TASK_TIMEOUT="5")
        early = await s.result("early")
        report.check("a task sent before the agent was there is done", (early["status"], early["output"]) == ("done", "before\n"), early)
        report.check("results come under the sender's name", s.results[0][0] == f"task.result.{ME}")
        for n in range(3):
            await s.send(f"p{n}", f"sleep 2; echo {n}")
        three = [await s.result(f"p{n}") for n in range(3)]
        for n in range(3):
            report.check(f"task p{n} of three at once", three[n]["output"] == f"{n}\n")
        times = [[datetime.fromisoformat(r[end]) for r in three] for end in ("started", "finished")]
        report.check("three run at once", max(times[0]) < min(times[1]), times)
        await s.bus.send(f"tasks.{ME}.all", task("all", "echo all", "all"))
        await s.bus.send(f"tasks.{ME}.any", task("any", "echo any", "any", attempt=4))
        report.check("a task for all", (await s.result("all"))["output"] == "all\n")
        any_ = await s.result("any")
        report.check("a task from the shared queue keeps its count", (any_["output"], any_["attempt"]) == ("any\n", 4), any_)

        await s.send("env", "echo $AGENT_ID $TASK_ID $TASK_ATTEMPT; pwd; env | grep -c -e NATS -e FLOCK; cat /proc/$PPID/environ 2>&1 | grep -ac NATS_PASSWORD")
        output = (await s.result("env"))["output"].splitlines()
        report.check("the command knows its task and folder", output[:2] == [f"{ME} env 1", str(agent.home / "tasks/env")], output)
        report.check("the command does not inherit the bus identity", output[2] == "0", output)
        if agent.user:
            report.check("and cannot read it from flock-agent", output[3] == "0", output)
        else:
            report.skip("and cannot read it from flock-agent", "root could read it anyway")

        await s.send("fail", "echo partly; echo oops >&2; exit 7")
        failed = await s.result("fail")
        report.check("a failure is a failure", (failed["status"], failed["exit"], failed["output"]) == ("failed", 7, "partly\n"), failed)
        report.check("standard error goes to the journal", "<5>task fail: oops" in agent.log.read_text())
        await s.send("steer", "printf '\\033[2Jx\\n' >&2")
        await s.result("steer")
        report.check("control characters do not", "\x1b" not in agent.log.read_text())
        await s.send("long", "echo begun; sleep 60")
        slow = await s.result("long")
        report.check("a timeout kills", (slow["status"], slow["output"]) == ("timeout", "begun\n"), slow)
        await s.send("much", "head -c 100000 /dev/zero | tr '\\0' x")
        much = await s.result("much")
        report.check("output is cut at the limit", (much["status"], len(much["output"]), much["truncated"]) == ("done", 1000, True))
        await s.send("bytes", "printf '\\377\\000ok'")
        report.check("output that is no text does no harm", (await s.result("bytes"))["output"].endswith("ok"))
        await s.send("dead", "echo x", deadline="2026-01-01T00:00:01Z")
        report.check("a deadline that has passed", (await s.result("dead"))["status"] == "expired")
        on_disk = agent.result("fail")
        report.check("the result is a file too", (on_disk["status"], on_disk["output"]) == ("failed", "partly\n"), on_disk)
        report.check("no half-written file is left", [p.name for p in (agent.home / "results").iterdir() if p.name.startswith(".")] == [])

        for ident, payload in {
            "unnamed": b"not json", "named": b'{"id":"named","to":3}', "deep": b'{"id":"deep","text":' + b"[" * 100000,
            "binary": bytes(range(256)), "empty": b"", "path": json.dumps(task("../../../etc/x", "echo")).encode(),
            "large": json.dumps(task("a" * 65, "echo")).encode(),
        }.items():
            before = len(s.results)
            await s.bus.send(f"tasks.{ME}", payload)
            await until(lambda: len(s.results) > before, 30, f"nothing came of the bad task {ident}")
            result = s.results[-1][1]
            good = result["status"] == "refused" and (result["task"] == ident or result["task"].startswith("unnamed-"))
            report.check(f"the bad task {ident} is refused", good, result)
        report.check("nothing was written outside", not (s.agents[0].shared / "etc").exists())
        await s.send("after", "echo alive")
        report.check("and the agent lives", (await s.result("after"))["output"] == "alive\n")
        await s.idle()
        report.check("every task is acknowledged", True)
        await s.bus.hub.publish("broadcast", b"to all")
        kinds = lambda: [json.loads(e.data)["event"] for e in s.events]
        await until(lambda: "broadcast" in kinds(), 30, "no event about the broadcast")
        seen = kinds()
        report.check("events tell the story", seen[0] == "started" and {"task-started", "task-finished"} <= set(seen), seen)
        begun = time.monotonic()
        report.check("SIGTERM while idle ends it with 0", agent.kill(signal.SIGTERM) == 0)
        report.check("at once, not after the grace of 5 s", time.monotonic() - begun < 4, time.monotonic() - begun)
        await until(lambda: kinds()[-1] == "stopping", 20, kinds())
        log = agent.log.read_text()
        bad = [l for l in log.splitlines() if not l.startswith("<")]
        report.check("each line has a priority", not bad, bad[:3])
        report.check("no password in the log", "1" * 64 not in log)


async def deaths(report):
    async with Scene() as s:
        agent = await s.agent("/bin/sh")
        await s.send("twice", "echo attempt $TASK_ATTEMPT; [ $TASK_ATTEMPT = 2 ] || sleep 60")
        await until(lambda: (agent.home / "tasks/twice").exists(), 20)
        agent.kill()
        begun = time.monotonic()
        agent.start()
        await s.send("soon", "echo soon")
        await s.result("soon", 25)
        # What the dead one had comes again after 30 s.
        took = time.monotonic() - begun
        report.check("after kill -9 new tasks are done at once", took < 15, took)
        twice = await s.result("twice", 60)
        report.check("a task whose agent was killed comes again", (twice["output"], twice["attempt"]) == ("attempt 2\n", 2), twice)
        print(f"  redelivered {time.monotonic() - begun:.0f} s after the kill")

        await s.send("stopped", "trap '' TERM; echo attempt $TASK_ATTEMPT; [ $TASK_ATTEMPT = 2 ] || sleep 60")
        await until(lambda: (agent.home / "tasks/stopped").exists(), 20)
        begun = time.monotonic()
        report.check("SIGTERM during a task ends it with 0", agent.kill(signal.SIGTERM) == 0)
        report.check("within the grace", 4 < time.monotonic() - begun < 15, time.monotonic() - begun)
        agent.start()
        stopped = await s.result("stopped", 25)
        report.check("what was not done goes back and is done", stopped["output"] == "attempt 2\n", stopped)

        # systemd signals the whole unit at once.
        await s.send("unit", "echo attempt $TASK_ATTEMPT; [ $TASK_ATTEMPT = 2 ] || sleep 60")
        ask = ["ps", "-o", "pid=", "--ppid", str(agent.process.pid)]
        children = lambda: subprocess.run(ask, capture_output=True, text=True).stdout.split()
        for pid in await until(children, 20, "the command does not run"):
            os.kill(int(pid), signal.SIGTERM)
        agent.kill(signal.SIGTERM)
        agent.start()
        unit = await s.result("unit", 25)
        report.check("a command that systemd stopped with its agent has not failed", unit["output"] == "attempt 2\n", unit)

        await s.send("bridge", "sleep 3; echo over")
        await until(lambda: (agent.home / "tasks/bridge").exists(), 20)
        await s.bus.crash()
        bridge = await s.result("bridge", 60)
        report.check("a task outlives kill -9 of the bus", (bridge["output"], bridge["attempt"]) == ("over\n", 1), bridge)
        begun = time.monotonic()
        await s.send("next", "echo next")
        await s.result("next", 25)
        # A request that the server has forgotten is made anew after 25 s.
        report.check("and the next one comes soon", time.monotonic() - begun < 15, time.monotonic() - begun)
        await s.idle()

        # The result is on disk and the acknowledgement is lost: it is not worked out again.
        await s.send("once", "echo once >> ../../count; echo $TASK_ATTEMPT")
        await s.result("once")
        await s.idle()
        await s.bus.api(f"STREAM.PURGE.TASKS_{ME}")
        await s.send("once", "echo once >> ../../count; echo $TASK_ATTEMPT")
        await s.idle()
        report.check("a task that is done is not done again", (agent.home / "count").read_text() == "once\n")
        ran = [json.loads(e.data) for e in s.events]
        report.check("it was begun once", sum(e["event"] == "task-started" and e.get("task") == "once" for e in ran) == 1)


async def endings(report):
    """An agent that dies each time, a bus that is not there, a command that is not there."""
    async with Scene() as s:
        agent = await s.agent("/nonexistent/program")
        await s.send("none", "x")
        none = await s.result("none")
        report.check("a command that is not there is a failed task", none["status"] == "failed" and "/nonexistent/program" in none["reason"], none)
        agent.kill()

    async with Scene() as s:
        agent = await s.agent("/bin/sh", FLOCK_TASK_ATTEMPTS="2")
        await s.send("poison", "kill -9 $PPID; sleep 60")
        for _ in range(2):
            await until(lambda: agent.process.poll() is not None, 60, "the poisoned agent lives")
            agent.start()
        poison = await s.result("poison", 60)
        report.check("a task that kills its agent is given up", (poison["status"], poison["attempt"]) == ("refused", 3), poison)

    async with Scene() as s:
        s.bus.process.kill()
        s.bus.process.wait()
        agent = Agent(s.bus, "/bin/sh").start()
        s.agents.append(agent)
        await until(lambda: "connect to the bus" in agent.log.read_text(), 20, "it does not say that there is no bus")
        report.check("without a bus the agent says so", True)
        await asyncio.sleep(1.5)
        report.check("and waits", agent.process.poll() is None)
        s.bus.start()
        await until(lambda: s.beats, 60, "it does not connect when the bus comes")
        report.check("and connects when the bus comes", True)
        agent.kill()
        agent.env["NATS_PASSWORD"] = "0" * 64
        agent.start()
        said = lambda: agent.log.read_text().lower()
        await until(lambda: "authorization violation" in said(), 20, "a wrong password is not said")
        report.check("a wrong password is said", True)
        report.check("SIGTERM ends it before it is connected", agent.kill(signal.SIGTERM) == 0)


async def bounds(report):
    """What a task is told, what ends it before its time, and what it leaves."""
    async with Scene() as s:
        agent = await s.agent("/bin/sh", FLOCK_TASK_PARALLEL="2", FLOCK_TASK_TIMEOUT="60", FLOCK_TASK_KEEP="5")
        soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 30))
        await s.send("env", "echo $TASK_FOLDER $TASK_TIMEOUT $TASK_DEADLINE $COLOUR; pwd; env | grep -c -e NATS -e FLOCK",
                     deadline=soon, environment={"COLOUR": "dark blue"})
        output = (await s.result("env"))["output"].splitlines()
        folder, seconds, deadline, colour = output[0].split(" ", 3)
        report.check("a task knows its folder, time, deadline and variables",
                     (folder, deadline, colour) == (str(agent.home / "tasks/env"), soon, "dark blue") and 20 < int(seconds) <= 30, output)
        report.check("its folder is where it runs, and nothing of flock's is in its variables", output[1:] == [folder, "0"], output)
        for name, value in {"PATH": "/tmp", "TASK_ID": "x", "LD_PRELOAD": "x", "lower": "x", "LONG": "x" * 4097}.items():
            await s.send(f"no-{name}", "echo begun", environment={name: value})
            refused = await s.result(f"no-{name}")
            report.check(f"the variable {name} is refused", refused["status"] == "refused" and name in refused["reason"] and "begun" not in refused["output"], refused)

        await s.send("usage", "python3 -c 'b = bytearray(50 << 20)\nfor i in range(2000000): pass'")
        usage = (await s.result("usage"))["usage"]
        report.check("what a task used up is told", usage["user_usec"] > 10000 and usage["memory_peak"] > 50 << 20, usage)

        begun = time.monotonic()
        deadline = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 8))
        await s.send("late", "trap '' TERM; echo half; sleep 60", deadline=deadline)
        late = await s.result("late")
        report.check("a deadline ends a task that runs", (late["status"], late["output"]) == ("expired", "half\n") and "deadline" in late["reason"], late)
        report.check("in time, although it ignores TERM", time.monotonic() - begun < 20, time.monotonic() - begun)

        control = f"agent.{ME}.control"
        await s.send("cancel", "echo half; echo $$ > pid; sleep 60 & sleep 60")
        pid = agent.home / "tasks/cancel/pid"
        await until(lambda: pid.exists() and pid.read_text(), 20)
        await s.bus.hub.publish(control, b'{"cancel":"cancel"}')
        cancelled = await s.result("cancel", 20)
        report.check("a cancel ends a task that runs", (cancelled["status"], cancelled["output"]) == ("cancelled", "half\n"), cancelled)

        def left():
            ran = subprocess.run(["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True)
            return [l for l in ran.stdout.splitlines() if l.split()[0] == pid.read_text().strip() and not l.split()[1].startswith("Z")]

        await until(lambda: not left(), 5, f"some of its processes go on: {left()}")
        report.check("with all its processes", True)
        for junk in (b"", b"[]", b'{"cancel":"../x"}', b'{"cancel":' + b"[" * 5000, b"\xff"):
            await s.bus.hub.publish(control, junk)
        await s.bus.hub.publish(control, b'{"cancel":"not-yet"}')
        await s.bus.hub.flush()
        await until(lambda: "task not-yet: cancelled" in agent.log.read_text(), 20, "the cancel is not heard")
        await s.send("not-yet", "echo begun > ../../begun")
        early = await s.result("not-yet")
        report.check("one that was cancelled before it came is not begun", early["status"] == "cancelled" and not (agent.home / "begun").exists(), early)
        await s.send("other", "echo alive")
        report.check("others are not touched, and junk does no harm", (await s.result("other"))["output"] == "alive\n")

        started = [json.loads(e.data) for e in s.events if json.loads(e.data)["event"] == "task-started"]
        report.check("the event of a start carries the attempt", {e["detail"] for e in started} == {"1"}, started)
        await s.idle()
        await until(lambda: len(list((agent.home / "tasks").iterdir())) <= 5, 20, "old folders stay")
        await until(lambda: len(list((agent.home / "results").iterdir())) <= 5, 20, "old results stay")
        names = sorted(p.name for p in (agent.home / "results").iterdir())
        report.check("the oldest results are removed", len(names) == 5 and "other.json" in names, names)
        log = agent.log.read_text()
        odd = [l for l in log.splitlines() if any(f"task {t}" in l for t in ("env", "late", "cancel")) and not l[3:].startswith("task ")]
        report.check("each line about a task begins with its name", not odd, odd[:3])


async def bad_world(report):
    """The command spoils its own folders, floods, lies; the same task comes twice at once."""
    async with Scene() as s:
        agent = await s.agent("/bin/sh", FLOCK_TASK_PARALLEL="3", FLOCK_TASK_OUTPUT_LIMIT="1000")
        await s.send("link", "mkdir ../../else; rm -rf ../../results; ln -s else ../../results; echo ok")
        link = await s.result("link")
        report.check("results replaced by a link: the result still comes, with the reason",
                     (link["status"], link["output"]) == ("done", "ok\n") and "replaced" in link["reason"] and "result_path" not in link, link)
        report.check("and nothing is written through the link", not list((agent.home / "else").iterdir()))
        await s.send("mend", "rm ../../results; rmdir ../../else; echo ok")
        await s.result("mend")
        await s.send("gone", "rm -rf ../../results ../../tasks; echo ok")
        gone = await s.result("gone")
        report.check("removed folders are made again", (gone["output"], "reason" in gone) == ("ok\n", False) and agent.result("gone")["status"] == "done", gone)
        await s.send("file", "cd /; rm -rf $HOME/tasks; echo x > $HOME/tasks; echo ok")
        await s.result("file")
        await s.send("nowhere", "echo ok")
        nowhere = await s.result("nowhere")
        report.check("a task whose folder cannot be made fails and says why", nowhere["status"] == "failed" and "folder" in nowhere["reason"], nowhere)
        await s.idle()
        (agent.home / "tasks").unlink()

        await s.send("fake", "for n in 1 2; do echo '<6>task other: ends: done' > /proc/$PPID/fd/$n; done; exec 2>&1; ls -l /proc/$PPID/fd")
        fake = await s.result("fake")
        if agent.user:
            report.check("a command does not reach flock-agent's own streams", "ermission denied" in fake["output"] and "<6>task other" not in agent.log.read_text(), fake)
        else:
            report.skip("a command does not reach flock-agent's own streams", "root reaches them anyway")

        await s.send("bytes", "printf 'a\\377b'")
        raw = await s.result("bytes")
        report.check("output that is no UTF-8 is replaced, and that is said", raw["output"] == "a\ufffdb" and "UTF-8" in raw["reason"], raw)
        await s.send("flood", "yes 'task other: done' | head -n 300000 >&2; echo ok", )
        report.check("a flood on standard error ends", (await s.result("flood", 30))["output"] == "ok\n")
        log = agent.log.read_text()
        report.check("it is bounded in the journal", log.count("task flood: task other") < 7000, log.count("task flood:"))
        report.check("with a line that says how much is missing", "lines of its output were left out" in log, log[-500:])
        report.check("and no line speaks for another task", ">task other:" not in log)
        text = "x" * (1024 * 1024 - 2000)
        await s.send("large", f"#{text}\nwc -c < $0; echo read")
        report.check("a text of nearly 1 MiB arrives", "read" in (await s.result("large"))["output"])

        # The server hands a task out again when it hears nothing for a while: here, because we stop flock-agent.
        await s.send("stall", "echo run >> ../../runs; sleep 45; echo ok")
        await until(lambda: (agent.home / "runs").exists(), 20)
        agent.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(33)
        agent.process.send_signal(signal.SIGCONT)
        stall = await s.result("stall", 40)
        report.check("a task that comes again while it runs is done once", (agent.home / "runs").read_text() == "run\n", stall)
        report.check("and the one result is that of the first run", (stall["status"], stall["attempt"]) == ("done", 1), stall)
        await s.idle()
        # Two messages with one id: the second waits and finds the result of the first.
        await s.send("twin", "echo run >> ../../twins; sleep 2; echo ok")
        await until(lambda: (agent.home / "twins").exists(), 20)
        await s.bus.send(f"tasks.{ME}.any", task("twin", "echo run >> ../../twins; sleep 2; echo ok", "any"))
        await s.idle()
        report.check("so is one that comes in two messages", (agent.home / "twins").read_text() == "run\n", agent.log.read_text()[-400:])
        await until(lambda: "it came again while it runs" in agent.log.read_text(), 20, "the redelivery was not seen")


async def arguments(report):
    async with Scene() as s:
        await s.agent("/bin/echo", "say:", "{task}", "!", FLOCK_TASK_INPUT="argument")
        await s.send("word", "$(id) 'x'")
        report.check("the text is one argument and no shell reads it", (await s.result("word"))["output"] == "say: $(id) 'x' !\n")
        for ident, text, why in (("nul", "a\0b", "NUL"), ("dash", "--help", "--"), ("long", "x" * 122881, "120 KiB")):
            await s.send(ident, text)
            bad = await s.result(ident)
            report.check(f"a text that cannot be an argument: {ident}", bad["status"] == "failed" and why in bad["reason"] and bad["output"] == "", bad)


async def lines(report):
    """A command that lives on: the example of the documentation."""
    example = HERE.parents[1] / "docs/examples/json_lines.py"
    if not example.exists():
        example = HERE.parent / "examples/json_lines.py"
    async with Scene() as s:
        # Where the agent's user can read it.
        program = s.bus.dir / example.name
        shutil.copy(example, program)
        os.chmod(s.bus.dir, 0o755)
        os.chmod(program, 0o644)
        agent = await s.agent("/usr/bin/python3", str(program), FLOCK_TASK_INPUT="json-lines", FLOCK_TASK_PARALLEL="4", FLOCK_TASK_TIMEOUT="10")
        runs = lambda: agent.log.read_text().count("the command runs as process")
        await s.send("slow", "wait 5 the end")
        await s.send("quick", "The agents and the bus, the agents and the fence")
        quick = await s.result("quick")
        report.check("a task is a line of JSON and so is its answer", json.loads(quick["output"])[0] == ["agents", 2] and quick["status"] == "done", quick)
        report.check("the answers come in any order", (await s.result("slow"))["status"] == "done" and s.results[0][1]["task"] == "quick")
        await s.send("cancel", "wait 30")
        await asyncio.sleep(0.5)
        await s.bus.hub.publish(f"agent.{ME}.control", b'{"cancel":"cancel"}')
        cancelled = await s.result("cancel", 20)
        report.check("a cancel reaches it", cancelled["status"] == "cancelled", cancelled)
        await s.send("timeout", "wait 30")
        report.check("so does the end of a task's time", (await s.result("timeout"))["status"] == "timeout")
        report.check("one process did all that", runs() == 1, runs())
        begun = time.monotonic()
        report.check("SIGTERM ends both with 0", agent.kill(signal.SIGTERM) == 0)
        report.check("at once, not after the grace of 5 s", time.monotonic() - begun < 4, time.monotonic() - begun)

    async with Scene() as s:
        dying = "import json, os, sys\nfor line in sys.stdin:\n t = json.loads(line)\n"
        dying += " if t['text'] == 'die' and t['attempt'] == 1: os._exit(7)\n"
        dying += " print(json.dumps({'id': t['id'], 'output': t['attempt']}), flush=True)\n"
        agent = await s.agent("/usr/bin/python3", "-c", dying, FLOCK_TASK_INPUT="json-lines")
        await s.send("die", "die")
        died = await s.result("die")
        report.check("a task whose command died comes again, as another attempt", (died["output"], died["attempt"]) == ("2", 2), died)
        report.check("and the journal says why", "exit status: 7" in agent.log.read_text())
        agent.kill(signal.SIGTERM)

    async with Scene() as s:
        agent = Agent(s.bus, "/nonexistent/program", FLOCK_TASK_INPUT="json-lines").start()
        s.agents.append(agent)
        report.check("a command that cannot be started ends the agent with a failure", agent.process.wait(30) == 1)
        report.check("which says so", "start the command /nonexistent/program" in agent.log.read_text(), agent.log.read_text())


async def tests(report):
    await ordinary(report)
    await deaths(report)
    await endings(report)
    await bounds(report)
    await bad_world(report)
    await arguments(report)
    await lines(report)
