# An agent in mode json-lines: it is started once and gets each task as a line. It needs nothing of flock:
#   [agents.my-lines]
#   mode = "json-lines"
#   command = ["/usr/bin/python3", "/opt/my-lines/json_lines.py"]
#   read-only-paths = ["/opt/my-lines"]
import collections, json, sys, threading, time

# What takes long is done once, here: load a model, open a database.
COMMON = set("a an and are as at be by for from in is it of on or that the this to was with".split())
cancelled = set()

def answer(**line):
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()

def work(task):
    """The most frequent words of the text; "wait 3" at its beginning takes 3 seconds."""
    words = task["text"].lower().split()
    if words[:1] == ["wait"]:
        end = time.monotonic() + float(words[1])
        while time.monotonic() < end and task["id"] not in cancelled:
            time.sleep(0.05)
    if task["id"] in cancelled:
        return answer(id=task["id"], status="failed", reason="given up as asked")
    counts = collections.Counter(word.strip(".,;:!?") for word in words if word not in COMMON)
    answer(id=task["id"], output=counts.most_common(3))

for line in sys.stdin:
    task = json.loads(line)
    if "cancel" in task:
        cancelled.add(task["cancel"])
    else:
        threading.Thread(target=work, args=(task,), daemon=True).start()
