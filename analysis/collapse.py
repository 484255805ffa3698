"""Figure and table of experiments/collapse.yaml, from the committed logs alone.

    toolrl ablate experiments/collapse.yaml --output-dir runs/collapse --jobs 2
    python analysis/collapse.py --collect runs/collapse   # copies the small logs to results/
    python analysis/collapse.py                           # figure, table and summary from results/

Input: ``results/collapse`` (see ``study``). Output: ``collapse.png``, ``table.md`` and
``summary.json`` there. A run counts as collapsed when its last evaluation at temperature 1 is
below half of the base's.
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from study import Runs, analyse, collapsed, mean_interval, share_interval

mpl.use("Agg")
ARMS = ("rl", "interleaved", "rl-low-lr", "sft-only")
COLORS = dict(zip(ARMS, ("#d55e00", "#0072b2", "#009e73", "#888888"), strict=True))


def summarise(runs: Runs) -> dict[str, dict[str, object]]:
    """Per arm: collapsed runs, final and best evaluation, supervised updates."""
    summary: dict[str, dict[str, object]] = {}
    for arm in ARMS:
        seeds = runs[arm]
        scores = [frame["eval_sampled"].dropna().tolist() for frame in seeds.values()]
        finals = [values[-1] for values in scores]
        fallen = [seed for seed, frame in seeds.items() if collapsed(frame)]
        summary[arm] = {
            "runs": len(seeds),
            "collapsed": len(fallen),
            "collapsed_seeds": fallen,
            "collapse_interval": share_interval(len(fallen), len(seeds)),
            "final": float(np.mean(finals)),
            "final_interval": mean_interval(finals),
            "finals": finals,
            "best": float(np.mean([max(values) for values in scores])),
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


def draw(runs: Runs, path: Path) -> None:
    """Evaluation, bank NLL and healthy share by update step; a line a seed, the mean in bold."""
    panels = {
        "success, held-out tasks, T = 1": lambda f: f["eval_sampled"],
        "bank NLL (nats)": lambda f: f["bank_nll"],
        "healthy messages (share)": lambda f: f["state_healthy_call"] + f["state_healthy_response"],
    }
    figure, axes = plt.subplots(1, len(panels), figsize=(13, 4.2), layout="constrained")
    for axis, (title, column) in zip(axes, panels.items(), strict=True):
        for arm in ARMS:
            seeds = runs[arm]
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


def write(runs: Runs, folder: Path) -> None:
    summary = summarise(runs)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    (folder / "table.md").write_text(table(summary))
    draw(runs, folder / "collapse.png")
    print(table(summary))


if __name__ == "__main__":
    analyse(__doc__, "collapse", write)
