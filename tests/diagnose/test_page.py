"""The page of a diagnosis as text: what is in it, and that nothing in the data can break it."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from toolrl_box.diagnose import page as pages
from toolrl_box.diagnose import words
from toolrl_box.diagnose.columns import COLUMNS, columns
from toolrl_box.diagnose.diagnosis import Also, DamagedLine, Diagnosis, InputFile, StepRow, Unjudged
from toolrl_box.diagnose.page import visible, write_page
from toolrl_box.diagnose.records import Judged, Origin
from toolrl_box.diagnose.timeline import timelines
from toolrl_box.errors import RunFolderError
from toolrl_box.probe.states import KINDS
from toolrl_box.types import STATES

Loaded = tuple[Diagnosis, list[Judged]]
HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>"
    "]]>\u202e\x00'\"{{ 7*7 }}"
)


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, and their text by id."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.by_id: dict[str, str] = {}
        self.raw: dict[str, list[str]] = {"style": [], "script": []}
        self.text = ""
        self._id: str | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._id = dict(attrs).get("id")
        if tag in self.raw:
            self.raw[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        self._id = None

    def handle_data(self, data: str) -> None:
        if self.cdata_elem in self.raw:
            self.raw[str(self.cdata_elem)][-1] += data
        else:
            self.text += data
        if self._id is not None:
            self.by_id[self._id] = self.by_id.get(self._id, "") + data

    @property
    def tags(self) -> Counter[str]:
        return Counter(tag for tag, _ in self.elements)

    def data(self, run: str = "a") -> Any:
        return json.loads(self.by_id[f"{run}-data"])

    def messages(self, run: str = "a") -> list[list[Any]]:
        count = sum(name.startswith(f"{run}-pack-") for name in self.by_id)
        packs = [self.by_id[f"{run}-pack-{number}"] for number in range(count)]
        return [
            row for text in packs for row in json.loads(gzip.decompress(base64.b64decode(text)))
        ]


def write(folder: Path, *arguments: Any, **named: Any) -> tuple[Page, str]:
    write_page(*arguments, folder / "page.html", **named)
    html = (folder / "page.html").read_text(encoding="utf-8")
    return Page(html), html


def message(text: str = "x", *, step: int | None = 1, kind: str = "loop", **more: Any) -> Judged:
    state = KINDS[kind]
    return Judged(
        Origin(Path("log.jsonl"), 7), "r", step, 0, text, state, kind, 0, len(text), **more
    )


def row(step: int | None, kinds: dict[str, int], **more: Any) -> StepRow:
    states = Counter()
    for kind, count in kinds.items():
        states[KINDS[kind]] += count
    known = {"rollouts": 1, "reward": 0.5, "reward_std": None, "length": None, "scalars": {}}
    return StepRow(
        step=step, messages=sum(kinds.values()), states=states, kinds=kinds, **(known | more)
    )


def with_steps(diagnosis: Diagnosis, *rows: StepRow) -> Diagnosis:
    return diagnosis.model_copy(update={"steps": rows, "onsets": (), "last_healthy": None})


def test_the_verdict_comes_first_and_says_since_when(collapsed: Loaded, tmp_path: Path) -> None:
    diagnosis, messages = collapsed
    page, _ = write(tmp_path, diagnosis, messages)
    assert page.text.index(diagnosis.verdict.headline) < page.text.index("What to do next")
    assert f"step {diagnosis.onsets[0].step}" in page.text
    assert str(diagnosis.last_healthy and diagnosis.last_healthy.checkpoint) in page.text
    assert page.text.index("What to do next") < page.text.index("Step by step")


def test_the_page_has_no_address_and_allows_none(collapsed: Loaded, tmp_path: Path) -> None:
    page, html = write(tmp_path, *collapsed)
    addresses = [
        value or ""
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "action", "data", "poster", "srcset")
    ]
    assert addresses
    assert all(address.startswith(("#", "data:,")) for address in addresses)
    assert "://" not in html
    assert "@import" not in html
    policy = next(a["content"] for tag, a in page.elements if "http-equiv" in a) or ""
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy


def test_the_policy_allows_this_style_and_this_script_only(
    collapsed: Loaded, tmp_path: Path
) -> None:
    page, html = write(tmp_path, *collapsed)
    policy = next(a["content"] for tag, a in page.elements if "http-equiv" in a) or ""
    scripts = [text for text in page.raw["script"] if '"use strict"' in text]
    for kind, content in (("style", page.raw["style"]), ("script", scripts)):
        (text,) = content
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert not re.search(r'\s(style|on\w+)="', html)


def test_the_script_writes_text_only() -> None:
    script = files("toolrl_box.diagnose").joinpath("page.js").read_text(encoding="utf-8")
    makes_markup = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b"
    assert not re.search(makes_markup, script)
    assert "</" not in script


def test_every_message_is_in_the_page_with_its_span(collapsed: Loaded, tmp_path: Path) -> None:
    diagnosis, messages = collapsed
    page, _ = write(tmp_path, diagnosis, messages)
    data, rows = page.data(), page.messages()
    assert len(rows) == len(messages)
    for judged, shown in zip(messages, rows, strict=True):
        column, file, line, _, step, _, before, span, after, state, kind, reward, category, _ = (
            shown
        )
        assert data["columns"][column]["step"] == step == judged.step
        assert (data["names"]["file"][file], line) == (str(judged.origin.file), judged.origin.line)
        assert before + span + after == judged.text
        assert (data["names"]["state"][state], data["names"]["kind"][kind]) == (
            judged.state,
            judged.kind,
        )
        assert span == ("" if state in data["sound"] else judged.text[judged.start : judged.end])
        assert (reward, data["names"]["category"][category]) == (judged.reward, judged.category)
    assert (
        f"{len(messages)} of {diagnosis.totals.messages:,} messages are on this page" in page.text
    )


def test_the_same_data_gives_the_same_bytes(collapsed: Loaded, tmp_path: Path) -> None:
    _, first = write(tmp_path, *collapsed)
    _, second = write(tmp_path, *collapsed)
    assert first == second


def hostile(diagnosis: Diagnosis) -> Diagnosis:
    """The same with HOSTILE in every text."""

    def spoil(value: Any) -> Any:
        if isinstance(value, list):
            return [spoil(item) for item in value]
        if isinstance(value, dict):
            return {name: spoil(item) for name, item in value.items()}
        return HOSTILE if isinstance(value, str) else value

    spoiled = spoil(diagnosis.model_dump(mode="json"))
    spoiled["verdict"]["name"] = diagnosis.verdict.name
    for row in spoiled["affected"]:
        row["by"] = "category"
    spoiled["damaged"], spoiled["damage"] = 1, [{"file": HOSTILE, "line": 1, "reason": HOSTILE}]
    for step in spoiled["steps"]:
        step["kinds"][HOSTILE] = step["states"][HOSTILE] = 3
        step["scalars"][HOSTILE] = 0.5
    return Diagnosis.model_validate(spoiled)


def test_nothing_from_the_data_becomes_markup(collapsed: Loaded, tmp_path: Path) -> None:
    diagnosis, messages = collapsed
    tame, _ = write(tmp_path, diagnosis, messages)
    texts = {"text": HOSTILE, "rollout": HOSTILE, "category": HOSTILE, "model": HOSTILE}
    bad = [
        replace(m, **texts, state=HOSTILE, kind=HOSTILE, origin=Origin(Path(HOSTILE), 1))
        for m in messages
    ]
    page, html = write(tmp_path, hostile(diagnosis), bad)
    assert "img" not in page.tags
    assert page.tags["script"] == tame.tags["script"]
    assert not [a for _, a in page.elements if "onerror" in a]
    assert HOSTILE[:70] not in html
    assert "{{ 7*7 }}" in page.text
    for invisible in "\u202e\x00\u2028":
        assert invisible not in html
    shown = page.messages()[0]
    assert shown[6] + shown[7] + shown[8] == visible(HOSTILE)


def test_what_cannot_be_seen_is_made_visible() -> None:
    assert visible("a\x00b\x1b[0m\x7f") == "a␀b␛[0m␡"
    assert visible("\u202egnp.exe\ud800\u200b") == "\ufffdgnp.exe\ufffd\ufffd"
    assert visible("a\n\tb Ünïcode 👩\u200d💻") == "a\n\tb Ünïcode 👩\u200d💻"
    assert visible("x" * 5000, 100) == "x" * 100 + "…"


def test_no_text_of_a_log_can_blow_the_page_up(collapsed: Loaded, tmp_path: Path) -> None:
    diagnosis, _ = collapsed
    long = "<" * 1_000_000
    lines = tuple(DamagedLine(file=long[:9999], line=n, reason=long[:9999]) for n in range(5000))
    inputs = tuple(
        InputFile(path=f"{n}", format="x", rollouts=0, scalars=0, damaged=0) for n in range(5000)
    )
    judged = (Unjudged(what=long, why=long),) * 500
    huge = {"damage": lines, "damaged": 7000, "inputs": inputs, "unjudged": judged}
    bad = [
        message(long, kind=kind, category=f"{n}{long[:5000]}", model=f"{n}{long[:5000]}")
        for n, kind in enumerate(["loop", "call"] * 150)
    ]
    changed = with_steps(diagnosis, row(1, {"loop": 150, "call": 150})).model_copy(update=huge)
    page, html = write(tmp_path, changed, bad)
    assert len(html) < 4_000_000
    assert "And 6940 more." in page.text
    assert len(page.data()["names"]["category"]) == pages.CHOICES + 1
    assert (
        max(
            len(before + span + after)
            for *_, before, span, after in (shown[:9] for shown in page.messages())
        )
        < 3 * pages.LONGEST + 10
    )


def test_of_too_many_messages_every_kind_in_every_step_is_kept(
    collapsed: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "MESSAGES", 100)
    counts = {"call": 500, "loop": 3, "empty": 40}
    rows = [row(step, counts) for step in range(10)]
    messages = [
        message(str(n), step=step, kind=kind)
        for step in range(10)
        for kind, count in counts.items()
        for n in range(count)
    ]
    page, _ = write(tmp_path, with_steps(collapsed[0], *rows), messages)
    kept = Counter((shown[0], shown[10]) for shown in page.messages())
    assert set(kept.values()) == {3}
    assert len(kept) == 30
    assert "of each kind the first 3 of every step" in page.text


def test_messages_without_a_step_have_a_place(collapsed: Loaded, tmp_path: Path) -> None:
    diagnosis = with_steps(collapsed[0], row(None, {"loop": 2}))
    page, _ = write(tmp_path, diagnosis, [message(step=None), message(step=None)])
    (column,) = page.data()["columns"]
    assert (column["label"], column["x"], column["kept"]) == ("no step", None, 2)
    assert "The log names no training step" in page.text


def test_an_empty_log_still_gives_a_page(collapsed: Loaded, tmp_path: Path) -> None:
    nothing = with_steps(collapsed[0]).model_copy(
        update={"first_wrong": None, "involved": (), "affected": (), "actions": (), "inputs": ()}
    )
    page, _ = write(tmp_path, nothing, [])
    assert page.messages() == []
    assert "No message was found wrong." in page.text


def test_figures_that_are_no_numbers_do_not_reach_the_page(
    collapsed: Loaded, tmp_path: Path
) -> None:
    bad = {"kl": math.nan, "entropy": math.inf, "loss": -math.inf}
    rows = [row(n, {"loop": 1}, reward=math.nan, scalars=bad) for n in range(5)]
    judged = [message(step=1, reward=math.nan)]
    page, html = write(tmp_path, with_steps(collapsed[0], *rows), judged)
    assert page.messages()[0][11] is None
    assert not re.search(
        r"\b(nan|inf)\b|NaN|Infinity", html.split("<script")[0].split("</style>")[1]
    )
    page.data()


def test_a_place_that_cannot_be_written_is_one_clear_error(
    collapsed: Loaded, tmp_path: Path
) -> None:
    with pytest.raises(RunFolderError, match="cannot write"):
        write_page(*collapsed, tmp_path / "missing" / "page.html")


def test_a_long_run_is_drawn_with_several_steps_a_column() -> None:
    rows = [row(n, {"loop": 1, "call": 1}, reward=float(n % 2)) for n in range(5000)]
    rows.append(row(None, {"empty": 7}))
    merged = columns(rows)
    assert len(merged) <= COLUMNS + 1
    assert sum(column.messages for column in merged) == 10_007
    assert (merged[0].label, merged[0].reward) == ("0–12", pytest.approx(6 / 13))
    assert merged[-1].label == "no step"
    assert [column.label for column in columns(rows[:16:8], width=8)] == ["0–7", "8–15"]


def test_further_rules_and_long_steps_are_told(collapsed: Loaded, tmp_path: Path) -> None:
    diagnosis, messages = collapsed
    also = (Also(name="length_explosion", evidence="Twice as long.", since=20),)
    long = diagnosis.model_copy(
        update={
            "verdict": diagnosis.verdict.model_copy(update={"also": also}),
            "totals": diagnosis.totals.model_copy(update={"steps_per_row": 4}),
        }
    )
    page, _ = write(tmp_path, long, messages)
    assert "Also length explosion, since step 20: Twice as long." in page.text
    assert "each column stands for about 4 steps" in page.text


def test_two_runs_are_drawn_on_the_same_scales(collapsed: Loaded) -> None:
    diagnosis, _ = collapsed
    shorter = diagnosis.model_copy(update={"steps": diagnosis.steps[:20]})
    both = timelines([diagnosis, shorter])
    assert both[0].x[:20] == both[1].x
    assert both[0].ticks == both[1].ticks
    for one, other in zip(both[0].tracks, both[1].tracks, strict=True):
        assert (one.key, one.grid, one.height) == (other.key, other.grid, other.height)


def test_curves_stay_within_their_track_and_shares_fill_it(collapsed: Loaded) -> None:
    (timeline,) = timelines([collapsed[0]])
    for track in timeline.tracks:
        for series in track.series:
            places = [tuple(map(float, place.split(","))) for place in series.line.split()]
            assert all(0 <= x <= 1000 and 0 <= y <= track.height for x, y in places)
            assert all(m.y >= -0.1 and m.y + m.height <= track.height + 0.6 for m in series.marks)
    states = next(track for track in timeline.tracks if track.key == "states")
    covered = Counter[float]()
    for series in states.series:
        for mark in series.marks:
            covered[mark.x] += mark.height
    assert len(covered) == 60
    assert all(total == pytest.approx(states.height, abs=2) for total in covered.values())


def test_the_onset_lies_within_its_interval(collapsed: Loaded) -> None:
    (timeline,) = timelines([collapsed[0]])
    sound, onset = timeline.flags
    assert onset.low < onset.x < onset.high
    assert sound.x < onset.x
    assert "step 16" in onset.text


def test_a_figure_with_a_spike_is_drawn_on_a_logarithmic_scale(collapsed: Loaded) -> None:
    norms = [1.0] * 20 + [1000.0]
    rows = [row(n, {"call": 1}, scalars={"grad_norm": x}) for n, x in enumerate(norms)]
    (timeline,) = timelines([with_steps(collapsed[0], *rows)])
    track = next(track for track in timeline.tracks if track.key == "grad_norm")
    assert [label for _, label in track.grid] == ["1,000", "log", "1"]


def test_every_state_kind_and_verdict_has_words() -> None:
    assert words.STATES.keys() == set(STATES)
    assert words.KINDS.keys() >= KINDS.keys()
    verdict = Diagnosis.model_fields["verdict"].annotation
    assert verdict is not None
    names = verdict.model_fields["name"].annotation.__args__
    assert words.TONES.keys() == set(names)
