"""The probe reads what a plain forward pass gives, and its KL knows the base."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2ForCausalLM, Qwen2Tokenizer

from toolrl_box.envs.pocket import CATEGORIES, make_tasks
from toolrl_box.errors import DataError, ModelError, RunFolderError
from toolrl_box.formats import FORMATS
from toolrl_box.probe import probe as probe_module
from toolrl_box.probe.bank import SLOTS, Bank, build_bank
from toolrl_box.probe.probe import Base, Observation, Probe
from toolrl_box.runlog import PROBE, RIGHT_TOKEN

Encode = Callable[[str], list[int]]


@pytest.fixture(scope="module", params=["hermes", "pythonic", "xml"])
def bank(request: pytest.FixtureRequest, encode: Encode) -> Bank:
    # More dialogues than one pass takes, and of different lengths.
    return build_bank(make_tasks("bank", 7, 0, CATEGORIES), FORMATS[request.param], encode)


@pytest.fixture
def pad(pocket_tokenizer: Qwen2Tokenizer) -> int:
    return int(pocket_tokenizer.pad_token_id)


def plain(model: Qwen2ForCausalLM, bank: Bank) -> torch.Tensor:
    """Log-probs [N, V] by one forward pass per dialogue, unpadded."""
    with torch.no_grad():
        tables = [
            model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1) for ids in bank.sequences
        ]
    places = zip(bank.rows_N, bank.columns_N, strict=True)
    return torch.stack([tables[row][column - 1] for row, column in places])


def moved(model: Qwen2ForCausalLM, by: float = 0.05) -> None:
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * by)


def test_it_reads_what_a_plain_forward_pass_gives(
    tiny_model: Qwen2ForCausalLM, bank: Bank, pad: int
) -> None:
    seen = Probe(tiny_model, bank, pad)()
    table_NV = plain(tiny_model, bank)
    right = [bank.sequences[r][c] for r, c in zip(bank.rows_N, bank.columns_N, strict=True)]
    right_N = table_NV[torch.arange(len(right)), torch.tensor(right)]
    entropy_N = -(table_NV.exp() * table_NV).sum(-1)
    np.testing.assert_allclose(seen.right_N, right_N, atol=1e-4)
    np.testing.assert_allclose(seen.entropy_N, entropy_N, atol=1e-4)
    for column, (piece, token) in enumerate(bank.control.items()):
        assert seen.tokens[column] == piece
        np.testing.assert_allclose(seen.control_NC[:, column], table_NV[:, token], atol=1e-4)
    assert seen.nll == pytest.approx(-right_N.mean().item(), abs=1e-4)


def test_kl_is_zero_at_the_base_and_exact_after_a_move(
    tiny_model: Qwen2ForCausalLM, bank: Bank, pad: int
) -> None:
    probe = Probe(tiny_model, bank, pad)
    base_NV = plain(tiny_model, bank)
    assert probe().kl == 0.0
    moved(tiny_model)
    now_NV = plain(tiny_model, bank)
    kl_N = (now_NV.exp() * (now_NV - base_NV)).sum(-1)
    seen = probe()
    assert seen.kl > 0.01
    np.testing.assert_allclose(seen.kl_N, kl_N, atol=1e-4)


def test_a_coarse_support_bounds_kl_from_below(
    tiny_model: Qwen2ForCausalLM, bank: Bank, pad: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = Probe(tiny_model, bank, pad)
    monkeypatch.setattr(probe_module, "FULL_TABLE", 100)
    monkeypatch.setattr(probe_module, "SUPPORT", 32)
    coarse = Probe(tiny_model, bank, pad)
    assert coarse().kl == pytest.approx(0.0, abs=1e-6)
    moved(tiny_model)
    bound, truth = coarse(), exact()
    assert (bound.kl_N <= truth.kl_N + 1e-4).all()
    assert 0.0 < bound.kl < truth.kl
    np.testing.assert_array_equal(bound.right_N, truth.right_N)


def test_it_leaves_the_model_as_it_was(tiny_model: Qwen2ForCausalLM, bank: Bank, pad: int) -> None:
    tiny_model.train()
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    state = torch.get_rng_state()
    probe = Probe(tiny_model, bank, pad)
    probe()
    assert tiny_model.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in tiny_model.state_dict().items())
    assert all(parameter.grad is None for parameter in tiny_model.parameters())


def test_a_summary_has_one_row_per_slot_and_token(
    tiny_model: Qwen2ForCausalLM, bank: Bank, pad: int
) -> None:
    seen = Probe(tiny_model, bank, pad)()
    rows = seen.summary(step=3)
    assert all(list(row) == PROBE.names for row in rows)
    assert {(row["slot"], row["token"]) for row in rows} == {
        (slot, token) for slot in SLOTS for token in (RIGHT_TOKEN, *bank.control)
    }
    assert len(rows) == len(SLOTS) * (1 + len(bank.control))
    for row in rows:
        here = np.array(bank.slots_N) == SLOTS.index(row["slot"])
        tokens = {RIGHT_TOKEN: seen.right_N}
        tokens |= {t: seen.control_NC[:, i] for i, t in enumerate(seen.tokens)}
        values = tokens[row["token"]][here]
        assert row["step"] == 3
        assert row["n"] == len(values)
        assert row["mean_logprob"] == pytest.approx(values.mean(), rel=1e-5)
        assert row["q05"] <= row["q50"] <= row["q95"]
        assert row["q50"] == pytest.approx(np.median(values), rel=1e-5)


def test_a_slot_without_positions_has_no_row(
    tiny_model: Qwen2ForCausalLM, bank: Bank, pad: int
) -> None:
    kept = [i for i, slot in enumerate(bank.slots_N) if SLOTS[slot] != "end_text"]
    part = replace(
        bank,
        rows_N=tuple(bank.rows_N[i] for i in kept),
        columns_N=tuple(bank.columns_N[i] for i in kept),
        slots_N=tuple(bank.slots_N[i] for i in kept),
    )
    slots = {row["slot"] for row in Probe(tiny_model, part, pad)().summary(0)}
    assert slots == set(SLOTS) - {"end_text"}


def test_contexts_keep_every_position_in_the_order_of_the_bank(
    tiny_model: Qwen2ForCausalLM, bank: Bank, pad: int
) -> None:
    columns = Probe(tiny_model, bank, pad)().contexts()
    assert columns["slot"] == [SLOTS[slot] for slot in bank.slots_N]
    assert list(columns) == [
        *("slot", RIGHT_TOKEN, "entropy", "kl"),
        *(f"control {piece}" for piece in bank.control),
    ]
    assert {len(values) for values in columns.values()} == {len(bank.slots_N)}


def test_the_mean_figures_are_means() -> None:
    values = np.array([-1.0, -3.0], dtype=np.float32)
    calls = (slice(0, 1), slice(0, 2))
    kl_N = np.array([0.0, 0.5], dtype=np.float32)
    seen = Observation(np.array([0, 1]), calls, (), values, values, kl_N, values[:, None])
    assert (seen.nll, seen.kl) == (2.0, 0.25)
    assert seen.p_call == pytest.approx((math.exp(-1) + math.exp(-4)) / 2)
    assert replace(seen, first_calls=()).p_call is None


def test_weights_that_are_not_finite_are_told(
    tiny_model: Qwen2ForCausalLM, bank: Bank, pad: int
) -> None:
    probe = Probe(tiny_model, bank, pad)
    with torch.no_grad():
        tiny_model.lm_head.weight[7] = math.nan
    with pytest.raises(ModelError, match="NaN or infinite"):
        probe()


def test_a_dialogue_that_is_too_long_for_the_model_is_refused(
    tiny_model: Qwen2ForCausalLM, bank: Bank, pad: int
) -> None:
    tiny_model.config.max_position_embeddings = 64
    with pytest.raises(ModelError, match=r"has \d+ tokens; the model takes 64"):
        Probe(tiny_model, bank, pad)


def test_a_base_that_was_kept_is_the_base_of_another_probe(
    tiny_model: Qwen2ForCausalLM, bank: Bank, pad: int, tmp_path: Path
) -> None:
    first = Probe(tiny_model, bank, pad)
    first.base.save(tmp_path / "base.safetensors", bank)
    moved(tiny_model)
    again = Probe(tiny_model, bank, pad, Base.load(tmp_path / "base.safetensors", bank))
    assert again().kl == first().kl > 0.01
    other = replace(bank, slots_N=bank.slots_N[::-1])
    with pytest.raises(DataError, match="was made with another bank"):
        Base.load(tmp_path / "base.safetensors", other)


def test_a_base_that_is_missing_or_damaged_is_told(bank: Bank, tmp_path: Path) -> None:
    path = tmp_path / "base.safetensors"
    with pytest.raises(RunFolderError, match=r"base\.safetensors is missing"):
        Base.load(path, bank)
    path.write_bytes(b"half a file")
    with pytest.raises(DataError, match=r"base\.safetensors is damaged"):
        Base.load(path, bank)


def test_modules_that_were_frozen_in_evaluation_stay_so(
    tiny_model: Qwen2ForCausalLM, bank: Bank, pad: int
) -> None:
    tiny_model.train()
    tiny_model.model.layers[0].eval()
    modes = [module.training for module in tiny_model.modules()]
    Probe(tiny_model, bank, pad)()
    assert [module.training for module in tiny_model.modules()] == modes
    assert len(set(modes)) == 2
