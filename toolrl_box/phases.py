"""What a scheme yields and what it gets back: ``RL`` or ``SFT`` out, ``Outcome`` in.

A supervision scheme is a generator of phases. An outcome holds only what a scheme may decide
upon and what the journal must keep, so replaying recorded outcomes through a fresh generator
gives the same phases again: that is how a run is resumed and how it is explained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from toolrl_box.errors import ConfigError
from toolrl_box.signals import Experts, Hints, SFTTerm
from toolrl_box.types import Alarm, Kind, Level, Task

Rule = Literal["all_failed", "any_failed"]


@dataclass(frozen=True, slots=True)
class RL:
    """``steps`` GRPO steps (one step = one batch of rollouts and its mini-batch updates).

    ``fresh_optimizer`` drops the moments of the previous RL phase, as the published code does;
    ``lr`` replaces the run's own within this phase (``warmup_steps`` count over the whole run).
    ``experts``, ``hints``, ``shots`` (demonstrations in the prompt) and ``sft`` bring supervision
    into the steps themselves. With ``until`` an alarm of that level or above ends the phase after
    its step, except in the first ``grace`` steps. ``lr_factor`` scales the learning rate, ``beta``
    replaces the run's KL coefficient.
    """

    steps: int
    fresh_optimizer: bool = False
    lr: float | None = None
    experts: Experts | None = None
    hints: Hints | None = None
    shots: int = 0
    sft: SFTTerm | None = None
    until: Level | None = None
    grace: int = 0
    lr_factor: float = 1.0
    beta: float | None = None

    kind = "rl"

    def ends_with(self, alarm: Alarm, done: int) -> bool:
        """Whether ``alarm``, raised by the phase's step number ``done``, ends it."""
        return self.until is not None and done > self.grace and alarm.reaches(self.until)


@dataclass(frozen=True, slots=True)
class SFT:
    """Supervised updates on the gold dialogues of ``tasks``: ``epochs`` passes in order, or
    exactly ``steps`` updates when given (cycling). The optimiser is always fresh. ``messages``:
    only messages of this kind are learned; each dialogue must have one."""

    tasks: tuple[Task, ...]
    epochs: int = 1
    steps: int | None = None
    lr: float | None = None
    messages: Kind | None = None

    kind = "sft"


@dataclass(frozen=True, slots=True)
class Rollback:
    """Back to the newest scheduled checkpoint at or before step ``before``: weights, moments and
    detectors. Steps, RL budget, seeds and logs go on, so what is sampled next is new."""

    before: int

    kind = "rollback"
    steps = 0


Phase = RL | SFT | Rollback


@dataclass(frozen=True, slots=True)
class GroupResult:
    """Rewards of the policy's own rollouts of one task in one step."""

    step: int
    task_id: str
    rewards_G: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a phase did: steps done in it, its groups (RL only), and its gravest alarm, the last of
    them (the one that ended it, if one did); ``moved``: the slot of the probe whose right token had
    lost most against the base when that alarm was raised."""

    steps: int
    groups: tuple[GroupResult, ...] = ()
    alarm: Alarm | None = None
    moved: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Outcome:
        alarm = value["alarm"]
        return cls(
            steps=value["steps"],
            groups=tuple(
                GroupResult(g["step"], g["task_id"], tuple(g["rewards_G"])) for g in value["groups"]
            ),
            alarm=None if alarm is None else Alarm(**alarm),
            moved=value.get("moved"),  # journals from before 2026-11-23 do not tell
        )


Phases = Generator[Phase, Outcome, None]


@dataclass(frozen=True, slots=True)
class RolloutKey:
    """Names one rollout as the run log does: ``member`` of ``group`` of a global ``step``."""

    step: int
    group: int
    member: int
    task_id: str


def _no_other_domain() -> tuple[Task, ...]:
    raise ConfigError("this world has no tasks of another domain")


def _no_schemes(name: str, knobs: Mapping[str, Any]) -> Scheme:
    raise ConfigError(f"scheme '{name}' cannot be built here")


@dataclass(frozen=True, slots=True)
class Context:
    """What a scheme may know: the RL budget and the training tasks by id.

    ``other_tasks()``: as many tasks of another domain (ConfigError in a world without one).
    ``reflect(keys, texts)``: at most ``texts`` dialogues about each of these failed rollouts, as
    tasks whose gold is the reflection. The same keys give the same texts, also when a run is
    resumed, so that a scheme stays a function of its outcomes. ``build_scheme(name, knobs)``: for
    schemes that wrap another.
    """

    steps: int
    tasks: Mapping[str, Task]
    other_tasks: Callable[[], tuple[Task, ...]] = _no_other_domain
    reflect: Callable[[Sequence[RolloutKey], int], tuple[Task, ...]] = lambda keys, texts: ()
    build_scheme: Callable[[str, Mapping[str, Any]], Scheme] = _no_schemes


class Scheme(Protocol):
    """A frozen dataclass whose fields are its knobs."""

    def phases(self, ctx: Context) -> Phases: ...


@dataclass(frozen=True, slots=True)
class WarmedUp:
    """``scheme`` after one phase of ``updates`` supervised updates on all training tasks' gold
    dialogues. Its outcome is not the scheme's business; with 0 updates there is no such phase."""

    scheme: Scheme
    updates: int

    def phases(self, ctx: Context) -> Phases:
        if self.updates:
            yield SFT(tuple(ctx.tasks.values()), steps=self.updates)
        yield from self.scheme.phases(ctx)


def unsolved(
    outcome: Outcome, tasks: Mapping[str, Task], rule: Rule, window: int | None = None
) -> tuple[Task, ...]:
    """Tasks of the outcome that need supervision, each once, in order of appearance.

    ``all_failed``: every rollout of the group failed (the paper's text); ``any_failed``: at least
    one did (the published code). A rollout fails when its reward is below 1. With ``window`` only
    the outcome's last so many steps count.
    """
    ids = dict.fromkeys(group.task_id for _, group in _failed_groups(outcome, rule, window))
    return tuple(tasks[task_id] for task_id in ids)


def failures(
    outcome: Outcome, rule: Rule, window: int | None, limit: int
) -> tuple[RolloutKey, ...]:
    """One failed rollout of each unsolved task, its latest; the ``limit`` latest of them, in
    order."""
    latest: dict[str, RolloutKey] = {}
    for place, group in reversed(_failed_groups(outcome, rule, window)):
        member = next(i for i, reward in enumerate(group.rewards_G) if reward < 1.0)
        key = RolloutKey(group.step, place, member, group.task_id)
        latest.setdefault(group.task_id, key)
    return tuple(reversed(list(latest.values())[:limit]))


def _failed_groups(
    outcome: Outcome, rule: Rule, window: int | None
) -> list[tuple[int, GroupResult]]:
    """Each group that its rule calls failed, with its place within its step."""
    failed = all if rule == "all_failed" else any
    last = max((group.step for group in outcome.groups), default=0)
    places: Counter[int] = Counter()
    found = []
    for group in outcome.groups:
        recent = window is None or group.step > last - window
        if recent and failed(reward < 1.0 for reward in group.rewards_G):
            found.append((places[group.step], group))
        places[group.step] += 1
    return found
