"""What each process of tests/test_processes.py does: runs of several configs, one after the other.

    torchrun --nproc_per_node 2 tests/processes.py FOLDER CONFIG.yaml…

Each config becomes FOLDER/<its name>. A config named ``stop`` is stopped after its second step and
resumed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from toolrl_box import lab, team
from toolrl_box.config import load


def main(folder: Path, configs: list[Path]) -> None:
    mates = team.join(2)
    for path in configs:
        config, run_dir = load(path), folder / path.stem
        if not mates.main:
            for _ in range(2 if path.stem == "stop" else 1):
                lab.follow(config, mates)
            continue
        steps = 0

        def tired(name: str = path.stem) -> bool:
            nonlocal steps
            steps += 1
            return name == "stop" and steps == 2

        ended = lab.start(config, run_dir, lab.Watch(should_stop=tired), mates)
        if ended == "stopped":
            assert lab.resume(run_dir, team=mates) == "done"
    mates.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
