# An agent that speaks the protocol of NATS itself: it needs Python alone, no library, nothing of flock.
# It counts words. How to install it: plain-agents.toml
import json, os, socket, sys, threading, time, urllib.parse

me, url = os.environ["AGENT_ID"], urllib.parse.urlsplit(os.environ["NATS_URL"])
bus = socket.create_connection((url.hostname, url.port))
one_at_a_time = threading.Lock()

def send(text):
    with one_at_a_time:
        bus.sendall(text.encode())

def publish(subject, **message):
    body = json.dumps({"at": time.strftime("%FT%TZ", time.gmtime()), **message})  # in ASCII
    send(f"PUB {subject} {len(body)}\r\n{body}\r\n")

def heartbeats():
    while True:
        publish(f"agent.{me}.heartbeat")
        time.sleep(30)

login = {"user": os.environ["NATS_USER"], "pass": os.environ["NATS_PASSWORD"], "verbose": False}
send(f"CONNECT {json.dumps(login)}\r\nSUB tasks.* 1\r\n")
threading.Thread(target=heartbeats, daemon=True).start()
incoming = bus.makefile("rb")
for line in incoming:
    if line.startswith(b"MSG "):
        task = json.loads(incoming.read(int(line.split()[-1]) + 2))
        publish(f"agent.{me}.events", event="task-started", task=task["id"])
        count = len(task["text"].split())
        publish("task.result", task=task["id"], output=f"{count} words")
        print(f"task {task['id']}: {count} words", flush=True)  # goes to the journal
    elif line.startswith(b"PING"):
        send("PONG\r\n")
    elif line.startswith(b"-ERR"):
        print("the bus says", line, flush=True)
sys.exit("the bus closed the connection")  # and PID 1 starts the agent again
