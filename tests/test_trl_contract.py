"""What this package relies on in TRL 1.16, one fact a test: a new TRL breaks here first."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import Qwen2ForCausalLM, Qwen2Tokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from toolrl_box import dense, trl_backend
from toolrl_box.meter import FIGURES, Meter
from toolrl_box.phases import RL
from toolrl_box.trl_backend import _GRPO, _SFT, TRLBackend
from toolrl_box.types import Group

G, PROMPTS = 3, 2
Rows = dict[str, list[Any]]
SCRATCH = {
    "use_cpu": True, "report_to": [], "save_strategy": "no", "logging_steps": 1, "bf16": False,
    "disable_tqdm": True, "remove_unused_columns": False, "gradient_checkpointing": False,
    "dataloader_pin_memory": False,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")


def rollouts(prompts: list[str]) -> Rows:
    """Rows of different lengths; every third completion token is the environment's."""
    generator = torch.Generator().manual_seed(3)

    def ids(length: int) -> list[int]:
        return torch.randint(5, 500, (length,), generator=generator).tolist()

    completions = [ids(4 + 3 * i) for i in range(len(prompts))]
    return {
        "prompt_ids": [ids(9 - i) for i in range(len(prompts))],
        "completion_ids": completions,
        "env_mask": [[int(t % 3 != 2) for t in range(len(row))] for row in completions],
        "given": [float(i % 2) for i in range(len(prompts))],
    }


class Capturing(GRPOTrainer):
    """Puts a leaf tensor in the place of the log-probs, to see where the loss looks at them."""

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        logps, entropies, rest = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self.seen: list[torch.Tensor] = [*vars(self).get("seen", []), logps]
        if logps.requires_grad:
            logps.retain_grad()
        return logps, entropies, rest

    def _prepare_inputs(self, *args: Any, **kwargs: Any) -> Any:
        inputs = super()._prepare_inputs(*args, **kwargs)
        self.inputs: list[Any] = [*vars(self).get("inputs", []), inputs]
        return inputs


def grpo(
    model: Qwen2ForCausalLM,
    tokenizer: Qwen2Tokenizer,
    folder: Path,
    rollout_func: Callable[[list[str], Any], Rows],
    kind: type[GRPOTrainer] = Capturing,
    rewards: Callable[..., list[float]] = lambda given, **_: given,
    callbacks: list[TrainerCallback] | None = None,
    more: dict[str, Any] | None = None,
    **arguments: Any,
) -> GRPOTrainer:
    settings: dict[str, Any] = {
        "max_steps": 1, "per_device_train_batch_size": G * PROMPTS, "steps_per_generation": 1,
        "num_generations": G, "max_completion_length": 64, "shuffle_dataset": False,
        "learning_rate": 0.01, "loss_type": "bnpo",
    }  # fmt: skip
    return kind(
        model=model,
        processing_class=tokenizer,
        reward_funcs=[rewards],
        rollout_func=rollout_func,
        train_dataset=Dataset.from_dict(
            {"prompt": [f"p{i}" for i in range(8)], "secret": list(range(8))}
        ),
        callbacks=callbacks,
        args=GRPOConfig(output_dir=str(folder), **SCRATCH, **settings | arguments),
        **(more or {}),
    )


def test_the_version_is_the_one_whose_private_parts_are_used() -> None:
    assert version("trl").startswith("1.16.")


def test_rollout_func_gets_the_prompts_in_order_each_repeated_and_no_other_column(
    tiny_model: Qwen2ForCausalLM, pocket_tokenizer: Qwen2Tokenizer, tmp_path: Path
) -> None:
    asked: list[list[str]] = []

    def rollout_func(prompts: list[str], trainer: Any) -> Rows:
        assert isinstance(trainer, GRPOTrainer)
        asked.append(prompts)
        return {**rollouts(prompts), "logprobs": None}  # type: ignore[dict-item]

    arguments = {"max_steps": 4, "per_device_train_batch_size": 3, "steps_per_generation": 2}
    grpo(tiny_model, pocket_tokenizer, tmp_path, rollout_func, **arguments).train()
    # Two updates per generation: four updates ask twice.
    assert asked == [["p0"] * G + ["p1"] * G, ["p2"] * G + ["p3"] * G]


