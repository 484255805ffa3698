"""Whether a model can be trained on tool use, and what is odd about it: a line for each check.

Input: model (its weights may be on the meta device, none are read), tokenizer, tool format, limits
of rollouts. Output: :class:`Check` in reading order. An ``error`` means that training cannot work
or would learn something else than it shows; a ``note`` is what a user should know.
``toolrl doctor --model`` prints all; a run refuses the errors and tells the notes of
:func:`for_run`.

Left out: whether the model can call tools at all (the probe's ``p_call`` says that), and
everything that needs a forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from toolrl_box.config import RolloutSettings
from toolrl_box.errors import DataError, ModelError, ToolRLError
from toolrl_box.formats import NATIVE
from toolrl_box.models import eos_of, padding_of
from toolrl_box.native import Native, Template
from toolrl_box.native.format import CALL, NAME, RESULT, TEXT, TOOL, USER, has_thinking_switch
from toolrl_box.types import Message, ToolFormat

Verdict = Literal["ok", "note", "error"]

SYSTEM = Message("system", "Probe system.")
DIALOGUE = (SYSTEM, USER, CALL, RESULT, TEXT, USER, CALL, RESULT, TEXT)
"""Two user turns, each with a call, its result and an answer."""


@dataclass(frozen=True, slots=True)
class Check:
    """``finding`` is one line."""

    name: str
    verdict: Verdict
    finding: str


def examine(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    fmt: ToolFormat,
    rollout: RolloutSettings,
) -> Iterator[Check]:
    """Every check, the template's first."""
    yield from _template(tokenizer, fmt)
    yield from _frame(model, tokenizer, fmt)
    yield from sizes(model, tokenizer, rollout)


def for_run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    fmt: ToolFormat,
    rollout: RolloutSettings,
) -> list[str]:
    """The notes that concern a run in this format. Raises ModelError with the first error."""
    notes = []
    for check in (*_of_format(tokenizer, fmt), *sizes(model, tokenizer, rollout)):
        if check.verdict == "error":
            raise ModelError(f"{check.name}: {check.finding}")
        if check.verdict == "note":
            notes.append(f"{check.name}: {check.finding}")
    return notes


# --- the chat template ------------------------------------------------------------------------


def _template(tokenizer: PreTrainedTokenizerBase, fmt: ToolFormat) -> Iterator[Check]:
    needed: Verdict = "error" if fmt.name == NATIVE else "note"
    if tokenizer.chat_template is None:
        yield Check("chat template", needed, "none: only the embedded formats can be trained")
        return
    yield Check("chat template", "ok", f"{len(str(tokenizer.chat_template))} characters")
    template = fmt.template if isinstance(fmt, Native) else Template(tokenizer)
    try:
        text = template((USER, CALL, RESULT, TEXT), (TOOL,))
    except DataError as error:
        yield Check("tools", needed, str(error))
        return
    if text.count(NAME) < 2:
        yield Check("tools", needed, "the template leaves out tools or calls")
    else:
        yield Check("tools", "ok", "the template writes tools, calls and results")
    yield prefixes(template)
    yield from _of_format(tokenizer, fmt)


def prefixes(template: Template) -> Check:
    """Whether what was written of a dialogue stays as it was when the dialogue goes on: each
    message's own text, and each generation prompt."""
    name = "prefix-preserving"
    try:
        for stop in range(2, len(DIALOGUE)):
            prompted = DIALOGUE[stop].role == "assistant"
            before = template(DIALOGUE[:stop], (TOOL,), generation_prompt=prompted)
            after = template(DIALOGUE[: stop + 1], (TOOL,))
            if not after.startswith(before):
                return Check(name, "note", _broken(stop, before, after))
    except DataError as error:
        return Check(name, "note", f"cannot be told: {error}")
    return Check(name, "ok", "each message leaves what stands before it as it was")


def _broken(stop: int, before: str, after: str) -> str:
    same = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), None)
    at = max(0, (min(len(before), len(after)) if same is None else same) - 12)
    return (
        f"message {stop + 1} ({DIALOGUE[stop].role}) changes what stands before it: "
        f"{before[at : at + 30]!r} becomes {after[at : at + 30]!r}. Format native keeps what was "
        "written; the probe of other trainers (CollapseGuard) refuses such a template"
    )


