"""One line that watches any TRL or transformers training for collapse of tool use.

Input: a trainer and gold dialogues with tool calls. Output: ``collapse/…`` figures in the
trainer's own logs, so that its trackers have them; alarms on the console and in trackio; a
checkpoint or the end of the training when the user wants that. ::

    trainer.add_callback(CollapseGuard(trainer, dialogues, every=10, action="stop"))

The detectors are those of a detector file, the same as a run's (:mod:`toolrl_box.detector_file`),
and see the same signals of the bank (:mod:`toolrl_box.readings`); whatever else a run logs, a
callback does not see, and detectors that need it are named and never alarm.

Every process probes (the others would wait anyway), process 0's figures are sent to all, so all
decide alike. A resumed training goes on with its detectors (their states are the trainer's, their
file must be the same) and with its base (a file in the output folder).

Left out: sharded models (FSDP, DeepSpeed), where no process holds the weights; the share of
unhealthy sampled messages, which only the owner of the rollouts sees; mending a run (a trainer's
callback cannot insert supervision; ``toolrl run`` can).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, cast, get_args

from accelerate.utils import DistributedType, broadcast_object_list
from datasets import Dataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import ExportableState

from toolrl_box import detector_file
from toolrl_box.detector_file import DetectorFile
from toolrl_box.detectors import Detector
from toolrl_box.errors import ConfigError, ModelError, unknown
from toolrl_box.probe.bank import SLOTS, Bank
from toolrl_box.probe.chat import bank_of_chats, without_none
from toolrl_box.probe.markup import given_markup, read_markup
from toolrl_box.probe.probe import Base, Observation, Probe, check_length
from toolrl_box.readings import PROBE_SIGNALS, values
from toolrl_box.types import Alarm, Reading

Action = Literal["warn", "save", "stop"]
LEVELS = {"warn": 1, "act": 2}
BASE_FILE = "collapse_guard.safetensors"
DEFAULT = "default"
SEEN = ("bank_nll", "bank_kl", "p_call", *PROBE_SIGNALS)
"""The signals that a callback has."""
SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)

logger = logging.getLogger(__name__)


def make_detectors(file: DetectorFile) -> list[Detector]:
    """Those of a new run."""
    return detector_file.make(file)


class CollapseGuard(TrainerCallback, ExportableState):
    """Add it to the trainer that it is given. One guard watches one trainer.

    ``dialogues``: gold dialogues with calls, rows of ``messages`` and ``tools`` (a list of dicts
    or a Dataset); all are in the bank. ``every``: optimizer steps between probes; one comes before
    training too. ``action``: *warn* tells; *save* also saves a checkpoint when an alarm rises;
    *stop* ends the training when one of level "act" does. ``tags``: what a call begins and ends
    with, where the chat template does not show it. ``detector``: a detector file, or the name of a
    set that ships; one that was calibrated on another model or bank is refused when the training
    begins.

    Raises ConfigError, DataError or ModelError, at once, for what cannot work.
    """

    def __init__(
        self,
        trainer: Trainer,
        dialogues: Iterable[Mapping[str, Any]],
        *,
        every: int = 10,
        action: Action = "warn",
        tags: tuple[str, str] | None = None,
        detector: str | Path = DEFAULT,
    ) -> None:
        if every < 1:
            raise ConfigError(f"every = {every}: the guard probes every 1 or more steps")
        if action not in get_args(Action):
            raise unknown("action", action, get_args(Action))
        _check(trainer)
        self._trainer = trainer
        self._every = every
        self._action = action
        self._bank = _bank(trainer.processing_class, dialogues, tags)
        check_length(cast(PreTrainedModel, trainer.model), self._bank)
        self._probe: Probe | None = None
        self._given = str(detector)
        self._file = detector_file.load(self._given)
        self._detectors = make_detectors(self._file)
        self._blind = _blind(self._file, self._given)
        self._levels: dict[str, int] = {}
        self._figures: dict[str, float] = {}

    def state(self) -> dict[str, Any]:
        """For the trainer's checkpoints."""
        detectors = {detector.name: detector.state() for detector in self._detectors}
        attributes = {
            "file": detector_file.digest(self._file),
            "detectors": detectors,
            "levels": dict(self._levels),
        }
        return {"args": {}, "attributes": attributes}

    # --- what the trainer tells ---------------------------------------------------------------

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        name, path = type(self).__name__, Path(str(args.output_dir)) / BASE_FILE
        # A list for the type checker; by now the trainer has made it a dict.
        stored: dict[str, Any] = cast(Any, state.stateful_callbacks)
        model = self._trainer.accelerator.unwrap_model(self._trainer.model)
        kept = stored.get(name) if state.global_step else None
        self._detectors = make_detectors(self._file)
        self._levels = {}
        if self._blind and self._given != DEFAULT and state.is_world_process_zero:
            logger.warning("collapse guard: these need more than a probe: %s", self._blind)
        if kept is not None:
            if kept["attributes"]["file"] != detector_file.digest(self._file):
                raise ConfigError(
                    f"detector = {self._given} is not the file that this training began with: give "
                    "that one, or begin anew"
                )
            for detector in self._detectors:
                detector.restore(kept["attributes"]["detectors"][detector.name])
            self._levels = dict(kept["attributes"]["levels"])
            # The figures of the other processes are not used, and so their base is not either.
            base = Base.load(path, self._bank) if state.is_world_process_zero else None
            self._probe = Probe(model, self._bank, 0, base)
        else:
            if state.global_step:
                logger.warning(
                    "collapse guard: this training began without a guard; KL is measured from "
                    "step %d",
                    state.global_step,
                )
            self._probe = Probe(model, self._bank, 0)
            if self._file.base is not None:
                here = detector_file.Base.of(self._probe().summary(0))
                detector_file.check_base(self._file, here, f"detector = {self._given}")
            if state.is_world_process_zero:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._probe.base.save(path, self._bank)
        # A checkpoint from before the guard has no entry for it, which the trainer relies on.
        stored[name] = self.state()
        # First, so that the trackers' callbacks find its figures in the logs.
        callbacks = self._trainer.callback_handler.callbacks
        callbacks.remove(self)
        callbacks.insert(0, self)
        if kept is None:
            self._observe(args, state)
            self._trainer.log({})

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        if state.global_step % self._every:
            return control
        control.should_log = True
        risen = self._observe(args, state)
        if risen and self._action == "save":
            control.should_save = True
        if self._action == "stop" and any(alarm.level == "act" for alarm in risen):
            control.should_training_stop = True
        return control

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the figures into the trainer's record, for the trackers and for its history."""
        kwargs["logs"].update(self._figures)
        state.log_history[-1].update(self._figures)
        self._figures = {}

    # --- parts --------------------------------------------------------------------------------

    def _observe(self, args: TrainingArguments, state: TrainerState) -> list[Alarm]:
        """Probe and judge; returns the alarms that are new or worse than at the last probe."""
        assert self._probe is not None, "made when the training begins"
        start = time.perf_counter()
        seen = self._probe()
        signals, shown = _signals(seen), _shown(seen)
        shown["seconds"] = time.perf_counter() - start
        broadcast_object_list(shared := [signals, shown])
        signals, shown = shared
        reading = Reading(state.global_step, signals)
        levels, risen = {}, []
        for detector in self._detectors:
            alarm = detector.update(reading)
            if alarm is None:
                continue
            levels[detector.name] = LEVELS[alarm.level]
            if levels[detector.name] > self._levels.get(detector.name, 0):
                risen.append(alarm)
        self._levels = levels
        alarm_level = float(max(levels.values(), default=0))
        self._figures = {
            f"collapse/{name}": value
            for name, value in {**signals, **shown, "alarm": alarm_level}.items()
        }
        if state.is_world_process_zero:
            for alarm in risen:
                _tell(alarm, reading, args)
        return risen


