"""A user's corpus and questions for the search world, as JSON lines.

    {"id": "d1", "text": "Oslo is the capital of Norway."}                    corpus
    {"id": "q1", "question": "What is the capital of Norway?", "answers": ["Oslo"]}  questions

Input: paths. Output: texts and :class:`Question`. Every fault is a DataError that names file and
line; further keys are ignored, blank lines too.

Left out: other layouts, compressed files, and corpora that do not fit into memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolrl_box.errors import DataError


@dataclass(frozen=True, slots=True)
class Question:
    id: str
    question: str
    answers: tuple[str, ...]


def read_corpus(path: Path) -> list[str]:
    """The texts of ``{"id": …, "text": …}`` lines. Raises DataError naming file and line."""
    return [_text(row, "text", where) for where, row in _rows(path)]


def read_questions(path: Path) -> list[Question]:
    """``{"id": …, "question": …, "answers": [...]}`` lines. Raises DataError naming file and
    line."""
    return [
        Question(_id(row, where), _text(row, "question", where), _answers(row, where))
        for where, row in _rows(path)
    ]


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file and line, object) of every line that is not blank."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{where}: must be a JSON object, not {line[:40]!r}")
        name = _id(row, where)
        if name in seen:
            raise DataError(f"{where}: the id '{name}' is also on line {seen[name]}")
        seen[name] = number
        yield where, row
    if not seen:
        raise DataError(f"{path} holds no lines")


def _id(row: Mapping[str, Any], where: str) -> str:
    value = row.get("id")
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise DataError(f"{where}: 'id' must be a text or a whole number, not {value!r}")
    return str(value)


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not _is_text(value):
        raise DataError(f"{where}: '{key}' must be a text that is not empty, not {value!r}")
    return str(value).strip()


def _answers(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    value = row.get("answers")
    if not isinstance(value, list) or not value or not all(map(_is_text, value)):
        raise DataError(
            f"{where}: 'answers' must be a list of texts that are not empty, not {value!r}"
        )
    return tuple(answer.strip() for answer in value)


def _is_text(value: Any) -> bool:
    """Whether it is a text with something in it that a tokenizer can encode (no lone surrogate)."""
    if not isinstance(value, str) or not value.strip():
        return False
    return not any("\ud800" <= character <= "\udfff" for character in value)
