"""Write a comparison up: one HTML page that needs nothing else, Markdown, and two CSV files.

Input: a :class:`~toolrl_box.report.compare.Comparison` and its pictures. Output: text. Everything
that comes from data is escaped by the templates. Left out: any figure that is not in the comparison
already, and any claim of a winner.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolrl_box.report import paper
from toolrl_box.report.arms import NO_VALUE, Run
from toolrl_box.report.compare import CHECKPOINTS, WORLDS, Comparison, Estimate, Figures
from toolrl_box.report.compare_figures import Picture
from toolrl_box.report.pages import data_uri, render

STATES = {
    "running": "still running",
    "unfinished": "interrupted",
    "failed": "failed",
    "waiting": "not started",
    "unreadable": "cannot be read",
}


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text; the first ``words`` columns are words, the others figures."""

    title: str
    note: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1


def html_page(comparison: Comparison, pictures: Sequence[Picture], folder: Path) -> str:
    """The page, with the PNGs in ``folder`` embedded."""
    figures = [
        {"uri": data_uri(folder / p.file), "title": p.title, "caption": p.caption} for p in pictures
    ]
    return render("compare.html.j2", **_common(comparison), figures=figures)


def markdown_page(comparison: Comparison, pictures: Sequence[Picture]) -> str:
    """The same for places that show Markdown, with the PNGs beside it."""
    return render("compare.md.j2", **_common(comparison), figures=pictures)


def _common(comparison: Comparison) -> dict[str, Any]:
    arms, runs = len(comparison.arms), len(comparison.runs)
    finished = sum(run.state == "finished" for _, run in comparison.runs)
    return {
        "title": f"{arms} arm{'s' * (arms != 1)}, {finished} of {runs} runs finished",
        "tables": [table for table in _tables(comparison) if table.rows],
        "notes": comparison.notes,
    }


def _tables(comparison: Comparison) -> Iterator[Table]:
    arms = comparison.arms
    yield Table(
        "Outcome",
        "Square brackets: 95% intervals, exact binomial for shares of runs, bootstrap over runs "
        "for means (of no width where all runs agree). Collapsed: verdict of the collapse report. "
        "Success is that of the held-out tasks of the evaluation while training; the best "
        "checkpoint was chosen by it.",
        (
            *("arm", "finished", "collapsed", "ends below half of its base", "base, T = 1"),
            *("final, T = 1", "final, greedy", "best, T = 1"),
        ),
        tuple(
            (
                arm.arm.name,
                f"{len(arm.arm.finished)} of {len(arm.arm.runs)}",
                _counted(arm.collapse.get("collapsed")),
                _counted(arm.collapse.get("below_half_of_base")),
                _cell(arm.base, interval=False),
                *(
                    _cell(arm.success.get((when, temperature, "all")))
                    for when, temperature in (
                        ("final", "sampled"),
                        ("final", "greedy"),
                        ("best", "sampled"),
                    )
                ),
            )
            for arm in arms
        ),
    )
    yield Table(
        "Runs that did not finish",
        "They are in no figure of this page.",
        ("run", "arm", "state", "cause"),
        tuple(
            (run.name, arm, STATES[run.state], run.cause or "")
            for arm, run in comparison.runs
            if run.state != "finished"
        ),
        words=4,
    )
    for when, title in (
        ("final", "Final success by category"),
        ("best", "Best success by category"),
    ):
        yield Table(
            title,
            "Temperature 1, then greedy; means over runs with 95% bootstrap intervals.",
            ("arm", "sampling", "all", *(c.replace("_", " ") for c in comparison.categories)),
            tuple(
                (
                    arm.arm.name,
                    sampling,
                    *(
                        _cell(arm.success[when, temperature, category])
                        for category in ("all", *comparison.categories)
                    ),
                )
                for arm in arms
                if arm.success
                for temperature, sampling in (("sampled", "T = 1"), ("greedy", "greedy"))
            ),
            words=2,
        )
    yield Table(
        "Interquartile mean",
        "Of final success at temperature 1, runs and categories together. Whole runs: a run is "
        "drawn with all its categories, which one model produced; the interval to rely on. "
        "Stratified: categories are drawn apart, as rliable does, as if they were independent.",
        ("arm", "IQM", "95%, whole runs", "95%, stratified"),
        tuple(
            (
                arm.arm.name,
                f"{arm.iqm['whole_runs'].value:.3f}",
                _interval(arm.iqm["whole_runs"]),
                _interval(arm.iqm["stratified"]),
            )
            for arm in arms
            if arm.iqm
        ),
    )
    yield Table(
        "What it cost",
        "Means over finished runs. The log counts SFT updates, not sequences: at most, because a "
        "last batch may be smaller. Sampled tokens are those the model wrote while training; "
        "seconds are those of the steps, on whatever machine and load there was.",
        (
            *("arm", "updates", "RL steps", "SFT updates", "SFT sequences, at most"),
            *("sampled tokens", "seconds"),
        ),
        tuple(
            (arm.arm.name, *(_whole(figure) for figure in arm.cost.values()))
            for arm in arms
            if arm.cost
        ),
    )
    yield from _ood_tables(arms)
    yield from _paper_tables(arms)


