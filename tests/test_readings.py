"""A step's figures become named signals; what a step does not have is absent, never 0."""

from __future__ import annotations

import math

import pytest

from toolrl_box.readings import DERIVED_SIGNALS, ROW_SIGNALS, SIGNALS, values
from toolrl_box.runlog import METRICS, RIGHT_TOKEN

ROW = {
    **{"step": 3, "phase_kind": "rl", "bank_nll": 0.5, "bank_kl": 0.1, "reward": 0.25},
    **{"entropy": 0.3, "grad_norm": 1.0, "clip_fraction": 0.0, "reward_spread": 0.2},
    **{"zero_spread": 0.5, "completion_tokens": 31.0},
    **{"p_call": 0.7, "state_healthy_call": 0.5, "state_healthy_response": 0.1},
    **{"state_text_pollution": 0.3, "state_collapsed": 0.1},
}


def row(slot: str, token: str, mean: float, low: float = -9.0, high: float = -1.0) -> dict:
    return {"step": 3, "slot": slot, "token": token, "mean_logprob": mean} | {
        **{"q05": low, "q50": mean, "q95": high, "n": 8}
    }


PROBE = [
    row("after_call", RIGHT_TOKEN, -0.5, low=-2.0, high=-0.1),
    row("after_call", "<|im_end|>", -0.5, low=-2.0, high=-0.1),  # the right one, everywhere
    row("after_call", "<tool_call>", math.log(0.2), high=math.log(0.5)),
    row("after_call", "}}", math.log(0.1), high=math.log(0.3)),
    row("inside_call", RIGHT_TOKEN, -0.1, low=-3.0),
    row("inside_call", "<|im_end|>", math.log(0.05), high=math.log(0.1)),
    row("inside_call", "}}", math.log(0.6), high=math.log(0.9)),  # right in places
]


def test_all_signals_come_from_a_full_step() -> None:
    assert set(values(ROW, PROBE)) == set(SIGNALS)


def test_figures_of_the_row_keep_their_names_and_values() -> None:
    found = values(ROW, PROBE)
    assert {name: found[name] for name in ROW_SIGNALS} == {name: ROW[name] for name in ROW_SIGNALS}


def test_every_signal_of_the_row_is_a_column_of_the_run_folder() -> None:
    assert ROW_SIGNALS.keys() <= METRICS.keys()
    assert not ROW_SIGNALS.keys() & DERIVED_SIGNALS.keys()


def test_deficits_are_those_of_the_worst_slot() -> None:
    found = values(ROW, PROBE)
    assert found["deficit"] == 0.5
    assert found["deficit_q95"] == 3.0  # another slot's


def test_control_tokens_are_wrong_where_they_are_right_nowhere() -> None:
    found = values(ROW, PROBE)
    assert found["wrong_control"] == pytest.approx(0.3)
    assert found["wrong_control_q95"] == pytest.approx(0.5)


def test_calls_that_err_are_not_unhealthy() -> None:
    assert values(ROW, [])["unhealthy"] == pytest.approx(0.4)
    erring = {**ROW, "kind_unknown_tool": 0.1, "kind_schema_violation": math.nan}
    assert values(erring, [])["unhealthy"] == pytest.approx(0.3)
    assert values(erring, [])["text_pollution"] == 0.3


def test_a_supervised_step_has_no_reward_and_no_messages() -> None:
    supervised = {"step": 4, "phase_kind": "sft", "bank_nll": 0.5, "bank_kl": 0.1, "loss": 2.0}
    assert set(values(supervised, [])) == {"bank_nll", "bank_kl"}


@pytest.mark.parametrize("nothing", [math.nan, math.inf, -math.inf, None, "?"])
def test_what_is_no_finite_number_is_absent(nothing: object) -> None:
    found = values({**ROW, "grad_norm": nothing, "state_collapsed": nothing}, [])
    assert not {"grad_norm", "unhealthy", "collapsed", "text_pollution"} & found.keys()


def test_a_step_without_a_probe_has_no_slots() -> None:
    assert not {name for name in values(ROW, []) if name.startswith(("deficit", "wrong"))}
