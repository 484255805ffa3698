"""What arXiv 2606.26027 reports for the schemes that this package has, as constants.

Read from third-party digests of the paper, hence "as reported". Other models, another benchmark
and 300 steps: the rows say which way a scheme went there, not what it should score here.
"""

from __future__ import annotations

SOURCE = "arXiv 2606.26027, as reported"

UNTOUCHED = "untouched"
# Scheme of this package -> the paper's name for it.
NAMES: dict[str, str] = {
    UNTOUCHED: "untouched",
    "rl": "GRPO alone",
    "sft": "SFT",
    "sft_then_rl": "SFT(BFCL) then RL",
    "off_policy": "OPS, off-policy",
    "hint": "HBG, hints",
    "erroneous": "ETS, erroneous trajectories",
    "reflection": "PRS, process reflection",
}
# BFCL-V3 multi-turn accuracy in %, average of its four categories.
QWEN25 = "Qwen2.5-1.5B-Instruct"
QWEN3 = "Qwen3-1.7B"
BFCL: dict[str, dict[str, float]] = {
    QWEN25: {
        **{UNTOUCHED: 3.50, "rl": 0.0, "sft_then_rl": 17.25, "off_policy": 1.50, "hint": 0.0},
        **{"erroneous": 20.0, "reflection": 25.75},
    },
    QWEN3: {
        **{UNTOUCHED: 12.5, "sft": 20.0, "rl": 1.5, "sft_then_rl": 0.0, "off_policy": 0.0},
        **{"hint": 0.75, "erroneous": 23.25, "reflection": 19.5},
    },
}
# ACEBench, Qwen2.5: (foreign format and content, foreign content only) in %.
ACEBENCH: dict[str, tuple[float, float]] = {
    UNTOUCHED: (26.0, 31.6),
    "sft": (0.0, 24.1),
    "rl": (24.75, 0.0),
    "off_policy": (25.75, 23.2),
    "hint": (22.5, 0.0),
    "erroneous": (8.75, 21.6),
    "reflection": (12.0, 25.8),
}
