"""Every verdict on an invented log, the order of precedence, and what is said beside it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from toolrl_box.diagnose.diagnosis import Diagnosis

if TYPE_CHECKING:
    from tests.diagnose.conftest import Logs


def after(step: int, late: float, early: float = 0.0):  # type: ignore[no-untyped-def]
    return lambda at: late if at >= step else early


def onset(diagnosis: Diagnosis, signal: str) -> tuple[int, int, int]:
    found = next(onset for onset in diagnosis.onsets if onset.signal == signal)
    return found.low, found.step, found.high


def test_a_steady_log_is_healthy_and_the_last_step_is_the_last_healthy(logs: Logs) -> None:
    found = logs.diagnose(logs.run())
    assert found.verdict.name == "healthy"
    assert found.onsets == ()
    assert found.last_healthy is not None
    assert found.last_healthy.step == 39
    assert found.actions[0].command == "toolrl watch DIR"


def test_broken_messages_and_lost_reward_are_a_structural_collapse(logs: Logs) -> None:
    found = logs.diagnose(logs.run(broken=after(20, 0.75), reward=after(20, 0.0, 0.5)))
    assert found.verdict.name == "structural_collapse"
    low, step, high = onset(found, "healthy")
    assert low <= 20 <= high
    assert step == 20
    assert found.last_healthy is not None
    assert found.last_healthy.step < 20
    assert found.first_wrong is not None
    assert (found.first_wrong.kind, found.first_wrong.step) == ("unclosed_call", 20)
    assert found.involved[0].slot == "closing_call"
    assert found.involved[0].share_before == 0.0
    assert found.involved[0].share_after == pytest.approx(0.75)


def test_broken_messages_with_reward_intact_are_text_pollution(logs: Logs) -> None:
    found = logs.diagnose(logs.run(broken=after(20, 0.375)))
    assert found.verdict.name == "text_pollution"
    assert "reward has not fallen" in found.verdict.reason
    assert found.actions[0].do.startswith("Stop the run now")


def test_lost_reward_with_sound_messages_is_a_reward_collapse(logs: Logs) -> None:
    found = logs.diagnose(logs.run(reward=after(20, 0.0, 0.5)))
    assert found.verdict.name == "reward_collapse"
    assert onset(found, "reward")[1] == 20
    assert any("gold" in item.why for item in found.unjudged)


def test_lost_reward_with_calls_of_unknown_tools_is_a_loss_of_capability(logs: Logs) -> None:
    found = logs.diagnose(
        logs.run(
            broken=after(20, 0.75), reward=after(20, 0.0, 0.5), bad=logs.wrong, tools=(logs.tool,)
        )
    )
    assert found.verdict.name == "capability_loss"
    assert "0% of the well-formed calls were wrong at first, 75% at the end" in found.verdict.reason
    assert [sign.name for sign in found.verdict.also] == ["reward_collapse"]


def test_calls_that_differ_from_gold_are_a_loss_of_capability_without_tools(logs: Logs) -> None:
    gold = logs.rollout(0).messages[1:]
    found = logs.diagnose(
        logs.run(broken=after(20, 0.75), reward=after(20, 0.0, 0.5), bad=logs.wrong, gold=gold)
    )
    assert found.verdict.name == "capability_loss"


def test_entropy_that_dies_before_the_reward_explains_its_fall(logs: Logs) -> None:
    found = logs.diagnose(
        logs.run(reward=after(25, 0.0, 0.5)), logs.scalars(entropy=after(15, 0.01, 0.8))
    )
    assert found.verdict.name == "entropy_collapse"
    assert onset(found, "entropy")[1] == 15
    assert "reward_collapse" in [sign.name for sign in found.verdict.also]


def test_entropy_that_dies_with_every_task_solved_is_no_collapse(logs: Logs) -> None:
    found = logs.diagnose(
        logs.run(reward=after(15, 1.0, 0.5)), logs.scalars(entropy=after(15, 0.01, 0.8))
    )
    assert found.verdict.name == "healthy"


def test_entropy_that_dies_with_groups_alike_and_tasks_unsolved_is_a_collapse(logs: Logs) -> None:
    found = logs.diagnose(
        logs.run(),
        logs.scalars(entropy=after(15, 0.01, 0.8), reward_std=after(15, 0.0, 0.4)),
    )
    assert found.verdict.name == "entropy_collapse"


def test_responses_that_grow_until_they_are_cut_are_a_length_explosion(logs: Logs) -> None:
    def figures(steps: int = 40):  # type: ignore[no-untyped-def]
        return logs.scalars(
            steps,
            reward=after(30, 0.1, 0.5),
            response_length=after(20, 900.0, 200.0),
            truncated=after(20, 0.6, 0.02),
        )

    found = logs.diagnose(figures())
    assert found.verdict.name == "length_explosion"
    assert "200 to 900" in found.verdict.reason
    assert onset(found, "length")[1] == 20


def test_an_end_below_seventy_percent_of_the_peak_is_drift(logs: Logs) -> None:
    found = logs.diagnose(logs.run(reward=after(20, 0.375, 0.625)))
    assert found.verdict.name == "drifting"


def test_few_steps_are_not_judged(logs: Logs) -> None:
    found = logs.diagnose(logs.run(6))
    assert found.verdict.name == "insufficient_data"
    assert found.last_healthy is None


def test_sound_messages_without_any_reward_are_not_called_healthy(logs: Logs) -> None:
    found = logs.diagnose(logs.run(reward=lambda step: None))
    assert found.verdict.name == "insufficient_data"
    assert any(item.what == "whether tasks are solved" for item in found.unjudged)


def test_broken_messages_are_judged_without_any_reward(logs: Logs) -> None:
    found = logs.diagnose(logs.run(reward=lambda step: None, broken=after(20, 0.875)))
    assert found.verdict.name == "structural_collapse"


@pytest.mark.parametrize(
    ("broken", "name"),
    [(0.75, "structural_collapse"), (0.375, "text_pollution"), (0.0, "insufficient_data")],
)
def test_a_log_without_steps_is_judged_as_it_stands(logs: Logs, broken: float, name: str) -> None:
    rollouts = [
        logs.rollout(None, logs.open if i < 80 * broken else logs.call, None) for i in range(80)
    ]
    found = logs.diagnose(rollouts)
    assert found.verdict.name == name
    assert found.onsets == ()
    assert found.totals.first_step is None
    assert "without steps nothing says whether that ever was different" in found.verdict.reason


# --- suspected bugs come first, where they explain the rest ----------------------------------


def test_a_loss_that_becomes_nan_is_a_bug_before_it_is_a_collapse(logs: Logs) -> None:
    found = logs.diagnose(
        logs.run(broken=after(20, 0.75), reward=after(20, 0.0, 0.5)),
        logs.scalars(loss=after(19, math.nan, 0.1)),
    )
    assert found.verdict.name == "suspected_bug"
    assert "loss is NaN or infinite 21 times, from step 19 to 39" in found.verdict.reason
    assert found.verdict.since == 19
    assert "structural_collapse" in [sign.name for sign in found.verdict.also]
    assert onset(found, "healthy")[1] == 20


def test_a_single_nan_that_the_run_survived_is_no_verdict(logs: Logs) -> None:
    found = logs.diagnose(
        logs.run(), logs.scalars(loss=lambda step: math.nan if step == 7 else 0.1)
    )
    assert found.verdict.name == "healthy"


def test_a_reward_that_never_differs_is_a_suspected_bug(logs: Logs) -> None:
    found = logs.diagnose(logs.run(reward=lambda step: 0.0))
    assert found.verdict.name == "suspected_bug"
    assert "The reward is 0 in all 320 rollouts" in found.verdict.reason
    alone = logs.diagnose(logs.scalars(reward=lambda step: 1.0))
    assert alone.verdict.name == "suspected_bug"
    assert "all 40 steps" in alone.verdict.reason


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"max_logprob": 0.7}, "log-prob 0.7"),
        ({"observation_in_loss": 1.0}, "100% of the tokens that tools wrote carry loss"),
        ({"retokenised": 0.02}, "2.0% of the sampled tokens change"),
        ({"ended_with_eos": 0.0}, "None of 320 rollouts ended with the stop token"),
    ],
)
def test_impossible_facts_are_suspected_bugs(
    logs: Logs, facts: dict[str, float], says: str
) -> None:
    found = logs.diagnose(logs.run(facts=facts))
    assert found.verdict.name == "suspected_bug"
    assert says in found.verdict.reason


def test_right_facts_are_none(logs: Logs) -> None:
    facts = {"max_logprob": 0.0, "observation_in_loss": 0.0, "retokenised": 0.0}
    found = logs.diagnose(logs.run(facts={**facts, "ended_with_eos": 1.0}))
    assert found.verdict.name == "healthy"
    assert not any("tokens" in item.why for item in found.unjudged)


def test_chat_frames_in_the_first_messages_mean_a_wrong_template(logs: Logs) -> None:
    framed = f"{logs.text}<|im_start|>assistant\n{logs.text}"
    found = logs.diagnose(logs.run(broken=lambda step: 0.5, bad=framed))
    assert found.verdict.name == "suspected_bug"
    assert "chat template" in found.verdict.reason
    later = logs.diagnose(logs.run(broken=after(20, 0.5), bad=framed))
    assert later.verdict.name == "text_pollution"


# --- scalars alone, scales, models -----------------------------------------------------------


def test_figures_alone_give_a_diagnosis_that_says_what_it_cannot_see(logs: Logs) -> None:
    found = logs.diagnose(logs.scalars(reward=after(20, 0.05, 0.6)))
    assert found.verdict.name == "reward_collapse"
    assert found.first_wrong is None
    assert "figures only" in found.unjudged[0].why


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (10.0, 0.0), (2.0, -1.0)])
def test_rewards_of_any_scale_collapse_alike(logs: Logs, scale: float, shift: float) -> None:
    high, low = 0.6 * scale + shift, 0.05 * scale + shift
    found = logs.diagnose(logs.scalars(reward=after(20, low, high)))
    assert (found.verdict.name, found.onsets[0].step) == ("reward_collapse", 20)


def test_a_base_with_broken_messages_is_measured_by_what_became_worse(logs: Logs) -> None:
    """The first wrong message is of the defect that rose, not the first that was ever broken."""
    early = logs.run(20, broken=lambda step: 0.25, bad="<tool_call>")
    late = (r for r in logs.run(broken=lambda step: 0.75) if (r.step or 0) >= 20)
    found = logs.diagnose(early, late)
    assert found.first_wrong is not None
    assert (found.first_wrong.kind, found.first_wrong.step) == ("unclosed_call", 20)


def test_categories_and_models_are_told_apart(logs: Logs) -> None:
    found = logs.diagnose(logs.run(broken=after(20, 0.5), reward=after(20, 0.0, 0.5), model="m1"))
    rows = {(row.by, row.category): row for row in found.affected}
    assert set(rows) == {("category", "base"), ("category", "miss_func"), ("model", "m1")}
    assert rows["model", "m1"].healthy_before == 1.0
    assert rows["model", "m1"].healthy_after == 0.5
    assert rows["model", "m1"].reward_after == 0.0


def test_an_experts_dialogue_counts_neither_as_message_nor_as_reward(logs: Logs) -> None:
    expert = (logs.rollout(step, reward=1.0, prompt_length=2) for step in range(40))
    found = logs.diagnose(logs.run(reward=lambda step: 0.25), expert)
    assert found.totals.messages == 320
    assert {row.reward for row in found.steps} == {0.25}
