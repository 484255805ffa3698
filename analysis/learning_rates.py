"""Figure and table of experiments/learning_rates.yaml, from the committed logs alone.

    toolrl ablate experiments/learning_rates.yaml --output-dir runs/learning_rates --jobs 2
    python analysis/learning_rates.py --collect runs/learning_rates   # small logs to results/
    python analysis/learning_rates.py                                 # figure, table and summary

Input: ``results/learning_rates`` (see ``study``). Output there: ``learning_rates.png`` (final
success by learning rate, a dot a run), ``table.md`` and ``summary.json``. Collapsed, here as in the
collapse study: the last evaluation at temperature 1 is below half of the base's.
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from study import Runs, analyse, collapsed, share_interval

mpl.use("Agg")
ARMS = ("rl", "interleaved")
COLORS = dict(zip(ARMS, ("#d55e00", "#0072b2"), strict=True))


def summarise(runs: Runs) -> list[dict[str, object]]:
    """A row for each arm and rate, rates rising."""
    rows: list[dict[str, object]] = []
    for cell, seeds in runs.items():
        arm, _, rate = cell.partition(",lr=")
        scores = [frame["eval_sampled"].dropna().tolist() for frame in seeds.values()]
        fallen = sum(collapsed(frame) for frame in seeds.values())
        rows.append(
            {
                "arm": arm,
                "lr": float(rate),
                "runs": len(seeds),
                "collapsed": fallen,
                "collapse_interval": share_interval(fallen, len(seeds)),
                "base": float(np.mean([values[0] for values in scores])),
                "finals": [values[-1] for values in scores],
                "best": float(np.mean([max(values) for values in scores])),
            }
        )
    return sorted(rows, key=lambda row: (ARMS.index(str(row["arm"])), float(str(row["lr"]))))


def table(rows: list[dict[str, object]]) -> str:
    """Markdown. Three seeds say little: the runs themselves are shown, not an interval of means."""
    lines = [
        "| arm | learning rate | collapsed (exact 95%) | final success of each run, T = 1 | best |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["collapse_interval"]  # type: ignore[misc]
        finals = ", ".join(f"{value:.2f}" for value in row["finals"])  # type: ignore[attr-defined]
        lines.append(
            f"| {row['arm']} | {row['lr']:g} | {row['collapsed']}/{row['runs']} "
            f"({low:.2f}–{high:.2f}) | {finals} | {row['best']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def draw(rows: list[dict[str, object]], path: Path) -> None:
    figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for arm in ARMS:
        own = [row for row in rows if row["arm"] == arm]
        rates = [float(str(row["lr"])) for row in own]
        for rate, row in zip(rates, own, strict=True):
            finals = row["finals"]
            assert isinstance(finals, list)
            axis.plot([rate] * len(finals), finals, "o", color=COLORS[arm], alpha=0.6)
        means = [np.mean(row["finals"]) for row in own]  # type: ignore[arg-type]
        axis.plot(rates, means, color=COLORS[arm], label=arm)
    axis.axhline(float(str(rows[0]["base"])), color="#888888", ls=":", label="base")
    axis.set(xscale="log", xlabel="learning rate", ylabel="final success, T = 1", ylim=(-0.02, 1))
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=130)


def write(runs: Runs, folder: Path) -> None:
    rows = summarise(runs)
    (folder / "summary.json").write_text(json.dumps(rows, indent=2) + "\n")
    (folder / "table.md").write_text(table(rows))
    draw(rows, folder / "learning_rates.png")
    print(table(rows))


if __name__ == "__main__":
    analyse(__doc__, "learning_rates", write)
