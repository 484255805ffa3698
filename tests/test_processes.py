"""Two real processes under torchrun (gloo): every scheme ends as with one, and losses are told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from toolrl_box import checkpoints, lab
from toolrl_box.config import load
from toolrl_box.errors import ConfigError
from toolrl_box.runlog import RunLog
from toolrl_box.schemes import SCHEMES
from toolrl_box.team import Team, join

# One mini-batch a step: TRL deals a step's rows out to mini-batches on each process by itself.
SETTINGS = {
    "steps": 3,
    "rewards": {"format_share": 1},
    "env": {"train_tasks": 8, "eval_tasks": 4},
    "grpo": {"prompts_per_step": 2, "group_size": 4, "mini_batches": 1, "lr": 1e-3},
    "sft": {"batch_size": 4},
    "probe": {"episodes": 4},
    "eval": {"every": 3, "ood": False},
    "rollout": {"max_messages": 3, "max_new_tokens": 8},
}
KNOBS: dict[str, dict[str, object]] = {
    "interleaved": {"every": 1, "updates": 2},
    "erroneous": {"lengths": [2, 1], "updates": 2},
    "reflection": {"lengths": [2, 1], "updates": 2},
    "sft": {"updates": 2, "every": 1},
    "sft_then_rl": {"updates": 2},
    "mixed": {"weight": 0.5},
    "off_policy": {"count": 1},
    "hint": {"count": 1},
    "icrl": {"shots": [1, 0]},
}


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def torchrun(folder: Path, configs: list[Path]) -> subprocess.CompletedProcess[str]:
    script = Path(__file__).with_name("processes.py")
    command = [*TORCHRUN, str(script), str(folder), *map(str, configs)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def rank(pid: int) -> str:
    variables = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(pair.partition("=")[::2] for pair in variables)["RANK"]


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)


def written(folder: Path, name: str, values: dict[str, object]) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def runs(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``two`` and ``one`` hold the same runs, by two processes and by one."""
    folder = tmp_path_factory.mktemp("processes")
    paths = []
    for scheme in (*SCHEMES, "stop"):
        name = "interleaved" if scheme == "stop" else scheme
        values = SETTINGS | {"model": str(tiny_base)}
        paths.append(
            written(folder, scheme, values | {"scheme": {"name": name, **KNOBS.get(name, {})}})
        )
    done = torchrun(folder / "two", paths)
    assert done.returncode == 0, done.stderr[-3000:]
    for path in paths:
        assert lab.start(load(path), folder / "one" / path.stem) == "done"
    return folder


@pytest.mark.parametrize("scheme", [*SCHEMES, "stop"])
def test_two_processes_end_as_one_does_up_to_the_order_of_sums(runs: Path, scheme: str) -> None:
    two, one = (RunLog.open(runs / number / scheme) for number in ("two", "one"))
    last = int(one.metrics()["step"].max())
    ends = [
        load_file(checkpoints.path_of(log.path, last) / "model.safetensors") for log in (two, one)
    ]
    start = load_file(checkpoints.path_of(one.path, 0) / "model.safetensors")
    moved = max(float((ends[1][k] - start[k]).abs().max()) for k in start)
    apart = max(float((ends[0][k] - ends[1][k]).abs().max()) for k in start)
    assert moved > 1e-4
    assert apart < 0.02 * moved
    for column in ("reward", "sft_tokens", "sampled_tokens"):
        if column in one.metrics():
            pairs = zip(two.metrics()[column], one.metrics()[column], strict=True)
            assert [pytest.approx(b, nan_ok=True) for _, b in pairs] == list(two.metrics()[column])
    frame = one.metrics()
    for step in frame.loc[frame["phase_kind"] == "rl", "step"][:2]:
        ids = [[list(row) for row in log.rollouts(step)["token_ids"]] for log in (two, one)]
        assert ids[0] == ids[1]


def test_a_run_says_how_many_processes_it_had_and_is_resumed_with_as_many(runs: Path) -> None:
    folder = runs / "two" / "rl"
    assert RunLog.open(folder).config["processes"] == 2
    assert RunLog.open(folder).environment["distributed_type"] == "MULTI_CPU"
    with pytest.raises(ConfigError, match=r"processes = 2, but 1 was started; .*torchrun --nproc"):
        join(lab.config_of(folder).processes)


def test_a_lost_process_ends_the_others_with_one_line_and_the_run_goes_on(
    tiny_base: Path, tmp_path: Path
) -> None:
    values = SETTINGS | {"model": str(tiny_base), "scheme": "rl", "steps": 400}
    config, run_dir = written(tmp_path, "config", values), tmp_path / "run"
    journal = run_dir / "journal.jsonl"
    command = [*TORCHRUN, "-m", "toolrl_box.cli", "run"]
    begun = subprocess.Popen(
        [*command, "--config", str(config), "--output-dir", str(run_dir)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: checkpoints.complete_steps(run_dir)[1:])
    (second,) = (pid for pid in children(begun.pid) if rank(pid) == "1")
    os.kill(second, signal.SIGKILL)
    _, told = begun.communicate(timeout=120)
    assert begun.returncode != 0
    assert "error: process 0 of 2 has lost contact with another one" in told
    again = subprocess.Popen(
        [*command, "--resume", str(run_dir)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    steps = len(checkpoints.complete_steps(run_dir))
    wait_for(lambda: len(checkpoints.complete_steps(run_dir)) > steps)
    assert journal.read_text().count('"start"') == 1
    again.send_signal(signal.SIGTERM)
    again.wait(timeout=120)
    with RunLog.resume(run_dir) as log:  # nobody holds it any more
        assert log.path == run_dir


def test_batches_that_cannot_be_shared_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    config = load(sets=[f"model={tiny_base}", "sft.batch_size=3", "env.train_tasks=8"])
    with pytest.raises(ConfigError, match=r"2 processes cannot share sft\.batch_size \(3\)"):
        lab.start(config, tmp_path / "run", team=Team(0, 2))
    assert not (tmp_path / "run").exists()


def test_hints_by_an_llm_need_a_single_process(tiny_base: Path, tmp_path: Path) -> None:
    judge = ["reflection.judge.base_url=http://127.0.0.1:9/v1", "reflection.judge.model=m"]
    config = load(
        sets=[f"model={tiny_base}", "scheme=hint", "scheme.source=llm", "env.train_tasks=8", *judge]
    )
    with pytest.raises(ConfigError, match="hints from an LLM are written by one process"):
        lab.start(config, tmp_path / "run", team=Team(0, 2))


def test_without_torchrun_a_process_is_alone() -> None:
    assert join().size == 1
    assert join().share("word") == "word"
    assert join().gather("word") == ["word"]
