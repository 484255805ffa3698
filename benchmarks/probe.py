"""What a probe costs by the size of its bank, beside real steps of training, in one process.

    python benchmarks/probe.py [--steps 12]

Trains a short run of the default laboratory (6 x 8 rollouts) and, after each of its steps, times
one probe of every bank size on a model of the same size. Prints the median milliseconds of a probe
and the median share of the step before it (its own default probe and logging included), by
contexts: beginnings and ends of the assistant's messages, where control tokens are due (the
prototype counted these; every token that an assistant wrote is scored). Times are CPU times of the
one thread, which other jobs on the machine change less than the clock's; shares are what counts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch

from toolrl_box import lab
from toolrl_box.config import RunConfig, load
from toolrl_box.envs import build_world
from toolrl_box.formats import FORMATS
from toolrl_box.models import load_model
from toolrl_box.probe.bank import SLOTS, Bank
from toolrl_box.probe.probe import Probe
from toolrl_box.progress import silence
from toolrl_box.recorder import Line

SIZES = (16, 32, 64, 128, 256, 512)
ENDS = ("after_call", "end_text")  # one token each in this format
WARM = 2


def contexts(bank: Bank) -> int:
    """Beginnings and ends of the bank's messages."""
    return 2 * sum(SLOTS[slot] in ENDS for slot in bank.slots_N)


def banks(config: RunConfig) -> list[tuple[int, Bank]]:
    """Dialogues and bank: the smallest one with at least so many contexts, and the default's."""
    world = build_world(config.env.name, config.env.knobs)
    policy_model = load_model(config.model.name)
    found: dict[int, Bank] = {}

    def made(episodes: int) -> Bank:
        probe = config.probe.model_copy(update={"episodes": episodes})
        settings = config.model_copy(update={"probe": probe})
        return lab.gold_bank(settings, FORMATS[config.format], world, encode)

    def encode(text: str) -> list[int]:
        ids: list[int] = policy_model.tokenizer.encode(text, add_special_tokens=False)
        return ids

    for size in SIZES:
        episodes = max(1, size // 16)
        while contexts(bank := made(episodes)) < size:
            episodes += max(1, episodes // 8)
        found[episodes] = bank
    found[config.probe.episodes] = made(config.probe.episodes)
    return sorted(found.items())


def measure(steps: int) -> None:
    config = load(None, [f"steps={steps}", "scheme=rl", "grpo.lr=2e-4", "eval.every=1000"])
    loaded = load_model(config.model.name)
    chosen = banks(config)
    probes = [Probe(loaded.model, bank, int(loaded.tokenizer.pad_token_id)) for _, bank in chosen]
    seconds: list[list[float]] = [[] for _ in probes]
    stepped: list[float] = []
    ended = 0.0

    def show(line: Line) -> None:
        nonlocal ended
        if line.row["step"]:
            stepped.append(time.process_time() - ended)
            for probe, spent in zip(probes, seconds, strict=True):
                start = time.process_time()
                probe()
                spent.append(time.process_time() - start)
        ended = time.process_time()

    with tempfile.TemporaryDirectory() as folder:
        lab.start(config, Path(folder) / "run", lab.Watch(show=show))
    whole = stepped[WARM:]
    print(
        f"\nstep {statistics.median(whole):.2f} CPU seconds, median of {len(whole)}; load "
        f"{os.getloadavg()[0]:.1f}\n"
    )
    print("| Contexts | Dialogues | Scored tokens | CPU ms per probe | Share of a step |")
    print("|---|---|---|---|---|")
    for (episodes, bank), spent in zip(chosen, seconds, strict=True):
        shares = [one / step for one, step in zip(spent[WARM:], whole, strict=True)]
        default = " (default)" if episodes == config.probe.episodes else ""
        print(
            f"| {contexts(bank)} | {episodes}{default} | {len(bank.slots_N)} "
            f"| {1000 * statistics.median(spent[WARM:]):.0f} | {statistics.median(shares):.1%} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    arguments = parser.parse_args()
    silence()
    torch.set_num_threads(1)
    measure(arguments.steps)


if __name__ == "__main__":
    main()
