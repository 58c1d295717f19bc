"""Limits on disk, on the spare disk of the virtual machine, whose file system has quotas."""

import ctypes
import os
import re

from harness import *

DISK = "/dev/vdb"
LIBC = ctypes.CDLL(None, use_errno=True)
MIB = 1 << 20

# With which an owner asks for a project of its own, and for its files to inherit none (linux/fs.h).
PROJECT = """
import fcntl, os, struct
def ask(path):
    fd = os.open(path, os.O_RDONLY)
    old = bytearray(28)
    fcntl.ioctl(fd, 0x801c581f, old)
    try:
        fcntl.ioctl(fd, 0x401c5820, struct.pack("IIIII8x", 0, 0, 0, 4711, 0))
    except OSError as error:
        return error.errno
    return 0
"""


class Entry(ctypes.Structure):
    """struct if_dqblk"""
    _fields_ = [(name, ctypes.c_uint64) for name in
                ("space", "_soft", "used", "files", "_files_soft", "files_used", "_time", "_files_time")] + [("valid", ctypes.c_uint32)]


def quotactl(command, uid, data, path=SHARED):
    """quotactl_fd(2) about users."""
    fd = os.open(path, os.O_PATH)
    try:
        if LIBC.syscall(443, fd, command << 8, uid, data and ctypes.byref(data)):
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
    finally:
        os.close(fd)


def uid(agent):
    return int(ok("id", "-u", f"flock-{agent}"))


def quota(user):
    entry = Entry()
    quotactl(0x800007, user, entry)
    return entry


def set_quota(user, kib, files):
    quotactl(0x800008, user, Entry(space=kib, files=files, valid=5))


@contextlib.contextmanager
def on(options, disk=DISK):
    """The shared tree on the spare disk, or on another one."""
    def move(*mounts):
        ok("systemctl", "stop", "flockd")
        # It looks into the tree.
        wait("the end of its last measurement",
             lambda: show("flock-verify", "ActiveState") in ("inactive", "failed"), 300)
        for mount in mounts:
            ok(*mount)
        ok("systemctl", "start", "flockd")

    move(("mount", "-o", options, disk, "/mnt"), ("cp", "-a", f"{SHARED}/.", "/mnt"), ("umount", "/mnt"),
         ("mount", "-o", options, disk, SHARED))
    try:
        yield
    finally:
        clean()
        move(("umount", SHARED))


def toml(agent, disk="8MiB", files=300, more=""):
    return f'[agents.{agent}]\n{more}\n[agents.{agent}.limits]\ndisk = "{disk}"\nfiles = {files}\n'


def rewrite(text):
    (AGENTS_D / "test.toml").write_text(text)
    return ok("flockctl", "apply")


def at_home(agent, script, timeout=120):
    """What a script says that runs as a task in the agent's own directory."""
    return inside(agent, f"cd; exec 2>&1\n{script}", timeout)["output"]


def write(agent, mib, path="big"):
    """How much of so many MiB an agent can write to a file that it then removes, and whether that was all."""
    said = at_home(agent, f"head -c {mib}M /dev/zero > {path}; echo status $?; stat -c 'size %s' {path}; rm -f {path}")
    return int(re.search(r"size (\d+)", said)[1]), "status 0" in said


def test_a_limit_that_nothing_holds_keeps_the_agent_from_starting():
    with agents(toml("held")):
        said = ok("flockctl", "apply")
        assert "limits.disk and limits.files: /var/lib/flock/shared/agents/held is on / (ext4)" in said, said
        assert "mkfs.ext4 -O quota" in said, said
        run("systemctl", "start", "flock@held")
        assert show(unit("held"), "ActiveState") == "inactive"
        reason = status("held")["held"]["reason"]
        assert "limits.disk" in reason and "unenforced-limits" in reason, reason
        assert "FAIL  disk quotas" in fails("flockctl", "doctor")
        assert "limits.disk" in fails("flockctl", "plan", "--diff")
        start("agent-1")
        with configured('[host]\nunenforced-limits = "allow"\n'):
            start("held")
            assert [w for w in status("held")["held"]["warnings"] if w.startswith("nothing holds it to limits.disk")]
            ok("journalctl", "--sync")
            assert "does not enforce its limits of disk, files" in journal("-u", "flock@held", "-n", "20")
            # The control of all that follows.
            assert write("held", 20) == (20 * MIB, True)
            assert "accepted by the configuration: no disk, files" in run("flockctl", "verify", "--json", "held").out


