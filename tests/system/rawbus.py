"""A client that speaks NATS by hand, so that a test can also say what no library would send."""

import json
import pathlib
import socket

IDENTITY = pathlib.Path("/var/lib/flock/identity")


def identity(name):
    """The variables of an agent's identity, or the operator's."""
    lines = (IDENTITY / f"{name}.env").read_text().splitlines()
    return {key: value.strip('"') for key, value in (line.split("=", 1) for line in lines if "=" in line)}


class RawBus:
    """One connection with somebody's identity."""

    def __init__(self, name):
        who = identity(name)
        host, port = who["NATS_URL"].removeprefix("nats://").split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=20)
        self.file = self.socket.makefile("rb")
        self.inbox, self.count = f"_INBOX.raw{id(self)}", 0
        login = {"user": who["NATS_USER"], "pass": who["NATS_PASSWORD"], "verbose": False,
                 "pedantic": False, "headers": True, "no_responders": True}
        self.say(f"CONNECT {json.dumps(login)}")
        self.ping()

    def say(self, line, payload=None):
        data = line.encode() + b"\r\n"
        if payload is not None:
            data += payload + b"\r\n"
        self.socket.sendall(data)

    def publish(self, subject, payload, reply=""):
        payload = payload if isinstance(payload, bytes) else payload.encode()
        self.say(f"PUB {subject} {reply} {len(payload)}", payload)

    def subscribe(self, subject):
        self.count += 1
        self.say(f"SUB {subject} {self.count}")
        self.ping()

    def ping(self):
        """Returns what the server complained of until it had read all that was said."""
        self.say("PING")
        errors = []
        while (line := self.file.readline()) and line != b"PONG\r\n":
            if line.startswith(b"-ERR"):
                errors.append(line.decode().strip())
            elif line.startswith((b"MSG", b"HMSG")):
                self.file.read(int(line.split()[-1]) + 2)
            elif line == b"PING\r\n":
                self.say("PONG")
        return errors if line else errors + ["closed"]

    def last_words(self):
        """What the server says before it ends the connection. Nothing is sent: it would be reset."""
        errors = []
        while line := self.file.readline():
            errors += [line.decode().strip()] if line.startswith(b"-ERR") else []
        return errors

    def message(self, seconds=20):
        """The next message: (subject, reply, payload); None when none comes."""
        self.socket.settimeout(seconds)
        try:
            while line := self.file.readline():
                words = line.decode().split()
                if words[0] == "PING":
                    self.say("PONG")
                elif words[0] in ("MSG", "HMSG"):
                    body = self.file.read(int(words[-1]) + 2)[:-2]
                    sizes = 1 if words[0] == "MSG" else 2
                    reply = words[3] if len(words) == 4 + sizes else ""
                    return words[1], reply, body[int(words[-2]) if sizes == 2 else 0:]
        except TimeoutError:
            return None
        finally:
            self.socket.settimeout(20)

    def request(self, subject, payload, seconds=20):
        self.count += 1
        inbox = f"{self.inbox}.{self.count}"
        self.subscribe(inbox)
        self.publish(subject, payload, inbox)
        return self.message(seconds)

    def next_task(self, agent, seconds=5):
        """What flock-agent does to get a task: (subject, reply, task) or None."""
        ask = json.dumps({"batch": 1, "expires": seconds * 1_000_000_000})
        got = self.request(f"$JS.API.CONSUMER.MSG.NEXT.TASKS_{agent}.worker", ask, seconds + 2)
        return got if got and got[2] else None

    def close(self):
        self.socket.close()
