"""Probe a series of saved checkpoints again: any Hugging Face causal models, or those of a run.

Input: model folders in the order of the training, or one run folder; gold dialogues as JSONL
(``messages`` and ``tools`` on each line), or the run's own bank. Output, in a folder::

    probe.parquet  per checkpoint, slot and token: log-probs (columns of a run's, and which one)
    probe.csv      per checkpoint: bank NLL, KL, entropy, p(first call), log-odds by slot
    probe.png      the same as curves

The first checkpoint is the base that KL is measured from. All are teacher-forced on the same
tokens, so they must share a tokenizer.

Left out: sampling and tasks (``toolrl evaluate``); adapters that are not merged into a model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from transformers import PreTrainedTokenizerBase

from toolrl_box import checkpoints
from toolrl_box.config import parse
from toolrl_box.durable import writing
from toolrl_box.envs import build_world
from toolrl_box.errors import ConfigError, DataError, ModelError, RunFolderError
from toolrl_box.lab import SMALL_MODEL, gold_bank
from toolrl_box.models import load_causal
from toolrl_box.native import format_of
from toolrl_box.probe.bank import SLOTS, Bank
from toolrl_box.probe.chat import bank_of_chats
from toolrl_box.probe.markup import given_markup, read_markup
from toolrl_box.probe.probe import Base, Observation, Probe
from toolrl_box.report.figures import (
    BLUE,
    SLOT_TITLES,
    TOKEN_STYLES,
    VERMILION,
    canvas,
    log_odds,
)
from toolrl_box.runlog import RunLog

Told = Callable[[str], None]
Tags = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint: what it is called, its step (its place, where steps are not known)."""

    name: str
    step: int
    folder: Path


def probe_series(
    paths: Sequence[Path],
    output: Path,
    bank_file: Path | None = None,
    tags: Tags | None = None,
    told: Told = lambda text: None,
) -> pd.DataFrame:
    """Probe the checkpoints and write the three files; returns the table of ``probe.csv``.

    Raises ConfigError, DataError, ModelError or RunFolderError for what cannot be probed, and
    writes nothing then.
    """
    run_dir = paths[0] if (paths[0] / "config.yaml").is_file() else None
    saved = _series(paths, run_dir)
    if bank_file is None and run_dir is None:
        raise ConfigError("--bank FILE.jsonl is needed: only a run folder has a bank of its own")
    rows: list[dict[str, Any]] = []
    summaries: list[dict[str, Any]] = []
    bank: Bank | None = None
    base: Base | None = None
    vocabulary: dict[str, int] = {}
    for checkpoint in saved:
        told(f"probing {checkpoint.name}")
        if run_dir is not None:
            checkpoints.verify(checkpoint.folder)
        model, tokenizer = load_causal(str(checkpoint.folder), "auto")
        if model.num_parameters() < SMALL_MODEL:
            torch.set_num_threads(1)
        if bank is None:
            vocabulary = tokenizer.get_vocab()
            bank = _bank(run_dir, bank_file, tokenizer, tags)
        elif tokenizer.get_vocab() != vocabulary:
            raise ModelError(
                f"{checkpoint.folder} has another tokenizer than {saved[0].folder}: its "
                "probabilities are of other tokens"
            )
        probe = Probe(model, bank, 0, base)
        base = probe.base
        seen = probe()
        summaries += [{"checkpoint": checkpoint.name, **r} for r in seen.summary(checkpoint.step)]
        rows.append({"checkpoint": checkpoint.name, "step": checkpoint.step, **_figures(seen)})
    table = pd.DataFrame(rows)
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(summaries).to_parquet(output / "probe.parquet", index=False)
        table.to_csv(output / "probe.csv", index=False)
        _draw(table, steps=run_dir is not None, path=output / "probe.png")
    return table


def read_dialogues(path: Path) -> Iterator[tuple[str, Any]]:
    """The rows of a JSONL file, each named by file and line. Raises DataError."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    for number, line in enumerate(lines, start=1):
        name = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            yield name, json.loads(line)
        except ValueError as error:
            raise DataError(f"{name}: not JSON: {error}") from error


def _series(paths: Sequence[Path], run_dir: Path | None) -> list[Saved]:
    if run_dir is None:
        return [Saved(path.name, place, path) for place, path in enumerate(paths)]
    if len(paths) > 1:
        raise ConfigError(f"{run_dir} is a run folder: give it alone, or give checkpoints")
    steps = checkpoints.complete_steps(run_dir)
    if not steps:
        raise RunFolderError(f"{run_dir} has no complete checkpoint")
    folders = [checkpoints.path_of(run_dir, step) for step in steps]
    return [Saved(path.name, step, path) for path, step in zip(folders, steps, strict=True)]


def _bank(
    run_dir: Path | None,
    bank_file: Path | None,
    tokenizer: PreTrainedTokenizerBase,
    tags: Tags | None,
) -> Bank:
    if bank_file is not None:
        markup = read_markup(tokenizer) if tags is None else given_markup(tokenizer, tags)
        return bank_of_chats(read_dialogues(bank_file), tokenizer, markup)
    assert run_dir is not None, "one of the two was asked for"
    config = parse(RunLog.open(run_dir).config)
    world = build_world(config.env.name, config.env.knobs)
    return gold_bank(
        config,
        format_of(config.format, tokenizer, config.model.thinking),
        world,
        lambda text: list(tokenizer.encode(text, add_special_tokens=False)),
    )


def _figures(seen: Observation) -> dict[str, float]:
    """``odds_<slot>``: log-odds of the right token in nats, mean over the slot; ``p_call`` is NaN
    when no dialogue begins with a call."""
    odds_N = log_odds(seen.right_N)
    return {
        "bank_nll": seen.nll,
        "bank_kl": seen.kl,
        "entropy": seen.entropy,
        "p_call": math.nan if seen.p_call is None else seen.p_call,
        **{
            f"odds_{slot}": float(odds_N[here].mean())
            for index, slot in enumerate(SLOTS)
            if (here := seen.slots_N == index).any()
        },
    }


def _draw(table: pd.DataFrame, *, steps: bool, path: Path) -> None:
    with canvas(path, (9.0, 6.4)) as figure:
        grid = figure.subplots(2, 1, sharex=True)
        for axes, curves in zip(grid, (_damage(), _odds(table)), strict=True):
            for column, label, colour, dash in curves:
                axes.plot(
                    *(table["step"], table[column]), dash, color=colour, label=label, marker="o"
                )
        grid[0].set_ylim(bottom=0)
        grid[0].set_ylabel("nats per token")
        grid[0].legend(loc="upper left")
        grid[1].set_ylabel("log-odds of the right token (nats)")
        _steps_axis(grid[1], table, steps=steps)
        handles, labels = grid[1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=4, fontsize=9)


def _damage() -> list[tuple[str, str, str, str]]:
    return [
        ("bank_nll", "NLL of the gold messages", BLUE, "-"),
        ("bank_kl", "KL to the first checkpoint", VERMILION, "-"),
    ]


def _odds(table: pd.DataFrame) -> list[tuple[str, str, str, str]]:
    return [
        (f"odds_{slot}", SLOT_TITLES[slot], *style)
        for slot, style in zip(SLOTS, TOKEN_STYLES, strict=False)
        if f"odds_{slot}" in table
    ]


def _steps_axis(axes: Axes, table: pd.DataFrame, *, steps: bool) -> None:
    if steps:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("step (updates)")
    else:
        axes.set_xticks(table["step"], table["checkpoint"], rotation=30, ha="right")
