"""How an agent ends, and that every place says the same: status, the handle, the journal."""

import os
import signal

from harness import *


def service(id, script, restart="never", more=""):
    return f"""
[agents.{id}]
mode = "service"
command = ["/bin/sh", "-c", {script!r}]
{more}
[agents.{id}.restart]
policy = "{restart}"
delay = "100ms"
attempts = 3
"""


def state(agent):
    return status(agent)[agent]


def word(agent):
    found = state(agent)["state"]
    return found["word"] if isinstance(found, dict) else found


def test_an_exit_status_is_told_everywhere():
    with agents(service("ends", "sleep 1; exit 7")):
        start("ends")
        wait("the handle to fail", lambda: show("flock@ends", "ActiveState") == "failed")
        assert word("ends") == "failed" and "7" in state("ends")["reason"], state("ends")
        assert "exit status 7" in run("flockctl", "status", "ends").out + run("systemctl", "status", "flock@ends").out
        wait("the journal to have it", lambda: "exit status 7" in journal("-u", "flock@ends"))


def test_a_clean_end_is_no_failure():
    with agents(service("ends", "sleep 1; exit 0")):
        start("ends")
        wait("the handle to end", lambda: show("flock@ends", "ActiveState") == "inactive")
        assert word("ends") == "finished", state("ends")
        start("ends")


def test_a_crash_loop_gives_up_and_says_so():
    with agents(service("ends", "sleep 0.5; exit 3", "on-failure")):
        run("systemctl", "start", "flock@ends")
        wait("it to give up", lambda: show("flock@ends", "ActiveState") == "failed", 90)
        row = state("ends")
        assert word("ends") == "failed" and row["restarts"] >= 1, row
        assert "3" in row["reason"], row
        ok("journalctl", "--sync")
        before = journal("-u", unit("ends"))
        time.sleep(2)
        assert journal("-u", unit("ends")) == before, "it still restarts"


def test_killed_by_hand_and_restarted():
    start("agent-1")
    before = pid("agent-1")
    os.kill(before, signal.SIGKILL)
    wait("its next start", lambda: pid("agent-1") not in (0, before))
    wait("the restart in status", lambda: state("agent-1")["restarts"] == 1)
    assert show("flock@agent-1", "ActiveState") == "active"


def test_killed_by_hand_without_a_restart():
    with agents(service("ends", "exec sleep 1000")):
        start("ends")
        os.kill(pid("ends"), signal.SIGKILL)
        wait("the handle to fail", lambda: show("flock@ends", "ActiveState") == "failed")
        assert "SIGKILL" in state("ends")["reason"], state("ends")


def test_a_missing_program_leaves_nothing():
    with agents('[agents.ends]\nmode = "service"\ncommand = ["/usr/bin/no-such-program"]\n'):
        fails("systemctl", "start", "flock@ends")
        assert show("flock@ends", "ActiveState") == "failed"
        wait("its name in the journal", lambda: "no-such-program" in journal("-u", "flock@ends"))
        assert_nothing_left("ends")


def test_failed_and_started_again():
    with agents(service("ends", "test -e /shared/agents/ends/go && exec sleep 1000; exit 1")):
        run("systemctl", "start", "flock@ends")
        wait("the handle to fail", lambda: show("flock@ends", "ActiveState") == "failed")
        (SHARED / "agents/ends/go").touch()
        ok("systemctl", "start", "flock@ends")
        assert word("ends") == "running"
        ok("systemctl", "stop", "flock@ends")
        assert show("flock@ends", "ActiveState") == "inactive"


def test_processes_that_ignore_the_end_are_ended():
    with agents(service("ends", "trap \"\" TERM; (trap \"\" TERM; setsid sleep 1000 & ) ; while :; do sleep 1; done")):
        start("ends")
        uid = ok("id", "-u", "flock-ends").strip()
        # Not what measures it: that has its user too, and goes on a moment longer.
        its = lambda: run("pgrep", "-u", uid, "-x", "sh|sleep").out.split()
        wait("its processes", lambda: len(its()) >= 2)
        ok("systemctl", "stop", "flock@ends", timeout=60)
        # PID 1 has the dead of others to bury.
        wait("its processes to be gone", lambda: not its())
        assert show("flock@ends", "ActiveState") == "inactive"


def test_the_end_is_known_although_flockd_was_down():
    with agents(service("ends", "sleep 2; exit 5")):
        start("ends")
        ok("systemctl", "stop", "flockd")
        wait("the unit to fail", lambda: show(unit("ends"), "ActiveState") == "failed")
        ran = run("flockctl", "status", "ends")
        assert "exit status 5" in ran.out, ran
        ok("systemctl", "start", "flockd")
        wait("the handle to fail", lambda: show("flock@ends", "ActiveState") == "failed")
