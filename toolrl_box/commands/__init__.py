"""The commands of ``toolrl`` by subject: they resolve names, wire and print. No logic lives here.

A new command is a function in one of these modules and one line in the table below, which is also
the order of ``toolrl --help``. Its parameters are its options and its docstring is its help.
Whatever imports torch is imported inside the functions, so that ``--help`` and ``list`` are quick.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from toolrl_box.commands import about, base, diagnose, models, runs, studies, warning

COMMANDS: Mapping[str, Callable[..., None]] = {
    "run": runs.run,
    "report": runs.report,
    "compare": studies.compare,
    "evaluate": models.evaluate,
    "eval": models.eval_,
    "probe": models.probe,
    "diagnose": diagnose.diagnose,
    "watch": diagnose.watch,
    "ablate": studies.ablate,
    "calibrate": warning.calibrate,
    "dataset": warning.dataset,
    "score-detector": warning.score_detector,
    "list": about.list_,
    "doctor": about.doctor,
}
BASE_COMMANDS: Mapping[str, Callable[..., None]] = {"build": base.build}