def scripted(prompts: list[str], trainer: Any) -> Any:
    return {**rollouts(prompts), "logprobs": None}


def test_other_keys_of_a_rollout_reach_the_reward_functions(
    tiny_model: Qwen2ForCausalLM, pocket_tokenizer: Qwen2Tokenizer, tmp_path: Path
) -> None:
    told: list[Any] = []

    def reward(given: list[float], **columns: Any) -> list[float]:
        told.append((given, "env_mask" in columns))
        return given

    grpo(tiny_model, pocket_tokenizer, tmp_path, scripted, rewards=reward).train()
    assert told == [([0.0, 1.0, 0.0, 1.0, 0.0, 1.0], False)]


def test_what_the_model_did_not_write_has_no_gradient(
    tiny_model: Qwen2ForCausalLM, pocket_tokenizer: Qwen2Tokenizer, tmp_path: Path
) -> None:
    trainer = grpo(tiny_model, pocket_tokenizer, tmp_path, scripted)
    trainer.train()
    (logps,), (inputs,) = trainer.seen, trainer.inputs
    written = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
    assert 0 < written.sum() < inputs["completion_mask"].sum()
    assert logps.grad is not None
    assert (logps.grad[~written] == 0).all()
    assert (logps.grad[written] != 0).all()


def test_env_mask_keeps_the_context_in_the_models_sight(
    tiny_model: Qwen2ForCausalLM, pocket_tokenizer: Qwen2Tokenizer, tmp_path: Path
) -> None:
    trainer = grpo(tiny_model, pocket_tokenizer, tmp_path, scripted)
    trainer.train()
    (inputs,) = trainer.inputs
    lengths = sorted(inputs["completion_mask"].sum(1).tolist())
    assert lengths == [4 + 3 * i for i in range(G * PROMPTS)]


def test_trl_wraps_forward_on_the_instance_and_removing_it_restores_the_model(
    tiny_model: Qwen2ForCausalLM, pocket_tokenizer: Qwen2Tokenizer, tmp_path: Path
) -> None:
    ids = torch.tensor([[5, 6, 7]])
    before = tiny_model(input_ids=ids).logits
    grpo(tiny_model, pocket_tokenizer, tmp_path, scripted)
    assert "forward" in vars(tiny_model)
    del tiny_model.forward
    assert torch.equal(tiny_model.eval()(input_ids=ids).logits, before)


def test_the_signature_that_is_overridden() -> None:
    theirs = inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters
    ours = inspect.signature(_GRPO._get_per_token_logps_and_entropies).parameters
    assert (
        [*theirs][:7]
        == [*ours][:7]
        == [
            *("self", "model", "input_ids", "attention_mask", "logits_to_keep"),
            *("batch_size", "compute_entropy"),
        ]
    )
    for kind in (GRPOTrainer, SFTTrainer):
        assert callable(kind.training_step)
        assert callable(kind.compute_loss)
    assert callable(GRPOTrainer._prepare_inputs)


