"""Each export, import, permission and limit taken out of flock's accounts in turn: what it is for must then fail.

For every line there is a question, and a control: the same question for another agent, whose line is still there.
What is taken away and changes nothing is a survivor; the ones that are known stand in SURVIVORS, with the reason.
"""
import asyncio, contextvars, json, re, subprocess, tempfile

from nats.errors import Error as NatsError

from harness import SERVER, STREAMS, Bus, accounts, task, until

AGENTS = ["agent-1", "agent-2", "agent-3"]
AT_ONCE = 8
# How long something that must come is waited for, and something that must not.
LONG, SHORT = 15, 2
patience = contextvars.ContextVar("patience")
SURVIVORS = {
    r'max: 1, ': "one answer to a request is the server's own default",
    r', expires: "10m"': "changes only how late an answer may come: two minutes then, and not ten",
    r', response_threshold: "10m"': "changes only how late an answer may come: two minutes then, and not ten",
    r', max_payload: 1048576': "the server's own limit is the same",
}


async def heard(bus, client, subject, act):
    """Whether the client hears something on the subject once `act` is done."""
    got = []

    async def take(m):
        got.append(m)

    await client.subscribe(subject, cb=take)
    await client.flush()
    await act()
    return await comes(lambda: got)


async def comes(condition):
    try:
        await until(condition, patience.get())
        return True
    except AssertionError:
        return False


async def answered(asking):
    try:
        return await asking
    except (NatsError, asyncio.TimeoutError):
        return None


async def tell(bus, me, subject, heard_as):
    agent = await bus.connect(me)
    return await heard(bus, bus.hub, heard_as, lambda: agent.publish(subject, b"x"))


async def hears(bus, me, subject, said_on, stored):
    agent = await bus.connect(me)
    say = (lambda: bus.send(said_on, task("t", to=me))) if stored else (lambda: bus.hub.publish(said_on, b"x"))
    return await heard(bus, agent, subject, say)


async def result(bus, me):
    agent = await bus.connect(me)
    answer = await answered(agent.request("task.result", b"{}", timeout=patience.get()))
    return answer is not None and "error" not in json.loads(answer.data)


async def pull(bus, me, acknowledge):
    if me != "agent-1":
        await bus.make_consumer(f"TASKS_{me}", {"name": "worker", "durable_name": "worker", "ack_policy": "explicit"})
    agent = await bus.connect(me)
    await bus.send(f"tasks.{me}", task("t", to=me))
    got = await answered(bus.pull(agent, me, patience.get()))
    if got is None or not acknowledge:
        return got is not None
    # Twice, for one who serves requests may answer any message once.
    await agent.publish(got.reply, b"+WPI")
    return await answered(agent.request(got.reply, b"+ACK", timeout=patience.get())) is not None


async def asks(bus, me, asked):
    agent, other = await bus.connect(me), await bus.connect(asked)

    async def answer(m):
        await m.respond(b"answer")

    await other.subscribe(f"agent.{asked}.requests.*", cb=answer)
    await other.flush()
    return await answered(agent.request(f"agent.{asked}.requests", b"x", timeout=patience.get())) is not None


async def refused(bus, me, verb, subject):
    """Whether the server refuses this outright, although nobody of others could hear it."""
    agent = await bus.connect(me)

    async def nothing(_):
        pass

    await (agent.publish(subject, b"x") if verb == "publish" else agent.subscribe(subject, cb=nothing))
    word = {"publish": "publish", "subscribe": "subscription"}[verb]
    return await comes(lambda: any(f"permissions violation for {word}" in t.lower() for t in agent.trouble))


async def ninth_connection(bus, me):
    for _ in range(8):
        await bus.connect(me)
    try:
        await bus.connect(me, allow_reconnect=False, connect_timeout=20)
        return False
    except Exception:
        return True


async def many_subscriptions(bus, me):
    reader, writer = await bus.raw(me)
    writer.write(b"".join(b"SUB tasks.%d %d\r\n" % (n, n) for n in range(257)) + b"PING\r\n")
    return b"maximum subscriptions exceeded" in (await asyncio.wait_for(reader.readline(), 20)).lower()


async def large_message(bus, me):
    reader, writer = await bus.raw(me)
    size = (64 << 10) + 1
    writer.write(b"PUB agent.%s.events %d\r\n%s\r\nPING\r\n" % (me.encode(), size, b"x" * size))
    return b"Maximum Payload Violation" in await asyncio.wait_for(reader.readline(), 20)


