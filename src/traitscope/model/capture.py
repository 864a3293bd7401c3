"""Projecting the residual stream onto all traits while the model runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from traitscope.model.anatomy import Anatomy
from traitscope.model.watch import watch

_GATHERING_DEVICES = ("cuda",)
_MOST_GATHERED_BYTES = 256_000_000
"""Longer passes keep a GPU busy by themselves, and their states would take memory that rows could have."""


@dataclass(frozen=True)
class ReaderBank:
    """The readers of several traits, as the forward pass needs them.

    ``readers`` is ``[n_traits, n_checkpoints, d_model]`` float32; ``readouts`` holds the index of each trait's
    readout checkpoint R. A reader that is NaN is none: its column of a product is NaN, and no other one.
    """

    traits: tuple[str, ...]
    readers: torch.Tensor
    readouts: tuple[int, ...]

    def __post_init__(self) -> None:
        sizes = {len(self.traits), len(self.readouts), self.readers.shape[0]}
        if self.readers.dim() != 3 or len(sizes) != 1:
            raise ValueError("readers must be [n_traits, n_checkpoints, d_model], one readout a trait")

    def matrix(self) -> torch.Tensor:
        """``[n_checkpoints, d_model, 2 * n_traits]``: each checkpoint's own readers, then those of R."""
        at_readout = torch.stack([self.readers[i, r] for i, r in enumerate(self.readouts)])
        own = self.readers.permute(1, 2, 0)
        return torch.cat([own, at_readout.T.expand(own.shape[0], -1, -1)], dim=-1).contiguous()


@dataclass(frozen=True)
class Trace:
    """What a capture keeps of one generation, float32.

    Attributes:
        scores: ``[n_checkpoints, positions, n_traits]``, state · that checkpoint's reader; NaN where there is none.
        at_readout: ``[n_checkpoints, positions, n_traits]``, state · reader of the trait's R.
        norms: ``[n_checkpoints, positions]``, Euclidean norm of the state.
    """

    scores: np.ndarray
    at_readout: np.ndarray
    norms: np.ndarray

    @property
    def n_positions(self) -> int:
        return self.norms.shape[1]

    def writes(self) -> np.ndarray:
        """``[n_checkpoints, positions, n_traits]``: row 0 is ``resid_pre.0 · reader_R``, the others the change
        since the checkpoint before. Rows up to a trait's R sum to its score at R."""
        return np.diff(self.at_readout, axis=0, prepend=np.float32(0.0))

    @classmethod
    def from_columns(cls, columns: np.ndarray) -> Trace:
        """Split ``[n_checkpoints, positions, 2 * n_traits + 1]``, norms last, as ``ScoreCapture`` fills it."""
        n_traits = (columns.shape[-1] - 1) // 2
        return cls(columns[..., :n_traits], columns[..., n_traits:-1], columns[..., -1])


def captured_bytes_per_position(n_checkpoints: int, n_traits: int) -> int:
    """What a trace holds for one position: own scores, scores at R and the norm, float32, at each checkpoint."""
    return n_checkpoints * (2 * n_traits + 1) * 4


class ScoreCapture:
    """Projections of the forward pass that runs inside ``capturing``; no state of the stream outlives its pass."""

    def __init__(self, bank: ReaderBank, device: torch.device) -> None:
        # Readers as rows in memory: a product with few columns is faster that way.
        self._readers = bank.matrix().to(device).transpose(1, 2).contiguous()
        self._matrices = [readers.T for readers in self._readers]
        self._pass: _ProjectedPass | _GatheredPass | None = None

    def observe(self, checkpoint: int, state: torch.Tensor) -> None:
        """Project one checkpoint's ``[tokens, d_model]``; products accumulate in float32."""
        if self._pass is None:
            self._pass = self._new_pass(state)
        self._pass.put(checkpoint, state)

    def take(self) -> torch.Tensor:
        """``[n_checkpoints, tokens, 2 * n_traits + 1]`` of the last forward pass, on the first one's device.

        Raises:
            RuntimeError: a checkpoint was not reached since the last call.
        """
        taken, self._pass = self._pass, None
        missing = set(range(len(self._matrices))) - (taken.reached if taken is not None else set())
        if missing or taken is None:
            raise RuntimeError(f"the forward pass did not reach checkpoints {sorted(missing)}")
        return taken.columns()

    def _new_pass(self, state: torch.Tensor) -> _ProjectedPass | _GatheredPass:
        gathered_bytes = len(self._matrices) * state.numel() * 4
        if state.device.type in _GATHERING_DEVICES and gathered_bytes <= _MOST_GATHERED_BYTES:
            return _GatheredPass(self._readers, state)
        return _ProjectedPass(self._matrices, state)


class _ProjectedPass:
    """One forward pass, each checkpoint projected when it is reached: two operations each, and no copy."""

    def __init__(self, matrices: list[torch.Tensor], state: torch.Tensor) -> None:
        n_checkpoints, n_readers = len(matrices), matrices[0].shape[1]
        self.reached: set[int] = set()
        self._matrices = matrices
        self._all_products = torch.empty(n_checkpoints, state.shape[0], n_readers, device=state.device)
        self._all_norms = torch.empty(n_checkpoints, state.shape[0], device=state.device)
        self._products, self._norms = self._all_products.unbind(), self._all_norms.unbind()

    def put(self, checkpoint: int, state: torch.Tensor) -> None:
        self.reached.add(checkpoint)
        state, matrix = state.float(), self._matrices[checkpoint]
        if matrix.device != state.device:
            self._matrices[checkpoint] = matrix = matrix.to(state.device)
        products, norms = self._products[checkpoint], self._norms[checkpoint]
        if state.device == norms.device:
            torch.mm(state, matrix, out=products)
            torch.linalg.vector_norm(state, dim=-1, out=norms)
        else:
            products.copy_(state @ matrix)
            norms.copy_(torch.linalg.vector_norm(state, dim=-1))

    def columns(self) -> torch.Tensor:
        return torch.cat([self._all_products, self._all_norms.unsqueeze(-1)], dim=-1)


class _GatheredPass:
    """One forward pass whose states are copied and projected all at once when it is over.

    On a GPU a pass over few tokens takes as long as the host needs to start its kernels: this is one a checkpoint.
    """

    def __init__(self, readers: torch.Tensor, state: torch.Tensor) -> None:
        self.reached: set[int] = set()
        self._readers = readers
        self._all_states = state.new_empty(len(readers), *state.shape)
        self._states = self._all_states.unbind()

    def put(self, checkpoint: int, state: torch.Tensor) -> None:
        self.reached.add(checkpoint)
        self._states[checkpoint].copy_(state)

    def columns(self) -> torch.Tensor:
        states = self._all_states.float()
        products = states @ self._readers.to(states.device).transpose(1, 2)
        return torch.cat([products, torch.linalg.vector_norm(states, dim=-1, keepdim=True)], dim=-1)


@contextmanager
def capturing(
    module: torch.nn.Module, anatomy: Anatomy, bank: ReaderBank, device: torch.device
) -> Iterator[ScoreCapture]:
    """Capture scores, writes and norms of every forward pass inside the block."""
    capture = ScoreCapture(bank, device)
    with watch(module, anatomy, capture.observe):
        yield capture
