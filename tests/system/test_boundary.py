"""Attacks from inside an agent of level 1, each with its control.

Every attack is one small Python program. It first runs where nothing protects (the control, which
must succeed: else the test proves nothing), then as a task of agent-1 (which must fail, for the
right reason). What could be believed only from the attacker is looked at from outside.
"""

import os
import pathlib
import secrets
import socket

from harness import *

PLAIN = "plain"  # an ordinary user of the host, no agent


def plain_user():
    if run("id", PLAIN).status:
        ok("useradd", "--create-home", "--shell", "/bin/sh", PLAIN)


def control(code, user=PLAIN):
    """The attack without flock around it."""
    plain_user()
    return run("python3", "-c", code, user=user)


def attack(code, agent="agent-1"):
    """The attack as a task of the agent: what it printed."""
    start(agent)
    result = inside(agent, f"python3 - <<'PYTHON'\n{code}\nPYTHON")
    return result["output"]


ERRNO = """
import ctypes, os, errno
libc = ctypes.CDLL(None, use_errno=True)
def call(*args):
    ctypes.set_errno(0)
    result = libc.syscall(*args)
    print("GOT" if result >= 0 else errno.errorcode[ctypes.get_errno()])
"""

# The attack, the control's answer, the agent's answer. Numbers are x86-64's.
SYSCALLS = {
    "user namespace": ("call(272, 0x10000000)", "GOT", "EPERM"),
    "io_uring": ("call(425, 4, ctypes.create_string_buffer(120))", "GOT", "EPERM"),
    "user keyring": ("call(248, b'user', b'k', b'v', 1, -4)", "GOT", "EPERM"),
    "ptrace": ("call(101, 0, 0, 0, 0)", "GOT", "EPERM"),
    "userfaultfd": ("call(323, 1)", "GOT", "EPERM"),
}


def test_system_calls_around_the_sandbox():
    for name, (line, without, within) in SYSCALLS.items():
        code = ERRNO + line
        free = control(code)
        # Some kernels keep a call from every ordinary user; root is the control then.
        if free.out.strip() != without:
            free = run("python3", "-c", code)
        assert free.out.strip() == without, f"{name}: void, the control gave {free!r}"
        got = attack(code).strip()
        assert got == within, f"{name}: {got}"


def test_socket_families():
    code = """
import socket
for family in ("AF_INET", "AF_UNIX", "AF_INET6", "AF_NETLINK", "AF_PACKET", "AF_VSOCK"):
    kind = socket.SOCK_RAW if family in ("AF_NETLINK", "AF_PACKET") else socket.SOCK_STREAM
    try:
        socket.socket(getattr(socket, family), kind); print(family, "GOT")
    except OSError as error:
        print(family, error.errno)
"""
    free = dict(l.split() for l in run("python3", "-c", code).out.splitlines())
    for family in ("AF_INET", "AF_UNIX", "AF_INET6", "AF_NETLINK", "AF_PACKET"):
        assert free[family] == "GOT", free
    got = dict(l.split() for l in attack(code).splitlines())
    assert got == {"AF_INET": "GOT", "AF_UNIX": "GOT", "AF_INET6": "97", "AF_NETLINK": "97",
                   "AF_PACKET": "97", "AF_VSOCK": "97"}, got


def test_another_agents_files():
    start("agent-1", "agent-2")
    canary = secrets.token_hex(16)
    file = SHARED / "agents/agent-2/canary"
    inside("agent-2", f"echo {canary} > /shared/agents/agent-2/canary; chmod 666 /shared/agents/agent-2/canary")
    read = lambda path: f"print(open({str(path)!r}).read())"
    assert canary in control(read(file), user="flock-agent-2").out, "void: its owner cannot read it"
    assert "Errno 2" in attack_error(read("/shared/agents/agent-2/canary"))
    # The same by uid alone, without the view: the ACL and the directory hold on their own.
    assert "Errno 13" in control(read(file), user="flock-agent-1").err
    assert "Errno 13" in control(read(file)).err
    assert run("grep", "-rl", canary, str(SHARED / "agents/agent-1")).out == ""


