"""The pictures of a comparison, as PNG files.

Input: a :class:`~toolrl_box.report.compare.Comparison`. Output: PNGs in a folder and the list of
:class:`Picture` that says what they show. An arm has one colour, marker and dash everywhere;
intervals are 95%. Left out: a picture for which no run has data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from toolrl_box import stats
from toolrl_box.report.arms import Arm, Run
from toolrl_box.report.compare import WORLDS, Comparison, Estimate, Figures
from toolrl_box.report.figures import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    canvas,
    legend,
)
from toolrl_box.seeds import derive

COLOURS = (VERMILION, BLUE, GREEN, ORANGE, PURPLE, SKY, BLACK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: tuple[Any, ...] = ("-", "--", ":")
POINTS = 121  # of a curve that has a value at every step
THRESHOLDS = np.linspace(0.0, 1.0, 401)
WIDTH = 9.0
MANY = 5
KL_FLOOR = 1e-3  # nats; below it a policy is the base for all practical purposes


@dataclass(frozen=True, slots=True)
class Picture:
    """A file and what stands under it."""

    file: str
    title: str
    caption: str


@dataclass(frozen=True, slots=True)
class Style:
    colour: str
    marker: str
    dash: Any


def draw(comparison: Comparison, folder: Path) -> list[Picture]:
    """Write the pictures that have data."""
    arms = [arm for arm in comparison.arms if arm.success]
    if not arms:
        return []
    styles = styles_of(comparison)
    pictures = [
        _learning_curves(arms, styles, folder),
        _by_category(arms, comparison.categories, styles, folder),
        _aggregates(arms, styles, folder),
        _profiles(arms, styles, folder),
    ]
    if comparison.improvement:
        pictures.append(_improvement(comparison, [arm.arm.name for arm in arms], folder))
    pictures.append(_signals(arms, styles, folder))
    if any(arm.ood for arm in arms):
        pictures.append(_ood([arm for arm in arms if arm.ood], styles, folder))
    return pictures


def styles_of(comparison: Comparison) -> dict[str, Style]:
    """By the arm's place; from the eighth on, dash and marker tell those of one colour apart."""
    return {
        figures.arm.name: Style(
            COLOURS[i % len(COLOURS)],
            MARKERS[(i + 3 * (i // len(COLOURS))) % len(MARKERS)],
            DASHES[i // len(COLOURS) % len(DASHES)],
        )
        for i, figures in enumerate(comparison.arms)
    }


# --- the pictures -----------------------------------------------------------------------------


def _learning_curves(arms: Sequence[Figures], styles: Mapping[str, Style], folder: Path) -> Picture:
    with canvas(folder / "curves.png", (WIDTH, 3.9)) as figure:
        panels = figure.subplots(1, 2, sharey=True, sharex=True)
        for axes, column, title in zip(
            panels,
            ("eval_sampled", "eval_greedy"),
            ("temperature 1", "greedy"),
            strict=True,
        ):
            for arm in arms:
                _curve(axes, arm.arm, column, styles[arm.arm.name], marker=True)
            axes.set_title(title)
            axes.set_xlabel("updates (RL and SFT)")
        panels[0].set_ylabel("success on held-out tasks")
        panels[0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        panels[0].set_ylim(bottom=0)
        panels[0].set_xlim(left=0)
        legend(figure, panels[0], columns=4)
    return Picture(
        "curves.png",
        "Learning curves",
        "Mean over seeds on the tasks that are held out while training, with a pointwise 95% "
        "bootstrap band (no band: one run). A run that ended earlier keeps its last value.",
    )


def _by_category(
    arms: Sequence[Figures],
    categories: Sequence[str],
    styles: Mapping[str, Style],
    folder: Path,
) -> Picture:
    rows = ("all", *categories)
    titles = [row.replace("_", " ") for row in rows]
    with canvas(folder / "categories.png", _size(2, arms)) as figure:
        panels = _panels(figure, 2, arms)
        for axes, when, title in zip(
            panels,
            ("final", "best"),
            ("final checkpoint", "best checkpoint (chosen by these tasks)"),
            strict=True,
        ):
            _groups(
                axes,
                titles,
                arms,
                styles,
                lambda arm, place, when=when: arm.success[when, "sampled", rows[place]],  # type: ignore[misc]
            )
            axes.set_title(title)
        figure.supylabel("success, temperature 1", fontsize=9.5)
        panels[0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        panels[0].set_ylim(bottom=-0.015)
        legend(figure, panels[0], columns=4)
    return Picture(
        "categories.png",
        "Success by category",
        "Means over seeds with 95% bootstrap intervals. The best checkpoint was chosen by the very "
        "tasks it is shown on, so the right panel is optimistic.",
    )


def _aggregates(arms: Sequence[Figures], styles: Mapping[str, Style], folder: Path) -> Picture:
    height = 1.1 + 0.36 * len(arms)
    with canvas(folder / "aggregates.png", (WIDTH, height)) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, title, pick in zip(
            panels,
            ("collapsed runs (exact binomial)", "IQM of final success (bootstrap over runs)"),
            (_collapse_rate, _iqm),
            strict=True,
        ):
            for place, arm in enumerate(arms):
                _point(axes, pick(arm), place, styles[arm.arm.name], across=True)
            axes.set_title(title)
            axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            axes.grid(visible=False, axis="y")
        panels[0].set_xlim(-0.03, 1.03)
        panels[1].set_xlim(left=-0.02)
        panels[1].tick_params(axis="y", length=0)
        panels[0].set_yticks(range(len(arms)), [arm.arm.name for arm in arms])
        panels[0].set_ylim(len(arms) - 0.5, -0.5)
    return Picture(
        "aggregates.png",
        "Collapse rate and interquartile mean",
        "Collapsed is the verdict of the collapse report. The IQM is the mean of the middle half "
        "of all final successes (runs and categories, temperature 1).",
    )


def _profiles(arms: Sequence[Figures], styles: Mapping[str, Style], folder: Path) -> Picture:
    with canvas(folder / "profile.png", (WIDTH * 0.72, 3.9)) as figure:
        axes = figure.subplots()
        for arm in arms:
            style, scores = styles[arm.arm.name], arm.scores_R_K
            shares = stats.profile(scores, THRESHOLDS)
            axes.plot(THRESHOLDS, shares, style.dash, color=style.colour, label=arm.arm.name)
            if len(scores) > 1:
                rng = np.random.default_rng(derive(0, arm.arm.name, "profile"))
                low, high = stats.bootstrap(scores, lambda s: stats.profile(s, THRESHOLDS), rng)
                axes.fill_between(THRESHOLDS, low, high, color=style.colour, alpha=0.15, lw=0)
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="final success τ, temperature 1")
        axes.set_ylabel("share of runs × categories above τ")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        legend(figure, axes, columns=4)
    return Picture(
        "profile.png",
        "Performance profiles",
        "How many of the scores (a run on a category) lie above a threshold; a curve above another "
        "everywhere is better everywhere. Pointwise 95% bands, runs resampled whole.",
    )


def _improvement(comparison: Comparison, names: Sequence[str], folder: Path) -> Picture:
    size = len(names)
    values = np.full((size, size), np.nan)
    for i, one in enumerate(names):
        for j, other in enumerate(names):
            if one != other:
                values[i, j] = comparison.improvement[one, other].value
    side = 0.9 + 0.78 * size
    with canvas(folder / "improvement.png", (side + 2.6, side + 0.5)) as figure:
        axes = figure.subplots()
        image = axes.imshow(values, cmap="RdBu", vmin=0, vmax=1, alpha=0.85)
        for i, one in enumerate(names):
            for j, other in enumerate(names):
                if one == other:
                    continue
                estimate = comparison.improvement[one, other]
                sure, text = False, f"{estimate.value:.2f}"
                if estimate.interval is not None:
                    low, high = estimate.interval
                    sure = not low <= 0.5 <= high
                    text += f"\n[{low:.2f}, {high:.2f}]"
                shade = abs(estimate.value - 0.5) > 0.33
                axes.text(
                    j,
                    i,
                    text,
                    ha="center",
                    va="center",
                    fontsize=7.5,
                    fontweight="bold" if sure else "normal",
                    color="white" if shade else BLACK,
                )
        axes.set_xticks(range(size), names, rotation=30, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(size), names)
        axes.set(xlabel="than this arm", ylabel="a run of this arm is better")
        axes.set_facecolor("#EFEFEF")
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        figure.colorbar(image, ax=axes, shrink=0.8, label="probability of improvement")
    return Picture(
        "improvement.png",
        "Probability of improvement",
        "How likely a run of the arm on the left scores higher than a run of the arm below, "
        "averaged over categories (final success, temperature 1; ties count half). Bold: the 95% "
        "interval does not hold 0.5.",
    )


def _signals(arms: Sequence[Figures], styles: Mapping[str, Style], folder: Path) -> Picture:
    with canvas(folder / "signals.png", (WIDTH, 3.6)) as figure:
        left, right = figure.subplots(1, 2, sharex=True)
        for arm in arms:
            style = styles[arm.arm.name]
            _curve(left, arm.arm, "bank_kl", style)
            table = arm.arm.finished[0].metrics
            assert table is not None
            kind = table["phase_kind"]
            # The gaps of the one are the other.
            right.plot(
                table["step"], table["lr"].where(kind == "rl"), style.dash, color=style.colour
            )
            rows = table[kind == "sft"]
            (dots,) = right.plot(rows["step"], rows["lr"], ".", color=style.colour)
            dots.set(markersize=3.5)
        left.set_title("KL to the base on the probe's contexts")
        left.set_ylabel("nats per token")
        left.set_yscale("log")
        left.set_ylim(bottom=KL_FLOOR)
        right.set_title("learning rate of the first run")
        right.set_yscale("log")
        for axes in (left, right):
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.set_xlabel("updates (RL and SFT)")
            axes.set_xlim(left=0)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        kinds = [
            Line2D([], [], color=GREY, label="RL"),
            Line2D([], [], color=GREY, marker=".", linestyle="none", label="SFT"),
        ]
        right.legend(handles=kinds, fontsize=8.5, loc="lower right")
        legend(figure, left, columns=4)
    return Picture(
        "signals.png",
        "KL and learning rate",
        "KL: mean over seeds with a pointwise 95% bootstrap band. Learning rate: lines are RL "
        "updates, dots SFT updates.",
    )


def _ood(arms: Sequence[Figures], styles: Mapping[str, Style], folder: Path) -> Picture:
    titles = [world.replace("_", " ") for world in WORLDS]
    shown = [c for c in ("final", "best") if any(key[0] == c for arm in arms for key in arm.ood)]
    with canvas(folder / "ood.png", _size(len(shown) or 1, arms)) as figure:
        panels = _panels(figure, len(shown) or 1, arms)
        for axes, checkpoint in zip(panels, shown or ["base"], strict=True):
            for place, world in enumerate(WORLDS):
                key = ("base", world, "sampled")
                base = next((arm.ood[key] for arm in arms if key in arm.ood), None)
                if base is not None:
                    label = "base" if place == 0 else "_base"
                    ends = (place - 0.42, place + 0.42)
                    axes.hlines(base.value, *ends, color=GREY, linestyle="--", lw=1.2, label=label)
            _groups(
                axes,
                titles,
                arms,
                styles,
                lambda arm, place, checkpoint=checkpoint: arm.ood.get(  # type: ignore[misc]
                    (checkpoint, WORLDS[place], "sampled")
                ),
            )
            axes.set_title(f"{checkpoint} checkpoint")
        figure.supylabel("success, temperature 1", fontsize=9.5)
        panels[0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        panels[0].set_ylim(bottom=-0.015)
        legend(figure, panels[0], columns=4)
    return Picture(
        "ood.png",
        "Other tasks, other formats",
        "Fresh tasks of the training world, foreign content (words and tools never seen), another "
        "tool format, and both. Means over seeds with 95% bootstrap intervals; dashed: the "
        "untouched base of one arm, where it was evaluated.",
    )


# --- parts ------------------------------------------------------------------------------------


def mean_curve(runs: Sequence[Run], column: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps (T,) and the curves of all runs at them (R, T); runs without the column are left out.

    Between its points a run's curve is a straight line; before the first and after the last it
    keeps that value.
    """
    tables = [run.metrics[["step", column]].dropna() for run in runs if run.metrics is not None]
    tables = [table for table in tables if len(table)]
    if not tables:
        return np.empty(0), np.empty((0, 0))
    steps = np.unique(np.concatenate([table["step"].to_numpy(dtype=float) for table in tables]))
    if len(steps) > POINTS:
        steps = np.linspace(steps[0], steps[-1], POINTS)
    curves = [np.interp(steps, table["step"], table[column]) for table in tables]
    return steps, np.array(curves)


def _curve(axes: Axes, arm: Arm, column: str, style: Style, *, marker: bool = False) -> None:
    steps, curves_R_T = mean_curve(arm.finished, column)
    if not len(curves_R_T):
        return
    label = f"{arm.name} ({len(curves_R_T)} run{'s' * (len(curves_R_T) > 1)})"
    mean = curves_R_T.mean(axis=0)
    (line,) = axes.plot(steps, mean, style.dash, color=style.colour, label=label)
    if marker:
        line.set(marker=style.marker, markersize=4)
    if len(curves_R_T) > 1:
        low, high = stats.curve_band(curves_R_T, np.random.default_rng(derive(0, arm.name, column)))
        axes.fill_between(steps, low, high, color=style.colour, alpha=0.16, linewidth=0)


def _size(panels: int, arms: Sequence[Figures]) -> tuple[float, float]:
    """In inches: panels of many arms stand one above the other, else they would be too narrow."""
    if len(arms) > MANY:
        return WIDTH, 1.0 + 2.9 * panels
    return WIDTH * (1.0 if panels > 1 else 0.6), 3.9


def _panels(figure: Figure, count: int, arms: Sequence[Figures]) -> list[Axes]:
    shape = (count, 1) if len(arms) > MANY else (1, count)
    return list(figure.subplots(*shape, sharey=True, squeeze=False).ravel())


def _groups(
    axes: Axes,
    titles: Sequence[str],
    arms: Sequence[Figures],
    styles: Mapping[str, Style],
    pick: Callable[[Figures, int], Estimate | None],
) -> None:
    """One group of points for each title, the arms side by side in it."""
    gap = min(0.8 / len(arms), 0.16)
    for index, arm in enumerate(arms):
        for place in range(len(titles)):
            where = place + (index - (len(arms) - 1) / 2) * gap
            label = arm.arm.name if place == 0 else None
            _point(axes, pick(arm, place), where, styles[arm.arm.name], label=label)
    for edge in range(1, len(titles)):
        axes.axvline(edge - 0.5, color="#E4E4E4", linewidth=0.8, zorder=0)
    axes.set_xticks(range(len(titles)), [title.replace(" ", "\n", 1) for title in titles])
    axes.set_xlim(-0.5, len(titles) - 0.5)
    axes.grid(visible=False, axis="x")


def _collapse_rate(arm: Figures) -> Estimate | None:
    return arm.collapse.get("collapsed")


def _iqm(arm: Figures) -> Estimate | None:
    return arm.iqm["whole_runs"]


def _point(
    axes: Axes,
    estimate: Estimate | None,
    where: float,
    style: Style,
    *,
    across: bool = False,
    label: str | None = None,
) -> None:
    """An estimate and its interval; hollow when it has none."""
    if estimate is None:
        axes.plot([], [], style.marker, color=style.colour, label=label)
        return
    spread: Any = None
    if estimate.interval is not None:
        low, high = estimate.interval
        # A percentile interval may miss its own estimate by a hair.
        spread = [[max(0.0, estimate.value - low)], [max(0.0, high - estimate.value)]]
    x, y = (estimate.value, where) if across else (where, estimate.value)
    axes.errorbar(
        [x],
        [y],
        xerr=spread if across else None,
        yerr=None if across else spread,
        fmt=style.marker,
        color=style.colour,
        markerfacecolor="white" if spread is None else style.colour,
        label=label,
        markersize=5,
        elinewidth=1.3,
    )
