"""What a group's shared prompt is worth in training, by the number of examples in the prompt.

    python benchmarks/prompts.py [--steps 4] [--repeats 2]

Short runs of the search world (6 x 8 rollouts) with 0 to 3 examples, alternately with each prompt
computed once a group and once a row; prints the median seconds of forward and backward together
and their ratio. Rollouts are not part of it: they share prompts never or always.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch

from toolrl_box import lab
from toolrl_box.config import load
from toolrl_box.progress import silence
from toolrl_box.runlog import RunLog


def seconds(shots: int, share: bool, steps: int, seed: int) -> list[float]:
    """Forward and backward of each step but the first; the same rollouts whether shared or not
    up to rounding."""
    sets = [
        *("env=search", "scheme=icrl", f"scheme.shots=[{shots}]", "grpo.lr=2e-4"),
        *(f"steps={steps}", f"seed={seed}", "env.eval_tasks=2", "eval.every=1000"),
    ]
    decide = "toolrl_box.trl_backend.shares_prompts"
    with tempfile.TemporaryDirectory() as folder, mock.patch(decide, return_value=share):
        lab.start(load(sets=sets), Path(folder) / "run")
        frame = RunLog.open(Path(folder) / "run").metrics().iloc[2:]
    return list(frame["seconds_forward"] + frame["seconds_backward"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    silence()
    torch.set_num_threads(1)
    print("examples   once a row   once a group   ratio")
    for shots in range(4):
        taken: dict[bool, list[float]] = {False: [], True: []}
        for seed in range(arguments.repeats):
            for share in (False, True):
                taken[share] += seconds(shots, share, arguments.steps, seed)
        apart, shared = (statistics.median(taken[share]) for share in (False, True))
        print(f"{shots:8d}{apart:11.2f} s{shared:13.2f} s{apart / shared:8.2f}")


if __name__ == "__main__":
    main()
