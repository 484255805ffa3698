"""The rules of the verdict, on invented curves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolrl_box.curves import NOTHING, Curve
from toolrl_box.verdicts import Signals, Verdict, reward_onset, structural_onset
from toolrl_box.verdicts import judge as judge_signals


def curve(*pieces: tuple[int, float]) -> Curve:
    """``(count, value)`` pieces one after the other, from step 1 on."""
    values = [value for count, value in pieces for _ in range(count)]
    return Curve(tuple(range(1, len(values) + 1)), tuple(values))


def judge(reward: Curve, healthy: Curve, evaluation: Curve = NOTHING) -> Verdict:
    return judge_signals(Signals(reward, healthy, evaluation))


SOUND = curve((30, 0.95))


def test_a_steady_run_is_healthy_and_has_no_onset() -> None:
    verdict = judge(curve((30, 0.4)), SOUND)
    assert (verdict.name, verdict.onset) == ("healthy", None)
    assert verdict.peak == pytest.approx(0.4)


def test_fewer_than_ten_points_are_not_judged() -> None:
    assert judge(curve((9, 0.4)), SOUND).name == "insufficient_data"
    assert judge(curve((10, 0.4)), SOUND).name == "healthy"


def test_the_reward_onset_is_where_the_five_step_mean_passes_half_of_its_peak() -> None:
    # Means after the fall at step 21: .32, .24, .16 — the third one is below .20.
    assert reward_onset(curve((20, 0.4), (10, 0.0))) == 23


def test_a_fall_that_recovers_is_no_onset() -> None:
    assert reward_onset(curve((20, 0.4), (8, 0.0), (10, 0.4))) is None


def test_a_recovery_to_less_than_seventy_percent_of_the_peak_does_not_count() -> None:
    assert reward_onset(curve((20, 0.4), (8, 0.0), (10, 0.27))) == 23
    assert reward_onset(curve((20, 0.4), (8, 0.0), (10, 0.29))) is None


def test_a_second_fall_after_a_recovery_is_dated_at_the_second() -> None:
    assert reward_onset(curve((20, 0.4), (8, 0.0), (20, 0.4), (10, 0.0))) == 51


def test_a_peak_within_the_noise_cannot_fall() -> None:
    assert reward_onset(curve((20, 0.04), (10, 0.0))) is None


def test_reward_lost_with_sound_messages_is_a_reward_collapse() -> None:
    verdict = judge(curve((20, 0.4), (10, 0.0)), SOUND)
    assert (verdict.name, verdict.onset, verdict.structural_onset) == ("reward_collapse", 23, None)


def test_reward_lost_with_broken_messages_is_a_structural_collapse_dated_at_the_first_sign() -> (
    None
):
    verdict = judge(curve((20, 0.4), (10, 0.0)), curve((18, 0.95), (12, 0.3)))
    assert (verdict.name, verdict.onset, verdict.reward_onset) == ("structural_collapse", 19, 23)


def test_mostly_broken_messages_are_a_structural_collapse_even_while_reward_holds() -> None:
    verdict = judge(curve((30, 0.4)), curve((18, 0.95), (12, 0.3)))
    assert (verdict.name, verdict.onset, verdict.reward_onset) == ("structural_collapse", 19, None)


def test_partly_broken_messages_with_reward_intact_are_text_pollution() -> None:
    verdict = judge(curve((30, 0.4)), curve((18, 0.95), (12, 0.7)))
    assert (verdict.name, verdict.onset, verdict.structural_onset) == ("text_pollution", None, 20)


def test_reward_that_ends_between_half_and_seventy_percent_of_its_peak_is_drift() -> None:
    assert judge(curve((20, 0.4), (10, 0.25)), SOUND).name == "drifting"


def test_messages_that_broke_and_recovered_leave_a_trace_but_no_verdict() -> None:
    verdict = judge(curve((30, 0.4)), curve((10, 0.95), (5, 0.3), (15, 0.95)))
    assert (verdict.name, verdict.structural_onset) == ("healthy", 11)


def test_a_base_that_was_never_sound_is_measured_against_itself() -> None:
    assert structural_onset(curve((30, 0.6))) is None
    assert judge(curve((30, 0.4)), curve((30, 0.3))).name == "healthy"
    assert structural_onset(curve((20, 0.6), (10, 0.4))) == 22


def test_a_run_that_sampled_no_messages_is_judged_by_reward_alone() -> None:
    assert judge(curve((20, 0.4), (10, 0.0)), Curve((), ())).name == "reward_collapse"


def test_steps_without_a_figure_are_left_out_of_the_curve() -> None:
    assert Curve.of([1, 2, 3], [0.1, float("nan"), 0.3]) == Curve((1, 3), (0.1, 0.3))


shares = st.lists(st.floats(0, 1), min_size=10, max_size=40)


@given(shares, shares)
def test_an_onset_is_a_step_of_the_run_and_only_collapse_has_one(
    rewards: list[float], healthy: list[float]
) -> None:
    reward = Curve.of(range(1, len(rewards) + 1), rewards)
    verdict = judge(reward, Curve.of(range(1, len(healthy) + 1), healthy))
    collapsed = verdict.name in ("structural_collapse", "reward_collapse")
    assert (verdict.onset is not None) == collapsed
    assert verdict.onset is None or 1 <= verdict.onset <= max(len(rewards), len(healthy))


def test_a_fall_of_the_sampled_reward_that_the_evaluation_does_not_see_is_none() -> None:
    reward = curve((20, 0.4), (10, 0.1))
    assert judge(reward, SOUND).name == "reward_collapse"
    assert judge(reward, SOUND, curve((6, 0.4))).name == "healthy"
    assert judge(reward, SOUND, curve((3, 0.4), (3, 0.25))).name == "drifting"
    assert judge(reward, SOUND, curve((3, 0.4), (3, 0.0))).name == "reward_collapse"


def test_a_run_without_rewards_is_judged_by_its_evaluation() -> None:
    nothing = curve((0, 0.0))
    assert judge(nothing, nothing, curve((6, 0.4))).name == "healthy"
    assert judge(nothing, nothing, curve((4, 0.4), (2, 0.0))).name == "reward_collapse"
    assert judge(nothing, nothing, curve((3, 0.4))).name == "insufficient_data"
