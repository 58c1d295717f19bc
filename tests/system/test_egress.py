"""Where agents may connect to: two independent walls, each tested with the other one removed.

Connections are judged by the listener, never by the one who connects.
"""

import contextlib
import pathlib
import socket
import threading

from harness import *
from test_world import table

SINK = "192.0.2.1"
PLAIN = "plain"


@contextlib.contextmanager
def sink(address=SINK, port=8080, family=socket.AF_INET, kind=socket.SOCK_STREAM):
    """A server on an address of this host that is not loopback; gives the list of what arrived."""
    if address == SINK and SINK not in ok("ip", "addr"):
        ok("ip", "addr", "add", f"{SINK}/32", "dev", "lo")
        ok("ip", "addr", "add", "2001:db8::1/128", "dev", "lo", "nodad")
        # The kernel makes it a moment later.
        wait("its route", lambda: "2001:db8::1" in ok("ip", "-6", "route", "show", "table", "local"))
    arrived, server = [], socket.socket(family, kind)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((address, port))
    server.settimeout(0.1)
    if kind == socket.SOCK_STREAM:
        server.listen()
    done = threading.Event()

    def serve():
        while not done.is_set():
            with contextlib.suppress(TimeoutError):
                if kind == socket.SOCK_STREAM:
                    client, _ = server.accept()
                    client.settimeout(2)
                    with client, contextlib.suppress(OSError):
                        arrived.append(client.recv(100).decode())
                else:
                    arrived.append(server.recv(100).decode())

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield arrived
    finally:
        done.set()
        thread.join()
        server.close()


def send(word, address=SINK, port=8080, family="AF_INET", kind="SOCK_STREAM"):
    return f"""
import socket
s = socket.socket(socket.{family}, socket.{kind}); s.settimeout(3)
try:
    s.connect(({address!r}, {port})); s.send({word!r}.encode()); print("SENT")
except OSError as error:
    print(error.errno, error)
"""


def plain(code):
    if run("id", PLAIN).status:
        ok("useradd", "--create-home", PLAIN)
    return run("python3", "-c", code, user=PLAIN).out


def agent(code, id="agent-1"):
    start(id)
    return inside(id, f"python3 - <<'PYTHON'\n{code}\nPYTHON")["output"]


def got(arrived, word):
    """Whether it came, a moment after it was sent; for what must not."""
    time.sleep(1)
    return word in arrived


def comes(arrived, word):
    """Whether it comes, for what must."""
    end = time.monotonic() + 20
    while word not in arrived and time.monotonic() < end:
        time.sleep(0.05)
    return word in arrived


def test_tcp_and_udp_to_the_world():
    for kind, number in (("SOCK_STREAM", socket.SOCK_STREAM), ("SOCK_DGRAM", socket.SOCK_DGRAM)):
        with sink(kind=number) as arrived:
            plain(send("control", kind=kind))
            assert comes(arrived, "control"), "void"
            said = agent(send("attack", kind=kind))
            assert not got(arrived, "attack"), said
            assert "SENT" not in said or kind == "SOCK_DGRAM", said


def test_the_denial_is_legible_and_no_endless_wait():
    """An ICMP refusal takes TCP a second to believe; the attack's own timeout is 2 s."""
    start("agent-1")
    with sink():
        result = inside("agent-1", f"python3 - <<'PYTHON'\nimport time; t=time.monotonic()\n{send('x')}\nprint(time.monotonic()-t < 4)\nPYTHON")
    assert "No route to host" in result["output"] or "Permission denied" in result["output"], result
    assert "True" in result["output"], result


def test_other_ports_of_loopback_and_other_agents():
    with sink("127.0.0.1", 9999) as arrived:
        plain(send("control", "127.0.0.1", 9999))
        assert comes(arrived, "control"), "void"
        agent(send("attack", "127.0.0.1", 9999))
        assert not got(arrived, "attack")
    start("agent-1", "agent-2")
    listen = """
import socket
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(("127.0.0.1", 7777)); s.listen(); s.settimeout(15)
try: print("ACCEPTED", s.accept()[0].recv(9))
except OSError as error: print("nobody", error)
"""
    answers = []
    listener = threading.Thread(target=lambda: answers.append(agent(listen, "agent-2")))
    listener.start()
    wait("agent-2 to listen", lambda: ":7777" in ok("ss", "-Hltn"))
    said = agent(send("attack", "127.0.0.1", 7777))
    listener.join()
    assert "nobody" in answers[0] and "SENT" not in said, (answers, said)


