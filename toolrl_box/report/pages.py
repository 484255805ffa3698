"""Write a summary up as a page for people: one HTML file that needs nothing else, and Markdown.

Input: the summary dict, the scenes and the PNG files. Output: text. Everything that comes from
data is escaped: HTML by autoescape, Markdown by the filters below. Left out: any figure or
judgement that is not in the summary already.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from toolrl_box.report.examples import Scene, readable

MEANINGS = {
    "healthy": "No sign of collapse: the share of solved tasks held, and so did the form of "
    "the messages.",
    "drifting": "There is no collapse by the rules below, but something was lost on the way. "
    "Look at where the curves turn, and consider the best checkpoint instead of the last.",
    "structural_collapse": "The model no longer writes well-formed tool calls and answers: "
    "control tokens stand where they do not belong, or are missing where they do. "
    "Use the best checkpoint, not the last one.",
    "reward_collapse": "The model still writes well-formed messages, but what they say no longer "
    "solves the tasks. Use the best checkpoint, not the last one.",
    "text_pollution": "Tags and calls are broken in a good part of the messages while the reward "
    "still holds: the stage that comes before a structural collapse. Stop and look now.",
    "capability_loss": "Messages and calls are well-formed, but more and more calls name tools "
    "that are not there or break their schema. Use the best checkpoint, not the last one.",
    "entropy_collapse": "The policy has become nearly deterministic: the rollouts of a group are "
    "alike and teach nothing.",
    "length_explosion": "Responses grow until the token limit cuts them.",
    "suspected_bug": "Something in the training or its log is broken in a way that explains the "
    "rest: mend that first.",
    "insufficient_data": "The run has too few scored steps for the rules below. The figures "
    "show what there is.",
}
RULES = (
    "Reward has collapsed when its 5-step mean falls below half of its peak so far and stays "
    "below 70% of that peak to the end (a peak below 0.05 is noise) and the evaluation, where "
    "there is one, lost half of its best, too. Messages are broken when the 3-step mean share of "
    "structurally sound ones (well-formed calls count, even of a wrong tool) is below 80%, or "
    "below 80% of the best so far in a run that never reached that. Broken messages at the end "
    "together with a fall of reward, or more than half of the messages broken, is a structural "
    "collapse; broken messages without a fall of reward are text pollution; a fall of reward alone "
    "is a reward collapse, or a loss of capability when wrong calls rose with it. Drifting is none "
    "of these, but an evaluation (without one: a reward) that ends below 70% of its peak. Rules "
    "for entropy and length stand in docs/diagnose.md. Alarms play no part in the verdict."
)
FIGURES = (
    (
        "reward_and_eval.png",
        "Reward and evaluation",
        "How many episodes were solved: while training (blue) and on fixed held-out tasks.",
    ),
    (
        "states.png",
        "What the messages are like",
        "Every sampled message is one of four: a well-formed call, a clean answer, text with "
        "stray control tokens in it, or collapsed.",
    ),
    (
        "control_tokens.png",
        "Control tokens",
        "How likely the right token (black) and each control token are, by position in correct "
        "dialogues. A sound model keeps black far above the rest.",
    ),
    (
        "signals.png",
        "Signals of the policy",
        "Damage to the gold messages, distance to the base model, uncertainty, and size of the "
        "updates.",
    ),
)
OOD_MEANING = (
    "Success on tasks that were not used while training. Foreign content: words and tools that "
    "occur nowhere in training. Foreign format: calls are written in a syntax that was not trained "
    "here. The best checkpoint was chosen by other tasks than these."
)
SCENE_TITLES = {
    "before": "Before the onset",
    "at": "At the onset",
    "after": "At the end",
    "first": "At the beginning",
    "middle": "Half-way",
    "last": "At the end",
}


def html_page(
    summary: Mapping[str, Any],
    scenes: tuple[Scene, ...],
    environment: Mapping[str, Any],
    folder: Path,
) -> str:
    """The page, with the PNGs in ``folder`` embedded."""
    figures = [
        {
            "uri": data_uri(folder / file),
            "title": title,
            "caption": caption,
        }
        for file, title, caption in FIGURES
    ]
    return render(
        "page.html.j2",
        **_common(summary, scenes),
        figures=figures,
        config=readable(yaml.safe_dump(summary["config"], sort_keys=False, allow_unicode=True)),
        environment=readable(json.dumps(environment, indent=2, ensure_ascii=False)),
    )


def markdown_page(summary: Mapping[str, Any], scenes: tuple[Scene, ...]) -> str:
    """The same for places that show Markdown, with the PNGs beside it."""
    figures = [
        {"file": file, "title": title, "caption": caption} for file, title, caption in FIGURES
    ]
    return render("page.md.j2", **_common(summary, scenes), figures=figures)


def escape_markdown(text: str) -> str:
    """Data within a line: every significant character literal, line breaks visible."""
    escaped = re.sub(r"([\\`*_{}\[\]()<>#+\-.!|~&$^=:@])", r"\\\1", readable(text))
    return escaped.replace("\n", " ⏎ ").replace("\t", " ")


def fenced(text: str) -> str:
    """Data as a code block whose fence is longer than any that the data holds."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def data_uri(png: Path) -> str:
    """The picture as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(png.read_bytes()).decode()


def render(template: str, **values: Any) -> str:
    """A template of this folder: HTML escapes every value, Markdown what its filters are asked
    to."""
    environment = Environment(
        loader=PackageLoader("toolrl_box.report", "."),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "md": escape_markdown,
        "fenced": fenced,
        "readable": readable,
        "figure": _figure,
        "detail": _detail,
        "words": lambda name: str(name).replace("_", " "),
    }
    return environment.get_template(template).render(**values)


def _common(summary: Mapping[str, Any], scenes: tuple[Scene, ...]) -> dict[str, Any]:
    return {
        "s": summary,
        "meaning": MEANINGS[summary["verdict"]],
        "rules": RULES,
        "facts": _facts(summary),
        "scenes": scenes,
        "scene_titles": SCENE_TITLES,
        "ood": _ood_table(summary["ood"]),
        "ood_meaning": OOD_MEANING,
    }


def _ood_table(evaluations: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Head and rows: checkpoint, world, then per temperature the share of all tasks and of each
    category."""
    worlds = [world for made in evaluations for world in made["worlds"].values()]
    categories = list(dict.fromkeys(c for w in worlds for c in w["greedy"]["by_category"]))
    rows = [
        [
            f"step {made['step']}" + (f" ({', '.join(made['names'])})" if made["names"] else ""),
            name.replace("_", " "),
            world["format"],
            str(made["tasks"]),
            *(
                _share(figure)
                for key in ("greedy", "sampled")
                for figure in (
                    world[key]["success"],
                    *(world[key]["by_category"].get(category) for category in categories),
                )
            ),
        ]
        for made in evaluations
        for name, world in made["worlds"].items()
    ]
    return {"categories": [c.replace("_", " ") for c in categories], "rows": rows}


