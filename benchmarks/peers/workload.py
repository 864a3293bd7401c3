"""The work that every contender does: prompts as token ids, readers, and where the model is."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

SUITE = "overnight"
_DESCRIPTION = "workload.json"
_READERS = "readers.npz"


@dataclass(frozen=True)
class Workload:
    """Attributes:
    model: directory with configuration and float32 safetensors.
    tokenizer: directory with its tokenizer.
    checkpoints: names, in the order in which the model reaches them.
    prompts: token ids of each prompt, chat template included.
    max_new_tokens: length of every response; no token ends one earlier.
    readers: ``[n_traits, n_checkpoints, d_model]`` float32, unit vectors.
    """

    model: str
    tokenizer: str
    checkpoints: list[str]
    prompts: list[list[int]]
    max_new_tokens: int
    readers: np.ndarray

    @property
    def n_response_tokens(self) -> int:
        return len(self.prompts) * self.max_new_tokens


def reference_night() -> Workload:
    """The built-in suite on the embedded model, rendered once, with random readers: only time is measured."""
    from traitscope.model.embedded import embedded_directory, embedded_weights_directory
    from traitscope.run.prepare import prepare
    from traitscope.suite.file import load_suite

    prepared = prepare(load_suite(SUITE), device="cpu", dtype="float32")
    generations = prepared.plan.runnable
    checkpoints = _serial_checkpoints(prepared.config.num_hidden_layers)
    return Workload(
        model=str(embedded_weights_directory()),
        tokenizer=str(embedded_directory()),
        checkpoints=checkpoints,
        prompts=[list(generation.prompt.token_ids) for generation in generations],
        max_new_tokens=max(generation.key.max_new_tokens for generation in generations),
        readers=_unit_vectors(len(prepared.plan.traits), len(checkpoints), prepared.config.hidden_size),
    )


def write_workload(workload: Workload, folder: Path) -> None:
    described = asdict(workload)
    np.savez(folder / _READERS, readers=described.pop("readers"))
    (folder / _DESCRIPTION).write_text(json.dumps(described))


def read_workload(folder: Path) -> Workload:
    with np.load(folder / _READERS) as arrays:
        return Workload(readers=arrays["readers"], **json.loads((folder / _DESCRIPTION).read_text()))


def _serial_checkpoints(n_layers: int) -> list[str]:
    return ["resid_pre.0", *(f"{site}.{layer}" for layer in range(n_layers) for site in ("resid_mid", "resid_post"))]


def _unit_vectors(n_traits: int, n_checkpoints: int, d_model: int) -> np.ndarray:
    vectors = np.random.default_rng(0).standard_normal((n_traits, n_checkpoints, d_model))
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)
