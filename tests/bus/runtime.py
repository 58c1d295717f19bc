"""The real flock-agent: what it does with tasks, good and bad, and when something dies."""
import asyncio, json, os, pathlib, shutil, signal, subprocess, tempfile, time

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
        await until(lambda: len(self.beats) > count, 10, "flock-agent sends no heartbeat")
        return agent

    async def send(self, ident, text="", **more):
        return await self.bus.send(f"tasks.{ME}", task(ident, text, **more))

    async def result(self, ident, seconds=15):
        await until(lambda: any(r["task"] == ident for _, r in self.results), seconds, f"no result of {ident}")
        return next(r for _, r in self.results if r["task"] == ident)

    async def idle(self):
        async def rest():
            info = await self.bus.api(f"CONSUMER.INFO.TASKS_{ME}.worker")
            return info["num_pending"] + info["num_ack_pending"]
        end = time.monotonic() + 10
        while await rest():
            assert time.monotonic() < end, "tasks stay unacknowledged"
            await asyncio.sleep(0.05)


async def ordinary(report):
    async with Scene() as s:
        await s.send("early", "echo before")
        agent = await s.agent("/bin/sh", FLOCK_TASK_PARALLEL="3", FLOCK_TASK_OUTPUT_LIMIT="1000", FLOCK_TASK_TIMEOUT="2")
        early = await s.result("early")
        report.check("a task sent before the agent was there is done", (early["status"], early["output"]) == ("done", "before\n"), early)
        report.check("results come under the sender's name", s.results[0][0] == f"task.result.{ME}")
        begun = time.monotonic()
        for n in range(3):
            await s.send(f"p{n}", f"sleep 1; echo {n}")
        for n in range(3):
            report.check(f"task p{n} of three at once", (await s.result(f"p{n}"))["output"] == f"{n}\n")
        report.check("three at once take the time of one", time.monotonic() - begun < 2.5, time.monotonic() - begun)
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
            await until(lambda: len(s.results) > before, 10, f"nothing came of the bad task {ident}")
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
        await until(lambda: "broadcast" in kinds(), 5, "no event about the broadcast")
        seen = kinds()
        report.check("events tell the story", seen[0] == "started" and {"task-started", "task-finished"} <= set(seen), seen)
        begun = time.monotonic()
        report.check("SIGTERM while idle ends it with 0", agent.kill(signal.SIGTERM) == 0)
        report.check("at once", time.monotonic() - begun < 1.5, time.monotonic() - begun)
        await until(lambda: kinds()[-1] == "stopping", 5, kinds())
        log = agent.log.read_text()
        bad = [l for l in log.splitlines() if not l.startswith("<")]
        report.check("each line has a priority", not bad, bad[:3])
        report.check("no password in the log", "1" * 64 not in log)


async def deaths(report):
    async with Scene() as s:
        agent = await s.agent("/bin/sh")
        await s.send("twice", "echo attempt $TASK_ATTEMPT; [ $TASK_ATTEMPT = 2 ] || sleep 60")
        await until(lambda: (agent.home / "tasks/twice").exists(), 5)
        agent.kill()
        begun = time.monotonic()
        agent.start()
        await s.send("soon", "echo soon")
        await s.result("soon", 10)
        report.check("after kill -9 new tasks are done at once", time.monotonic() - begun < 3, time.monotonic() - begun)
        twice = await s.result("twice", 45)
        report.check("a task whose agent was killed comes again", (twice["output"], twice["attempt"]) == ("attempt 2\n", 2), twice)
        print(f"  redelivered {time.monotonic() - begun:.0f} s after the kill")

        await s.send("stopped", "trap '' TERM; echo attempt $TASK_ATTEMPT; [ $TASK_ATTEMPT = 2 ] || sleep 60")
        await until(lambda: (agent.home / "tasks/stopped").exists(), 5)
        begun = time.monotonic()
        report.check("SIGTERM during a task ends it with 0", agent.kill(signal.SIGTERM) == 0)
        report.check("within the grace", 4 < time.monotonic() - begun < 9, time.monotonic() - begun)
        agent.start()
        stopped = await s.result("stopped", 10)
        report.check("what was not done goes back and is done", stopped["output"] == "attempt 2\n", stopped)

        # systemd signals the whole unit at once.
        await s.send("unit", "echo attempt $TASK_ATTEMPT; [ $TASK_ATTEMPT = 2 ] || sleep 60")
        await until(lambda: (agent.home / "tasks/unit").exists(), 5)
        await asyncio.sleep(0.2)
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(agent.process.pid)], capture_output=True, text=True).stdout.split()
        for pid in children:
            os.kill(int(pid), signal.SIGTERM)
        agent.kill(signal.SIGTERM)
        agent.start()
        unit = await s.result("unit", 10)
        report.check("a command that systemd stopped with its agent has not failed", unit["output"] == "attempt 2\n", unit)

        await s.send("bridge", "sleep 3; echo over")
        await until(lambda: (agent.home / "tasks/bridge").exists(), 5)
        await s.bus.crash()
        bridge = await s.result("bridge", 25)
        report.check("a task outlives kill -9 of the bus", (bridge["output"], bridge["attempt"]) == ("over\n", 1), bridge)
        begun = time.monotonic()
        await s.send("next", "echo next")
        await s.result("next", 25)
        report.check("and the next one comes soon", time.monotonic() - begun < 3, time.monotonic() - begun)
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
            await until(lambda: agent.process.poll() is not None, 40, "the poisoned agent lives")
            agent.start()
        poison = await s.result("poison", 45)
        report.check("a task that kills its agent is given up", (poison["status"], poison["attempt"]) == ("refused", 3), poison)

    async with Scene() as s:
        s.bus.process.kill()
        s.bus.process.wait()
        agent = Agent(s.bus, "/bin/sh").start()
        s.agents.append(agent)
        await asyncio.sleep(1.5)
        report.check("without a bus the agent waits", agent.process.poll() is None)
        report.check("and says so", "connect to the bus" in agent.log.read_text(), agent.log.read_text())
        s.bus.start()
        await until(lambda: s.beats, 20, "it does not connect when the bus comes")
        report.check("and connects when the bus comes", True)
        agent.kill()
        agent.env["NATS_PASSWORD"] = "0" * 64
        agent.start()
        await asyncio.sleep(1)
        text = agent.log.read_text()
        report.check("a wrong password is said", "authorization violation" in text.lower(), text)
        report.check("SIGTERM ends it before it is connected", agent.kill(signal.SIGTERM) == 0)


async def tests(report):
    await ordinary(report)
    await deaths(report)
    await endings(report)
