"""Checks of a model: what is odd is told, what cannot work is refused before a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.test_native import templated
from toolrl_box import cli
from toolrl_box.config import RolloutSettings, load
from toolrl_box.doctor import examine_model
from toolrl_box.errors import ModelError
from toolrl_box.formats import FORMATS
from toolrl_box.models import checks, load_model, padding_of
from toolrl_box.models.pocket import PocketRecipe
from toolrl_box.models.pretrain import new_model
from toolrl_box.native import Template, read_format


def folder_of(name: str, output: Path) -> Path:
    """A tiny model with one of TRL's templates."""
    tokenizer = templated(name)
    recipe = PocketRecipe(hidden_size=32, layers=1, heads=2, head_dim=16, intermediate_size=32)
    model = new_model(recipe, tokenizer)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    return output


def found(name: str, output: Path, fmt: str | None = None, **settings: str) -> dict[str, tuple]:
    options = {"model.name": str(folder_of(name, output)), **settings}
    checked = examine_model(load(options=options), fmt)
    return {check.name: (check.verdict, check.finding) for check in checked}


def test_qwen3_is_told_where_its_template_rewrites_the_past(tmp_path: Path) -> None:
    seen = found("qwen3", tmp_path, "native")
    verdict, finding = seen["prefix-preserving"]
    assert verdict == "note"
    assert "message 4 (tool) changes what stands before it" in finding
    assert "</think>" in finding
    assert seen["thinking"][0] == "note"


def test_in_another_format_a_thinking_model_is_warned_of(tmp_path: Path) -> None:
    verdict, finding = found("qwen3", tmp_path, "hermes")["thinking"]
    assert verdict == "note"
    assert "use --format native" in finding


def test_qwen2_5_is_written_as_its_template_writes() -> None:
    assert checks.prefixes(Template(templated("qwen2_5"))).verdict == "ok"
    fmt = read_format(templated("qwen2_5"))
    assert fmt.render(checks.DIALOGUE) == fmt.template(checks.DIALOGUE)


def test_what_the_llama_template_drops_is_told(tmp_path: Path) -> None:
    seen = found("llama3_2", tmp_path, "native")
    assert seen["text before a call"] == ("note", "left out of gold: the template drops it")
    assert "single tool-calls" in seen["several calls"][1]
    assert "fixed" in seen["date"][1]
    assert "vanish" in seen["special tags"][1]


def test_a_context_that_is_too_short_is_an_error_and_the_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(folder_of("qwen2_5", tmp_path))
    with pytest.raises(SystemExit) as ended:
        cli.main(["doctor", "--model", folder, "--set", "rollout.max_tokens=999999"])
    assert ended.value.code == 2
    shown = capsys.readouterr().out
    assert "rollout.max_tokens" in shown
    assert "error" in shown


def test_a_sound_model_ends_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["doctor", "--model", str(folder_of("qwen2_5", tmp_path))])
    assert ended.value.code == 0
    assert "prefix-preserving" in capsys.readouterr().out


def test_weights_that_are_missing_are_an_error(tmp_path: Path) -> None:
    folder_of("qwen2_5", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    checked = examine_model(load(options={"model.name": str(tmp_path)}), None)
    assert ("weights", "error") in {(check.name, check.verdict) for check in checked}


def test_a_vocabulary_beyond_the_embeddings_ends_a_run_before_it_begins(tmp_path: Path) -> None:
    loaded = load_model(str(folder_of("qwen2_5", tmp_path)))
    loaded.tokenizer.add_tokens(["<one>", "<two>"])
    rows = loaded.model.get_input_embeddings().weight.shape[0]
    loaded.tokenizer.add_tokens([f"<{i}>" for i in range(rows)])
    with pytest.raises(ModelError, match=r"vocabulary: \d+ tokens, \d+ rows of embeddings"):
        checks.for_run(loaded.model, loaded.tokenizer, FORMATS["hermes"], RolloutSettings())


def test_an_embedded_model_has_nothing_to_be_told_of() -> None:
    loaded = load_model("pocket")
    assert checks.for_run(loaded.model, loaded.tokenizer, loaded.fmt, RolloutSettings()) == []


def test_padding_is_never_what_ends_a_message(tmp_path: Path) -> None:
    tokenizer = load_model(str(folder_of("qwen2_5", tmp_path))).tokenizer
    tokenizer.pad_token = "<|im_end|>"  # noqa: S105 - no password
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert padding_of(tokenizer, {end}) == "<|endoftext|>"
    with pytest.raises(ModelError, match="no token for padding"):
        padding_of(tokenizer, {end, tokenizer.convert_tokens_to_ids("<|endoftext|>")})
