"""The collapse report of one run: what happened, when, and which checkpoint to use.

Input: a run folder. Output in ``RUN_DIR/report/``: ``index.html`` (needs nothing else),
``report.md``, ``summary.json`` and four PNGs. Reading order: ``summary`` (what is said),
``verdict`` (the rules), ``examples`` and ``figures`` (the evidence), ``pages`` (the writing-up).
Left out: comparisons between runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from toolrl_box.durable import write_atomic, writing
from toolrl_box.report import examples, figures, pages
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
