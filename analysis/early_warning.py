"""Table and figures of the early-warning benchmark, from the committed data set alone.

    toolrl ablate experiments/schemes.yaml --output-dir runs/schemes --jobs 2
    toolrl ablate experiments/early_warning.yaml --output-dir runs/early_warning --jobs 2
    python analysis/early_warning.py --collect runs/schemes runs/early_warning
    python analysis/early_warning.py      # table, figures and summary from results/early_warning/

Input: ``results/early_warning/data`` (``toolrl_box.warning_data``). Output beside it: ``table.md``,
``summary.json``, ``roc.png`` and ``lead.png``. The prototype's two forms keep their own thresholds;
every candidate is fitted on the calibration split at the same budget and scored on the test split.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from study import RESULTS, share, spread

from toolrl_box import detector_file
from toolrl_box.detectors import Detector
from toolrl_box.detectors.damage import Damage
from toolrl_box.detectors.unhealthy import Unhealthy
from toolrl_box.errors import ConfigError
from toolrl_box.scoring import Score, score_detector
from toolrl_box.warning_data import Logged, by_regime, load_dataset, write_dataset

mpl.use("Agg")
FOLDER = RESULTS / "early_warning"
CALIBRATION_SEEDS = (11, 12, 61, 62, 63)
BUDGETS = (0.05, 0.1, 0.2)
SHOWN = ("bank_nll", "bank_nll_and_kl", "unhealthy_share", "content")
Make = Callable[[], Detector]


def collect(studies: Sequence[Path]) -> None:
    """Write the data set from the studies' run folders; runs that did not finish are named."""
    regimes, unfinished = by_regime(studies)
    for run in unfinished:
        print(f"left out, not finished: {run}")
    write_dataset(
        regimes,
        FOLDER / "data",
        CALIBRATION_SEEDS,
        "pocket world; onsets of toolrl_box.onsets; seeds 11, 12 and 61-63 calibrate",
    )


def candidates() -> dict[str, Make]:
    """The fitted ones, by name."""
    made: dict[str, Make] = {}
    for source in ("guard", "field"):
        for spec in detector_file.load(source).detectors:
            assert isinstance(spec, detector_file.ComposedSpec)
            made.setdefault(spec.name, partial(detector_file.scorer, spec))
    return made


def scored(data: Sequence[Logged]) -> dict[str, dict[str, Score]]:
    """budget (or ``own``) -> detector -> score."""
    found = {
        "own": {
            "damage, act": score_detector(Damage, data, BUDGETS[0], "act"),
            "damage, warn": score_detector(Damage, data, BUDGETS[0], "warn"),
            "unhealthy": score_detector(Unhealthy, data, BUDGETS[0], "act"),
        }
    }
    for budget in BUDGETS:
        rows = found[f"{budget:g}"] = {}
        for name, make in candidates().items():
            try:
                rows[name] = score_detector(make, data, budget)
            except ConfigError as error:  # too few healthy runs for the budget
                print(f"{name} at {budget:g}: {error}")
    return found


def table(found: dict[str, dict[str, Score]]) -> str:
    """Markdown; within a budget the most early detections first."""
    lines = [
        "| budget | detector | early | detected | false alarms | lead, first onset | lead, reward "
        "onset | lead share | AUROC |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for budget, rows in found.items():
        for name, row in sorted(rows.items(), key=lambda item: -item[1].early.hits):
            auroc = "–" if row.auroc is None else f"{row.auroc:.2f}"
            lines.append(
                f"| {budget} | {name} | {share(row.early)} | {share(row.detected)} "
                f"| {share(row.false_alarms)} | {spread(row.lead['first'])} "
                f"| {spread(row.lead['reward'])} | {spread(row.lead_share)} | {auroc} |"
            )
    return "\n".join(lines) + "\n"


def runs_table(data: Sequence[Logged]) -> str:
    """How many runs of each class each regime and split holds."""
    counts: dict[tuple[str, str], dict[str, int]] = {}
    for run in data:
        row = counts.setdefault((run.entry.regime, run.entry.split), {})
        row[run.entry.kind] = row.get(run.entry.kind, 0) + 1
    lines = ["| regime | split | collapsing | healthy | ambiguous |", "|---|---|---|---|---|"]
    for (regime, split), row in counts.items():
        kinds = (str(row.get(kind, 0)) for kind in ("collapsing", "healthy", "ambiguous"))
        lines.append(f"| {regime} | {split} | {' | '.join(kinds)} |")
    return "\n".join(lines) + "\n"


def draw_roc(data: Sequence[Logged], path: Path) -> None:
    """Early detection against false alarms on the test split, over every threshold."""
    figure, axis = plt.subplots(figsize=(6, 5), layout="constrained")
    for name in SHOWN:
        score = score_detector(candidates()[name], data, 0.5)
        healthy = [one for one in score.runs if one.run.entry.kind == "healthy"]
        falling = [one for one in score.runs if one.run.entry.kind == "collapsing"]
        peaks = [max(one.scores.values()) for one in healthy]
        before = [
            max(
                (s for step, s in one.scores.items() if step < (one.run.entry.onsets.first or 0)),
                default=float("-inf"),
            )
            for one in falling
        ]
        limits = sorted({*peaks, *before, float("-inf")}, reverse=True)
        xs = [sum(peak > limit for peak in peaks) / len(peaks) for limit in limits]
        ys = [sum(high > limit for high in before) / len(before) for limit in limits]
        axis.step(xs, ys, where="post", label=name)
    axis.set(xlabel="false alarms per healthy run", ylabel="early detection", xlim=(0, 1))
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=120)


def draw_lead(found: dict[str, dict[str, Score]], path: Path) -> None:
    """Steps from the first alarm to the first onset, a dot a collapsing test run."""
    rows = {**found["own"], **{f"{n}, 0.1": found["0.1"][n] for n in SHOWN if n in found["0.1"]}}
    figure, axis = plt.subplots(figsize=(8, 0.5 * len(rows) + 1.5), layout="constrained")
    for place, score in enumerate(rows.values()):
        leads = [
            (one.run.entry.onsets.first or 0) - one.alarm
            for one in score.runs
            if one.run.entry.kind == "collapsing" and one.alarm is not None
        ]
        axis.plot(leads, [place] * len(leads), "|", ms=14, color="#0072b2")
        if leads:
            axis.plot([sorted(leads)[len(leads) // 2]], [place], "o", color="#d55e00")
    axis.axvline(0, color="black", lw=0.8)
    axis.set_yticks(range(len(rows)), rows)
    axis.invert_yaxis()
    axis.set(xlabel="lead to the first onset, steps (dot: median)")
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--collect", type=Path, nargs="+", metavar="STUDY", help="run folders")
    arguments = parser.parse_args()
    if arguments.collect:
        collect(arguments.collect)
    data = load_dataset(FOLDER / "data")
    found = scored(data)
    text = f"{runs_table(data)}\n{table(found)}"
    (FOLDER / "table.md").write_text(text)
    plain = {b: {n: s.to_json() for n, s in rows.items()} for b, rows in found.items()}
    (FOLDER / "summary.json").write_text(json.dumps(plain, indent=1) + "\n")
    draw_roc(data, FOLDER / "roc.png")
    draw_lead(found, FOLDER / "lead.png")
    print(text)


if __name__ == "__main__":
    main()
