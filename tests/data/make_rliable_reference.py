"""Reference values of rliable for tests/test_stats.py, on inputs written into the same file.

python -m venv /tmp/rliable_env && /tmp/rliable_env/bin/pip install rliable==1.2.0 "pandas<3"
/tmp/rliable_env/bin/python tests/data/make_rliable_reference.py > tests/data/rliable.json
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import numpy as np
from rliable import library, metrics

COMMAND = "/tmp/rliable_env/bin/python tests/data/make_rliable_reference.py"
REPS = 50_000
THRESHOLDS = [0.0, 0.1, 0.25, 0.5, 0.75, 0.9]


def inputs() -> dict[str, list[list[float]]]:
    """Runs x tasks: two arms of 8 and 5 runs on 4 tasks, with ties; one with 3 runs on 3."""
    rng = np.random.default_rng(20261123)
    return {
        "x": np.round(rng.beta(3, 4, size=(8, 4)), 2).tolist(),
        "y": np.round(rng.beta(2, 4, size=(5, 4)), 2).tolist(),
        "small": np.round(rng.random((3, 3)), 1).tolist(),
    }


def reference(given: dict[str, list[list[float]]]) -> dict[str, Any]:
    """What rliable says about ``given``; 95% percentile intervals of its stratified bootstrap."""
    scores = {name: np.array(rows) for name, rows in given.items()}
    np.random.seed(0)  # noqa: NPY002 - rliable draws from the global generator
    _, iqms = library.get_interval_estimates(
        scores, lambda s: np.array([metrics.aggregate_iqm(s)]), reps=REPS
    )
    pair = {"x,y": (scores["x"], scores["y"])}
    _, wins = library.get_interval_estimates(
        pair, lambda x, y: np.array([metrics.probability_of_improvement(x, y)]), reps=REPS // 10
    )
    profiles, bands = library.create_performance_profile(
        scores, np.array(THRESHOLDS), reps=REPS // 10
    )
    return {
        "iqm": {name: float(metrics.aggregate_iqm(s)) for name, s in scores.items()},
        "iqm_interval": {name: value.ravel().tolist() for name, value in iqms.items()},
        "improvement": {
            "x,y": float(metrics.probability_of_improvement(scores["x"], scores["y"])),
            "y,x": float(metrics.probability_of_improvement(scores["y"], scores["x"])),
        },
        "improvement_interval": {name: value.ravel().tolist() for name, value in wins.items()},
        "profile": {name: value.tolist() for name, value in profiles.items()},
        "profile_band": {name: value.tolist() for name, value in bands.items()},
    }


def main() -> None:
    given = inputs()
    made = {"command": COMMAND, "rliable": version("rliable"), "thresholds": THRESHOLDS}
    print(json.dumps({**made, "inputs": given, "reference": reference(given)}, indent=1))


if __name__ == "__main__":
    main()
