"""Success on a fixed set of held-out tasks, greedy and at temperature 1.

Input: a policy and tasks. Output: named shares in [0, 1]. The tasks and the sampling seed never
change within a run, so that two evaluations differ by the weights alone.

Left out: counterfactual decoding and OOD tables (issues WARNING and SUPERVISION).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean

from toolrl_box.config import RolloutSettings
from toolrl_box.rollout import Decode, MakeEnv, run_episodes
from toolrl_box.samples import Encode
from toolrl_box.types import Policy, Sampling, Task, ToolFormat

SEED = 0


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
            by_category: dict[str, list[float]] = {}
            for category, success in self._play(temperature):
                by_category.setdefault(category, []).append(success)
            figures[name] = mean(s for scores in by_category.values() for s in scores)
            figures |= {f"{name}_{c}": mean(scores) for c, scores in by_category.items()}
        return figures

    def _play(self, temperature: float) -> list[tuple[str, float]]:
        rollouts = run_episodes(
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
        return [(r.task.category, r.outcome.get("success", 0.0)) for r in rollouts]


Evaluate = Callable[[], dict[str, float]]
