"""What heads, source tokens and neurons add to a direction: the exact terms of a block's write.

The residual stream is a sum, and what a block adds to it is linear in what its heads read and in its neurons, once
attention weights and the scale of a norm behind the block are taken as they were (Elhage et al. 2021, *A Mathematical
Framework for Transformer Circuits*). All sums are in float64.
"""

from __future__ import annotations

import numpy as np


def head_writes(pattern: np.ndarray, values: np.ndarray, weights: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """What each head adds for each token that it reads: ``[n_directions, heads, n, seq]``.

    Args:
        pattern: ``[heads, n, seq]``, attention weights.
        values: ``[kv_heads, seq, d_head]``.
        weights: ``[n_directions, heads * d_head]``, directions pulled back through the output projection.
        scale: ``[n]``, of what the projection returns.
    """
    towards = values_towards(values, weights, len(pattern))
    return pattern.astype(np.float64) * towards[:, :, None, :] * scale.astype(np.float64)[:, None]


def values_towards(values: np.ndarray, weights: np.ndarray, n_heads: int) -> np.ndarray:
    """What a head adds when it attends to one token alone, before its scale: ``[n_directions, heads, seq]``.

    ``values`` and ``weights`` as for ``head_writes``.
    """
    each = np.repeat(values.astype(np.float64), n_heads // values.shape[0], axis=0)
    per_head = weights.astype(np.float64).reshape(len(weights), n_heads, -1)
    return np.einsum("hsd,khd->khs", each, per_head, optimize=True)


def largest_last(sizes: np.ndarray, most: int) -> np.ndarray:
    """Indices of the ``most`` largest along the last axis, largest first: ``[..., min(most, n)]``."""
    most = min(most, sizes.shape[-1])
    chosen = np.argpartition(-sizes, most - 1, axis=-1)[..., :most]
    order = np.argsort(-np.take_along_axis(sizes, chosen, axis=-1), axis=-1)
    return np.take_along_axis(chosen, order, axis=-1)


def neuron_writes(neurons: np.ndarray, weights: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """What each neuron adds: ``[n_directions, n, n_neurons]``.

    Args:
        neurons: ``[n, n_neurons]``, activations.
        weights: ``[n_directions, n_neurons]``, directions pulled back through the down projection.
        scale: ``[n]``, of what the projection returns.
    """
    scaled = neurons.astype(np.float64) * scale.astype(np.float64)[:, None]
    return weights.astype(np.float64)[:, None, :] * scaled


def spread_over_experts(
    neurons: np.ndarray, chosen: np.ndarray, router: np.ndarray, n_experts: int
) -> tuple[np.ndarray, np.ndarray]:
    """The chosen experts' neurons, weighted by the router, among those of all experts.

    Args:
        neurons: ``[n, top_k, d_expert]``.
        chosen: ``[n, top_k]``, numbers of experts; one that is ``n_experts`` or more stands for none.
        router: ``[n, top_k]``, weights.

    Returns:
        Activations ``[n, n_experts * d_expert]``, and the weight of each expert ``[n, n_experts]``.
    """
    n_positions, _, d_expert = neurons.shape
    activations = np.zeros((n_positions, n_experts + 1, d_expert))
    weights = np.zeros((n_positions, n_experts + 1))
    rows = np.arange(n_positions)[:, None]
    where = np.minimum(chosen, n_experts)
    np.add.at(activations, (rows, where), neurons * router[..., None])
    np.add.at(weights, (rows, where), router)
    return activations[:, :n_experts].reshape(n_positions, -1), weights[:, :n_experts]


def closing_gap(parts: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """How far parts ``[..., n_parts]`` miss their ``whole`` ``[...]``, in shares of the parts' summed sizes."""
    sizes = np.abs(parts).sum(axis=-1)
    return np.abs(parts.sum(axis=-1) - whole) / np.maximum(sizes, 1e-30)
