# One of two agents that talk: it answers what others request of it, and says on the channel that it did.
# The other one: ask.py; how to install both: plain-agents.toml
import json, os, socket, sys, threading, time, urllib.parse

me, url = os.environ["AGENT_ID"], urllib.parse.urlsplit(os.environ["NATS_URL"])
bus = socket.create_connection((url.hostname, url.port))
one_at_a_time = threading.Lock()

def send(text):
    with one_at_a_time:
        bus.sendall(text.encode())

def publish(subject, text):
    send(f"PUB {subject} {len(text.encode())}\r\n{text}\r\n")

def heartbeats():
    while True:
        publish(f"agent.{me}.heartbeat", "{}")
        time.sleep(30)

login = {"user": os.environ["NATS_USER"], "pass": os.environ["NATS_PASSWORD"], "verbose": False}
send(f"CONNECT {json.dumps(login)}\r\nSUB agent.{me}.requests.* 1\r\n")
threading.Thread(target=heartbeats, daemon=True).start()
incoming = bus.makefile("rb")
for verb, *words in map(bytes.split, incoming):  # MSG subject number reply size
    if verb == b"PING":
        send("PONG\r\n")
    elif verb == b"MSG":
        text = incoming.read(int(words[-1]) + 2)[:-2].decode()
        asker = words[0].decode().split(".")[-1]  # the server puts it there, nobody can forge it
        publish(words[2].decode(), f"the longest word is {max(text.split() or ['none'], key=len)}")
        publish("channel.flock", f"answered {asker}")
        print(f"{asker} asked: {text!r}", flush=True)
    elif verb == b"-ERR":
        print("the bus says", *words, flush=True)
sys.exit("the bus closed the connection")
