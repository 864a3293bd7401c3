"""The model's own text, pushed towards a pole by how its response begins or by a system prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from traitscope.model.decode import decode
from traitscope.model.loading import LanguageModel
from traitscope.model.sampling import Sampling
from traitscope.suite.rendering import PromptStyle, Rendered, render, tokenise_response
from traitscope.suite.tokens import TokenDescriber
from traitscope.traits.pooling import pool_texts
from traitscope.traits.scenarios import Instructions, Pair, Prefills

OWN_TEXT_TOKENS = 40
PREFILLS_PER_PROMPT = 2
_BATCH = 40
Pole = Literal["positive", "negative"]
POLES: tuple[Pole, Pole] = ("positive", "negative")


@dataclass(frozen=True)
class Beginning:
    """What the model is made to go on from: a prompt and the first tokens of the response, which are not scored."""

    pole: Pole
    topic: str
    prompt: Rendered
    prefix: tuple[int, ...] = ()


@dataclass(frozen=True)
class OwnText:
    """Greedy continuations at both poles: texts, topics and pooled states ``[n, n_rows, d_model]`` of what is new."""

    texts: dict[Pole, list[str]]
    topics: dict[Pole, list[str]]
    states: dict[Pole, np.ndarray]


def after_prefills(
    model: LanguageModel, pairs: Sequence[Pair], prefills: Prefills, style: PromptStyle
) -> list[Beginning]:
    """Two prefills a pole for every pair's prompt, dealt out in turn."""
    beginnings = []
    for number, pair in enumerate(pairs):
        prompt = _rendered(model, pair, style)
        for pole in POLES:
            known = getattr(prefills, pole)
            for prefill in range(number * PREFILLS_PER_PROMPT, (number + 1) * PREFILLS_PER_PROMPT):
                prefix = tokenise_response(model.tokenizer, known[prefill % len(known)])
                beginnings.append(Beginning(pole, pair.topic, prompt, prefix))
    return beginnings


def under_instructions(
    model: LanguageModel, pairs: Sequence[Pair], instructions: Instructions, style: PromptStyle
) -> list[Beginning]:
    """One system prompt a pole for every pair's prompt, dealt out in turn."""
    beginnings = []
    for number, pair in enumerate(pairs):
        for pole in POLES:
            known = getattr(instructions, pole)
            instructed = replace(style, system=known[number % len(known)])
            beginnings.append(Beginning(pole, pair.topic, _rendered(model, pair, instructed)))
    return beginnings


@dataclass(frozen=True)
class Continuation:
    """How the model went on from a beginning: the new tokens and their text."""

    beginning: Beginning
    response_ids: tuple[int, ...]
    text: str


def write_on(
    model: LanguageModel, beginnings: Sequence[Beginning], rows: Sequence[int], on_text: Callable[[], None]
) -> OwnText:
    """Let the model go on from every beginning, and pool what it wrote at the checkpoints ``rows``.

    Continuations without content are left out.
    """
    return read_continuations(model, continuations(model, beginnings, on_text), rows, on_text)


def continuations(
    model: LanguageModel, beginnings: Sequence[Beginning], on_text: Callable[[], None]
) -> list[Continuation]:
    """What the model writes after every beginning, greedily; the longest beginnings first."""
    describer = TokenDescriber(model.tokenizer)
    return [
        Continuation(beginning, tuple(response), describer.response_text(response))
        for beginning, response in _continued(model, beginnings, on_text)
    ]


def read_continuations(
    model: LanguageModel,
    written: Sequence[Continuation],
    rows: Sequence[int],
    on_text: Callable[[], None],
    *,
    with_prefix: bool = True,
) -> OwnText:
    """Pool what the model wrote at the checkpoints ``rows``; continuations without content are left out.

    ``with_prefix`` says whether the beginning of the response stands before it, as when it was written, so that
    attention can carry the beginning on; without it the new tokens follow the prompt.
    """
    describer = TokenDescriber(model.tokenizer)
    read: list[tuple[Continuation, list[int], np.ndarray]] = []
    for one in written:
        prefix = one.beginning.prefix if with_prefix else ()
        tokens = describer.rows(one.beginning.prompt, [*prefix, *one.response_ids])
        n_given = len(one.beginning.prompt.token_ids) + len(prefix)
        keep = tokens.content() & (np.arange(len(tokens.token_id)) >= n_given)
        if keep.any():
            read.append((one, tokens.token_id, keep))
    pooled = pool_texts(model, [(token_ids, keep) for _, token_ids, keep in read], rows, on_text)
    of_pole = {pole: [n for n, (one, *_) in enumerate(read) if one.beginning.pole == pole] for pole in POLES}
    return OwnText(
        texts={pole: [read[n][0].text for n in chosen] for pole, chosen in of_pole.items()},
        topics={pole: [read[n][0].beginning.topic for n in chosen] for pole, chosen in of_pole.items()},
        states={pole: pooled[chosen] for pole, chosen in of_pole.items()},
    )


def _rendered(model: LanguageModel, pair: Pair, style: PromptStyle) -> Rendered:
    return render(model.tokenizer, [{"role": "user", "content": pair.prompt}], style)


def _continued(
    model: LanguageModel, beginnings: Sequence[Beginning], on_text: Callable[[], None]
) -> Iterator[tuple[Beginning, list[int]]]:
    ordered = sorted(beginnings, key=lambda b: len(b.prompt.token_ids) + len(b.prefix), reverse=True)
    for start in range(0, len(ordered), _BATCH):
        batch = ordered[start : start + _BATCH]
        decoded = decode(
            model,
            [[*beginning.prompt.token_ids, *beginning.prefix] for beginning in batch],
            max_new_tokens=OWN_TEXT_TOKENS,
            sampling=Sampling(),
            seeds=[0] * len(batch),
        )
        for beginning, row in zip(batch, decoded, strict=True):
            on_text()
            yield beginning, row.response_ids
