"""One way to answer a Parquet file of covers by an unpacked archive, without vlserve's own job.

    python -P benchmarks/lib/offline_ways.py WAY FOLDER INPUT OUT WORKERS

Imports the standard library, pyarrow and the archive alone, because a process holds one `vlserve`.
Prints one line of JSON with the CPU seconds, where only the way itself knows them.
"""

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

BATCH = 8
_open: dict[str, Any] = {}


def answers(folder: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the JSON of each row's answer, by batches of 8."""
    if folder not in _open:
        sys.path.insert(0, folder)
        from vlserve.runtime.folder import open_folder

        _open[folder] = open_folder(Path(folder), threads=1)
    from vlserve.runtime.types import Request

    texts: list[str] = []
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        fields = [{"image": row["image"], "text": row["text"]} for row in batch]
        result = _open[folder].run([Request(item, "bench") for item in fields])
        assert all(result.texts), "a row has no answer"
        texts += result.texts
    return texts


def groups(input: str) -> int:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(input) as file:
        return int(file.num_row_groups)


def rows_of(input: str, group: int) -> list[dict[str, Any]]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(input) as file:
        rows: list[dict[str, Any]] = file.read_row_group(group).to_pylist()
    return rows


def limit(folder: str, input: str, out: str, workers: int) -> dict[str, float]:
    """Answers alone: every image lies in memory before the clock starts. CPU of all processes."""
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        turns = [(folder, input, turn, workers) for turn in range(workers)]
        return {"cpu_s": sum(pool.starmap(_limit, turns, chunksize=1))}


def _limit(folder: str, input: str, turn: int, workers: int) -> float:
    own = range(turn, groups(input), workers)
    rows = [row for group in own for row in rows_of(input, group)]
    answers(folder, rows[: 2 * BATCH])
    began_s = time.process_time()
    answers(folder, rows)
    return time.process_time() - began_s


def pool(folder: str, input: str, out: str, workers: int) -> dict[str, float]:
    """Plain multiprocessing: a row group a task, a file a task."""
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        tasks = [(folder, input, group, out) for group in range(groups(input))]
        pool.starmap(_group, tasks, chunksize=1)
        pool.close()
        pool.join()
    return {}


def _group(folder: str, input: str, group: int, out: str) -> None:
    texts = answers(folder, rows_of(input, group))
    (Path(out) / f"{group:05}.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8")


def ray_data(folder: str, input: str, out: str, workers: int) -> dict[str, float]:
    """Ray Data: `map_batches` with actors. CPU of Ray's processes, which are no children of ours
    that have ended, so they are asked before they end."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import psutil
    import ray

    class Answer:
        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            rows = [
                {"image": bytes(image), "text": str(text)}
                for image, text in zip(batch["image"], batch["text"], strict=True)
            ]
            return {"id": batch["id"], "answer": answers(folder, rows)}

    ray.init(address="local", num_cpus=workers + 1, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    data = ray.data.read_parquet(input, override_num_blocks=max(groups(input), 1))
    data = data.map_batches(
        Answer, batch_size=BATCH, compute=ray.data.ActorPoolStrategy(size=workers), num_cpus=1
    )
    data.write_parquet(out)
    cpu_s = sum(_cpu_s(process) for process in _tree(psutil.Process()))
    ray.shutdown()
    return {"cpu_s": cpu_s}


def _tree(process: Any) -> Iterator[Any]:
    yield process
    yield from process.children(recursive=True)


def _cpu_s(process: Any) -> float:
    times = process.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


WAYS = {"limit": limit, "pool": pool, "ray_data": ray_data}

if __name__ == "__main__":
    way, folder, input, out, workers = sys.argv[1:]
    print(json.dumps(WAYS[way](folder, input, out, int(workers))), flush=True)
