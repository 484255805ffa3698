"""Ask three public monitors about runs. Runs in an environment of its own, without toolrl_box.

    python -I ask.py < runs.json > alarms.json       (analysis/monitors.py does it)

Input: ``{run: {"config": {…}, "steps": [[step, {signal: value}], …]}}``. Output, for each monitor
and way of asking it: ``version``, ``asked`` (in words), ``given`` (our signal -> its name),
``idle`` (its checks that found no data) and ``alarms``, ``{run: [[step, "warn" | "act", check],
…]}``.

Every monitor keeps its default thresholds, and sees a step only when it is over. The packages are
strangers' code: their sources were read before they were first run (at the pinned versions none
uses the network unless an address is configured), and an audit hook ends the process if one tries
to, or starts another program. That stops accidents, not malice.

Left out: alarms below a warning (rldoctor's and rlprobe's "info").
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

FORBIDDEN = (
    *("socket.connect", "socket.getaddrinfo", "subprocess.Popen"),
    *("os.system", "os.exec", "os.fork", "os.posix_spawn"),
)
Steps = Sequence[tuple[int, Mapping[str, float]]]
Alarms = list[tuple[int, str, str]]
LEVEL = {"warning": "warn", "warn": "warn", "critical": "act"}

TRL_NAMES = {
    "reward": "reward",
    "reward_spread": "reward_std",
    "zero_spread": "frac_reward_zero_std",
    "entropy": "entropy",
    "bank_kl": "kl",
    "clip_fraction": "clip_ratio/region_mean",
    "grad_norm": "grad_norm",
    "completion_tokens": "completions/mean_length",
}
RLWATCH_NAMES = {
    "reward": "reward_mean",
    "reward_spread": "reward_std",
    "entropy": "entropy",
    "bank_kl": "kl_divergence",
    "clip_fraction": "clip_fraction",
    "grad_norm": "grad_norm",
}
RLPROBE_NAMES = {
    "reward": "reward_mean",
    "reward_spread": "reward_std",
    "zero_spread": "zero_variance_group_frac",
    "entropy": "entropy_mean",
    "bank_kl": "kl_mean",
    "clip_fraction": "clip_fraction",
    "grad_norm": "grad_norm",
    "completion_tokens": "completion_len_mean",
}
# What each check of rlwatch and rlprobe cannot do without, from their sources; rldoctor tells it.
RLWATCH_NEEDS = {
    "entropy_collapse": ("entropy",),
    "kl_explosion": ("kl_divergence",),
    "reward_hacking": ("reward_std",),
    "advantage_variance": ("advantage_std",),
    "loss_nan": ("loss",),
    "gradient_norm_spike": ("grad_norm",),
    "reward_mean_drift": ("reward_mean",),
}
RLPROBE_NEEDS = {
    "KL_BLOWUP": ("kl_mean",),
    "ENTROPY_COLLAPSE": ("entropy_mean",),
    "REWARD_HACK_LENGTH": ("reward_mean", "completion_len_mean"),
    "FORMAT_GAMING": ("reward_components",),
    "CLIP_SATURATION": ("clip_fraction",),
    "DEGENERATE_GROUPS": ("zero_variance_group_frac",),
    "ADV_COLLAPSE": ("adv_std",),
    "VALUE_DIVERGENCE": ("value_explained_variance",),
    "GRAD_PATHOLOGY": ("grad_norm",),
    "TRUNCATION_STARVE": ("truncation_rate",),
    "REPETITION_SPIRAL": ("repetition_rate",),
    "REWARD_STD_DEATH": ("reward_std",),
    "REF_POLICY_DRIFT_ASYMMETRY": ("kl_positional",),
    "THROUGHPUT_ROT": ("step_time_s",),
}


def refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event.startswith(FORBIDDEN):
        print(f"a monitor tried {event} {arguments[:2]!r}", file=sys.stderr)
        os._exit(3)


def renamed(values: Mapping[str, float], names: Mapping[str, str]) -> dict[str, float]:
    return {names[signal]: value for signal, value in values.items() if signal in names}


def ask_rldoctor(config: Mapping[str, Any], steps: Steps, **cadence: int) -> tuple[Alarms, set]:
    """Its live monitor, which is what its TRL callback drives."""
    from rl_doctor.detectors.base import Severity
    from rl_doctor.live import LiveMonitor

    monitor = LiveMonitor(config=config, on_finding=lambda finding: None, **cadence)
    alarms, idle = [], set()
    for step, values in steps:
        for finding in monitor.log(renamed(values, TRL_NAMES), step=step):
            level = "act" if finding.severity >= Severity.CRITICAL else "warn"
            alarms.append((step, level, finding.detector))
    monitor.check()
    if monitor.latest is None:
        raise RuntimeError("rldoctor could not read a run")  # it hides its own errors
    for finding in monitor.latest.skipped:
        if finding.summary.startswith("detector raised"):
            raise RuntimeError(f"rldoctor: {finding.detector}: {finding.summary}")
        idle.add(finding.detector)
    return alarms, idle


def ask_rlwatch(config: Mapping[str, Any], steps: Steps) -> tuple[Alarms, set]:
    """Its manual interface, called at every step; it keeps a database in the working folder."""
    import rlwatch

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        monitor = rlwatch.attach(framework="manual")
        given: set[str] = set()
        alarms = []
        for step, values in steps:
            figures = renamed(values, RLWATCH_NAMES)
            given |= figures.keys()
            for alert in monitor.log_step(step, **figures):
                alarms.append((step, LEVEL[alert.severity], alert.detector))
        monitor.stop()
        os.chdir("/")
    return alarms, {check for check, needs in RLWATCH_NEEDS.items() if not given.issuperset(needs)}


def ask_rlprobe(config: Mapping[str, Any], steps: Steps, every: int) -> tuple[Alarms, set]:
    """Its diagnosis of the recording so far; a finding counts when it is new or worse."""
    from rlprobe.doctor.base import REGISTRY
    from rlprobe.doctor.engine import diagnose_view
    from rlprobe.doctor.runview import RunView
    from rlprobe.schemas import RunManifest, StepRecord

    manifest = RunManifest(run_id="run", created_at="2026-01-01T00:00:00", algorithm="grpo")
    records = [StepRecord(step=s, **renamed(values, RLPROBE_NAMES)) for s, values in steps]
    alarms, told = [], set()
    for seen, (step, _) in enumerate(steps, start=1):
        if seen % every:
            continue
        for finding in diagnose_view(RunView(manifest, records[:seen])):
            key = (finding.signature_id, finding.severity)
            if finding.severity in LEVEL and key not in told:
                told.add(key)
                alarms.append((step, LEVEL[finding.severity], finding.signature_id))
    if {check.id for check in REGISTRY} != RLPROBE_NEEDS.keys():
        raise RuntimeError("rlprobe has other checks than the ones that were read")
    given = {name for record in records for name in record.model_fields_set}
    return alarms, {check for check, needs in RLPROBE_NEEDS.items() if not given.issuperset(needs)}


Ask = Callable[[Mapping[str, Any], Steps], tuple[Alarms, set]]
MONITORS: dict[str, tuple[str, str, Mapping[str, str], Ask]] = {
    "rldoctor": (
        "rldoctor",
        "default: every 25th step, from the 60th on",
        TRL_NAMES,
        ask_rldoctor,
    ),
    "rldoctor, every step": (
        "rldoctor",
        "not its default: every step from its least, the 8th, on",
        TRL_NAMES,
        lambda config, steps: ask_rldoctor(config, steps, check_every=1, min_steps=8),
    ),
    "rlwatch": ("rlwatch", "default: every step", RLWATCH_NAMES, ask_rlwatch),
    "rlprobe": (
        "rlprobe",
        "default of its TRL callback: every 25th step; its checks need 30 steps",
        RLPROBE_NAMES,
        lambda config, steps: ask_rlprobe(config, steps, every=25),
    ),
    "rlprobe, every step": (
        "rlprobe",
        "as its `watch` command would at every step; its checks need 30 steps",
        RLPROBE_NAMES,
        lambda config, steps: ask_rlprobe(config, steps, every=1),
    ),
}


def main() -> None:
    sys.addaudithook(refuse)
    logging.disable()
    runs = json.load(sys.stdin)
    answer: dict[str, Any] = {}
    for name, (package, asked, names, ask) in MONITORS.items():
        alarms: dict[str, Alarms] = {}
        idle: list[set] = []
        for run, logged in runs.items():
            alarms[run], without = ask(logged["config"], logged["steps"])
            idle.append(without)
        seen = {s for logged in runs.values() for _, values in logged["steps"] for s in values}
        answer[name] = {
            "version": version(package),
            "asked": asked,
            "given": {signal: theirs for signal, theirs in names.items() if signal in seen},
            "idle": sorted(set.intersection(*idle)),
            "alarms": alarms,
        }
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
