"""Open layers on the page: attention patterns, what heads read, the neurons that wrote most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from traitscope.captures.opened_writes import OpenedWrites
from traitscope.captures.reading import Run
from traitscope.errors import InputError
from traitscope.report.page.packing import WEIGHT_STEP, WRITE_STEP, Blobs, in_steps


def opened_layers(captures: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """The open layers of each captured generation."""
    found: dict[str, set[int]] = {}
    for capture in captures:
        if capture["kind"] == "internals" and capture["status"] == "ok":
            found.setdefault(capture["generation"], set()).update(capture["layers"])
    return {generation: sorted(layers) for generation, layers in found.items()}


def described_layers(
    run: Run,
    generation: str,
    layers: Sequence[int],
    writes: Mapping[tuple[str, int], OpenedWrites],
    spread: np.ndarray,
    blobs: Blobs,
) -> dict[str, Any]:
    """What the page holds of a generation's open layers, by layer; those that the blobs' budget has no room for are
    left out.

    Args:
        spread: ``[n_traits]``, neutral deviation at each trait's readout: writes are shown in its units.
    """
    found = {}
    for layer in layers:
        described, arrays = _described(run, generation, layer, writes.get((generation, layer), OpenedWrites()), spread)
        names = {what: f"{generation}-{layer}-{what}" for what in arrays}
        if blobs.add_if_room("open layers", {names[what]: array for what, array in arrays.items()}):
            found[str(layer)] = described | names
    return found


def _described(
    run: Run, generation: str, layer: int, writes: OpenedWrites, spread: np.ndarray
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    described: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    pattern = _pattern(run, generation, layer)
    if pattern is not None:
        described["heads"] = len(pattern)
        arrays["pattern"] = in_steps(pattern, WEIGHT_STEP)
    if pattern is not None and writes.towards is not None and writes.attn_scale is not None:
        arrays["towards"] = in_steps(writes.towards / spread[:, None, None], WRITE_STEP)
        arrays["scale"] = writes.attn_scale
    if writes.neuron is not None and writes.neuron_write is not None and writes.neuron_activation is not None:
        described["neurons"] = writes.neuron.shape[-1]
        arrays["neuron"] = writes.neuron
        arrays["neuron_write"] = in_steps(writes.neuron_write / spread[:, None, None], WRITE_STEP)
        arrays["neuron_activation"] = writes.neuron_activation
    return described, arrays


def _pattern(run: Run, generation: str, layer: int) -> np.ndarray | None:
    """``[heads, seq, seq]``, or None where the suite did not keep it."""
    try:
        opened = run.internals(generation, layer)
    except InputError:
        return None
    return opened.pattern if "pattern" in opened.names else None
