"""Supervision schemes by name. A new one is a new file and a line in ``SCHEMES``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toolrl_box.errors import lookup
from toolrl_box.knobs import build
from toolrl_box.phases import Scheme
from toolrl_box.schemes.erroneous import Erroneous
from toolrl_box.schemes.guarded import Guarded
from toolrl_box.schemes.hint import Hint
from toolrl_box.schemes.icrl import ICRL
from toolrl_box.schemes.interleaved import Interleaved
from toolrl_box.schemes.mixed import Mixed
from toolrl_box.schemes.off_policy import OffPolicy
from toolrl_box.schemes.reflection import Reflection
from toolrl_box.schemes.rl import RLOnly
from toolrl_box.schemes.sft import SFTOnly
from toolrl_box.schemes.sft_then_rl import SFTThenRL

SCHEMES: Mapping[str, type[Any]] = {
    "rl": RLOnly,
    "sft": SFTOnly,
    "sft_then_rl": SFTThenRL,
    "interleaved": Interleaved,
    "erroneous": Erroneous,
    "reflection": Reflection,
    "off_policy": OffPolicy,
    "guarded": Guarded,
    "hint": Hint,
    "mixed": Mixed,
    "icrl": ICRL,
}


def build_scheme(name: str, knobs: Mapping[str, Any]) -> Scheme:
    """The scheme with its knobs. Raises ConfigError for an unknown name, knob or value."""
    kind = lookup("scheme", name, SCHEMES)
    scheme: Scheme = build(kind, knobs, "scheme", f"scheme '{name}'")
    return scheme
