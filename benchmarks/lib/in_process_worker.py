"""One process of the in-process limit: told a batch size and how many seconds, a line each, it
answers the photos for so long and says what it did. It loads the archive's own copy of the runtime,
so nothing that it imports before may load another.
"""

import json
import sys
import time
from pathlib import Path
from statistics import median


def main(folder: Path) -> None:
    from benchmarks.peers.answering import Answering

    answer = Answering(folder)
    from benchmarks.lib.photos import drawn_for

    items = [(photo.shown, photo.text.encode()) for photo in drawn_for(answer.manifest)]
    print("ready", flush=True)
    for line in sys.stdin:
        batch_size, seconds = int(line.split()[0]), float(line.split()[1])
        start_s, next_item, latencies_ms = time.monotonic(), 0, []
        while (now_s := time.monotonic()) - start_s < seconds:
            answer([items[(next_item + offset) % len(items)] for offset in range(batch_size)])
            next_item += batch_size
            latencies_ms.append((time.monotonic() - now_s) * 1000)
        seconds = time.monotonic() - start_s
        result = {"items": next_item, "seconds": seconds, "batch_p50_ms": median(latencies_ms)}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
