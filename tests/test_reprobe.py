"""Saved checkpoints are probed again on gold dialogues, with or without a run of ours."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer, Qwen2ForCausalLM

from toolrl_box import cli, lab
from toolrl_box.config import RunConfig, parse
from toolrl_box.envs.pocket import CATEGORIES, make_tasks
from toolrl_box.errors import ConfigError, DataError, ModelError, RunFolderError
from toolrl_box.formats import FORMATS, to_chat, to_tools
from toolrl_box.models import load_causal
from toolrl_box.probe.bank import SLOTS, build_bank
from toolrl_box.probe.probe import Probe
from toolrl_box.reprobe import probe_series
from toolrl_box.runlog import PROBE, RunLog

TASKS = make_tasks("bank", 4, 0, CATEGORIES)
LINES = [
    json.dumps({"messages": to_chat([*task.prompt, *task.gold]), "tools": to_tools(task.tools)})
    for task in TASKS
]


@pytest.fixture
def later(tiny_base: Path, tmp_path: Path) -> Path:
    """The tiny base after some training that did it no good."""
    folder = tmp_path / "later"
    shutil.copytree(tiny_base, folder)
    model = Qwen2ForCausalLM.from_pretrained(folder)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def gold(tmp_path: Path) -> Path:
    path = tmp_path / "gold.jsonl"
    path.write_text("\n".join(LINES) + "\n\n")
    return path


def test_the_table_holds_what_the_probe_sees(
    tiny_base: Path, later: Path, gold: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    told: list[str] = []
    table = probe_series([tiny_base, later], out, gold, told=told.append)
    model, tokenizer = load_causal(str(tiny_base), "auto")
    bank = build_bank(
        TASKS, FORMATS["hermes"], lambda text: tokenizer.encode(text, add_special_tokens=False)
    )
    probe = Probe(model, bank, 0)
    model.load_state_dict(load_causal(str(later), "auto")[0].state_dict())
    seen = probe()
    assert table["checkpoint"].tolist() == [tiny_base.name, "later"]
    assert table["step"].tolist() == [0, 1]
    assert table["bank_kl"][0] == 0.0
    last = table.iloc[1]
    assert (last["bank_nll"], last["bank_kl"]) == pytest.approx((seen.nll, seen.kl), abs=1e-5)
    assert last["p_call"] == pytest.approx(seen.p_call)
    right = seen.right_N[seen.slots_N == SLOTS.index("after_call")].astype(float)
    odds = right - torch.log1p(-torch.tensor(right).exp()).numpy()
    assert last["odds_after_call"] == pytest.approx(odds.mean(), abs=1e-4)
    assert told == [f"probing {tiny_base.name}", "probing later"]


def test_it_writes_a_table_two_ways_and_a_picture(
    tiny_base: Path, later: Path, gold: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    table = probe_series([tiny_base, later], out, gold)
    pd.testing.assert_frame_equal(pd.read_csv(out / "probe.csv"), table)
    rows = pd.read_parquet(out / "probe.parquet")
    assert list(rows) == ["checkpoint", *PROBE.names]
    assert set(rows["slot"]) == set(SLOTS)
    assert rows.groupby("checkpoint").size().nunique() == 1
    assert (out / "probe.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_is_probed_in_the_order_of_its_steps_as_it_probed_itself(
    tiny_base: Path, tmp_path: Path
) -> None:
    config = parse(
        {
            **{"steps": 2, "model": {"name": str(tiny_base)}, "scheme": {"name": "rl"}},
            **{"env": {"train_tasks": 4, "eval_tasks": 4}, "rollout": {"max_new_tokens": 6}},
            **{"grpo": {"prompts_per_step": 2, "group_size": 4}, "checkpoint": {"every": 1}},
        }
    )
    lab.start(config, tmp_path / "run")
    metrics = RunLog.open(tmp_path / "run").metrics()
    table = probe_series([tmp_path / "run"], tmp_path / "out")
    assert table["step"].tolist() == metrics["step"].tolist() == [0, 1, 2]
    for column in ("bank_nll", "bank_kl", "p_call"):
        assert table[column].tolist() == pytest.approx(metrics[column].tolist(), abs=1e-6)


def test_what_cannot_be_probed_is_told_and_nothing_is_written(
    tiny_base: Path, later: Path, gold: Path, tmp_path: Path
) -> None:
    out, run = tmp_path / "out", tmp_path / "run"
    RunLog.create(run, RunConfig().model_dump(mode="json"), {}).close()
    with pytest.raises(ConfigError, match=r"--bank FILE\.jsonl is needed"):
        probe_series([tiny_base], out)
    with pytest.raises(ConfigError, match="is a run folder: give it alone"):
        probe_series([run, tiny_base], out)
    with pytest.raises(RunFolderError, match="has no complete checkpoint"):
        probe_series([run], out)
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        probe_series([tmp_path], out, gold)
    with pytest.raises(DataError, match=r"cannot read .*none\.jsonl"):
        probe_series([tiny_base], out, tmp_path / "none.jsonl")
    tokenizer = AutoTokenizer.from_pretrained(later)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(later)
    with pytest.raises(ModelError, match="has another tokenizer than"):
        probe_series([tiny_base, later], out, gold)
    assert not out.exists()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "gold.jsonl, line 2: not JSON"),
        ("[]", "gold.jsonl, line 2 has no list 'messages'"),
        ('{"messages": []}', "gold.jsonl, line 2 has no assistant message"),
    ],
)
def test_a_malformed_line_is_named_and_the_exit_code_is_2(
    line: str, says: str, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "gold.jsonl", tmp_path / "out"
    path.write_text(f"{LINES[0]}\n{line}\n")
    with pytest.raises(SystemExit) as ended:
        cli.main(["probe", str(tiny_base), "--bank", str(path), "--output", str(out)])
    assert ended.value.code == cli.USER_ERROR
    error = capsys.readouterr().err
    assert says in error
    assert error.startswith("error: ")
    assert not out.exists()


def test_the_command_prints_a_line_per_checkpoint(
    tiny_base: Path, later: Path, gold: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["probe", str(tiny_base), str(later), "--bank", str(gold)]
    with pytest.raises(SystemExit) as ended:
        cli.main(
            [*words, "--output", str(tmp_path / "out"), "--tags", "<tool_call>", "</tool_call>"]
        )
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    table = pd.read_csv(tmp_path / "out" / "probe.csv")
    figures = table.loc[1, ["bank_nll", "bank_kl", "p_call", "entropy"]]
    assert lines[4].split() == ["later", *(f"{figure:.4g}" for figure in figures)]
