"""`toolrl eval`: a checkpoint on its suites, what structure alone would give back, mistakes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from toolrl_box import checkpoints, cli
from toolrl_box.capability.examine import BASE, Examination, examine, reference_of, subject_of
from toolrl_box.capability.lines import lines
from toolrl_box.config import parse
from toolrl_box.errors import CheckpointError, ConfigError, DataError, RunFolderError
from toolrl_box.formats import FORMATS
from toolrl_box.models import load_model
from toolrl_box.policies.hf import HFPolicy
from toolrl_box.probe.bank import control_ids

SHORT = {"rollout": {"max_new_tokens": 4, "max_messages": 2}, "eval": {"ood_tasks": 3}}


def run_of(folder: Path, model: Path, steps: Sequence[int] = (0, 5), **settings: Any) -> Path:
    """A run folder as far as it is read here: settings, and ``model`` as every checkpoint."""

    def copy(to: Path) -> None:
        for path in model.iterdir():
            shutil.copy(path, to)

    folder.mkdir()
    config = parse({**SHORT, **settings}).model_dump(mode="json")
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    for step in steps:
        checkpoints.save(folder, step, copy, {})
    return folder


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    return run_of(tmp_path_factory.mktemp("examined") / "run", tiny_base, format="xml")


def cli_call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a_checkpoint_of_a_run_is_tried_in_the_runs_world_and_format(run_dir: Path) -> None:
    found = examine(subject_of(checkpoints.path_of(run_dir, 5)))
    assert found.config.format == "xml"
    assert [(c.suite, c.place.split, c.place.format) for c in found.conditions] == [
        ("id", "heldout", "xml"),
        *(("format", "heldout", other) for other in ("hermes", "pythonic")),
        ("content", "ood", "xml"),
        *(("both", "ood", other) for other in ("hermes", "pythonic")),
    ]
    assert all(c.reference is None and c.name == "free" for c in found.conditions)
    assert all(len(c.checkpoint.by_task["sampled"]) == 3 for c in found.conditions)
    assert found.verdict is None


def test_world_and_format_can_be_others_than_the_runs(run_dir: Path) -> None:
    folder = checkpoints.path_of(run_dir, 5)
    found = examine(subject_of(folder, "search", "hermes"), ["format"], 2)
    assert [c.place.format for c in found.conditions] == ["icrl", "pythonic", "xml"]


def test_the_command_writes_everything_that_a_study_needs(run_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    folder = str(checkpoints.path_of(run_dir, 5))
    arguments = ("--suite", "content", "--counterfactual", "--tasks", "4", "--output", str(file))
    assert cli_call("eval", folder, *arguments) == 0
    found = json.loads(file.read_text())
    assert [(c["name"], c["suite"], c["place"]["format"]) for c in found["conditions"]] == [
        ("free", "id", "xml"),
        ("free", "format", "hermes"),
        ("free", "format", "pythonic"),
        ("free", "content", "xml"),
        ("reference", "id", "xml"),
        ("grammar", "id", "xml"),
        ("forced", "id", "xml"),
    ]
    for condition in found["conditions"]:
        assert set(condition["checkpoint"]["by_task"]) == {"greedy", "sampled"}
        assert (condition["reference"] is None) == (condition["name"] == "reference")
    assert (found["world"], found["format"], found["tasks"]) == ("pocket", "xml", 4)
    assert len(set(found["task_ids"])) == 4
    assert found["reference"] == str(checkpoints.path_of(run_dir, 0))
    assert set(found["accuracy"]) == {"checkpoint", "reference"}
    assert found["verdict"]["name"] == "not collapsed"


def test_the_same_checkpoint_gives_the_same_twice(run_dir: Path) -> None:
    subject = subject_of(checkpoints.path_of(run_dir, 5))
    first, again = (examine(subject, ["id"], 3, reference_of(subject, BASE)) for _ in range(2))
    assert first == again


CONTROL = (*FORMATS["hermes"].control_tokens, "<|im_end|>")


@pytest.fixture
def damaged(tmp_path: Path) -> Callable[[bool], Examination]:
    """The shipped base with the logits of its control tokens (or of all others) turned round."""

    def make(control: bool) -> Examination:
        loaded = load_model("pocket")
        policy = HFPolicy(loaded.model, loaded.tokenizer, loaded.stop_ids, 0)
        rows = set(control_ids(CONTROL, policy.encode).values())
        turned = [i for i in range(policy.vocabulary) if (i in rows) == control]
        head = loaded.model.get_output_embeddings().weight
        head.data[turned] *= -1
        folder = tmp_path / "damaged"
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        settings = {"env": {"eval_categories": ["base"]}, "rollout": {"max_new_tokens": 32}}
        run = run_of(tmp_path / "run", folder, (3,), **settings)
        subject = subject_of(checkpoints.path_of(run, 3))
        return examine(subject, ["id"], 8, reference_of(subject, BASE))

    return make


def test_a_model_whose_control_tokens_alone_are_broken_is_intact_and_obscured(
    damaged: Callable[[bool], Examination],
) -> None:
    """Exactly the base comes back: the rest keeps its odds, the control tokens are the base's."""
    found = damaged(True)
    free = found.conditions[0]
    steered = next(c for c in found.conditions if c.name == "reference")
    assert free.reference is not None
    assert free.checkpoint.greedy.success == 0 < free.reference.greedy.success
    assert steered.checkpoint.by_task["greedy"] == free.reference.by_task["greedy"]
    assert found.verdict is not None
    assert (found.verdict.name, found.verdict.best) == ("intact and obscured", "reference")
    assert found.accuracy is not None
    assert found.accuracy["checkpoint"] == found.accuracy["reference"]
    told = "\n".join(lines(found))
    assert "verdict: intact and obscured; the best recovers" in told
    assert "recovered by the reference's control tokens" in told


