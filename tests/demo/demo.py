"""The demonstration: three isolated agents do real work in parallel. Runs as root in a lab.

A corpus of real files is put in /shared/common, one task for each shard of it goes to the shared
queue, and what every agent did is printed.
"""

import collections
import json
import pathlib
import shutil
import subprocess
import sys
import threading
import time

SHARDS = 12
COMMON = pathlib.Path("/var/lib/flock/shared/common")
SOURCES = ["/usr/lib/python3.13", "/usr/lib/python3.11", "/usr/share/common-licenses"]
HERE = pathlib.Path(__file__).parent


def say(text=""):
    print(text, flush=True)


def run(*argv):
    say(f"\n# {' '.join(argv)}")
    done = subprocess.run(argv)
    if done.returncode:
        sys.exit(f"demo: {' '.join(argv)}: exit status {done.returncode}")


def corpus():
    """Real files, where every agent may read them and none may write."""
    target = COMMON / "corpus"
    count = size = 0
    for source in filter(pathlib.Path.is_dir, map(pathlib.Path, SOURCES)):
        for path in sorted(source.glob("*")):
            if path.is_file() and path.suffix in (".py", ""):
                target.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target / path.name)
                count, size = count + 1, size + path.stat().st_size
    shutil.copyfile(HERE / "analyse.py", COMMON / "analyse.py")
    say(f"{count} files, {size / 1e6:.1f} MB in /shared/common/corpus")


def send(shard, results):
    """One task for whichever agent is free."""
    task = f"exec python3 /shared/common/analyse.py {shard} {SHARDS}"
    done = subprocess.run(["flockctl", "task", "send", "--any", "--wait", "--json", task],
                          capture_output=True, text=True)
    if done.returncode:
        say(f"  shard {shard:2}: {done.stderr.strip() or done.stdout.strip()}")
        return
    result = json.loads(done.stdout.strip().splitlines()[-1])
    results.append(result)
    say(f"  shard {shard:2}: done by {result['agent']} in {seconds(result):.1f} s")


def seconds(result):
    return stamp(result["finished"]) - stamp(result["started"])


def stamp(text):
    """RFC 3339 with any number of digits after the second."""
    import datetime
    whole, _, rest = text.rstrip("Z").partition(".")
    base = datetime.datetime.fromisoformat(whole + "+00:00").timestamp()
    return base + float(f"0.{rest or 0}")


def most_at_once(results):
    """How many agents worked at the same moment, at the most."""
    moments = sorted({stamp(r["started"]) for r in results})
    working = lambda t: {r["agent"] for r in results if stamp(r["started"]) <= t < stamp(r["finished"])}
    return max((len(working(t)) for t in moments), default=0)


def main():
    say("== three agents and the bus ==")
    corpus()
    run("systemctl", "enable", "--now", "flock.target")
    run("flockctl", "status")

    say(f"\n== {SHARDS} tasks for the shared queue ==")
    results, began = [], time.monotonic()
    threads = [threading.Thread(target=send, args=(s, results)) for s in range(SHARDS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall = time.monotonic() - began

    say("\n== what each agent did ==")
    by_agent = collections.defaultdict(list)
    for result in results:
        by_agent[result["agent"]].append(result)
    for agent, done in sorted(by_agent.items()):
        parts = [json.loads(r["output"]) for r in done]
        say(f"{agent}: {len(done)} tasks, {sum(map(seconds, done)):.1f} s of work, "
            f"{sum(p['files'] for p in parts)} files, {sum(p['bytes'] for p in parts) / 1e6:.1f} MB; "
            f"results in /var/lib/flock/shared/agents/{agent}/results/")
    parts = [json.loads(r["output"]) for r in results]
    words = collections.Counter()
    for part in parts:
        words.update(part["words"])
    size, packed = sum(p["bytes"] for p in parts), sum(p["packed"] for p in parts)
    worked = sum(map(seconds, results))
    say(f"together: {size / 1e6:.1f} MB, xz makes it {100 * packed / max(size, 1):.0f} %; "
        f"most frequent: {', '.join(w for w, _ in words.most_common(6))}")
    say(f"in parallel: {worked:.1f} s of work in {wall:.1f} s, "
        f"{most_at_once(results)} agents at the same moment")

    run("flockctl", "status")
    run("flockctl", "explain", "agent-1")
    say("\nlogs: flockctl logs agent-1, or journalctl -u flock-agent@agent-1; its last lines:")
    run("flockctl", "logs", "-n", "5", "agent-1")
    if len(results) != SHARDS or len(by_agent) < 2:
        sys.exit(f"demo: {len(results)} of {SHARDS} tasks were done, by {len(by_agent)} agents")
    say("\nThat was real work behind three boundaries. Next: flockctl explain, flockctl doctor.")


main()
