"""The examples of the documentation run as they stand."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import torch

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_trls_own_grpo_is_ended_by_its_guard(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trainer = load("grpo_with_guard").main(str(tmp_path / "run"))
    probed = [row for row in trainer.state.log_history if "collapse/alarm" in row]
    assert trainer.state.global_step < trainer.args.max_steps
    assert [row["step"] for row in probed] == list(range(trainer.state.global_step + 1))
    assert probed[-1]["collapse/alarm"] == 2.0
    # TRL's own figures of a step are in the same record.
    assert all({"reward", "loss"} < row.keys() for row in probed[1:])
