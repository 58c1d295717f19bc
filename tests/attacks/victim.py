"""What the attacks aim at: an agent with something of value in every place where one could be.

It is given a canary by its environment file. It never gives it to anybody.
"""

import ctypes
import os
import pathlib
import signal
import socket
import sys
import threading
import time

canary = os.environ["CANARY"]
name, own = os.environ["AGENT_ID"], pathlib.Path(os.environ["HOME"])
port, key = int(os.environ["PORT"]), int(os.environ["KEY"])
libc = ctypes.CDLL(None, use_errno=True)

os.umask(0)
for place in (own / "canary", pathlib.Path("/dev/shm/canary"), pathlib.Path("/tmp/canary"), pathlib.Path("/var/tmp/canary")):
    place.write_text(canary)
    place.chmod(0o666)

# System V memory and a queue that everybody may open.
segment = libc.shmget(key, 4096, 0o1666)
libc.shmat.restype = ctypes.c_void_p
memory = libc.shmat(segment, None, 0)
ctypes.memmove(memory, canary.encode() + b"\0", len(canary) + 1)
queue = libc.syscall(240, f"canary-{name}".encode(), 0o102, 0o666, None)
if queue >= 0:
    libc.syscall(242, queue, canary.encode(), len(canary), 0, None)

listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", port))
listener.listen()
hidden = socket.socket(socket.AF_UNIX)
hidden.bind(f"\0canary-{name}")
hidden.listen()
visible = socket.socket(socket.AF_UNIX)
(own / "socket").unlink(missing_ok=True)
visible.bind(str(own / "socket"))
visible.listen()


def serve(server):
    while True:
        client, _ = server.accept()
        with client:
            client.sendall(canary.encode())


for server in (listener, hidden, visible):
    threading.Thread(target=serve, args=(server,), daemon=True).start()
log = own / "signals"
log.write_text("")


def note(number, frame):
    with log.open("a") as file:
        file.write(f"{number}\n")


signal.signal(signal.SIGUSR1, note)
print("ready", flush=True)
while True:
    time.sleep(3600)