def attack_error(code, agent="agent-1"):
    return attack(f"try:\n  {code}\nexcept OSError as error:\n  print(error)", agent)


def test_the_agents_cannot_be_listed():
    start("agent-1", "agent-2")
    seen = attack("import os; print(sorted(os.listdir('/shared/agents')))").strip()
    assert seen == "['agent-1']", seen
    assert "Errno 13" in control("import os; os.listdir('/var/lib/flock/shared/agents')", "flock-agent-1").err


def test_its_own_directory_cannot_be_opened_to_others():
    before = ok("getfacl", "-p", str(SHARED / "agents/agent-1"))
    said = attack("""
import os
for act in (lambda: os.chmod('/shared/agents/agent-1', 0o777), lambda: os.rmdir('/shared/agents/agent-1'),
            lambda: os.setxattr('/shared/agents/agent-1', 'system.posix_acl_access', b'\\2\\0\\0\\0')):
    try: act(); print('GOT')
    except OSError as error: print(error.errno)
""").split()
    assert "GOT" not in said and len(said) == 3, said
    assert ok("getfacl", "-p", str(SHARED / "agents/agent-1")) == before


def test_files_of_the_host():
    hidden = ["/etc/shadow", "/etc/flock/flock.toml", "/var/lib/flock", "/root/.bashrc", "/run/dbus",
              "/run/systemd/transient", "/var/log/journal", "/etc/machine-id", "/boot", "/etc/ssh"]
    there = attack(f"import os\nfor p in {hidden!r}: print(p, os.path.exists(p))")
    for path in hidden:
        assert f"{path} False" in there, there
    assert os.path.exists("/etc/shadow") and os.path.exists("/run/dbus"), "void"
    assert "flock-agent-2" not in attack("print(open('/etc/passwd').read())")


def test_nothing_but_its_own_places_can_be_written():
    code = """
import os
found = []
for top, dirs, files in os.walk('/', followlinks=False):
    dirs[:] = [d for d in dirs if os.path.join(top, d) not in ('/proc', '/usr/share', '/usr/lib', '/sys')]
    try:
        path = os.path.join(top, 'flock-write-test')
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)); os.unlink(path); found.append(top)
    except OSError: pass
print('\\n'.join(found))
"""
    places = set(attack(code).split())
    own = {p for p in places if p.startswith("/shared/agents/agent-1")}
    assert places - own == {"/tmp", "/var/tmp", "/dev/shm", "/run/agent", "/dev/mqueue"} or \
        places - own == {"/tmp", "/var/tmp", "/dev/shm", "/run/agent"}, places
    assert "/shared/agents/agent-1" in own


def test_groups_of_others():
    start("agent-1", "agent-2")
    see = "import os\nfor top, dirs, files in os.walk('/sys/fs/cgroup'): print(top)"
    assert "agent-2" in control(see).out, "void"
    assert "agent-2" not in attack(see)


def test_processes_of_others():
    start("agent-1", "agent-2")
    victim = pid("agent-2")
    see = "import os; print([p for p in os.listdir('/proc') if p.isdigit() and os.stat('/proc/' + p).st_uid != os.getuid()])"
    assert str(victim) in control(see).out, "void"
    assert attack(see).strip() == "[]"
    kill = lambda pid: f"import os\ntry: os.kill({pid}, 9); print('GOT')\nexcept OSError as e: print(e.errno)"
    sleeper = subprocess.Popen(["setpriv", "--reuid", "plain", "--clear-groups", "sleep", "100"])
    wait("it to be plain's", lambda: pathlib.Path(f"/proc/{sleeper.pid}/comm").read_text() == "sleep\n")
    assert "GOT" in control(kill(sleeper.pid)).out and sleeper.wait(20) == -9, "void"
    for target in (victim, int(show("flockd", "MainPID")), int(show("flock-bus", "MainPID")), 1):
        assert attack(kill(target)).strip() in ("1", "3"), target
    attack("import os\ntry: os.kill(-1, 0)\nexcept OSError: pass")
    assert pid("agent-2") == victim
    for part in ("environ", "mem", "cwd", "root", "fd"):
        said = attack_error(f"print(os.stat('/proc/{victim}/{part}'))".replace("os.", "__import__('os')."))
        assert "Errno 2" in said, said


