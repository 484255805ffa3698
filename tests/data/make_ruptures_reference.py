"""Reference change points of ruptures for tests/diagnose/test_change.py, on the curves beside them.

python -m venv /tmp/ruptures_env && /tmp/ruptures_env/bin/pip install ruptures==1.1.10
/tmp/ruptures_env/bin/python tests/data/make_ruptures_reference.py > tests/data/ruptures.json
"""

from __future__ import annotations

import json
from importlib.metadata import version

import numpy as np
import ruptures

COMMAND = "/tmp/ruptures_env/bin/python tests/data/make_ruptures_reference.py"


def curves() -> list[list[float]]:
    """Jumps of one to four deviations, anywhere in 12 to 120 points."""
    rng = np.random.default_rng(20261123)
    made = []
    for _ in range(40):
        count = int(rng.integers(12, 121))
        place = int(rng.integers(2, count - 2))
        size = float(rng.uniform(1, 4))
        x = rng.normal(0, 1, count) + size * (np.arange(count) >= place)
        made.append(np.round(x, 3).tolist())
    return made


def main() -> None:
    rows = []
    for curve in curves():
        model = ruptures.Dynp(model="l2", min_size=1, jump=1).fit(np.asarray(curve))
        rows.append({"curve": curve, "change": int(model.predict(n_bkps=1)[0])})
    print(json.dumps({"command": COMMAND, "ruptures": version("ruptures"), "rows": rows}))


if __name__ == "__main__":
    main()
