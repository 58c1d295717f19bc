"""A nats-server with flock's own configuration, taken from tests/golden/bus, and clients for it."""
import asyncio, itertools, json, os, re, shutil, signal, socket, subprocess, tempfile
from pathlib import Path

import nats

HERE = Path(__file__).resolve().parent
GOLDEN = HERE.parent / "golden" / "bus"
SERVER = os.environ.get("FLOCK_NATS_SERVER", "/usr/sbin/nats-server")
USERS = {"operator": "0" * 64, "agent-1": "1" * 64, "agent-2": "2" * 64, "agent-3": "3" * 64}
STREAMS = json.loads((GOLDEN / "streams.json").read_text())


# Below those that the kernel gives to clients: one that was free a moment ago stays so.
PORTS = itertools.count(20000)


def free_port():
    """Another one each time."""
    for port in PORTS:
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


def server_version():
    out = subprocess.run([SERVER, "--version"], capture_output=True, text=True).stdout
    return tuple(int(n) for n in re.search(r"v(\d+)\.(\d+)\.(\d+)", out).groups())


def accounts(without=()):
    """flock's accounts, less some agents."""
    text = (GOLDEN / "accounts.conf").read_text()
    for user in without:
        text = re.sub(rf'^      {{s.*accounts: \["{user}"\].*}}\n', "", text, flags=re.M)
        text = re.sub(rf'^      {{service: {{account: "{user}",.*\n', "", text, flags=re.M)
        text = re.sub(rf', "{user}"(?=[^\n]*\]}}$)', "", text, flags=re.M)
        text = re.sub(rf'^  "{user}" {{\n.*?^  }}\n', "", text, flags=re.M | re.S)
    return text


def without_permissions(text):
    """The accounts alone, to see that they hold without the second layer."""
    text, count = re.subn(r", permissions: {\n.*?\n    }}", "}", text, flags=re.S)
    assert count == 3, count
    return text


def naive():
    """What one would write first: everybody in one account. Each attack must succeed here."""
    users = "\n".join(f'{{user: "{u}", password: "{p}"}}' for u, p in USERS.items())
    return f"accounts {{ HUB {{ jetstream: enabled, users: [\n{users}\n] }} }}\n"


