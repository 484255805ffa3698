"""Invented runs of three classes, written through the run log itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toolrl_box.runlog import RIGHT_TOKEN, RunLog

SLOTS = ("start_call_due", "inside_call", "after_call")
STEPS, EVERY = 40, 5
BREAKS = 20

MakeRun = Callable[..., Path]


def write_run(
    path: Path, kind: str, seed: int, *, finished: bool = True, base: float = -0.1
) -> Path:
    """RL with an SFT step after every ninth. ``collapsing``: bank and messages go bad from step
    20 on and reward from 25; ``ambiguous``: the evaluation ends at 60% of its height."""
    rng = np.random.default_rng(seed)
    with RunLog.create(path, {"seed": seed, "scheme": {"name": "rl"}}, {"python": "3"}) as log:
        for step in range(STEPS + 1):
            sft = step > 0 and step % 10 == 0
            bad = (step - BREAKS) / 5 if kind == "collapsing" and step > BREAKS else 0.0
            bad = min(bad, 1.0)
            row: dict[str, Any] = {"step": step, "phase_kind": "sft" if sft else "rl" * (step > 0)}
            row |= {"bank_nll": 0.1 + 0.005 * rng.random() + 0.3 * bad, "bank_kl": step / 100 + bad}
            if step % EVERY == 0:
                late = 0.36 if kind == "ambiguous" and step == STEPS else 0.6
                row["eval_sampled"] = 0.4 if step == 0 else late * (1 - bad)
            if step and not sft:
                row |= {"reward": 0.5 * (1 - bad), "entropy": 0.3, "grad_norm": rng.random()}
                row |= {"state_healthy_call": 0.5 * (1 - bad), "state_healthy_response": 0.3}
                row |= {"state_text_pollution": 0.2 + 0.5 * bad, "state_collapsed": 0.0}
            log.metrics(row)
            log.probe(
                {"step": step, "slot": slot, "token": token, "mean_logprob": value}
                | {"q05": value - 1, "q50": value, "q95": value / 2, "n": 8}
                for slot in SLOTS
                for token, value in (
                    (RIGHT_TOKEN, base - bad - step / 1000),
                    ("<tool_call>", -5.0 + 4 * bad),
                )
            )
        if finished:
            log.event("finish", step=STEPS, rl_step=36)
        log.commit()
    return path


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """``make_run(kind, seed)`` in ``tmp_path/<kind>/seed<seed>``."""

    def make(kind: str, seed: int, **options: Any) -> Path:
        return write_run(tmp_path / kind / f"seed{seed}", kind, seed, **options)

    return make


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """9 healthy runs, 3 collapsing ones and an ambiguous one, which tests only look at."""
    folder = tmp_path_factory.mktemp("study")
    for kind, count in {"healthy": 9, "collapsing": 3, "ambiguous": 1}.items():
        for seed in range(1, count + 1):
            write_run(folder / kind / f"seed{seed}", kind, seed)
    return folder
