"""Who wrote a run's traits in its open layers: kept by the run, read by its report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from traitscope.errors import RunError


@dataclass(frozen=True)
class OpenedWrites:
    """One open layer of one generation; ``n_traits`` as the run's plan lists them. None where a block cannot be split.

    Attributes:
        towards: ``[n_traits, heads, seq]`` float32, what a head adds to the score at R if it attends to one token
            alone. A head's write at position t is ``attn_scale[t] · Σ_s pattern[head, t, s] · towards[…, head, s]``.
        attn_scale: ``[seq]`` float32.
        neuron: ``[n_traits, seq, most]`` int32, the neurons that wrote most at each token; with experts as in
            ``attribution.terms.NeuronTerms``.
        neuron_write, neuron_activation: ``[n_traits, seq, most]`` float32.
    """

    towards: np.ndarray | None = None
    attn_scale: np.ndarray | None = None
    neuron: np.ndarray | None = None
    neuron_write: np.ndarray | None = None
    neuron_activation: np.ndarray | None = None


MOST_GENERATIONS = 48
"""Whose open layers a run splits: what a report shows. Each costs one replay up to its last open layer."""


def opened_writes_file(run_dir: Path) -> Path:
    return run_dir / "opened-writes.safetensors"


def read_opened_writes(run_dir: Path) -> dict[tuple[str, int], OpenedWrites]:
    """By generation and layer; nothing where the run kept none.

    Raises:
        RunError: the file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = opened_writes_file(run_dir)
    if not path.is_file():
        return {}
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise RunError(f"{path} is damaged: {error}; delete it: the report does without") from None
    return _by_layer(tensors)


def _by_layer(tensors: Mapping[str, np.ndarray]) -> dict[tuple[str, int], OpenedWrites]:
    layers: dict[tuple[str, int], dict[str, np.ndarray]] = {}
    for name, values in tensors.items():
        generation, layer, what = name.split("/")
        layers.setdefault((generation, int(layer)), {})[what] = values
    return {place: OpenedWrites(**found) for place, found in layers.items()}
