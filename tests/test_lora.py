"""LoRA: only the adapter learns and is kept, KL is measured from the base, resuming is exact."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("peft", reason="peft is not installed: pip install 'toolrl-box[lora]'")

from toolrl_box import checkpoints, lab
from toolrl_box.config import LoRASettings, RunConfig, load
from toolrl_box.errors import ConfigError, ModelError
from toolrl_box.interrupts import Interrupts
from toolrl_box.models import load_causal, load_model, lora
from toolrl_box.runlog import RunLog

SETTINGS = (
    *("steps=4", "scheme.every=2", "scheme.updates=2", "scheme.rule=any_failed"),
    *("grpo.prompts_per_step=2", "grpo.group_size=4", "rewards={format_share: 1}"),
    *("env.train_tasks=8", "env.eval_tasks=4", "probe.episodes=4"),
    *("eval.every=50", "eval.ood=false", "checkpoint.every=2"),
    *("rollout.max_messages=3", "rollout.max_new_tokens=8"),
    *("model.lora.rank=2", "model.lora.dropout=0.1", "grpo.lr=0.01"),
)


def config_for(model: Path, *more: str) -> RunConfig:
    return load(sets=[*SETTINGS, *more], options={"model.name": str(model)})


@pytest.fixture(scope="module")
def whole(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed, its KL term on."""
    run_dir = tmp_path_factory.mktemp("lora") / "run"
    assert lab.start(config_for(tiny_base, "grpo.beta=0.05"), run_dir) == "done"
    return run_dir


def last(run_dir: Path) -> Path:
    return checkpoints.path_of(run_dir, checkpoints.complete_steps(run_dir)[-1])


def digests(folder: Path) -> dict[str, str]:
    files = sorted(folder.glob("*.safetensors"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_checkpoint_holds_the_adapter_alone_and_names_its_base(
    whole: Path, tiny_base: Path
) -> None:
    folder = last(whole)
    assert not (folder / "model.safetensors").exists()
    assert all("lora_" in name for name in load_file(folder / lora.WEIGHTS))
    assert lora.base_of(str(folder)) == str(tiny_base.resolve())
    assert not any(lora.REFERENCE in name for name in load_file(folder / lora.WEIGHTS))


def test_the_adapter_has_learned_and_kl_is_measured_from_the_base(whole: Path) -> None:
    first = load_file(checkpoints.path_of(whole, 0) / lora.WEIGHTS)
    trained = load_file(last(whole) / lora.WEIGHTS)
    assert all(not tensor.any() for name, tensor in first.items() if "lora_B" in name)
    assert any(tensor.any() for name, tensor in trained.items() if "lora_B" in name)
    metrics = pd.DataFrame(RunLog.open(whole).metrics())
    kl = metrics[metrics.phase_kind == "rl"].kl.tolist()
    # Before the first update policy and base are one; from then on, phases included, they are not.
    assert kl[0] < 1e-3
    assert min(kl[1:]) > 0


def test_sigterm_and_resume_end_as_the_undisturbed_run(
    whole: Path, tiny_base: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    with Interrupts() as interrupts:

        def show(line: Any) -> None:
            if line.progress.step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

        watch = lab.Watch(show=show, should_stop=interrupts.asked)
        assert lab.start(config_for(tiny_base, "grpo.beta=0.05"), run_dir, watch) == "stopped"
    # Within a phase of SFT, whose dropout goes on as if nothing had been.
    assert checkpoints.complete_steps(run_dir)[-1] == 3
    assert lab.resume(run_dir) == "done"
    assert digests(last(run_dir)) == digests(last(whole))


def test_rolling_back_brings_the_adapter_back_exactly(whole: Path) -> None:
    from toolrl_box.lab import _Lab

    backend = _Lab(lab.config_of(whole)).backend
    folder = checkpoints.path_of(whole, 2)
    backend.load(last(whole))
    backend.load(folder)
    again = whole.parent / "again"
    again.mkdir()
    backend.save(again)
    assert digests(again)[lora.WEIGHTS] == digests(folder)[lora.WEIGHTS]
    assert digests(again) == digests(folder)


def test_a_checkpoint_loads_merged_and_says_what_the_adapter_said(
    whole: Path, tiny_base: Path
) -> None:
    base = load_model(str(tiny_base)).model
    wrapped = lora.wrap(base, lab.config_of(whole).model.lora or LoRASettings(), "x", 0).eval()
    lora.load(wrapped, last(whole))
    merged, _ = load_causal(str(last(whole)), torch.float32)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        apart, together = wrapped(ids).logits, merged.eval()(ids).logits
        with wrapped.disable_adapter():
            assert lora.switched_off(wrapped)
            plain = wrapped(ids).logits
    assert not lora.switched_off(wrapped)
    torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-4)
    assert (plain - apart).abs().max() > 1e-3
    assert not lora.is_wrapped(merged)


def test_the_same_seed_gives_the_same_adapter_and_changes_nothing_yet(tiny_base: Path) -> None:
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        before = load_model(str(tiny_base)).model(ids).logits
        pair = [
            lora.wrap(load_model(str(tiny_base)).model, LoRASettings(rank=2), "x", seed)
            for seed in (1, 1, 2)
        ]
        torch.testing.assert_close(pair[0](ids).logits, before, rtol=0, atol=0)
    a, b, c = (
        next(p for n, p in model.named_parameters() if "lora_A" in n).detach() for model in pair
    )
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_what_cannot_work_is_refused(tiny_base: Path, whole: Path) -> None:
    with pytest.raises(ConfigError, match="lm_head, whose adapter would never be trained"):
        lora.check(LoRASettings(target=("q_proj", "lm_head")))
    model = load_model(str(tiny_base)).model
    with pytest.raises(ConfigError, match=r"model\.lora\.target"):
        lora.wrap(model, LoRASettings(target=("no_such_module",)), "x", 0)
    other = lora.wrap(load_model(str(tiny_base)).model, LoRASettings(rank=3), "x", 0)
    with pytest.raises(ModelError, match="of another model or rank"):
        lora.load(other, last(whole))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_four_bits_and_liger_are_refused_without_a_gpu(tiny_base: Path) -> None:
    with pytest.raises(ConfigError, match=r"four_bit needs a CUDA device"):
        lora.check(LoRASettings(four_bit=True))
    with pytest.raises(ConfigError, match=r"model.liger needs a CUDA device"):
        lab.check_switches(load(sets=["model.liger=true"]))
