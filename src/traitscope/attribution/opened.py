"""What heads and neurons of a run's open layers wrote towards its traits, kept beside the run for its report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch

from traitscope.analysis.attribution import largest_last, neuron_writes, values_towards
from traitscope.atomic import write_atomically
from traitscope.attribution.terms import activations_of, array
from traitscope.captures.opened_writes import opened_writes_file
from traitscope.captures.reading import open_run
from traitscope.model.blocks import Block
from traitscope.model.internals import LayerInternals, open_layers
from traitscope.model.loading import LanguageModel
from traitscope.model.pullback import pull_back
from traitscope.model.replay import steered
from traitscope.run.frozen import FrozenRun
from traitscope.run.steering import steering_of

MOST_GENERATIONS = 48
"""What a report shows; each costs one replay up to its last open layer."""
NEURONS_PER_TOKEN = 6


def write_opened_writes(frozen: FrozenRun, model: LanguageModel) -> None:
    """Replay the captured generations that have open layers, the first ones of many, and keep who wrote.

    Raises:
        OSError: the file cannot be written.
    """
    asked = [task for task in frozen.tasks.values() if task.opened is not None]
    if not asked or not frozen.vectors:
        return
    captured = _captured_ids(frozen.run_dir, [task.id for task in asked])
    splitter = _LayerSplitter(model, torch.stack([v.reader[v.readout] for v in frozen.vectors]))
    found: dict[str, np.ndarray] = {}
    for task in [task for task in asked if task.id in captured][:MOST_GENERATIONS]:
        assert task.opened is not None
        ids = captured[task.id]

        def keep(opened: LayerInternals, generation: str = task.id) -> None:
            tensors = splitter.split(opened)
            found.update({f"{generation}/{opened.layer}/{name}": values for name, values in tensors.items()})

        if wanted := splitter.needed(task.opened.tensors):
            with steered(model, steering_of(task.dose, frozen.vectors), task.n_prompt, len(ids)):
                open_layers(model, ids, wanted, keep)
    if found:
        _write(found, opened_writes_file(frozen.run_dir))


def _captured_ids(run_dir: Path, generations: Sequence[str]) -> dict[str, list[int]]:
    """Token ids of those of ``generations`` that were captured."""
    if not generations:
        return {}
    tokens = open_run(run_dir).tokens.filter(pl.col("generation").is_in(list(generations)))
    grouped = tokens.sort("position").group_by("generation", maintain_order=True).agg("token_id").collect()
    return dict(zip(grouped["generation"].to_list(), grouped["token_id"].to_list(), strict=True))


class _LayerSplitter:
    """Splits what one model's opened layers wrote towards ``directions`` ``[n_traits, d_model]``."""

    def __init__(self, model: LanguageModel, directions: torch.Tensor) -> None:
        self._model, self._directions = model, directions

    def needed(self, layers: Iterable[int]) -> dict[int, set[str]]:
        """What has to be opened of each layer that can be split."""
        found = {}
        for layer in layers:
            blocks = self._model.blocks[layer]
            names = {"attn_out", "pattern", "v"} if _splits(blocks.attention) else set()
            names |= {"mlp_out", "neurons"} if _splits(blocks.mlp) else set()
            if names:
                found[layer] = names
        return found

    def split(self, internals: LayerInternals) -> dict[str, np.ndarray]:
        """The tensors of ``captures.opened_writes.OpenedWrites`` by name, as far as the blocks can be split."""
        blocks = self._model.blocks[internals.layer]
        of_heads = self._of_heads(internals, blocks.attention) if _splits(blocks.attention) else {}
        of_neurons = self._of_neurons(internals, blocks.mlp) if _splits(blocks.mlp) else {}
        return {name: np.ascontiguousarray(values) for name, values in {**of_heads, **of_neurons}.items()}

    def _of_heads(self, internals: LayerInternals, block: Block | None) -> dict[str, np.ndarray]:
        assert block is not None
        assert internals.pattern is not None
        pulled = pull_back(self._model, block, self._directions)
        towards = values_towards(array(internals.v), pulled.weights, len(internals.pattern))
        return {"towards": towards.astype(np.float32), "attn_scale": array(internals.attn_scale)}

    def _of_neurons(self, internals: LayerInternals, block: Block | None) -> dict[str, np.ndarray]:
        assert block is not None
        pulled = pull_back(self._model, block, self._directions)
        scale = array(internals.mlp_scale)
        activations, _ = activations_of(internals, range(len(scale)), pulled.n_experts)
        writes = neuron_writes(activations, pulled.weights, scale)
        chosen = largest_last(np.abs(writes), NEURONS_PER_TOKEN)
        active = np.take_along_axis(np.broadcast_to(activations, writes.shape), chosen, axis=-1)
        return {
            "neuron": chosen.astype(np.int32),
            "neuron_write": np.take_along_axis(writes, chosen, axis=-1).astype(np.float32),
            "neuron_activation": active.astype(np.float32),
        }


def _splits(block: Block | None) -> bool:
    return block is not None and block.problem is None


def _write(tensors: dict[str, np.ndarray], path: Path) -> None:
    from safetensors.numpy import save

    content = save(tensors)
    write_atomically(path, lambda file: file.write(content))
