"""Figure and table of experiments/collapse.yaml, from the committed logs alone.

    toolrl ablate experiments/collapse.yaml --output-dir runs/collapse --jobs 2
    python analysis/collapse.py --collect runs/collapse   # copies the small logs to results/
    python analysis/collapse.py                           # figure, table and summary from results/

Input: ``results/collapse/<arm>/seed<k>/`` (config, environment, journal, metrics). Output:
``results/collapse/{collapse.png,table.md,summary.json}``. A run counts as collapsed when its last
evaluation at temperature 1 is below half of the base's; proportions carry exact (Clopper-Pearson)
95% intervals, means a 95% bootstrap interval over seeds.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy.stats import binomtest, bootstrap

from toolrl_box.runlog import RunLog

mpl.use("Agg")
RESULTS = Path(__file__).parent.parent / "results" / "collapse"
LOGS = ("config.yaml", "environment.json", "journal.jsonl", "metrics.parquet")
ARMS = ("rl", "interleaved", "rl-low-lr", "sft-only")
COLORS = dict(zip(ARMS, ("#d55e00", "#0072b2", "#009e73", "#888888"), strict=True))
FALLEN = 0.5


def collect(runs: Path) -> None:
    """Copy the small logs of every finished run; the rest stays where it is."""
    for metrics in sorted(runs.glob("*/seed*/metrics.parquet")):
        run = metrics.parent
        target = RESULTS / run.parent.name / run.name
        if RunLog.open(run).journal()[-1]["event"] != "finish":
            print(f"left out, not finished: {run}")
            continue
        target.mkdir(parents=True, exist_ok=True)
        for name in LOGS:
            shutil.copy2(run / name, target / name)


def load() -> dict[str, dict[int, pd.DataFrame]]:
    """Metrics by arm and seed."""
    return {
        arm: {
            int(path.name.removeprefix("seed")): RunLog.open(path).metrics()
            for path in sorted((RESULTS / arm).glob("seed*"))
        }
        for arm in ARMS
        if (RESULTS / arm).is_dir()
    }


def interval(values: list[float]) -> tuple[float, float]:
    """95% percentile bootstrap interval of the mean over seeds."""
    if len(set(values)) == 1:
        return values[0], values[0]
    result = bootstrap(
        (np.array(values),), np.mean, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return float(result.low), float(result.high)


def summarise(runs: dict[str, dict[int, pd.DataFrame]]) -> dict[str, dict[str, object]]:
    """Per arm: collapsed runs, final and best evaluation, supervised updates."""
    summary: dict[str, dict[str, object]] = {}
    for arm, seeds in runs.items():
        finals, bests, collapsed = [], [], []
        for frame in seeds.values():
            scores = frame["eval_sampled"].dropna().tolist()
            finals.append(scores[-1])
            bests.append(max(scores))
            collapsed.append(scores[-1] < FALLEN * scores[0])
        exact = binomtest(sum(collapsed), len(collapsed)).proportion_ci(0.95, "exact")
        summary[arm] = {
            "runs": len(seeds),
            "collapsed": sum(collapsed),
            "collapsed_seeds": [s for s, c in zip(seeds, collapsed, strict=True) if c],
            "collapse_interval": [float(exact.low), float(exact.high)],
            "final": float(np.mean(finals)),
            "final_interval": interval(finals),
            "finals": finals,
            "best": float(np.mean(bests)),
            "sft_updates": float(
                np.mean([(f["phase_kind"] == "sft").sum() for f in seeds.values()])
            ),
        }
    return summary


def table(summary: dict[str, dict[str, object]]) -> str:
    """Markdown."""
    lines = [
        "| arm | collapsed | 95% interval | final success (T = 1) | 95% interval | best seen "
        "| SFT updates |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm, row in summary.items():
        low, high = row["collapse_interval"]  # type: ignore[misc]
        a, b = row["final_interval"]  # type: ignore[misc]
        lines.append(
            f"| {arm} | {row['collapsed']}/{row['runs']} | {low:.2f}–{high:.2f} "
            f"| {row['final']:.3f} | {a:.3f}–{b:.3f} | {row['best']:.3f} "
            f"| {row['sft_updates']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def draw(runs: dict[str, dict[int, pd.DataFrame]], path: Path) -> None:
    """Evaluation, bank NLL and healthy share by update step; a line a seed, the mean in bold."""
    panels = {
        "success, held-out tasks, T = 1": lambda f: f["eval_sampled"],
        "bank NLL (nats)": lambda f: f["bank_nll"],
        "healthy messages (share)": lambda f: f["state_healthy_call"] + f["state_healthy_response"],
    }
    figure, axes = plt.subplots(1, len(panels), figsize=(13, 4.2), layout="constrained")
    for axis, (title, column) in zip(axes, panels.items(), strict=True):
        for arm, seeds in runs.items():
            curves = []
            for frame in seeds.values():
                share = frame["step"] / frame["step"].max()
                kept = column(frame).notna()
                axis.plot(share[kept], column(frame)[kept], color=COLORS[arm], alpha=0.25, lw=0.8)
                curves.append(
                    np.interp(np.linspace(0, 1, 61), share[kept], column(frame)[kept])
                    if kept.any()
                    else np.full(61, np.nan)
                )
            axis.plot(
                np.linspace(0, 1, 61), np.mean(curves, axis=0), color=COLORS[arm], lw=2, label=arm
            )
        axis.set(title=title, xlabel="share of the run's updates")
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].set_yscale("log")
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--collect", type=Path, metavar="RUNS", help="copy small logs from here")
    arguments = parser.parse_args()
    if arguments.collect:
        collect(arguments.collect)
    runs = load()
    summary = summarise(runs)
    (RESULTS / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    (RESULTS / "table.md").write_text(table(summary))
    draw(runs, RESULTS / "collapse.png")
    print(table(summary))


if __name__ == "__main__":
    main()
