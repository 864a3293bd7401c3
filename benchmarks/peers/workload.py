"""The work that every contender does: prompts as token ids, lengths of responses, readers, and where the model is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

SUITE = "overnight"
N_RAGGED = 240
PROMPT_TOKENS = (5, 200)
RESPONSE_TOKENS = (5, 100)
_N_TRAITS = 4
_SEED = 0
_DESCRIPTION = "workload.json"
_READERS = "readers.npz"


@dataclass(frozen=True)
class Workload:
    """Attributes:
    name: of ``WORKLOADS``.
    described: its prompts and responses, in words.
    model: directory with configuration and float32 safetensors.
    tokenizer: directory with its tokenizer.
    checkpoints: names, in the order in which the model reaches them.
    prompts: token ids of each prompt, chat template included where it has one.
    lengths: of each prompt's response, in tokens; no token ends one earlier.
    readers: ``[n_traits, n_checkpoints, d_model]`` float32, unit vectors.
    """

    name: str
    described: str
    model: str
    tokenizer: str
    checkpoints: list[str]
    prompts: list[list[int]]
    lengths: list[int]
    readers: np.ndarray

    @property
    def n_prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))

    @property
    def n_response_tokens(self) -> int:
        return sum(self.lengths)

    def part(self, n_prompts: int | None) -> Workload:
        """``n_prompts`` of its prompts, evenly spread; all of them for None or for more than there are."""
        n_all = len(self.prompts)
        if n_prompts is None or n_prompts >= n_all:
            return self
        kept = [number * n_all // n_prompts for number in range(n_prompts)]
        return replace(
            self,
            described=f"{n_prompts} of {n_all}, evenly spread: {self.described}",
            prompts=[self.prompts[number] for number in kept],
            lengths=[self.lengths[number] for number in kept],
        )


def reference_night() -> Workload:
    """The built-in suite on the embedded model, rendered once, with random readers: only time is measured."""
    from traitscope.run.prepare import prepare
    from traitscope.suite.file import load_suite

    prepared = prepare(load_suite(SUITE), device="cpu", dtype="float32")
    generations = prepared.plan.runnable
    length = max(generation.key.max_new_tokens for generation in generations)
    return Workload(
        name="reference",
        described=f"the reference night, the suite `{SUITE}` with its chat template, {length} new tokens each",
        prompts=[list(generation.prompt.token_ids) for generation in generations],
        lengths=[length] * len(generations),
        **_embedded_model(prepared.config),
    )


def ragged() -> Workload:
    """Prompts and responses of very different lengths, both drawn evenly.

    Prompts are pieces of the built-in scenario texts without a chat template, whose own tokens would be more than the
    shortest prompt; so they also share no beginning that could be read once.
    """
    from transformers import AutoConfig

    from traitscope.model.embedded import embedded_directory

    random = np.random.default_rng(_SEED)
    shortest, longest = PROMPT_TOKENS
    prompt_lengths = random.integers(shortest, longest, N_RAGGED, endpoint=True).tolist()
    pieces = _pieces(prompt_lengths)
    least, most = RESPONSE_TOKENS
    return Workload(
        name="ragged",
        described=(
            f"pieces of the built-in scenario texts of {shortest} to {longest} tokens, no chat template, responses cut "
            f"at {least} to {most} tokens, both lengths drawn evenly"
        ),
        prompts=pieces,
        lengths=random.integers(least, most, N_RAGGED, endpoint=True).tolist(),
        **_embedded_model(AutoConfig.from_pretrained(embedded_directory())),
    )


WORKLOADS = {"reference": reference_night, "ragged": ragged}


def write_workload(workload: Workload, folder: Path) -> None:
    described = asdict(workload)
    np.savez(folder / _READERS, readers=described.pop("readers"))
    (folder / _DESCRIPTION).write_text(json.dumps(described))


def read_workload(folder: Path) -> Workload:
    with np.load(folder / _READERS) as arrays:
        return Workload(readers=arrays["readers"], **json.loads((folder / _DESCRIPTION).read_text()))


def _embedded_model(config: Any) -> dict[str, Any]:
    from traitscope.model.embedded import embedded_directory, embedded_weights_directory

    checkpoints = _serial_checkpoints(config.num_hidden_layers)
    return {
        "model": str(embedded_weights_directory()),
        "tokenizer": str(embedded_directory()),
        "checkpoints": checkpoints,
        "readers": _unit_vectors(_N_TRAITS, len(checkpoints), config.hidden_size),
    }


def _pieces(lengths: list[int]) -> list[list[int]]:
    """Token ids: each piece begins with a text of its own and runs on into the next ones until it is long enough."""
    from transformers import AutoTokenizer

    from traitscope.model.embedded import embedded_directory

    tokenizer = AutoTokenizer.from_pretrained(embedded_directory())
    texts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in _scenario_texts()]
    pieces = []
    for number, length in enumerate(lengths):
        first = number * len(texts) // len(lengths)
        following = islice(cycle(texts), first, None)
        pieces.append(list(islice((token for text in following for token in text), length)))
    return pieces


def _scenario_texts() -> Iterator[str]:
    from traitscope.traits.scenarios import library_names, library_scenarios

    for trait in library_names():
        for pair in library_scenarios(trait).splits.train:
            yield f"{pair.prompt}\n{pair.positive}\n\n"


def _serial_checkpoints(n_layers: int) -> list[str]:
    return ["resid_pre.0", *(f"{site}.{layer}" for layer in range(n_layers) for site in ("resid_mid", "resid_post"))]


def _unit_vectors(n_traits: int, n_checkpoints: int, d_model: int) -> np.ndarray:
    vectors = np.random.default_rng(_SEED).standard_normal((n_traits, n_checkpoints, d_model))
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)
