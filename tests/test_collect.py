"""The rollouts of a step with supervision: who wrote them, what they saw, what is optimised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from toolrl_box.collect import Collector
from toolrl_box.config import parse
from toolrl_box.errors import ConfigError, DataError
from toolrl_box.formats import FORMATS
from toolrl_box.phases import RL
from toolrl_box.rewards import Rubric
from toolrl_box.signals import Experts, HintPosition, Hints
from toolrl_box.testing import ByteCodec, EchoEnvironment, ScriptedPolicy, echo_task
from toolrl_box.types import Group, Task

HERMES = FORMATS["hermes"]
CALL = HERMES.render_message(echo_task(["tea"]).gold[0])
GOOD, BAD = [CALL, "tea"], ["no"]
TASK = echo_task(["tea"])
GROUP = 4


def collector(script: Sequence[Sequence[str]], **more: Any) -> tuple[Collector, ScriptedPolicy]:
    codec, policy = ByteCodec(), ScriptedPolicy(script)
    config = parse(
        {
            "grpo": {"group_size": GROUP, "prompts_per_step": 1, "mini_batches": 1},
            "rollout": {"max_new_tokens": 200, "max_tokens": 4000},
        }
    )
    rubric = Rubric({"task_success": 1.0})
    parts = (policy, HERMES, EchoEnvironment, codec.encode, codec.decode, rubric, config)
    return Collector(*parts, **more), policy


def collect(script: Sequence[Sequence[str]], phase: RL, **more: Any) -> Group:
    (group,) = collector(script, **more)[0]([TASK], 0, phase)
    return group


def sources(group: Group) -> list[str]:
    return [rollout.source for rollout in group.rollouts]


def test_without_supervision_every_rollout_is_the_policys() -> None:
    group = collect([GOOD, BAD], RL(1))
    assert sources(group) == ["policy"] * GROUP
    assert group.rewards_G == (1.0, 0.0, 1.0, 0.0)
    assert group.own == group.rollouts


@pytest.mark.parametrize("phase", [RL(1, experts=Experts(0)), RL(1, hints=Hints(0))])
def test_none_of_them_is_no_supervision(phase: RL) -> None:
    assert collect([GOOD, BAD], phase) == collect([GOOD, BAD], RL(1))


# --- experts --------------------------------------------------------------------------------


def test_an_expert_takes_the_last_place_and_is_scored_like_any_other() -> None:
    group = collect([BAD], RL(1, experts=Experts(1)))
    assert sources(group) == ["policy"] * 3 + ["expert"]
    assert group.rewards_G == (0.0, 0.0, 0.0, 1.0)
    assert [turn.text for turn in group.rollouts[-1].turns] == GOOD
    assert group.rollouts[-1].prompt_ids == group.rollouts[0].prompt_ids


def test_only_groups_in_which_all_failed_get_an_expert_when_asked_so() -> None:
    phase = RL(1, experts=Experts(1, only_failed=True))
    assert sources(collect([BAD], phase))[-1] == "expert"
    assert sources(collect([BAD, GOOD, BAD, BAD], phase)) == ["policy"] * GROUP


def test_an_expert_needs_gold() -> None:

    collect_, _ = collector([BAD])
    with pytest.raises(DataError, match="no gold dialogue, which an expert rollout"):
        collect_([replace(TASK, gold=())], 0, RL(1, experts=Experts(1)))


# --- hints ----------------------------------------------------------------------------------


@pytest.mark.parametrize("position", ["system", "user", "prefix"])
def test_a_hint_is_seen_while_sampling_and_absent_from_what_is_optimised(
    position: HintPosition,
) -> None:
    collect_, policy = collector([GOOD])
    (group,) = collect_([TASK], 0, RL(1, hints=Hints(1, position)))
    seen = [policy.codec.decode(policy.contexts[row]) for row in range(GROUP)]
    assert ['echo(text="tea")' in text for text in seen] == [False, False, False, True]
    assert sources(group) == ["policy"] * 3 + ["hinted"]
    assert len({rollout.prompt_ids for rollout in group.rollouts}) == 1
    assert len({rollout.task.prompt for rollout in group.rollouts}) == 1
    assert group.own == group.rollouts[:3]


def test_where_the_hint_stands() -> None:
    seen = {}
    for position in ("system", "user", "prefix"):
        collect_, policy = collector([GOOD])
        collect_([TASK], 0, RL(1, hints=Hints(1, position)))
        seen[position] = policy.codec.decode(policy.contexts[GROUP - 1])
    line = 'Hint:\necho(text="tea")'
    assert seen["system"].index(line) < seen["system"].index("<|im_start|>user")
    assert f"Echo tea\n{line}<|im_end|>" in seen["user"]
    assert f"<|im_start|>assistant\n{line}\n{CALL}" in seen["prefix"]


def test_an_llms_hint_is_asked_for_by_its_source() -> None:
    asked: list[str] = []

    def llm_hint(task: Task) -> str:
        asked.append(task.id)
        return "Hint: try tea"

    collect_, policy = collector([GOOD], llm_hint=llm_hint)
    collect_([TASK], 0, RL(1, hints=Hints(2, "system", "llm")))
    assert asked == [TASK.id]
    assert "Hint: try tea" in policy.codec.decode(policy.contexts[GROUP - 1])


def test_a_hint_needs_gold() -> None:

    collect_, _ = collector([BAD])
    with pytest.raises(DataError, match="no gold dialogue, which a hint"):
        collect_([replace(TASK, gold=())], 0, RL(1, hints=Hints(1)))


# --- demonstrations -------------------------------------------------------------------------

POOL = [echo_task([word]) for word in ("milk", "salt", "rice", "corn")]


def test_demonstrations_stay_in_the_prompt_that_is_optimised() -> None:
    group = collect([GOOD], RL(1, shots=2), pool=[TASK, *POOL])
    (prompt,) = {ByteCodec().decode(rollout.prompt_ids) for rollout in group.rollouts}
    assert prompt.count("<tool_response>") == 2 + collect_count(HERMES)
    assert prompt.count("Echo tea") == 1, "no task is shown its own solution"
    assert prompt.index("<|im_start|>system") == 0
    assert prompt.rindex("Echo tea") > prompt.rindex("</tool_response>")
    assert group.task.id == TASK.id


def collect_count(fmt: Any) -> int:
    """How often a prompt without demonstrations names the tag."""
    return int(fmt.render(TASK.prompt, TASK.tools).count("<tool_response>"))


def test_a_step_has_its_own_demonstrations_and_always_the_same() -> None:
    collect_, _ = collector([GOOD], pool=POOL)
    prompts = [collect_([TASK], step, RL(1, shots=1))[0].task.prompt for step in (0, 1, 2, 3, 0)]
    assert prompts[0] == prompts[4]
    assert len(set(map(repr, prompts[:4]))) > 1


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "error", "message"),
    [
        (RL(1, experts=Experts(4)), ConfigError, "4 of the 4 rollouts"),
        (RL(1, experts=Experts(2), hints=Hints(2)), ConfigError, "4 of the 4 rollouts"),
        (RL(1, hints=Hints(1, source="llm")), ConfigError, "reflection.judge.base_url"),
        (RL(1, shots=1), DataError, "the demonstration pool holds 0 tasks; 1 shots need"),
    ],
)
def test_what_no_group_could_do_is_refused(phase: RL, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        collector([GOOD])[0].check(phase)


def test_shaped_expert_tokens_and_a_kl_term_exclude_each_other() -> None:
    collect_, _ = collector([GOOD])
    config = collect_.config.model_copy(
        update={"grpo": collect_.config.grpo.model_copy(update={"beta": 0.1})}
    )

    with pytest.raises(ConfigError, match=r"set grpo.beta to 0 \(it is 0.1\)"):
        replace(collect_, config=config).check(RL(1, experts=Experts(1, gamma=0.1)))
    replace(collect_, config=config).check(RL(1, experts=Experts(1)))
