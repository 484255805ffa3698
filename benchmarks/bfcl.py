"""BFCL episodes against the official checker, side by side in one process, and memory.

    python benchmarks/bfcl.py [--repeats 5] [--episodes 100000]

Time: the ground truth of all 800 tasks, one call a message, played as an episode of ours (tools,
gold beside them, verdict) and checked by the official checker, alternately; seconds of processor
time. Memory: resident size over many episodes of ours, and over 5,000 official checks, each under a
name of its own, as one check per sampled rollout needs.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

from toolrl_box.envs.bfcl import CATEGORIES, BfclEnv
from toolrl_box.envs.bfcl_package import records
from toolrl_box.types import Parsed, Task

OFFICIAL = "bfcl_eval.eval_checker.multi_turn_eval"
CHECKS = 5000
Turns = Sequence[Sequence[Parsed]]


def data(name: str) -> list[dict[str, Any]]:
    folder = Path(str(import_module("bfcl_eval").__file__)).parent / "data"
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def episodes() -> list[Callable[[], None]]:
    """One that plays each task's ground truth."""
    world = BfclEnv()
    end = Parsed("Done.", (), 0, ())

    def player(task: Task, turns: Turns) -> Callable[[], None]:
        def play() -> None:
            episode = world()
            episode.reset(task)
            for turn in turns:
                for message in turn:
                    episode.step(message)
                episode.step(end)
            assert episode.verdict.error is None

        return play

    return [
        player(
            world.task(category, index),
            [[Parsed("", (call,), 1, ()) for call in turn] for turn in record.calls],
        )
        for category in CATEGORIES
        for index, record in enumerate(records(category))
    ]


def official_checks() -> list[Callable[[str], None]]:
    """One that checks each task's ground truth as a model of the given name."""
    checker = import_module(f"{OFFICIAL}.multi_turn_checker")

    def check_of(task: dict[str, Any], truth: list[list[str]]) -> Callable[[str], None]:
        said = [[[call] for call in turn] for turn in truth]

        def check(name: str) -> None:
            assert checker.multi_turn_checker(said, truth, task, "", name)["valid"]

        return check

    return [
        check_of(task, answer["ground_truth"])
        for category in CATEGORIES
        for task, answer in zip(
            data(f"BFCL_v4_multi_turn_{category}.json"),
            data(f"possible_answer/BFCL_v4_multi_turn_{category}.json"),
            strict=True,
        )
    ]


def forget() -> None:
    """Remove the instances that the official executor keeps."""
    namespace = vars(import_module(f"{OFFICIAL}.multi_turn_utils"))
    for name in [name for name in namespace if name.endswith("_instance")]:
        del namespace[name]


def speed(repeats: int) -> None:
    ours, theirs = episodes(), official_checks()
    ratios: list[float] = []
    for repeat in range(repeats + 1):
        taken = [0.0, 0.0]
        for play, check in zip(ours, theirs, strict=True):
            start = time.process_time()
            play()
            between = time.process_time()
            check("model")
            taken[0] += between - start
            taken[1] += time.process_time() - between
            forget()
        if repeat:  # the first warms up
            ratios.append(taken[1] / taken[0])
            each = [1000 * seconds / len(ours) for seconds in taken]
            print(f"ms a task: ours {each[0]:.2f}, official {each[1]:.2f}, {ratios[-1]:.2f} x")
    print(
        f"median {statistics.median(ratios):.2f} x the official speed, smallest {min(ratios):.2f}"
    )


def resident() -> float:
    gc.collect()
    return psutil.Process().memory_info().rss / 1024


def memory(count: int) -> None:
    ours, theirs = episodes(), official_checks()
    for play in ours:
        play()
    before = resident()
    for number in range(count):
        ours[number % len(ours)]()
        if number + 1 in (count // 4, count // 2, count):
            grown = resident() - before
            print(f"ours: {grown:+.0f} KB after {number + 1} episodes")
    for check in theirs:
        check("model")
    forget()
    before = resident()
    for number in range(CHECKS):
        theirs[number % len(theirs)](f"model{number}")
    grown = resident() - before
    print(f"official: {grown:+.0f} KB after {CHECKS} checks, {grown / CHECKS:.1f} KB each")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=100_000)
    arguments = parser.parse_args()
    speed(arguments.repeats)
    memory(arguments.episodes)


if __name__ == "__main__":
    main()
