"""The pictures of a comparison, as PNG files.

Input: a :class:`~toolrl_box.report.compare.Comparison`. Output: PNGs in a folder and the list of
:class:`Picture` that says what they show. An arm has one colour, marker and dash everywhere;
intervals are 95%. Left out: a picture for which no run has data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from toolrl_box import stats
from toolrl_box.report.arm_marks import (
    WIDTH,
    Style,
    draw_curve,
    draw_groups,
    draw_point,
    panels_of,
    size,
    styles_of,
)
from toolrl_box.report.compare import WORLDS, Comparison, Estimate, Figures
from toolrl_box.report.figures import (
    BLACK,
    GREY,
    canvas,
    legend,
)
from toolrl_box.seeds import derive

THRESHOLDS = np.linspace(0.0, 1.0, 401)
KL_FLOOR = 1e-3  # nats; below it a policy is the base for all practical purposes


@dataclass(frozen=True, slots=True)
class Picture:
    """A file and what stands under it."""

    file: str
    title: str
    caption: str


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
                draw_curve(axes, arm.arm, column, styles[arm.arm.name], marker=True)
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
        "bootstrap band (no band: one run). Within an arm, a run that ended earlier keeps its last "
        "value.",
    )


def _by_category(
    arms: Sequence[Figures],
    categories: Sequence[str],
    styles: Mapping[str, Style],
    folder: Path,
) -> Picture:
    rows = ("all", *categories)
    titles = [row.replace("_", " ") for row in rows]
    with canvas(folder / "categories.png", size(2, arms)) as figure:
        panels = panels_of(figure, 2, arms)
        for axes, when, title in zip(
            panels,
            ("final", "best"),
            ("final checkpoint", "best checkpoint (chosen by these tasks)"),
            strict=True,
        ):
            draw_groups(
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
                draw_point(axes, pick(arm), place, styles[arm.arm.name], across=True)
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
            draw_curve(left, arm.arm, "bank_kl", style)
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
    with canvas(folder / "ood.png", size(len(shown) or 1, arms)) as figure:
        panels = panels_of(figure, len(shown) or 1, arms)
        for axes, checkpoint in zip(panels, shown or ["base"], strict=True):
            for place, world in enumerate(WORLDS):
                key = ("base", world, "sampled")
                base = next((arm.ood[key] for arm in arms if key in arm.ood), None)
                if base is not None:
                    label = "base" if place == 0 else "_base"
                    ends = (place - 0.42, place + 0.42)
                    axes.hlines(base.value, *ends, color=GREY, linestyle="--", lw=1.2, label=label)
            draw_groups(
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


def _collapse_rate(arm: Figures) -> Estimate | None:
    return arm.collapse.get("collapsed")


def _iqm(arm: Figures) -> Estimate | None:
    return arm.iqm["whole_runs"]
