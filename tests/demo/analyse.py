"""One shard of the demonstration's work; runs inside an agent, as a task.

Reads every n-th file of the corpus, counts its words and squeezes it with xz: seconds of CPU.
Prints one line of JSON.
"""

import collections
import json
import lzma
import pathlib
import re
import sys

shard, shards = int(sys.argv[1]), int(sys.argv[2])
corpus = sorted(p for p in pathlib.Path("/shared/common/corpus").rglob("*") if p.is_file())
words, size, packed = collections.Counter(), 0, 0
mine = corpus[shard::shards]
for path in mine:
    text = path.read_bytes()
    size += len(text)
    packed += len(lzma.compress(text, preset=9))
    words.update(re.findall(rb"[A-Za-z]{5,}", text.lower()))
print(json.dumps({
    "shard": shard,
    "files": len(mine),
    "bytes": size,
    "packed": packed,
    "words": {word.decode(): n for word, n in words.most_common(2000)},
}))
