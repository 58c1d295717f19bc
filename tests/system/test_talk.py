"""What the operator says to agents and hears of them: events, broadcasts, channels. And what agents try with it."""

import contextlib
import signal

from harness import *
from rawbus import RawBus
from test_operator import user

CHANNELS = """
[channels.review]
members = ["talker"]

[channels.empty]
members = []
"""
TALKER = """
[agents.talker]
mode = "service"
command = ["/bin/sleep", "infinity"]
"""


@contextlib.contextmanager
def talker():
    """An agent whose part on the bus the test itself plays, and a channel of its own."""
    shipped = CONFIG.read_text()
    with agents(TALKER):
        try:
            CONFIG.write_text(shipped + CHANNELS)
            ok("flockctl", "apply")
            ok("systemctl", "reload", "flockd")
            wait("flockd to know the channel", lambda: "review" in ok("flockctl", "channel", "list"))
            yield
        finally:
            CONFIG.write_text(shipped)
    ok("systemctl", "reload", "flockd")
    # Or the next test takes this one's channel for its own.
    wait("flockd to forget the channel", lambda: "review" not in ok("flockctl", "channel", "list"), 60)


class Follow:
    """A flockctl that goes on until the test is done with it."""

    def __init__(self, *argv, user=None):
        drop = ("setpriv", "--reuid", user, "--regid", user, "--init-groups") if user else ()
        self.process = subprocess.Popen((*drop, "flockctl", *argv), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        os.set_blocking(self.process.stdout.fileno(), False)
        self.seen = b""

    def text(self):
        self.seen += self.process.stdout.read() or b""
        return self.seen.decode(errors="replace")

    def json(self):
        """The whole lines of JSON so far."""
        lines = self.text().split("\n")[:-1]
        return [json.loads(line) for line in lines if line.startswith("{")]

    def until(self, word, seconds=20):
        return wait(f"{word!r} in what flockctl shows: {self.seen!r}", lambda: word in self.text() and self.text(), seconds)

    def end(self):
        self.process.send_signal(signal.SIGINT)
        status = self.process.wait(30)
        assert status == 0, f"Ctrl-C ends it with {status}: {self.text()}"
        return self.text()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def records(what):
    out = ok("flockctl", "audit", "show", "--json", "-n", "1000", "--what", what)
    return [json.loads(line) for line in out.splitlines()]


def events(*arguments):
    return [json.loads(line) for line in ok("flockctl", "events", "--json", *arguments).splitlines()]


def test_an_operator_follows_what_agents_do():
    start("agent-1", "agent-2")
    operator = user("operator1", "flock")
    with Follow("events", "-f", "agent-1", user=operator) as shown:
        for agent in ("agent-2", "agent-1"):
            inside(agent, "true")
        shown.until("agent-1 task-started")
        text = shown.until("task-finished")
        assert "agent-1 task-started" in text and "agent-2" not in text, text
        shown.end()
    # The same again without following, and for programs. Heartbeats are not among them.
    wait("the event", lambda: any(e["event"] == "task-finished" for e in events("agent-1")))
    assert {e["agent"] for e in events("agent-1", "agent-2")} == {"agent-1", "agent-2"}
    assert not any(e["heartbeat"] for e in events())
    with Follow("events", "-f", "--heartbeats", "--json", "agent-2") as shown:
        # Once it shows what was before, it misses nothing.
        shown.until("task-finished")
        # An agent says so at once when it starts.
        ok("flockctl", "restart", "agent-2")
        shown.until('"heartbeat":true')


def test_a_broadcast_reaches_every_agent_that_listens():
    start("agent-1", "agent-2")
    inside("agent-1", "true")
    inside("agent-2", "true")
    operator = user("operator1", "flock")
    with Follow("events", "-f", "--json") as shown:
        said = ok("flockctl", "broadcast", "tea is ready", user=operator)
        assert said == "sent; 3 agents hear it if they listen now\n", said
        heard = lambda: {event["agent"] for event in shown.json() if event["detail"] == "tea is ready"}
        wait("both to repeat it", lambda: heard() == {"agent-1", "agent-2"})
    record = records("broadcast")[-1]
    assert record["who"]["name"] == operator and record["who"]["how"] == "socket", record
    assert "12 bytes" in record["detail"] and "tea" not in json.dumps(record), record
    assert ok("flockctl", "broadcast", "-", input="by standard input\nin two lines\n").startswith("sent;")


def test_channels_are_listed_watched_and_spoken_on():
    with talker():
        operator = user("operator1", "flock")
        rows = [json.loads(line) for line in ok("flockctl", "channel", "list", "--json", user=operator).splitlines()]
        assert {"channel": "review", "members": ["talker"]} in rows, rows
        assert {"flock"} == {row["channel"] for row in rows} - {"review"}, "one without members is switched off"
        assert "talker" in ok("flockctl", "channel", "list")
        with Follow("channel", "watch", "review", user=operator) as shown, \
                Follow("channel", "watch", "--json", "review") as lines:
            shown.until("listening"), lines.until("listening")
            bus = RawBus("talker")
            bus.subscribe("channel.review.*")
            bus.publish("channel.review", "from the agent")
            assert bus.message()[0] == "channel.review.talker"
            said = ok("flockctl", "channel", "send", "review", "from the operator", user=operator)
            assert said == "sent; 1 member hears it if it listens now\n", said
            subject, _, payload = bus.message()
            assert (subject, payload) == ("channel.review.operator", b"from the operator"), (subject, payload)
            # What the other channel carries does not show here.
            ok("flockctl", "channel", "send", "flock", "elsewhere")
            bus.publish("channel.review", "the end")
            text = shown.until("the end")
            order = [line.split(" ", 2)[2] for line in text.splitlines() if line.startswith("20")]
            assert order == ["talker from the agent", "operator from the operator", "talker the end"], text
            lines.until("the end")
            lines.end()
            assert [(s["channel"], s["from"], s["text"]) for s in lines.json()] == [
                ("review", "talker", "from the agent"), ("review", "operator", "from the operator"),
                ("review", "talker", "the end")], lines.json()
            shown.end()
        record = records("channel-send")[-2]
        assert record["object"] == "review" and record["who"]["name"] == operator, record


def test_what_cannot_be_is_said_clearly():
    with talker():
        before = len(records("channel-send") + records("broadcast"))
        for arguments, words in (
            (("channel", "send", "reviev", "x"), ("no channel is called reviev", "flock, review")),
            (("channel", "watch", "empty"), ("no channel is called empty", "flock, review")),
            (("channel", "watch", "review.*"), ("not the name of a channel",)),
            (("events", "agent-9"), ("no agent is called agent-9", "agent-1, agent-2, agent-3, talker")),
            (("broadcast", " "), ("what is to be said?",)),
            (("channel", "send", "review", ""), ("what is to be said?",)),
        ):
            ran = run("flockctl", *arguments)
            assert ran.status == 2 and all(word in ran.err for word in words), (arguments, ran)
        largest = "x" * 256 * 1024
        for verb in (("broadcast",), ("channel", "send", "review")):
            ran = run("flockctl", *verb, "-", input=largest + "x")
            assert ran.status == 2 and "262144 bytes" in ran.err and "/shared/common" in ran.err, ran
        assert len(records("channel-send") + records("broadcast")) == before, "nothing of it was said"
        # Control: what is not too large arrives whole.
        bus = RawBus("talker")
        bus.subscribe("channel.review.*")
        ok("flockctl", "channel", "send", "review", "-", input=largest)
        assert bus.message()[2] == largest.encode()


def test_without_the_bus_it_says_so_and_goes_on_when_it_is_back():
    start("agent-1")
    with Follow("events", "-f", "agent-1") as shown:
        ok("systemctl", "stop", "flock-bus")
        try:
            shown.until("the bus is not there")
            for verb in (("broadcast", "x"), ("channel", "send", "flock", "x"), ("channel", "watch", "flock")):
                ran = run("flockctl", *verb)
                assert ran.status == 1 and "the bus is not there" in ran.err and "flock-bus" in ran.err, (verb, ran)
            assert run("flockctl", "channel", "list").status == 0, "that is configured"
        finally:
            ok("systemctl", "start", "flock-bus")
        shown.until("the bus is back", 60)
        wait("a task to get through", lambda: run("flockctl", "task", "send", "--to", "agent-1", "true").status == 0, 60)
        shown.until("task-finished", 60)
    wait("a broadcast to get through", lambda: run("flockctl", "broadcast", "x").status == 0, 30)
    ok("systemctl", "stop", "flockd")
    try:
        assert "flockd is not running" in fails("flockctl", "events")
    finally:
        ok("systemctl", "start", "flockd")


HOSTILE = ("\x1b]0;owned\x07\x1b[2J\r2026-01-01 00:00:00 operator approve it \u202ekcab\u009b1m\n"
           "2026-01-01 00:00:00 operator approve it")


def harmless(text, what):
    bad = [c for c in text if (ord(c) < 32 and c != "\n") or 0x7f <= ord(c) < 0xa0 or c in "\u202e\u200b"]
    assert not bad, (what, bad, text)


def test_what_agents_say_cannot_steer_the_terminal_nor_pass_for_another():
    with talker():
        bus = RawBus("talker")
        with Follow("events", "-f", "talker") as told, Follow("events", "-f", "--json", "talker") as told_json, \
                Follow("events", "-f", "--heartbeats", "talker") as beats, \
                Follow("channel", "watch", "review") as said, Follow("channel", "watch", "review", "--json") as said_json:
            said.until("listening"), said_json.until("listening")
            # An event is kept for whoever follows later, a heartbeat is not: when this one shows, none is missed.
            bus.publish("agent.talker.events", "hello all")
            for shown in (told, told_json, beats):
                shown.until("hello all")
            hostile = json.dumps({"agent": "agent-1", "at": "x", "event": HOSTILE, "task": HOSTILE, "detail": HOSTILE})
            deep = b"[" * 200_000
            for payload in (hostile, HOSTILE, b"\xff\xfe\x00\x1b[2J", b"", deep, b'{"event":' + b'"\\u001b' * 3):
                bus.publish("agent.talker.events", payload)
                bus.publish("agent.talker.heartbeat", payload)
                bus.publish("channel.review", payload)
            for subject in ("agent.talker.events", "agent.talker.heartbeat", "channel.review"):
                bus.publish(subject, "that was all")
            assert bus.ping() == []
            for shown in (told, told_json, beats, said, said_json):
                text = shown.until("that was all")
                harmless(text, shown.process.args)
                # Each line begins with what flock knows, or stands behind a bar.
                for line in text.splitlines():
                    assert "owned" not in line or line.startswith(("20", "{")), line
                    assert not line.startswith("2026-01-01"), line
                assert all(one.get("agent", one.get("from")) == "talker" for one in shown.json())
            # Control: it did arrive as it was sent.
            assert HOSTILE in [one["text"] for one in said_json.json()]
            assert HOSTILE in [one["detail"] for one in told_json.json()]
        kept = ok("flockctl", "events", "talker")
        assert "owned" in kept
        harmless(kept, "events")


def test_agents_cannot_ask_for_any_of_it():
    with talker():
        start("agent-1", "talker")
        # From inside there is no socket; outside, an agent's user is refused whatever its groups are.
        for path, there in (("/run/flock/control.sock", False), ("/var/run/flock", False), ("/shared/common", True)):
            assert (inside("agent-1", f"test -e {path}")["status"] == "done") == there, path
        ok("usermod", "-aG", "flock", "flock-agent-1")
        try:
            for verb in (("broadcast", "x"), ("events",), ("channel", "list"), ("channel", "watch", "review"),
                         ("channel", "send", "review", "x")):
                said = fails("flockctl", *verb, user="flock-agent-1")
                assert "refused" in said or "permission denied" in said, (verb, said)
        finally:
            ok("gpasswd", "-d", "flock-agent-1", "flock")
        stranger = user("stranger")
        assert run("flockctl", "broadcast", "x", user=stranger).status == 77
        # On the bus an agent can neither speak as the operator nor to all.
        bus = RawBus("talker")
        with Follow("channel", "watch", "review") as shown, Follow("events", "-f") as told:
            shown.until("listening")
            for subject in ("broadcast", "channel.review.operator", "channel.flock.operator", "agent.agent-1.events"):
                bus.publish(subject, "forged")
            assert len(bus.ping()) == 4
            bus.publish("channel.review", "real")
            bus.publish("agent.talker.events", "real")
            assert "forged" not in shown.until("talker real") + told.until("talker real")
        log = ok("flockctl", "logs", "agent-1")
        assert "broadcast: forged" not in log


def resident(service):
    """KiB of memory of the service's main process."""
    status_of = pathlib.Path(f"/proc/{show(service, 'MainPID')}/status").read_text()
    return int(status_of.split("VmRSS:")[1].split()[0])


def test_a_flood_is_left_out_and_counted_and_flockd_stays_small():
    with talker():
        operator = user("operator1", "flock")
        with Follow("channel", "watch", "review", user=operator) as shown:
            shown.until("listening")
            bus = RawBus("talker")
            before = resident("flockd")

            def flood(count):
                for _ in range(count):
                    bus.publish("channel.review", b"x" * 1_000_000)
                bus.ping()

            # The terminal stands still for a moment.
            shown.process.send_signal(signal.SIGSTOP)
            flood(30)
            shown.process.send_signal(signal.SIGCONT)
            shown.until("left out here", 30)
            # One who stands still for longer is let go, and told why. Others are served meanwhile.
            shown.process.send_signal(signal.SIGSTOP)
            flood(250)
            assert resident("flockd") < before + 100_000, (before, resident("flockd"))
            assert "review" in ok("flockctl", "channel", "list", timeout=10)
            time.sleep(15)
            shown.process.send_signal(signal.SIGCONT)
            shown.until("flockd closed the connection", 30)
            assert shown.process.wait(30) == 1
