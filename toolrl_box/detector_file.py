"""Detector files: which detectors watch a run, where their thresholds come from, what they are for.

Input: the name of a set that ships in ``detectors/data``, or a JSON file. Output: a
:class:`DetectorFile`, and from it fresh detectors for one run. The shape of a file::

    {"version": 1,
     "detectors": [
       {"form": "damage", "ratio": 1.5},
       {"name": "nll", "level": "warn",
        "when": {"signal": "bank_nll", "above": 0.4,
                 "statistics": [{"name": "log"}, {"name": "drift", "smoothing": 0.4}]}},
       {"name": "both", "level": "act", "when": {"all_of": [{…}, {…}]}}],
     "base": {…}, "provenance": {…}, "limits": ["…"]}

``base`` is the fingerprint of the model and the bank that the thresholds belong to: what the probe
saw in step 0. It is compared by figures, so a model is the same wherever it lies on the disk.

Left out: fitting (:mod:`toolrl_box.calibrate`).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from toolrl_box.conditions import Above, AllOf, AnyOf, Composed, Condition
from toolrl_box.detectors import DETECTORS, FORM_SIGNALS, STATISTICS, Detector, Statistic
from toolrl_box.errors import ConfigError, did_you_mean, lookup
from toolrl_box.knobs import build
from toolrl_box.readings import SIGNALS
from toolrl_box.runlog import RIGHT_TOKEN

VERSION = 1
SHIPPED = Path(__file__).parent / "detectors" / "data"
TOKEN_SIGNALS = frozenset({"wrong_control", "wrong_control_q95"})
SAME_MODEL = 0.02
"""Nats by which a slot's mean log-prob may differ between machines and precisions."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class StatisticSpec(_Section):
    """``name`` and the statistic's own knobs."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str


class AboveSpec(_Section):
    """``above`` null: not fitted yet."""

    signal: str
    statistics: tuple[StatisticSpec, ...] = Field(min_length=1)
    above: float | None


class AllOfSpec(_Section):
    all_of: tuple[ConditionSpec, ...] = Field(min_length=2)


class AnyOfSpec(_Section):
    any_of: tuple[ConditionSpec, ...] = Field(min_length=2)


def _kind_of_condition(value: Any) -> str:
    given = value.model_dump() if isinstance(value, BaseModel) else value
    keys = given if isinstance(given, Mapping) else ()
    return next((key for key in ("all_of", "any_of") if key in keys), "signal")


def _kind_of_detector(value: Any) -> str:
    given = value.model_dump() if isinstance(value, BaseModel) else value
    return "form" if isinstance(given, Mapping) and "form" in given else "composed"


ConditionSpec = Annotated[
    Annotated[AllOfSpec, Tag("all_of")]
    | Annotated[AnyOfSpec, Tag("any_of")]
    | Annotated[AboveSpec, Tag("signal")],
    Discriminator(_kind_of_condition),
]


class FormSpec(_Section):
    """One of :data:`~toolrl_box.detectors.DETECTORS` with its knobs."""

    model_config = ConfigDict(frozen=True, extra="allow")
    form: str

    @property
    def name(self) -> str:
        return self.form


class ComposedSpec(_Section):
    name: str = Field(min_length=1)
    level: Literal["warn", "act"]
    when: ConditionSpec


DetectorSpec = Annotated[
    Annotated[FormSpec, Tag("form")] | Annotated[ComposedSpec, Tag("composed")],
    Discriminator(_kind_of_detector),
]


class Base(_Section):
    """What the probe saw of the base: the control ``tokens`` it follows, and by slot the number of
    ``positions`` in the bank and the mean log-prob of the ``right`` token (nats)."""

    tokens: tuple[str, ...]
    positions: dict[str, int]
    right: dict[str, float]

    @classmethod
    def of(cls, probe: Iterable[Mapping[str, Any]]) -> Base:
        """From the rows of the probe's summary of step 0."""
        rows = list(probe)
        right = [row for row in rows if row["token"] == RIGHT_TOKEN]
        return cls(
            tokens=tuple(dict.fromkeys(r["token"] for r in rows if r["token"] != RIGHT_TOKEN)),
            positions={row["slot"]: int(row["n"]) for row in right},
            right={row["slot"]: float(row["mean_logprob"]) for row in right},
        )

    def difference(self, other: Base) -> str | None:
        """In what ``other`` is not the same base, or None."""
        if (self.tokens, self.positions) != (other.tokens, other.positions):
            return "another bank or tool format"
        furthest = max(self.right, key=lambda slot: abs(self.right[slot] - other.right[slot]))
        if abs(self.right[furthest] - other.right[furthest]) <= SAME_MODEL:
            return None
        return (
            f"another model (mean log-prob of the right token in {furthest}: "
            f"{self.right[furthest]:.3f}, here {other.right[furthest]:.3f})"
        )


