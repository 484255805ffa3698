"""Checkpoints that are whole or absent.

Job: keep ``checkpoints/step_NNNNNN/``. A checkpoint is staged in a hidden folder, fsynced, renamed,
and only then gets its marker ``COMPLETE`` with the sha256 of every file, so a kill at any moment
leaves either a checkpoint or rubbish that is recognised and swept away.
Input: a function that writes the model files, and plain JSON state. Output: directories that
``AutoModelForCausalLM.from_pretrained`` loads.

Left out: what the files mean (the backend's business) and sharded checkpoints.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict

from toolrl_box.durable import fsync, write_atomic, writing
from toolrl_box.errors import CheckpointError

MARKER = "COMPLETE"
STATE = "state.json"
OPTIMIZER_PREFIX = "optimizer_"


def path_of(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step_{step:06d}"


def save(
    run_dir: Path, step: int, write_files: Callable[[Path], None], state: Mapping[str, Any]
) -> Path:
    """Write a checkpoint; raises RunFolderError (the earlier ones are intact) when it cannot."""
    final = path_of(run_dir, step)
    staging = final.with_name(f".{final.name}.tmp")
    with writing(final):
        final.parent.mkdir(exist_ok=True)
        shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(final, ignore_errors=True)  # an incomplete one of the same step
        try:
            staging.mkdir()
            _write(write_files, staging)
            (staging / STATE).write_text(json.dumps(state))
            digests = {path.name: _sha256(path) for path in sorted(staging.iterdir())}
            for name in digests:
                fsync(staging / name)
            fsync(staging)
            os.rename(staging, final)
        except OSError:
            shutil.rmtree(staging, ignore_errors=True)  # it would only keep a full disk full
            raise
        fsync(final.parent)
        _mark(final, digests, thinned=False)
        fsync(final)
    return final


def complete_steps(run_dir: Path) -> list[int]:
    """Steps that have a complete checkpoint, in order."""
    folder = run_dir / "checkpoints"
    return sorted(
        int(path.name.removeprefix("step_"))
        for path in folder.glob("step_*")
        if (path / MARKER).is_file()
    )


def verify(path: Path) -> dict[str, Any]:
    """The checkpoint's state, after every file's checksum has been compared.

    Raises CheckpointError naming the file that is missing or damaged.
    """
    try:
        for name, digest in _marker(path)["files"].items():
            if not (path / name).is_file():
                raise CheckpointError(f"checkpoint {path} is damaged: {name} is missing")
            if _sha256(path / name) != digest:
                raise CheckpointError(f"checkpoint {path} is damaged: {name} has changed")
        state: dict[str, Any] = json.loads((path / STATE).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error
    return state


def latest(run_dir: Path) -> tuple[Path, dict[str, Any], list[str]]:
    """The newest sound checkpoint, its state, and a line for each damaged one passed over."""
    complaints: list[str] = []
    for step in reversed(complete_steps(run_dir)):
        path = path_of(run_dir, step)
        try:
            state = verify(path)
            if _marker(path)["thinned"]:
                raise CheckpointError(f"checkpoint {path} was thinned: it holds no optimiser")
            return path, state, complaints
        except CheckpointError as error:
            complaints.append(str(error))
    detail = f" ({'; '.join(complaints)})" if complaints else ""
    raise CheckpointError(f"{run_dir} has no checkpoint to resume from{detail}")


def sweep(run_dir: Path, step: int) -> None:
    """After a resume from ``step``: remove staging leftovers and whatever came later."""
    folder = run_dir / "checkpoints"
    for path in folder.glob(".step_*.tmp"):
        shutil.rmtree(path, ignore_errors=True)
    with writing(folder):
        for path in folder.glob("step_*"):
            if int(path.name.removeprefix("step_")) > step:
                shutil.rmtree(path)


def thin(run_dir: Path, keep: Collection[int]) -> None:
    """Drop the optimiser files of all checkpoints but those of the steps ``keep`` (two thirds of
    their size); the weights stay, for evaluation and rollback."""
    for step in set(complete_steps(run_dir)).difference(keep):
        path = path_of(run_dir, step)
        try:
            files = _marker(path)["files"]
        except CheckpointError:  # damaged after it was written: no reason to end the run
            continue
        kept = {name: d for name, d in files.items() if not name.startswith(OPTIMIZER_PREFIX)}
        if kept != files:
            with writing(path):
                _mark(path, kept, thinned=True)
                for name in files.keys() - kept.keys():
                    (path / name).unlink(missing_ok=True)


def drop(run_dir: Path, steps: Iterable[int]) -> None:
    """Remove checkpoints; a kill in between leaves staging rubbish, which is swept away."""
    for step in steps:
        path = path_of(run_dir, step)
        with writing(path):
            rubbish = path.with_name(f".{path.name}.tmp")
            os.rename(path, rubbish)
            shutil.rmtree(rubbish)


def _write(write_files: Callable[[Path], None], folder: Path) -> None:
    """safetensors and tokenizers report a full disk in exceptions of their own; what they share
    is Rust's wording."""
    try:
        write_files(folder)
    except Exception as error:
        code = re.search(r"\(os error (\d+)\)", str(error))
        if isinstance(error, OSError) or code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from error


def _mark(path: Path, digests: Mapping[str, str], *, thinned: bool) -> None:
    marker = {"files": dict(digests), "thinned": thinned}
    write_atomic(path / MARKER, json.dumps(marker, indent=2).encode())


class _Marker(TypedDict):
    files: dict[str, str]
    thinned: bool


def _marker(path: Path) -> _Marker:
    try:
        value = json.loads((path / MARKER).read_text())
        return {"files": dict(value["files"]), "thinned": bool(value["thinned"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged: {MARKER} is unreadable") from error


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
