"""One line in anybody's trainer: figures in its logs, alarms, a checkpoint, an end."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import (
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import toolrl_box
from toolrl_box import CollapseGuard, callback
from toolrl_box.detector_file import Base, DetectorFile, digest, dump, load
from toolrl_box.detectors import Detector
from toolrl_box.envs.pocket import CATEGORIES, make_tasks
from toolrl_box.errors import ConfigError, DataError, ModelError, RunFolderError
from toolrl_box.formats import FORMATS, to_chat, to_tools
from toolrl_box.models import load_causal, load_model
from toolrl_box.models.pocket_tokenizer import build_tokenizer
from toolrl_box.probe.bank import build_bank
from toolrl_box.probe.probe import Probe
from toolrl_box.types import Alarm, Reading, Task

TASKS = make_tasks("bank", 4, 0, CATEGORIES)
DIALOGUES = [
    {"messages": to_chat([*task.prompt, *task.gold]), "tools": to_tools(task.tools)}
    for task in TASKS
]
Make = Callable[..., Trainer]


class At:
    """Alarms at steps that the test chooses."""

    name = "at"

    def __init__(self, levels: dict[int, Any]) -> None:
        self.levels = levels
        self.seen: list[int] = []

    def update(self, reading: Reading) -> Alarm | None:
        self.seen.append(reading.step)
        level = self.levels.get(reading.step)
        return None if level is None else Alarm(self.name, reading.step, 2.0, 1.0, level)

    def state(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def restore(self, state: dict[str, Any]) -> None:
        self.seen = list(state["seen"])


class Tracker(TrainerCallback):
    """Sees what wandb, tensorboard and trackio see."""

    def __init__(self) -> None:
        self.records: list[tuple[int, dict[str, Any]]] = []

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.records.append((state.global_step, dict(kwargs["logs"])))

    def probed(self) -> list[int]:
        return [step for step, logs in self.records if "collapse/bank_nll" in logs]


@pytest.fixture
def make(tiny_model: Qwen2ForCausalLM, tmp_path: Path) -> Make:
    """Makes a plain trainer that learns to write noise; dropout makes it draw random numbers.
    Unless given another, the model is the tiny one as it was at first."""
    tiny_model.config.attention_dropout = 0.2
    for layer in tiny_model.model.layers:
        layer.self_attn.attention_dropout = 0.2
    start = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    rows = torch.randint(3, 600, (64, 24), generator=torch.Generator().manual_seed(0))

    def trainer(
        callbacks: Sequence[TrainerCallback] = (),
        model: PreTrainedModel | None = None,
        **settings: Any,
    ) -> Trainer:
        tiny_model.load_state_dict(start)
        values: dict[str, Any] = {
            **{"output_dir": str(tmp_path / "out"), "max_steps": 6, "learning_rate": 1e-2},
            **{"per_device_train_batch_size": 4, "logging_steps": 4, "save_strategy": "no"},
            **{"report_to": [], "use_cpu": True, "disable_tqdm": True, "seed": 3},
            **settings,
        }
        return Trainer(
            model=tiny_model if model is None else model,
            args=TrainingArguments(**values),
            train_dataset=[{"input_ids": row, "labels": row} for row in rows],  # type: ignore[arg-type]
            processing_class=build_tokenizer(),
            callbacks=list(callbacks),
        )

    return trainer


@pytest.fixture
def alarms(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[At]]:
    """Puts chosen alarms in the place of the detectors; returns those that guards made."""

    def put(levels: dict[int, Any]) -> list[At]:
        made: list[At] = []

        def detectors(file: DetectorFile) -> list[Detector]:
            made.append(At(levels))
            return [made[-1]]

        monkeypatch.setattr(callback, "make_detectors", detectors)
        return made

    return put


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    assert isinstance(trainer.model, torch.nn.Module)
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def test_importing_the_package_does_not_import_torch() -> None:
    program = "import sys, toolrl_box; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_trackers_get_the_figures_before_training_and_every_few_steps(make: Make) -> None:
    tracker = Tracker()
    trainer = make([tracker])
    trainer.add_callback(CollapseGuard(trainer, DIALOGUES, every=3))
    trainer.train()
    assert tracker.probed() == [0, 3, 6]
    first = dict(tracker.records)[0]
    assert first["collapse/bank_kl"] == 0.0
    last = next(logs for step, logs in tracker.records if step == 6 and "loss" in logs)
    assert last["collapse/bank_kl"] > 0.0
    assert {f"collapse/{name}" for name in callback.SEEN} < last.keys()
    assert {"collapse/alarm", "collapse/nll_start_call_due"} < last.keys()
    kept = [row for row in trainer.state.log_history if "collapse/bank_nll" in row]
    assert [row["step"] for row in kept] == [0, 3, 6]
    assert kept[-1]["collapse/bank_nll"] == last["collapse/bank_nll"]


def test_the_figures_are_the_probes_own(
    make: Make, pocket_tokenizer: Qwen2Tokenizer, encode: Callable[[str], list[int]]
) -> None:
    trainer = make()
    probe = Probe(trainer.model, build_bank(TASKS, FORMATS["hermes"], encode), 0)  # type: ignore[arg-type]
    trainer.add_callback(CollapseGuard(trainer, DIALOGUES, every=6))
    trainer.train()
    logged, seen = trainer.state.log_history[-2], probe()
    assert logged["step"] == 6
    assert logged["collapse/bank_nll"] == pytest.approx(seen.nll, abs=1e-5)
    assert logged["collapse/bank_kl"] == pytest.approx(seen.kl, abs=1e-5)


def test_a_guarded_training_ends_with_the_weights_of_an_unguarded_one(make: Make) -> None:
    plain = make()
    plain.train()
    expected = weights(plain)
    guarded = make()
    guarded.add_callback(CollapseGuard(guarded, DIALOGUES, every=1))
    guarded.train()
    assert all(torch.equal(expected[name], value) for name, value in weights(guarded).items())


def test_an_alarm_is_told_once_and_again_when_it_gets_worse(
    make: Make, alarms: Callable[..., list[At]], caplog: pytest.LogCaptureFixture
) -> None:
    alarms({1: "warn", 2: "warn", 3: "act", 4: "act", 6: "warn"})
    trainer = make()
    trainer.add_callback(CollapseGuard(trainer, DIALOGUES, every=1))
    with caplog.at_level(logging.WARNING, logger=callback.__name__):
        trainer.train()
    told = [record.getMessage() for record in caplog.records if "guard" in record.getMessage()]
    assert [text.split(": ")[1] for text in told] == [
        *("warn at step 1", "act at step 3", "warn at step 6")
    ]
    assert "at 2 is above 1 (NLL of the bank" in told[0]
    history = trainer.state.log_history
    assert [row["collapse/alarm"] for row in history if "collapse/alarm" in row] == [
        *(0.0, 1.0, 1.0, 2.0, 2.0, 0.0, 1.0)
    ]


@pytest.mark.parametrize(
    ("action", "steps", "checkpoints"),
    [("warn", 6, []), ("save", 6, ["checkpoint-2", "checkpoint-4"]), ("stop", 4, [])],
)
def test_each_action_does_what_it_says(
    make: Make,
    alarms: Callable[..., list[At]],
    tmp_path: Path,
    action: Any,
    steps: int,
    checkpoints: list[str],
) -> None:
    alarms({2: "warn", 4: "act"})
    trainer = make()
    trainer.add_callback(CollapseGuard(trainer, DIALOGUES, every=2, action=action))
    trainer.train()
    assert trainer.state.global_step == steps
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")) == checkpoints


def test_a_model_that_unlearns_to_call_is_stopped(make: Make) -> None:
    trainer = make(model=load_model("pocket").model, max_steps=20, learning_rate=1e-3)
    trainer.add_callback(CollapseGuard(trainer, DIALOGUES, every=1, action="stop"))
    trainer.train()
    assert 5 < trainer.state.global_step < 20
    history = [row for row in trainer.state.log_history if "collapse/alarm" in row]
    assert [row["collapse/alarm"] for row in history][-1] == 2.0
    assert history[-1]["collapse/bank_nll"] > 1.5 * history[0]["collapse/bank_nll"]


TWO_PROCESSES = """
import json, sys
import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments
from toolrl_box import CollapseGuard, callback
from toolrl_box.models import load_causal, load_model

