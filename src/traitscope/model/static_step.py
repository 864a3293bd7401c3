"""A decode step of fixed sizes as one compiled graph, the capture inside; on a CUDA device replayed without Python.

The graph reads and writes tensors that stay where they are: tokens, positions, mask, the cache, and room for the states
of all checkpoints, which are projected on all readers at once at its end. Where such a graph cannot be made, or gives
something else than the ordinary step, the ordinary step is used.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import DynamicCache

from traitscope.model.capture import ReaderBank, ScoreCapture
from traitscope.model.kv_cache import fixed_cache
from traitscope.model.tensors import SAME_WITHIN

if TYPE_CHECKING:
    from traitscope.model.loading import LanguageModel

log = logging.getLogger(__name__)

_CAPACITY_STEP = 128
_WARM_UPS = 3
_MOST_DIFFERENCE = 2.0  # times what two ways to one state may lie apart: logits are behind all layers


@dataclass(frozen=True)
class StaticSizes:
    """What a step is compiled for: one for a whole run, so that no number depends on the batches before it.

    ``tokens`` is the length of the longest row, response included.
    """

    width: int
    tokens: int

    @property
    def capacity(self) -> int:
        """Slots of the cache: with some to spare, so that it is seldom moved."""
        return (1 + self.tokens // _CAPACITY_STEP) * _CAPACITY_STEP


class StaticSteps:
    """The static steps of one model, one with each capture, kept from batch to batch, as compiling takes minutes.

    ``wanted`` may be set; what is computed differs in the last bits, so a run keeps to what it began with.
    """

    def __init__(self, *, wanted: bool, backend: str = "inductor") -> None:
        self.wanted = wanted
        self.backend = backend
        self.kept: list[StaticStep] = []

    def fitting(
        self, model: LanguageModel, like: DynamicCache, sizes: StaticSizes, capture: ScoreCapture | None
    ) -> StaticStep:
        """A step of these sizes for caches ``like`` this one, which has begun."""
        bank = None if capture is None else capture.bank
        for step in self.kept:
            if step.bank is bank and step.sizes == sizes:
                return step
        captures = bank is not None
        self.kept = [step for step in self.kept if (step.bank is not None) != captures and step.sizes == sizes]
        torch.compiler.reset()  # it refuses to compile one function for ever new sizes
        self.kept.append(StaticStep(model, like, sizes, capture, self.backend))
        return self.kept[-1]

    def drop(self) -> None:
        """Give back the memory of all steps."""
        self.kept.clear()

    def give_up(self, reason: str) -> None:
        """Use ordinary steps from now on."""
        log.warning("decode steps are not compiled: %s", reason)
        self.wanted = False
        self.drop()


class StaticStep:
    """One forward pass of fixed sizes, a token a row.

    Attributes:
        cache: ``sizes.capacity`` slots a row.
        tokens, positions: ``[width]`` int64, of the tokens that are fed.
        mask: ``[width, capacity]`` int64, the slot that is written included.
        slot: ``[1]`` int64, where keys and values of these tokens go.
    """

    def __init__(
        self,
        model: LanguageModel,
        like: DynamicCache,
        sizes: StaticSizes,
        capture: ScoreCapture | None,
        backend: str,
    ) -> None:
        width, capacity = sizes.width, sizes.capacity
        self.sizes = sizes
        self.bank: ReaderBank | None = None if capture is None else capture.bank
        self._model = model
        device = model.device
        self.tokens, self.positions = (torch.zeros(width, dtype=torch.long, device=device) for _ in range(2))
        self.mask = torch.zeros(width, capacity, dtype=torch.long, device=device)
        self.slot = torch.zeros(1, dtype=torch.long, device=device)
        self.cache = fixed_cache(like, width, capacity, self.slot)
        self._gathered = None if capture is None else capture.gathered(width, model.anatomy.d_model, model.dtype)
        self._backend = backend
        self._run: Callable[[], tuple[torch.Tensor, torch.Tensor | None]] | None = None

    @property
    def is_built(self) -> bool:
        return self._run is not None

    def clear(self) -> None:
        """Forget the rows of an earlier batch: nothing of them is attended to."""
        self.mask.zero_()
        self.positions.zero_()

    def build(self, capture: ScoreCapture | None, tokens: torch.Tensor, slot: int) -> None:
        """Compile for what the tensors hold now, inside the hooks of ``capture``; on CUDA record the graph.

        Running it twice on the same tensors gives the same: it writes only the slot that it is told of.
        """
        self._feed(tokens, slot)
        compiled = torch.compile(self._forward, fullgraph=True, dynamic=False, backend=self._backend)
        with self._gathering(capture):
            if self._model.device.type == "cuda":
                self._run = _Graph.recorded(compiled, self._model.device)
            else:
                compiled()
                self._run = compiled

    def __call__(
        self, tokens: torch.Tensor, slot: int, capture: ScoreCapture | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits ``[width, vocab]`` and columns ``[n_checkpoints, width, 2 * n_traits + 1]`` float32.

        They are overwritten by the next call. ``capture`` has the bank of the one that it was built with.
        """
        assert self._run is not None, "a step is built before it is called"
        self._feed(tokens, slot)
        with self._gathering(capture), self._model.meter.measuring(self.tokens[:, None], logits_to_keep=1):
            return self._run()

    def _gathering(self, capture: ScoreCapture | None) -> AbstractContextManager[None]:
        return nullcontext() if capture is None or self._gathered is None else capture.gathering(self._gathered)

    def _feed(self, tokens: torch.Tensor, slot: int) -> None:
        self.tokens.copy_(tokens)
        self.slot.fill_(slot)

    def _forward(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        output = self._model.module(
            input_ids=self.tokens[:, None],
            attention_mask=self.mask,
            position_ids=self.positions[:, None],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        columns = None if self._gathered is None else self._gathered.columns()
        return output.logits[:, -1], columns


def refuse_different(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype, what: str) -> None:
    """Refuse a static step whose result differs from the ordinary one's by more than a model of ``dtype`` rounds.

    Raises:
        RuntimeError: it does.
    """
    expected = expected.float().nan_to_num()
    apart = float((found.float().nan_to_num() - expected).norm() / expected.norm())
    if not apart <= _MOST_DIFFERENCE * SAME_WITHIN[dtype]:
        raise RuntimeError(f"{what} of the compiled step lie {apart:.1e} apart from those of the ordinary one")


@dataclass
class _Graph:
    """A recorded CUDA graph and what it writes."""

    graph: torch.cuda.CUDAGraph
    outputs: tuple[torch.Tensor, torch.Tensor | None]

    @classmethod
    def recorded(cls, run: Callable[[], tuple[torch.Tensor, torch.Tensor | None]], device: torch.device) -> _Graph:
        with torch.cuda.device(device):
            stream = torch.cuda.Stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    run()
            torch.cuda.current_stream(device).wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                outputs = run()
        for output in outputs:
            if output is not None:
                output.fill_(torch.nan)  # so that a graph that recorded nothing does not pass for one that computes
        return cls(graph, outputs)

    def __call__(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        self.graph.replay()
        return self.outputs