class Fit(_Section):
    """How a threshold was fitted: ``above`` of ``runs`` healthy runs exceeded it. ``expected`` and
    ``upper`` are the false-alarm rates of a fresh run, see :mod:`toolrl_box.budget`."""

    above: int
    runs: int
    expected: float
    upper: float


class Provenance(_Section):
    date: str
    toolrl_box: str
    false_alarms: float
    runs: dict[str, tuple[str, ...]] = Field(description="class -> run folders")
    seeds: tuple[int, ...]
    fits: dict[str, Fit]


class DetectorFile(_Section):
    version: Literal[1] = 1
    detectors: tuple[DetectorSpec, ...] = Field(min_length=1)
    base: Base | None = None
    provenance: Provenance | None = None
    limits: tuple[str, ...] = ()


def load(source: str) -> DetectorFile:
    """A set by its name, or a file. Raises ConfigError with one line for anything but a sound file
    of this version."""
    shipped = {path.stem: path for path in SHIPPED.glob("*.json")}
    path = shipped.get(source, Path(source))
    if not path.is_file():
        raise ConfigError(
            f"no detector file '{source}'{did_you_mean(source, shipped) or ';'} "
            f"one of: {', '.join(sorted(shipped))}, or a file of `toolrl calibrate`"
        )
    try:
        given = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source} is not a detector file: {error}") from error
    if not isinstance(given, dict) or "version" not in given:
        raise ConfigError(f"{source} is not a detector file: it names no version")
    if given["version"] != VERSION:
        raise ConfigError(
            f"{source} is a detector file of version {given['version']}; this toolrl reads "
            f"version {VERSION}"
        )
    try:
        file = DetectorFile.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{source}: {where}: {first['msg'].lower()}") from None
    _check(file, source)
    return file


def make(file: DetectorFile) -> list[Detector]:
    """Fresh detectors for one run. Raises ConfigError for one that has no threshold yet."""
    return [_detector(spec) for spec in file.detectors]


def check_base(file: DetectorFile, here: Base, given: str) -> None:
    """Raises ConfigError, which begins with ``given``, when the file belongs to another base than
    ``here``. Which control tokens are followed matters to detectors that read them alone: a
    callback knows fewer of them than a run."""
    if file.base is None:
        return
    if not any(_reads_tokens(spec) for spec in file.detectors):
        here = here.model_copy(update={"tokens": file.base.tokens})
    if (difference := file.base.difference(here)) is not None:
        raise ConfigError(
            f"{given} was calibrated on {difference}; calibrate on runs of this one, or use "
            "'default'"
        )


def can_alarm(spec: DetectorSpec, signals: Collection[str]) -> bool:
    """Whether these signals are enough for it ever to alarm."""
    if isinstance(spec, FormSpec):
        return FORM_SIGNALS[spec.form] <= set(signals)
    return _can_hold(spec.when, signals)


def digest(file: DetectorFile) -> str:
    """sha256 of its content; equal for equal files."""
    return hashlib.sha256(dump(file).encode()).hexdigest()


def scorer(spec: ComposedSpec) -> Composed:
    """A fresh detector whose leading threshold does not matter: for fitting it."""
    return Composed(spec.name, spec.level, _condition(_fitted(spec.when, 0.0)))


