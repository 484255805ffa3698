"""From paths to records: finds the files, chooses a reader for each, and reads them in order.

Input: files and folders that the user named. Output: :class:`Logs`, and from it the records.
Nothing outside the given paths is opened: symbolic links inside a folder are not followed (one that
leads outside is named as damage; what it names inside is found at its own place), and a path that
stands in a log is only text. Files come in natural order of their names (``9.jsonl`` before
``10.jsonl``), which is the order of the steps in every format that has one file per step.

Left out: what is inside a checkpoint (only its name tells a step), hidden files and folders.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from toolrl_box.diagnose.readers import MAX_RECORD, READERS, Reader, Source
from toolrl_box.diagnose.readers._open import UNREADABLE, head, why
from toolrl_box.diagnose.records import Checkpoint, Damage, Origin, Record
from toolrl_box.errors import DataError, lookup

# transformers: checkpoint-12; verl: global_step_12; ours and prime-rl: checkpoints/step_12.
_CHECKPOINT = re.compile(r"(?:checkpoint-|global_step_?|(?P<ours>step_))(\d{1,12})")
_CHECKPOINT_FOLDERS = ("checkpoints", "ckpt", "weights")
_READ_IN_CHECKPOINT = "trainer_state.json"
_NAMED = 5
_KEPT = 64  # of a file's head, to tell a list from lines


@dataclass(frozen=True, slots=True)
class Logs:
    """What was found: each file with its reader in the order of reading, the checkpoints beside
    them, what was refused, and the files that no reader knows."""

    files: tuple[tuple[Reader, Source], ...]
    checkpoints: tuple[Checkpoint, ...] = ()
    damage: tuple[Damage, ...] = ()
    unread: tuple[Path, ...] = ()

    def records(self) -> Iterator[Record]:
        """Checkpoints, damage, then the records of each file. Never raises for what files hold."""
        yield from self.checkpoints
        yield from self.damage
        for reader, source in self.files:
            yield from reader.read(source)


def read(paths: Iterable[Path | str], forced: str | None = None) -> Iterator[Record]:
    """All records of the logs at ``paths``; see :func:`detect` for what it raises, at once."""
    return detect(paths, forced).records()


def detect(paths: Iterable[Path | str], forced: str | None = None, limit: int = MAX_RECORD) -> Logs:
    """Look at the paths and choose a reader for every file.

    ``forced`` names the format of all files; files found in a folder are then those with an ending
    that the format has. ``limit``: see :data:`readers.MAX_RECORD`. Raises DataError when a path
    does not exist or no file is of a known format, ConfigError for an unknown format.
    """
    reader = None if forced is None else lookup("log format", forced, READERS)
    found = _Found(limit)
    chosen: dict[str, list[Source]] = {}
    unread = []
    for path in paths:
        for source, given in found.add(Path(path)):
            name = _choose(source, reader, given)
            if name is None:
                unread.append(source.path)
            else:
                # There may be ten thousand files: their heads are not kept.
                chosen.setdefault(name, []).append(replace(source, head=source.head[:_KEPT]))
    files = [
        (READERS[name], source)
        for name, sources in chosen.items()
        for source in READERS[name].select(sorted(sources, key=_order))
    ]
    if not files:
        raise DataError(_nothing(unread, found.damage, forced))
    return Logs(
        files=tuple(sorted(files, key=lambda item: _order(item[1]))),
        checkpoints=tuple(sorted(found.checkpoints, key=lambda item: (item.step, item.path))),
        damage=tuple(found.damage),
        unread=tuple(unread),
    )


def _choose(source: Source, forced: Reader | None, given: bool) -> str | None:
    if forced is not None:
        return forced.name if given or source.suffix in forced.suffixes else None
    return next((name for name, reader in READERS.items() if reader.fits(source)), None)


def _nothing(unread: Sequence[Path], damage: Sequence[Damage], forced: str | None) -> str:
    names = ", ".join(str(path) for path in unread[:_NAMED])
    more = f" and {len(unread) - _NAMED} more" if len(unread) > _NAMED else ""
    seen = f"files seen: {names}{more}" if unread else "no file was seen"
    refused = f"; refused: {damage[0].origin.file} ({damage[0].reason})" if damage else ""
    asked = f"no log of format '{forced}'" if forced else "no log of a known format"
    return f"{asked}: {seen}{refused}; formats that --format can name: {', '.join(READERS)}"


def _order(source: Source) -> tuple[object, ...]:
    return _natural(source.path)


def _natural(path: Path) -> tuple[tuple[tuple[int, int | str], ...], ...]:
    """A sort key in which numbers count as numbers: ``9.jsonl`` before ``10.jsonl``."""
    return tuple(
        tuple(
            (0, int(piece)) if piece.isdecimal() and len(piece) < 100 else (1, piece)
            for piece in re.split(r"(\d+)", part)
            if piece
        )
        for part in path.parts
    )


@dataclass
class _Found:
    """Goes through folders. Gives each file once, though it may be given twice, and whether the
    user named it; notes checkpoints and what is refused."""

    limit: int
    checkpoints: list[Checkpoint] = field(default_factory=list)
    damage: list[Damage] = field(default_factory=list)
    _seen: set[Path] = field(default_factory=set)

    def add(self, path: Path) -> Iterator[tuple[Source, bool]]:
        """The files at ``path``. Raises DataError when there is nothing there."""
        try:
            is_folder = stat.S_ISDIR(path.stat().st_mode)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {why(error)}") from None
        if is_folder:
            yield from self._folder(path, (path.name,), path.resolve())
        else:
            yield from self._file(path, (path.name,), given=True)

    def _folder(
        self, folder: Path, inside: tuple[str, ...], root: Path
    ) -> Iterator[tuple[Source, bool]]:
        if (step := _checkpoint_step(folder)) is not None:
            self.checkpoints.append(Checkpoint(folder, step))
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: _natural(Path(entry.name)))
        except OSError as error:
            self.damage.append(Damage(Origin(folder, 0), f"cannot be listed: {why(error)}"))
            return
        for entry in entries:
            path, within = folder / entry.name, (*inside, entry.name)
            if entry.name.startswith("."):
                continue
            if entry.is_symlink():
                self._link(path, root)
            elif entry.is_dir(follow_symlinks=False):
                if step is None:
                    yield from self._folder(path, within, root)
            elif step is None or entry.name == _READ_IN_CHECKPOINT:
                yield from self._file(path, within, given=False)

    def _link(self, path: Path, root: Path) -> None:
        try:
            outside = not path.resolve(strict=True).is_relative_to(root)
        except (OSError, RuntimeError) as error:  # RuntimeError: a circle, before Python 3.13
            self.damage.append(Damage(Origin(path, 0), f"a broken symbolic link: {error}"))
            return
        if outside:
            reason = "a symbolic link that leads outside the given paths is not followed"
            self.damage.append(Damage(Origin(path, 0), reason))

    def _file(
        self, path: Path, inside: tuple[str, ...], *, given: bool
    ) -> Iterator[tuple[Source, bool]]:
        real = path.resolve()
        if real in self._seen:
            return
        self._seen.add(real)
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                self.damage.append(Damage(Origin(path, 0), "not a regular file"))
                return
            source = Source(path, inside, head(path), self.limit)
        except UNREADABLE as error:
            self.damage.append(Damage(Origin(path, 0), f"cannot be opened: {why(error)}"))
            return
        yield source, given


def _checkpoint_step(folder: Path) -> int | None:
    match = _CHECKPOINT.fullmatch(folder.name)
    if match is None or (match["ours"] and folder.parent.name not in _CHECKPOINT_FOLDERS):
        return None
    return int(match[2])
