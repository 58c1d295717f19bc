"""The world outside: every address there is, in a network namespace of its own. It writes down what arrives.

usage: sink.py FILE, with the device `flockworld` in its namespace. Each line of FILE: protocol,
destination, port, payload. A line on standard input is a port: it tries to connect to it on the host.
"""

import re
import socket
import struct
import subprocess
import sys
import threading
import time

SETUP = """
ip link set lo up; ip link set flockworld up
ip addr add 192.0.2.1/24 dev flockworld; ip addr add 2001:db8::1/64 dev flockworld nodad; ip addr add fe80::1/64 dev flockworld nodad
ip route add default via 192.0.2.2; ip -6 route add default via 2001:db8::2
ip rule add iif flockworld lookup 100; ip route add local 0.0.0.0/0 dev lo table 100
ip -6 rule add iif flockworld lookup 100; ip -6 route add local ::/0 dev lo table 100
nft add table inet t; nft 'add chain inet t p { type nat hook prerouting priority -100; }'; nft 'add rule inet t p meta l4proto tcp redirect to :9000'
"""


def serve(family):
    server = socket.socket(family)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    server.bind(("", 9000))
    server.listen(200)
    kept = []
    while True:
        kept.append(server.accept()[0])
        kept[:-100] = []


def describe(packet, kind):
    """Protocol, destination, port, payload; the wire shows all of it, whatever a server makes of it."""
    if kind == 0x0800:
        head, protocol, to = (packet[0] & 15) * 4, packet[9], socket.inet_ntoa(packet[16:20])
    else:
        head, protocol, to = 40, packet[6], socket.inet_ntop(socket.AF_INET6, packet[24:40])
        if protocol == 0 or protocol == 58 and packet[40] in (131, 132, 133, 134, 135, 136, 137, 143):
            return None  # the kernel's own: neighbours, groups
    if protocol == 2:
        return None
    body = packet[head:]
    port = struct.unpack("!H", body[2:4])[0] if protocol in (6, 17, 136, 132) and len(body) >= 4 else 0
    return protocol, to, port, re.sub(rb"[^A-Za-z0-9-]", b".", body).decode()


def visit():
    for line in sys.stdin:
        def go(port):
            # Its turn may come late.
            end = time.monotonic() + 300
            while time.monotonic() < end:
                try:
                    with socket.create_connection(("192.0.2.2", port), 1) as client:
                        client.sendall(b"visitor")
                        print(f"visited {port}", flush=True)
                        return
                except OSError:
                    time.sleep(0.1)
        threading.Thread(target=go, args=(int(line),), daemon=True).start()


subprocess.run(["sh", "-c", SETUP], check=True)
for family in (socket.AF_INET, socket.AF_INET6):
    threading.Thread(target=serve, args=(family,), daemon=True).start()
threading.Thread(target=visit, daemon=True).start()
wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
wire.bind(("flockworld", 0))
wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
with open(sys.argv[1], "w", buffering=1) as log:
    print("up", flush=True)
    while True:
        packet, (_, kind, direction, *_) = wire.recvfrom(65535)
        if direction == 4 or kind not in (0x0800, 0x86dd):
            continue  # what it sent itself, and ARP
        if found := describe(packet, kind):
            print(*found, file=log)