def fitted(spec: ComposedSpec, threshold: float) -> ComposedSpec:
    """The detector with that leading threshold."""
    return spec.model_copy(update={"when": _fitted(spec.when, threshold)})


def dump(file: DetectorFile) -> str:
    """As it stands in a file."""
    return json.dumps(file.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _check(file: DetectorFile, source: str) -> None:
    """What the shape alone does not say: names and knobs that exist, thresholds that are there."""
    counts = Counter(spec.name for spec in file.detectors)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ConfigError(f"{source}: two detectors are called '{twice[0]}'")
    for spec in file.detectors:
        try:
            if isinstance(spec, FormSpec):
                _detector(spec)
            elif None in _thresholds(spec.when)[1:]:
                raise ConfigError("only the leading threshold is fitted: 'above' is null elsewhere")
            else:
                scorer(spec)
        except ConfigError as error:
            raise ConfigError(f"{source}: detector '{spec.name}': {error}") from None


def _detector(spec: FormSpec | ComposedSpec) -> Detector:
    if isinstance(spec, FormSpec):
        kind: Any = lookup("form", spec.form, DETECTORS)
        knobs = spec.model_extra or {}
        form: Detector = build(kind, knobs, "detector", f"form '{spec.form}'")
        return form
    if None in _thresholds(spec.when):
        raise ConfigError(
            f"detector '{spec.name}' has no threshold yet: fit it with `toolrl calibrate`"
        )
    return Composed(spec.name, spec.level, _condition(spec.when))


def _condition(spec: AboveSpec | AllOfSpec | AnyOfSpec) -> Condition:
    if isinstance(spec, AllOfSpec):
        return AllOf([_condition(part) for part in spec.all_of])
    if isinstance(spec, AnyOfSpec):
        return AnyOf([_condition(part) for part in spec.any_of])
    lookup("signal", spec.signal, SIGNALS)
    assert spec.above is not None
    return Above(spec.signal, [_statistic(one) for one in spec.statistics], spec.above)


def _statistic(spec: StatisticSpec) -> Statistic:
    kind: Any = lookup("statistic", spec.name, STATISTICS)
    owner = f"statistic '{spec.name}'"
    statistic: Statistic = build(kind, spec.model_extra or {}, "statistics", owner)
    return statistic


def _parts(
    spec: AboveSpec | AllOfSpec | AnyOfSpec,
) -> tuple[AboveSpec | AllOfSpec | AnyOfSpec, ...]:
    if isinstance(spec, AboveSpec):
        return ()
    return spec.all_of if isinstance(spec, AllOfSpec) else spec.any_of


def _reads_tokens(spec: DetectorSpec) -> bool:
    return isinstance(spec, ComposedSpec) and not TOKEN_SIGNALS.isdisjoint(_signals(spec.when))


def _signals(spec: AboveSpec | AllOfSpec | AnyOfSpec) -> set[str]:
    if isinstance(spec, AboveSpec):
        return {spec.signal}
    return {signal for part in _parts(spec) for signal in _signals(part)}


def _can_hold(spec: AboveSpec | AllOfSpec | AnyOfSpec, signals: Collection[str]) -> bool:
    if isinstance(spec, AboveSpec):
        return spec.signal in signals
    enough = all if isinstance(spec, AllOfSpec) else any
    return enough(_can_hold(part, signals) for part in _parts(spec))


def _thresholds(spec: AboveSpec | AllOfSpec | AnyOfSpec) -> list[float | None]:
    """In order, the leading one first."""
    if isinstance(spec, AboveSpec):
        return [spec.above]
    return [threshold for part in _parts(spec) for threshold in _thresholds(part)]


def _fitted(
    spec: AboveSpec | AllOfSpec | AnyOfSpec, threshold: float
) -> AboveSpec | AllOfSpec | AnyOfSpec:
    if isinstance(spec, AboveSpec):
        return spec.model_copy(update={"above": threshold})
    first, *others = _parts(spec)
    key = "all_of" if isinstance(spec, AllOfSpec) else "any_of"
    return spec.model_copy(update={key: (_fitted(first, threshold), *others)})
