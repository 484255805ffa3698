"""The pictures of a diagnosis, each as PNG and SVG.

Input: :class:`Diagnosis`. Output: files. The onset is a line, its interval a shade. The same
diagnosis gives the same bytes. Left out: anything interactive (``diagnose.page``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from toolrl_box.curves import Curve
from toolrl_box.diagnose.diagnosis import Diagnosis, Onset, StepRow
from toolrl_box.durable import writing
from toolrl_box.report.figures import (
    BLACK,
    BLUE,
    GREEN,
    PURPLE,
    SFT_SHADE,
    STATE_COLOURS,
    STATE_LABELS,
    STYLE,
    VERMILION,
    legend,
    nothing,
)
from toolrl_box.types import STATES
from toolrl_box.verdicts import REWARD_WINDOW

PANELS = (
    ("entropy", "entropy", "nats per token", GREEN),
    ("kl", "KL to the reference", "nats per token", VERMILION),
    ("grad_norm", "gradient norm", "L2 norm", PURPLE),
    ("response_length", "length of a response", "mean", BLUE),
)
METADATA = {".png": {"Software": None}, ".svg": {"Date": None, "Creator": None}}


def draw(diagnosis: Diagnosis, folder: Path) -> tuple[Path, ...]:
    """Write the pictures that the log has figures for; returns the PNGs."""
    rows = [row for row in diagnosis.steps if row.step is not None]
    onset = diagnosis.onsets[0] if diagnosis.onsets else None
    made = []
    if any(row.messages for row in rows):
        made.append(_save(folder / "states.png", (9.0, 3.4), lambda f: _states(f, rows, onset)))
    if any(row.reward is not None or "success" in row.scalars for row in rows):
        made.append(_save(folder / "reward.png", (9.0, 3.6), lambda f: _reward(f, rows, onset)))
    if (
        any(name in row.scalars for row in rows for name, *_ in PANELS)
        or _curve(rows, _length).steps
    ):
        made.append(_save(folder / "signals.png", (9.0, 4.8), lambda f: _signals(f, rows, onset)))
    return tuple(made)


def _states(figure: Figure, rows: Sequence[StepRow], onset: Onset | None) -> None:
    axes = figure.subplots()
    shown = [row for row in rows if row.messages]
    axes.stackplot(
        [row.step for row in shown if row.step is not None],
        [[row.states[state] / row.messages for row in shown] for state in STATES],
        colors=[STATE_COLOURS[state] for state in STATES],
        labels=[STATE_LABELS[state] for state in STATES],
        edgecolor="white",
        linewidth=0.4,
    )
    _mark(axes, onset, label=True)
    axes.set_ylim(0, 1)
    axes.set_ylabel("share of messages")
    _steps_axis(axes, rows)
    legend(figure, axes, columns=5)


def _reward(figure: Figure, rows: Sequence[StepRow], onset: Onset | None) -> None:
    axes = figure.subplots()
    reward = _curve(rows, lambda row: row.reward)
    (line,) = axes.plot(reward.steps, reward.values, color=BLUE, label="reward, each step")
    line.set(alpha=0.4, linewidth=0.9)
    mean = reward.trailing_mean(REWARD_WINDOW)
    axes.plot(mean.steps, mean.values, color=BLUE, label=f"reward, {REWARD_WINDOW}-step mean")
    success = _curve(rows, lambda row: row.scalars.get("success"))
    if success.steps:
        (line,) = axes.plot(success.steps, success.values, marker="s", label="evaluation")
        line.set(color=GREEN, markersize=4, linewidth=1.0)
    _mark(axes, onset, label=True)
    axes.set_ylabel("reward")
    _steps_axis(axes, rows)
    legend(figure, axes, columns=4)


def _signals(figure: Figure, rows: Sequence[StepRow], onset: Onset | None) -> None:
    grid = figure.subplots(2, 2, sharex=True).ravel()
    for axes, (name, title, unit, colour) in zip(grid, PANELS, strict=True):
        curve = _curve(rows, _length if name == "response_length" else _scalar(name))
        axes.set_title(title)
        if curve.steps:
            axes.plot(curve.steps, curve.values, color=colour)
            axes.set_ylabel(unit)
        else:
            nothing(axes, "not logged")
        _mark(axes, onset, label=axes is grid[0])
        _steps_axis(axes, rows)
    if grid[0].get_legend_handles_labels()[0]:
        legend(figure, grid[0], columns=3)


def _save(path: Path, inches: tuple[float, float], fill: Callable[[Figure], None]) -> Path:
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "toolrl-box"}), writing(path):
        figure = Figure(figsize=inches, layout="constrained")
        FigureCanvasAgg(figure)
        fill(figure)
        for suffix, metadata in METADATA.items():
            figure.savefig(path.with_suffix(suffix), facecolor="white", metadata=metadata)
    return path


def _mark(axes: Axes, onset: Onset | None, *, label: bool) -> None:
    if onset is None:
        return
    if onset.low < onset.high:
        shade = f"onset may be in {onset.low}–{onset.high}" if label else None
        axes.axvspan(onset.low, onset.high, color=SFT_SHADE, alpha=0.6, linewidth=0, label=shade)
    line = f"onset of {onset.signal.replace('_', ' ')} (step {onset.step})" if label else None
    axes.axvline(onset.step, color=BLACK, linewidth=1.1, linestyle="--", label=line)


def _steps_axis(axes: Axes, rows: Sequence[StepRow]) -> None:
    steps = [row.step for row in rows if row.step is not None]
    axes.set_xlim(steps[0], max(steps[-1], steps[0] + 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.set_xlabel("step")


def _curve(rows: Sequence[StepRow], value: Callable[[StepRow], float | None]) -> Curve:
    points = [
        (row.step, v) for row in rows if row.step is not None and (v := value(row)) is not None
    ]
    return Curve(tuple(s for s, _ in points), tuple(v for _, v in points))


def _scalar(name: str) -> Callable[[StepRow], float | None]:
    return lambda row: row.scalars.get(name)


def _length(row: StepRow) -> float | None:
    return row.length