def mixed_batch() -> tuple[torch.Tensor, torch.Tensor, int]:
    """Prompts padded on the left, completions on the right, as TRL lays them out."""
    rows = rollouts([""] * 6)
    width_p = max(map(len, rows["prompt_ids"]))
    width_c = max(map(len, rows["completion_ids"]))
    ids, mask = [], []
    for prompt, completion in zip(rows["prompt_ids"], rows["completion_ids"], strict=True):
        left, right = width_p - len(prompt), width_c - len(completion)
        ids.append([0] * left + prompt + completion + [0] * right)
        mask.append([0] * left + [1] * (len(prompt) + len(completion)) + [0] * right)
    return torch.tensor(ids), torch.tensor(mask), width_c


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("tokens_per_pass", [1, 60, 10_000])
@pytest.mark.parametrize("share_prompts", [False, True])
def test_scoring_without_padding_gives_trls_own_values_and_gradients(
    tiny_model: Qwen2ForCausalLM,
    pocket_tokenizer: Qwen2Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    temperature: float,
    tokens_per_pass: int,
    share_prompts: bool,
) -> None:
    monkeypatch.setitem(dense.TOKENS_PER_PASS, "cpu", tokens_per_pass)
    meter = Meter(1, lambda result: False)
    trainer = grpo(
        tiny_model, pocket_tokenizer, tmp_path, scripted, kind=_GRPO,
        more={"meter": meter, "share_prompts": share_prompts}, temperature=temperature,
    )  # fmt: skip
    ids, mask, kept = mixed_batch()
    real = mask[:, -kept:].bool()
    results = []
    for score in (
        lambda: GRPOTrainer._get_per_token_logps_and_entropies(
            trainer, tiny_model, ids, mask, kept, compute_entropy=True
        ),
        lambda: trainer._get_per_token_logps_and_entropies(
            tiny_model, ids, mask, kept, compute_entropy=True
        ),
    ):
        tiny_model.zero_grad()
        logps, entropies, _ = score()
        assert logps.shape == entropies.shape == real.shape
        weights = torch.linspace(-1, 1, real.numel()).view_as(logps)
        (logps * weights * real).sum().backward()
        gradients = [p.grad.clone() for p in tiny_model.parameters() if p.grad is not None]
        results.append([logps[real], entropies[real], *gradients])
    assert len(results[0]) > 10
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


class Compared(_GRPO):
    """Compares the rollouts' own log-probs with what TRL would have computed for them."""

    differences: list[float]

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        output = super()._generate_and_score_completions(inputs)
        ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
        mask = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
        with torch.no_grad():
            theirs, *_ = GRPOTrainer._get_per_token_logps_and_entropies(
                self, self.model, ids, mask, output["completion_ids"].shape[1]
            )
        written = (output["completion_mask"] * output["tool_mask"]).bool()
        difference = (output["old_per_token_logps"] - theirs)[written].abs().max()
        self.differences.append(difference.item())
        return output


