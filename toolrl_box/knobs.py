"""Plain values into a dataclass whose fields are its knobs: a scheme, a world, a detector.

Input: the dataclass and the values a config holds for it. Output: the object, or a ConfigError
that names the key, the value and the choices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from toolrl_box.errors import ConfigError, did_you_mean


def build(kind: type[Any], values: Mapping[str, Any], section: str, owner: str) -> Any:
    """An instance of the dataclass ``kind``. ``section`` is the config's (``scheme``), ``owner``
    says whose knobs they are (``scheme 'rl'``)."""
    known = [field.name for field in dataclasses.fields(kind) if field.init]
    for knob in values:
        if knob not in known:
            raise ConfigError(
                f"unknown key '{section}.{knob}' for {owner}"
                f"{did_you_mean(knob, known) or ';'} one of: {', '.join(known) or '(none)'}"
            )
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"{section}.{where} = {first['input']!r}: {first['msg'].lower()}"
        ) from None
