"""Agents that talk to each other as people write them: channels, requests, and one that stops reading."""
import asyncio, os, shutil, subprocess, time

from nats.errors import Error as NatsError, NoRespondersError

from contract import environment
from harness import Bus, accounts, until

NODE = """
const { connect, StringCodec } = require('nats'), text = StringCodec();
(async () => {
  const bus = await connect({ servers: process.env.NATS_URL, user: process.env.NATS_USER, pass: process.env.NATS_PASSWORD });
  const answer = await bus.request('agent.agent-3.requests', text.encode('from node'), { timeout: 5000 });
  console.log(text.decode(answer.data));
  await bus.close();
})();
"""


async def channels(report):
    async with Bus() as bus:
        one, two, three = [await bus.connect(f"agent-{n}") for n in (1, 2, 3)]
        heard = {client: [] for client in (one, two, three)}
        for client, name in ((one, "flock"), (one, "review"), (two, "flock"), (three, "flock"), (three, "review")):
            async def take(m, client=client):
                heard[client].append((m.subject, m.data))
            await client.subscribe(f"channel.{name}.*", cb=take)
            await client.flush()
        hub = await bus.listen("channel.>")
        await one.publish("channel.flock", b"to all")
        await three.publish("channel.review", b"to two")
        await bus.hub.publish("channel.review.operator", b"from the operator")
        for client in (one, two, three, bus.hub):
            await client.flush()
        all_of_it = lambda: all(map(len, (heard[two], heard[one][2:], heard[three][2:], hub[2:])))
        await until(all_of_it, 20, f"it is not all heard: {heard}")
        await asyncio.sleep(0.2)
        all_three = [("channel.flock.agent-1", b"to all"), ("channel.review.agent-3", b"to two"),
                     ("channel.review.operator", b"from the operator")]
        report.check("members hear each other and the operator", sorted(heard[one]) == all_three == sorted(heard[three]))
        report.check("others hear nothing of it", heard[two] == [all_three[0]], heard[two])
        report.check("the operator hears everything", sorted((m.subject, m.data) for m in hub) == all_three)
        # That a channel exists is not told: the answer is the same for one that does not.
        said = []
        for name in ("review", "nothing"):
            two.trouble.clear()
            await two.publish(f"channel.{name}", b"x")
            await two.subscribe(f"channel.{name}.*", cb=take)
            await until(lambda: len(two.trouble) == 2, 20, two.trouble)
            said.append([t.replace(name, "NAME") for t in two.trouble])
        report.check("a channel of others looks as one that is not there", said[0] == said[1], said)


