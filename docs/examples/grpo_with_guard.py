"""TRL's own GRPOTrainer with a collapse guard; about a minute on a CPU.

The model is the embedded pocket model, the task its world's first tool call, the learning rate far
too high. The guard ends the training; with ``action="warn"`` it goes on, and the reward is gone
thirty steps later. In your own script you need the two lines that are marked, your trainer and a
dozen gold dialogues.

    python docs/examples/grpo_with_guard.py [OUTPUT_DIR]
"""

import sys

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from toolrl_box import CollapseGuard  # 1
from toolrl_box.envs.pocket import make_tasks
from toolrl_box.formats import FORMATS, to_chat, to_tools
from toolrl_box.models import load_model

HERMES = FORMATS["hermes"]


def prompts(count: int) -> Dataset:
    """Dialogues up to the first call, as text, and the call that is right."""
    return Dataset.from_list(
        [
            {
                "prompt": HERMES.render(task.prompt, task.tools, generation_prompt=True),
                "gold": HERMES.render_message(task.gold[0]),
            }
            for task in make_tasks("train", count, 0, ["base"])
        ]
    )


def dialogues(count: int) -> list[dict]:
    """Whole gold dialogues in OpenAI's form, of other tasks."""
    return [
        {"messages": to_chat([*task.prompt, *task.gold]), "tools": to_tools(task.tools)}
        for task in make_tasks("bank", count, 0, ["base"])
    ]


def exact(completions: list[str], gold: list[str], **_: object) -> list[float]:
    """1 for the right call, 0 for anything else."""
    return [float(said.strip() == right) for said, right in zip(completions, gold, strict=True)]


def main(output_dir: str) -> GRPOTrainer:
    torch.set_num_threads(1)  # a model this small is slower with more
    loaded = load_model("pocket")
    trainer = GRPOTrainer(
        model=loaded.model,
        processing_class=loaded.tokenizer,
        reward_funcs=exact,
        train_dataset=prompts(64),
        args=GRPOConfig(
            output_dir=output_dir,
            max_steps=40,
            learning_rate=2e-3,
            lr_scheduler_type="constant",
            per_device_train_batch_size=32,
            num_generations=8,
            max_completion_length=40,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        ),
    )
    trainer.add_callback(CollapseGuard(trainer, dialogues(8), every=1, action="stop"))  # 2
    trainer.train()
    return trainer


if __name__ == "__main__":
    history = main(sys.argv[1] if len(sys.argv) > 1 else "runs/grpo_with_guard").state.log_history
    print(f"{'step':>4} {'reward':>7} {'bank NLL':>9} {'bank KL':>8} {'p(call)':>8} {'alarm':>6}")
    for row in history:
        if "collapse/alarm" in row:
            print(
                f"{row['step']:>4} {row.get('reward', float('nan')):>7.3f} "
                f"{row['collapse/bank_nll']:>9.3f} {row['collapse/bank_kl']:>8.3f} "
                f"{row['collapse/p_call']:>8.3f} {row['collapse/alarm']:>6.0f}"
            )
