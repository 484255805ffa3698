"""Sampled tokens per second of the same episodes with transformers and with vLLM, side by side.

    python benchmarks/rollouts.py [--model pocket] [--episodes 48] [--repeats 5] [--set KEY=VALUE]

Both engines play the same training tasks of the pocket world with the same weights and one compute
thread, in turns; a weight sync before vLLM's turn counts for it, as in training. Prints the median
speed of each, the seconds of a sync, and the median of the pairwise ratios. Needs vLLM: run it in
the environment of ``make vllm-env``. Seconds depend on the machine and its load, ratios less so.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from toolrl_box.config import load
from toolrl_box.envs import build_world
from toolrl_box.formats import FORMATS
from toolrl_box.lab import gold_bank
from toolrl_box.models import load_model
from toolrl_box.policies.hf import HFPolicy
from toolrl_box.policies.vllm import VLLMPolicy
from toolrl_box.rollout import run_episodes
from toolrl_box.sampler import sampler_for
from toolrl_box.types import Policy, Sampling


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--episodes", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--set", dest="sets", action="append", default=[])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = load(
        None,
        [
            *("rollout.engine=vllm", "grpo.prompts_per_step=1", "grpo.mini_batches=1"),
            *(f"grpo.group_size={arguments.episodes}", "env.eval_tasks=1"),
            *arguments.sets,
        ],
        {"model.name": arguments.model},
    )
    loaded = load_model(config.model.name, config.model.precision)
    own = HFPolicy(loaded.model, loaded.tokenizer, loaded.stop_ids, loaded.tokenizer.pad_token_id)
    world = build_world(config.env.name, config.env.knobs)
    fmt = FORMATS[config.format]
    checked = gold_bank(config, fmt, world, own.encode).sequences
    start = time.perf_counter()
    vllm = sampler_for(config, loaded, own, checked)
    assert isinstance(vllm, VLLMPolicy)
    print(f"vLLM started in {time.perf_counter() - start:.0f} s")
    tasks = world.tasks("train", arguments.episodes, config.env.seed)

    def play(policy: Policy, seed: int) -> float:
        """Tokens per second."""
        begin = time.perf_counter()
        rollouts = run_episodes(
            tasks,
            policy,
            fmt,
            world,
            own.encode,
            own.decode,
            Sampling(config.rollout.temperature, config.rollout.max_new_tokens, seed),
            max_messages=config.rollout.max_messages,
            max_tokens=config.rollout.max_tokens,
            max_observation_tokens=config.rollout.max_observation_tokens,
        )
        tokens = sum(len(turn.completion_ids) for r in rollouts for turn in r.turns)
        return tokens / (time.perf_counter() - begin)

    engines: dict[str, Policy] = {"transformers": own, "vllm": vllm}
    speeds: dict[str, list[float]] = {name: [] for name in engines}
    for repeat in range(arguments.repeats + 1):
        for name, policy in engines.items():
            speed = play(policy, repeat)
            if repeat:  # the first round warms up
                speeds[name].append(speed)
            print(f"  round {repeat}: {name} {speed:.1f} tokens/s", flush=True)
    syncs = [timed(vllm.engine.sync) for _ in range(3)]
    print(f"{arguments.model}, {arguments.episodes} episodes, {config.model.precision}:")
    for name, values in speeds.items():
        print(
            f"  {name:<13}{statistics.median(values):7.1f} tokens/s"
            f"  ({min(values):.1f} to {max(values):.1f}, {len(values)} rounds)"
        )
    ratios = [a / b for a, b in zip(speeds["vllm"], speeds["transformers"], strict=True)]
    print(f"  ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    print(f"  sync  {statistics.median(syncs):.2f} s")


def timed(action: Callable[[], None]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
