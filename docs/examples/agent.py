# An agent of one's own in Python. It needs nats-py, and nothing of flock:
#   pip install --target /opt/my-agent nats-py && cp agent.py /opt/my-agent/
import asyncio, json, os
import nats

async def main():
    bus = await nats.connect(os.environ["NATS_URL"], user=os.environ["NATS_USER"],
                             password=os.environ["NATS_PASSWORD"])
    async def work(message):
        task = json.loads(message.data)
        result = {"task": task["id"], "output": task["text"].upper()}
        await bus.publish("task.result", json.dumps(result).encode())
    await bus.subscribe("tasks.*", cb=work)
    await asyncio.Event().wait()

asyncio.run(main())
