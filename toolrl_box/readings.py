"""What a step logs, as the named scalars that detectors see: the same live and from a run folder.

Input: a step's row of metrics and its rows of the probe's summary (one per slot and token), as they
go into ``metrics.parquet`` and ``probe.parquet``. Output: ``Reading.values``, keys of
:data:`SIGNALS`. A figure that the step does not have (an SFT step has no reward, an unprobed step
no bank) or that is not finite is absent, never 0.

Left out: whatever needs more than one step (that is a statistic, see :mod:`toolrl_box.detectors`),
evaluations (they define the onsets that detectors are judged by) and single contexts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from toolrl_box.probe.states import WELL_FORMED
from toolrl_box.runlog import RIGHT_TOKEN, RunView
from toolrl_box.types import Reading

ROW_SIGNALS: Mapping[str, str] = {
    "bank_nll": "mean NLL of the bank's gold tokens, nats",
    "bank_kl": "mean KL to the base over the bank, nats",
    "p_call": "probability of a dialogue's exact first gold call",
    "entropy": "mean entropy of the sampled tokens, nats",
    "grad_norm": "norm of the gradient before clipping",
    "clip_fraction": "share of tokens whose ratio was clipped",
    "reward": "mean reward of the policy's own rollouts",
    "reward_spread": "mean deviation of reward within a group",
    "zero_spread": "share of groups whose rollouts all have the same reward",
    "completion_tokens": "mean number of tokens that the policy writes in an episode",
}
MESSAGE_SIGNALS: Mapping[str, str] = {
    "unhealthy": "share of messages with broken structure, well-formed calls that err left out",
    "text_pollution": "share of messages in this state",
    "collapsed": "share of messages in this state",
}
PROBE_SIGNALS: Mapping[str, str] = {
    "deficit": "mean -log p of the right token in the slot where it is largest, nats",
    "deficit_q95": "its 95% quantile over contexts in the slot where it is largest, nats",
    "wrong_control": "summed geometric-mean probability of control tokens in the slot where they "
    "are wrong and it is largest",
    "wrong_control_q95": "95% quantile over contexts of the likeliest wrong control token",
}
DERIVED_SIGNALS: Mapping[str, str] = {**MESSAGE_SIGNALS, **PROBE_SIGNALS}
SIGNALS: Mapping[str, str] = {**ROW_SIGNALS, **DERIVED_SIGNALS}
"""Name -> meaning and unit."""

# Within a call the pieces of its own syntax are right in one place and wrong in the next, which a
# summary over the slot cannot tell apart: there only the frame's tokens count as wrong.
INSIDE = ("after_open", "inside_call")
FRAME = (
    *("<tool_call>", "</tool_call>", "<|im_end|>", "<|im_start|>"),
    *("<tool_response>", "</tool_response>"),
)
_SAME = ("mean_logprob", "q05", "q50", "q95")


def values(row: Mapping[str, Any], probe: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The signals of one step. ``row`` may hold more than figures; ``probe`` has columns
    :data:`toolrl_box.runlog.PROBE`."""
    found = {name: row[name] for name in ROW_SIGNALS if _is_figure(row.get(name))}
    if _is_figure(row.get("state_collapsed")):
        kinds = [row.get(f"kind_{kind}") for kind in WELL_FORMED]
        wrong = sum(share for share in kinds if share is not None and _is_figure(share))
        found["unhealthy"] = row["state_text_pollution"] + row["state_collapsed"] - wrong
        found["text_pollution"] = row["state_text_pollution"]
        found["collapsed"] = row["state_collapsed"]
    return {name: float(value) for name, value in {**found, **_of_slots(probe)}.items()}


def readings(run: RunView) -> list[Reading]:
    """What the detectors of a finished or running run have seen: its probed steps in order.

    Step 0 is the base before training and was shown to no detector.
    """
    probed: dict[int, list[Mapping[str, Any]]] = {}
    for row in records(run.probe()):
        probed.setdefault(row["step"], []).append(row)
    return [
        Reading(row["step"], values(row, probed[row["step"]]))
        for row in records(run.metrics())
        if row["step"] > 0 and _is_figure(row["bank_nll"])
    ]


def right_tokens(probe: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Mean log-prob of the right token by slot, nats."""
    rows = (row for row in probe if row["token"] == RIGHT_TOKEN)
    return {row["slot"]: float(row["mean_logprob"]) for row in rows}


def records(table: pd.DataFrame) -> list[Mapping[str, Any]]:
    """The rows of a table of the run folder as plain values."""
    rows: list[Mapping[str, Any]] = [
        {str(name): value for name, value in row.items()} for row in table.to_dict("records")
    ]
    return rows


def _of_slots(probe: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    slots: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in probe:
        slots.setdefault(row["slot"], {})[row["token"]] = row
    if not slots:
        return {}
    right = [tokens[RIGHT_TOKEN] for tokens in slots.values()]
    wrong = [list(_wrong(slot, tokens)) for slot, tokens in slots.items()]
    return {
        "deficit": max(-row["mean_logprob"] for row in right),
        "deficit_q95": max(-row["q05"] for row in right),
        "wrong_control": max(sum(math.exp(row["mean_logprob"]) for row in rows) for rows in wrong),
        "wrong_control_q95": max(math.exp(row["q95"]) for rows in wrong for row in rows),
    }


def _wrong(slot: str, tokens: Mapping[str, Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    """Rows of the control tokens that are right nowhere in the slot. One that is right in all of it
    has the right token's own figures."""
    right = tokens[RIGHT_TOKEN]
    for token, row in tokens.items():
        counts = token != RIGHT_TOKEN and (slot not in INSIDE or token in FRAME)
        if counts and any(row[name] != right[name] for name in _SAME):
            yield row


def _is_figure(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
