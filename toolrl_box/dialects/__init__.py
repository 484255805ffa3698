"""Dialects: how released models write calls, read from logs and never written.

``DIALECTS[name].parse(text)`` reads a message, ``dialect(name, stripped=True)`` one whose special
tokens a log dropped, ``detect(texts)`` tells which dialect a log is in. What training writes stands
in ``formats``; its formats are dialects too.
"""

from __future__ import annotations

from toolrl_box.dialects.detection import Detected, detect
from toolrl_box.dialects.table import DIALECTS, Dialect, dialect
from toolrl_box.frames import without_stop

__all__ = ["DIALECTS", "Detected", "Dialect", "detect", "dialect", "without_stop"]
