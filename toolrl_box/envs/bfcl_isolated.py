"""The package's tool classes, kept from touching anything outside their own instance.

They simulate and reach neither files nor network, but five of them share state between instances,
let one call take all memory, or print sets. Each subclass mends one of them and says how; results
are otherwise the package's own, letter for letter.

Input: nothing. Output: ``KINDS``. Importing this module imports the package, so only
``bfcl_tools`` does, and late.
"""

from __future__ import annotations

import copy
import decimal
from collections.abc import Mapping
from typing import Any

import mpmath
from bfcl_eval.eval_checker.multi_turn_eval.func_source_code.gorilla_file_system import (
    GorillaFileSystem,
)
from bfcl_eval.eval_checker.multi_turn_eval.func_source_code.long_context import (
    LONG_WEATHER_EXTENSION,
)
from bfcl_eval.eval_checker.multi_turn_eval.func_source_code.math_api import MathAPI
from bfcl_eval.eval_checker.multi_turn_eval.func_source_code.message_api import MessageAPI
from bfcl_eval.eval_checker.multi_turn_eval.func_source_code.posting_api import TwitterAPI
from bfcl_eval.eval_checker.multi_turn_eval.func_source_code.ticket_api import TicketAPI
from bfcl_eval.eval_checker.multi_turn_eval.func_source_code.trading_bot import TradingBot
from bfcl_eval.eval_checker.multi_turn_eval.func_source_code.travel_booking import TravelAPI
from bfcl_eval.eval_checker.multi_turn_eval.func_source_code.vehicle_control import (
    VehicleControlAPI,
)

MAX_DIGITS = 4300
"""Python writes no longer whole number as text, so no result can have more."""


class Math(MathAPI):  # type: ignore[misc]
    """Precision in a context of the call's own (the package sets the process's), and bounded, as
    are whole numbers: one call could take all memory inside C code, where no time limit reaches.
    """

    def logarithm(self, value: float, base: float, precision: int) -> dict[str, Any]:
        try:
            context = mpmath.MPContext()
            context.dps = _bounded(precision)
            return {"result": context.log(value) / context.log(base)}
        except Exception as error:
            return {"error": str(error)}

    def square_root(self, number: float, precision: int) -> Any:
        with decimal.localcontext():
            return super().square_root(number, _bounded(precision))

    def power(self, base: float, exponent: float) -> Any:
        if (
            isinstance(base, int)
            and isinstance(exponent, int)
            and exponent * (base.bit_length() - 1) > 4 * MAX_DIGITS  # a digit is 3.3 bits
        ):
            raise ValueError(f"the result has more than {MAX_DIGITS} digits")
        return super().power(base, exponent)

    def round_number(self, number: float, decimal_places: int = 0) -> Any:
        if isinstance(number, int) and isinstance(decimal_places, int):
            decimal_places = max(decimal_places, -2 * MAX_DIGITS)  # 0 from there on
        return super().round_number(number, decimal_places)


def _bounded(precision: Any) -> Any:
    """``precision``, unless it is a number of digits, or can be read as one, that is too large."""
    try:
        digits = int(precision)
    except (TypeError, ValueError):
        return precision  # mpmath and decimal say what is wrong with it
    if digits > MAX_DIGITS:
        raise ValueError(f"precision = {precision}: at most {MAX_DIGITS} digits")
    return precision


class Posting(TwitterAPI):  # type: ignore[misc]
    """Lists of its own for a tweet without tags or mentions: the package stores its default
    arguments, and ``mention`` lengthens them for every later tweet of the process."""

    def post_tweet(self, content: str, **lists: list[str]) -> Any:
        return super().post_tweet(content, **({"tags": [], "mentions": []} | lists))


class Travel(TravelAPI):  # type: ignore[misc]
    """Cards and bookings of its own in long contexts: the package's are one set, and bookings
    change their balance."""

    def _load_scenario(self, scenario: Mapping[str, Any], long_context: bool = False) -> None:
        super()._load_scenario(scenario, long_context)
        if long_context:
            self.credit_card_list: dict[str, Any] = copy.deepcopy(self.credit_card_list)
            self.booking_record: dict[str, Any] = copy.deepcopy(self.booking_record)

    def book_flight(self, **arguments: Any) -> Any:
        result = super().book_flight(**arguments)
        return _ordered(result, "Invalid travel class. Must be one of {", "}")


class Ticket(TicketAPI):  # type: ignore[misc]
    """Refused fields in a fixed order."""

    def edit_ticket(self, ticket_id: int, updates: dict[str, Any]) -> Any:
        result = super().edit_ticket(ticket_id, updates)
        return _ordered(result, "Invalid fields for update: ", "")


def _ordered(result: dict[str, Any], head: str, tail: str) -> dict[str, Any]:
    """``result`` with the list in its error sorted, if it has that error. The package prints a set,
    in an order that differs from process to process: runs would not repeat."""
    error = result.get("error", "")
    if not error.startswith(head):
        return result
    names = sorted(error.removeprefix(head).removesuffix(tail).split(", "))
    return {**result, "error": head + ", ".join(names) + tail}


class Vehicle(VehicleControlAPI):  # type: ignore[misc]
    """A forecast of its own in long contexts: the package writes into the one it has."""

    def get_outside_temperature_from_google(self) -> Any:
        if not self.long_context:
            return super().get_outside_temperature_from_google()
        return {**LONG_WEATHER_EXTENSION, "outsideTemperature": self._random.uniform(-10.0, 40.0)}


KINDS: Mapping[str, type[Any]] = {
    "GorillaFileSystem": GorillaFileSystem,
    "MathAPI": Math,
    "MessageAPI": MessageAPI,
    "TicketAPI": Ticket,
    "TradingBot": TradingBot,
    "TravelAPI": Travel,
    "TwitterAPI": Posting,
    "VehicleControlAPI": Vehicle,
}
