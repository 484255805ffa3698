"""Rewards: pure functions of a finished rollout, and the weighted rubric that sums them.

Input: a ``Rollout``. Output: its reward and the unweighted parts. A reward function that raises
stops the run: an error turned into a 0 would be learned from.

The composite reward of ICRL (arXiv 2603.08068) is ``{"accuracy": 0.8, "format": 0.2}``.

Left out: length penalties, model judges, and anything that needs the rest of the group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from toolrl_box.answers import format_score, matches
from toolrl_box.errors import ConfigError, DataError, lookup
from toolrl_box.types import Rollout

Reward = Callable[[Rollout], float]


def task_success(rollout: Rollout) -> float:
    """The environment's verdict, 0.0 or 1.0; an episode that was cut short has not succeeded."""
    return float(rollout.outcome.get("success", 0.0))


def format_share(rollout: Rollout) -> float:
    """Share of the messages that are whole: no parse error and not cut off; 0.0 without any."""
    if not rollout.turns:
        return 0.0
    whole = [not turn.parsed.errors and not turn.truncated for turn in rollout.turns]
    return sum(whole) / len(whole)


def accuracy(rollout: Rollout) -> float:
    """Whether the environment found the answer right; 0.0 for an episode that was cut short."""
    return float(rollout.outcome.get("accuracy", 0.0))


def format_of_answer(rollout: Rollout) -> float:
    """Score of the mark-up over the whole episode, cut short or not: see ``format_score``."""
    return format_score([turn.parsed for turn in rollout.turns])


def junk_calls(rollout: Rollout) -> float:
    """Calls that the environment could not carry out: a penalty when its weight is negative. 0.0
    for an episode that was cut short, and where the environment does not count them."""
    return float(rollout.outcome.get("junk_calls", 0.0))


def exact_match(rollout: Rollout) -> float:
    """1.0 when the last message's text is one of ``target["answers"]``, after normalisation.

    Raises :class:`DataError` when the task has no list of answers.
    """
    answers = rollout.task.target.get("answers")
    if not isinstance(answers, list | tuple):
        raise DataError(
            f"task '{rollout.task.id}' has no list target['answers'], which exact_match needs"
        )
    if not rollout.turns:
        return 0.0
    return float(matches(rollout.turns[-1].parsed.text, map(str, answers)))


REWARDS: Mapping[str, Reward] = {
    "task_success": task_success,
    "format_share": format_share,
    "exact_match": exact_match,
    "accuracy": accuracy,
    "format": format_of_answer,
    "junk_calls": junk_calls,
}


@dataclass(frozen=True)
class Rubric:
    """A weighted sum of named rewards. Raises :class:`ConfigError` for an unknown name."""

    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        if not self.weights:
            raise ConfigError("a rubric without rewards; one of: " + ", ".join(sorted(REWARDS)))
        for name, weight in self.weights.items():
            lookup("reward", name, REWARDS)
            if not math.isfinite(weight):
                raise ConfigError(f"the weight of reward '{name}' is {weight}; it must be finite")

    def score(self, rollout: Rollout) -> tuple[float, dict[str, float]]:
        """The weighted sum and its unweighted parts."""
        parts = {name: REWARDS[name](rollout) for name in self.weights}
        return sum(self.weights[name] * value for name, value in parts.items()), parts


def apply(rubric: Rubric, rollout: Rollout) -> Rollout:
    """The rollout with its reward and reward parts filled in."""
    reward, parts = rubric.score(rollout)
    return replace(rollout, reward=reward, reward_parts=parts)
