"""One process drives a run, the others do what it does.

Only the main process has a scheme, a recorder and a run folder. It tells every phase to the others
before it runs it. Each samples its share of a step's rollouts and computes its share of the
gradient; after the step the main process collects rollouts and figures, writes them down and
decides for all whether the phase goes on. So a scheme, a detector or a judge never knows of
several processes.

Input: a backend on every process. Output: the same weights on all of them after every step.
Checkpoints are read by every process: they need one file system. Left out: sharded weights, and
evaluation or probes on more than the main process (the others wait).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

from toolrl_box.phases import RL, SFT
from toolrl_box.team import Team, together
from toolrl_box.train import Backend, OnStep, StepResult

SUMMED = ("sft_tokens",)
AVERAGED = ("sft_term_nll",)
"""Figures that a process knows of its own share only; all others are TRL's, and of all."""


class Full(Backend, Protocol):
    """What follows: a backend that can be saved and put back."""

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None: ...


class Lockstep:
    """``backend`` on every process of the team. The main one's :meth:`rl`, :meth:`sft` and
    :meth:`load` happen on all; the others are in :meth:`follow`. Alone it is the backend itself."""

    def __init__(self, team: Team, backend: Full) -> None:
        self._team = team
        self._backend = backend

    def rl(self, phase: RL, steps: int, first: int, *, on_step: OnStep) -> None:
        self._team.share(("rl", phase, steps, first))
        with together(self._team):
            self._backend.rl(phase, steps, first, on_step=self._for_all(on_step))

    def sft_steps(self, phase: SFT) -> int:
        return self._backend.sft_steps(phase)

    def sft(self, phase: SFT, done: int, seed_step: int, *, on_step: OnStep) -> None:
        self._team.share(("sft", phase, done, seed_step))
        with together(self._team):
            self._backend.sft(phase, done, seed_step, on_step=self._for_all(on_step))

    def save(self, folder: Path) -> None:
        self._backend.save(folder)

    def load(self, folder: Path) -> None:
        self._team.share(("load", folder))
        self._backend.load(folder)

    def dismiss(self) -> None:
        """Let the others go."""
        self._team.share(("end",))

    def _for_all(self, on_step: OnStep) -> OnStep:
        def decide(result: StepResult) -> bool:
            results = self._team.gather(result)
            groups = tuple(group for part in results for group in part.groups)
            stop = on_step(StepResult(merged([part.figures for part in results]), groups))
            return bool(self._team.share(stop))

        return decide

    def follow(self) -> None:
        """Do what the main process does until it lets go. Raises TeamError when it is gone."""
        backend = self._backend
        while True:
            match self._team.share():
                case ("rl", phase, steps, first):
                    with together(self._team):
                        backend.rl(phase, steps, first, on_step=self._obey)
                case ("sft", phase, done, seed_step):
                    with together(self._team):
                        backend.sft(phase, done, seed_step, on_step=self._obey)
                case ("load", folder):
                    backend.load(folder)
                case _:
                    return

    def _obey(self, result: StepResult) -> bool:
        self._team.gather(result)
        return bool(self._team.share())


def merged(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The main process's figures, with those that each knows of its share alone put together."""
    whole: dict[str, Any] = dict(figures[0])
    for name in SUMMED:
        if name in whole:
            whole[name] = sum(part.get(name, 0.0) for part in figures)
    for name in AVERAGED:
        if name in whole:
            whole[name] = fmean(part[name] for part in figures)
    return whole
