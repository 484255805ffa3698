"""Messages per second and peak memory of `toolrl diagnose`, by size of the log.

    python benchmarks/diagnose.py RUN_DIR [--messages 10000 100000 1000000] [--file]

Takes the dialogues of a real run folder in turn, under new steps (64 rollouts each), until there
are so many messages: one process a size. Without ``--file`` the records are made in memory and only
judging, adding up and concluding are timed (CPU seconds of one thread); making them is timed apart
and subtracted. With ``--file`` they are first written as chat JSONL, and everything from opening
that file on is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from toolrl_box.diagnose.judge import written
from toolrl_box.diagnose.records import LoggedRollout
from toolrl_box.diagnose.session import Session
from toolrl_box.diagnose.sources import detect

SIZES = (10_000, 100_000, 1_000_000)
PER_STEP = 64
DIALOGUES = 2000


def dialogues(run: Path) -> list[LoggedRollout]:
    """Up to 2000 of the run, from all of its steps."""
    found = [r for r in detect([run]).records() if isinstance(r, LoggedRollout) and written(r)]
    return found[:: max(1, len(found) // DIALOGUES)]


def records(source: list[LoggedRollout], messages: int) -> Iterator[LoggedRollout]:
    made = 0
    for number in count():
        rollout = source[number % len(source)]
        step = number // PER_STEP
        yield replace(rollout, id=f"r{number}", step=step, group=f"{step}/{number % PER_STEP // 8}")
        made += len(written(rollout))
        if made >= messages:
            return


def in_memory(run: Path, messages: int) -> dict[str, float]:
    source = dialogues(run)
    start = time.process_time()
    for _ in records(source, messages):
        pass
    making = time.process_time() - start
    session = Session()
    start = time.process_time()
    session.add(records(source, messages))
    session.diagnosis("benchmark")
    seconds = time.process_time() - start - making
    return {"messages": session.aggregate.messages, "seconds": seconds}


def from_file(run: Path, messages: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        with path.open("w") as file:
            for rollout in records(dialogues(run), messages):
                file.write(json.dumps(_line(rollout)) + "\n")
        session = Session()
        start = time.process_time()
        session.read([path])
        session.diagnosis("benchmark")
        seconds = time.process_time() - start
    return {"messages": session.aggregate.messages, "seconds": seconds}


def _line(rollout: LoggedRollout) -> dict[str, object]:
    return {
        "messages": [{"role": m.role, "content": m.text} for m in rollout.messages],
        "step": rollout.step,
        "id": rollout.id,
        "group": rollout.group,
        "reward": rollout.reward,
        "category": rollout.category,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--messages", type=int, nargs="+", default=SIZES)
    parser.add_argument("--file", action="store_true")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one is not None:
        figures = (from_file if given.file else in_memory)(given.run, given.one)
        figures["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(figures))
        return
    print(f"{'messages':>10}{'CPU seconds':>14}{'messages/s':>12}{'peak MB':>10}")
    for size in given.messages:
        command = [sys.executable, __file__, str(given.run), "--one", str(size)]
        done = subprocess.run(  # noqa: S603 - this file
            command + ["--file"] * given.file, capture_output=True, text=True, check=True
        )
        row = json.loads(done.stdout.splitlines()[-1])
        rate = row["messages"] / row["seconds"]
        print(f"{row['messages']:>10}{row['seconds']:>14.2f}{rate:>12.0f}{row['peak_mb']:>10.0f}")


if __name__ == "__main__":
    main()
