"""One HTML file that explains a run to people, works offline and asks nothing of the network.

Input: a :class:`Diagnosis` and the messages behind it, of one run or of two side by side. Output:
the file, with its style, its script and its data inside.

The verdict, the tables and the curves are plain HTML and SVG and need no script. The messages lie
in packs of neighbouring steps, each compressed, and are unpacked when a step is opened, so that
many messages cost no time before somebody reads them. Whatever came from a log is cut to a bounded
length, made visible (control and direction characters) and escaped; the script writes text nodes
only, and the page's policy allows that one script, that one style and no address at all.

Left out: any figure or judgement that is not in the diagnosis.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from toolrl_box.diagnose import words
from toolrl_box.diagnose.columns import HEALTHY, Column
from toolrl_box.diagnose.diagnosis import Diagnosis
from toolrl_box.diagnose.records import Judged
from toolrl_box.diagnose.timeline import Timeline, figure, percent, timelines
from toolrl_box.durable import write_atomic, writing

MESSAGES = 50_000
"""At most so many messages a run; of each kind in each step the first ones are kept."""
TEXT = 60_000_000
"""Characters of message text a run that the lengths below are chosen for."""
SHORTEST, LONGEST = 400, 2_000
"""Bounds of the characters kept before, in and after a span."""
PACK = 200_000
"""Characters of a pack, from which on the next step begins another."""
CUT = 2_000
"""Characters kept of any other text."""
ROWS = 60
"""Rows shown of any list of the diagnosis."""
FEW = 8
"""Rows shown at once of a list whose end hardly matters."""
CHOICES = 200
"""Different values of one filter; the others share an entry."""

OTHER = "(other)"
FILTERS = ("state", "kind", "category", "model")


def write_page(
    diagnosis: Diagnosis,
    messages: Iterable[Judged],
    output: Path,
    against: tuple[Diagnosis, Iterable[Judged]] | None = None,
) -> None:
    """Write the page to ``output``, which is replaced as a whole.

    ``messages`` are read once, in any order; they may be fewer than the diagnosis counts, and the
    page then says so. ``against``: a second run for the right-hand column.

    Raises RunFolderError when the file cannot be written.
    """
    both = [(diagnosis, messages)] + ([against] if against else [])
    drawn = timelines([run for run, _ in both])
    runs = [
        _run(key, run, of_run, timeline)
        for key, (run, of_run), timeline in zip("ab", both, drawn, strict=False)
    ]
    style, script = _beside("page.css"), _beside("page.js")
    title = " against ".join(run.name for run, _ in both)
    html = (
        _environment()
        .get_template("page.html.j2")
        .render(
            title=f"{title}: {diagnosis.verdict.headline}",
            runs=runs,
            style=style,
            script=script,
            policy=f"default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
            f"style-src {_hash(style)}; script-src {_hash(script)}",
            written_by=diagnosis.written_by,
            flag_rows=max(len(timeline.flags) for timeline in drawn),
            rows=ROWS,
            few=FEW,
        )
    )
    with writing(output):
        write_atomic(output, html.encode())


def visible(text: str, limit: int = CUT) -> str:
    """The text, cut, with every character showing: a control becomes its picture (␀), a mark of
    direction or another invisible one �. Joiners stay, because scripts and emoji need them."""
    if len(text) > limit:
        text = text[:limit] + "…"
    return text if text.isascii() and text.isprintable() else text.translate(_INVISIBLE)


class _Invisible(dict[int, int]):
    """Code point -> what stands in for it, found out once for each."""

    def __missing__(self, point: int) -> int:
        category = unicodedata.category(chr(point))
        if chr(point) in "\n\t\u200c\u200d" or category not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            shown = point
        elif point < 0x20:
            shown = 0x2400 + point
        else:
            shown = 0x2421 if point == 0x7F else 0xFFFD
        self[point] = shown
        return shown


_INVISIBLE = _Invisible()


@dataclass(slots=True)
class _Names:
    """The different values of one field; a message holds the position."""

    values: dict[str, int] = field(default_factory=dict)

    def __call__(self, value: str | None) -> int:
        if value is None:
            return -1
        value = visible(value, 200)
        if value not in self.values and len(self.values) >= CHOICES:
            value = OTHER
        return self.values.setdefault(value, len(self.values))


@dataclass(frozen=True, slots=True)
class _Kept:
    """The messages of a page: ``packs`` as text for the page, ``pack_of`` and ``count`` for each
    column, ``each`` the most that were kept of one kind in one column (None: all of them)."""

    packs: list[str]
    pack_of: list[int]
    count: list[int]
    names: Mapping[str, list[str]]
    each: int | None
    seen: int


def _run(
    key: str, run: Diagnosis, messages: Iterable[Judged], timeline: Timeline
) -> dict[str, Any]:
    """Everything that the template shows of one run."""
    kept = _keep(timeline.columns, messages)
    start = _start(run, timeline.columns)
    tone, name = words.TONES[run.verdict.name]
    return {
        "key": key,
        "d": run,
        "tone": tone,
        "verdict": name,
        "timeline": timeline,
        "wide": _wide(timeline.columns),
        "onset": run.onsets[0] if run.onsets else None,
        "packs": kept.packs,
        "first": kept.pack_of[start] if kept.pack_of else 0,
        "kept": sum(kept.count),
        "seen": max(kept.seen, run.totals.messages),
        "each": kept.each,
        "data": _json(_data(timeline, kept, start)),
    }


def _wide(columns: Sequence[Column]) -> int | None:
    """Steps of the widest column; None when every column is one step."""
    spans = [c.last - c.first + 1 for c in columns if c.first is not None and c.last is not None]
    return max(spans, default=1) if any(span > 1 for span in spans) else None


def _data(timeline: Timeline, kept: _Kept, start: int) -> dict[str, Any]:
    """What the script needs at once; ``page.js`` names the fields in its first lines."""
    series = [series for track in timeline.tracks for series in track.series]
    columns = [
        {
            "label": column.label,
            "step": column.first,
            "x": timeline.x[index] if column.first is not None else None,
            "rollouts": column.rollouts,
            "messages": column.messages,
            "kept": kept.count[index],
            "pack": kept.pack_of[index],
            "values": [one.values[index] for one in series] if column.first is not None else [],
            "figures": [
                [visible(words.signal_name(name), 200), figure(value)]
                for name, value in sorted(column.scalars.items())[:ROWS]
            ],
        }
        for index, column in enumerate(timeline.columns)
    ]
    return {
        "columns": columns,
        "series": [visible(one.name, 200) for one in series],
        "names": kept.names,
        "words": {
            "state": [words.state_name(name) for name in kept.names["state"]],
            "kind": [words.kind_name(name) for name in kept.names["kind"]],
        },
        "sound": [index for index, name in enumerate(kept.names["state"]) if name in HEALTHY],
        "start": start,
    }


def _start(run: Diagnosis, columns: Sequence[Column]) -> int:
    """The column that is open at first: that of the first wrong message or of the onset, else
    the last one."""
    step = run.onsets[0].step if run.onsets else None
    if step is None and run.first_wrong is not None:
        step = run.first_wrong.step
    filled = [index for index, column in enumerate(columns) if column.messages]
    if step is not None:
        for index in filled:
            last = columns[index].last
            if last is not None and last >= step:
                return index
    return filled[-1] if filled else 0


def _keep(columns: Sequence[Column], messages: Iterable[Judged]) -> _Kept:
    """Choose, cut and pack the messages. Memory: what is kept, not what is read."""
    each = _each(columns)
    expected = max(min(MESSAGES, sum(column.messages for column in columns)), 1)
    margin = min(max(TEXT // (3 * expected), SHORTEST), LONGEST)
    starts = [column.first for column in columns if column.first is not None]
    names = {name: _Names() for name in (*FILTERS, "file")}
    taken: Counter[tuple[int, str]] = Counter()
    rows: list[list[str]] = [[] for _ in columns]
    seen = total = 0
    for message in messages:
        seen += 1
        column = _place(message.step, columns, starts)
        if column is None or total >= MESSAGES:
            continue
        taken[column, message.kind] += 1
        if each is not None and taken[column, message.kind] > each:
            continue
        total += 1
        rows[column].append(_encode(column, message, names, margin))
    packs, pack_of = _pack(rows)
    return _Kept(
        packs=packs,
        pack_of=pack_of,
        count=[len(of_column) for of_column in rows],
        names={name: list(table.values) for name, table in names.items()},
        each=each,
        seen=seen,
    )


def _each(columns: Sequence[Column]) -> int | None:
    """How many messages of one kind a column may keep, so that all fit into MESSAGES."""
    counts = [count for column in columns for count in column.kinds.values()]
    if sum(counts) <= MESSAGES:
        return None
    low, high = 1, max(counts)
    while low < high:
        middle = (low + high + 1) // 2
        fits = sum(min(count, middle) for count in counts) <= MESSAGES
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def _place(step: int | None, columns: Sequence[Column], starts: Sequence[int]) -> int | None:
    """The column of a step: the last that begins at or before it, because a row of the diagnosis
    may stand for several steps. None where there is no column of that sort."""
    if step is None:
        return len(starts) if len(columns) > len(starts) else None
    return max(bisect_right(starts, step) - 1, 0) if starts else None


def _encode(column: int, message: Judged, names: Mapping[str, _Names], margin: int) -> str:
    """One message as the script reads it."""
    reward = message.reward
    row = [
        column,
        names["file"](str(message.origin.file)),
        message.origin.line,
        visible(message.rollout, 200),
        message.step,
        message.index,
        *_around(message, margin),
        names["state"](message.state),
        names["kind"](message.kind),
        reward if reward is not None and math.isfinite(reward) else None,
        names["category"](message.category),
        names["model"](message.model),
    ]
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _around(message: Judged, margin: int) -> tuple[str, str, str]:
    """The text before, in and after the span. A sound message has nothing to point at."""
    text = message.text
    if message.state in HEALTHY:
        return "", "", visible(text, 3 * margin)
    start = min(max(message.start, 0), len(text))
    end = min(max(message.end, start), len(text))
    before, span, after = text[max(start - margin, 0) : start], text[start:end], text[end:]
    if len(span) > margin:
        span = f"{span[: margin // 2]} … {span[-margin // 2 :]}"
    return (
        visible("…" + before if start > margin else before, margin + 1),
        visible(span, 2 * margin),
        visible(after, margin),
    )


def _pack(rows: Sequence[Sequence[str]]) -> tuple[list[str], list[int]]:
    """Neighbouring columns together, compressed; and the pack of each column."""
    packs: list[str] = []
    pack_of: list[int] = []
    waiting: list[str] = []
    size = 0
    for of_column in rows:
        pack_of.append(len(packs))
        waiting += of_column
        size += sum(map(len, of_column))
        if size > PACK:
            packs.append(_squeeze(waiting))
            waiting, size = [], 0
    packs.append(_squeeze(waiting))
    return packs, pack_of


def _squeeze(rows: Sequence[str]) -> str:
    # Without the time, so that the same data gives the same page.
    data = gzip.compress(f"[{','.join(rows)}]".encode(), compresslevel=6, mtime=0)
    return base64.b64encode(data).decode()


def _json(value: object) -> Markup:
    """Data for a script element: nothing in it can end the element or open a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 - JSON with every significant character escaped


@cache
def _beside(name: str) -> Markup:
    """A file of this folder, to be inlined as it is."""
    text = files("toolrl_box.diagnose").joinpath(name).read_text(encoding="utf-8")
    return Markup(text)  # noqa: S704 - our own file


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _path(text: str) -> Markup:
    """A path that may wrap after its slashes."""
    return Markup("/<wbr>").join(visible(text).split("/"))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("toolrl_box.diagnose", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Whatever is printed is cut and made visible, then escaped; Markup is our own.
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.filters |= {
        "figure": figure,
        "percent": percent,
        "state_name": words.state_name,
        "kind_name": words.kind_name,
        "signal_name": words.signal_name,
        "plain": words.plain,
        "path": _path,
    }
    environment.globals |= {"STATES": words.STATES, "KINDS": words.KINDS, "HEALTHY": HEALTHY}
    return environment
