"""What a number of healthy runs can promise about false alarms, without assumptions.

Input: the highest score that each healthy run reached, and a budget: the share of healthy runs in
which an alarm is acceptable. Output: a threshold with the rates that it stands for.

With n exchangeable runs and the threshold at the (j+1)-th highest maximum, a fresh healthy run
exceeds it with probability (j+1)/(n+1) at most, on average over calibrations (an order statistic;
equality for continuous scores). For the one calibration that was made, the rate is below the 95%
quantile of Beta(j+1, n-j), which is also the one-sided Clopper-Pearson bound of j hits in n.

Left out: detection. A budget is about healthy runs alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from scipy.stats import beta

from toolrl_box.errors import ConfigError

CONFIDENCE = 0.95


class Threshold(NamedTuple):
    """Alarm above ``value``. ``above`` of ``runs`` maxima exceed it; ``expected`` and ``upper`` as
    above."""

    value: float
    above: int
    runs: int
    expected: float
    upper: float


def check_budget(budget: float, runs: int) -> None:
    """Raises ConfigError for a budget that is none, or that so few runs cannot promise."""
    if not 0 < budget < 1:
        raise ConfigError(f"--false-alarms {budget} must be above 0 and below 1")
    if _spared(budget, runs) < 0:
        needed = math.ceil(1 / budget - 1e-9) - 1
        raise ConfigError(
            f"{runs} healthy run(s) support a false-alarm rate of {1 / (runs + 1):.3f} at best "
            f"(1 / (runs + 1)); --false-alarms {budget} needs {needed}"
        )


def threshold(maxima: Sequence[float], budget: float) -> Threshold:
    """The lowest threshold within the budget. Maxima may be infinite; ties are on the safe side.

    Raises ConfigError as :func:`check_budget`.
    """
    runs = len(maxima)
    check_budget(budget, runs)
    spared = _spared(budget, runs)
    value = sorted(maxima, reverse=True)[spared]
    above = sum(maximum > value for maximum in maxima)
    upper = float(beta.ppf(CONFIDENCE, spared + 1, runs - spared))
    return Threshold(value, above, runs, (spared + 1) / (runs + 1), upper)


def _spared(budget: float, runs: int) -> int:
    """How many of the runs may exceed the threshold; -1: not even none is enough."""
    return math.floor(budget * (runs + 1) + 1e-9) - 1
