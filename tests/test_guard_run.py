"""A guarded run through the real laboratory: alarms, answers, a rollback, and an exact resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from toolrl_box import checkpoints, lab
from toolrl_box.config import RunConfig, load
from toolrl_box.lab import Watch
from toolrl_box.ladder import TEXT_SLOTS
from toolrl_box.runlog import RIGHT_TOKEN, RunLog

# Alarms as soon as the policy has left the base at all: an untrained model at this rate does so
# within its first steps, and again after every answer.
NERVOUS = {
    "version": 1,
    "detectors": [
        {
            "name": "moved",
            "level": "act",
            "when": {"signal": "bank_kl", "above": 1e-9, "statistics": [{"name": "level"}]},
        }
    ],
}
SETTINGS = (
    *("scheme=guarded", "scheme.grace=1", "scheme.margin=2", "scheme.updates=2", "steps=8"),
    "scheme.aim=true",
    *("scheme.ladder=[sft, rollback+sft+lr]", "scheme.budget=3", "grpo.lr=1e-3"),
    *("grpo.prompts_per_step=2", "grpo.group_size=4", "rewards={format_share: 1}"),
    *("env.train_tasks=8", "env.eval_tasks=4", "probe.episodes=4"),
    *("eval.every=4", "eval.ood=false", "checkpoint.every=1"),
    *("rollout.max_messages=4", "rollout.max_new_tokens=12"),
)


@pytest.fixture(scope="module")
def config(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    detector = tmp_path_factory.mktemp("detector") / "nervous.json"
    detector.write_text(json.dumps(NERVOUS))
    return load(sets=[*SETTINGS, f"guard.detector={detector}", f"model={tiny_base}"])


@pytest.fixture(scope="module")
def whole(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("guarded") / "run"
    assert lab.start(config, run_dir) == "done"
    return run_dir


def events(run_dir: Path, name: str) -> list[dict[str, Any]]:
    return [event for event in RunLog.open(run_dir).journal() if event["event"] == name]


def test_alarms_are_answered_by_the_ladder_and_the_journal_tells_it(whole: Path) -> None:
    kinds = [event["kind"] for event in events(whole, "phase_start")]
    assert kinds[:5] == ["rl", "sft", "rl", "rollback", "sft"]
    assert kinds.count("sft") == 3  # the budget
    alarms = [event["step"] for event in events(whole, "alarm")]
    ended = [event["outcome"]["alarm"] for event in events(whole, "phase_end")]
    assert ended[0]["step"] == alarms[0]
    cut = [e["detail"]["lr_factor"] for e in events(whole, "phase_start") if e["kind"] == "rl"]
    assert cut == [1.0, 1.0, 0.5, 0.25][: len(cut)]


def test_the_answer_is_aimed_at_the_slot_that_lost_most_since_the_base(whole: Path) -> None:
    probe = RunLog.open(whole).probe()
    right = probe[probe["token"] == RIGHT_TOKEN].set_index(["step", "slot"])["mean_logprob"]
    told = events(whole, "phase_end")
    answers = [event for event in events(whole, "phase_start") if event["kind"] == "sft"]
    aimed = []
    for answer in answers:
        outcome = next(
            o["outcome"] for o in reversed(told[: answer["index"]]) if o["outcome"]["alarm"]
        )
        lost = right.loc[0] - right.loc[outcome["alarm"]["step"]]
        assert outcome["moved"] == lost.idxmax()
        aimed.append("text" if outcome["moved"] in TEXT_SLOTS else "call")
    assert [answer["detail"]["messages"] for answer in answers] == aimed


def test_a_rollback_goes_to_the_checkpoint_before_the_alarm(whole: Path) -> None:
    for back in events(whole, "rollback"):
        (alarm,) = [event for event in events(whole, "alarm") if event["step"] == back["step"]]
        assert back["to"] == max(0, alarm["step"] - 2)


def test_a_guarded_run_that_was_stopped_ends_as_the_undisturbed_one(
    whole: Path, config: RunConfig, tmp_path: Path
) -> None:
    last = RunLog.open(whole).journal()[-1]["step"]
    alarmed = events(whole, "rollback")[0]["step"]
    for stop in (alarmed, alarmed + 1):  # between alarm and answer, and within the answer
        run_dir = tmp_path / f"stopped{stop}"
        steps: list[int] = []
        watch = Watch(
            show=lambda line, steps=steps: steps.append(line.progress.step),
            should_stop=lambda steps=steps, stop=stop: bool(steps) and steps[-1] + 1 == stop,
        )
        assert lab.start(config, run_dir, watch) == "stopped"
        assert lab.resume(run_dir) == "done"
        assert RunLog.open(run_dir).journal() == RunLog.open(whole).journal()
        ends = [checkpoints.path_of(d, last) / "model.safetensors" for d in (whole, run_dir)]
        first, second = map(load_file, ends)
        assert all(bool((first[name] == second[name]).all()) for name in first)
