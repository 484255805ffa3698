"""The recorder writes everything a run does, and a checkpoint from which the rest repeats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import Qwen2ForCausalLM, Qwen2Tokenizer

from toolrl_box import checkpoints
from toolrl_box.config import RunConfig, parse
from toolrl_box.envs.pocket import CATEGORIES, PocketEnv, make_tasks
from toolrl_box.formats import FORMATS
from toolrl_box.models.pocket import PocketRecipe
from toolrl_box.models.pretrain import new_model
from toolrl_box.phases import RL, SFT, Context
from toolrl_box.probe.bank import build_bank
from toolrl_box.probe.probe import Probe
from toolrl_box.readings import readings
from toolrl_box.recorder import Line, Recorder
from toolrl_box.rollout import replay_gold
from toolrl_box.runlog import RIGHT_TOKEN, RunLog, RunView
from toolrl_box.schemes.interleaved import Interleaved
from toolrl_box.train import OnStep, Progress, StepResult, drive
from toolrl_box.types import Alarm, Group, Reading, Rollout

Encode = Callable[[str], list[int]]
FORMAT = FORMATS["hermes"]
TASKS = make_tasks("train", 8, 0, CATEGORIES)
CONFIG = parse({"eval": {"every": 4}, "checkpoint": {"every": 3, "keep_optimizer": 2, "dense": 0}})


@dataclass
class Rehearsed:
    """A backend whose steps play gold, and spoil every second rollout; weights move a little."""

    model: Qwen2ForCausalLM
    encode: Encode

    def rl(self, phase: RL, steps: int, first: int, *, on_step: OnStep) -> None:
        for rl_step in range(first, first + steps):
            self.move(rl_step)
            task = TASKS[rl_step % len(TASKS)]
            figures = {"loss": 0.5, "entropy": 1.0, "lr": 1e-3, "seconds_step": 0.1}
            if on_step(StepResult(figures, (self.group(task),))):
                return

    def group(self, task_: object) -> Group:
        task = TASKS[TASKS.index(task_)]  # type: ignore[arg-type]
        good = replace(replay_gold(task, FORMAT, PocketEnv(), self.encode), source="policy")
        good = replace(good, reward=1.0, reward_parts={"task_success": 1.0})
        parsed = FORMAT.parse("<tool_call>")
        bad = replace(
            good,
            turns=(replace(good.turns[0], text="<tool_call>", parsed=parsed),),
            outcome={"success": 0.0},
            reward=0.0,
            reward_parts={"task_success": 0.0},
        )
        return Group(task, (good, bad))

    def sft_steps(self, phase: SFT) -> int:
        return phase.steps or 0

    def sft(self, phase: SFT, done: int, seed_step: int, *, on_step: OnStep) -> None:
        for update in range(done, self.sft_steps(phase)):
            self.move(1000 + update)
            if on_step(StepResult({"loss": 1.0, "lr": 1e-3})):
                return

    def move(self, seed: int) -> None:
        torch.manual_seed(seed)
        with torch.no_grad():
            self.model.lm_head.weight.add_(0.01 * torch.randn_like(self.model.lm_head.weight))

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        (folder / "optimizer_rl.safetensors").write_bytes(b"moments")


@dataclass
class Counting:
    """A detector that sounds at one step and counts what it has seen."""

    alarm_at: int = 4
    seen: list[int] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    name = "counting"

    def update(self, reading: Reading) -> Alarm | None:
        self.seen.append(reading.step)
        self.readings.append(reading)
        assert {"bank_nll", "bank_kl"} <= reading.values.keys()
        if reading.step != self.alarm_at:
            return None
        return Alarm(self.name, reading.step, 2.0, 1.0, "act")

    def state(self) -> dict[str, object]:
        return {"seen": self.seen}

    def restore(self, state: dict[str, list[int]]) -> None:
        self.seen = list(state["seen"])


@dataclass
class Played:
    """A finished run and what was shown of it."""

    log: RunView
    lines: list[Line]
    detector: Counting
    recorder: Recorder


class Laboratory:
    """Plays runs of eight RL steps into new folders."""

    def __init__(self, recipe: PocketRecipe, tokenizer: Qwen2Tokenizer, encode: Encode) -> None:
        self.recipe, self.tokenizer, self.encode = recipe, tokenizer, encode

    def play(self, folder: Path, stop_at: int | None = None, config: RunConfig = CONFIG) -> Played:
        lines: list[Line] = []
        detector, scores = Counting(), iter((0.2, 0.6, 0.4, 0.6, 0.1))

        def evaluate() -> dict[str, float]:
            score = next(scores)
            return {"eval_greedy": score, "eval_sampled": score, "eval_greedy_base": score}

        def should_stop() -> bool:
            return bool(lines) and lines[-1].progress.step + 1 == stop_at

        model = new_model(self.recipe, self.tokenizer)
        backend = Rehearsed(model, self.encode)
        bank = build_bank(make_tasks("bank", 2, 0), FORMAT, self.encode)
        with RunLog.create(folder, config.model_dump(mode="json"), {}) as log:
            recorder = Recorder(
                log,
                backend,
                Probe(model, bank, int(self.tokenizer.pad_token_id)),
                evaluate,
                [detector],
                FORMAT,
                config,
                lambda line: lines.append(replace(line, progress=replace(line.progress))),
                should_stop,
            )
            ctx = Context(8, {task.id: task for task in TASKS})
            drive(Interleaved(every=3, updates=2), ctx, backend, recorder)
        return Played(RunLog.open(folder), lines, detector, recorder)


@pytest.fixture(scope="module")
def laboratory(
    tiny_recipe: PocketRecipe, pocket_tokenizer: Qwen2Tokenizer, encode: Encode
) -> Laboratory:
    return Laboratory(tiny_recipe, pocket_tokenizer, encode)


@pytest.fixture(scope="module")
def whole(laboratory: Laboratory, tmp_path_factory: pytest.TempPathFactory) -> Played:
    """One run that several tests only look at."""
    return laboratory.play(tmp_path_factory.mktemp("recorder") / "run")


def test_every_step_has_its_figures(whole: Played) -> None:
    played = whole
    metrics = played.log.metrics()
    assert metrics["step"].tolist() == list(range(15))  # 8 RL steps, 3 x 2 SFT updates, the start
    assert metrics["phase_kind"].tolist() == [
        *("", "rl", "rl", "rl", "sft", "sft", "rl", "rl", "rl", "sft", "sft", "rl", "rl"),
        *("sft", "sft"),
    ]
    assert metrics["rl_step"].iloc[-1] == 8
    rl = metrics[metrics["phase_kind"] == "rl"]
    assert set(rl["reward"]) == {0.5}
    assert set(rl["reward_spread"]) == {0.5}
    assert set(rl["zero_spread"]) == {0.0}
    states = [column for column in metrics if column.startswith("state_")]
    assert rl[states].sum(axis=1).tolist() == pytest.approx([1.0] * len(rl))
    assert metrics[metrics["phase_kind"] == "sft"]["reward"].isna().all()
    assert metrics["bank_kl"].iloc[0] == 0.0
    assert (metrics["bank_kl"].iloc[1:] > 0.0).all()
    assert metrics["bank_nll"].notna().all()


def test_kinds_of_defects_are_shares_of_the_messages(whole: Played) -> None:
    metrics = whole.log.metrics()
    kinds = [column for column in metrics if column.startswith("kind_")]
    rl = metrics[metrics["phase_kind"] == "rl"]
    assert rl[kinds].sum(axis=1).tolist() == pytest.approx([1.0] * len(rl))


def test_evaluation_is_at_the_start_and_every_few_steps(whole: Played) -> None:
    metrics = whole.log.metrics().set_index("step")
    evaluated = metrics["eval_greedy"].dropna()
    assert dict(evaluated) == {0: 0.2, 4: 0.6, 8: 0.4, 12: 0.6}
    assert metrics["eval_greedy_base"].dropna().index.tolist() == [0, 4, 8, 12]


def test_the_best_is_the_first_of_equals(whole: Played) -> None:
    best = [event for event in whole.log.journal() if event["event"] == "best"]
    assert [(event["step"], event["score"]) for event in best] == [(0, 0.2), (4, 0.6)]


def test_the_journal_tells_the_phases_with_their_outcomes(whole: Played) -> None:
    journal = whole.log.journal()
    starts = [event for event in journal if event["event"] == "phase_start"]
    ends = [event for event in journal if event["event"] == "phase_end"]
    assert [event["kind"] for event in starts] == ["rl", "sft"] * 3
    assert [event["step"] for event in starts] == [1, 4, 6, 9, 11, 13]
    assert [event["outcome"]["steps"] for event in ends] == [3, 2, 3, 2, 2, 2]
    assert starts[1]["detail"]["tasks"] == [task.id for task in TASKS[:3]]
    neutral = {"lr": None, "experts": None, "hints": None, "shots": 0, "sft": None}
    neutral |= {"until": None, "grace": 0, "lr_factor": 1.0, "beta": None}
    assert starts[0]["detail"] == {"steps": 3, "fresh_optimizer": False, **neutral}
    assert journal[-1] == {"event": "finish", "step": 14, "rl_step": 8}


def test_an_alarm_is_logged_shown_and_part_of_its_phase(whole: Played) -> None:
    played = whole
    (alarm,) = [event for event in played.log.journal() if event["event"] == "alarm"]
    assert alarm == {
        **{"event": "alarm", "detector": "counting", "step": 4},
        **{"value": 2.0, "threshold": 1.0, "level": "act"},
    }
    assert [line.progress.step for line in played.lines if line.alarms] == [4]
    ends = [event for event in played.log.journal() if event["event"] == "phase_end"]
    assert [bool(event["outcome"]["alarm"]) for event in ends] == [False, True, *[False] * 4]
    assert played.detector.seen == list(range(1, 15))


def test_checkpoints_are_regular_and_the_last_step_has_one(whole: Played) -> None:
    log = whole.log
    assert checkpoints.complete_steps(log.path) == [0, 3, 4, 6, 8, 9, 12, 14]
    reasons = [event["reason"] for event in log.journal() if event["event"] == "checkpoint"]
    assert reasons == ["start", *["regular"] * 6, "end"]
    kept = [
        step
        for step in checkpoints.complete_steps(log.path)
        if (checkpoints.path_of(log.path, step) / "optimizer_rl.safetensors").exists()
    ]
    assert kept == [9, 12, 14]  # two of the schedule, and the last


def test_from_an_alarm_on_every_step_is_saved_and_a_bounded_number_kept(
    laboratory: Laboratory, tmp_path: Path
) -> None:
    settings = {"eval": {"every": 14}, "checkpoint": {"every": 7, "dense": 2}}
    log = laboratory.play(tmp_path / "run", config=parse(settings)).log
    saved = [(e["step"], e["reason"]) for e in log.journal() if e["event"] == "checkpoint"]
    # The alarm is at step 4.
    assert saved == [*((0, "start"), (4, "alarm"), (5, "alarm"), (7, "regular"), (14, "regular"))]
    assert checkpoints.complete_steps(log.path) == [0, 4, 5, 7, 14]


def test_a_rollback_never_goes_behind_the_base(laboratory: Laboratory, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"warmup_updates": 3})
    played = laboratory.play(tmp_path / "run", config=config)
    recorder, log = played.recorder, played.log
    scheduled = [step for step in checkpoints.complete_steps(log.path) if step <= 6]
    assert scheduled == [0, 3, 4, 6]
    targets: list[Path] = []
    recorder._backend.load = targets.append  # type: ignore[method-assign]
    with RunLog.resume(log.path) as again:
        recorder._log = again
        again.rewind(checkpoints.verify(checkpoints.path_of(log.path, 14))["cursor"])
        for before in (-2, 2, 5, 6):
            recorder.rollback(played.lines[-1].progress, before)
    assert [int(path.name[-2:]) for path in targets] == [3, 3, 4, 6]


def test_a_stop_saves_at_once_and_leaves_the_journal_as_if_there_had_been_none(
    laboratory: Laboratory, tmp_path: Path
) -> None:
    log = laboratory.play(tmp_path / "run", stop_at=5).log
    assert checkpoints.complete_steps(log.path)[-1] == 5
    assert log.metrics()["step"].tolist()[-1] == 5
    assert log.journal()[-1] == {"event": "checkpoint", "step": 4, "reason": "regular"}


def test_a_checkpoints_state_leads_back_to_its_step(laboratory: Laboratory, tmp_path: Path) -> None:
    played = laboratory.play(tmp_path / "run")
    state = checkpoints.verify(checkpoints.path_of(played.log.path, 6))
    assert Progress.from_json(state["progress"]).step == 6
    assert state["cursor"]["step"] == 6
    assert state["best"] == [4, 0.6]
    assert state["detectors"] == {"counting": {"seen": [1, 2, 3, 4, 5, 6]}}
    with RunLog.resume(played.log.path) as log:
        log.rewind(state["cursor"])
    view = RunLog.open(played.log.path)
    assert view.metrics()["step"].tolist() == list(range(7))
    assert view.rollout_steps() == [1, 2, 3, 6]
    assert view.journal()[-1] == {"event": "checkpoint", "step": 6, "reason": "regular"}


def test_detectors_and_best_mark_are_restored(laboratory: Laboratory, tmp_path: Path) -> None:
    played = laboratory.play(tmp_path / "run")
    dense = {"dense": [], "dense_left": 0, "alarmed": False}
    state = {"detectors": {"counting": {"seen": [1]}}, "best": [4, 0.6], **dense}
    played.recorder.restore(state)
    assert played.detector.seen == [1]
    state = {"detectors": {"counting": {"seen": []}}, "best": None, **dense}
    played.recorder.restore(state)
    assert played.detector.seen == []


@pytest.mark.parametrize("every", [1, 5])
def test_the_run_folder_gives_exactly_the_readings_that_detectors_saw(
    laboratory: Laboratory, tmp_path: Path, every: int
) -> None:
    config = parse({"eval": {"every": 4}, "probe": {"every": every}})
    played = laboratory.play(tmp_path / "run", config=config)
    seen = played.detector.readings
    assert [one.step for one in seen] == list(range(every, 15, every))
    assert readings(played.log) == seen
    kinds = played.log.metrics().set_index("step")["phase_kind"]
    for one in seen:
        assert ("reward" in one.values) == (kinds[one.step] == "rl")
        assert ("unhealthy" in one.values) == (kinds[one.step] == "rl")


def test_rollouts_are_kept_with_tokens_masks_and_findings(
    whole: Played, pocket_tokenizer: Qwen2Tokenizer
) -> None:
    rows = whole.log.rollouts(1)
    assert rows["task_id"].tolist() == [TASKS[0].id] * 2
    assert rows[["group", "member"]].values.tolist() == [[0, 0], [0, 1]]
    assert rows["reward"].tolist() == rows["success"].tolist() == [1.0, 0.0]
    assert rows["reward_parts"].iloc[0] == {"task_success": 1.0}
    good = rows.iloc[0]
    assert len(good.token_ids) == len(good.loss_mask) == len(good.logprobs)
    assert pocket_tokenizer.decode(list(good.token_ids)).startswith("<|im_start|>system\n")
    roles = [message["role"] for message in good.messages]
    assert roles == [m.role for m in (*TASKS[0].prompt, *TASKS[0].gold)]
    assert rows.iloc[1].messages[2]["state"] != "healthy_call"


def test_the_probe_is_kept_in_means_and_in_every_context(whole: Played) -> None:
    log = whole.log
    probe: pd.DataFrame = log.probe()
    assert sorted(set(probe["step"])) == list(range(15))
    contexts = log.contexts(14)
    mean = contexts.loc[contexts["slot"] == "after_call", RIGHT_TOKEN].mean()
    row = probe[(probe["step"] == 14) & (probe["slot"] == "after_call")]
    assert row.loc[row["token"] == RIGHT_TOKEN, "mean_logprob"].item() == pytest.approx(mean)


def test_a_sparse_probe_leaves_the_steps_between_without_figures(
    laboratory: Laboratory, tmp_path: Path
) -> None:
    config = parse({"eval": {"every": 4}, "probe": {"every": 5}})
    played = laboratory.play(tmp_path / "run", config=config)
    metrics = played.log.metrics().set_index("step")
    assert metrics["bank_nll"].dropna().index.tolist() == [0, 5, 10]
    assert played.detector.seen == [5, 10]


def test_a_rollout_whose_environment_failed_at_once_is_written_down(tmp_path: Path) -> None:
    from toolrl_box.recorder import _rollout_rows

    broken = Rollout(TASKS[0], (), (), "error", error="RuntimeError: no")
    (row,) = _rollout_rows(1, [Group(TASKS[0], (broken,))], [[[]]])
    with RunLog.create(tmp_path / "run", {}, {}) as log:
        log.rollouts(1, [row])
        log.metrics({"step": 1})
        log.commit()
    kept = RunLog.open(tmp_path / "run").rollouts(1).iloc[0]
    assert kept.error == "RuntimeError: no"
    assert list(kept.token_ids) == []
