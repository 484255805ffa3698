"""The linked curves of a page: from the steps of one run, or two, to positions on paper.

Input: the :class:`StepRow` of each run. Output: one :class:`Timeline` a run, with the same tracks
and scales for all, for a template to draw as SVG. Horizontal positions are percentages, so that a
drawing fits every width; vertical ones are pixels.

Left out: mark-up and colours (the template's and the style sheet's), and any judgement.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from toolrl_box.diagnose.columns import HEALTHY, Column, columns, is_sound
from toolrl_box.diagnose.diagnosis import Diagnosis
from toolrl_box.diagnose.words import STATES, kind_name, signal_name, state_name
from toolrl_box.probe.states import KINDS

TROUBLES = 6
"""Kinds of broken messages with a track of their own."""
FIGURES = ("entropy", "kl", "grad_norm", "response_length")
"""Scalars with a track of their own, where the log has them."""
SPREAD = 30.0
"""Greatest over median from which a positive figure is drawn on a logarithmic scale."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A rectangle of a stack or bar: percentages across, pixels down."""

    x: float
    width: float
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class Series:
    """What one figure of a track looks like. ``line``: "x,y" pairs with x in thousandths of the
    width; ``values``: text for each column."""

    name: str
    look: str
    values: tuple[str, ...]
    line: str = ""
    dots: tuple[tuple[float, float], ...] = ()
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True, slots=True)
class Track:
    """One drawing of the timeline; ``grid``: (pixels down, label) of its reference lines;
    ``group``: a heading above it, where a group of tracks begins."""

    key: str
    title: str
    height: int
    grid: tuple[tuple[float, str], ...]
    series: tuple[Series, ...]
    summary: str
    group: str = ""


@dataclass(frozen=True, slots=True)
class Flag:
    """A step that is pointed out in every track, with the interval around it."""

    kind: str
    text: str
    x: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """``columns`` holds those without a step last; ``x`` has no entry for them."""

    columns: tuple[Column, ...]
    x: tuple[float, ...]
    tracks: tuple[Track, ...]
    ticks: tuple[tuple[float, str], ...]
    flags: tuple[Flag, ...]


@dataclass(frozen=True, slots=True)
class _Across:
    """The horizontal scale: half a column of margin at both ends."""

    low: float
    high: float
    gap: float

    @classmethod
    def of(cls, runs: Iterable[Sequence[Column]]) -> _Across:
        middles = [[_middle(c) for c in columns if c.first is not None] for columns in runs]
        every = [x for run in middles for x in run] or [0.0]
        gaps = [b - a for run in middles for a, b in pairwise(run)]
        return cls(min(every), max(every), min((gap for gap in gaps if gap > 0), default=1.0))

    def __call__(self, step: float) -> float:
        span = self.high - self.low + self.gap
        return round(min(max(100 * (step - self.low + self.gap / 2) / span, 0.0), 100.0), 3)

    @property
    def width(self) -> float:
        return max(100 * self.gap / (self.high - self.low + self.gap), 0.15)


@dataclass(frozen=True, slots=True)
class _Down:
    """The vertical scale of a curve."""

    low: float
    high: float
    log: bool

    @classmethod
    def of(cls, values: Sequence[float], *, share: bool = False) -> _Down:
        if not values:
            return cls(0.0, 1.0, False)
        low, high = min(values), max(values)
        if share and low >= 0 and high <= 1:
            return cls(0.0, _round_up(high), False)
        if low > 0 and high > SPREAD * statistics.median(values):
            return cls(low, high, True)
        return cls(min(low, 0.0), _round_up(high) if high > 0 else 0.0, False)

    def __call__(self, value: float, height: int) -> float:
        if self.log:
            part = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            part = (value - self.low) / ((self.high - self.low) or 1.0)
        return round((height - 4) * (1 - part) + 2, 1)

    def grid(self, height: int) -> tuple[tuple[float, str], ...]:
        top, bottom = (self(self.high, height), figure(self.high)), self(self.low, height)
        if self.log:
            return top, (height / 2 + 4, "log"), (bottom, figure(self.low))
        if self.low < 0 < self.high:
            return top, (self(0.0, height), "0"), (bottom, figure(self.low))
        return top, (bottom, figure(self.low))