async def locked_out(bus, user):
    """Whether a name alone does not open."""
    for password in ("", "x"):
        reader, writer = await asyncio.open_connection("127.0.0.1", bus.port)
        await reader.readline()
        writer.write(f'CONNECT {json.dumps({"verbose": False, "user": user, "pass": password})}\r\nPING\r\n'.encode())
        answer = await asyncio.wait_for(reader.readline(), 20)
        writer.close()
        if b"Authorization Violation" not in answer:
            return False
    return True


def question(subject, me):
    """What an import of this subject is for, or a permission for it: the same for every agent."""
    plain = {"task.result": (result,), "task.result.ME": (result,), "broadcast": (hears, "broadcast", "broadcast", False),
             "agent.ME.control": (hears, "agent.ME.control", "agent.ME.control", False),
             "$JS.API.CONSUMER.MSG.NEXT.TASKS_ME.worker": (pull, False), "$JS.ACK.TASKS_ME.worker.>": (pull, True),
             "deliver.ME.own": (hears, "tasks.ME", "tasks.ME", True), "deliver.ME.all": (hears, "tasks.all", "tasks.ME.all", True),
             "deliver.ME.any": (hears, "tasks.any", "tasks.ME.any", True), "tasks.>": (hears, "tasks.ME", "tasks.ME", True),
             "_INBOX.>": (result,)}
    subject = subject.replace(me, "ME")
    if subject in plain:
        return plain[subject]
    if found := re.fullmatch(r"agent\.ME\.(events|heartbeat|ask)", subject):
        return (tell, f"agent.ME.{found[1]}", f"agent.ME.{found[1]}")
    if found := re.fullmatch(r"say\.ME\.(\w+)|channel\.(\w+)", subject):
        name = found[1] or found[2]
        return (tell, f"channel.{name}", f"channel.{name}.ME")
    if found := re.fullmatch(r"channel\.(\w+)\.\*", subject):
        return (hears, f"channel.{found[1]}.*", f"channel.{found[1]}.operator", False)
    if found := re.fullmatch(r"agent\.(agent-\d)\.requests(\.ME)?", subject):
        return (asks, found[1])
    raise AssertionError(f"{subject}: nobody knows what it is for")


async def ask(text, me, seconds, function, *rest):
    """Puts one question to a bus of its own."""
    patience.set(seconds)
    async with Bus(text) as bus:
        # agent-1 pulls its tasks; what delivers them to a subscriber is asked for too.
        for consumer in STREAMS["TASKS_agent-2"]["consumers"]:
            if consumer["name"] != "history":
                await bus.make_consumer("TASKS_agent-1", json.loads(json.dumps(consumer).replace("agent-2", "agent-1")))
        return bool(await function(bus, me, *(r.replace("ME", me) for r in rest if isinstance(r, str)),
                                   *(r for r in rest if not isinstance(r, str))))


async def loads(text):
    """Whether the server takes the configuration."""
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:
        file.write(text)
        file.flush()
        check = await asyncio.create_subprocess_exec(SERVER, "-t", "-c", file.name, stderr=subprocess.DEVNULL)
        return await check.wait() == 0


def stranger_imports(text, export):
    """The accounts with one more import, by one whom the export does not name; None when it names all."""
    kind, subject, named = re.match(r'\s*{(\w+): "([^"]+)"(?:, accounts: \[([^]]*)\])?', export).groups()
    owner = re.match(r"agent\.(agent-\d)\.requests", subject)
    strangers = [a for a in AGENTS if named and f'"{a}"' not in named and not (owner and owner[1] == a)]
    if not strangers:
        return None
    stranger, account = strangers[0], f'"{owner[1]}"' if owner else "HUB"
    line = f'      {{{kind}: {{account: {account}, subject: "{subject}"}}}}\n'
    head, tail = text.split(f'  "{stranger}" {{\n', 1)
    return head + f'  "{stranger}" {{\n' + tail.replace("    imports: [\n", "    imports: [\n" + line, 1)


def blocks(text):
    """(agent, its account's text) for each; the texts are parts of the whole."""
    return [(a, re.search(rf'^  "{a}" {{\n.*?^  }}\n', text, re.M | re.S)[0]) for a in AGENTS]


