"""Table of the log's first looks at detectors and capability, from the committed files alone.

    python analysis/first_looks.py --collect runs/collapse   # the data set of the collapse study
    python analysis/first_looks.py                           # the table

Input: ``results/first_looks/data`` (all 32 runs; nothing is fitted, so none calibrates) and
``results/first_looks/capability/*.json`` (output of ``toolrl eval --counterfactual``). Output: the
prototype's detectors with their own thresholds, and the verdict on each checkpoint. Exploratory.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from study import RESULTS

from toolrl_box.detectors.damage import Damage
from toolrl_box.detectors.unhealthy import Unhealthy
from toolrl_box.scoring import lines, score_detector
from toolrl_box.warning_data import load_dataset, write_dataset

FOLDER = RESULTS / "first_looks"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--collect", type=Path, metavar="STUDY", help="run folders")
    study = parser.parse_args().collect
    if study:
        regimes = {arm.name: sorted(arm.glob("seed*/")) for arm in sorted(study.glob("*/"))}
        write_dataset(
            regimes, FOLDER / "data", (), "the collapse study; evaluations every 10 steps"
        )
    data = load_dataset(FOLDER / "data")
    for detector, level in ((Damage, "act"), (Damage, "warn"), (Unhealthy, "act")):
        print(f"\n[{level}]", *lines(score_detector(detector, data, 0.5, level)), sep="\n")
    for path in sorted((FOLDER / "capability").glob("*.json")):
        print(f"{path.stem:<20}{json.loads(path.read_text())['verdict']['name']}")


if __name__ == "__main__":
    main()