def test_the_rollouts_own_logprobs_are_the_old_logprobs_row_by_row(
    make_backend: Callable[..., TRLBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trl_backend, "_GRPO", Compared)
    monkeypatch.setattr(Compared, "differences", [], raising=False)
    make_backend().rl(RL(3), 3, 0, on_step=lambda result: False)
    assert len(Compared.differences) == 3
    assert max(Compared.differences) < 1e-4


class Watching(TrainerCallback):
    """Keeps what is logged; asks for the end at the first log."""

    def __init__(self, *, stop: bool) -> None:
        self.stop = stop
        self.logs: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.logs.append(dict(logs))
        if self.stop:
            control.should_training_stop = True


def test_every_update_logs_the_figures_that_are_read(
    tiny_model: Qwen2ForCausalLM, pocket_tokenizer: Qwen2Tokenizer, tmp_path: Path
) -> None:
    watching = Watching(stop=False)
    grpo(
        tiny_model, pocket_tokenizer, tmp_path, scripted, callbacks=[watching], max_steps=2
    ).train()
    *updates, closing = watching.logs
    assert len(updates) == 2
    for log in updates:
        # KL only with beta > 0, the supervised term's figures only where there is one.
        sometimes = {"kl", "sft_term_nll", "sft_term_weight"}
        assert (FIGURES.keys() - sometimes) | {"learning_rate"} <= log.keys()
        assert not sometimes & log.keys()
    assert "loss" not in closing


def test_on_log_comes_after_the_update_and_before_the_look_whether_to_stop(
    tiny_model: Qwen2ForCausalLM, pocket_tokenizer: Qwen2Tokenizer, tmp_path: Path
) -> None:
    before = tiny_model.lm_head.weight.clone()
    moved: list[bool] = []

    class First(Watching):
        def on_log(self, *args: Any, **kwargs: Any) -> None:
            moved.append(not torch.equal(before, tiny_model.lm_head.weight))
            super().on_log(*args, **kwargs)

    trainer = grpo(
        tiny_model, pocket_tokenizer, tmp_path, scripted, callbacks=[First(stop=True)], max_steps=5
    )
    trainer.train()
    assert trainer.state.global_step == 1
    assert moved[0]


def test_trl_shuffles_rows_over_mini_batches_by_the_global_generator(
    make_backend: Callable[..., TRLBackend],
) -> None:
    """So seeding it in the rollout function makes the mini-batches a function of the step."""
    source = inspect.getsource(GRPOTrainer._prepare_inputs)
    assert "shuffle_sequence_dict" in source
    from trl.trainer.utils import shuffle_sequence_dict

    orders = []
    for _ in range(2):
        torch.manual_seed(4)
        orders.append(shuffle_sequence_dict({"x": torch.arange(50)})["x"].tolist())
    assert orders[0] == orders[1] != list(range(50))


def sft_rows() -> list[dict[str, list[int]]]:
    return [
        {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, -100, 7, 8, -100]},
        {"input_ids": [15, 16, 17], "labels": [-100, 16, -100]},
        {"input_ids": [25, 26], "labels": [-100, 26]},
        {"input_ids": [35, 36, 37, 38], "labels": [-100, -100, -100, 38]},
    ]


class Seen(SFTTrainer):
    """Keeps the batches."""

    batches: list[Any]

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.batches.append({name: value.clone() for name, value in inputs.items()})
        return super().compute_loss(model, inputs, *args, **kwargs)


def test_supervised_rows_are_taken_as_they_are_in_order_and_only_labels_are_learned(
    tiny_model: Qwen2ForCausalLM,
    pocket_tokenizer: Qwen2Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Seen, "batches", [], raising=False)
    rows, watching = sft_rows(), Watching(stop=False)
    optimizer = torch.optim.SGD(tiny_model.parameters(), lr=0.0)
    nll = []
    for row in rows:
        logprobs = tiny_model(input_ids=torch.tensor([row["input_ids"]])).logits[0]
        nll.append(
            F.cross_entropy(
                logprobs[:-1], torch.tensor(row["labels"][1:]), ignore_index=-100, reduction="none"
            )
        )
    trainer = Seen(
        model=tiny_model,
        processing_class=pocket_tokenizer,
        train_dataset=Dataset.from_list(rows),
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)),
        callbacks=[watching],
        args=SFTConfig(
            output_dir=str(tmp_path),
            **SCRATCH,
            max_steps=2,
            per_device_train_batch_size=2,
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            train_sampling_strategy="sequential",
        ),
    )
    trainer.train()
    assert [log["loss"] for log in watching.logs[:2]] == pytest.approx(
        [
            (torch.cat(pair).sum() / sum((p != 0).sum() for p in pair)).item()
            for pair in (nll[:2], nll[2:])
        ],
        rel=1e-4,
    )
    for number, batch in enumerate(Seen.batches):
        for place in range(2):
            row = rows[2 * number + place]
            length = len(row["input_ids"])
            assert batch["input_ids"][place, :length].tolist() == row["input_ids"]
            assert batch["labels"][place, :length].tolist() == row["labels"]
            assert (batch["labels"][place, length:] == -100).all()


