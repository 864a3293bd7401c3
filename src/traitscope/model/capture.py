"""Projecting the residual stream onto all traits while the model runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from traitscope.model.anatomy import Anatomy
from traitscope.model.watch import watch


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
    """Projections of the forward pass that runs inside ``capturing``; no state of the stream is kept."""

    def __init__(self, bank: ReaderBank, device: torch.device) -> None:
        # Readers as rows in memory: a product with few columns is faster that way.
        self.bank = bank
        self._matrices = [matrix.T for matrix in bank.matrix().to(device).transpose(1, 2).contiguous()]
        self._device = device
        self._room: PassRoom | None = None
        self._gathered: GatheredStates | None = None
        self._reached: set[int] = set()

    def room(self, n_tokens: int) -> PassRoom:
        """Room for a pass over ``n_tokens``, to be given to ``into`` as often as wanted."""
        return PassRoom(len(self._matrices), n_tokens, self._matrices[0].shape[1], self._device)

    def into(self, room: PassRoom) -> None:
        """The next pass is written there, over what it holds; without this, into room of its own."""
        self._room = room

    def gathered(self, n_tokens: int, d_model: int, dtype: torch.dtype) -> GatheredStates:
        """Room for the states of a pass over ``n_tokens``, and the readers that they are projected on."""
        return GatheredStates(self.bank.matrix().to(self._device), n_tokens, d_model, dtype)

    @contextmanager
    def gathering(self, states: GatheredStates) -> Iterator[None]:
        """Passes inside the block leave their states there and are not projected."""
        self._gathered = states
        try:
            yield
        finally:
            self._gathered = None

    def observe(self, checkpoint: int, state: torch.Tensor) -> None:
        """Project one checkpoint's ``[tokens, d_model]``; products accumulate in float32."""
        if self._gathered is not None:
            self._gathered.put(checkpoint, state)
            return
        state = state.float()
        matrix = self._matrices[checkpoint]
        if matrix.device != state.device:
            self._matrices[checkpoint] = matrix = matrix.to(state.device)
        if self._room is None:
            self._room = self.room(state.shape[0])
        self._reached.add(checkpoint)
        self._room.put(checkpoint, state, matrix)

    def take(self) -> torch.Tensor:
        """``[n_checkpoints, tokens, 2 * n_traits + 1]`` of the last forward pass, in the room that it was written into.

        Raises:
            RuntimeError: a checkpoint was not reached since the last call.
        """
        room, self._room = self._room, None
        missing, self._reached = set(range(len(self._matrices))) - self._reached, set()
        if missing or room is None:
            raise RuntimeError(f"the forward pass did not reach checkpoints {sorted(missing)}")
        return room.columns


class PassRoom:
    """Room for what one forward pass gives, so that each checkpoint costs two operations and no copy.

    ``columns`` is ``[n_checkpoints, tokens, 2 * n_traits + 1]`` float32, norms last.
    """

    def __init__(self, n_checkpoints: int, n_tokens: int, n_readers: int, device: torch.device) -> None:
        self.columns = torch.empty(n_checkpoints, n_tokens, n_readers + 1, device=device)
        self.n_tokens = n_tokens
        self._products, self._norms = self.columns[..., :-1].unbind(), self.columns[..., -1].unbind()

    def put(self, checkpoint: int, state: torch.Tensor, matrix: torch.Tensor) -> None:
        """Write ``state`` ``[tokens, d_model]`` times ``matrix`` ``[d_model, n_readers]`` and its norms."""
        products, norms = self._products[checkpoint], self._norms[checkpoint]
        if state.device == norms.device:
            torch.mm(state, matrix, out=products)
            torch.linalg.vector_norm(state, dim=-1, out=norms)
        else:
            products.copy_(state @ matrix)
            norms.copy_(torch.linalg.vector_norm(state, dim=-1))


class GatheredStates:
    """The states of all checkpoints, projected at once: nothing but operations on tensors, as a graph needs it.

    ``matrices`` is ``[n_checkpoints, d_model, 2 * n_traits]`` float32.
    """

    def __init__(self, matrices: torch.Tensor, n_tokens: int, d_model: int, dtype: torch.dtype) -> None:
        self._matrices = matrices
        self._states = torch.zeros(len(matrices), n_tokens, d_model, dtype=dtype, device=matrices.device)

    def put(self, checkpoint: int, state: torch.Tensor) -> None:
        """Keep one checkpoint's ``[tokens, d_model]``."""
        self._states[checkpoint].copy_(state)

    def columns(self) -> torch.Tensor:
        """``[n_checkpoints, tokens, 2 * n_traits + 1]`` float32, norms last."""
        states = self._states.float()
        norms = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
        return torch.cat([torch.bmm(states, self._matrices), norms], dim=-1)


@contextmanager
def capturing(
    module: torch.nn.Module, anatomy: Anatomy, bank: ReaderBank, device: torch.device
) -> Iterator[ScoreCapture]:
    """Capture scores, writes and norms of every forward pass inside the block."""
    capture = ScoreCapture(bank, device)
    with watch(module, anatomy, capture.observe):
        yield capture
