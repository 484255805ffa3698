"""One seed for a run, a derived one for every use; and how seeds are written on a command line.

Every source of randomness is seeded anew from (run seed, purpose, step). Nothing carries a random
state from step to step, so a resumed run needs none to go on exactly as it would have.
"""

from __future__ import annotations

import hashlib
import re

from toolrl_box.errors import ConfigError


def derive(seed: int, *purpose: str | int) -> int:
    """A 31-bit seed for ``purpose``; different purposes give independent streams."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def parse_seeds(text: str, option: str) -> list[int]:
    """``"3"``, ``"0-7"`` or ``"0-3,8"``. Raises ConfigError that names ``option``."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        several = range(int(match[1]), int(match[2] or match[1]) + 1) if match else range(0)
        if not several:
            raise ConfigError(f"{option} takes a number or a range such as 0-7, got '{text}'")
        seeds += several
    return list(dict.fromkeys(seeds))
