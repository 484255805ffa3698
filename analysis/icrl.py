"""Figure and table of experiments/icrl.yaml, from the committed logs alone.

    toolrl ablate experiments/icrl.yaml --output-dir runs/icrl --jobs 2
    python analysis/icrl.py --collect runs/icrl   # copies the small logs to results/
    python analysis/icrl.py                       # figures, table and summary from results/

Input: ``results/icrl`` (see ``study``) and the shipped bases' measures. Output: ``icrl.png`` (what
is learned by steps, by sampled tokens and by time), ``table.md`` and ``summary.json``. Evaluation
is always without examples in the prompt, on new questions; time is the sum of the steps' own
seconds, in a run that had one core of two.
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from study import Runs, analyse, mean_interval

from toolrl_box.models import MODELS

mpl.use("Agg")
GATES = ("search-high", "search", "search-low")
ARMS = ("zero-shot", "icrl-320", "icrl-3210", "sft-then-rl")
COLORS = dict(zip(ARMS, ("#d55e00", "#0072b2", "#56b4e9", "#888888"), strict=True))
LEARNED = 0.2  # success without examples that counts as having learned to search


def by_gate(runs: Runs) -> dict[str, dict[str, dict[int, pd.DataFrame]]]:
    """gate -> arm -> seed -> metrics; the cells are called ``<arm>,name=<gate>``."""
    return {
        gate: {arm: runs[f"{arm},name={gate}"] for arm in ARMS if f"{arm},name={gate}" in runs}
        for gate in GATES
    }


def spent(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with running totals of sampled and supervised tokens (thousands) and minutes."""
    tokens = frame["sampled_tokens"].fillna(0) + frame["sft_tokens"].fillna(0)
    return frame.assign(
        tokens=tokens.cumsum() / 1e3, minutes=frame["seconds_step"].fillna(0).cumsum() / 60
    )


def reached(frame: pd.DataFrame, axis: str) -> float:
    """What was spent up to the first evaluation at or above LEARNED; infinity for never."""
    scored = frame[frame["eval_sampled"].notna() & (frame["eval_sampled"] >= LEARNED)]
    return float(scored[axis].iloc[0]) if len(scored) else float("inf")


def summarise(gates: dict[str, dict[str, dict[int, pd.DataFrame]]]) -> list[dict[str, object]]:
    """A row for each gate and arm."""
    rows: list[dict[str, object]] = []
    for gate, arms in gates.items():
        for arm, seeds in arms.items():
            frames = [spent(frame) for frame in seeds.values()]
            finals = [float(frame["eval_sampled"].dropna().iloc[-1]) for frame in frames]
            last = [frame.iloc[-1] for frame in frames]
            rows.append(
                {
                    "gate": gate,
                    "arm": arm,
                    "runs": len(frames),
                    "p_call_start": float(frames[0]["p_call"].iloc[0]),
                    "p_call_end": float(np.median([frame["p_call"].iloc[-1] for frame in frames])),
                    "final": float(np.mean(finals)),
                    "final_interval": mean_interval(finals),
                    "finals": finals,
                    "updates": float(np.mean([row["step"] for row in last])),
                    "tokens": float(np.mean([row["tokens"] for row in last])),
                    "minutes": float(np.median([row["minutes"] for row in last])),
                    "learned": sum(value >= LEARNED for value in finals),
                    "tokens_to_learn": float(np.median([reached(f, "tokens") for f in frames])),
                    "minutes_to_learn": float(np.median([reached(f, "minutes") for f in frames])),
                    "steps_to_learn": float(np.median([reached(f, "step") for f in frames])),
                }
            )
    return rows


def table(rows: list[dict[str, object]]) -> str:
    """Markdown."""
    lines = [
        "| base | arm | p_call before | after (median) | final success, 0-shot, T = 1 "
        f"| 95% interval | runs that end ≥ {LEARNED} "
        f"| updates, k tokens, min to {LEARNED} (median) "
        "| in all: updates, k tokens, min |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["final_interval"]  # type: ignore[misc]
        to = " / ".join(
            "–" if row[key] == float("inf") else f"{row[key]:.{digits}f}"
            for key, digits in (
                *(("steps_to_learn", 0), ("tokens_to_learn", 0), ("minutes_to_learn", 1)),
            )
        )
        lines.append(
            f"| {row['gate']} | {row['arm']} | {row['p_call_start']:.1e} | {row['p_call_end']:.2f} "
            f"| {row['final']:.3f} | {low:.3f}–{high:.3f} | {row['learned']}/{row['runs']} | {to} "
            f"| {row['updates']:.0f} / {row['tokens']:.0f} / {row['minutes']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def base_table() -> str:
    """What the bases can do without and with examples, from their recipes."""
    lines = [
        "| base | p_call | 0-shot, T = 1 | 3-shot, T = 1 | 0-shot, greedy | 3-shot, greedy |",
        "|---|---|---|---|---|---|",
    ]
    for gate in GATES:
        record = json.loads((MODELS[gate][1]() / "recipe.json").read_text())["success"]
        lines.append(
            f"| {gate} | {record['p_call']:.1e} | {record['0shot_sampled']:.3f} "
            f"| {record['3shot_sampled']:.3f} | {record['0shot_greedy']:.3f} "
            f"| {record['3shot_greedy']:.3f} |"
        )
    return "\n".join(lines) + "\n"


def draw(gates: dict[str, dict[str, dict[int, pd.DataFrame]]], path: Path) -> None:
    """A row for each gate; a thin line for each seed, the median in bold."""
    panels = (
        ("p_call", "step", "updates", "P(first gold call), 0-shot"),
        ("valid_calls", "step", "updates", "valid calls per rollout"),
        ("eval_sampled", "step", "updates", "success, 0-shot"),
        ("eval_sampled", "tokens", "sampled + supervised tokens (k)", "success, 0-shot"),
        ("eval_sampled", "minutes", "minutes", "success, 0-shot"),
    )
    figure, axes = plt.subplots(
        len(gates), len(panels), figsize=(17, 3.1 * len(gates)), layout="constrained", squeeze=False
    )
    for row, (gate, arms) in zip(axes, gates.items(), strict=True):
        for axis, (value, over, label, title) in zip(row, panels, strict=True):
            for arm, seeds in arms.items():
                frames = [spent(frame).dropna(subset=[value]) for frame in seeds.values()]
                for frame in frames:
                    axis.plot(frame[over], frame[value], color=COLORS[arm], alpha=0.25, lw=0.8)
                stop = min(frame[over].iloc[-1] for frame in frames)
                grid = np.linspace(frames[0][over].iloc[0], stop, 61)
                curves = [np.interp(grid, frame[over], frame[value]) for frame in frames]
                middle = np.median(curves, axis=0)
                axis.plot(grid, middle, color=COLORS[arm], lw=2, label=arm)
            if value == "p_call":
                axis.set_yscale("log")
                axis.set_ylabel(gate)
            axis.set(title=title, xlabel=label)
            axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def write(runs: Runs, folder: Path) -> None:
    gates = by_gate(runs)
    rows = summarise(gates)
    text = f"{base_table()}\n{table(rows)}"
    (folder / "summary.json").write_text(json.dumps(rows, indent=2) + "\n")
    (folder / "table.md").write_text(text)
    draw(gates, folder / "icrl.png")
    print(text)


if __name__ == "__main__":
    analyse(__doc__, "icrl", write)
