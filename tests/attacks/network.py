"""The network: where packets of an agent arrive. The sink (`sink.py`) says it, not the attacker."""

import os
import socket
import struct

from inside import call, first, tried
from table import row

FENCE = ["nft", "IPAddressDeny", "Slice"]


def arrived(lab, tag, said):
    return lab.arrived(tag)


def tcp(at, address, family=socket.AF_INET, prepare=None, port=None):
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(3)
        if prepare:
            prepare(client)
        client.connect((address, port or at.port))
        client.sendall(at.tag.encode())


def udp(at, address, family=socket.AF_INET, prepare=None, port=None):
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(2)
        if prepare:
            prepare(client)
        client.sendto(at.tag.encode(), (address, port or at.port))


def net(ident, title, layers, *tries, says="EHOSTUNREACH EPERM EACCES ETIMEDOUT ENETUNREACH", seen=arrived, **more):
    row(ident, title, layers, says=says, seen=seen, **more)(lambda at: first(*(lambda t=t: t(at) for t in tries)))


net("NW-01", "TCP to the world", FENCE, lambda at: tcp(at, "198.51.100.7"), lambda at: tcp(at, "192.0.2.1"))
net("NW-02", "datagrams to the world, connected or not", FENCE, lambda at: udp(at, "198.51.100.7"),
    lambda at: udp(at, "192.0.2.1", prepare=lambda s: s.connect(("192.0.2.1", at.port))))
net("NW-03", "IPv6: global, unique local, link-local, IPv4 in IPv6", [*FENCE, "RestrictAddressFamilies"],
    lambda at: tcp(at, "2001:db8:7::1", socket.AF_INET6), lambda at: udp(at, "2001:db8::1", socket.AF_INET6), lambda at: udp(at, "fd00::7", socket.AF_INET6),
    lambda at: udp(at, "fe80::1%flocksink", socket.AF_INET6), lambda at: udp(at, "::ffff:198.51.100.7", socket.AF_INET6),
    lambda at: udp(at, "64:ff9b::c633:6407", socket.AF_INET6), says="EAFNOSUPPORT")


def echo(at, family, protocol, kind, address):
    # An echo request with the tag; the kernel fills in the rest for a ping socket.
    with socket.socket(family, kind, protocol) as ping:
        body = struct.pack("!BBHHH", 8 if family == socket.AF_INET else 128, 0, 0, 1, 1) + at.tag.encode()
        if kind == socket.SOCK_RAW:
            total = sum(struct.unpack(f"!{len(body + body[:len(body) % 2]) // 2}H", body + b"\0" * (len(body) % 2)))
            total = (total & 0xffff) + (total >> 16)
            body = body[:2] + struct.pack("!H", ~total & 0xffff) + body[4:]
        ping.sendto(body, (address, 0))


net("NW-04", "echo requests, by ping sockets and raw ones", [*FENCE], lambda at: echo(at, socket.AF_INET, 1, socket.SOCK_DGRAM, "198.51.100.7"),
    lambda at: echo(at, socket.AF_INET, 1, socket.SOCK_RAW, "198.51.100.7"), lambda at: echo(at, socket.AF_INET6, 58, socket.SOCK_DGRAM, "2001:db8::1"))


def frame(at):
    # A whole frame on the wire, below every rule for IP.
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0x0300) as wire:
        body = at.tag.encode()
        datagram = struct.pack("!HHHH", 9, at.port, 8 + len(body), 0) + body
        head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(datagram), 1, 0, 64, 17, 0, socket.inet_aton("192.0.2.2"), socket.inet_aton("198.51.100.7"))
        total = sum(struct.unpack("!10H", head))
        total = (total & 0xffff) + (total >> 16)
        head = head[:10] + struct.pack("!H", ~total & 0xffff) + head[12:]
        wire.sendto(head + datagram, ("flocksink", 0x0800, 0, 0, b"\xff" * 6))


net("NW-06", "frames past the rules (AF_PACKET)", ["RestrictAddressFamilies", "User"], frame, says="EAFNOSUPPORT")


def raw(at):
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, 253) as wire:
        wire.sendto(at.tag.encode(), ("198.51.100.7", 0))


net("NW-06b", "packets of a protocol of its own (raw IP)", ["IPAddressDeny", "Slice", "User"], raw)
net("NW-07", "the host's own other addresses", FENCE, *(lambda at, a=a: tcp(at, a, port=14223) for a in ("192.0.2.2", "127.0.0.2")),
    says="EHOSTUNREACH ECONNREFUSED")
