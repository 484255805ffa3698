"""The four pictures of a run, as PNG files.

Input: the metrics and probe tables, the spans of the supervised phases, the onset. Output: PNGs
at the size at which they are read. Colours are Okabe and Ito's, which the colour-blind can tell
apart; lines also differ by dash or marker. Left out: anything interactive.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from toolrl_box.curves import Curve
from toolrl_box.runlog import RIGHT_TOKEN
from toolrl_box.types import STATES
from toolrl_box.verdicts import REWARD_WINDOW

BLACK, GREY = "#222222", "#777777"
BLUE, ORANGE, GREEN, SKY = "#0072B2", "#E69F00", "#009E73", "#56B4E9"
VERMILION, PURPLE, YELLOW = "#D55E00", "#CC79A7", "#F0E442"
SFT_SHADE = "#ECE6D8"

STATE_COLOURS = dict(zip(STATES, (GREEN, SKY, YELLOW, VERMILION), strict=True))
STATE_LABELS = dict(
    zip(
        STATES,
        ("healthy tool call", "healthy response", "text pollution", "collapsed"),
        strict=True,
    )
)
TOKEN_STYLES: tuple[tuple[str, str], ...] = (
    *((BLUE, "-"), (VERMILION, "-"), (GREEN, "-"), (PURPLE, "-")),
    *((ORANGE, "--"), (SKY, "--"), (GREY, "--"), (BLUE, ":"), (VERMILION, ":"), (GREEN, ":")),
)
SLOT_TITLES = {
    "start_call_due": "message start, call due",
    "start_text_due": "message start, text due",
    "after_open": "after the call opens",
    "inside_call": "inside a call",
    "closing_call": "closing the call",
    "after_call": "after the call closes",
    "inside_text": "inside text",
    "end_text": "end of text",
}
ODDS_LIMIT = 12.0  # nats; beyond it a probability is 0 or 1 for all practical purposes

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": BLACK,
    "xtick.color": BLACK,
    "ytick.color": BLACK,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "figure.dpi": 110,
    "text.parse_math": False,  # control tokens may hold a dollar sign
}


@dataclass(frozen=True, slots=True)
class Marks:
    """What every picture shades: first and last step of each SFT phase, and the onset."""

    sft: tuple[tuple[int, int], ...]
    onset: int | None
    last_step: int


def reward_and_eval(metrics: pd.DataFrame, marks: Marks, best: int | None, path: Path) -> None:
    """Sampled reward (and its 5-step mean) with the held-out evaluations."""
    with canvas(path, (9.0, 3.8)) as figure:
        axes = figure.subplots()
        reward = _curve(metrics, "reward")
        (line,) = axes.plot(reward.steps, reward.values, color=BLUE, label="reward, each step")
        line.set(alpha=0.4, linewidth=0.9)
        mean = reward.trailing_mean(REWARD_WINDOW)
        axes.plot(mean.steps, mean.values, color=BLUE, label=f"reward, {REWARD_WINDOW}-step mean")
        for column, colour, marker, label in (
            ("eval_greedy", VERMILION, "o", "evaluation, greedy"),
            ("eval_sampled", GREEN, "s", "evaluation, temperature 1"),
        ):
            curve = _curve(metrics, column)
            if curve.steps:
                (line,) = axes.plot(curve.steps, curve.values, marker=marker, label=label)
                line.set(color=colour, markersize=4, linewidth=1.0)
        if best is not None:
            axes.axvline(best, color=GREEN, linewidth=1.2, linestyle=":", label="best checkpoint")
        _mark(axes, marks, legend=True)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("success (share of episodes)")
        _steps_axis(axes, marks)
        legend(figure, axes, columns=3)


def control_tokens(probe: pd.DataFrame, marks: Marks, path: Path) -> None:
    """Log-odds of the right token and of each control token, one panel per slot."""
    logged = set(probe["slot"])
    present = [slot for slot in SLOT_TITLES if slot in logged]
    tokens = [token for token in dict.fromkeys(probe["token"]) if token != RIGHT_TOKEN]
    columns = min(len(present), 4) or 1
    rows = -(-len(present) // columns) or 1
    with canvas(path, (9.0, 0.9 + 2.3 * rows)) as figure:
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axes in grid[len(present) :]:
            axes.set_visible(False)
        if not present:
            nothing(grid[0], "no probe readings")
        for slot, axes in zip(present, grid, strict=False):
            here = probe[probe["slot"] == slot]
            others = dict(zip(tokens, _cycle(len(tokens)), strict=True))
            styles = {RIGHT_TOKEN: (BLACK, "-")} | others
            for token, (colour, dash) in styles.items():
                rows_here = here[here["token"] == token].sort_values("step")
                odds = log_odds(rows_here["mean_logprob"].to_numpy())
                right = token == RIGHT_TOKEN
                label = "the right token" if right else token
                (line,) = axes.plot(rows_here["step"], odds, dash, color=colour, label=label)
                line.set(linewidth=2.2 if right else 1.3, zorder=4 if right else 3)
            axes.set_title(SLOT_TITLES[slot])
            _mark(axes, marks, legend=True)
            axes.set_ylim(-ODDS_LIMIT - 0.5, ODDS_LIMIT + 0.5)
            _steps_axis(axes, marks, label=slot in present[-columns:])
        if present:
            figure.supylabel("log-odds (nats); 0 = even chance", fontsize=9.5)
            legend(figure, grid[0], columns=4)


def states(metrics: pd.DataFrame, marks: Marks, path: Path) -> None:
    """Shares of the four structural states of all sampled messages, stacked."""
    rows = metrics[[f"state_{state}" for state in STATES]].notna().all(axis=1)
    steps = metrics.loc[rows, "step"].to_numpy()
    with canvas(path, (9.0, 3.4)) as figure:
        axes = figure.subplots()
        if len(steps):
            axes.stackplot(
                steps,
                [metrics.loc[rows, f"state_{state}"].to_numpy() for state in STATES],
                colors=[STATE_COLOURS[state] for state in STATES],
                labels=[STATE_LABELS[state] for state in STATES],
                edgecolor="white",
                linewidth=0.4,
            )
            _onset(axes, marks, legend=True)
            legend(figure, axes, columns=5)
        else:
            nothing(axes, "no messages were sampled")
        axes.set_ylim(0, 1)
        axes.set_ylabel("share of messages")
        _steps_axis(axes, marks)


def signals(metrics: pd.DataFrame, marks: Marks, path: Path) -> None:
    """Bank NLL, KL to the base, entropy and gradient norm, each on its own scale."""
    panels = (
        ("bank_nll", "NLL of the gold messages", "nats per token", BLUE),
        ("bank_kl", "KL to the base model", "nats per token", VERMILION),
        ("entropy", "entropy of the sampled tokens", "nats per token", GREEN),
        ("grad_norm", "gradient norm", "L2 norm", PURPLE),
    )
    with canvas(path, (9.0, 4.8)) as figure:
        grid = figure.subplots(2, 2, sharex=True).ravel()
        for axes, (column, title, unit, colour) in zip(grid, panels, strict=True):
            curve = _curve(metrics, column)
            axes.set_title(title)
            if curve.steps:
                axes.plot(curve.steps, curve.values, color=colour)
                axes.set_ylabel(unit)
                axes.set_ylim(bottom=0)
            else:
                nothing(axes, "not recorded")
            _mark(axes, marks, legend=axes is grid[0])
            _steps_axis(axes, marks, label=axes in grid[2:])
        if grid[0].get_legend_handles_labels()[0]:
            legend(figure, grid[0], columns=3)


def log_odds(logprobs: np.ndarray) -> np.ndarray:
    """log(p / (1 - p)) of log-probs in nats, cut off at plus and minus :data:`ODDS_LIMIT`."""
    logprobs = np.minimum(logprobs, -np.exp(-ODDS_LIMIT))
    odds: np.ndarray = np.clip(logprobs - np.log(-np.expm1(logprobs)), -ODDS_LIMIT, ODDS_LIMIT)
    return odds


@contextmanager
def canvas(path: Path, inches: tuple[float, float]) -> Iterator[Figure]:
    """A figure of its own, without pyplot's global state, saved at the end."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=inches, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        figure.savefig(path, facecolor="white", metadata={"Software": None})


