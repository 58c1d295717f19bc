"""The agents' log files: each line once, whatever happens to those who carry it."""

import json
import re
import time

from harness import *

LOGS = SHARED / "logs"
NUMBERED = """
[agents.numbered]
mode = "service"
command = ["/bin/sh", "-c", "i=1; while [ $i -le 2000 ]; do echo number $i; [ $((i % 10)) = 0 ] && sleep 0.3; i=$((i+1)); done; sleep infinity"]
"""


def lines(agent):
    """All lines of the agent's files, the oldest first. One that is being written is not there yet."""
    names = [f"{agent}.log.{n}" for n in (3, 2, 1)] + [f"{agent}.log"]
    found = []
    for name in names:
        if (LOGS / name).exists():
            found += [json.loads(line) for line in (LOGS / name).read_text().split("\n")[:-1]]
    return found


def numbers(agent, word="number"):
    matched = (re.match(rf"{word} (\d+)", line["text"]) for line in lines(agent) if line["source"] == "agent")
    return [int(match[1]) for match in matched if match]


def forget(agent):
    run("rm", "-f", *map(str, LOGS.glob(f"{agent}.log*")))


def flockd_is_up():
    return show("flockd", "ActiveState") == "active"


def test_each_line_stands_once_whatever_is_killed():
    with agents(NUMBERED):
        ok("flockctl", "apply")
        start("numbered")
        for turn in range(20):
            wait("flockd", flockd_is_up, 60)
            wait("some lines", lambda: numbers("numbered"), 30)
            time.sleep(turn % 5 * 0.35)
            run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "flockd")
            if turn % 4 == 1:
                ok("journalctl", "--rotate")
            if turn % 6 == 2:
                ok("systemctl", "restart", "systemd-journald")
            if turn == 10:
                # What was copied may go; what was not is another test's matter.
                ok("journalctl", "--rotate")
                time.sleep(1)
                said = int(re.findall(r"^number (\d+)$", journal("-u", unit("numbered")), re.M)[-1])
                wait("all of it in the file", lambda: said in numbers("numbered"), 60)
                ok("journalctl", "--vacuum-size=1M")
        wait("flockd", flockd_is_up, 60)
        wait("the last line", lambda: 2000 in numbers("numbered"), 180)
        time.sleep(2)
        found = numbers("numbered")
        assert found == list(range(1, 2001)), (
            len(found), sorted(set(range(1, 2001)) - set(found))[:20],
            sorted(n for n in set(found) if found.count(n) > 1)[:20],
            [pair for pair in zip(found, found[1:]) if pair[0] >= pair[1]][:20])
        sources = {line["source"] for line in lines("numbered")}
        assert {"agent", "systemd", "flock"} <= sources, sources
        stamp = lines("numbered")[0]["at"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", stamp), stamp
        assert not [line for line in lines("numbered") if line["text"].startswith("audit")]
        shown = ok("flockctl", "logs", "numbered", "--json", "-n", "3").splitlines()
        assert [json.loads(line) for line in shown] == lines("numbered")[-3:]
    forget("numbered")


def test_what_the_journal_lost_is_said_and_the_rest_is_there():
    with agents("""
[agents.gap]
mode = "service"
command = ["/bin/sh", "-c", "echo number 1; while :; do test -e /shared/agents/gap/go$n && { n=$((n+1)); echo number $((n+1)); }; sleep 0.2; done"]
"""):
        ok("flockctl", "apply")
        start("gap")
        wait("the first", lambda: 1 in numbers("gap"))
        ok("systemctl", "stop", "flockd")
        (SHARED / "agents/gap/go").write_text("")
        wait("the second", lambda: "number 2" in journal("-u", unit("gap")))
        ok("journalctl", "--rotate")
        ok("journalctl", "--vacuum-time=1s", "--vacuum-size=1")
        time.sleep(1.5)
        ok("journalctl", "--vacuum-time=1s", "--vacuum-size=1")
        ok("systemctl", "start", "flockd")
        (SHARED / "agents/gap/go1").write_text("")
        wait("the third", lambda: 3 in numbers("gap"), 60)
        assert numbers("gap") == [1, 3], lines("gap")
        remarks = [line for line in lines("gap") if "may be missing" in line["text"]]
        assert len(remarks) == 1 and remarks[0]["source"] == "flock", remarks
    forget("gap")


def test_an_agent_that_comes_goes_and_comes_back():
    one = '[agents.again]\nmode = "service"\ncommand = ["/bin/sh", "-c", "echo number $(date +%s%N); sleep infinity"]\n'
    with agents(one):
        ok("flockctl", "apply")
        start("again")
        wait("its line", lambda: len(numbers("again")) == 1)
    first = numbers("again")
    time.sleep(1)
    with agents(one):
        # Faster than flockd learns of it.
        ok("flockctl", "apply")
        start("again")
        wait("both lines", lambda: len(numbers("again")) == 2, 60)
        assert numbers("again")[0] == first[0]
        # An operator takes the file away: it is made again, with its access list.
        (LOGS / "again.log").unlink()
        ok("systemctl", "restart", "flock@again")
        wait("its third line", lambda: len(numbers("again")) == 1, 60)
        assert "user:flock-again:r--" in ok("getfacl", "-p", str(LOGS / "again.log"))
    forget("again")


def test_what_a_launch_says_is_never_lost():
    with agents('[agents.said]\nmode = "service"\ncommand = ["/bin/sleep", "infinity"]\n'):
        ok("flockctl", "apply")
        for _ in range(20):
            start("said")
            ok("systemctl", "stop", "flock@said")
        wait("its own log", lambda: sum("said runs:" in line["text"] for line in lines("said")) >= 20, 60)
        assert journal("-u", "flock@said").count("said runs:") == 20, journal("-u", "flock@said")
    forget("said")


def test_a_full_file_is_set_aside():
    with agents("""
[agents.full]
mode = "service"
command = ["/bin/sh", "-c", "x=$(head -c 8000 /dev/zero | tr '\\\\0' x); i=1; while [ $i -le 1300 ]; do echo number $i $x; [ $((i % 100)) = 0 ] && sleep 0.5; i=$((i+1)); done; sleep infinity"]
"""):
        ok("flockctl", "apply")
        start("full")
        wait("all lines", lambda: 1300 in numbers("full"), 180)
        assert numbers("full") == list(range(1, 1301))
        assert 6 << 20 < (LOGS / "full.log.1").stat().st_size <= 8 << 20
        assert not (LOGS / "full.log.2").exists()
        for name in ("full.log", "full.log.1"):
            assert "user:flock-full:r--" in ok("getfacl", "-p", str(LOGS / name)), name
        ok("flockctl", "apply")
        forget("full")


def test_an_agent_reads_its_log_and_cannot_change_it():
    start("agent-1", "agent-2")
    said = inside("agent-1", "echo mark >&2; for n in $(seq 80); do sleep 0.5; grep -q :.mark.} /shared/logs/agent-1.log && break; done; tail -n 20 /shared/logs/agent-1.log")
    assert "mark" in said["output"] and '"source":"systemd"' in said["output"], said
    path = "/shared/logs/agent-1.log"
    attempts = [f"echo x >> {path}", f": > {path}", f"truncate -s 0 {path}", f"rm -f {path}",
                f"mv {path} /shared/logs/x", f"ln -s /etc/passwd {path}.1", f"touch {path}.1",
                f"chmod 666 {path}", "cat /shared/logs/agent-2.log", "ls /shared/logs"]
    for attempt in attempts:
        said = inside("agent-1", f"( {attempt} ) && echo DONE")
        assert "DONE" not in said["output"], (attempt, said)


def test_lines_of_a_task_are_found_by_its_id():
    with agents("""
[agents.talks]
mode = "service"
command = ["/bin/sh", "-c", "printf 'task 0199abcdef: it \\\\033[2J began\\\\ntask 0199zzz: other\\\\nplain\\\\n'; sleep infinity"]
"""):
        ok("flockctl", "apply")
        start("talks")
        wait("its lines", lambda: len([line for line in lines("talks") if line["source"] == "agent"]) == 3, 60)
        found = [line for line in lines("talks") if line.get("task") == "0199abcdef"]
        assert len(found) == 1 and found[0]["text"] == "it \x1b[2J began", found
        assert "\x1b" not in (LOGS / "talks.log").read_text()
        for query in (("talks", "--task", "0199ab"), ("--task", "0199abcdef")):
            out = ok("flockctl", "logs", *query)
            assert "began" in out and "other" not in out and "plain" not in out and "\x1b" not in out, out
        for bad in ("0199a", "0199a*"):
            assert "--task" in fails("flockctl", "logs", "talks", "--task", bad)
        assert not ok("flockctl", "logs", "talks", "--since", "-1h", "--until", "-30min").strip()
    forget("talks")