class Bus:
    """`async with Bus() as bus`: server, streams, and connections that close with it."""

    def __init__(self, text=None, shared_results=False):
        self.text, self.shared_results = text or accounts(), shared_results
        self.dir = Path(tempfile.mkdtemp(prefix="flock-bus-"))
        self.port, self.process, self.clients = free_port(), None, []
        self.url = f"nats://127.0.0.1:{self.port}"

    def write(self, text):
        (self.dir / "accounts.conf").write_text(text)

    def start(self):
        conf = (GOLDEN / "nats-server.conf").read_text()
        conf = conf.replace(":14222", f":{self.port}").replace("/var/lib/flock/bus/jetstream", f"{self.dir}/js")
        (self.dir / "nats-server.conf").write_text(conf)
        log = open(self.dir / "log", "a")
        self.process = subprocess.Popen([SERVER, "-c", str(self.dir / "nats-server.conf")], stderr=log)
        log.close()

    async def reload(self, text):
        self.write(text)
        before = (self.dir / "log").read_text().count("Reloaded server configuration")
        self.process.send_signal(signal.SIGHUP)
        await until(lambda: (self.dir / "log").read_text().count("Reloaded server configuration") > before, 30)

    async def crash(self):
        """kill -9 and a new process on the same files; returns when the hub is back."""
        self.hub.trouble.clear()
        self.process.kill()
        self.process.wait()
        self.start()
        await until(lambda: "reconnected" in self.hub.trouble, 60, "the hub does not come back")

    async def __aenter__(self):
        self.write(self.text)
        self.start()
        self.hub = None
        for _ in range(400):
            try:
                self.hub = await self.connect("operator")
                break
            except Exception:
                await asyncio.sleep(0.05)
        assert self.hub, (self.dir / "log").read_text()
        self.hub.trouble.clear()
        await self.make_streams()
        await self.hub.subscribe("history", cb=self.written_down)
        return self

    async def written_down(self, message):
        """flockd acknowledges what its history has; a stream keeps a task until then."""
        await self.hub.publish(message.reply, b"+ACK")

    async def __aexit__(self, *_):
        for client in self.clients:
            try:
                await asyncio.wait_for(client.close(), 3)
            except Exception:
                pass
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.dir, ignore_errors=True)

    async def connect(self, user, password=None, **options):
        """A connection that keeps what the server said against it in `.trouble`."""
        trouble = []

        async def error(e):
            trouble.append(str(e))

        async def lost():
            trouble.append("disconnected")

        async def back():
            trouble.append("reconnected")

        options = {"reconnect_time_wait": 0.1, "max_reconnect_attempts": 600, **options}
        client = await nats.connect(self.url, user=user, password=password or USERS[user], error_cb=error,
                                    disconnected_cb=lost, reconnected_cb=back, **options)
        client.trouble = trouble
        once = client.flush

        async def flush():
            # nats-py's ping overtakes what it has still to write; a second one does not.
            await once()
            await once()

        client.flush = flush
        self.clients.append(client)
        return client

    async def raw(self, user):
        """A connection without a client, which takes no liberties: (reader, writer)."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        await reader.readline()
        hello = json.dumps({"verbose": False, "headers": True, "user": user, "pass": USERS[user]})
        writer.write(f"CONNECT {hello}\r\nPING\r\n".encode())
        # The server may announce itself anew before it answers.
        while (line := await asyncio.wait_for(reader.readline(), 20)).strip() != b"PONG":
            assert line.startswith(b"INFO"), line
        return reader, writer

    async def api(self, what, body=None, client=None):
        answer = await (client or self.hub).request(f"$JS.API.{what}", json.dumps(body or {}).encode(), timeout=5)
        return json.loads(answer.data)

    async def make_streams(self):
        for name, stream in STREAMS.items():
            if self.shared_results and name.startswith("RESULTS_"):
                continue
            await self.must(f"STREAM.CREATE.{name}", stream["config"])
            for consumer in stream["consumers"]:
                await self.make_consumer(name, consumer)
        if self.shared_results:
            config = {"name": "RESULTS", "subjects": ["task.result.*"], "allow_rollup_hdrs": True,
                      "retention": "limits", "storage": "file", "num_replicas": 1}
            await self.must("STREAM.CREATE.RESULTS", config)

    async def make_consumer(self, stream, config):
        await self.must(f"CONSUMER.CREATE.{stream}.{config['name']}", {"stream_name": stream, "config": config})

    async def must(self, what, body):
        answer = await self.api(what, body)
        assert "error" not in answer, (what, answer)
        return answer

    async def send(self, subject, task):
        """Sends as the operator and returns when it is stored."""
        payload = task if isinstance(task, bytes) else json.dumps(task).encode()
        answer = json.loads((await self.hub.request(subject, payload, timeout=5)).data)
        assert "error" not in answer, answer
        return answer

    async def pull(self, client, agent, seconds=2.0):
        """Takes one task as a pulling agent does. Not `request`: nats-py finds the waiter by the answer's
        subject, and a task keeps its stream's subject."""
        inbox = client.new_inbox()
        answers = await client.subscribe(inbox)
        ask = json.dumps({"batch": 1, "expires": int(seconds * 1e9)}).encode()
        await client.publish(f"$JS.API.CONSUMER.MSG.NEXT.TASKS_{agent}.worker", ask, reply=inbox)
        try:
            message = await answers.next_msg(timeout=seconds + 1)
        finally:
            await answers.unsubscribe()
        return None if message.headers and message.headers.get("Status") else message

    async def listen(self, *subjects):
        """What the hub hears from now on: a list that grows."""
        heard = []

        async def take(m):
            heard.append(m)

        for subject in subjects:
            await self.hub.subscribe(subject, cb=take)
        await self.hub.flush()
        return heard


def task(ident, text="", to="agent-1", **more):
    return {"id": ident, "to": to, "text": text, "created": "2026-01-01T00:00:00Z", **more}


class TooLate(AssertionError):
    """What was waited for did not come in time: a machine that is too busy, perhaps."""


async def until(condition, seconds=10.0, what="it did not happen"):
    """Waits until `condition()` is true and returns its value."""
    end = asyncio.get_running_loop().time() + seconds
    while True:
        value = condition()
        if value:
            return value
        if asyncio.get_running_loop().time() > end:
            raise TooLate(what)
        await asyncio.sleep(0.02)
