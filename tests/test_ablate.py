"""A study: the grid, what is refused, and what happens to finished, failed and stopped cells."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from toolrl_box import cli, launchers
from toolrl_box.ablate import Cell, cells, check_output, merged, run_cells
from toolrl_box.errors import ConfigError, MissingExtraError, RunFolderError
from toolrl_box.runlog import RunLog
from toolrl_box.seeds import parse_seeds


def study(tmp_path: Path, **values: object) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def finish(cell: Cell) -> None:
    cell.run_dir.mkdir(parents=True, exist_ok=True)
    (cell.run_dir / "journal.jsonl").write_text('{"event": "finish"}\n')
    (cell.run_dir / "config.yaml").write_text("steps: 1\n")


def grid_of(tmp_path: Path, count: int) -> list[Cell]:
    return [
        Cell("a", seed, {"seed": seed}, tmp_path / "a" / f"seed{seed}") for seed in range(count)
    ]


def manifest(output: Path) -> dict[int, dict[str, Any]]:
    return {entry["seed"]: entry for entry in json.loads((output / "study.json").read_text())}


def quiet(cell: Cell, news: str) -> None:
    """Nobody is told."""


# --- the grid ---------------------------------------------------------------------------------


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
    assert [c.seed for c in cells(path, tmp_path, [5])] == [5, 5]


def test_a_grid_makes_every_combination_of_any_settings(tmp_path: Path) -> None:
    path = study(
        tmp_path,
        base={"grpo": {"clip": 0.1}},
        arms={"plain": {"scheme": "rl"}, "mixed": {"scheme": {"name": "interleaved", "every": 4}}},
        grid={"grpo.lr": [1e-3, 2e-4], "format": ["hermes", "xml"]},
    )
    grid = cells(path, tmp_path / "out")
    assert [cell.arm for cell in grid[:4]] == [
        "plain,lr=0.001,format=hermes",
        "plain,lr=0.001,format=xml",
        "plain,lr=0.0002,format=hermes",
        "plain,lr=0.0002,format=xml",
    ]
    assert len(grid) == len({cell.run_dir for cell in grid}) == 8
    assert grid[7].config["grpo"] == {"clip": 0.1, "lr": 2e-4}
    assert grid[7].config["scheme"] == {"name": "interleaved", "every": 4}


def test_a_grid_alone_needs_no_arms_and_may_vary_schemes_and_models(tmp_path: Path) -> None:
    schemes = ["rl", {"name": "interleaved", "every": 2}]
    path = study(tmp_path, grid={"scheme": schemes, "model.name": ["pocket", "../base b"]})
    grid = cells(path, tmp_path / "out")
    assert [cell.arm for cell in grid] == [
        "scheme=rl,name=pocket",
        "scheme=rl,name=base-b",
        "scheme=interleaved-every=2,name=pocket",
        "scheme=interleaved-every=2,name=base-b",
    ]
    assert grid[1].config == {"scheme": "rl", "model": {"name": "../base b"}, "seed": 0}


def test_lower_sections_are_merged_and_not_replaced() -> None:
    assert merged({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}}) == {"a": {"x": 1, "y": 3}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"arms": {"a": {"grpo": {"lrr": 1}}}}, "arm 'a': unknown key 'grpo.lrr'; did you mean"),
        ({"arms": {"a": {"scheme": "rll"}}}, "arm 'a': unknown scheme 'rll'; did you mean 'rl'"),
        ({"arms": {"a": {"format": "xlm"}}}, "arm 'a': unknown format 'xlm'; did you mean 'xml'"),
        ({"arms": {"a": {"scheme": {"name": "rl", "evry": 1}}}}, "unknown key 'scheme.evry'"),
        ({"arm": {}}, "unknown key 'arm'; did you mean 'arms'"),
        ({"seeds": [0]}, "'arms' names no arm, and there is no 'grid'"),
        ({"seeds": 3, "arms": {"a": {}}}, "seeds = 3; it takes a list of numbers"),
        ({"grid": {"grpo.lr": 1e-3}}, "grid.grpo.lr takes a list of values, got 0.001"),
        ({"grid": {"grpo.lrr": [1e-3]}}, "arm 'lrr=0.001': unknown key 'grpo.lrr'; did you mean"),
        ({"grid": {"grpo.lr": [1e-3, 0.001]}}, "two cells would share the folder"),
    ],
)
def test_a_wrong_study_is_refused_before_anything_runs(
    tmp_path: Path, values: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        cells(study(tmp_path, **values), tmp_path / "out")


def test_seeds_are_numbers_and_ranges() -> None:
    assert parse_seeds("3", "--seeds") == [3]
    assert parse_seeds("0-2", "--seeds") == [0, 1, 2]
    assert parse_seeds("0-2,7,1", "--seeds") == [0, 1, 2, 7]
    for wrong in ("2-1", "", "a", "1-", "-1", "1,,2"):
        with pytest.raises(ConfigError, match=f"a number or a range such as 0-7, got '{wrong}'"):
            parse_seeds(wrong, "--seeds")


# --- running ----------------------------------------------------------------------------------


def test_finished_cells_are_skipped_and_failed_ones_reported_with_their_cause(
    tmp_path: Path,
) -> None:
    grid = grid_of(tmp_path, 3)
    finish(grid[0])
    ran: list[str] = []

    def launch(command: Sequence[str], log_file: Path, _: launchers.Asked) -> int:
        ran.append(log_file.stem)
        if log_file.stem == "seed2":
            log_file.write_text("step 1\nerror: the disk is full\nbye\n")
            return 2
        finish(grid[1])
        return 0

    failed = run_cells(grid, tmp_path, 1, launch, quiet)
    assert ran == ["seed1", "seed2"]
    assert [(cell.seed, code) for cell, code in failed] == [(2, 2)]
    entries = manifest(tmp_path)
    assert [entries[seed]["state"] for seed in range(3)] == ["finished", "finished", "failed"]
    assert entries[2]["cause"] == "exit code 2: error: the disk is full"
    assert entries[2]["run_dir"] == "a/seed2"


def test_a_cell_that_was_begun_is_resumed_and_a_new_one_started(tmp_path: Path) -> None:
    grid = grid_of(tmp_path, 2)
    finish(grid[0])
    (grid[0].run_dir / "journal.jsonl").write_text('{"event": "best", "step": 0, "score": 0}\n')
    commands: list[Sequence[str]] = []

    def launch(command: Sequence[str], *_: object) -> int:
        commands.append(command[3:])
        return 0

    run_cells(grid, tmp_path, 1, launch, quiet)
    assert commands[0] == ["run", "--no-report", "--resume", str(grid[0].run_dir)]
    assert commands[1][:3] == ["run", "--no-report", "--config"]
    assert yaml.safe_load(grid[1].config_file.read_text()) == {"seed": 1}


def test_jobs_run_side_by_side(tmp_path: Path) -> None:
    together = threading.Barrier(2, timeout=10)

    def launch(*_: object) -> int:
        together.wait()
        return 0

    assert run_cells(grid_of(tmp_path, 4), tmp_path, 2, launch, quiet) == []


def test_once_asked_to_stop_no_cell_is_begun_and_none_is_called_failed(tmp_path: Path) -> None:
    asked = threading.Event()

    def launch(*_: object) -> int:
        asked.set()
        return 130

    failed = run_cells(grid_of(tmp_path, 3), tmp_path, 1, launch, quiet, asked.is_set)
    assert len(failed) == 3
    states = [entry["state"] for entry in manifest(tmp_path).values()]
    assert states == ["stopped", "waiting", "waiting"]


def test_an_output_folder_is_gone_on_with_only_when_asked_and_only_with_the_same_settings(
    tmp_path: Path,
) -> None:
    path = study(tmp_path, arms={"a": {"steps": 3}})
    output = tmp_path / "out"
    grid = cells(path, output)
    check_output(grid, output, resume=False)
    run_cells(grid, output, 1, lambda *_: 0, quiet)
    with pytest.raises(
        RunFolderError, match="holds 1 of these 1 runs already: go on with --resume"
    ):
        check_output(grid, output, resume=False)
    check_output(grid, output, resume=True)
    changed = cells(study(tmp_path, arms={"a": {"steps": 4}}), output)
    with pytest.raises(RunFolderError, match="holds other settings than the experiment has now"):
        check_output(changed, output, resume=True)


def test_a_local_process_returns_its_exit_code_and_its_words(tmp_path: Path) -> None:
    log = tmp_path / "log"
    program = "import os, sys; print(os.environ['OMP_NUM_THREADS']); sys.exit(7)"
    assert launchers.local([sys.executable, "-c", program], log, lambda: False) == 7
    assert log.read_text() == "1\n"


PATIENT = """
import signal, sys, time
def stop(number, frame):
    print("saved", number, flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(60)
"""


def test_a_process_is_interrupted_once_and_waited_for(tmp_path: Path) -> None:
    log = tmp_path / "log"
    ready: Callable[[], bool] = lambda: log.exists() and "ready" in log.read_text()  # noqa: E731
    assert launchers.local([sys.executable, "-c", PATIENT], log, ready) == 143
    assert log.read_text() == f"ready\nsaved {signal.SIGTERM.value}\n"


def experiment(tmp_path: Path, tiny_base: Path) -> Path:
    """Two cells of one supervised update, of which one names a model that is not there."""
    base = {
        "scheme": {"name": "sft", "updates": 1, "every": 1},
        "env": {"train_tasks": 2, "eval_tasks": 1},
        "rollout": {"max_new_tokens": 4, "max_messages": 2},
        "probe": {"episodes": 1},
        "eval": {"ood": False},
    }
    arms = {"good": {"model": str(tiny_base)}, "bad": {"model": str(tmp_path)}}
    return study(tmp_path, base=base, arms=arms)


def ablate(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["ablate", *map(str, arguments)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def check_study(output: Path, said: str) -> None:
    assert "1 of 2 runs finished" in said
    assert f"failed with exit code 2: {output}/bad/seed0: error: " in said
    assert RunLog.open(output / "good" / "seed0").journal()[-1]["event"] == "finish"
    entries = {e["arm"]: e for e in json.loads((output / "study.json").read_text())}
    assert entries["good"]["state"] == "finished"
    assert "config.json is missing" in entries["bad"]["cause"]


def test_a_study_runs_resumes_and_reports_what_failed(
    tmp_path: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = experiment(tmp_path, tiny_base), tmp_path / "out"
    assert ablate(path, "--output-dir", output, "--jobs", "2") == 1
    check_study(output, capsys.readouterr().out)
    assert ablate(path, "--output-dir", output) == cli.USER_ERROR
    assert "go on with --resume" in capsys.readouterr().err
    assert ablate(path, "--output-dir", output, "--resume") == 1
    said = capsys.readouterr().out
    assert "good/seed0: runs" not in said
    assert "bad/seed0: failed with exit code 2" in said


def test_without_ray_its_launcher_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'toolrl-box\[ray\]'"):
        launchers.ray_launcher()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed (extra `ray`)")
@pytest.mark.filterwarnings("default")  # Ray's own
def test_the_same_study_runs_on_a_real_local_ray_cluster(
    tmp_path: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray

    path, output = experiment(tmp_path, tiny_base), tmp_path / "out"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        words = ("--jobs", "2", "--launcher", "ray")
        assert ablate(path, "--output-dir", output, *words) == 1
        check_study(output, capsys.readouterr().out)
        log = tmp_path / "log"
        ready: Callable[[], bool] = lambda: log.exists() and "ready" in log.read_text()  # noqa: E731
        launch = launchers.ray_launcher()
        assert launch([sys.executable, "-c", PATIENT], log, ready) in (143, -signal.SIGTERM)
        deadline = time.monotonic() + 20
        while "saved" not in log.read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert "saved" in log.read_text()
    finally:
        ray.shutdown()