def test_the_system_bus_and_linger():
    """The way out of every sandbox that shows the system bus: a user manager outside of it."""
    plain_user()
    free = run("loginctl", "enable-linger", PLAIN, user=PLAIN)
    assert free.status == 0 and os.path.exists(f"/var/lib/systemd/linger/{PLAIN}"), f"void: {free!r}"
    run("loginctl", "disable-linger", PLAIN)
    said = inside_output("loginctl enable-linger flock-agent-1; echo status $?; busctl --no-pager list; echo status $?")
    assert "status 0" not in said, said
    # The second wall, without the view: the same user outside of the sandbox.
    said = fails("loginctl", "enable-linger", "flock-agent-1", user="flock-agent-1")
    assert "denied" in said.lower() or "not" in said.lower(), said
    assert not list(pathlib.Path("/var/lib/systemd/linger").glob("flock-*"))


def inside_output(script, agent="agent-1"):
    start(agent)
    result = inside(agent, f"exec 2>&1; {script}\ntrue")
    return result["output"]


def test_every_socket_of_the_host():
    find = r"find / -xdev -type s 2>/dev/null; find /run /tmp -type s 2>/dev/null"
    on_host = set(run("sh", "-c", find).out.split())
    assert "/run/dbus/system_bus_socket" in on_host, "void"
    assert set(inside_output("find / -type s 2>/dev/null").split()) == set()


def test_what_is_not_promised_is_said():
    """Abstract sockets have no file; level 1 shares the network namespace they live in."""
    server = socket.socket(socket.AF_UNIX)
    server.bind("\0flock-test")
    server.listen()
    said = attack("import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('\\0flock-test'); print('GOT')")
    server.close()
    assert "GOT" in said, "better than promised: change README and explain"
    assert "abstract Unix sockets" in ok("flockctl", "explain", "agent-1")


def test_shared_memory_and_queues_are_its_own():
    start("agent-1", "agent-2")
    inside("agent-2", "echo secret > /dev/shm/x; chmod 666 /dev/shm/x; ipcmk -M 4096 -p 0666")
    assert inside_output("ls /dev/shm").strip() == ""
    ok("ipcmk", "-M", "4096", "-p", "0666")
    assert "0x" in ok("ipcs", "-m"), "void"
    assert "0x" not in inside_output("ipcs -m")


def test_privileges_cannot_be_had():
    said = inside_output("grep -E 'Cap|NoNewPrivs|Seccomp:' /proc/self/status; id -u; su -c id; "
                         "cp /bin/sh /tmp/sh && chmod 4755 /tmp/sh; echo chmod $?")
    for line in ("CapBnd:\t0000000000000000", "CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"):
        assert line in said, said
    assert "uid=0" not in said and "chmod 1" in said, said


def test_secrets_are_not_shown_to_local_users():
    start("agent-1")
    password = [l.split("=", 1)[1] for l in
                pathlib.Path("/var/lib/flock/identity/agent-1.env").read_text().splitlines()
                if l.startswith("NATS_PASSWORD=")][0]
    assert password in pathlib.Path(f"/proc/{pid('agent-1')}/environ").read_text(), "void"
    plain_user()
    shown = [run("systemctl", "show", unit("agent-1"), user=PLAIN).out,
             run("systemctl", "cat", unit("agent-1"), user=PLAIN).out,
             run("sh", "-c", "cat /proc/*/environ /proc/*/cmdline /run/systemd/transient/*", user=PLAIN).out,
             journal("-b"), ok("flockctl", "plan", "agent-1"), run("flockctl", "status", "--json").out]
    assert not any(password in text for text in shown)