folder, dialogues = sys.argv[1], json.load(open(sys.argv[2]))
loaded = load_model("pocket")
rows = torch.randint(3, 600, (64, 24), generator=torch.Generator().manual_seed(0))
trainer = Trainer(
    model=loaded.model,
    args=TrainingArguments(
        output_dir=folder, max_steps=20, learning_rate=1e-3, per_device_train_batch_size=2,
        report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no", seed=3,
    ),
    train_dataset=[{"input_ids": row, "labels": row} for row in rows],
    processing_class=loaded.tokenizer,
)
assert trainer.args.world_size == 2
rank = trainer.args.process_index
if rank == 1:  # this process sees no harm; left to itself it would go on, and wait for ever
    right = callback._signals
    callback._signals = lambda seen: dict.fromkeys(right(seen), 0.5)
trainer.add_callback(CollapseGuard(trainer, dialogues, every=1, action="stop"))
trainer.train()
said = [
    {k: v for k, v in row.items() if k.startswith("collapse/")}
    for row in trainer.state.log_history
    if "collapse/bank_nll" in row
]
with open(f"{folder}/rank{rank}.json", "w") as file:
    json.dump({"step": trainer.state.global_step, "figures": said}, file)
"""


def test_two_processes_stop_at_the_same_step_by_the_first_ones_figures(tmp_path: Path) -> None:
    program, dialogues, out = tmp_path / "train.py", tmp_path / "gold.json", tmp_path / "out"
    program.write_text(TWO_PROCESSES)
    dialogues.write_text(json.dumps(DIALOGUES))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launch, str(program), str(out), str(dialogues)],
        env={**os.environ, "PYTHONPATH": str(Path(toolrl_box.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (json.loads((out / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert 5 < first["step"] < 20
    assert first == second
    assert first["figures"][-1]["collapse/alarm"] == 2.0
    assert done.stderr.count("collapse guard: act at step") == 1


def test_a_resumed_training_goes_on_with_its_alarms_and_its_base(
    make: Make, alarms: Callable[..., list[At]], tmp_path: Path
) -> None:
    made = alarms({2: "warn", 6: "warn"})

    def guarded(tracker: Tracker) -> Trainer:
        trainer = make([tracker], save_strategy="steps", save_steps=4)
        trainer.add_callback(CollapseGuard(trainer, DIALOGUES, every=2))
        return trainer

    whole, part = Tracker(), Tracker()
    guarded(whole).train()
    guarded(part).train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    assert made[-1].seen == [0, 2, 4, 6]
    assert part.probed() == [6]

    def figures(tracker: Tracker) -> dict[str, float]:
        logs = next(logs for step, logs in tracker.records if step == 6)
        return {k: v for k, v in logs.items() if k.startswith("collapse") and "sec" not in k}

    assert figures(part) == figures(whole)
    state = json.loads((tmp_path / "out" / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["CollapseGuard"]["attributes"] == {
        "file": digest(load("default")),
        "detectors": {"at": {"seen": [0, 2, 4]}},
        "levels": {},
    }


def test_a_training_that_began_without_a_guard_is_resumed_with_one(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(save_strategy="steps", save_steps=4).train()
    trainer = make(save_strategy="steps", save_steps=2)
    trainer.add_callback(CollapseGuard(trainer, DIALOGUES, every=2))
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    assert "began without a guard; KL is measured from step 4" in caplog.text
    probed = [row for row in trainer.state.log_history if "collapse/bank_kl" in row]
    assert [(row["step"], row["collapse/bank_kl"] > 0) for row in probed] == [(4, False), (6, True)]


def test_a_resumed_training_without_its_base_is_told(make: Make, tmp_path: Path) -> None:
    trainer = make(save_strategy="steps", save_steps=4)
    trainer.add_callback(CollapseGuard(trainer, DIALOGUES, every=2))
    trainer.train()
    again = make()
    again.add_callback(CollapseGuard(again, DIALOGUES[:3], every=2))
    with pytest.raises(DataError, match="was made with another bank"):
        again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    (tmp_path / "out" / callback.BASE_FILE).unlink()
    with pytest.raises(RunFolderError, match="is missing"):
        again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))


def test_an_alarm_goes_to_trackio_when_it_is_in_use(
    make: Make, alarms: Callable[..., list[At]], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, Any]] = []
    fake = SimpleNamespace(
        alert=lambda **fields: sent.append(fields),
        AlertLevel=SimpleNamespace(WARN="warn", ERROR="error"),
    )
    monkeypatch.setitem(sys.modules, "trackio", fake)
    alarms({1: "warn", 2: "act"})
    for report_to in ([], ["trackio"]):
        trainer = make()
        trainer.args.report_to = report_to  # after its trackers were made: trackio is not here
        trainer.add_callback(CollapseGuard(trainer, DIALOGUES, every=1))
        trainer.train()
    assert [(alert["title"], alert["level"]) for alert in sent] == [
        ("collapse guard: warn at step 1", "warn"),
        ("collapse guard: act at step 2", "error"),
    ]


def test_what_cannot_work_is_refused_before_training(
    make: Make, tiny_model: Qwen2ForCausalLM
) -> None:
    trainer = make()
    with pytest.raises(ConfigError, match="every = 0"):
        CollapseGuard(trainer, DIALOGUES, every=0)
    with pytest.raises(ConfigError, match="unknown action 'halt'; one of: save, stop, warn"):
        CollapseGuard(trainer, DIALOGUES, action="halt")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="dialogue 1 has no list 'messages'"):
        CollapseGuard(trainer, [DIALOGUES[0], {}])
    tiny_model.config.max_position_embeddings = 64
    with pytest.raises(ModelError, match=r"has \d+ tokens; the model takes 64"):
        CollapseGuard(trainer, DIALOGUES)
    trainer.processing_class = None
    with pytest.raises(ModelError, match="processing_class is a NoneType"):
        CollapseGuard(trainer, DIALOGUES)
    with pytest.raises(ConfigError, match="restore_callback_states_from_checkpoint"):
        CollapseGuard(make(restore_callback_states_from_checkpoint=True), DIALOGUES)


def test_a_sharded_model_is_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make()
    monkeypatch.setattr(trainer.accelerator.state, "distributed_type", callback.SHARDED[0])
    with pytest.raises(ConfigError, match="distributed type FSDP: the guard needs the whole"):
        CollapseGuard(trainer, DIALOGUES)


def detector_file(tmp_path: Path, *detectors: dict[str, Any], base: Base | None = None) -> Path:
    path = tmp_path / "detector.json"
    path.write_text(
        dump(
            DetectorFile.model_validate({"detectors": detectors}).model_copy(update={"base": base})
        )
    )
    return path


def above(name: str, signal: str, limit: float) -> dict[str, Any]:
    when = {"signal": signal, "statistics": [{"name": "level"}], "above": limit}
    return {"name": name, "level": "act", "when": when}


def test_the_detectors_of_a_file_judge_the_probes_signals(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = [above(signal, signal, -1.0) for signal in callback.SEEN]
    file = detector_file(tmp_path, *given, above("net", "unhealthy", -1.0))
    trainer = make()
    trainer.add_callback(CollapseGuard(trainer, DIALOGUES, every=3, detector=file))
    trainer.train()
    for signal in callback.SEEN:
        assert f"act at step 0: {signal} " in caplog.text
    assert "these need more than a probe: net" in caplog.text
    assert "net " not in caplog.text.replace("probe: net", "")


def test_a_file_without_any_detector_for_a_callback_is_refused(make: Make, tmp_path: Path) -> None:
    file = detector_file(tmp_path, above("net", "unhealthy", 0.1), {"form": "unhealthy"})
    with pytest.raises(ConfigError, match="can alarm in a callback, which sees only bank_nll, b"):
        CollapseGuard(make(), DIALOGUES, detector=file)
    with pytest.raises(ConfigError, match="no detector file 'defalt'; did you mean 'default'"):
        CollapseGuard(make(), DIALOGUES, detector="defalt")
    with pytest.raises(ConfigError, match="has no threshold yet: fit it with `toolrl calibrate`"):
        CollapseGuard(make(), DIALOGUES, detector="guard")


def base_of(trainer: Trainer, tasks: Sequence[Task], encode: Callable[[str], list[int]]) -> Base:
    probe = Probe(trainer.model, build_bank(tasks, FORMATS["hermes"], encode), 0)  # type: ignore[arg-type]
    return Base.of(probe().summary(0))


def test_a_file_of_a_run_with_this_model_and_bank_is_accepted(
    make: Make, tmp_path: Path, encode: Callable[[str], list[int]]
) -> None:
    trainer = make()
    file = detector_file(tmp_path, {"form": "damage"}, base=base_of(trainer, TASKS, encode))
    trainer.add_callback(CollapseGuard(trainer, DIALOGUES, every=3, detector=file))
    trainer.train()
    assert trainer.state.global_step == 6


@pytest.mark.parametrize(
    ("detector", "dialogues", "factor", "says"),
    [
        ({"form": "damage"}, DIALOGUES, 2.0, "another model (mean log-prob of the right token in"),
        ({"form": "damage"}, DIALOGUES[:3], 1.0, "another bank or tool format"),
        # A run follows more control tokens than a callback.
        (above("t", "wrong_control", 0.5), DIALOGUES, 1.0, "another bank or tool format"),
    ],
)
def test_a_file_of_another_model_or_bank_is_refused_before_the_first_step(
    make: Make,
    tmp_path: Path,
    encode: Callable[[str], list[int]],
    detector: dict[str, Any],
    dialogues: list[Any],
    factor: float,
    says: str,
) -> None:
    trainer = make()
    file = detector_file(tmp_path, detector, base=base_of(trainer, TASKS, encode))
    trainer.model.lm_head.weight.data.mul_(factor)  # type: ignore[union-attr, operator]
    trainer.add_callback(CollapseGuard(trainer, dialogues, detector=file))
    with pytest.raises(ConfigError) as error:
        trainer.train()
    assert f"detector = {file} was calibrated on {says}" in str(error.value)
    assert trainer.state.global_step == 0


def test_a_training_is_resumed_with_the_detectors_that_it_began_with(
    make: Make, tmp_path: Path
) -> None:
    def guarded(ratio: float) -> Trainer:
        file = detector_file(tmp_path, {"form": "damage", "ratio": ratio})
        trainer = make(save_strategy="steps", save_steps=4)
        trainer.add_callback(CollapseGuard(trainer, DIALOGUES, every=2, detector=file))
        return trainer

    guarded(1.5).train()
    checkpoint = str(tmp_path / "out" / "checkpoint-4")
    with pytest.raises(ConfigError, match="is not the file that this training began with"):
        guarded(2.0).train(resume_from_checkpoint=checkpoint)
    again = guarded(1.5)
    again.train(resume_from_checkpoint=checkpoint)
    assert again.state.global_step == 6


COMMON: dict[str, Any] = {
    **{"max_steps": 2, "per_device_train_batch_size": 4, "save_strategy": "no", "report_to": []},
    **{"use_cpu": True, "disable_tqdm": True, "learning_rate": 1e-3, "logging_steps": 1},
}
QUESTION = FORMATS["hermes"].render(TASKS[0].prompt, TASKS[0].tools, generation_prompt=True)


def sft(folder: Path, **common: Any) -> Trainer:
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(output_dir=str(folder), max_length=256, **COMMON)
    rows = Dataset.from_list([{"text": QUESTION + "Done.<|im_end|>"}] * 8)
    return SFTTrainer(args=args, train_dataset=rows, **common)


def dpo(folder: Path, **common: Any) -> Trainer:
    from trl import DPOConfig, DPOTrainer

    row = {"prompt": QUESTION, "chosen": "Done.", "rejected": "<tool_call>"}
    args = DPOConfig(output_dir=str(folder), **COMMON)
    return DPOTrainer(args=args, train_dataset=Dataset.from_list([row] * 8), **common)


def rloo(folder: Path, **common: Any) -> Trainer:
    from trl import RLOOConfig, RLOOTrainer

    args = RLOOConfig(output_dir=str(folder), num_generations=4, max_completion_length=6, **COMMON)
    return RLOOTrainer(
        args=args,
        reward_funcs=lambda completions, **_: [float(len(text)) for text in completions],
        train_dataset=Dataset.from_list([{"prompt": QUESTION}] * 8),
        **common,
    )


@pytest.mark.parametrize("build", [sft, dpo, rloo], ids=lambda build: build.__name__)
def test_trls_other_trainers_are_watched_too(
    build: Callable[..., Trainer], tiny_base: Path, tmp_path: Path
) -> None:
    model, tokenizer = load_causal(str(tiny_base), "auto")
    trainer = build(tmp_path / "out", model=model, processing_class=tokenizer)
    tracker = Tracker()
    trainer.add_callback(tracker)
    trainer.add_callback(CollapseGuard(trainer, Dataset.from_list(DIALOGUES[:1]), every=1))
    trainer.train()
    assert tracker.probed() == [0, 1, 2]
    assert "loss" in dict(tracker.records[1:3])[1]
    assert tracker.records[2][1]["collapse/bank_kl"] > 0.0
