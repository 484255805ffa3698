"""Turns what TRL logs per mini-batch into one result per step.

Input: a trainer's ``on_log`` events, stopwatches around its methods, and the step's rollouts.
Output: a :class:`~toolrl_box.train.StepResult` handed to ``on_step``, whose answer ends training.

Left out: anything of TRL's own; a plain transformers callback is enough.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from toolrl_box.train import OnStep, StepResult
from toolrl_box.types import Group

# TRL log key -> our figure.
FIGURES = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "entropy": "entropy",
    "clip_ratio/region_mean": "clip_fraction",
    "kl": "kl",
    "sft_term_nll": "sft_term_nll",
    "sft_term_weight": "sft_term_weight",
}


class Meter(TrainerCallback):
    """Adds up what TRL logs over the mini-batches of a step and tells ``on_step`` after the last.

    ``on_log`` comes after the update and before TRL looks whether training should stop.
    """

    def __init__(self, mini_batches: int, on_step: OnStep) -> None:
        self.mini_batches = mini_batches
        self._on_step = on_step
        self._sums: dict[str, float] = {}
        self._counts: dict[str, float] = {}
        self._logs: list[dict[str, float]] = []
        self._started = time.perf_counter()
        self.groups: tuple[Group, ...] = ()
        self.rl_step = 0
        self.logprobs: list[list[float]] = []

    @property
    def updates(self) -> int:
        """Updates of the present step that are done."""
        return len(self._logs)

    def add(self, name: str, seconds: float) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + seconds

    def count(self, name: str, amount: float) -> None:
        """Add to a figure that is a step's total."""
        self._counts[name] = self._counts.get(name, 0.0) + amount

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - start)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._started = time.perf_counter()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if logs is None or "loss" not in logs:  # TRL's closing summary
            return
        self._logs.append({k: float(v) for k, v in logs.items() if isinstance(v, int | float)})
        if len(self._logs) < self.mini_batches:
            return
        figures = {
            ours: sum(log[theirs] for log in self._logs) / len(self._logs)
            for theirs, ours in FIGURES.items()
            if theirs in self._logs[0]
        }
        figures["lr"] = self._logs[-1]["learning_rate"]
        figures.update(self._counts)
        figures.update(_exclusive(self._sums))
        figures["seconds_step"] = time.perf_counter() - self._started
        result = StepResult(figures, self.groups)
        self._logs, self._sums, self._counts, self.groups = [], {}, {}, ()
        if self._on_step(result):
            control.should_training_stop = True
        self._started = time.perf_counter()


def _exclusive(seconds: Mapping[str, float]) -> dict[str, float]:
    """Nested stopwatches as disjoint parts: rollout, forward, backward."""
    rollout, inputs = seconds.get("seconds_rollout", 0.0), seconds.get("inputs", 0.0)
    forward = seconds.get("loss", 0.0) + inputs - rollout
    backward = seconds.get("training_step", 0.0) - inputs - seconds.get("loss", 0.0)
    parts = {"seconds_forward": forward, "seconds_backward": backward}
    return {**parts, "seconds_rollout": rollout} if rollout else parts
