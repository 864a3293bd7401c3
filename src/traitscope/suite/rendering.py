"""From messages to token ids, once; and what every token is: its role, its turn, special or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from traitscope.errors import InputError
from traitscope.suite.prompts import Message

_PROBE_TEXT = "a"
_MARK = "traitscope-message-"


@dataclass(frozen=True)
class Rendered:
    """A prompt as the model reads it.

    ``roles`` and ``turns`` say of each token which message it comes from; tokens that the template wrote have
    the role ``template`` and no turn. Both are None where the rendered text does not show a message.
    """

    token_ids: tuple[int, ...]
    roles: tuple[str | None, ...]
    turns: tuple[int | None, ...]


@dataclass(frozen=True)
class PromptStyle:
    """How prompts are put to the model: system prompt, chat template arguments, form for base models."""

    system: str | None
    template: dict[str, Any]
    base_template: str


def has_chat_template(tokenizer: Any) -> bool:
    return bool(getattr(tokenizer, "chat_template", None))


def check_template_arguments(tokenizer: Any, style: PromptStyle) -> None:
    """Refuse arguments that the chat template never reads: a misspelt one would go unnoticed for a whole night.

    Raises:
        InputError: names the argument and those that the template reads.
    """
    if not style.template:
        return
    if not has_chat_template(tokenizer):
        raise InputError("template: this model has no chat template that could read arguments")
    read = _template_variables(tokenizer.chat_template)
    unread = [] if read is None else sorted(set(style.template) - read)
    if read is not None and unread:
        known = ", ".join(sorted(read))
        raise InputError(f"template.{unread[0]}: the chat template does not read it; it reads {known}")


def _template_variables(template: Any) -> set[str] | None:
    """The variables that a template reads, or None where it cannot be told."""
    import jinja2
    import jinja2.meta

    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols", "jinja2.ext.do"])
    try:
        return jinja2.meta.find_undeclared_variables(environment.parse(template))
    except (jinja2.TemplateError, TypeError, AttributeError):
        return None  # tags of transformers' own, or several templates in one tokenizer


def render(tokenizer: Any, messages: Sequence[Message], style: PromptStyle) -> Rendered:
    """Render messages with the chat template and its generation prompt, or with the base model's form.

    The text is tokenised without adding special tokens again; there is exactly one BOS where the tokenizer
    puts one in front of plain text.

    Raises:
        InputError: the chat template refuses these messages.
    """
    if style.system is not None and all(message["role"] != "system" for message in messages):
        messages = [{"role": "system", "content": style.system}, *messages]
    text = _text(tokenizer, messages, style)
    ids, offsets = _tokenise(tokenizer, text)
    spans = _message_spans(tokenizer, messages, style, text)
    roles, turns = _origins(offsets, spans, messages, len(ids))
    ids, roles, turns = _with_one_bos(tokenizer, ids, roles, turns)
    return Rendered(tuple(ids), tuple(roles), tuple(turns))


def tokenise_response(tokenizer: Any, response: str) -> tuple[int, ...]:
    """Token ids of a response that is given rather than generated, without special tokens."""
    return tuple(tokenizer(response, add_special_tokens=False)["input_ids"])


def _text(tokenizer: Any, messages: Sequence[Message], style: PromptStyle) -> str:
    return _chat_text(tokenizer, messages, style) if has_chat_template(tokenizer) else _base_text(messages, style)


def _chat_text(tokenizer: Any, messages: Sequence[Message], style: PromptStyle) -> str:
    try:
        return tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True, **style.template
        )
    except Exception as error:  # templates raise what they like
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"the chat template refuses a prompt: {reason}") from error


def _base_text(messages: Sequence[Message], style: PromptStyle) -> str:
    prompt = "\n\n".join(message["content"] for message in messages)
    return style.base_template.replace("{prompt}", prompt)


def _tokenise(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]] | None]:
    if getattr(tokenizer, "is_fast", False):
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(encoded["input_ids"]), list(encoded["offset_mapping"])
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]), None


def _origins(
    offsets: list[tuple[int, int]] | None,
    spans: list[tuple[int, int]] | None,
    messages: Sequence[Message],
    n_tokens: int,
) -> tuple[list[str | None], list[int | None]]:
    if offsets is None or spans is None:
        return [None] * n_tokens, [None] * n_tokens
    roles: list[str | None] = ["template"] * n_tokens
    turns: list[int | None] = [None] * n_tokens
    for token, (start, end) in enumerate(offsets):
        for turn, (first, last) in enumerate(spans):
            if start < last and end > first:
                roles[token], turns[token] = messages[turn]["role"], turn
                break
    return roles, turns


def _message_spans(
    tokenizer: Any, messages: Sequence[Message], style: PromptStyle, text: str
) -> list[tuple[int, int]] | None:
    """Where each message's content stands in the text, or None if the template changed one of them.

    Rendering marks in place of the contents shows what the template itself writes; a search for the contents
    would find them in the template's own words.
    """
    marks = [f"{_MARK}{turn}." for turn in range(len(messages))]
    try:
        skeleton = _text(tokenizer, [{**m, "content": mark} for m, mark in zip(messages, marks, strict=True)], style)
    except InputError:
        return None
    if any(skeleton.count(mark) != 1 for mark in marks):
        return None
    for clean in (str, str.strip):
        contents = [clean(message["content"]) for message in messages]
        spans = _spans_of(skeleton, marks, contents)
        if spans is not None and spans[1] == text:
            return spans[0]
    return None


def _spans_of(skeleton: str, marks: Sequence[str], contents: Sequence[str]) -> tuple[list[tuple[int, int]], str] | None:
    """The spans of the contents once they stand where the marks are, and the text that this gives."""
    spans, text, rest = [], "", skeleton
    for mark, content in zip(marks, contents, strict=True):
        before, found, rest = rest.partition(mark)
        if not found:
            return None
        text += before
        spans.append((len(text), len(text) + len(content)))
        text += content
    return spans, text + rest


def _with_one_bos(
    tokenizer: Any, ids: list[int], roles: list[str | None], turns: list[int | None]
) -> tuple[list[int], list[str | None], list[int | None]]:
    bos = getattr(tokenizer, "bos_token_id", None)
    plain = tokenizer(_PROBE_TEXT)["input_ids"]
    if bos is None or not plain or plain[0] != bos:
        return ids, roles, turns
    n_bos = next((n for n, token in enumerate(ids) if token != bos), len(ids))
    return [bos, *ids[n_bos:]], ["template", *roles[n_bos:]], [None, *turns[n_bos:]]
