"""Writing that survives a kill, a full disk and a second process.

Job: the few primitives under the run log and the checkpoints. Input: paths and bytes. Output:
files that are either whole or absent, and a folder lock. Left out: what the files mean.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, NoReturn

import yaml

from toolrl_box.errors import RunFolderError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals (full disk, no permission) into one clear line."""
    try:
        yield
    except OSError as error:
        raise RunFolderError(
            f"cannot write {path}: {error.strerror}; what was committed before is intact"
        ) from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn a missing or damaged file into one clear line."""
    try:
        yield
    except FileNotFoundError as error:
        raise RunFolderError(f"{path} is missing") from error
    except (OSError, ValueError, yaml.YAMLError) as error:  # pyarrow's errors are ValueErrors too
        reason = " ".join(str(error).split())
        raise RunFolderError(f"{path} is damaged: {reason}") from error


def write_atomic(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replace ``path`` by ``data`` as a whole: readers see the old file or the new one.

    ``durable`` waits until the disk has the bytes; the folder's entry is the caller's to
    :func:`fsync`. Raises OSError; the old file is then untouched.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)  # half a file would only keep the full disk full
        raise


def append_line(file: FileIO, value: Mapping[str, Any], path: Path) -> None:
    """Append ``value`` as one JSON line, whole or not at all.

    ``file`` is unbuffered, so the line is with the operating system when this returns. Raises
    RunFolderError; a disk that filled half-way leaves no half line.
    """
    data = json.dumps(value).encode() + b"\n"
    size = os.fstat(file.fileno()).st_size
    with writing(path):
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise


def fsync(path: Path) -> None:
    """Make a file's bytes, or a folder's entries, survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def acquire(folder: Path) -> FileIO:
    """Lock ``folder`` for this process until the returned file is closed.

    The kernel frees it when the process ends, however it ends: a stale lock cannot exist.
    Raises RunFolderError naming the process that holds it.
    """
    with writing(folder):
        file = FileIO(folder / "lock", "a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _refuse(folder, file)
    with writing(folder):
        os.ftruncate(file.fileno(), 0)
        file.write(str(os.getpid()).encode())
    return file


def check_unlocked(folder: Path) -> None:
    """Raise RunFolderError when a living process holds the lock; creates and changes nothing."""
    if not (folder / "lock").is_file():
        return
    with FileIO(folder / "lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            _refuse(folder, file)


def _refuse(folder: Path, file: FileIO) -> NoReturn:
    file.seek(0)
    pid = (file.read(32) or b"").decode() or "unknown"
    file.close()
    raise RunFolderError(f"{folder} is in use by process {pid}: two runs cannot share a folder")