def _of_format(tokenizer: PreTrainedTokenizerBase, fmt: ToolFormat) -> Iterator[Check]:
    if not isinstance(fmt, Native):
        if tokenizer.chat_template is not None and _switch(tokenizer):
            yield Check(
                "thinking",
                "note",
                f"this model may think, and format '{fmt.name}' has no thinking blocks: what it "
                f"samples and what supervision shows would differ; use --format {NATIVE}",
            )
        return
    yield Check("dialect", "ok", f"calls are read as '{fmt.dialect.name}'")
    yield _fidelity(fmt)
    yield _joints(tokenizer, fmt)
    yield from _losses(fmt)
    if "strftime_now" in fmt.chat_template or "date_string" in fmt.chat_template:
        yield Check("date", "ok", "the template writes today's date; runs write a fixed one")
    if fmt.thinks:
        yield Check(
            "thinking",
            "note",
            "on: gold messages without thoughts are written with an empty thinking block, which "
            "supervised phases then teach; model.thinking=false puts that block into the prompt",
        )
    elif _switch(tokenizer):
        yield Check("thinking", "ok", "off, in rollouts and in supervised rows")


def _switch(tokenizer: PreTrainedTokenizerBase) -> bool:
    try:
        return has_thinking_switch(tokenizer)
    except ToolRLError:  # a template that refuses a single question
        return False


def _fidelity(fmt: Native) -> Check:
    """Whether a dialogue composed message by message is what the template would write."""
    composed = fmt.render(DIALOGUE, (TOOL,))
    try:
        whole = fmt.template(DIALOGUE, (TOOL,))
    except DataError as error:
        return Check("composition", "note", f"the template alone refuses it: {error}")
    if composed == whole:
        return Check("composition", "ok", "dialogues are written as the template writes them")
    pairs = enumerate(zip(composed + "\0", whole + "\1", strict=False))
    at = max(0, next(i for i, (a, b) in pairs if a != b) - 12)
    return Check(
        "composition",
        "note",
        f"training writes {composed[at : at + 30]!r} where the template writes "
        f"{whole[at : at + 30]!r}, in every phase alike: what was sampled stays in the history",
    )


def _joints(tokenizer: PreTrainedTokenizerBase, fmt: Native) -> Check:
    """Text is encoded piece by piece; a server encodes it as a whole."""
    pieces = [fmt.render((SYSTEM, USER), (TOOL,), generation_prompt=True)]
    for message, following in ((CALL, (RESULT,)), (TEXT, (USER,))):
        pieces += [fmt.render_message(message) + fmt.end_of_message]
        pieces += [fmt.render_following(following)]
    apart = [i for piece in pieces for i in tokenizer.encode(piece, add_special_tokens=False)]
    whole = tokenizer.encode("".join(pieces), add_special_tokens=False)
    if apart == whole:
        return Check("joints", "ok", "messages and prompts meet at borders of tokens")
    return Check("joints", "note", "the tokenizer joins a message with what stands beside it")


def _losses(fmt: Native) -> Iterator[Check]:
    """What the template leaves out of messages."""
    said = "Probe words."
    try:
        both = fmt.render_message(Message("assistant", said, CALL.tool_calls))
        if said not in both:
            yield Check("text before a call", "note", "left out of gold: the template drops it")
    except DataError as error:
        yield Check("text before a call", "note", f"refused: {error}")
    try:
        fmt.render_message(Message("assistant", "", CALL.tool_calls * 2))
    except DataError as error:
        yield Check("several calls", "note", f"gold with two calls in a message fails: {error}")


# --- tokens -----------------------------------------------------------------------------------