async def requests(report):
    async with Bus() as bus:
        asker, third, asked = [await bus.connect(f"agent-{n}") for n in (1, 2, 3)]
        try:
            await asker.request("agent.agent-3.requests", b"x", timeout=5)
            report.check("without anybody who answers the asker is told", False)
        except NoRespondersError:
            report.check("without anybody who answers the asker is told", True)
        subjects = []

        async def serve(m):
            subjects.append(m.subject)
            await m.respond(b"heard " + m.data)
            await m.respond(b"again")

        await asked.subscribe("agent.agent-3.requests.*", cb=serve)
        await asked.flush()
        answers = [(await asker.request("agent.agent-3.requests", b"%d" % n, timeout=5)).data for n in range(20)]
        report.check("nats-py asks and is answered, once each", answers == [b"heard %d" % n for n in range(20)], answers)
        report.check("who asks is the last word of the subject", set(subjects) == {"agent.agent-3.requests.agent-1"}, subjects)
        if shutil.which("node") and os.path.isdir(os.path.join(os.environ.get("NODE_PATH", ""), "nats")):
            out = await asyncio.to_thread(subprocess.run, ["node", "-e", NODE], env=environment(bus, "agent-1"),
                                          capture_output=True, text=True, timeout=30)
            report.check("npm nats asks and is answered", out.stdout == "heard from node\n", (out.stdout, out.stderr[-300:]))
        else:
            report.skip("npm nats asks and is answered", "node or its package nats is missing")
        # The pair agent-2 -> agent-3 is new: it works at once, and nobody is disconnected.
        for client in (asker, third, asked):
            client.trouble.clear()
        text = accounts().replace('"agent.agent-1.requests"]', '"agent.agent-1.requests", "agent.agent-3.requests"]')
        text = text.replace('      {service: "agent.agent-3.requests.agent-1",', '      {service: "agent.agent-3.requests.agent-2", '
                            'accounts: ["agent-2"]}\n      {service: "agent.agent-3.requests.agent-1",')
        text = text.replace('      {service: {account: "agent-1", subject: "agent.agent-1.requests.agent-2"}',
                            '      {service: {account: "agent-3", subject: "agent.agent-3.requests.agent-2"}, to: "agent.agent-3.requests"}\n'
                            '      {service: {account: "agent-1", subject: "agent.agent-1.requests.agent-2"}')
        # As the unit of the bus does it: twice.
        for more in ("", "\n"):
            await bus.reload(text + more)
        answer = (await third.request("agent.agent-3.requests", b"new", timeout=5)).data
        report.check("a pair that is added works after a reload", answer == b"heard new", answer)
        lost = [t for client in (asker, third, asked) for t in client.trouble if "disconnected" in t]
        report.check("and nobody is disconnected by it", not lost, lost)
        for more in ("", "\n"):
            await bus.reload(accounts() + more)
        try:
            await third.request("agent.agent-3.requests", b"gone", timeout=0.5)
            report.check("a pair that is removed is gone", False)
        except (NatsError, asyncio.TimeoutError):
            report.check("a pair that is removed is gone", True)


async def late(report):
    """An answer is possible for a while only."""
    async with Bus(accounts().replace('"10m"', '"3s"')) as bus:
        asker, asked = await bus.connect("agent-1"), await bus.connect("agent-3")
        questions = []

        async def keep(m):
            questions.append(m)

        await asked.subscribe("agent.agent-3.requests.*", cb=keep)
        await asked.flush()
        for wait, arrives in ((0.1, True), (9, False)):
            waiting = asyncio.create_task(asker.request("agent.agent-3.requests", b"x", timeout=30))
            await until(lambda: questions, 20, "the question does not arrive")
            await asyncio.sleep(wait)
            await questions.pop().respond(b"now")
            try:
                got = (await asyncio.wait_for(waiting, 10 if arrives else 1)).data == b"now"
            except (NatsError, asyncio.TimeoutError):
                got = False
            report.check(f"an answer after {wait} s, where 3 s are allowed, {'arrives' if arrives else 'is lost'}", got == arrives)


async def slow(report):
    """One that stops reading is cut off by the server, and the others notice nothing."""
    async with Bus() as bus:
        talker, listener = await bus.connect("agent-1"), await bus.connect("agent-2")
        arrived = asyncio.Queue()

        async def take(m):
            await arrived.put(m)

        await listener.subscribe("channel.flock.*", cb=take)
        await listener.flush()
        reader, writer = await bus.raw("agent-3")
        writer.write(b"SUB channel.flock.* 1\r\nPING\r\n")
        assert (await reader.readline()).strip() == b"PONG"
        # Nothing is read from here on, by asyncio neither.
        writer.transport.pause_reading()
        trips, log, cut = [], bus.dir / "log", False
        for n in range(400):
            begun = time.monotonic()
            await talker.publish("channel.flock", b"x" * 500_000)
            await asyncio.wait_for(arrived.get(), 10)
            trips.append(time.monotonic() - begun)
            cut = cut or "Slow Consumer" in log.read_text()
            if cut and n > 100:
                break
        report.check("one that stops reading is cut off", cut, log.read_text()[-300:])
        report.check("nobody waits for it", max(trips) < 1, max(trips))
        report.check("and the others stay connected", talker.trouble == [] and listener.trouble == [])
        print(f"  {len(trips)} messages of 500 kB past a client that does not read, the slowest {max(trips) * 1000:.0f} ms")
        writer.close()


async def tests(report):
    await channels(report)
    await requests(report)
    await late(report)
    await slow(report)