METADATA = ("169.254.169.254", "168.63.129.16", "100.100.100.200", "192.0.0.192")
net("NW-08", "the addresses where clouds keep credentials", FENCE, *(lambda at, a=a: tcp(at, a) for a in METADATA), *(lambda at, a=a: udp(at, a, port=80) for a in METADATA))
net("NW-09", "services on loopback", ["nft"], *(lambda at, p=p: tcp(at, "127.0.0.1", port=p) for p in (53, 8222, 9999)),
    *(lambda at, p=p: udp(at, "127.0.0.1", port=p) for p in (53, 9999)), says="ECONNREFUSED EPERM")


def loud(client):
    client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)


net("NW-11", "multicast and broadcast: mDNS, SSDP, NTP, LLMNR", FENCE, *(lambda at, a=a: udp(at, a, prepare=loud) for a in
    ("224.0.0.251", "239.255.255.250", "255.255.255.255", "192.0.2.255", "224.0.1.1")))


def question(at, address, port=53):
    # A secret in a name that is asked for.
    labels = at.tag.encode()
    packet = struct.pack("!HHHHHH", 7, 0x100, 1, 0, 0, 0) + bytes([len(labels)]) + labels + b"\4test\0" + struct.pack("!HH", 1, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(packet, (address, port))


net("NW-12", "names as a way out: every server of /etc/resolv.conf, the stub, a public server", FENCE,
    *(lambda at, a=a: question(at, a) for a in ("198.51.100.53", "192.0.2.1", "8.8.8.8")), lambda at: tcp(at, "8.8.8.8", port=853))
def ask_library(at):
    try:
        return f"GOT {socket.getaddrinfo(f'{at.tag}.example.test', 80)}"
    except socket.gaierror:
        return "EAI"


net("NW-12b", "have the C library ask for a name", [*FENCE, "view"], lambda at: ask_library(at), says="EAI")


@row("NW-14", "connect to a port that another agent listens on", ["nft"], says="ECONNREFUSED", seen=lambda lab, tag, said: lab.has_canary(said))
def _(at):
    with socket.create_connection(("127.0.0.1", at.victim["port"]), 3) as client:
        return "GOT " + client.recv(200).decode()


net("NW-14b", "send another agent datagrams on loopback", ["nft"], lambda at: udp(at, "127.0.0.1", port=9998), says="EPERM")
net("NW-19", "options that change the way: mark, device, free bind, source route, priority", FENCE,
    lambda at: udp(at, "198.51.100.7", prepare=lambda s: s.setsockopt(socket.SOL_SOCKET, 36, 1)),
    lambda at: udp(at, "198.51.100.7", prepare=lambda s: s.setsockopt(socket.SOL_SOCKET, 25, b"flocksink\0")),
    lambda at: udp(at, "198.51.100.7", prepare=lambda s: (s.setsockopt(0, 15, 1), s.bind(("127.0.0.1", 0)))),
    lambda at: udp(at, "198.51.100.7", prepare=lambda s: s.setsockopt(0, 4, b"\x83\x07\x04\xc0\x00\x02\x01\x00")),
    lambda at: udp(at, "198.51.100.7", prepare=lambda s: s.setsockopt(socket.SOL_SOCKET, 12, 6)), says="EPERM EINVAL")


def fast(at):
    with socket.socket() as client:
        client.settimeout(2)
        client.sendto(at.tag.encode(), 0x20000000, ("192.0.2.1", at.port))


net("NW-33", "data with the first packet (TCP fast open), multipath TCP, SCTP, UDP-Lite", FENCE, fast,
    *(lambda at, k=k, p=p: _other(at, k, p) for k, p in ((socket.SOCK_STREAM, 262), (socket.SOCK_STREAM, 132), (socket.SOCK_DGRAM, 136), (socket.SOCK_SEQPACKET, 132))))


def _other(at, kind, protocol):
    with socket.socket(socket.AF_INET, kind, protocol) as client:
        client.settimeout(2)
        client.connect(("192.0.2.1", at.port))
        client.send(at.tag.encode())


@row("NW-13", "listen, and be reached from outside", ["nft"], says="TIMEOUT", heavy=True, seen=lambda lab, tag, said: lab.visited(tag, said))
def _(at):
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("0.0.0.0", at.port))
        server.listen()
        server.settimeout(5)
        try:
            return "GOT " + server.accept()[0].recv(100).decode()
        except TimeoutError:
            return "TIMEOUT"