def test_the_optimiser_and_schedule_that_are_given_are_the_ones_that_are_used(
    tiny_model: Qwen2ForCausalLM, pocket_tokenizer: Qwen2Tokenizer, tmp_path: Path
) -> None:
    optimizer = torch.optim.AdamW(tiny_model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 0.1 * (update + 1))
    watching = Watching(stop=False)
    grpo(
        tiny_model, pocket_tokenizer, tmp_path, scripted, callbacks=[watching],
        more={"optimizers": (optimizer, schedule)}, max_steps=3,
    ).train()  # fmt: skip
    rates = [log["learning_rate"] for log in watching.logs[:3]]
    assert rates == pytest.approx([0.1, 0.2, 0.3])
    assert {int(entry["step"]) for entry in optimizer.state.values()} == {3}


def test_the_stopwatches_hold_groups_only_until_the_step_is_told() -> None:
    told: list[Any] = []
    meter = Meter(2, lambda result: bool(told.append(result)))
    meter.groups = (Group.__new__(Group),)
    log = {"loss": 1.0, "learning_rate": 0.1}

    class Control:
        should_training_stop = False

    for _ in range(4):
        meter.on_log(None, None, Control(), log)  # type: ignore[arg-type]
    meter.on_log(None, None, Control(), {"train_runtime": 1.0})  # type: ignore[arg-type]
    assert [len(result.groups) for result in told] == [1, 0]
    assert issubclass(_SFT, SFTTrainer)


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dapo", "dr_grpo"])
def test_weighing_advantages_is_what_trl_does_to_the_loss(
    tiny_model: Qwen2ForCausalLM,
    pocket_tokenizer: Qwen2Tokenizer,
    tmp_path: Path,
    loss_type: str,
) -> None:
    pairs: list[tuple[float, float, float]] = []

    class Weighing(GRPOTrainer):
        def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
            shape = inputs["completion_ids"].shape
            weights = torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 3
            advantages = torch.linspace(-2, 2, shape[0])
            inputs = {**inputs, "advantages": advantages}
            plain = super()._compute_loss(model, inputs).item()
            self.use_vllm = self.vllm_importance_sampling_correction = True
            theirs = super()._compute_loss(model, {**inputs, "importance_sampling_ratio": weights})
            self.use_vllm = self.vllm_importance_sampling_correction = False
            ours = super()._compute_loss(
                model, {**inputs, "advantages": advantages[:, None] * weights}
            )
            pairs.append((ours.item(), theirs.item(), plain))
            return ours

    grpo(
        tiny_model,
        pocket_tokenizer,
        tmp_path,
        scripted,
        kind=Weighing,
        loss_type=loss_type,
    ).train()
    ((ours, theirs, plain),) = pairs
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert ours != pytest.approx(plain, rel=1e-3)


def test_the_parts_of_trls_vllm_that_are_used() -> None:
    from trl.generation.vllm_client import VLLMClient
    from trl.generation.vllm_generation import VLLMGeneration

    def parameters(function: Any) -> set[str]:
        return set(inspect.signature(function).parameters)

    assert parameters(VLLMGeneration.__init__) >= {
        *("model", "accelerator", "processing_class", "mode", "server_host", "server_port"),
        *("server_timeout", "gpu_memory_utilization", "max_model_length", "max_num_seqs"),
    }
    assert parameters(VLLMGeneration.sync_weights) == {"self"}
    start = inspect.getsource(VLLMGeneration._init_vllm)
    assert 'logprobs_mode="processed_logprobs"' in start
    assert "self.llm = LLM(" in start
    assert "self.vllm_client = VLLMClient(" in start
    # Read off the sync: the cache of old weights' keys does not outlive it.
    assert inspect.getsource(VLLMGeneration.sync_weights).count("reset_prefix_cache()") == 2
    used = {"prompts", "temperature", "max_tokens", "logprobs", "generation_kwargs"}
    assert parameters(VLLMClient.generate) >= used
    scoring = {"sequences", "prompt_lengths", "top_logprobs"}
    assert parameters(VLLMClient.get_sequence_logprobs) >= scoring
    assert 'get_server_info()["model_config"]["logprobs_mode"]' in inspect.getsource(
        GRPOTrainer.__init__
    )