def _ood_tables(arms: Sequence[Figures]) -> Iterator[Table]:
    yield Table(
        "Other tasks, other formats",
        "Success on tasks that were not used while training, temperature 1 / greedy, means over "
        "runs with the 95% bootstrap interval of the former. Foreign content: words and tools that "
        "occur nowhere in training. Base: the untouched model, where it was evaluated.",
        ("arm", "checkpoint", "runs", *(world.replace("_", " ") for world in WORLDS)),
        tuple(
            (
                arm.arm.name,
                checkpoint,
                str(max(e.runs for key, e in arm.ood.items() if key[0] == checkpoint)),
                *(_two(arm, checkpoint, world) for world in WORLDS),
            )
            for arm in arms
            for checkpoint in CHECKPOINTS
            if any(key[0] == checkpoint for key in arm.ood)
        ),
        words=2,
    )


def _paper_tables(arms: Sequence[Figures]) -> Iterator[Table]:
    """Ours beside theirs, for arms whose scheme the paper has, and the untouched model."""
    ours = [
        (arm, scheme)
        for arm in arms
        if (scheme := arm.arm.scheme) is not None and scheme in paper.NAMES and arm.success
    ]
    rows = [
        (
            arm.arm.name,
            paper.NAMES[scheme],
            _cell(arm.success["final", "sampled", "all"]),
            *(_reported(paper.BFCL[model].get(scheme)) for model in (paper.QWEN25, paper.QWEN3)),
        )
        for arm, scheme in ours
    ]
    bases = [arm.base for arm, _ in ours if arm.base is not None]
    if bases:
        untouched = paper.NAMES[paper.UNTOUCHED]
        theirs = [_reported(paper.BFCL[model][paper.UNTOUCHED]) for model in paper.BFCL]
        share = f"{sum(base.value for base in bases) / len(bases):.3f}"
        rows.insert(0, ("(base)", untouched, share, *theirs))
    yield Table(
        "Beside the paper: success in the training world",
        f"The paper's columns are {paper.SOURCE}: BFCL-V3 multi-turn accuracy in %, average of "
        "four categories. Ours is another model, world and length of training: the direction can "
        "be compared, the height cannot. The paper also reports SFT(ToolACE) then RL, 17.25 on "
        "Qwen2.5.",
        ("arm", "in the paper", "ours, final, T = 1", paper.QWEN25, paper.QWEN3),
        tuple(rows),
        words=2,
    )
    tested = [(arm, scheme) for arm, scheme in ours if arm.ood and scheme in paper.ACEBENCH]
    rows = [
        (
            arm.arm.name,
            paper.NAMES[scheme],
            *(
                _cell(arm.ood.get(("final", world, "sampled")))
                for world in ("both_ood", "content_ood")
            ),
            *(_reported(figure) for figure in paper.ACEBENCH[scheme]),
        )
        for arm, scheme in tested
    ]
    if tested:
        theirs = [_reported(figure) for figure in paper.ACEBENCH[paper.UNTOUCHED]]
        figures = [
            next((arm.ood[key] for arm in arms if key in arm.ood), None)
            for key in (("base", world, "sampled") for world in ("both_ood", "content_ood"))
        ]
        rows.insert(0, ("(base)", "untouched", *map(_cell, figures), *theirs))
    yield Table(
        "Beside the paper: out of distribution",
        f"The paper's columns are {paper.SOURCE}: ACEBench in %, {paper.QWEN25}.",
        (
            *("arm", "in the paper", "ours, both OOD", "ours, content OOD"),
            *("ACEBench, format and content", "ACEBench, content"),
        ),
        tuple(rows),
        words=2,
    )