def test_a_quota_holds_one_agent_and_nobody_else():
    with on("usrquota"), agents(toml("held") + "[agents.free]\n"):
        said = ok("flockctl", "apply")
        assert "flock-held may own 8 MiB and 300 files on /var/lib/flock/shared" in said, said
        ok("flockctl", "doctor")
        start("held", "free")
        running = pid("held")
        size, done = write("held", 20)
        assert not done and 4 * MIB < size <= 8 * MIB, size
        # It stands at its limit, and the others do not notice.
        said = at_home("held", "head -c 20M /dev/zero > stays; head -c 4M /dev/zero > more; cat stays > third")
        assert said.lower().count("quota exceeded") == 3, said
        assert quota(uid("held")).used > 7 * MIB
        assert write("free", 20) == (20 * MIB, True)
        (SHARED / "of-root").write_bytes(bytes(20 * MIB))
        os.remove(SHARED / "of-root")
        # Its tasks fail, and whoever sent one is told why.
        result = inside("held", "echo alive")
        assert result["status"] == "failed" and "quota exceeded" in result["reason"].lower(), result
        # What it frees is its own again.
        (SHARED / "agents/held/stays").unlink()
        said = at_home("held", "rm more third; mkdir many; for n in $(seq 400); do touch many/$n || break; done; ls many | wc -l; rm -r many")
        assert "quota" in said.lower() and 200 < int(said.split()[-1]) < 300, said
        # Space that is asked for and not written counts, and what is not asked for does not.
        said = at_home("held", "fallocate -l 20M f; echo status $?; truncate -s 1T f; echo status $?; rm -f f")
        assert "status 1" in said and "status 0" in said, said
        # More, while it runs; and then no limit.
        assert "flock-held may own 16 MiB and 300 files" in rewrite(toml("held", "16MiB") + "[agents.free]\n")
        assert write("held", 12) == (12 * MIB, True)
        assert not write("held", 20)[1]
        assert "flock-held may own as much as fits" in rewrite("[agents.held]\n[agents.free]\n")
        assert write("held", 20) == (20 * MIB, True)
        assert pid("held") == running
        assert "nothing to change" in ok("flockctl", "apply")


def test_nothing_that_an_agent_can_do_to_its_files_takes_them_out_of_its_quota():
    more = 'common = "read-write"'
    with on("usrquota,prjquota"), agents(toml("held", more=more) + f"[agents.free]\n{more}\n"):
        ok("flockctl", "apply")
        start("held", "free")
        # Wherever it may write.
        assert write("free", 20, "/shared/common/big")[1]
        assert not write("held", 20, "/shared/common/big")[1]
        # To another project: its owner may do that, if it is in no user namespace.
        folder = SHARED / "agents/held"
        script = PROJECT + "os.mkdir('d'); open('f', 'w').close(); print('errno', ask('f'), ask('d'), ask('.'))"
        said = at_home("held", f"python3 - <<'END'\n{script}\nEND")
        assert re.search(r"errno (22|1) (22|1) 1\b", said), said
        control = run("python3", "-c", PROJECT + f"print('errno', ask('{folder}/f'), ask('{folder}/d'))", user="flock-held")
        assert control.out == "errno 0 0\n", control
        for path in ("f", "d/f"):
            assert not write("held", 20, path)[1], path
        # To another owner, by each call that could.
        said = at_home("held", "echo x > f; for who in root nobody 0 1 65534; do chown $who f || echo refused; done; chgrp 65534 f || echo refused")
        assert said.count("refused") == 6, said
        # Its own quota.
        said = at_home("held", "python3 - <<'END'\nimport ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
                      "fd = os.open('.', os.O_PATH)\nfor command in (0x800008, 0x800003):\n"
                      f"  print(libc.syscall(443, fd, command << 8, {uid('held')}, bytes(72)), ctypes.get_errno())\nEND")
        assert said.split() == ["-1", "1", "-1", "1"], said
        assert quota(uid("held")).space == 8 * 1024


def test_a_quota_that_was_changed_by_hand_is_named_and_repaired():
    with on("usrquota"), agents(toml("held")):
        ok("flockctl", "apply")
        # It would repair what is to be named, when it reads the new files.
        ok("systemctl", "stop", "flockd")
        user = uid("held")
        assert run("flockctl", "plan", "--diff").status == 0
        for kib, files, words in ((0, 0, "as much as fits"), (1 << 20, 300, "1 GiB and 300 files")):
            set_quota(user, kib, files)
            said = fails("flockctl", "plan", "--diff")
            assert f"flock-held may own {words} on /var/lib/flock/shared, should be 8 MiB and 300 files" in said, said
            start("held")
            assert (quota(user).space, quota(user).files) == (8 * 1024, 300)
            ok("systemctl", "stop", "flock@held")
        # The limits are there, and nothing holds anybody to them any more.
        quotactl(0x800003, 0, None)
        said = fails("flockctl", "plan", "--diff")
        assert "which counts what users own, and holds none of them to a limit" in said, said
        run("systemctl", "start", "flock@held")
        assert show(unit("held"), "ActiveState") == "inactive"
        quotactl(0x800002, 0, None)
        start("held")
        # One that runs meanwhile is named when it is measured.
        quotactl(0x800003, 0, None)
        said = run("flockctl", "verify", "held", "--json")
        assert said.status != 0 and "nothing enforces disk, files" in said.out, said
        quotactl(0x800002, 0, None)


