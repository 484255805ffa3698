"""Reference values of river for tests/detectors/test_statistics.py, inputs in the same file.

python -m venv /tmp/river_env && /tmp/river_env/bin/pip install river==0.26.1
/tmp/river_env/bin/python tests/data/make_river_reference.py > tests/data/river.json
"""

from __future__ import annotations

import json
import math
from importlib.metadata import version
from typing import Any

import numpy as np
from river.drift import PageHinkley

COMMAND = "/tmp/river_env/bin/python tests/data/make_river_reference.py"
SETTINGS = [
    {"min_instances": 5, "delta": 0.005, "alpha": 0.9999},
    {"min_instances": 1, "delta": 0.0, "alpha": 1.0},
    {"min_instances": 12, "delta": 0.1, "alpha": 0.9},
]
THRESHOLD = 1.0


def inputs() -> dict[str, list[float]]:
    """A step up, a step down, a slow rise and plain noise, 60 figures each."""
    rng = np.random.default_rng(20261123)
    noise = rng.normal(0.0, 0.1, size=(4, 60))
    shapes = {
        "up": np.repeat([0.2, 1.0], 30),
        "down": np.repeat([1.0, 0.2], 30),
        "rise": np.linspace(0.0, 1.5, 60),
        "noise": np.zeros(60),
    }
    return {
        name: np.round(shape + n, 4).tolist()
        for (name, shape), n in zip(shapes.items(), noise, strict=True)
    }


def statistic(stream: list[float], settings: dict[str, float]) -> list[float]:
    """The test statistic at every figure; an infinite threshold never makes river start afresh."""
    detector = PageHinkley(mode="up", threshold=math.inf, **settings)
    values = []
    for x in stream:
        detector.update(x)
        values.append(detector._sum_increase - detector._min_increase)
    return values


def first_drift(stream: list[float], settings: dict[str, float]) -> int | None:
    """The place of river's own first alarm."""
    detector = PageHinkley(mode="up", threshold=THRESHOLD, **settings)
    for place, x in enumerate(stream):
        detector.update(x)
        if detector.drift_detected:
            return place
    return None


def main() -> None:
    given = inputs()
    cases: list[dict[str, Any]] = [
        {
            "stream": name,
            "settings": settings,
            "statistic": statistic(stream, settings),
            "first_drift": first_drift(stream, settings),
        }
        for name, stream in given.items()
        for settings in SETTINGS
    ]
    made = {"command": COMMAND, "river": version("river"), "threshold": THRESHOLD}
    print(json.dumps({**made, "inputs": given, "cases": cases}, indent=1))


if __name__ == "__main__":
    main()