def _facts(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """The numbers at the top of the page."""
    reward, best = summary["reward"], summary["best_checkpoint"]
    onset = summary["onset_step"]
    last = summary["state_shares"]["last"]
    healthy = [last["healthy_call"], last["healthy_response"]]
    measure = "held-out" if reward["measure"] == "eval_sampled" else "sampled"
    note = f"{measure}, {reward['window']}-step mean"
    at = "" if reward["peak_step"] is None else f", step {reward['peak_step']}"
    facts = [
        ("Onset", f"step {onset}" if onset is not None else "none", "first sign of collapse"),
        ("Peak reward", _share(reward["peak"]), note + at),
        ("Final reward", _share(reward["final"]), note),
        (
            "Healthy messages",
            "–" if None in healthy else f"{sum(healthy):.0%}",
            "right tool, right form; mean of the last 5 steps that sampled",
        ),
        (
            "Best checkpoint",
            f"step {best['step']}" if best else "–",
            best["reason"] if best else "none was marked",
        ),
        ("Steps", str(summary["steps"]), f"{summary['rl_steps']} of them RL"),
    ]
    for name, label in (("greedy", "greedy"), ("sampled", "temperature 1")):
        figures = summary["evaluation"][name]
        if figures is not None:
            first, peak = _share(figures["first"]), _share(figures["peak"])
            note = f"at first {first}, peak {peak} at step {figures['peak_step']}"
            facts.append((f"Evaluation, {label}", _share(figures["final"]), note))
    return [{"name": name, "value": value, "note": note} for name, value, note in facts]


def _figure(value: float | int | None) -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.3g}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _detail(value: Any) -> str:
    """A phase's settings in a few words; a long list of tasks becomes its length."""
    if value is None:
        return ""
    if not isinstance(value, Mapping):
        return readable(str(value))
    parts = [
        f"{len(item)} {name}" if isinstance(item, list) else f"{name} {json.dumps(item)}"
        for name, item in value.items()
        if item is not None
    ]
    return readable(", ".join(parts).replace("_", " "))
