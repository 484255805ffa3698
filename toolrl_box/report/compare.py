"""The comparison of runs: what each arm reached, how sure that is, and what it cost.

Input: arms of runs (``arms``). Output: a :class:`Comparison`, from which ``compare_figures`` and
``compare_pages`` make pictures and pages.

Figures are over finished runs; every other run is listed with its cause. An arm of one run has no
interval, and none is made up. Left out: p-values, and any statement that one arm is better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from toolrl_box import stats
from toolrl_box.report.arms import Arm, Run
from toolrl_box.seeds import derive
from toolrl_box.stats import Interval
from toolrl_box.verdicts import FALLEN

COLLAPSED = ("structural_collapse", "reward_collapse")
TEMPERATURES = ("sampled", "greedy")
WORLDS = ("in_distribution", "content_ood", "format_ood", "both_ood")
CHECKPOINTS = ("base", "best", "final")


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure of an arm: ``runs`` behind it, and its 95% interval (None when there is none)."""

    value: float
    runs: int
    interval: Interval | None = None
    method: str = ""
    hits: int | None = None


@dataclass(frozen=True, slots=True)
class Figures:
    """What is said about one arm; keys of the tables are as in ``compare.csv``.

    ``scores_R_K`` are the final successes at temperature 1, finished runs x categories.
    """

    arm: Arm
    success: Mapping[tuple[str, str, str], Estimate]  # (final|best, temperature, category|all)
    base: Estimate | None
    collapse: Mapping[str, Estimate]
    iqm: Mapping[str, Estimate]
    cost: Mapping[str, Estimate]
    ood: Mapping[tuple[str, str, str], Estimate]  # (checkpoint, world, temperature)
    scores_R_K: np.ndarray


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything the pages and pictures show. ``improvement[i, j]``: arm i over arm j."""

    arms: tuple[Figures, ...]
    categories: tuple[str, ...]
    improvement: Mapping[tuple[str, str], Estimate]
    runs: tuple[tuple[str, Run], ...]  # with the name of the arm
    notes: tuple[str, ...]


def compare(arms: Sequence[Arm]) -> Comparison:
    """The figures of all arms and of all pairs of them."""
    categories = _categories([run for arm in arms for run in arm.finished])
    figures = tuple(_figures(arm, categories) for arm in arms)
    return Comparison(
        figures,
        categories,
        _improvement(figures),
        tuple((arm.name, run) for arm in arms for run in arm.runs),
        tuple(_notes(arms, categories)),
    )


# --- one arm ----------------------------------------------------------------------------------


def _figures(arm: Arm, categories: Sequence[str]) -> Figures:
    runs = [run for run in arm.finished if _evaluated(run)]
    success = {
        (when, temperature, category): _mean(
            [_success(run, when, temperature, category) for run in runs],
            (arm.name, when, temperature, category),
        )
        for when in ("final", "best")
        for temperature in TEMPERATURES
        for category in ("all", *categories)
        if runs
    }
    columns = categories or ("all",)
    scores_R_K = np.array(
        [[_success(run, "final", "sampled", category) for category in columns] for run in runs]
    ).reshape(len(runs), len(columns))
    judged = [run for run in arm.finished if run.verdict != "insufficient_data"]
    collapse = {}
    if judged:
        hits = sum(run.verdict in COLLAPSED for run in judged)
        collapse["collapsed"] = _proportion(hits, len(judged))
    firsts: list[float] = []
    if runs:
        firsts = [_curve(run, "eval_sampled")[1][0] for run in runs]
        lasts = [_curve(run, "eval_sampled")[1][-1] for run in runs]
        below = sum(last < FALLEN * first for first, last in zip(firsts, lasts, strict=True))
        collapse["below_half_of_base"] = _proportion(below, len(runs))
    return Figures(
        arm=arm,
        success=success,
        base=_mean(firsts, (arm.name, "base")) if runs else None,
        collapse=collapse,
        iqm=_iqm(scores_R_K, arm.name),
        cost=_cost(arm),
        ood=_ood(arm),
        scores_R_K=scores_R_K,
    )


def _success(run: Run, when: str, temperature: str, category: str) -> float:
    """At the end, or where the mean of both temperatures was highest (as the run marked it)."""
    assert run.metrics is not None
    rows = run.metrics.dropna(subset=["eval_greedy", "eval_sampled"])
    place = -1
    if when == "best":
        place = int((rows["eval_greedy"] + rows["eval_sampled"]).to_numpy().argmax())
    column = f"eval_{temperature}" + ("" if category == "all" else f"_{category}")
    return float(rows[column].iloc[place])


def _iqm(scores_R_K: np.ndarray, name: str) -> dict[str, Estimate]:
    """With the interval of whole runs and with the stratified one."""
    runs = len(scores_R_K)
    if not runs:
        return {}
    value = float(stats.iqm(scores_R_K))
    if runs == 1:
        return {"whole_runs": Estimate(value, runs), "stratified": Estimate(value, runs)}
    return {
        kind: Estimate(
            value,
            runs,
            stats.iqm_interval(scores_R_K, _rng(name, "iqm", kind), resample=resample),
            f"bootstrap, {kind.replace('_', ' ')}",
        )
        for kind, resample in (
            ("whole_runs", stats.resample_runs),
            ("stratified", stats.resample_strata),
        )
    }


def _cost(arm: Arm) -> dict[str, Estimate]:
    """Means over finished runs. Sequences of SFT are at most updates x batch: the log counts
    updates, and a last batch may be smaller."""
    measures: dict[str, Callable[[Run], float]] = {
        "updates": lambda run: float((_table(run)["step"] > 0).sum()),
        "rl_steps": lambda run: float((_table(run)["phase_kind"] == "rl").sum()),
        "sft_updates": lambda run: float((_table(run)["phase_kind"] == "sft").sum()),
        "sft_sequences_at_most": lambda run: (
            float((_table(run)["phase_kind"] == "sft").sum()) * _setting(run, "sft.batch_size")
        ),
        "sampled_tokens": lambda run: (
            float(_table(run)["completion_tokens"].sum())
            * _setting(run, "grpo.prompts_per_step")
            * _setting(run, "grpo.group_size")
        ),
        "seconds": lambda run: float(_table(run)["seconds_step"].sum()),
    }
    if not arm.finished:
        return {}
    return {
        name: _mean([measure(run) for run in arm.finished], (arm.name, name))
        for name, measure in measures.items()
    }


def _ood(arm: Arm) -> dict[tuple[str, str, str], Estimate]:
    """Over the runs that were evaluated there."""
    figures = {}
    for checkpoint in CHECKPOINTS:
        made = [
            evaluation
            for run in arm.finished
            for evaluation in run.evaluations
            if checkpoint in evaluation["names"]
        ]
        for world in WORLDS:
            for temperature in TEMPERATURES:
                values = [
                    float(e["worlds"][world][temperature]["success"])
                    for e in made
                    if world in e["worlds"]
                ]
                if values:
                    key = (checkpoint, world, temperature)
                    figures[key] = _mean(values, (arm.name, *key))
    return figures


# --- between arms -----------------------------------------------------------------------------


def _improvement(arms: Sequence[Figures]) -> dict[tuple[str, str], Estimate]:
    """Every ordered pair; runs are resampled whole, each arm apart."""
    found = {}
    for one in arms:
        for other in arms:
            x, y = one.scores_R_K, other.scores_R_K
            if one is other or not len(x) or not len(y):
                continue
            value, runs = float(stats.improvement(x, y)), min(len(x), len(y))
            pair = (one.arm.name, other.arm.name)
            interval = None
            if runs > 1:
                interval = stats.improvement_interval(x, y, _rng(*pair))
            method = "bootstrap, whole runs" if interval else ""
            found[pair] = Estimate(value, runs, interval, method)
    return found


def _notes(arms: Sequence[Arm], categories: Sequence[str]) -> list[str]:
    """What a reader must know before he believes a figure."""
    notes = []
    for arm in arms:
        for key, values in arm.mixed.items():
            notes.append(f"Arm '{arm.name}' mixes runs with different {key}: {', '.join(values)}.")
        settings = [(run.seed, run.settings) for run in arm.runs if run.settings is not None]
        copies = {s for i, (s, those) in enumerate(settings) if (s, those) in settings[:i]}
        for seed in sorted(copies, key=str):
            notes.append(
                f"Arm '{arm.name}' holds copies of seed {seed} with the same settings: they are "
                "not independent runs, and its intervals are too narrow."
            )
        if len(arm.finished) == 1:
            notes.append(
                f"Arm '{arm.name}' has one finished run: no interval over runs can be given."
            )
        if not arm.finished:
            notes.append(f"Arm '{arm.name}' has no finished run: it has no figures.")
        silent = sum(not _evaluated(run) for run in arm.finished)
        if silent:
            notes.append(f"Arm '{arm.name}' has {silent} finished run(s) without an evaluation.")
        short = sum(run.verdict == "insufficient_data" for run in arm.finished)
        if short:
            notes.append(
                f"Arm '{arm.name}' has {short} finished run(s) too short for the report's verdict: "
                "they are not in its share of collapsed runs."
            )
        missing = len(arm.runs) - len(arm.finished)
        if missing and arm.finished:
            notes.append(
                f"Arm '{arm.name}': {missing} of {len(arm.runs)} runs did not finish and are in "
                "no figure. If the harder runs are those that fail, the figures flatter the arm."
            )
    if not categories:
        notes.append("The runs share no category: aggregates are over runs alone.")
    return notes


def _categories(runs: Sequence[Run]) -> tuple[str, ...]:
    """Those that every evaluated run has, in order of name."""
    prefix = "eval_sampled_"
    each = [
        {c.removeprefix(prefix) for c in _table(run).columns if c.startswith(prefix)}
        for run in runs
        if _evaluated(run)
    ]
    return tuple(sorted(set.intersection(*each))) if each else ()


# --- small parts ------------------------------------------------------------------------------


def _mean(values: Sequence[float], purpose: Sequence[str]) -> Estimate:
    if len(values) == 1:
        return Estimate(values[0], 1)
    interval = stats.mean_interval(np.array(values), _rng(*purpose))
    return Estimate(float(np.mean(values)), len(values), interval, "bootstrap, runs")


def _proportion(hits: int, total: int) -> Estimate:
    interval = stats.proportion_interval(hits, total)
    return Estimate(hits / total, total, interval, "exact binomial", hits)


def _rng(*purpose: str) -> np.random.Generator:
    """Its own for every figure: adding an arm changes no other's interval."""
    return np.random.default_rng(derive(0, *purpose))


def _table(run: Run) -> Any:
    assert run.metrics is not None
    return run.metrics


def _evaluated(run: Run) -> bool:
    return bool(_table(run)[["eval_greedy", "eval_sampled"]].notna().all(axis=1).any())


def _setting(run: Run, key: str) -> float:
    """A number of the config; an invented or old run may have none."""
    value = (run.settings or {}).get(key)
    return float(value) if isinstance(value, int | float) else float("nan")


def _curve(run: Run, column: str) -> tuple[list[int], list[float]]:
    kept = _table(run)[["step", column]].dropna()
    return kept["step"].tolist(), kept[column].tolist()
