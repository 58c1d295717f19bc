"""A plain agent in Python: nothing but nats-py and the environment."""
import asyncio, json, os

import nats


async def main():
    me = os.environ["AGENT_ID"]
    bus = await nats.connect(os.environ["NATS_URL"], user=os.environ["NATS_USER"], password=os.environ["NATS_PASSWORD"])

    async def work(message):
        task = json.loads(message.data)
        result = {"task": task["id"], "output": task["text"].upper(), "seen": message.subject}
        await bus.publish("task.result", json.dumps(result).encode())

    async def hear(message):
        event = {"at": task_time(), "event": "heard", "detail": message.data.decode()}
        await bus.publish(f"agent.{me}.events", json.dumps(event).encode())

    await bus.subscribe("tasks.*", cb=work)
    await bus.subscribe("broadcast", cb=hear)
    while True:
        await bus.publish(f"agent.{me}.heartbeat", b"{}")
        await asyncio.sleep(30)


def task_time():
    from datetime import datetime, timezone
    return datetime.now(timezone.utc).isoformat()


asyncio.run(main())
