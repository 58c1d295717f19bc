"""What runs as an agent where neighbours are measured: neighbour.py pinger|worker|ATTACK.

The pinger notes how long each round trip to the bus takes. The worker takes as much of the processor as it gets. The
rest are attackers: each goes on until it is stopped.
"""

import json
import os
import socket
import struct
import sys
import threading
import time

PAUSE = 0.005
HOME = os.environ["HOME"]


def pinger():
    """Writes pairs of doubles: when, on the monotonic clock, and how long."""
    host, port = os.environ["NATS_URL"].removeprefix("nats://").split(":")
    bus = socket.create_connection((host, int(port)))
    bus.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    answers = bus.makefile("rb")
    login = {"user": os.environ["NATS_USER"], "pass": os.environ["NATS_PASSWORD"], "verbose": False}
    bus.sendall(b"CONNECT " + json.dumps(login).encode() + b"\r\n")
    notes = []

    def keep():
        # By another thread: a disk that is slow is not what is measured.
        with open(f"{HOME}/trips", "wb", buffering=0) as file:
            while True:
                time.sleep(0.5)
                had = list(notes)
                del notes[:len(had)]
                file.write(b"".join(had))

    threading.Thread(target=keep, daemon=True).start()
    while True:
        began = time.monotonic()
        bus.sendall(b"PING\r\n")
        while (line := answers.readline()) != b"PONG\r\n":
            if not line or line.startswith(b"-ERR"):
                sys.exit(f"the bus: {line}")
            if line == b"PING\r\n":
                bus.sendall(b"PONG\r\n")
        notes.append(struct.pack("dd", began, time.monotonic() - began))
        time.sleep(PAUSE)


def worker():
    while True:
        pass


def nothing():
    """The control."""
    while True:
        time.sleep(60)


def bomb():
    while True:
        try:
            os.fork()
        except OSError:
            pass


def memory():
    """Over its limit, again and again; the one that is killed is a child."""
    while True:
        if os.fork() == 0:
            held = []
            while True:
                held.append(bytearray(b"x") * (1 << 20))
        os.wait()


def processor():
    for _ in range(7):
        if os.fork() == 0:
            worker()
    worker()


def files():
    """As many as it may, in as many processes as it may, closed and opened again."""
    for _ in range(15):
        if os.fork() == 0:
            break
    while True:
        held = []
        try:
            while True:
                held.append(os.open("/usr/bin/python3", os.O_RDONLY))
        except OSError:
            for file in held:
                os.close(file)


def fill(path, sync):
    block = b"x" * (1 << 20)
    while True:
        try:
            with open(path, "wb", buffering=0) as file:
                while file.write(block):
                    if sync:
                        os.fsync(file.fileno())
        except OSError:
            pass
        try:
            os.unlink(path)
        except OSError:
            pass


def tmpfs():
    fill("/tmp/full", False)


def disk():
    """Each of two processes forces what it writes to the disk."""
    fill(f"{HOME}/full-{'a' if os.fork() else 'b'}", True)


def log():
    line = b"a line of the log that says nothing at all, again and again, as fast as it can be said\n" * 16
    while True:
        os.write(1, line)


def flood():
    """Messages to the bus, as fast as it takes them."""
    host, port = os.environ["NATS_URL"].removeprefix("nats://").split(":")
    login = {"user": os.environ["NATS_USER"], "pass": os.environ["NATS_PASSWORD"], "verbose": False}
    message = b"PUB agent.%s.events 512\r\n%s\r\n" % (os.environ["AGENT_ID"].encode(), b"x" * 512)
    while True:
        try:
            bus = socket.create_connection((host, int(port)))
            bus.sendall(b"CONNECT " + json.dumps(login).encode() + b"\r\n")
            while True:
                bus.sendall(message * 64)
        except OSError:
            time.sleep(0.1)


ATTACKS = (nothing, bomb, memory, processor, files, tmpfs, disk, log, flood)

if __name__ == "__main__":
    globals()[sys.argv[1]]()
