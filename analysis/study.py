"""What the analyses of studies share: committed logs in, tables of runs and intervals out.

Input: ``results/<study>/<arm>/seed<k>/`` with the small logs of each run. Output: metrics by arm
and seed, shares with exact (Clopper-Pearson) 95% intervals and means with 95% percentile bootstrap
intervals over seeds.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import binomtest, bootstrap

from toolrl_box.runlog import RunLog
from toolrl_box.scoring import Share, Spread

RESULTS = Path(__file__).parent.parent / "results"
LOGS = ("config.yaml", "environment.json", "journal.jsonl", "metrics.parquet", "evaluation.json")
FALLEN = 0.5
Runs = dict[str, dict[int, pd.DataFrame]]  # metrics by arm and seed


def collect(runs: Path, study: str) -> None:
    """Copy the small logs of every finished run to ``results/<study>``, and the list of cells; the
    rest stays where it is."""
    target = RESULTS / study
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy2(runs / "study.json", target / "study.json")
    for metrics in sorted(runs.glob("*/seed*/metrics.parquet")):
        run = metrics.parent
        if RunLog.open(run).journal()[-1]["event"] != "finish":
            print(f"left out, not finished: {run}")
            continue
        kept = target / run.parent.name / run.name
        kept.mkdir(parents=True, exist_ok=True)
        for name in LOGS:
            if (run / name).is_file():
                shutil.copy2(run / name, kept / name)


def load(study: str) -> Runs:
    """Metrics by arm and seed."""
    found: Runs = {}
    for path in sorted((RESULTS / study).glob("*/seed*")):
        seed = int(path.name.removeprefix("seed"))
        found.setdefault(path.parent.name, {})[seed] = RunLog.open(path).metrics()
    return found


def collapsed(frame: pd.DataFrame) -> bool:
    """Whether the last evaluation at temperature 1 is below half of the base's."""
    scores = frame["eval_sampled"].dropna().tolist()
    return bool(scores[-1] < FALLEN * scores[0])


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """95% percentile bootstrap interval of the mean over seeds."""
    if len(set(values)) == 1:
        return values[0], values[0]
    result = bootstrap(
        (np.array(values),), np.mean, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return float(result.low), float(result.high)


def difference_interval(values: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """95% percentile bootstrap interval of the difference of means; both resampled over seeds."""
    rng = np.random.default_rng(0)
    draws = [rng.choice(part, (10_000, len(part))).mean(axis=1) for part in (values, others)]
    low, high = np.quantile(draws[0] - draws[1], (0.025, 0.975))
    return float(low), float(high)


def share_interval(hits: int, runs: int) -> tuple[float, float]:
    """Exact 95% interval of a share."""
    exact = binomtest(hits, runs).proportion_ci(0.95, "exact")
    return float(exact.low), float(exact.high)


def share(value: Share) -> str:
    """Hits of a total with their interval, for a table."""
    if value.interval is None:
        return "–"
    low, high = value.interval
    return f"{value.hits}/{value.total} [{low:.2f}, {high:.2f}]"


def spread(value: Spread | None) -> str:
    """Median and quartiles, for a table."""
    return "–" if value is None else f"{value.median:.3g} [{value.low:.3g}, {value.high:.3g}]"


def analyse(doc: str, study: str, write: Callable[[Runs, Path], None]) -> None:
    """The command line of an analysis: ``--collect RUNS`` first copies the small logs."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--collect", type=Path, metavar="RUNS", help="copy small logs from here")
    arguments = parser.parse_args()
    if arguments.collect:
        collect(arguments.collect, study)
    write(load(study), RESULTS / study)
