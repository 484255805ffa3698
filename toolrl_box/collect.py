"""The rollouts of one RL step: tasks in, groups out, with whatever supervision the phase asks for.

Input: the step's tasks (one a group) and the phase. Output: one scored
:class:`~toolrl_box.types.Group` a task. Demonstrations change the prompt that is also optimised;
hints are seen while sampling only; experts replace members of a group.

Left out: advantages and the loss (``trl_backend``).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from toolrl_box import rewards
from toolrl_box.config import RunConfig
from toolrl_box.errors import ConfigError, DataError
from toolrl_box.phases import RL
from toolrl_box.prompting import hint, with_demonstrations, with_hint
from toolrl_box.rollout import Decode, MakeEnv, replay_gold, run_episodes
from toolrl_box.samples import Encode
from toolrl_box.seeds import derive
from toolrl_box.signals import Experts, Hints
from toolrl_box.types import Group, Policy, Rollout, Sampling, Task, ToolFormat


@dataclass(frozen=True, slots=True)
class Collector:
    """``pool``: tasks whose gold dialogues serve as demonstrations. ``llm_hint``: a task's hint by
    an LLM, None without one."""

    policy: Policy
    fmt: ToolFormat
    make_env: MakeEnv
    encode: Encode
    decode: Decode
    rubric: rewards.Rubric
    config: RunConfig
    pool: Sequence[Task] = ()
    llm_hint: Callable[[Task], str] | None = None

    def check(self, phase: RL) -> None:
        """Refuse what no step of the phase could do. Raises ConfigError, and DataError when there
        are too few demonstrations."""
        experts, hints = phase.experts or Experts(0), phase.hints or Hints(0)
        grpo = self.config.grpo
        taken = experts.count + hints.count
        if taken >= grpo.group_size:
            raise ConfigError(
                f"{taken} of the {grpo.group_size} rollouts of a group would be hinted or "
                "replaced; at least one must be the policy's own"
            )
        beta = grpo.beta if phase.beta is None else phase.beta
        if experts.count and experts.gamma and beta:
            raise ConfigError(
                f"expert tokens with gamma = {experts.gamma} leave the ratio that the KL term is "
                f"made from; set grpo.beta to 0 (it is {beta}) or gamma to 0"
            )
        if hints.count and hints.source == "llm" and self.llm_hint is None:
            raise ConfigError(
                "hints from an LLM need one: set reflection.judge.base_url and .model"
            )
        if phase.shots and len(self.pool) <= phase.shots:
            raise DataError(
                f"the demonstration pool holds {len(self.pool)} tasks; {phase.shots} shots need at "
                f"least {phase.shots + 1}, because no task is shown its own solution"
            )

    def __call__(
        self, tasks: Sequence[Task], rl_step: int, phase: RL, first: int = 0
    ) -> tuple[Group, ...]:
        """The groups of RL step ``rl_step``, or of those of its tasks that begin with number
        ``first``. Raises DataError for a task without gold where the phase needs it."""
        if phase.shots:
            tasks = [self._demonstrated(task, phase.shots, rl_step) for task in tasks]
        groups = self._sampled(tasks, rl_step, phase, first)
        if phase.experts and phase.experts.count:
            groups = [self._with_experts(group, phase.experts) for group in groups]
        return tuple(groups)

    def _sampled(self, tasks: Sequence[Task], rl_step: int, phase: RL, first: int) -> list[Group]:
        size, settings = self.config.grpo.group_size, self.config.rollout
        hinted = phase.hints.count if phase.hints else 0
        rows: list[Task] = []
        prefills: list[str] = []
        for task in tasks:
            shown, prefill = self._hinted(task, phase)
            rows += [task] * (size - hinted) + [shown] * hinted
            prefills += [""] * (size - hinted) + [prefill] * hinted
        rollouts = run_episodes(
            rows,
            self.policy,
            self.fmt,
            self.make_env,
            self.encode,
            self.decode,
            Sampling(
                settings.temperature,
                settings.max_new_tokens,
                derive(self.config.seed, "rollout", rl_step),
            ),
            max_messages=settings.max_messages,
            max_tokens=settings.max_tokens,
            max_observation_tokens=settings.max_observation_tokens,
            prefills=prefills,
            first_row=first * size,
        )
        rollouts = [rewards.apply(self.rubric, rollout) for rollout in rollouts]
        groups = []
        for index, task in enumerate(tasks):
            members = rollouts[index * size : (index + 1) * size]
            own = members[: size - hinted]
            unhinted = [
                replace(member, task=task, prompt_ids=own[0].prompt_ids, source="hinted")
                for member in members[size - hinted :]
            ]
            groups.append(Group(task, (*own, *unhinted)))
        return groups

    def _hinted(self, task: Task, phase: RL) -> tuple[Task, str]:
        """The task as a hinted rollout sees it, and the words put into the assistant's mouth."""
        if not phase.hints or not phase.hints.count:
            return task, ""
        _require_gold(task, "a hint")
        by_llm = self.llm_hint if phase.hints.source == "llm" else None
        text = hint(task) if by_llm is None else by_llm(task)
        if phase.hints.position == "prefix":
            return task, f"{text}\n"
        return with_hint(task, text, phase.hints.position), ""

    def _with_experts(self, group: Group, experts: Experts) -> Group:
        if experts.only_failed and any(reward > 0 for reward in group.rewards_G):
            return group
        expert = self._expert(group.task)
        kept = group.rollouts[: len(group.rollouts) - experts.count]
        return replace(group, rollouts=(*kept, *[expert] * experts.count))

    def _expert(self, task: Task) -> Rollout:
        """The task's gold dialogue, played. The prompt is the task's own, demonstrations too."""
        _require_gold(task, "an expert rollout")
        settings = self.config.rollout
        rollout = replay_gold(
            task,
            self.fmt,
            self.make_env,
            self.encode,
            max_messages=settings.max_messages,
            max_tokens=settings.max_tokens,
            max_observation_tokens=settings.max_observation_tokens,
        )
        return rewards.apply(self.rubric, rollout)

    def _demonstrated(self, task: Task, shots: int, rl_step: int) -> Task:
        others = [other for other in self.pool if other.id != task.id]
        rng = random.Random(derive(self.config.seed, f"demonstrations/{task.id}", rl_step))
        return with_demonstrations(task, rng.sample(others, shots))


def _require_gold(task: Task, purpose: str) -> None:
    if not any(message.role == "assistant" for message in task.gold):
        raise DataError(f"task '{task.id}' has no gold dialogue, which {purpose} is made from")
