"""Figure and table of experiments/schemes.yaml, from the committed logs alone.

    toolrl ablate experiments/schemes.yaml --output-dir runs/schemes --jobs 2
    python analysis/schemes.py --collect runs/schemes   # copies the small logs to results/
    python analysis/schemes.py                          # figure, table, summary and comparison

Input: ``results/schemes`` (see ``study``). Output there: ``schemes.png`` (final success in and out
of distribution, with intervals, both rates), ``table.md``, ``summary.json``, and the pages of
``toolrl compare``. Arms are compared within a learning rate; an arm stands above ``rl`` only where
the bootstrap interval of the difference of means over seeds leaves 0 out.
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from study import Runs, analyse, collapsed, difference_interval, mean_interval, share_interval

from toolrl_box.report import write_comparison

mpl.use("Agg")
WORLDS = ("in_distribution", "content_ood", "format_ood", "both_ood")
LABELS = ("in distribution", "content OOD", "format OOD", "both OOD")
COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7")


def rate_of(cell: str) -> str:
    return cell.rpartition("lr=")[2]


def arm_of(cell: str) -> str:
    return cell.rpartition(",lr=")[0]


def out_of_distribution(folder: Path, cell: str) -> dict[str, list[float]]:
    """Greedy success of each seed's final checkpoint on the four worlds."""
    found: dict[str, list[float]] = {world: [] for world in WORLDS}
    for path in sorted((folder / cell).glob("seed*/evaluation.json")):
        (final,) = [e for e in json.loads(path.read_text()) if "final" in e["names"]]
        for world in WORLDS:
            found[world].append(float(final["worlds"][world]["greedy"]["success"]))
    return found


def summarise(runs: Runs, folder: Path) -> dict[str, dict[str, object]]:
    """Per cell: collapsed runs, final success and its difference from RL alone at the same rate,
    OOD success, and what it cost."""
    finals = {
        cell: [float(frame["eval_sampled"].dropna().iloc[-1]) for frame in seeds.values()]
        for cell, seeds in runs.items()
    }
    summary: dict[str, dict[str, object]] = {}
    for cell, seeds in runs.items():
        fallen = [seed for seed, frame in seeds.items() if collapsed(frame)]
        worlds = out_of_distribution(folder, cell)
        baseline = finals[f"rl,lr={rate_of(cell)}"]
        summary[cell] = {
            "runs": len(seeds),
            "collapsed": len(fallen),
            "collapse_interval": share_interval(len(fallen), len(seeds)),
            "final": float(np.mean(finals[cell])),
            "final_interval": mean_interval(finals[cell]),
            "over_rl": difference_interval(finals[cell], baseline),
            "finals": finals[cell],
            "worlds": {world: float(np.mean(values)) for world, values in worlds.items()},
            "worlds_interval": {world: mean_interval(values) for world, values in worlds.items()},
            "sft_tokens": float(np.mean([f["sft_tokens"].fillna(0).sum() for f in seeds.values()])),
            "sampled_tokens": float(
                np.mean([f["sampled_tokens"].fillna(0).sum() for f in seeds.values()])
            ),
            "minutes": float(np.median([f["seconds_step"].sum() / 60 for f in seeds.values()])),
        }
    return summary


def table(summary: dict[str, dict[str, object]]) -> str:
    """Markdown, one table a rate, best final success first."""
    parts = []
    for rate in dict.fromkeys(map(rate_of, summary)):
        rows = {cell: row for cell, row in summary.items() if rate_of(cell) == rate}
        lines = [
            f"Learning rate {rate}:\n",
            "| arm | collapsed (exact 95%) | final success, T = 1 (95%) | minus RL alone (95%) "
            "| content OOD | format OOD | SFT tokens (k) | minutes |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for cell, row in sorted(rows.items(), key=lambda item: -float(str(item[1]["final"]))):
            low, high = row["collapse_interval"]  # type: ignore[misc]
            a, b = row["final_interval"]  # type: ignore[misc]
            c, d = row["over_rl"]  # type: ignore[misc]
            worlds = row["worlds"]
            assert isinstance(worlds, dict)
            lines.append(
                f"| {arm_of(cell)} | {row['collapsed']}/{row['runs']} ({low:.2f}–{high:.2f}) "
                f"| {row['final']:.3f} ({a:.3f}–{b:.3f}) | {c:+.3f} to {d:+.3f} "
                f"| {worlds['content_ood']:.2f} | {worlds['format_ood']:.2f} "
                f"| {float(str(row['sft_tokens'])) / 1e3:.0f} | {row['minutes']:.1f} |"
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def draw(summary: dict[str, dict[str, object]], path: Path) -> None:
    """Final checkpoints, greedy, on four worlds: a row of dots an arm, a panel a rate."""
    rates = list(dict.fromkeys(map(rate_of, summary)))
    figure, axes = plt.subplots(1, len(rates), figsize=(13, 6), layout="constrained", sharey=True)
    for axis, rate in zip(axes, rates, strict=True):
        cells = [cell for cell in summary if rate_of(cell) == rate]
        for place, (world, label, color) in enumerate(zip(WORLDS, LABELS, COLORS, strict=True)):
            means = [summary[cell]["worlds"][world] for cell in cells]  # type: ignore[index]
            ends = [summary[cell]["worlds_interval"][world] for cell in cells]  # type: ignore[index]
            ys = np.arange(len(cells)) + 0.16 * (place - 1.5)
            axis.hlines(ys, *np.transpose(ends), color=color, lw=1.5)
            axis.plot(means, ys, "o", color=color, ms=5, label=label)
        axis.set_yticks(range(len(cells)), [arm_of(cell) for cell in cells])
        axis.set(title=f"learning rate {rate}", xlabel="success, greedy", xlim=(-0.02, 1))
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    axes[-1].legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=120)


def write(runs: Runs, folder: Path) -> None:
    summary = summarise(runs, folder)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    (folder / "table.md").write_text(table(summary))
    draw(summary, folder / "schemes.png")
    write_comparison([folder], folder / "comparison")
    print(table(summary))


if __name__ == "__main__":
    analyse(__doc__, "schemes", write)