def test_every_file_system_that_it_may_write_to_counts():
    ok("mkdir", "-p", "/srv/more")
    more = 'read-write-paths = ["/srv/more"]'
    with on("usrquota"), agents(toml("held", more=more)):
        said = ok("flockctl", "apply")
        assert "/srv/more is on / (ext4), which holds no user" in said, said
        run("systemctl", "start", "flock@held")
        assert show(unit("held"), "ActiveState") == "inactive"
        # And what is mounted below.
        rewrite(toml("held", more='read-write-paths = ["/srv/more"]'))
        ok("mount", "--bind", str(SHARED / "common"), "/srv/more")
        try:
            start("held")
            ok("systemctl", "stop", "flock@held")
            ok("mkdir", "-p", "/srv/more/below")
            ok("mount", "-t", "tmpfs", "none", "/srv/more/below")
            run("systemctl", "start", "flock@held")
            assert "/srv/more/below is on /srv/more/below (tmpfs)" in status("held")["held"]["reason"], status("held")
        finally:
            run("umount", "/srv/more/below")
            run("umount", "/srv/more")
            run("rmdir", str(SHARED / "common/below"))


def test_an_agent_that_is_gone_has_no_quota_and_one_that_still_runs_has_it():
    with on("usrquota"):
        with agents(toml("held")):
            start("held")
            wait("flockd to have read the files", lambda: is_known_to_flockd("held"), 60)
            user = uid("held")
            rewrite("")
            assert quota(user).space == 8 * 1024, "it runs"
            # Or it does what the next apply is to do.
            wait("flockd to have read the files", lambda: not is_known_to_flockd("held"), 60)
            ok("systemctl", "stop", "flock@held", unit("held"))
            assert "flock-held has no quota any more" in ok("flockctl", "apply")
            assert (quota(user).space, quota(user).files) == (0, 0)
            # As when the package is removed.
            rewrite(toml("held"))
            assert (quota(user).space, quota(user).files) == (8 * 1024, 300)
            wait("flockd to have read the files", lambda: is_known_to_flockd("held"), 60)
            ok("flockctl", "quota-release")
            assert (quota(user).space, quota(user).files) == (0, 0)


def test_xfs_holds_an_agent_as_well():
    """Its own quotas, which it counts from the mount on; without the option it is said how to get them."""
    image = "/var/tmp/xfs"
    ok("truncate", "-s", "400M", image)
    ok("mkfs.xfs", "-q", image)
    try:
        with on("loop,noquota", image), agents(toml("held")):
            said = ok("flockctl", "apply")
            assert "(xfs), which holds no user" in said, said
            assert "mount it with uquota" in said, said
            run("systemctl", "start", "flock@held")
            assert show(unit("held"), "ActiveState") == "inactive"
        with on("loop,usrquota", image), agents(toml("held") + "[agents.free]\n"):
            ok("flockctl", "apply")
            ok("flockctl", "doctor")
            start("held", "free")
            size, done = write("held", 20)
            assert not done and 4 * MIB < size <= 8 * MIB, size
            assert write("free", 20) == (20 * MIB, True)
            said = at_home("held", "mkdir many; for n in $(seq 400); do touch many/$n || break; done; ls many | wc -l; rm -r many")
            assert "quota" in said.lower() and 200 < int(said.split()[-1]) < 300, said
            set_quota(uid("held"), 0, 0)
            assert "should be 8 MiB and 300 files" in fails("flockctl", "plan", "--diff")
            ok("flockctl", "apply")
            assert (quota(uid("held")).space, quota(uid("held")).files) == (8 * 1024, 300)
            assert run("flockctl", "plan", "--diff").status == 0
        # It counts, and holds nobody.
        with on("loop,uqnoenforce", image), agents(toml("held")):
            said = ok("flockctl", "apply")
            assert "which counts what users own, and holds none of them to a limit" in said, said
            run("systemctl", "start", "flock@held")
            assert show(unit("held"), "ActiveState") == "inactive"
    finally:
        os.remove(image)