def lines_of(account):
    """What one account may do, line by line: (what is taken away, what is asked then)."""
    me, text = account
    for line in re.findall(r"^      {(?:service|stream): {account.*\n", text, re.M):
        yield line, question(re.search(r'subject: "([^"]+)"', line)[1], me)
    for verb, other in (("publish", "tasks.all"), ("subscribe", "agent.*.*")):
        whole = re.search(rf"^      {verb}: \[(.*)\]\n", text, re.M)
        # With allow_responses and no list, the server refuses everything.
        nothing = verb == "publish" and "allow_responses" in text
        yield whole[0], (result,) if nothing else (refused, verb, other)
        entries = re.findall(r'"[^"]+"', whole[1])
        for number, entry in enumerate(entries):
            rest = ", ".join(entries[:number] + entries[number + 1:])
            yield (whole[0], f"      {verb}: [{rest}]\n", f"{verb} {entry}"), asked_for(entry.strip('"'), me, verb)
    yield re.search(r'password: "[^"]+", ', text)[0], (locked_out,)
    yield "max_connections: 8, ", (ninth_connection,)
    yield "max_subscriptions: 256, ", (many_subscriptions,)
    if "max_payload: 65536" in text:
        yield ", max_payload: 65536", (large_message,)
    if found := re.search(r"^      allow_responses: .*\n", text, re.M):
        yield found[0], (asks_of,)


def asked_for(entry, me, verb):
    if verb == "subscribe" and entry == f"agent.{me}.requests.*":
        return (asks_of,)
    return question(entry, me)


async def asks_of(bus, me):
    """The other way round: whether those who may ask it get answers."""
    return await asks(bus, {"agent-3": "agent-1", "agent-1": "agent-2"}[me], me)


def mutations(text):
    """(name, the changed accounts, whose question, the question)."""
    for me, own in blocks(text):
        for gone, asked in lines_of((me, own)):
            old, new, name = gone if isinstance(gone, tuple) else (gone, "", gone.strip())
            assert own.count(old) == 1, (me, old)
            yield f"{me}: {name}", text.replace(own, own.replace(old, new)), me, asked


def untouched(text):
    """The lines of an account that no mutation changes."""
    for me, own in blocks(text):
        rest = set(own.splitlines())
        for _, changed, *_ in filter(lambda m: m[2] == me, mutations(text)):
            rest &= set(dict(blocks(changed))[me].splitlines())
        yield from (f"{me}: {line.strip()}" for line in rest if not re.match(r'\s*("agent-\d" {|(ex|im)ports: \[|\{"?service: "|[]}]+$)', line))


async def one(report, limit, name, changed, me, asked):
    async with limit:
        try:
            # Nothing is shown by a question that nobody else gets answered on the same bus either.
            other = "agent-1" if me == "agent-3" else "agent-3"
            well = await ask(changed, other, LONG, *asked) if asked[0] not in (asks, asks_of, large_message) else True
            report.check(f"without {name}: the others keep theirs", well)
            report.check(f"without {name}: it is missed", not await ask(changed, me, SHORT, *asked))
        except Exception as e:
            report.check(f"without {name}", False, repr(e))


async def tests(report):
    text = accounts()
    limit = asyncio.Semaphore(AT_ONCE)
    report.check("control: the server takes the whole", await loads(text))
    every = list(mutations(text))
    questions = {(me, asked) for _, _, me, asked in every}

    async def held(me, asked):
        name = f"control: {me}: {asked[0].__name__} {asked[1:]}"
        async with limit:
            try:
                report.check(name, await ask(text, me, LONG, *asked))
            except Exception as e:
                report.check(name, False, repr(e))

    await asyncio.gather(*(held(*q) for q in questions))
    exports = re.findall(r"^      {(?:service|stream): \".*\n", text, re.M)

    async def export(line):
        async with limit:
            report.check(f"without {line.strip()}: the server refuses who imports it", not await loads(text.replace(line, "", 1)))
            stolen = stranger_imports(text, line)
            if stolen is None:
                report.check(f"{line.strip()}: is for everybody", "accounts:" not in line or all(a in line for a in AGENTS), line)
                return
            opened = re.sub(r", accounts: \[[^]]*\]", "", line)
            report.check(f"{line.strip()}: a stranger's import is refused", not await loads(stolen))
            report.check(f"{line.strip()}: without its accounts a stranger may import it", await loads(stolen.replace(line, opened, 1)))

    await asyncio.gather(*(export(line) for line in exports))
    await asyncio.gather(*(one(report, limit, *mutation) for mutation in every))
    for part, why in SURVIVORS.items():
        report.check(f"known to change nothing: {part!r}, {why}", part in text)
    exported = {line.strip() for line in exports}
    left = [line for line in untouched(text) if line.split(": ", 1)[1] not in exported]
    report.check("no line is left out", not left, left)
