"""What the pictures of a comparison are made of: the arms' styles, curves and points.

Input: axes and the figures of arms. Output: marks on the axes; an arm has one colour, marker and
dash everywhere, and a point without an interval is hollow. Left out: which picture shows what.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from toolrl_box import stats
from toolrl_box.report.arms import Arm, Run
from toolrl_box.report.compare import Comparison, Estimate, Figures
from toolrl_box.report.figures import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION
from toolrl_box.seeds import derive

COLOURS = (VERMILION, BLUE, GREEN, ORANGE, PURPLE, SKY, BLACK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: tuple[Any, ...] = ("-", "--", ":")
POINTS = 121  # of a curve that has a value at every step
WIDTH = 9.0
MANY = 5


@dataclass(frozen=True, slots=True)
class Style:
    colour: str
    marker: str
    dash: Any


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


def draw_curve(axes: Axes, arm: Arm, column: str, style: Style, *, marker: bool = False) -> None:
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


def size(panels: int, arms: Sequence[Figures]) -> tuple[float, float]:
    """In inches: panels of many arms stand one above the other, else they would be too narrow."""
    if len(arms) > MANY:
        return WIDTH, 1.0 + 2.9 * panels
    return WIDTH * (1.0 if panels > 1 else 0.6), 3.9


def panels_of(figure: Figure, count: int, arms: Sequence[Figures]) -> list[Axes]:
    shape = (count, 1) if len(arms) > MANY else (1, count)
    return list(figure.subplots(*shape, sharey=True, squeeze=False).ravel())


def draw_groups(
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
            draw_point(axes, pick(arm, place), where, styles[arm.arm.name], label=label)
    for edge in range(1, len(titles)):
        axes.axvline(edge - 0.5, color="#E4E4E4", linewidth=0.8, zorder=0)
    axes.set_xticks(range(len(titles)), [title.replace(" ", "\n", 1) for title in titles])
    axes.set_xlim(-0.5, len(titles) - 0.5)
    axes.grid(visible=False, axis="x")


def draw_point(
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