def _curve(metrics: pd.DataFrame, column: str) -> Curve:
    return Curve.of(metrics["step"].tolist(), metrics[column].tolist())


def _mark(axes: Axes, marks: Marks, *, legend: bool = False) -> None:
    for index, (first, last) in enumerate(marks.sft):
        label = "supervised phase (SFT)" if legend and index == 0 else None
        axes.axvspan(first - 0.5, last + 0.5, color=SFT_SHADE, linewidth=0, zorder=0, label=label)
    _onset(axes, marks, legend=legend)


def _onset(axes: Axes, marks: Marks, *, legend: bool) -> None:
    if marks.onset is not None:
        label = f"onset of collapse (step {marks.onset})" if legend else None
        axes.axvline(marks.onset, color=BLACK, linewidth=1.1, linestyle="--", label=label)


def _steps_axis(axes: Axes, marks: Marks, *, label: bool = True) -> None:
    axes.set_xlim(0, max(marks.last_step, 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    if label:
        axes.set_xlabel("step (updates)")


def legend(figure: Figure, axes: Axes, columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, fontsize=9)


def _cycle(count: int) -> Sequence[tuple[str, str]]:
    return [TOKEN_STYLES[index % len(TOKEN_STYLES)] for index in range(count)]


def nothing(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", color=GREY)