def _frame(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, fmt: ToolFormat
) -> Iterator[Check]:
    end = _encode(tokenizer, fmt.end_of_message)
    if len(end) != 1:
        yield Check(
            "end of message", "error", f"{fmt.end_of_message} is {len(end)} tokens: {_named(end)}"
        )
        return
    stops = {*eos_of(model), *_known(tokenizer.eos_token_id)}
    named = f"{fmt.end_of_message} = {end[0]}"
    if end[0] in stops:
        yield Check("end of message", "ok", f"{named}; the model stops at {sorted(stops)}")
    else:
        yield Check(
            "end of message",
            "note",
            f"{named} is none of those at which the model stops by itself ({sorted(stops)}): "
            "rollouts here stop there, other engines must be told",
        )
    try:
        pad = padding_of(tokenizer, {end[0], *eos_of(model)})
    except ModelError as error:
        yield Check("padding", "error", str(error))
    else:
        if pad == tokenizer.pad_token:
            yield Check("padding", "ok", pad)
        else:
            has = tokenizer.pad_token
            why = "there is none" if has is None else f"{has} ends messages, too"
            yield Check("padding", "ok", f"{pad} is taken: {why}")
    yield from _control(tokenizer, fmt.control_tokens)


def _control(tokenizer: PreTrainedTokenizerBase, pieces: Sequence[str]) -> Iterator[Check]:
    split = {piece: ids for piece in pieces if len(ids := _encode(tokenizer, piece)) != 1}
    single = [f"{piece} = {_encode(tokenizer, piece)[0]}" for piece in pieces if piece not in split]
    yield Check("control tokens", "ok" if single else "note", ", ".join(single) or "none")
    # Pieces such as '"}}' may be several tokens; tags should not.
    tags = {piece: ids for piece, ids in split.items() if piece[0] in "<["}
    if tags:
        listed = ", ".join(f"{piece} ({len(ids)} pieces)" for piece, ids in tags.items())
        yield Check(
            "split tags", "note", f"{listed}: no probability of their own, so not probed apart"
        )
    added = tokenizer.added_tokens_decoder.values()
    special = {*tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}
    fading = [piece for piece in pieces if piece in special]
    if fading:
        yield Check(
            "special tags",
            "ok",
            f"{', '.join(fading)} vanish from text decoded with skip_special_tokens=True, as logs "
            "often are; here they are kept",
        )


# --- sizes ------------------------------------------------------------------------------------


def sizes(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rollout: RolloutSettings
) -> Iterator[Check]:
    """Of the vocabulary, the context and the weights; needs no tool format."""
    config = model.config.get_text_config()
    rows = model.get_input_embeddings().get_parameter("weight").shape[0]
    verdict: Verdict = "ok" if len(tokenizer) <= rows else "error"
    yield Check("vocabulary", verdict, f"{len(tokenizer)} tokens, {rows} rows of embeddings")
    longest = config.to_dict().get("max_position_embeddings")
    if longest is None:
        yield Check("context", "ok", "the model names no limit")
    else:
        fits = rollout.max_tokens <= longest
        yield Check(
            "context",
            "ok" if fits else "error",
            f"{longest} positions, rollout.max_tokens = {rollout.max_tokens}",
        )
    yield from _cache(model, rollout)
    count, dtype = model.num_parameters(), model.config.dtype or model.dtype
    # Weights, gradients and AdamW's two moments.
    yield Check(
        "size",
        "ok",
        f"{count / 1e6:.1f}M parameters, saved as {dtype}; full fine-tuning in fp32 takes "
        f"{count * 16 / 1e9:.2g} GB without activations",
    )


def _cache(model: PreTrainedModel, rollout: RolloutSettings) -> Iterator[Check]:
    layers = DynamicCache(config=model.config).layers
    kinds = {type(layer) for layer in layers}
    windows = [x.sliding_window for x in layers if isinstance(x, DynamicSlidingWindowLayer)]
    if not kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        yield Check("attention", "error", f"layers keep {names}: not plain attention")
    elif windows and min(windows) < rollout.max_tokens:
        yield Check(
            "attention",
            "error",
            f"a sliding window of {min(windows)} is below rollout.max_tokens "
            f"({rollout.max_tokens}); within it sliding attention is full attention",
        )
    else:
        yield Check("attention", "ok", f"{model.config.model_type}, {len(layers)} plain layers")


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _known(token: int | None) -> list[int]:
    return [] if token is None else [token]


def _named(ids: Sequence[int]) -> str:
    return " ".join(map(str, ids))
