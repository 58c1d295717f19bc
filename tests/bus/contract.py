"""Agents written with nothing but a NATS client and the environment: nats-py and npm's nats."""
import asyncio, json, os, shutil, subprocess, sys

from harness import HERE, USERS, Bus, task, until


def environment(bus, agent):
    keep = {k: os.environ[k] for k in ("PATH", "PYTHONPATH", "NODE_PATH") if k in os.environ}
    return {**keep, "AGENT_ID": agent, "NATS_URL": bus.url, "NATS_USER": agent, "NATS_PASSWORD": USERS[agent],
            "SHARED_DIR": "/shared", "HOME": f"/shared/agents/{agent}"}


async def one_client(report, label, command):
    me = "agent-3"
    async with Bus() as bus:
        results = await bus.listen("task.result.*")
        events = await bus.listen("agent.*.events")
        beats = await bus.listen("agent.*.heartbeat")
        # Sent while the agent is not there yet.
        await bus.send(f"tasks.{me}", task("early", "early", me))
        process = subprocess.Popen(command, env=environment(bus, me))
        try:
            await until(lambda: beats, 60, f"{label}: no heartbeat")
            report.check(f"{label}: its heartbeat arrives under its name", beats[0].subject == f"agent.{me}.heartbeat")
            await bus.send(f"tasks.{me}", task("own", "own", me))
            await bus.send(f"tasks.{me}.all", task("all", "all", "all"))
            await bus.send(f"tasks.{me}.any", task("any", "any", "any"))
            await bus.send("tasks.agent-2", task("other", "other", "agent-2"))
            await until(lambda: len(results) >= 4, 30, f"{label}: results are missing: {[r.data for r in results]}")
            await asyncio.sleep(0.3)
            got = {json.loads(r.data)["task"]: json.loads(r.data) for r in results}
            report.check(f"{label}: exactly the tasks for it", sorted(got) == ["all", "any", "early", "own"], sorted(got))
            report.check(f"{label}: each once", len(results) == 4, len(results))
            seen = {ident: r["seen"] for ident, r in got.items()}
            expected = {"early": f"tasks.{me}", "own": f"tasks.{me}", "all": "tasks.all", "any": "tasks.any"}
            report.check(f"{label}: on the subjects of the contract", seen == expected, seen)
            report.check(f"{label}: results carry the sender in the subject", {r.subject for r in results} == {f"task.result.{me}"})
            await bus.hub.publish("broadcast", b"hello")
            await until(lambda: events, 30, f"{label}: no event after a broadcast")
            report.check(f"{label}: it hears a broadcast", json.loads(events[0].data)["detail"] == "hello")
            report.check(f"{label}: its event arrives under its name", events[0].subject == f"agent.{me}.events")
            # The server hands a message on before it has stored it.
            for _ in range(100):
                stored = await bus.api(f"STREAM.INFO.RESULTS_{me}")
                if stored["state"]["messages"] >= 4:
                    break
                await asyncio.sleep(0.1)
            report.check(f"{label}: its results are stored", stored["state"]["messages"] == 4, stored["state"])
            await bus.crash()
            await bus.send(f"tasks.{me}", task("late", "late", me))
            await until(lambda: any(b"late" in r.data for r in results), 60, f"{label}: no work after a restart of the bus")
            report.check(f"{label}: it works on after kill -9 of the bus", True)
        finally:
            process.kill()
            process.wait()


async def credentials_in_url(report):
    """Why NATS_URL holds no password: one of the two clients ignores it there."""
    async with Bus() as bus:
        url = bus.url.replace("//", f"//agent-1:{USERS['agent-1']}@")
        python = "import asyncio,nats,sys\nasyncio.run(nats.connect(sys.argv[1], allow_reconnect=False))"
        node = "require('nats').connect({servers: process.argv[1], reconnect: false}).then(c => c.close(), () => process.exit(3))"
        env = environment(bus, "agent-1")
        run = lambda *c: subprocess.run(c, env=env, capture_output=True, timeout=60).returncode
        report.check("nats-py reads a password in the URL", run(sys.executable, "-c", python, url) == 0)
        if shutil.which("node"):
            report.check("npm nats ignores a password in the URL", run("node", "-e", node, url) == 3)


async def tests(report):
    await one_client(report, "nats-py", [sys.executable, str(HERE / "clients/agent.py")])
    if shutil.which("node") and os.path.isdir(os.path.join(os.environ.get("NODE_PATH", ""), "nats")):
        await one_client(report, "npm nats", ["node", str(HERE / "clients/agent.js")])
    else:
        report.skip("npm nats", "node or its package nats is missing")
    await credentials_in_url(report)
