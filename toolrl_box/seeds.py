"""One seed for a run, a derived one for every use.

Every source of randomness is seeded anew from (run seed, purpose, step). Nothing carries a random
state from step to step, so a resumed run needs none to go on exactly as it would have.
"""

from __future__ import annotations

import hashlib


def derive(seed: int, *purpose: str | int) -> int:
    """A 31-bit seed for ``purpose``; different purposes give independent streams."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
