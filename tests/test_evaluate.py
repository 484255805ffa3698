"""Evaluation: shares by category, errors that are counted, and checkpoints tried where the run was
not trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from toolrl_box import cli, ood
from toolrl_box.config import RolloutSettings, RunConfig, parse
from toolrl_box.errors import CheckpointError, ConfigError, RunFolderError
from toolrl_box.evaluate import Evaluator
from toolrl_box.formats import FORMATS
from toolrl_box.report import write_report
from toolrl_box.runlog import RunLog
from toolrl_box.testing import ByteCodec, EchoEnvironment, ScriptedPolicy, echo_task

WORLDS = ["in_distribution", "content_ood", "format_ood", "both_ood"]


def scripted(script: list[list[str]], words: list[list[str]]) -> Evaluator:
    """Row r of the script answers the task of words r; the category is the number of turns."""
    codec = ByteCodec()
    tasks = [replace(echo_task(said), category=f"turns_{len(said)}") for said in words]
    settings = RolloutSettings(max_new_tokens=300, max_tokens=4000, max_observation_tokens=500)
    policy = ScriptedPolicy(script, codec)
    return Evaluator(
        tasks, policy, FORMATS["hermes"], EchoEnvironment, codec.encode, codec.decode, settings
    )


def call(name: str, text: str) -> str:
    arguments = json.dumps({"text": text})
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def test_success_is_the_share_of_all_episodes_and_of_each_category() -> None:
    score = scripted([["a"], ["x"], ["a", "b"]], [["a"], ["b"], ["a", "b"]]).score(0.0)
    assert score.success == pytest.approx(2 / 3)
    assert score.by_category == {"turns_1": 0.5, "turns_2": 1.0}
    assert score.errors == 0


def test_an_episode_that_breaks_is_unsolved_and_counted() -> None:
    score = scripted([[call("boom", "a")], ["b"]], [["a"], ["b"]]).score(1.0)
    assert (score.success, score.errors) == (0.5, 1)


def test_the_evaluation_while_training_has_both_temperatures_by_category() -> None:
    assert scripted([["a"], ["x"]], [["a"], ["b"]])() == {
        "eval_greedy": 0.5,
        "eval_greedy_turns_1": 0.5,
        "eval_sampled": 0.5,
        "eval_sampled_turns_1": 0.5,
    }


def test_another_format_than_the_trained_one_is_taken() -> None:
    for trained in FORMATS:
        formats = {w.name: w.format for w in ood.places(RunConfig(format=trained))}
        assert formats["in_distribution"] == formats["content_ood"] == trained
        assert formats["format_ood"] == formats["both_ood"] != trained


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """Two SFT updates on an untrained model, evaluated at the end by `toolrl run` itself."""
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    sets = {
        "model.name": tiny_base,
        "scheme": "{name: sft, updates: 2, every: 1}",
        "env.train_tasks": 2,
        "env.eval_tasks": 2,
        "eval.every": 1,
        "eval.ood_tasks": 2,
        "rollout.max_new_tokens": 4,
        "rollout.max_messages": 2,
        "probe.episodes": 2,
        "sft.batch_size": 2,
    }
    words = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("toolrl_box.progress.silence", lambda: None)
        cli_call("run", *words, "--output-dir", str(folder), "--no-report")
    return folder


def cli_call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a_run_ends_with_its_final_and_best_checkpoint_evaluated(trained: Path) -> None:
    made = RunLog.open(trained).evaluations()
    names = [name for evaluation in made for name in evaluation["names"]]
    assert {"best", "final"} <= set(names)
    assert made[-1]["step"] == 2
    for evaluation in made:
        assert list(evaluation["worlds"]) == WORLDS
        assert evaluation["tasks"] == 2
        for world in evaluation["worlds"].values():
            assert set(world["greedy"]["by_category"]) == {"base", "miss_func"}
            assert 0.0 <= world["sampled"]["success"] <= 1.0


def test_more_checkpoints_are_added_and_a_repeated_one_is_replaced(trained: Path) -> None:
    assert cli_call("evaluate", str(trained), "--checkpoint", "1", "--tasks", "1") == 0
    made = {e["step"]: e for e in RunLog.open(trained).evaluations()}
    assert made[1]["tasks"] == 1
    assert made[2]["tasks"] == 2
    ood.evaluate_run(trained, ["base"], 1)
    again = RunLog.open(trained).evaluations()
    assert [e["step"] for e in again] == sorted({0, 1, 2, *made})
    assert "base" in again[0]["names"]


def test_the_same_checkpoint_gives_the_same_figures_twice(trained: Path) -> None:
    assert ood.evaluate_run(trained, ["2"], 2) == ood.evaluate_run(trained, ["final"], 2)


def test_its_tasks_are_not_those_by_which_the_best_checkpoint_was_chosen(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, set[str]] = {}
    play = Evaluator.score

    def watched(self: Evaluator, temperature: float) -> Any:
        seen.setdefault(self.tasks[0].id.split("-")[0], set()).update(t.id for t in self.tasks)
        return play(self, temperature)

    monkeypatch.setattr(Evaluator, "score", watched)
    ood.evaluate_run(trained, ["final"], 3)
    assert set(seen) == {"heldout", "ood"}
    assert not {f"heldout-0-{i}" for i in range(64)} & seen["heldout"]


def test_the_report_shows_the_table(trained: Path) -> None:
    summary = write_report(trained)
    assert summary["ood"] == RunLog.open(trained).evaluations()
    for page in ("index.html", "report.md"):
        text = (trained / "report" / page).read_text()
        assert "Other tasks, other formats" in text
        assert "pythonic" in text


def test_a_mistake_is_named_before_anything_is_computed(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> Callable[..., Any]:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(ood, "load_model", never)
    with pytest.raises(
        ConfigError, match="unknown checkpoint 'bst'; one of: base, best, final, or"
    ):
        ood.evaluate_run(trained, ["bst"])
    with pytest.raises(
        RunFolderError, match=r"no complete checkpoint of step 7; .* a step: 0, 1, 2"
    ):
        ood.evaluate_run(trained, ["7"])
    with pytest.raises(RunFolderError, match="does not exist"):
        ood.evaluate_run(tmp_path / "none")
    with RunLog.create(tmp_path / "begun", parse({}).model_dump(mode="json"), {}):
        pass
    with pytest.raises(RunFolderError, match="no checkpoint 'final': it has not finished"):
        ood.evaluate_run(tmp_path / "begun", ["final"])
    with pytest.raises(RunFolderError, match="no checkpoint 'best': nothing was evaluated"):
        ood.evaluate_run(tmp_path / "begun", ["best"])
    assert cli_call("evaluate", str(trained), "--checkpoint", "bst") == cli.USER_ERROR


def test_a_damaged_checkpoint_is_refused_by_name(trained: Path) -> None:
    weights = trained / "checkpoints" / "step_000001" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model.safetensors has changed"):
        ood.evaluate_run(trained, ["1"])
