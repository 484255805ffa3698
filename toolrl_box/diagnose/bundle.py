"""A diagnosis for a bug report: one zip without names, and on request without texts.

Input: a diagnosis and examples. Output: a zip with ``README.md``, ``diagnosis.json``,
``report.md``, ``states.csv`` and, unless texts are dropped, ``examples.jsonl``. Ids of rollouts,
paths, the run's name, checkpoints and names of models are replaced by salted hashes. The salt is
the hash of the whole diagnosis before that: it is not in the bundle and cannot be computed from it,
and the same log gives the same bundle, byte for byte. Names of categories and figures are kept.

Left out: searching texts for personal data; look at them, or drop them.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable, Iterable
from hashlib import blake2b, sha256
from pathlib import Path, PurePath
from typing import Any

from toolrl_box.diagnose.blame import WORDS
from toolrl_box.diagnose.diagnosis import Diagnosis
from toolrl_box.diagnose.markdown import markdown
from toolrl_box.diagnose.records import Judged
from toolrl_box.diagnose.table import states_csv
from toolrl_box.durable import write_atomic, writing
from toolrl_box.formats import ALL_FORMATS
from toolrl_box.probe.states import DEFAULT_CONTROL_TOKENS

EPOCH = (1980, 1, 1, 0, 0, 0)
README = """# Bundle of a diagnosis

Made by `toolrl diagnose --bundle`. {texts} Ids, paths and names of runs and models are salted
hashes: equal ones are equal here, and nothing leads back.

- `diagnosis.json`: schema in docs/diagnosis.schema.json
- `report.md`: the same to read
- `states.csv`: states and figures per step
"""
WITH_TEXTS = "It holds excerpts of messages (`examples.jsonl`): read them before you attach it."
WITHOUT = "It holds no text of any message."


def write_bundle(
    path: Path, diagnosis: Diagnosis, examples: Iterable[Judged], *, drop_texts: bool
) -> None:
    """Replaces ``path`` as a whole."""
    messages = list(examples)
    salt = sha256(diagnosis.model_dump_json().encode()).digest()
    hidden = _names(diagnosis, messages, salt)
    hide = _hider(hidden)
    anonymous = Diagnosis.model_validate(_hidden(diagnosis, hide, salt, drop_texts))
    files = {
        "README.md": README.format(texts=WITHOUT if drop_texts else WITH_TEXTS),
        "diagnosis.json": anonymous.model_dump_json(indent=1) + "\n",
        "report.md": markdown(anonymous),
        "states.csv": states_csv(anonymous.steps),
    }
    if not drop_texts:
        lines = (json.dumps(_example(message, hide), ensure_ascii=False) for message in messages)
        files["examples.jsonl"] = "".join(f"{line}\n" for line in lines)
    with writing(path):
        write_atomic(path, _zip(files))


def _names(diagnosis: Diagnosis, messages: Iterable[Judged], salt: bytes) -> dict[str, str]:
    """What must not be seen, and what stands for it."""
    place, kept = diagnosis.first_wrong, diagnosis.last_healthy
    paths = {file.path for file in diagnosis.inputs} | {line.file for line in diagnosis.damage}
    ids, models = set(), {row.category for row in diagnosis.affected if row.by == "model"}
    if place is not None:
        paths.add(place.file)
        ids.add(place.rollout)
    for message in messages:
        paths.add(str(message.origin.file))
        ids.add(message.rollout)
        models |= {message.model} if message.model else set()
    found = {path: f"file-{_hash(salt, path)}{PurePath(path).suffix}" for path in paths}
    if kept is not None and kept.checkpoint is not None:
        found[kept.checkpoint] = f"checkpoint-{_hash(salt, kept.checkpoint)}"
    for action in diagnosis.actions:
        for word in re.findall(r"\S*/\S+", f"{action.do} {action.command or ''}"):
            found.setdefault(word.rstrip(",."), f"path-{_hash(salt, word)}")
    found |= {id_: f"id-{_hash(salt, id_)}" for id_ in ids}
    found |= {model: f"model-{_hash(salt, model)}" for model in models}
    found[diagnosis.name] = f"run-{_hash(salt, diagnosis.name)}"
    return {name: hash_ for name, hash_ in found.items() if name}


def _hidden(
    diagnosis: Diagnosis, hide: Callable[[str], str], salt: bytes, drop_texts: bool
) -> dict[str, Any]:
    made: dict[str, Any] = diagnosis.model_dump()
    # Texts of the log are not searched for names: a short id may be a common word.
    made["name"] = hide(made["name"])
    for file in made["inputs"]:
        file["path"] = hide(file["path"])
    for line in made["damage"]:
        line["file"] = hide(line["file"])
        line["reason"] = "" if drop_texts else line["reason"]
    if (place := made["first_wrong"]) is not None:
        place |= {"file": hide(place["file"]), "rollout": hide(place["rollout"])}
        place["excerpt"] = "" if drop_texts else place["excerpt"]
    if (kept := made["last_healthy"]) is not None and kept["checkpoint"] is not None:
        kept["checkpoint"] = hide(kept["checkpoint"])
    for row in made["affected"]:
        row["category"] = hide(row["category"]) if row["by"] == "model" else row["category"]
    for action in made["actions"]:
        action |= {key: hide(action[key]) for key in ("do", "command") if action[key]}
    if drop_texts:
        known = {*WORDS, *DEFAULT_CONTROL_TOKENS}
        known.update(token for fmt in ALL_FORMATS.values() for token in fmt.control_tokens)
        for row in made["involved"]:
            if row["token"] not in known:
                row["token"] = f"token-{_hash(salt, row['token'])}"
    return made


def _example(message: Judged, hide: Callable[[str], str]) -> dict[str, Any]:
    return {
        "file": hide(str(message.origin.file)),
        "line": message.origin.line,
        "rollout": hide(message.rollout),
        "step": message.step,
        "message": message.index,
        "state": message.state,
        "kind": message.kind,
        "start": message.start,
        "end": message.end,
        "reward": message.reward,
        "category": message.category,
        "model": hide(message.model) if message.model else None,
        "text": message.text,
    }


def _hider(hidden: dict[str, str]) -> Callable[[str], str]:
    """Replaces every name, longer ones first, at once: no replacement is replaced again."""
    pattern = re.compile("|".join(re.escape(n) for n in sorted(hidden, key=len, reverse=True)))
    return lambda text: pattern.sub(lambda match: hidden[match[0]], text)


def _hash(salt: bytes, name: str) -> str:
    return blake2b(name.encode(), key=salt, digest_size=5).hexdigest()


def _zip(files: dict[str, str]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            info = zipfile.ZipInfo(name, EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, text)
    return made.getvalue()
