"""Makes the logs beside this file: TRL's stock GRPOTrainer on the pocket model, a few seconds.

    python tests/data/logs/trl/make.py tests/data/logs/trl

``text``: prompts and completions as texts, two reward functions and a column that one of them
logs. ``tools``: conversational prompts and TRL's own tool loop, so that completions are message
lists with structured calls. What is kept: completions/ and the last trainer_state.json.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer
from trl.chat_template_utils import qwen3_template

from toolrl_box.envs.pocket import make_tasks
from toolrl_box.formats import FORMATS, to_chat
from toolrl_box.models import load_model

HERMES = FORMATS["hermes"]


def exact(completions: list[str], gold: list[str], log_extra: Any, **_: object) -> list[float]:
    """1 for the right call; logs which call was right."""
    log_extra("gold", gold)
    return [float(said.strip() == right) for said, right in zip(completions, gold, strict=True)]


def short(completions: list[str], **_: object) -> list[float | None]:
    """Shorter is better; no opinion on an empty completion."""
    return [1 / (1 + len(said)) if said else None for said in completions]


def add_event(event: str, day: str) -> str:
    """Add an event.

    Args:
        event: what
        day: when
    """
    return '{"ok": true}'


def set_light(room: str, color: str) -> str:
    """Set a light.

    Args:
        room: which
        color: to what
    """
    return '{"ok": true}'


def calls(completions: list[list[dict[str, Any]]], **_: object) -> list[float]:
    """How many messages hold a call."""
    return [float(sum(bool(m.get("tool_calls")) for m in said)) for said in completions]


def train(folder: Path, rows: list[dict[str, Any]], rewards: list[Any], **options: Any) -> None:
    torch.set_num_threads(1)
    loaded = load_model("pocket")
    if options:
        loaded.tokenizer.response_template = qwen3_template
    with tempfile.TemporaryDirectory() as output:
        trainer = GRPOTrainer(
            model=loaded.model,
            processing_class=loaded.tokenizer,
            reward_funcs=rewards,
            train_dataset=Dataset.from_list(rows),
            args=GRPOConfig(
                output_dir=output,
                max_steps=3,
                learning_rate=1e-4,
                per_device_train_batch_size=8,
                num_generations=4,
                max_completion_length=48,
                max_tool_calling_iterations=2,
                logging_steps=1,
                log_completions=True,
                num_completions_to_print=0,
                save_steps=3,
                report_to=[],
                use_cpu=True,
                disable_tqdm=True,
                beta=0.01,
            ),
            **options,
        )
        trainer.train()
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "checkpoint-3").mkdir(parents=True)
        shutil.copytree(Path(output, "completions"), folder / "completions")
        state = Path("checkpoint-3", "trainer_state.json")
        shutil.copy(Path(output, state), folder / state)


def main(target: Path) -> None:
    tasks = make_tasks("train", 16, 0, ["base"])
    text = [
        {
            "prompt": HERMES.render(task.prompt, task.tools, generation_prompt=True),
            "gold": HERMES.render_message(task.gold[0]),
        }
        for task in tasks
    ]
    train(target / "text", text, [exact, short])
    chats = [{"prompt": to_chat(task.prompt)} for task in tasks]
    train(target / "tools", chats, [calls], tools=[add_event, set_light])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
