"""Settings: what is written where wins over what, and every mistake is one line that helps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from toolrl_box.config import RunConfig, load, parse, read_yaml
from toolrl_box.errors import ConfigError


def refusal(*sets: str) -> str:
    with pytest.raises(ConfigError) as raised:
        load(sets=sets)
    text = str(raised.value)
    assert "\n" not in text
    return text


def test_options_win_over_sets_and_sets_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("steps: 1\nseed: 1\nformat: xml\n")
    config = load(path, ["steps=2", "seed=2"], {"steps": 3, "format": None})
    assert (config.steps, config.seed, config.format) == (3, 2, "xml")


def test_a_section_may_be_written_as_its_name_and_still_be_refined() -> None:
    config = load(sets=["scheme=rl", "env=pocket", "env.seed=4"])
    assert (config.scheme.name, config.env.name, config.env.seed) == ("rl", "pocket", 4)


def test_a_section_left_empty_in_the_file_may_be_refined(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("grpo:\n")
    assert load(path, ["grpo.lr=1e-4"]).grpo.lr == 1e-4


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("")
    assert load(path) == RunConfig()


def test_a_saved_config_reads_back_as_itself(tmp_path: Path) -> None:
    config = load(sets=["scheme.every=3", "rewards={format_share: 0.5}", "grpo.beta=0.1"])
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert parse(read_yaml(path)) == config
    assert config.scheme.knobs == {"every": 3}


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        ("stepps=3", "unknown key 'stepps'; did you mean 'steps'?"),
        ("grpo.lrr=1", "unknown key 'grpo.lrr'; did you mean 'lr'? one of: adam_beta2,"),
        ("steps=0", "steps = 0: input should be greater than or equal to 1"),
        ("steps=many", "steps = 'many': "),
        ("seed=4294967296", "seed = 4294967296: input should be less than"),
        ("grpo.lr=.inf", "grpo.lr = inf: input should be a finite number"),
        ("grpo.lr=.nan", "grpo.lr = nan: "),
        ("grpo.mini_batches=5", "mini_batches (5) must divide"),
        ("rollout.max_new_tokens=768", "must be below rollout.max_tokens = 768"),
        ("env.eval_categories=[]", "env.eval_categories = "),
        ("threads.a=1", "threads = {'a': 1}: "),
        ("steps", "--set takes key=value, got 'steps'"),
        ("=3", "--set takes key=value, got '=3'"),
        ("steps=[", "--set steps: '[' is not a YAML value"),
    ],
)
def test_a_mistake_in_a_setting_is_explained(pair: str, says: str) -> None:
    assert says in refusal(pair)


def test_several_mistakes_are_told_at_once() -> None:
    text = refusal("steps=0", "seed=-1")
    assert "steps = 0" in text
    assert "seed = -1" in text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"steps: [", "is not valid YAML"),
        (b"\xff\xfe\x00", "is not valid YAML"),
        (b"- steps", "must be a mapping of keys to values"),
    ],
)
def test_a_file_that_holds_no_settings_is_refused(
    tmp_path: Path, content: bytes, says: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        load(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read config .*: No such file or directory"):
        load(tmp_path / "none.yaml")


def test_settings_cannot_be_changed_once_made() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RunConfig().steps = 3  # type: ignore[misc]


@pytest.mark.parametrize("named", ["pocket", {"name": "pocket"}])
def test_a_worlds_default_model_gives_way_to_a_model_named_in_either_form(named: Any) -> None:
    assert load(options={"env": "search"}).model.name == "search"
    assert load(options={"env": "search", "model": named}).model.name == "pocket"
    assert load(options={"env": "search", "model.precision": "bf16"}).model.name == "search"
