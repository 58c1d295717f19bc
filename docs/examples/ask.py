# Two agents that talk, the first: it asks the other (answer.py) about each of its tasks. Install: plain-agents.toml
import json, os, socket, sys, threading, time

env, one_at_a_time = os.environ, threading.Lock()
me, other = env["AGENT_ID"], env["OTHER"]
bus = socket.create_connection(env["NATS_URL"].removeprefix("nats://").split(":"))

def send(text):
    with one_at_a_time:
        bus.sendall(text.encode())

def publish(subject, text, reply=""):
    send(f"PUB {subject} {reply} {len(text.encode())}\r\n{text}\r\n")

def heartbeats():
    while True:
        publish(f"agent.{me}.heartbeat", "{}")
        time.sleep(30)

# With these two the bus says at once when nobody is there who answers.
login = {"user": env["NATS_USER"], "pass": env["NATS_PASSWORD"], "headers": True, "no_responders": True}
send(f"CONNECT {json.dumps(login)}\r\nSUB tasks.* 1\r\nSUB _INBOX.* 2\r\nSUB channel.flock.* 3\r\n")
threading.Thread(target=heartbeats, daemon=True).start()
incoming = bus.makefile("rb")
for verb, *words in map(bytes.split, incoming):  # MSG subject number [reply] size, HMSG … headers size
    if verb == b"PING":
        send("PONG\r\n")
    elif verb in (b"MSG", b"HMSG"):
        headers, size = int(words[-2]) if verb == b"HMSG" else 0, int(words[-1])
        text = incoming.read(size + 2)[headers:-2].decode()
        name = words[0].decode().split(".")[-1]
        if words[1] == b"1":  # a task
            publish(f"agent.{other}.requests", json.loads(text)["text"], "_INBOX." + json.loads(text)["id"])
        elif words[1] == b"2":  # the answer
            ended = {"output": text} if text else {"status": "failed", "reason": f"{other} is not there"}
            publish("task.result", json.dumps({"task": name, **ended}))
        else:
            print(f"{name} says on the channel: {text!r}", flush=True)
sys.exit("the bus closed the connection")
