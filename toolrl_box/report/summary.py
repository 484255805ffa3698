"""What a report says, as plain data: read from the run folder, judged, not yet written up.

Input: a :class:`RunView`. Output: the summary dict that becomes ``summary.json`` and feeds the
page (JSON values only; a missing figure is None). Left out: wording and mark-up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from toolrl_box.curves import Curve
from toolrl_box.probe.states import WELL_FORMED
from toolrl_box.runlog import RunView
from toolrl_box.types import STATES
from toolrl_box.verdicts import REWARD_WINDOW, Signals, Verdict, judge, judged_by

SCHEMA_VERSION = 1


def summarise(run: RunView) -> dict[str, Any]:
    """Raises RunFolderError when the folder is damaged."""
    metrics, journal = run.metrics(), run.journal()
    measure, signals = signals_of(metrics)
    verdict = judge(signals)
    summary = {
        "schema_version": SCHEMA_VERSION,
        "run": run.path.resolve().name,
        "verdict": verdict.name,
        "headline": verdict.headline,
        "reason": verdict.reason,
        "onset_step": verdict.onset,
        "reward_onset": verdict.reward_onset,
        "structural_onset": verdict.structural_onset,
        "steps": int(metrics["step"].max()) if len(metrics) else 0,
        "rl_steps": int((metrics["phase_kind"] == "rl").sum()),
        "finished": any(event["event"] == "finish" for event in journal),
        "reward": _reward(verdict, measure),
        "evaluation": {
            name: _evaluation(Curve.of(metrics["step"].tolist(), metrics[f"eval_{name}"].tolist()))
            for name in ("greedy", "sampled")
        },
        "best_checkpoint": best_checkpoint(journal),
        "state_shares": _shares(metrics),
        "phases": phases(journal, metrics),
        "alarms": [
            {name: value for name, value in event.items() if name != "event"}
            for event in journal
            if event["event"] == "alarm"
        ],
        "ood": run.evaluations(),
        "config": run.config,
    }
    plain: dict[str, Any] = _plain(summary)
    return plain


def signals_of(metrics: pd.DataFrame) -> tuple[str, Signals]:
    """What the verdict is judged by, and the column of its reward. An SFT step samples nothing:
    its entropy is that of gold tokens and left out."""
    steps = metrics["step"].tolist()
    rewarded = metrics["reward"].notna()

    def curve(values: pd.Series[float]) -> Curve:
        return Curve.of(steps, values.tolist())

    evaluation = curve(metrics["eval_sampled"])
    dense, reward = judged_by(curve(metrics["reward"]), evaluation)
    wrong = sum((kind_share(metrics, kind) for kind in WELL_FORMED), start=0.0 * metrics["step"])
    signals = Signals(
        reward,
        healthy_curve(metrics),
        evaluation,
        entropy=curve(metrics["entropy"].where(rewarded)),
        length=curve(metrics["completion_tokens"]),
        cut=curve(kind_share(metrics, "truncated").where(rewarded)),
        spread=curve(metrics["reward_spread"]),
        wrong=curve((wrong / (wrong + metrics["state_healthy_call"])).where(rewarded)),
    )
    return "eval_sampled" if dense else "reward", signals


def kind_share(metrics: pd.DataFrame, kind: str) -> pd.Series[float]:
    """Share of the messages that are of ``kind``; 0 where it did not occur."""
    if f"kind_{kind}" not in metrics:
        return 0.0 * metrics["step"]
    return metrics[f"kind_{kind}"].fillna(0.0)


def healthy_curve(metrics: pd.DataFrame) -> Curve:
    """Share of structurally sound messages: the healthy ones, and well-formed calls that only
    name a tool that is not listed or break its schema. Those are mistakes, not broken structure,
    and how often they occur hangs on which tasks a step drew."""
    shares = metrics["state_healthy_call"] + metrics["state_healthy_response"]
    for kind in WELL_FORMED:
        shares = shares + kind_share(metrics, kind)
    return Curve.of(metrics["step"].tolist(), shares.tolist())


def best_checkpoint(journal: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The last one that was marked best while training, and why."""
    best = [event for event in journal if event["event"] == "best"]
    if not best:
        return None
    step, score = int(best[-1]["step"]), float(best[-1]["score"])
    saved = sum(event["event"] == "checkpoint" for event in journal)
    reason = f"highest held-out evaluation ({score:.2f}); checkpoints written: {saved}"
    return {"step": step, "score": score, "reason": reason}


def phases(journal: list[dict[str, Any]], metrics: pd.DataFrame) -> list[dict[str, Any]]:
    """Each phase with its first and last step; a phase cut off by a kill has no end."""
    ended = {event["index"]: event for event in journal if event["event"] == "phase_end"}
    started = [event for event in journal if event["event"] == "phase_start"]
    found = []
    for event in started:
        steps = metrics.loc[metrics["phase"] == event["index"], "step"]
        found.append(
            {
                "index": event["index"],
                "kind": event["kind"],
                "detail": event.get("detail"),
                "first_step": int(steps.min()) if len(steps) else None,
                "last_step": int(steps.max()) if len(steps) else None,
                "ended": event["index"] in ended,
            }
        )
    return found


def _reward(verdict: Verdict, measure: str) -> dict[str, Any]:
    return {
        "measure": measure,
        "window": REWARD_WINDOW,
        "peak": verdict.peak,
        "peak_step": verdict.peak_step,
        "final": verdict.final,
    }


def _evaluation(curve: Curve) -> dict[str, Any] | None:
    if not curve.values:
        return None
    peak = max(curve.values)
    return {
        "first": curve.values[0],
        "peak": peak,
        "peak_step": curve.steps[curve.values.index(peak)],
        "final": curve.values[-1],
        "final_step": curve.steps[-1],
    }


def _shares(metrics: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Mean share of each state over the first and the last 5 steps that sampled messages."""
    columns = metrics[[f"state_{state}" for state in STATES]].dropna()
    return {
        name: {state: float(part[f"state_{state}"].mean()) for state in STATES}
        for name, part in (
            ("first", columns.head(REWARD_WINDOW)),
            ("last", columns.tail(REWARD_WINDOW)),
        )
    }


def _plain(value: Any) -> Any:
    """JSON values only: it knows neither NaN nor infinity nor dates."""
    match value:
        case float() if not math.isfinite(value):
            return None
        case None | bool() | int() | float() | str():
            return value
        case Mapping():
            return {str(name): _plain(item) for name, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case _:
            return str(value)