def _check(trainer: Trainer) -> None:
    kind = trainer.accelerator.distributed_type
    if kind in SHARDED:
        raise ConfigError(
            f"distributed type {kind.value}: the guard needs the whole model on each process; one "
            "of: a single process, DDP"
        )
    if trainer.args.restore_callback_states_from_checkpoint:
        raise ConfigError(
            "restore_callback_states_from_checkpoint = True would make a new guard without "
            "dialogues; leave it False: the guard finds its own state when a training is resumed"
        )


def _bank(
    tokenizer: Any, dialogues: Iterable[Mapping[str, Any]], tags: tuple[str, str] | None
) -> Bank:
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ModelError(
            f"the trainer's processing_class is a {type(tokenizer).__name__}; the guard needs a "
            "tokenizer with a chat template"
        )
    markup = read_markup(tokenizer) if tags is None else given_markup(tokenizer, tags)
    rows = map(without_none, dialogues) if isinstance(dialogues, Dataset) else dialogues
    named = ((f"dialogue {number}", row) for number, row in enumerate(rows))
    return bank_of_chats(named, tokenizer, markup)


def _signals(seen: Observation) -> dict[str, float]:
    """What the detectors see, under the names of :data:`toolrl_box.readings.SIGNALS`."""
    row = {"bank_nll": seen.nll, "bank_kl": seen.kl, "p_call": seen.p_call}
    return values(row, seen.summary(0))


def _shown(seen: Observation) -> dict[str, float]:
    """What is only logged: the bank's entropy and the right token's NLL by slot, nats."""
    by_slot = {
        f"nll_{slot}": float(-seen.right_N[here].mean())
        for index, slot in enumerate(SLOTS)
        if (here := seen.slots_N == index).any()
    }
    return {"bank_entropy": seen.entropy} | by_slot


def _blind(file: DetectorFile, given: str) -> str:
    """The detectors that can never alarm here. Raises ConfigError when all are such."""
    blind = [spec.name for spec in file.detectors if not detector_file.can_alarm(spec, SEEN)]
    if len(blind) == len(file.detectors):
        raise ConfigError(
            f"detector = {given}: none of its detectors can alarm in a callback, which sees only "
            f"{', '.join(SEEN)}"
        )
    return ", ".join(blind)


def _tell(alarm: Alarm, reading: Reading, args: TrainingArguments) -> None:
    title = f"collapse guard: {alarm.level} at step {alarm.step}"
    text = (
        f"{alarm.detector} {alarm.value:.3g} is above {alarm.threshold:.3g} (NLL of the bank "
        f"{reading.values['bank_nll']:.3g}, KL to the base {reading.values['bank_kl']:.3g} nats)"
    )
    logger.warning("%s: %s", title, text)
    if "trackio" in (args.report_to or ()):
        import trackio

        level = trackio.AlertLevel.ERROR if alarm.level == "act" else trackio.AlertLevel.WARN
        trackio.alert(title=title, text=text, level=level)