def timelines(runs: Sequence[Diagnosis]) -> list[Timeline]:
    """One timeline for each run, drawn on common scales."""
    every = [columns(run.steps, run.totals.steps_per_row) for run in runs]
    across = _Across.of(every)
    troubles = _troubles([column for run in every for column in run])
    figures = [
        name for name in FIGURES if any(_scalar(column, name) for run in every for column in run)
    ]
    return [
        _timeline(run, of_run, every, across, troubles, figures)
        for run, of_run in zip(runs, every, strict=True)
    ]


def figure(value: float | None) -> str:
    """A number for people: three significant digits, none where nothing was measured."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e9 else f"{value:.3g}"


def percent(value: float | None) -> str:
    """A share for people; what is small is not nothing."""
    if value is None:
        return "–"
    return "<1%" if 0 < value < 0.005 else f"{100 * value:.0f}%"


def _middle(column: Column) -> float:
    assert column.first is not None
    assert column.last is not None
    return (column.first + column.last) / 2


def _troubles(every: Sequence[Column]) -> list[str]:
    total: Counter[str] = Counter()
    for column in every:
        total.update({kind: n for kind, n in column.kinds.items() if n and not is_sound(kind)})
    return sorted(total, key=lambda kind: (-total[kind], kind))[:TROUBLES]


def _scalar(column: Column, name: str) -> float | None:
    if name == "response_length" and name not in column.scalars:
        return column.length
    return column.scalars.get(name)


def _timeline(
    run: Diagnosis,
    of_run: tuple[Column, ...],
    every: Sequence[Sequence[Column]],
    across: _Across,
    troubles: Sequence[str],
    figures: Sequence[str],
) -> Timeline:
    dated = [column for column in of_run if column.first is not None]
    x = tuple(across(_middle(column)) for column in dated)
    both = [c for of_one in every for c in of_one if c.first is not None]
    tracks = [_curve("reward", dated, x, [c.reward for c in both], [c.reward for c in dated], 92)]
    if any("success" in column.scalars for column in both):
        of_both = [column.scalars.get("success") for column in both]
        own = [column.scalars.get("success") for column in dated]
        tracks.append(_curve("success", dated, x, of_both, own))
    tracks.append(_stack(dated, x, across.width))
    top = _round_up(max((c.kind_share(kind) or 0 for c in both for kind in troubles), default=1))
    bars = [_bars(kind, dated, x, across.width, top) for kind in troubles]
    curves = [
        _curve(name, dated, x, [_scalar(c, name) for c in both], [_scalar(c, name) for c in dated])
        for name in figures
    ]
    for group, of_group in (("Trouble, as shares of the messages", bars), ("Signals", curves)):
        tracks += [replace(track, group="" if at else group) for at, track in enumerate(of_group)]
    return Timeline(of_run, x, tuple(tracks), _ticks(across), _flags(run, across))


def _curve(
    key: str,
    dated: Sequence[Column],
    x: Sequence[float],
    of_both: Sequence[float | None],
    own: Sequence[float | None],
    height: int = 46,
) -> Track:
    known = [value for value in of_both if value is not None]
    down = _Down.of(known, share=key in ("reward", "success"))
    places = [
        (at, down(value, height)) for at, value in zip(x, own, strict=True) if value is not None
    ]
    sparse = len(places) < 40 or 2 * len(places) < len(dated)
    series = Series(
        name=signal_name(key),
        look="curve",
        values=tuple(figure(value) for value in own),
        line=" ".join(f"{10 * at:.1f},{y}" for at, y in places),
        dots=tuple(places) if sparse else (),
    )
    return Track(
        key=key,
        title=signal_name(key),
        height=height,
        grid=down.grid(height),
        series=(series,),
        summary=_from_to(signal_name(key), dated, own, figure),
    )


def _stack(dated: Sequence[Column], x: Sequence[float], width: float) -> Track:
    height = 128
    below = [0.0] * len(dated)
    series = []
    for state in STATES:
        marks, values = [], []
        for index, (at, column) in enumerate(zip(x, dated, strict=True)):
            share = column.state_share(state)
            values.append(percent(share))
            if share:
                y = height * (1 - below[index] - share)
                marks.append(_mark(at, width, y, height * share))
                below[index] += share
        series.append(Series(state_name(state), state, tuple(values), marks=tuple(marks)))
    shares = [column.state_share(*HEALTHY) for column in dated]
    return Track(
        key="states",
        title="What the messages are",
        height=height,
        grid=((0.0, "100%"), (height / 2, "50%"), (height - 0.0, "0%")),
        series=tuple(series),
        summary=_from_to("Healthy messages", dated, shares, percent),
    )


def _bars(
    kind: str, dated: Sequence[Column], x: Sequence[float], width: float, top: float
) -> Track:
    height = 34
    shares = [column.kind_share(kind) for column in dated]
    marks = [
        _mark(at, width, height - 2 - (height - 4) * share / top, (height - 4) * share / top)
        for at, share in zip(x, shares, strict=True)
        if share
    ]
    look = f"bar {KINDS.get(kind, 'text_pollution')}"
    values = tuple(percent(share) for share in shares)
    return Track(
        key=f"kind-{kind}",
        title=kind_name(kind),
        height=height,
        grid=((2.0, percent(top)), (height - 2.0, "")),
        series=(Series(kind_name(kind), look, values, marks=tuple(marks)),),
        summary=_from_to(kind_name(kind), dated, shares, percent),
    )


def _mark(at: float, width: float, y: float, height: float) -> Mark:
    shown = 0.86 * width if width > 0.6 else width
    return Mark(round(at - shown / 2, 3), round(shown, 3), round(y, 1), round(max(height, 0.5), 1))


def _from_to(
    title: str,
    dated: Sequence[Column],
    values: Sequence[float | None],
    write: Callable[[float | None], str],
) -> str:
    known = [(c, v) for c, v in zip(dated, values, strict=True) if v is not None]
    if not known:
        return f"{title}: nothing in the log"
    (first, begin), (last, end) = known[0], known[-1]
    return f"{title}: {write(begin)} at step {first.label}, {write(end)} at step {last.label}"


def _ticks(across: _Across) -> tuple[tuple[float, str], ...]:
    """About five round steps."""
    span = across.high - across.low
    if span <= 0:
        return ((across(across.low), f"{across.low:.0f}"),)
    pace = max(_nice(span / 5), 1.0)
    first = math.ceil(across.low / pace)
    marks = [first * pace + number * pace for number in range(int(span // pace) + 1)]
    return tuple((across(mark), f"{mark:.0f}") for mark in marks if mark <= across.high)


def _flags(run: Diagnosis, across: _Across) -> tuple[Flag, ...]:
    flags = []
    if run.onsets:
        onset = run.onsets[0]
        text = f"onset: step {onset.step}"
        if (onset.low, onset.high) != (onset.step, onset.step):
            text += f" (between {onset.low} and {onset.high})"
        half = across.gap / 2
        low, high = across(onset.low - half), across(onset.high + half)
        flags.append(Flag("onset", text, across(onset.step), low, high))
    if run.last_healthy is not None:
        x = across(run.last_healthy.step)
        flags.append(Flag("sound", f"last healthy: step {run.last_healthy.step}", x, x, x))
    # Texts stand below each other, each beside its line; this way no line crosses a text.
    to_the_left = bool(flags) and flags[0].x >= 50
    return tuple(sorted(flags, key=lambda flag: flag.x, reverse=to_the_left))


def _nice(value: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * f for f in (1, 2, 5, 10) if power * f >= value * (1 - 1e-9))


def _round_up(value: float) -> float:
    """A top for an axis: the next round number at or above."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    steps = (1, 1.5, 2, 3, 4, 5, 6, 8, 10)
    return float(next(round(power * f, 12) for f in steps if power * f >= value * (1 - 1e-9)))