def test_each_wall_holds_alone():
    """nftables without IPAddressDeny=, IPAddressDeny= without nftables, and neither."""
    start("agent-1")
    ok("systemctl", "stop", "flockd")  # it would put the table back
    bare = ["systemd-run", "--wait", "--pipe", "-q", "-p", "User=flock-agent-1"]
    deny = ["-p", "IPAddressDeny=any", "-p", "IPAddressAllow=127.0.0.1/32"]
    try:
        with sink() as arrived:
            run(*bare, "python3", "-c", send("nft-alone"))
            assert not got(arrived, "nft-alone")
            ok("nft", "delete", "table", "inet", "flock")
            run(*bare, *deny, "python3", "-c", send("bpf-alone"))
            assert not got(arrived, "bpf-alone")
            run(*bare, "python3", "-c", send("neither"))
            assert comes(arrived, "neither"), "void: it fails for another reason"
    finally:
        ok("systemctl", "reload", "flock-net")
        ok("systemctl", "start", "flockd")


def test_a_flush_is_repaired_within_seconds():
    start("agent-1")
    # Without what the kernel counts of who speaks to the bus: that begins anew.
    before = table()
    assert before, "void: there is no table"
    ok("nft", "flush", "ruleset")
    wait("the table to be back", lambda: table() == before)
    ok("nft", "flush", "chain", "inet", "flock", "agents") if "chain agents" in before else None
    wait("the rules to be back", lambda: table() == before)
    wait("flockd's word", lambda: "flock" in journal("-u", "flockd", "-n", "20"))


def test_a_launch_puts_the_table_back_first():
    ok("systemctl", "stop", "flockd")
    try:
        ok("nft", "flush", "ruleset")
        start("agent-1")
        assert "skuid" in ok("nft", "list", "table", "inet", "flock")
    finally:
        ok("systemctl", "start", "flockd")


def test_a_launch_is_refused_without_nft():
    tool = pathlib.Path("/usr/sbin/nft")
    ok("systemctl", "stop", "flockd")
    ok("nft", "flush", "ruleset")
    tool.rename("/usr/sbin/nft.away")
    try:
        fails("systemctl", "start", "flock@agent-1")
        ok("journalctl", "--sync")
        assert "nft" in journal("-u", "flock@agent-1", "-n", "10")
        assert_nothing_left("agent-1")
    finally:
        pathlib.Path("/usr/sbin/nft.away").rename(tool)
        ok("systemctl", "reload", "flock-net")
        ok("systemctl", "start", "flockd")


def test_a_named_exception_opens_that_and_nothing_else():
    with agents(f'[agents.open]\negress = ["{SINK}:8080"]\n'):
        with sink() as arrived, sink(port=8081) as other:
            agent(send("allowed"), "open")
            assert comes(arrived, "allowed")
            agent(send("port", port=8081), "open")
            assert not got(other, "port")
            agent(send("neighbour"), "agent-1")
            assert not got(arrived, "neighbour")
        ok("systemctl", "stop", "flock@open")
        assert SINK not in ok("nft", "list", "table", "inet", "flock")


def test_a_named_host_is_found_without_a_name_server():
    hosts = pathlib.Path("/etc/hosts")
    before = hosts.read_text()
    hosts.write_text(before + f"{SINK} api.example.com\n")
    try:
        with agents('[agents.open]\negress = ["api.example.com:8080"]\n'), sink() as arrived:
            agent(send("by-name", "api.example.com"), "open")
            assert comes(arrived, "by-name")
    finally:
        hosts.write_text(before)


def test_unrestricted_is_an_opt_in_with_a_warning():
    with agents('[agents.free]\negress = "unrestricted"\n'), sink() as arrived:
        agent(send("free"), "free")
        assert comes(arrived, "free")
        ok("journalctl", "--sync")
        assert "unrestricted" in journal("-u", "flock@free")
        assert "unrestricted" in run("flockctl", "status").out


def test_ipv6():
    with agents(f'[agents.six]\negress = ["[2001:db8::1]:8080"]\n'):
        with sink():  # makes the addresses
            pass
        with sink("2001:db8::1", 8080, socket.AF_INET6) as arrived, \
                sink("2001:db8::1", 8081, socket.AF_INET6) as other:
            plain(send("control", "2001:db8::1", 8081, "AF_INET6"))
            assert comes(other, "control"), "void"
            agent(send("six", "2001:db8::1", 8080, "AF_INET6"), "six")
            assert comes(arrived, "six")
            agent(send("attack", "2001:db8::1", 8081, "AF_INET6"), "six")
            assert not got(other, "attack")
