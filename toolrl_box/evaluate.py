"""Success on a fixed set of held-out tasks, greedy and at temperature 1.

Input: a policy and tasks. Output: named shares in [0, 1]. The tasks and the sampling seed never
change within a run, so that two evaluations differ by the weights alone.

Left out: which tasks and formats tell learning from over-fitting (``ood``) and counterfactual
decoding (``capability``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from toolrl_box.config import RolloutSettings
from toolrl_box.rollout import Decode, MakeEnv, run_episodes
from toolrl_box.samples import Encode
from toolrl_box.types import Policy, Rollout, Sampling, Task, ToolFormat

SEED = 0


@dataclass(frozen=True, slots=True)
class Score:
    """Shares of solved episodes: of all, and of each category. An episode that ended in an error
    is unsolved; ``errors`` says how many did."""

    success: float
    by_category: Mapping[str, float]
    errors: int


@dataclass(frozen=True, slots=True)
class Evaluator:
    """Calling it returns ``eval_greedy``, ``eval_sampled`` and both per category."""

    tasks: Sequence[Task]
    policy: Policy
    fmt: ToolFormat
    make_env: MakeEnv
    encode: Encode
    decode: Decode
    settings: RolloutSettings

    def __call__(self) -> dict[str, float]:
        figures: dict[str, float] = {}
        for name, temperature in (("eval_greedy", 0.0), ("eval_sampled", 1.0)):
            score = self.score(temperature)
            figures[name] = score.success
            figures |= {f"{name}_{c}": share for c, share in score.by_category.items()}
        return figures

    def score(self, temperature: float) -> Score:
        """One pass over the tasks; ``temperature`` 0 is greedy."""
        return score_of(self.rollouts(temperature))

    def rollouts(self, temperature: float) -> list[Rollout]:
        """The episodes of :meth:`score`, in the order of the tasks."""
        return run_episodes(
            self.tasks,
            self.policy,
            self.fmt,
            self.make_env,
            self.encode,
            self.decode,
            Sampling(temperature, self.settings.max_new_tokens, SEED),
            max_messages=self.settings.max_messages,
            max_tokens=self.settings.max_tokens,
            max_observation_tokens=self.settings.max_observation_tokens,
        )


def score_of(rollouts: Sequence[Rollout]) -> Score:
    scores: dict[str, list[float]] = {}
    for rollout in rollouts:
        scores.setdefault(rollout.task.category, []).append(success_of(rollout))
    return Score(
        mean(success for group in scores.values() for success in group),
        {category: mean(group) for category, group in scores.items()},
        sum(rollout.error is not None for rollout in rollouts),
    )


def success_of(rollout: Rollout) -> float:
    """1.0 when the episode was solved; one without an outcome was not."""
    return rollout.outcome.get("success", 0.0)


Evaluate = Callable[[], dict[str, float]]