# --- CSV --------------------------------------------------------------------------------------


def figures_csv(comparison: Comparison) -> str:
    """Tidy: one row per arm (or pair) and figure."""
    head = ("arm", "figure", "part", "runs", "value", "low", "high", "interval")
    rows: list[tuple[Any, ...]] = []

    def add(arm: str, figure: str, part: str, estimate: Estimate | None) -> None:
        if estimate is not None:
            low, high = estimate.interval or ("", "")
            rows.append(
                (arm, figure, part, estimate.runs, estimate.value, low, high, estimate.method)
            )

    for arm in comparison.arms:
        name = arm.arm.name
        add(name, "base_sampled", "all", arm.base)
        for (when, temperature, category), estimate in arm.success.items():
            add(name, f"{when}_{temperature}", category, estimate)
        for part, estimate in arm.collapse.items():
            add(name, "collapse_rate", part, estimate)
        for part, estimate in arm.iqm.items():
            add(name, "iqm_final_sampled", part, estimate)
        for part, estimate in arm.cost.items():
            add(name, "cost", part, estimate)
        for (checkpoint, world, temperature), estimate in arm.ood.items():
            add(name, f"ood_{checkpoint}_{temperature}", world, estimate)
    for (one, other), estimate in comparison.improvement.items():
        add(one, "probability_of_improvement", f"over {other}", estimate)
    return _csv(head, rows)


def runs_csv(comparison: Comparison) -> str:
    """One row per run, finished or not."""
    head = ("run", "arm", "seed", "state", "cause", "verdict", "steps", "final_sampled")
    rows = [
        (
            *(run.name, arm, "" if run.seed is None else run.seed, run.state, run.cause or ""),
            *(run.verdict or "", *_last(run)),
        )
        for arm, run in comparison.runs
    ]
    return _csv(head, rows)


def _last(run: Run) -> tuple[Any, Any]:
    if run.metrics is None or not len(run.metrics):
        return "", ""
    scores = run.metrics["eval_sampled"].dropna()
    return int(run.metrics["step"].max()), float(scores.iloc[-1]) if len(scores) else ""


def _csv(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Text that a spreadsheet would take for a formula gets an apostrophe in front."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        writer.writerow(
            [
                "'" + cell if isinstance(cell, str) and cell[:1] in tuple("=+-@") else cell
                for cell in row
            ]
        )
    return text.getvalue()


# --- cells ------------------------------------------------------------------------------------


def _cell(estimate: Estimate | None, *, interval: bool = True) -> str:
    if estimate is None:
        return NO_VALUE
    value = f"{estimate.value:.3f}"
    if not interval:
        return value
    return f"{value} {_interval(estimate)}" if estimate.interval else f"{value} (1 run)"


def _interval(estimate: Estimate) -> str:
    if estimate.interval is None:
        return "none: one run"
    return f"[{estimate.interval.low:.3f}, {estimate.interval.high:.3f}]"


def _counted(estimate: Estimate | None) -> str:
    if estimate is None or estimate.interval is None:
        return NO_VALUE
    low, high = estimate.interval
    return f"{estimate.hits} of {estimate.runs} [{low:.2f}, {high:.2f}]"


def _whole(estimate: Estimate) -> str:
    return NO_VALUE if estimate.value != estimate.value else f"{estimate.value:,.0f}"


def _two(arm: Figures, checkpoint: str, world: str) -> str:
    sampled = arm.ood.get((checkpoint, world, "sampled"))
    greedy = arm.ood.get((checkpoint, world, "greedy"))
    if sampled is None or greedy is None:
        return NO_VALUE
    spread = f" {_interval(sampled)}" if sampled.interval else ""
    return f"{sampled.value:.3f} / {greedy.value:.3f}{spread}"


def _reported(figure: float | None) -> str:
    return NO_VALUE if figure is None else f"{figure:g}"
