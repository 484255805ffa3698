"""A checkpoint is whole, or it is recognised as rubbish and passed over."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from toolrl_box import checkpoints
from toolrl_box.checkpoints import MARKER, OPTIMIZER_PREFIX, STATE
from toolrl_box.errors import CheckpointError, RunFolderError

WEIGHTS = "model.safetensors"
MOMENTS = f"{OPTIMIZER_PREFIX}rl.safetensors"


def files(step: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / WEIGHTS).write_bytes(b"w" * 100 + bytes([step]))
        (folder / MOMENTS).write_bytes(b"m" * 200 + bytes([step]))

    return write


def save(run_dir: Path, *steps: int) -> list[Path]:
    return [checkpoints.save(run_dir, step, files(step), {"step": step}) for step in steps]


def test_a_saved_checkpoint_comes_back(tmp_path: Path) -> None:
    (path,) = save(tmp_path, 5)
    assert path == checkpoints.path_of(tmp_path, 5)
    assert path.name == "step_000005"
    assert checkpoints.verify(path) == {"step": 5}
    assert checkpoints.latest(tmp_path) == (path, {"step": 5}, [])


def test_the_marker_comes_last_and_names_every_file(tmp_path: Path) -> None:
    (path,) = save(tmp_path, 5)
    marker = json.loads((path / MARKER).read_text())
    assert set(marker["files"]) == {WEIGHTS, MOMENTS, STATE}
    assert {p.name for p in path.iterdir()} == {*marker["files"], MARKER}
    newest = max(path.iterdir(), key=lambda p: p.stat().st_mtime_ns)
    assert newest.name == MARKER


def test_the_newest_wins(tmp_path: Path) -> None:
    *_, last = save(tmp_path, 2, 10, 9)
    assert checkpoints.complete_steps(tmp_path) == [2, 9, 10]
    assert checkpoints.latest(tmp_path)[0] == checkpoints.path_of(tmp_path, 10) != last


def test_what_a_kill_leaves_behind_is_not_a_checkpoint(tmp_path: Path) -> None:
    good, unmarked = save(tmp_path, 1, 2)
    (unmarked / MARKER).unlink()  # killed between the rename and the marker
    staging = tmp_path / "checkpoints" / ".step_000003.tmp"
    staging.mkdir()  # killed while the files were written
    (staging / WEIGHTS).write_bytes(b"half")
    assert checkpoints.complete_steps(tmp_path) == [1]
    assert checkpoints.latest(tmp_path)[0] == good
    checkpoints.sweep(tmp_path, 1)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step_000001"]


def test_saving_again_replaces_what_a_kill_left_behind(tmp_path: Path) -> None:
    (path,) = save(tmp_path, 2)
    (path / MARKER).unlink()
    (path / "stray").write_text("x")
    staging = path.with_name(f".{path.name}.tmp")
    staging.mkdir()
    (staging / "stray").write_text("x")
    save(tmp_path, 2)
    assert checkpoints.verify(path) == {"step": 2}
    assert not (path / "stray").exists()
    assert not staging.exists()


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("call", ["rename", "replace", "mkdir"])
def test_a_kill_at_any_moment_keeps_the_earlier_checkpoint(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (earlier,) = save(tmp_path, 1)

    def kill(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, call, kill)
        with pytest.raises(Killed):
            save(tmp_path, 2)
    assert checkpoints.latest(tmp_path)[0] == earlier
    save(tmp_path, 2)
    assert checkpoints.complete_steps(tmp_path) == [1, 2]


def test_sweeping_removes_what_came_later_and_nothing_else(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, 4)
    checkpoints.sweep(tmp_path, 2)
    assert checkpoints.complete_steps(tmp_path) == [1, 2]
    checkpoints.sweep(tmp_path, 2)
    assert checkpoints.complete_steps(tmp_path) == [1, 2]
    checkpoints.sweep(tmp_path, -1)
    assert checkpoints.complete_steps(tmp_path) == []


def test_sweeping_a_run_without_checkpoints_is_nothing(tmp_path: Path) -> None:
    checkpoints.sweep(tmp_path, 0)
    assert checkpoints.complete_steps(tmp_path) == []


@pytest.mark.parametrize("name", [WEIGHTS, MOMENTS, STATE])
def test_a_flipped_bit_is_found_and_the_file_named(name: str, tmp_path: Path) -> None:
    (path,) = save(tmp_path, 1)
    data = bytearray((path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (path / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=f"step_000001 is damaged: {name} has changed"):
        checkpoints.verify(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    (path,) = save(tmp_path, 1)
    (path / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=f"damaged: {WEIGHTS} is missing"):
        checkpoints.verify(path)


@pytest.mark.parametrize("marker", ["", "{", "[]", "{}", '{"files": 3}', '"text"'])
def test_a_damaged_marker_is_told(marker: str, tmp_path: Path) -> None:
    (path,) = save(tmp_path, 1)
    (path / MARKER).write_text(marker)
    with pytest.raises(CheckpointError, match=f"step_000001 is damaged: {MARKER} is unreadable"):
        checkpoints.verify(path)


def test_damaged_checkpoints_are_passed_over_with_a_complaint(tmp_path: Path) -> None:
    good, cut, unreadable = save(tmp_path, 1, 2, 3)
    (cut / WEIGHTS).write_bytes(b"w")
    (unreadable / MARKER).write_text("{")
    path, state, complaints = checkpoints.latest(tmp_path)
    assert (path, state) == (good, {"step": 1})
    assert len(complaints) == 2
    assert f"step_000003 is damaged: {MARKER} is unreadable" in complaints[0]
    assert f"step_000002 is damaged: {WEIGHTS} has changed" in complaints[1]


def test_no_sound_checkpoint_is_one_line_with_every_reason(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no checkpoint to resume from$"):
        checkpoints.latest(tmp_path)
    (path,) = save(tmp_path, 1)
    (path / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"resume from \(checkpoint .* is missing\)$"):
        checkpoints.latest(tmp_path)


def test_thinning_keeps_the_weights_of_all_and_the_moments_of_the_chosen(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3)
    checkpoints.thin(tmp_path, keep=(2, 3))
    checkpoints.thin(tmp_path, keep=(2, 3))
    for step in (1, 2, 3):
        path = checkpoints.path_of(tmp_path, step)
        assert checkpoints.verify(path) == {"step": step}
        assert (path / WEIGHTS).is_file()
        assert (path / MOMENTS).is_file() == (step > 1)


def test_a_thinned_checkpoint_is_not_resumed_from(tmp_path: Path) -> None:
    first, second = save(tmp_path, 1, 2)
    checkpoints.thin(tmp_path, keep=(2,))
    shutil.rmtree(second)
    with pytest.raises(CheckpointError, match=f"{first} was thinned: it holds no optimiser"):
        checkpoints.latest(tmp_path)


def test_a_kill_while_thinning_leaves_a_sound_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = save(tmp_path, 1, 2)

    def kill(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", kill)
        with pytest.raises(Killed):
            checkpoints.thin(tmp_path, keep=(2,))
    assert checkpoints.verify(first) == {"step": 1}


def test_dropped_checkpoints_are_gone_and_a_kill_leaves_what_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, 2, 3)
    checkpoints.drop(tmp_path, [2])
    assert checkpoints.complete_steps(tmp_path) == [1, 3]

    def kill(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", kill)
        with pytest.raises(Killed):
            checkpoints.drop(tmp_path, [1])
    assert checkpoints.complete_steps(tmp_path) == [3]
    checkpoints.sweep(tmp_path, step=3)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_000003"]


def test_a_full_disk_is_one_line_and_leaves_no_debris(tmp_path: Path) -> None:
    save(tmp_path, 1)

    def full(folder: Path) -> None:
        (folder / WEIGHTS).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RunFolderError, match="No space left on device; what was committed"):
        checkpoints.save(tmp_path, 2, full, {})
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_000001"]
    assert checkpoints.complete_steps(tmp_path) == [1]