def test_a_model_that_knows_nothing_but_structure_has_lost_its_capability(
    damaged: Callable[[bool], Examination],
) -> None:
    found = damaged(False)
    assert found.verdict is not None
    assert found.verdict.name == "lost"
    assert found.accuracy is not None
    assert found.accuracy["checkpoint"].call == 0.0
    assert (found.accuracy["reference"].call or 0) > 0.8


def test_the_base_is_the_checkpoint_after_the_warm_up_or_the_model_it_began_with(
    tmp_path: Path, tiny_base: Path
) -> None:
    warmed = run_of(tmp_path / "warmed", tiny_base, (2, 4), warmup_updates=2)
    subject = subject_of(checkpoints.path_of(warmed, 4))
    assert reference_of(subject, BASE) == str(checkpoints.path_of(warmed, 2))
    shutil.rmtree(checkpoints.path_of(warmed, 2))
    with pytest.raises(RunFolderError, match="no longer has its base, the checkpoint of step 2"):
        reference_of(subject, BASE)
    cold = run_of(tmp_path / "cold", tiny_base, (4,))
    assert reference_of(subject_of(checkpoints.path_of(cold, 4)), BASE) == "pocket"
    assert reference_of(subject, str(tiny_base)) == str(tiny_base)


def test_a_mistake_is_one_line_and_nothing_is_played(
    run_dir: Path, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def never(*_: object) -> None:
        raise AssertionError("something was played")

    monkeypatch.setattr("toolrl_box.capability.examine._played", never)
    (tmp_path / "empty").mkdir()
    step, model = str(checkpoints.path_of(run_dir, 5)), str(tiny_base)
    for arguments, message in (
        ((step, "--suite", "id,formt"), "unknown suite 'formt'; did you mean 'format'?"),
        ((str(run_dir),), "is a run folder: name one of its checkpoints"),
        ((str(tmp_path / "none"),), "there is no folder"),
        ((str(tmp_path / "empty"),), "is no Hugging Face model folder: config.json is missing"),
        ((model, "--counterfactual"), "is no checkpoint of a run, so its base is unknown"),
        ((step, "--reference", model), "--reference is for --counterfactual"),
        ((step, "--counterfactual", "--reference", "best"), "there is no folder 'best'"),
        ((step, "--counterfactual", "--tasks", "1"), "at least 2 tasks"),
        ((step, "--output", str(tmp_path / "no" / "x.json")), "--output: there is no folder"),
        ((model, "--env", "pockt"), "unknown environment 'pockt'; did you mean 'pocket'?"),
        ((model, "--format", "icrl"), "format 'icrl' cannot write the calls of world 'pocket'"),
    ):
        assert cli_call("eval", *arguments) == cli.USER_ERROR
        told = capsys.readouterr().err
        assert told.startswith("error: ")
        assert told.count("\n") == 1
        assert message in told


def test_a_reference_with_another_vocabulary_is_refused(
    run_dir: Path, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = load_model(str(tiny_base))
    loaded.tokenizer.add_tokens(["one more"])
    loaded.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    step = str(checkpoints.path_of(run_dir, 5))
    assert cli_call("eval", step, "--counterfactual", "--reference", str(tmp_path)) == 2
    assert "the reference has another vocabulary" in capsys.readouterr().err


def test_a_world_that_has_no_such_suite_or_no_gold_calls_says_so(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, questions = tmp_path / "corpus.jsonl", tmp_path / "questions.jsonl"
    corpus.write_text(json.dumps({"id": "1", "text": "a is b"}) + "\n")
    rows = [{"id": str(i), "question": f"a{i}?", "answers": ["b"]} for i in range(30)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    subject = subject_of(checkpoints.path_of(run_dir, 5))
    world = {"name": "search", "corpus": str(corpus), "questions": str(questions)}
    own = parse({**SHORT, "env": world, "format": "hermes"})
    foreign = type(subject)(subject.folder, own, subject.run_dir)
    with pytest.raises(ConfigError, match=r"has no suite 'both'.*; one of: id, format"):
        examine(foreign, ["both"])
    monkeypatch.setattr("toolrl_box.capability.gold._is_due", lambda message, fmt: False)
    with pytest.raises(DataError, match="the 2 tasks hold no tool call"):
        examine(subject, ["id"], 2, reference_of(subject, BASE))


def test_a_damaged_checkpoint_is_refused_by_name(run_dir: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(run_dir, copied)
    weights = checkpoints.path_of(copied, 5) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model.safetensors has changed"):
        subject_of(checkpoints.path_of(copied, 5))
