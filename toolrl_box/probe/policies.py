"""What counts as healthy where it is a matter of taste, by name.

Input: nothing. Output: ``Policies``, which :func:`probe.states.classify` obeys. The defaults are
those of training runs here; ``docs/states.md`` shows each with an example.

Left out: anything that is a defect in every format. No policy makes an unclosed call healthy.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal, get_args

from toolrl_box.errors import ConfigError

Policy = Literal["allow", "flag"]


@dataclass(frozen=True, slots=True)
class Policies:
    """``allow`` or ``flag`` (then it is text pollution, under the kind in brackets).

    ``text_before_call``: natural language, then a call (``text_before_call``).
    ``text_after_call``: anything after or between calls (``debris_after_call``).
    ``several_calls``: more than one call in a message (``several_calls``).
    ``thinking``: a closed thinking block that opens the message (``thinking``).

    Raises ConfigError for any other value.
    """

    text_before_call: Policy = "allow"
    text_after_call: Policy = "flag"
    several_calls: Policy = "allow"
    thinking: Policy = "allow"

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value not in get_args(Policy):
                raise ConfigError(
                    f"policy {name} = {value!r}; one of: {', '.join(get_args(Policy))}"
                )


DEFAULT = Policies()