def test_nothing_is_inherited():
    with agents("""
[agents.bare]
mode = "service"
command = ["/bin/sh", "-c", "ls -l /proc/self/fd; env | cut -d= -f1 | sed s/^/variable:/; echo so much; exec sleep 1000"]
"""):
        start("bare")
        log = wait("its list", lambda: "so much" in (t := journal("-u", unit("bare"))) and t)
        descriptors = {line.split(" -> ")[0].split()[-1] for line in log.splitlines() if " -> " in line}
        assert descriptors <= {"0", "1", "2", "3"}, log  # 3 is ls's own
        known = {"AGENT_ID", "HOME", "INVOCATION_ID", "JOURNAL_STREAM", "LANG", "LOGNAME", "NATS_PASSWORD",
                 "NATS_URL", "NATS_USER", "PATH", "PWD", "SHARED_DIR", "SYSTEMD_EXEC_PID", "USER",
                 "XDG_RUNTIME_DIR", "MEMORY_PRESSURE_WATCH", "MEMORY_PRESSURE_WRITE"}
        found = {line.removeprefix("variable:") for line in log.splitlines() if line.startswith("variable:")}
        assert found <= known, found - known
        assert {"AGENT_ID", "NATS_URL", "NATS_USER", "NATS_PASSWORD", "SHARED_DIR", "HOME"} <= found, found


def test_the_common_tree_is_read_only_unless_opened():
    (SHARED / "common/readme").write_text("hello\n")
    start("agent-1")
    said = inside_output("cat /shared/common/readme; echo x > /shared/common/x; echo status $?")
    assert "hello" in said and "status 0" not in said.split("hello")[1], said
    with agents('[agents.writer]\ncommon = "read-write"\n'):
        said = inside_output("echo x > /shared/common/by-writer && echo written", "writer")
        assert "written" in said, said
        assert "x" in inside_output("cat /shared/common/by-writer")
        (SHARED / "common/by-writer").unlink()


def test_level_0_is_a_workspace_and_says_so():
    with agents('[agents.zero]\nlevel = 0\n'):
        start("zero")
        assert show(unit("zero"), "User") == "flock-workspace"
        said = run("flockctl", "status", "zero").out + ok("flockctl", "explain", "zero")
        assert "not a security boundary" in said, said
        assert "['zero']" in inside_output("python3 -c \"import os; print(os.listdir('/shared/agents'))\"", "zero")


def test_a_drop_in_that_weakens_the_boundary_ends_the_launch():
    folder = pathlib.Path("/etc/systemd/system/flock-agent@.service.d")
    folder.mkdir(exist_ok=True)
    (folder / "weak.conf").write_text("[Service]\nNoNewPrivileges=no\nPrivateIPC=no\n")
    try:
        fails("systemctl", "start", "flock@agent-1")
        ok("journalctl", "--sync")
        said = journal("-u", "flock@agent-1", "-n", "20")
        assert "weak.conf" in said or "PrivateIPC" in said, said
        assert_nothing_left("agent-1")
    finally:
        (folder / "weak.conf").unlink()
        folder.rmdir()
    start("agent-1")


def test_a_linger_file_ends_the_launch():
    file = pathlib.Path("/var/lib/systemd/linger/flock-agent-1")
    file.parent.mkdir(exist_ok=True)
    file.touch()
    try:
        fails("systemctl", "start", "flock@agent-1")
        ok("journalctl", "--sync")
        assert "linger" in journal("-u", "flock@agent-1", "-n", "20")
    finally:
        file.unlink()
