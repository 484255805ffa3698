"""A study: the grid, what is refused, and what happens to finished and failed cells."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from toolrl_box import ablate
from toolrl_box.ablate import Cell, cells, merged, parse_seeds, run_cells
from toolrl_box.errors import ConfigError


def study(tmp_path: Path, **values: object) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_every_arm_runs_under_every_seed_with_its_changes_on_top(tmp_path: Path) -> None:
    path = study(
        tmp_path,
        seeds=[0, 1],
        base={"steps": 4, "grpo": {"lr": 1e-3}},
        arms={"a": {"scheme": "rl"}, "b": {"grpo": {"clip": 0.1}}},
    )
    grid = cells(path, tmp_path / "out")
    assert [(c.arm, c.seed) for c in grid] == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert grid[1].config["grpo"] == {"lr": 1e-3, "clip": 0.1}
    assert grid[3].run_dir == tmp_path / "out" / "b" / "seed1"


def test_lower_sections_are_merged_and_not_replaced() -> None:
    assert merged({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}}) == {"a": {"x": 1, "y": 3}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"arms": {"a": {"grpo": {"lrr": 1}}}}, "arm 'a': unknown key 'grpo.lrr'; did you mean"),
        ({"arm": {}}, "unknown key 'arm'"),
        ({"seeds": [0]}, "'arms' names no arm"),
    ],
)
def test_a_wrong_study_is_refused_before_anything_runs(
    tmp_path: Path, values: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        cells(study(tmp_path, **values), tmp_path / "out")


def test_seeds_are_a_number_or_a_range() -> None:
    assert parse_seeds("3") == [3]
    assert parse_seeds("0-2") == [0, 1, 2]
    with pytest.raises(ConfigError, match="a number or a range such as 0-7, got '2-1'"):
        parse_seeds("2-1")


def test_finished_cells_are_skipped_and_failed_ones_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = [Cell("a", seed, {}, tmp_path / "a" / f"seed{seed}") for seed in range(3)]
    done = grid[0].run_dir
    done.mkdir(parents=True)
    (done / "journal.jsonl").write_text('{"event": "finish"}\n')
    (done / "config.yaml").write_text("steps: 1\n")
    ran: list[int] = []

    def fake(cell: Cell) -> int:
        ran.append(cell.seed)
        return 2 if cell.seed == 2 else 0

    monkeypatch.setattr(ablate, "_run", fake)
    failed = run_cells(grid, jobs=1, told=lambda cell, news: None)
    assert ran == [1, 2]
    assert [(cell.seed, code) for cell, code in failed] == [(2, 2)]
