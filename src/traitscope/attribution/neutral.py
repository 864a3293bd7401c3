"""What heads and neurons do when nothing is the matter: their means over the model's own neutral replies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from traitscope.atomic import write_atomically
from traitscope.attribution.terms import BlockKind, NeutralBlock, NeutralMeans, activations_of, array
from traitscope.cache import cache_directory
from traitscope.model.blocks import Block
from traitscope.model.internals import LayerInternals, open_layers
from traitscope.model.loading import LanguageModel
from traitscope.model.pullback import n_experts_of
from traitscope.suite.file import BASE_TEMPLATE
from traitscope.suite.rendering import PromptStyle
from traitscope.traits.calibration import NEUTRAL_TOKENS, neutral_replies
from traitscope.traits.scenarios import NeutralPrompts, load_neutral

_REVISION = 1


def neutral_means(
    model: LanguageModel,
    *,
    base_template: str = BASE_TEMPLATE,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> NeutralMeans:
    """The neutral means of every block of ``model``, from the cache or measured now.

    Args:
        base_template: how a model without chat template is prompted.
        on_progress: told how many replies were opened, and of how many.
    """
    neutral = load_neutral()
    path = _cache_path(model, neutral, base_template)
    if path.is_file():
        return _read(path)
    means = _measured(model, neutral, base_template, on_progress)
    with suppress(OSError):  # a cache that cannot be written only costs time
        _write(means, path)
    return means


@dataclass
class _Sums:
    n_tokens: int = 0
    sums: dict[tuple[int, BlockKind, str], np.ndarray] = field(default_factory=dict)

    def add(self, layer: int, kind: BlockKind, what: str, values: np.ndarray) -> None:
        """Add values ``[n, ...]`` over the tokens."""
        key = (layer, kind, what)
        self.sums[key] = self.sums.get(key, 0.0) + values.sum(axis=0, dtype=np.float64)

    def mean(self, layer: int, kind: BlockKind, what: str) -> np.ndarray:
        found = self.sums.get((layer, kind, what))
        return np.zeros(0, np.float32) if found is None else (found / self.n_tokens).astype(np.float32)


def _measured(
    model: LanguageModel, neutral: NeutralPrompts, base_template: str, on_progress: Callable[[int, int], None]
) -> NeutralMeans:
    style = PromptStyle(system=None, template={}, base_template=base_template)
    replies = neutral_replies(model, neutral, style)
    wanted = {layer: _wanted(model, layer) for layer in range(model.n_layers)}
    sums = _Sums()
    for done, reply in enumerate(replies, start=1):
        content = reply.content.tolist()
        sums.n_tokens += len(content)
        open_layers(
            model,
            reply.tokens.token_id,
            wanted,
            lambda internals, content=content: _add_layer(model, internals, content, sums),  # type: ignore[misc]
        )
        on_progress(done, len(replies))
    return {
        (layer, kind): NeutralBlock(*(sums.mean(layer, kind, what) for what in ("added", "inputs", "bias")))
        for layer, kind in {(layer, kind) for layer, kind, _ in sums.sums}
    }


def _wanted(model: LanguageModel, layer: int) -> set[str]:
    found = model.blocks[layer]
    names = set()
    for block, added, inputs in ((found.attention, "attn_out", "head_out"), (found.mlp, "mlp_out", "neurons")):
        if block is not None:
            names |= {added} if block.problem else {added, inputs}
    return names


def _add_layer(model: LanguageModel, internals: LayerInternals, content: list[int], sums: _Sums) -> None:
    found, layer = model.blocks[internals.layer], internals.layer
    if found.attention is not None:
        sums.add(layer, "attention", "added", array(internals.attn_out)[content])
        if internals.head_out is not None:
            scale = array(internals.attn_scale)[content, None]
            heads = array(internals.head_out)[:, content].transpose(1, 0, 2).reshape(len(content), -1)
            sums.add(layer, "attention", "inputs", heads * scale)
            sums.add(layer, "attention", "bias", scale)
    if found.mlp is not None:
        sums.add(layer, "mlp", "added", array(internals.mlp_out)[content])
        if internals.neurons is not None:
            _add_neurons(model, found.mlp, internals, content, sums)


def _add_neurons(
    model: LanguageModel, block: Block, internals: LayerInternals, content: list[int], sums: _Sums
) -> None:
    scale = array(internals.mlp_scale)[content, None]
    activations, expert_weights = activations_of(internals, content, n_experts_of(model, block))
    sums.add(internals.layer, "mlp", "inputs", activations * scale)
    sums.add(internals.layer, "mlp", "bias", scale if expert_weights is None else expert_weights * scale)


def _cache_path(model: LanguageModel, neutral: NeutralPrompts, base_template: str) -> Path:
    described = [model.fingerprint.short, neutral.digest(), NEUTRAL_TOKENS, str(model.dtype), base_template, _REVISION]
    key = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]
    return cache_directory() / "neutral" / f"{key}.safetensors"


def _write(means: NeutralMeans, path: Path) -> None:
    from safetensors.numpy import save

    tensors = {
        f"{layer}/{kind}/{what}": np.ascontiguousarray(getattr(block, what))
        for (layer, kind), block in means.items()
        for what in ("added", "inputs", "bias")
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    content = save(tensors)
    write_atomically(path, lambda file: file.write(content))


def _read(path: Path) -> NeutralMeans:
    from safetensors.numpy import load_file

    tensors = load_file(path)
    means: NeutralMeans = {}
    for name in tensors:
        layer, kind, _ = name.split("/")
        block = NeutralBlock(*(tensors[f"{layer}/{kind}/{what}"] for what in ("added", "inputs", "bias")))
        means[int(layer), "attention" if kind == "attention" else "mlp"] = block
    return means
