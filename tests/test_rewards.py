"""Rewards say what happened in the episode; a reward that cannot say so stops the run."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from toolrl_box import rewards
from toolrl_box.answers import normalised
from toolrl_box.errors import ConfigError, DataError
from toolrl_box.formats.hermes import Hermes
from toolrl_box.formats.icrl import Icrl
from toolrl_box.rewards import (
    REWARDS,
    Rubric,
    apply,
    exact_match,
    format_share,
    task_success,
)
from toolrl_box.testing import echo_task
from toolrl_box.types import Rollout, Turn

TASK = replace(echo_task(["x"]), target={"answers": ["The Eiffel Tower", "Tour Eiffel"]})


def rollout(*texts: str, truncated: bool = False, success: float | None = None) -> Rollout:
    turns = tuple(
        Turn((1,), (0.0,), text, Hermes().parse(text), truncated=truncated) for text in texts
    )
    outcome = {} if success is None else {"success": success}
    return Rollout(TASK, (1,), turns, "done", outcome=outcome)


def test_success_is_the_environments_verdict() -> None:
    assert task_success(rollout("x", success=1.0)) == 1.0
    assert task_success(rollout("x", success=0.0)) == 0.0


def test_an_episode_that_was_cut_short_has_not_succeeded() -> None:
    assert task_success(rollout("x")) == 0.0


def test_the_format_share_counts_messages_without_defects() -> None:
    broken = '<tool_call>\n{"name": "f"'
    assert format_share(rollout("fine")) == 1.0
    assert format_share(rollout("fine", broken, "fine", broken)) == 0.5
    assert format_share(rollout("fine", truncated=True)) == 0.0
    assert format_share(rollout()) == 0.0


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("the eiffel tower", 1.0),
        ("  Eiffel, Tower! ", 1.0),
        ("TOUR EIFFEL", 1.0),
        ("It is the Eiffel Tower", 0.0),
        ("theatre", 0.0),
        ("", 0.0),
    ],
)
def test_exact_match_forgives_case_punctuation_articles_and_space(
    said: str, expected: float
) -> None:
    assert exact_match(rollout("something else", said)) == expected


def test_exact_match_reads_the_last_message_only() -> None:
    assert exact_match(rollout("Eiffel Tower", "no")) == 0.0
    assert exact_match(rollout()) == 0.0


def test_normalising_keeps_words_that_only_contain_an_article() -> None:
    assert normalised("The theme: an anthem, a banana") == "theme anthem banana"


@pytest.mark.parametrize("answers", [None, "Paris", 3])
def test_exact_match_without_a_list_of_answers_stops_the_run(answers: object) -> None:
    task = replace(TASK, target={} if answers is None else {"answers": answers})
    with pytest.raises(DataError, match="has no list target"):
        exact_match(replace(rollout("x"), task=task))


def test_a_rubric_sums_its_weighted_parts_and_reports_them_unweighted() -> None:
    rubric = Rubric({"task_success": 1.0, "format_share": 0.5})
    reward, parts = rubric.score(rollout("x", "<tool_call>", success=1.0))
    assert parts == {"task_success": 1.0, "format_share": 0.5}
    assert reward == 1.25


def test_applying_a_rubric_changes_the_reward_and_nothing_else() -> None:
    before = rollout("x", success=1.0)
    after = apply(Rubric({"task_success": 2.0}), before)
    assert after.reward == 2.0
    assert after.reward_parts == {"task_success": 1.0}
    assert replace(after, reward=0.0, reward_parts={}) == before


def test_an_unknown_reward_is_refused_with_a_hint() -> None:
    with pytest.raises(ConfigError, match="did you mean 'task_success'"):
        Rubric({"task_sucess": 1.0})


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_weights_must_be_finite(weight: float) -> None:
    with pytest.raises(ConfigError, match="must be finite"):
        Rubric({"task_success": weight})


def test_a_rubric_without_rewards_is_refused() -> None:
    with pytest.raises(ConfigError, match="without rewards"):
        Rubric({})


def test_an_error_in_a_reward_propagates(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(rollout: Rollout) -> float:
        raise ZeroDivisionError("in a reward")

    monkeypatch.setattr(rewards, "REWARDS", {**REWARDS, "broken": broken})
    with pytest.raises(ZeroDivisionError):
        Rubric({"broken": 1.0}).score(rollout("x"))


# --- ICRL's composite reward, by hand -------------------------------------------------------

ASK = "<think>a</think><search>q</search>"
SAY = "<think>b</think><answer>x</answer>"
# messages; deductions by hand: answer missing .5, answer unbalanced .2, think missing .15,
# think unbalanced .1, search missing .1, answer empty .2
BY_HAND = [
    ([ASK, SAY], 1.0),
    ([SAY], 0.9),  # no search
    (["<search>q</search>", "<answer>x</answer>"], 0.85),  # no think
    (["<answer>x</answer>"], 0.75),  # no think, no search
    ([ASK, "<think>b<answer>x</answer>"], 0.9),  # think unbalanced
    ([ASK, "<think>b</think><answer>x"], 0.8),  # answer unbalanced
    ([ASK, "<think>b</think>x</answer>"], 0.3),  # answer missing and unbalanced
    ([ASK, "<think>b</think><answer> </answer>"], 0.8),  # answer empty
    ([ASK, "<answer></answer></answer>"], 0.6),  # empty and unbalanced
    ([ASK], 0.5),  # no answer
    (["It is x."], 0.25),  # no answer, no think, no search
    (["b</think>"], 0.15),  # ... and think unbalanced
    (["b</think> x</answer>"], 0.0),  # ... and answer unbalanced: -0.05, clipped
    ([], 0.25),  # cut short before the first message
]


def icrl(*texts: str, **outcome: float) -> Rollout:
    turns = tuple(Turn((1,), (0.0,), text, Icrl().parse(text), truncated=False) for text in texts)
    return Rollout(TASK, (1,), turns, "answered", outcome=outcome)


@pytest.mark.parametrize(("texts", "score"), BY_HAND)
def test_the_format_score_is_the_papers(texts: list[str], score: float) -> None:
    assert REWARDS["format"](icrl(*texts)) == pytest.approx(score)


@pytest.mark.parametrize(
    ("texts", "accuracy", "reward"),
    [
        ([ASK, SAY], 1.0, 1.0),
        ([ASK, SAY], 0.0, 0.2),
        ([SAY], 1.0, 0.98),
        (["It is x."], 0.0, 0.05),
        (["<answer>x</answer>"], 1.0, 0.95),
    ],
)
def test_the_composite_reward_is_four_fifths_accuracy_and_one_fifth_format(
    texts: list[str], accuracy: float, reward: float
) -> None:
    rubric = Rubric({"accuracy": 0.8, "format": 0.2})
    assert rubric.score(icrl(*texts, accuracy=accuracy))[0] == pytest.approx(reward)


def test_an_episode_that_was_cut_short_keeps_its_format_and_has_no_accuracy() -> None:
    reward, parts = Rubric({"accuracy": 0.8, "format": 0.2}).score(icrl(ASK))
    assert parts == {"accuracy": 0.0, "format": 0.5}
    assert reward == pytest.approx(0.1)
