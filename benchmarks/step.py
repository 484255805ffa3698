"""Where a step's time goes, and our rollout loop against TRL's own, in one process.

    python benchmarks/step.py [--steps 12] [--repeats 5]

Part 1 trains a short run of the default laboratory (6 x 8 rollouts) and prints the median seconds
of rollout, forward, backward, probe and logging. Part 2 plays the same single-turn tasks with the
same weights twice, alternating: with ``run_episodes`` and with the tool loop that TRL's
``GRPOTrainer`` runs natively over an ``environment_factory``; it prints sampled tokens per second
of both and the median of the pairwise ratios. Figures are ratios within one process: absolute
seconds depend on the machine and its load.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer
from trl.chat_template_utils import qwen3_schema, qwen3_template

from toolrl_box import lab
from toolrl_box.config import load
from toolrl_box.envs.pocket import PocketEnv, execute, make_task, spec
from toolrl_box.envs.pocket_words import TOOLS, ToolRow
from toolrl_box.formats import FORMATS, to_chat
from toolrl_box.models import load_model
from toolrl_box.policies.hf import HFPolicy
from toolrl_box.progress import silence
from toolrl_box.rollout import run_episodes
from toolrl_box.runlog import RunLog
from toolrl_box.types import Sampling, Task

PARTS = ("rollout", "forward", "backward", "probe", "logging")
GROUPS, GROUP_SIZE, MAX_NEW = 6, 8, 48
ROLLOUT_GROUPS = 2  # six take TRL's own loop minutes


def split_step(steps: int) -> None:
    """Part 1. The first two steps (warm-up of allocators and kernels) are left out."""
    with tempfile.TemporaryDirectory() as folder:
        config = load(None, [f"steps={steps}", "scheme=rl", "grpo.lr=2e-4", "eval.every=1000"])
        lab.start(config, Path(folder) / "run")
        frame = RunLog.open(Path(folder) / "run").metrics().iloc[3:]
    medians = {part: statistics.median(frame[f"seconds_{part}"]) for part in PARTS}
    whole = statistics.median(
        frame["seconds_step"] + frame["seconds_probe"] + frame["seconds_logging"]
    )
    print(f"\nOne step, {GROUPS} x {GROUP_SIZE} rollouts, median of {len(frame)}:")
    for part, seconds in medians.items():
        print(f"  {part:<9}{seconds:7.3f} s  {seconds / whole:6.1%}")
    print(f"  {'other':<9}{whole - sum(medians.values()):7.3f} s")
    print(f"  {'step':<9}{whole:7.3f} s")


# --- part 2 -------------------------------------------------------------------------------------


def tool_method(row: ToolRow) -> Callable[..., str]:
    """A pocket tool as TRL wants it: a method with typed parameters and a docstring."""

    def method(self: Any, **arguments: Any) -> str:
        return json.dumps(execute(row, arguments, self.state))

    kinds: dict[str, type] = {p: int if p == "count" else str for p in row.params}
    method.__name__ = method.__qualname__ = row.name
    method.__doc__ = f"Tool {row.name}.\n\nArgs:\n" + "".join(f"    {p}: The {p}.\n" for p in kinds)
    method.__annotations__ = {**kinds, "return": str}
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    method.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter("self", positional)]
        + [inspect.Parameter(p, positional, annotation=kind) for p, kind in kinds.items()],
        return_annotation=str,
    )
    return method


def native_environment(tasks: dict[str, Task]) -> type:
    """The pocket tools behind TRL's environment protocol; an episode starts from its task."""

    def reset(self: Any, task_id: str | None = None, **_: Any) -> None:
        self.state = copy.deepcopy(tasks[task_id].target["state"]) if task_id else {}

    def get_reward(self: Any) -> float:
        return 0.0

    methods = {row.name: tool_method(row) for row in TOOLS}
    return type("PocketTools", (), {"reset": reset, "get_reward": get_reward, **methods})


