"""A power cut: what was acknowledged to the sender is done afterwards. Runs in the virtual machine.

flockd is stopped while the tasks are sent, so its history cannot make good what the bus would lose:
this is about the bus alone.
"""

from harness import *

COUNT = 25
MARKS = {agent: SHARED / f"agents/{agent}/marks" for agent in ("agent-1", "agent-2")}


def keys(agent):
    return {f"{agent}-{n}" for n in range(COUNT)}


def send_all(agent):
    for key in sorted(keys(agent)):
        ok("flockctl", "task", "send", "--to", agent, "--key", key, f"echo {key} >> $SHARED_DIR/agents/{agent}/marks")


def done(agent):
    return MARKS[agent].read_text().split() if MARKS[agent].exists() else []


def before_the_cut():
    ok("flockctl", "apply")
    ok("systemctl", "stop", "flockd")
    send_all("agent-1")
    # The control, last: the same for another agent, without a flush for each message.
    with CONFIG.open("a") as config:
        config.write('\n[bus]\nsync = "10min"\n')
    ok("sync", str(CONFIG))  # Or the cut takes the configuration away.
    ok("flockctl", "apply")
    ok("systemctl", "restart", "flock-bus")
    wait("the bus", lambda: run("flockctl", "task", "send", "--to", "agent-3", "true").status == 0, 60)
    send_all("agent-2")


def after_the_cut():
    ok("systemctl", "start", "flockd")
    start("agent-1", "agent-2")
    wait("every acknowledged task", lambda: keys("agent-1") <= set(done("agent-1")), 180)
    time.sleep(5)
    assert len(done("agent-1")) == COUNT, f"done twice: {sorted(done('agent-1'))}"
    lost = keys("agent-2") - set(done("agent-2"))
    assert lost, "nothing was lost without sync = \"always\": this was no power cut"
    print(f"      of {COUNT} acknowledged tasks: with \"always\" all were done, with \"10min\" {len(lost)} were lost")
