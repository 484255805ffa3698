"""What runs tell: the collapse report of one, and the comparison of several.

:func:`write_report`. Input: a run folder. Output in ``RUN_DIR/report/``: ``index.html`` (needs
nothing else), ``report.md``, ``summary.json`` and four PNGs. Reading order: ``summary`` (what is
said, by the rules of :mod:`toolrl_box.verdicts`), ``examples`` and ``figures`` (the evidence),
``pages`` (the writing-up).

:func:`write_comparison`. Input: run folders, or folders of runs, and the settings by which they are
grouped. Output in a folder: ``compare.html`` (needs nothing else), ``compare.md``, ``compare.csv``
(one row per figure), ``runs.csv`` (one row per run) and PNGs. Reading order: ``arms`` (which runs),
``compare`` (the figures), ``compare_figures`` (with ``arm_marks``), ``compare_pages``, ``paper``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolrl_box.durable import write_atomic, writing
from toolrl_box.report import compare_figures, compare_pages, examples, figures, pages
from toolrl_box.report.arms import find_runs, group
from toolrl_box.report.compare import Comparison, compare
from toolrl_box.report.summary import summarise
from toolrl_box.runlog import RunLog


def write_report(run_dir: Path | str) -> dict[str, Any]:
    """Write the report of a run, finished or not, and return its summary.

    An older report is replaced. Raises RunFolderError for a folder that is no run or is damaged.
    """
    run = RunLog.open(run_dir)
    summary = summarise(run)
    scenes = examples.scenes(run, summary["onset_step"])
    metrics, best = run.metrics(), summary["best_checkpoint"]
    marks = figures.Marks(
        sft=tuple(
            (phase["first_step"], phase["last_step"])
            for phase in summary["phases"]
            if phase["kind"] == "sft" and phase["first_step"] is not None
        ),
        onset=summary["onset_step"],
        last_step=summary["steps"],
    )
    folder = run.path / "report"
    with writing(folder):
        folder.mkdir(exist_ok=True)
        figures.reward_and_eval(
            metrics, marks, best["step"] if best else None, folder / "reward_and_eval.png"
        )
        figures.control_tokens(run.probe(), marks, folder / "control_tokens.png")
        figures.states(metrics, marks, folder / "states.png")
        figures.signals(metrics, marks, folder / "signals.png")
        html = pages.html_page(summary, scenes, run.environment, folder)
        for name, text in {
            "index.html": html,
            "report.md": pages.markdown_page(summary, scenes),
            "summary.json": json.dumps(summary, indent=2, allow_nan=False) + "\n",
        }.items():
            write_atomic(folder / name, text.encode())
    return summary


def write_comparison(paths: Sequence[Path], output: Path, by: Sequence[str] = ()) -> Comparison:
    """Compare, write the files into ``output`` (older ones are replaced) and return the figures.

    Raises RunFolderError or ConfigError, before anything is written, for a path without runs or a
    setting that no run has.
    """
    comparison = compare(group(find_runs(paths), by))
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        pictures = compare_figures.draw(comparison, output)
        for name, text in {
            "compare.html": compare_pages.html_page(comparison, pictures, output),
            "compare.md": compare_pages.markdown_page(comparison, pictures),
            "compare.csv": compare_pages.figures_csv(comparison),
            "runs.csv": compare_pages.runs_csv(comparison),
        }.items():
            write_atomic(output / name, text.encode())
    return comparison