def native_rollout(folder: Path, tasks: list[Task]) -> Callable[[], int]:
    """A function that plays the tasks through TRL's own loop and counts the sampled tokens."""
    loaded = load_model("pocket-clean")
    loaded.tokenizer.response_schema = qwen3_schema  # the Hermes call is Qwen's
    loaded.tokenizer.response_template = qwen3_template
    rows = [{"prompt": to_chat(task.prompt), "task_id": task.id} for task in tasks]
    trainer = GRPOTrainer(
        model=loaded.model,
        processing_class=loaded.tokenizer,
        environment_factory=native_environment({task.id: task for task in tasks}),
        train_dataset=Dataset.from_list(rows),
        args=GRPOConfig(
            output_dir=str(folder),
            use_cpu=True,
            bf16=False,
            report_to=[],
            max_steps=1,
            gradient_checkpointing=False,
            per_device_train_batch_size=ROLLOUT_GROUPS * GROUP_SIZE,
            num_generations=GROUP_SIZE,
            max_completion_length=400,
            max_tool_calling_iterations=3,
            temperature=1.0,
            generation_kwargs={"max_new_tokens": MAX_NEW},
        ),
    )
    batch = [row for row in rows for _ in range(GROUP_SIZE)]
    trainer.model.train()

    def play() -> int:
        with torch.no_grad():
            output = trainer._generate_and_score_completions([dict(row) for row in batch])
        return int((output["completion_mask"] * output["tool_mask"]).sum())

    return play


def our_rollout(tasks: list[Task]) -> Callable[[], int]:
    """The same with ``run_episodes``."""
    loaded = load_model("pocket-clean")
    pad = int(loaded.tokenizer.pad_token_id)
    policy = HFPolicy(loaded.model, loaded.tokenizer, loaded.stop_ids, pad)
    batch = [task for task in tasks for _ in range(GROUP_SIZE)]

    def play() -> int:
        rollouts = run_episodes(
            batch,
            policy,
            FORMATS["hermes"],
            PocketEnv(),
            policy.encode,
            policy.decode,
            Sampling(1.0, MAX_NEW, seed=0),
            max_messages=4,
            max_tokens=1024,
        )
        return sum(len(turn.completion_ids) for rollout in rollouts for turn in rollout.turns)

    return play


def compare_rollouts(repeats: int) -> None:
    """Part 2: single-turn tasks in which all fourteen tools are listed, as TRL lists them."""
    listed = tuple(spec(row) for row in TOOLS)
    tasks = [
        replace(make_task("heldout", f"heldout-bench-{i}", "base", turns=1), tools=listed)
        for i in range(ROLLOUT_GROUPS)
    ]
    with tempfile.TemporaryDirectory() as folder:
        loops = {"ours": our_rollout(tasks), "TRL's": native_rollout(Path(folder), tasks)}
        speeds: dict[str, list[float]] = {name: [] for name in loops}
        for repeat in range(repeats + 1):
            for name, play in loops.items():
                start = time.perf_counter()
                tokens = play()
                if repeat:  # the first round warms up
                    speeds[name].append(tokens / (time.perf_counter() - start))
    episodes = f"{ROLLOUT_GROUPS} x {GROUP_SIZE} single-turn episodes"
    print(f"\nRollout of {episodes}, sampled tokens per second:")
    for name, values in speeds.items():
        print(f"  {name:<6}{statistics.median(values):8.0f}  (min {min(values):.0f})")
    ratios = [a / b for a, b in zip(speeds["ours"], speeds["TRL's"], strict=True)]
    print(f"  ratio {statistics.median(ratios):8.2f}  (min {min(ratios):.2f}, {len(ratios)} pairs)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    silence()
    torch.set_num_threads(1)
    split_step(arguments.steps)
    compare_rollouts(arguments.repeats)


if __name__ == "__main__":
    main()
