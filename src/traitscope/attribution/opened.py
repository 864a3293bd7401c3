"""What heads and neurons of a run's open layers wrote towards its traits, kept beside the run for its report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch

from traitscope.analysis.attribution import largest_last, neuron_writes, values_towards
from traitscope.atomic import write_atomically
from traitscope.attribution.terms import activations_of, array
from traitscope.captures.opened_writes import MOST_GENERATIONS, opened_writes_file
from traitscope.captures.reading import open_run
from traitscope.model.blocks import Block
from traitscope.model.internals import LayerInternals, open_layers
from traitscope.model.loading import LanguageModel
from traitscope.model.pullback import PulledBack, pull_back
from traitscope.model.replay import steered
from traitscope.run.engine import GenerationTask
from traitscope.run.frozen import FrozenRun
from traitscope.run.steering import steering_of

NEURONS_PER_TOKEN = 6
_BLOCK_BYTES = 64_000_000
"""Held at once while neurons are compared."""
_FLOAT64 = 8
_ANY_POSITION = (0,)
"""Patterns are opened to count the heads alone: the report has those that were captured."""


def open_layers_to_split(frozen: FrozenRun) -> bool:
    """Whether a run has open layers, whoever wrote in them is not kept yet, and there are traits to ask about."""
    return bool(_asked(frozen) and frozen.vectors) and not opened_writes_file(frozen.run_dir).is_file()


def write_opened_writes(
    frozen: FrozenRun,
    model: LanguageModel,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> None:
    """Replay the captured generations that have open layers, the first ones of many, and keep who wrote.

    The file is written when all are split; it is there, and empty, where nothing could be.

    Args:
        on_progress: told how many generations are split, 0 at first, and of how many.

    Raises:
        OSError: the file cannot be written.
    """
    asked = _asked(frozen)
    if not asked or not frozen.vectors:
        return
    captured = _captured_ids(frozen.run_dir, [task.id for task in asked])
    chosen = [task for task in asked if task.id in captured][:MOST_GENERATIONS]
    splitter = _LayerSplitter(model, torch.stack([v.reader[v.readout] for v in frozen.vectors]))
    found: dict[str, np.ndarray] = {}
    on_progress(0, len(chosen))
    for done, task in enumerate(chosen, start=1):
        assert task.opened is not None
        ids = captured[task.id]

        def keep(opened: LayerInternals, generation: str = task.id) -> None:
            tensors = splitter.split(opened)
            found.update({f"{generation}/{opened.layer}/{name}": values for name, values in tensors.items()})

        if wanted := splitter.needed(task.opened.tensors):
            with steered(model, steering_of(task.dose, frozen.vectors), task.n_prompt, len(ids)):
                open_layers(model, ids, wanted, keep, positions=_ANY_POSITION)
        on_progress(done, len(chosen))
    _write(found, opened_writes_file(frozen.run_dir))


def _asked(frozen: FrozenRun) -> list[GenerationTask]:
    return [task for task in frozen.tasks.values() if task.opened is not None]


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
        blocks = [
            _strongest_neurons(internals, positions, pulled)
            for positions in _token_blocks(len(array(internals.mlp_scale)), *pulled.weights.shape)
        ]
        return {name: np.concatenate([block[name] for block in blocks], axis=1) for name in blocks[0]}


def _token_blocks(n_tokens: int, n_directions: int, n_neurons: int) -> Iterator[range]:
    """Positions whose neurons' writes are held at once; one token's are, however many there are."""
    # Float64 or int64 each: writes, their sizes, negated, and their order; activations, spread, joined and scaled.
    per_token = _FLOAT64 * n_neurons * (4 * n_directions + 3)
    step = max(1, _BLOCK_BYTES // per_token)
    for first in range(0, n_tokens, step):
        yield range(first, min(first + step, n_tokens))


def _strongest_neurons(internals: LayerInternals, positions: range, pulled: PulledBack) -> dict[str, np.ndarray]:
    activations, _ = activations_of(internals, positions, pulled.n_experts)
    writes = neuron_writes(activations, pulled.weights, array(internals.mlp_scale)[positions.start : positions.stop])
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
