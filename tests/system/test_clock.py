"""The clock jumps, which needs a clock of one's own: these run in the virtual machine.

A host without a battery comes up in the past and is set by the network; an operator or a hypervisor
sets it back. Neither may end an agent, hide one, or lose what it is given.
"""

from harness import *

DAY = 86400
BOOTED = time.time() - time.monotonic()


def jump(seconds):
    """Sets the clock so much off from what it was when the machine came up."""
    wanted = int(BOOTED + time.monotonic()) + seconds
    ok("date", "--set", f"@{wanted}")
    assert abs(time.time() - wanted) < 60, "void: the clock did not move"


def test_the_clock_jumps_and_nobody_notices():
    start("agent-1", "agent-2")
    incarnation = show(unit("agent-1"), "MainPID", "InvocationID")
    try:
        for seconds in (DAY, -DAY, 0):
            jump(seconds)
            # Twice, so that the agent's timers and flockd's have passed the new time.
            for n in range(2):
                result = inside("agent-1", f"echo day-{seconds}-{n}. >&2; echo here", timeout=60)
                assert result["status"] == "done" and "here" in result["output"], result
            assert show(unit("agent-1"), "MainPID", "InvocationID") == incarnation
            log = SHARED / "logs/agent-1.log"
            # journald begins new files when the clock goes back; who follows them may hear of it at the next look only,
            # which is half a minute away.
            wait("its lines", lambda: f"day-{seconds}-1." in log.read_text(), 90)
            assert [log.read_text().count(f"day-{seconds}-{n}.") for n in range(2)] == [1, 1], log.read_text()
            row = wait("the heartbeat", lambda: [r for r in status().values() if r["agent"] == "agent-1"
                                                 and "running" in json.dumps(r["state"])], 60)[0]
            assert "silent" not in json.dumps(row), row
            # What a jump would fire or hold back: starts, stops, an apply, the repair of the fence.
            ok("flockctl", "restart", "agent-2")
            assert "nothing to change" in ok("flockctl", "apply")
            ok("nft", "delete", "table", "inet", "flock")
            wait("the fence", lambda: run("nft", "list", "table", "inet", "flock").status == 0, 20)
            ok("flockctl", "audit", "verify")
    finally:
        jump(0)
    assert show(unit("agent-1"), "MainPID", "InvocationID") == incarnation
