"""The same runs with transformers and with vLLM rollouts: reward curves and their mismatch.

    python analysis/engines.py RUNS OUT

RUNS holds folders ``<engine>-seed<n>``. Writes ``reward.csv`` (mean over seeds by engine and
step), ``summary.json`` (mean reward of each run, the difference of the engines from paired seeds,
mismatch, speed) and ``reward.png``. Intervals are Student's 95% over seeds: wide with few of them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy import stats

from toolrl_box.runlog import RunLog

ENGINES = ("transformers", "vllm")


def interval(values_S: np.ndarray) -> tuple[float, float]:
    """95% interval of the mean over seeds [S]."""
    half = stats.t.ppf(0.975, len(values_S) - 1) * values_S.std(ddof=1) / len(values_S) ** 0.5
    return float(values_S.mean() - half), float(values_S.mean() + half)


def main(runs: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    frames: dict[str, dict[int, pd.DataFrame]] = {engine: {} for engine in ENGINES}
    for engine in ENGINES:
        for folder in sorted(path for path in runs.glob(f"{engine}-seed*") if path.is_dir()):
            frame = RunLog.open(folder).metrics()
            seed = int(folder.name.removeprefix(f"{engine}-seed"))
            frames[engine][seed] = frame[frame.phase_kind == "rl"].set_index("rl_step")
    seeds = sorted(frames["transformers"])
    assert seeds == sorted(frames["vllm"]), "every seed needs a run of each engine"

    rows = []
    figure, axes = plt.subplots(figsize=(6, 3.5))
    for engine in ENGINES:
        table = pd.DataFrame({seed: frames[engine][seed].reward for seed in seeds})
        bounds = [interval(values) for values in table.to_numpy()]
        for step, values, (low, high) in zip(table.index, table.to_numpy(), bounds, strict=True):
            rows.append((engine, step, values.mean(), low, high))
        axes.plot(table.index, table.mean(axis=1), label=engine)
        axes.fill_between(table.index, *zip(*bounds, strict=True), alpha=0.2)
    axes.set(xlabel="RL step", ylabel="reward", ylim=(0, 1))
    axes.legend()
    figure.tight_layout()
    figure.savefig(out / "reward.png", dpi=150)
    columns = ["engine", "rl_step", "reward", "low", "high"]
    pd.DataFrame(rows, columns=columns).round(4).to_csv(out / "reward.csv", index=False)

    means = {e: np.array([frames[e][seed].reward.mean() for seed in seeds]) for e in ENGINES}
    difference = means["vllm"] - means["transformers"]
    sampled = pd.concat(frames["vllm"].values())
    speeds = {
        e: [round(float(f.sampled_tokens.sum() / f.seconds_rollout.sum())) for f in by.values()]
        for e, by in frames.items()
    }
    summary = {
        "seeds": seeds,
        "steps": len(frames["vllm"][seeds[0]]),
        "mean_reward": {e: means[e].round(4).tolist() for e in ENGINES},
        "difference": round(float(difference.mean()), 4),
        "difference_interval": [round(x, 4) for x in interval(difference)],
        "mismatch_kl_max": float(sampled.mismatch_kl.max()),
        "mismatch_ratio_range": [
            float(sampled.mismatch_ratio.min()),
            float(sampled.mismatch_ratio.max()),
        ],
        "mismatch_ess_min": float(sampled.mismatch_ess.min()),
        "rollout_tokens_per_second": speeds,
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
