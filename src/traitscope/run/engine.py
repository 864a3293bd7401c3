"""Turning generations that are asked for into outcomes: one bad row stays one bad row."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from traitscope.errors import DeviceFailedError, one_line_of
from traitscope.model.decode import Decoded, RunPrefix, decode
from traitscope.model.internals import LayerInternals, open_layers
from traitscope.model.loading import LanguageModel
from traitscope.model.replay import replay_scores, steered
from traitscope.model.sampling import Sampling
from traitscope.model.static_step import StaticSizes
from traitscope.model.steering import Steering
from traitscope.run.memory import is_out_of_memory, release_memory
from traitscope.run.steering import Dose, steering_of
from traitscope.run.tables import Captured, Outcome
from traitscope.suite.plan import OpenLayers
from traitscope.suite.rendering import Rendered
from traitscope.suite.tokens import TokenDescriber
from traitscope.traits.store import bank_of
from traitscope.traits.vectors import TraitVectors

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GenerationTask:
    """One generation as the engine needs it.

    ``response_ids`` are given instead of generated when not None; ``seed`` is the row's own and None when
    nothing is sampled; ``checkpoints`` are the indices to keep; ``opened`` are the layers to open, if any;
    ``dose`` is what it is steered by.
    """

    id: str
    prompt: Rendered
    response_ids: tuple[int, ...] | None
    max_new_tokens: int
    sampling: Sampling
    seed: int | None
    traits: frozenset[str]
    checkpoints: tuple[int, ...]
    opened: OpenLayers | None = None
    dose: Dose | None = None

    @property
    def n_prompt(self) -> int:
        return len(self.prompt.token_ids)

    @property
    def shares_prompt(self) -> bool:
        """Whether equal prompt tokens mean equal states: not where the prompt is pushed."""
        return self.dose is None or self.dose.positions == "response"

    @property
    def most_response_tokens(self) -> int:
        return self.max_new_tokens if self.response_ids is None else len(self.response_ids)


class Engine:
    """Runs batches of generations on one model and one set of vectors.

    ``run_prefix`` is what the prompts of all its generations begin with; ``width`` how many are in flight at most, and
    ``most_tokens`` the length of the longest with its response: what a compiled step is made for.
    """

    def __init__(
        self,
        model: LanguageModel,
        vectors: Sequence[TraitVectors],
        *,
        width: int,
        most_tokens: int = 0,
        run_prefix: Sequence[int] = (),
        on_tokens: Callable[[int], None] = lambda _n: None,
    ) -> None:
        self._model = model
        self._vectors = vectors
        self._bank = bank_of(vectors)
        self._covered = np.isfinite(self._bank.readers.numpy()).all(axis=-1).T  # [n_checkpoints, n_traits]
        self._run_prefix = RunPrefix(run_prefix)
        self._on_tokens = on_tokens
        self._describer = TokenDescriber(model.tokenizer)
        self._width = width
        self._most_tokens = most_tokens

    def run_batch(self, tasks: Sequence[GenerationTask]) -> list[Outcome]:
        """Outcomes in the order of ``tasks``, which share their sampling.

        After an exception the rows that have ended are kept and the others run again in two halves, until the guilty
        row stands alone and is recorded as failed. When memory runs out, so many at a time are halved as well, also
        of later batches.
        """
        outcomes: dict[str, Outcome] = {}
        waiting = [list(tasks)]
        width = self._width
        while waiting:
            part = waiting.pop()
            rows: dict[int, Decoded] = {}
            started = time.perf_counter()
            problem = self._try(part, rows)
            seconds = (time.perf_counter() - started) / max(len(rows), 1)
            outcomes |= {part[n].id: self._outcome(part[n], row, seconds) for n, row in rows.items()}
            if problem is None:
                continue
            if len(part) == 1:
                outcomes[part[0].id] = _failed(part[0], one_line_of(problem), seconds)
                self._width = width  # it was too large by itself
            else:
                waiting += reversed(self._after(problem, [task for n, task in enumerate(part) if n not in rows]))
        return [outcomes[task.id] for task in tasks]

    def _after(self, problem: Exception, left: list[GenerationTask]) -> list[list[GenerationTask]]:
        """How to go on with the tasks of a batch that a problem ended early."""
        log.warning("a batch failed (%s) with %d of its rows to go", one_line_of(problem), len(left))
        if is_out_of_memory(problem):
            self._model.static_steps.drop()
            release_memory()
        narrower = min(self._width, len(left)) // 2
        if is_out_of_memory(problem) and left[0].response_ids is None and narrower >= 1:
            self._width = narrower
            return [left]
        half = (len(left) + 1) // 2
        return [part for part in (left[:half], left[half:]) if part]

    def _try(self, tasks: Sequence[GenerationTask], rows: dict[int, Decoded]) -> Exception | None:
        """Fill ``rows`` with what was generated, by number of the task; returns what ended it early.

        An exception's traceback holds the failed attempt's tensors, so it is returned without.
        """
        try:
            self._generate(tasks, rows)
        except Exception as error:
            if isinstance(error, torch.AcceleratorError) and not is_out_of_memory(error):
                raise DeviceFailedError(
                    f"the device failed and computes nothing any more: {one_line_of(error)}"
                ) from error
            return error.with_traceback(None)
        return None

    def _generate(self, tasks: Sequence[GenerationTask], rows: dict[int, Decoded]) -> None:
        if tasks[0].response_ids is not None:
            for number, task in enumerate(tasks):
                rows[number] = self._replayed(task)
            return
        decode(
            self._model,
            [task.prompt.token_ids for task in tasks],
            max_new_tokens=[task.max_new_tokens for task in tasks],
            sampling=tasks[0].sampling,
            seeds=[task.seed or 0 for task in tasks],
            bank=self._bank,
            width=even_width(len(tasks), self._width),
            static_sizes=self._static_sizes(tasks),
            on_step=self._on_tokens,
            on_row=rows.__setitem__,
            run_prefix=self._run_prefix,
            steering=[self._steering(task) for task in tasks],
        )

    def _static_sizes(self, tasks: Sequence[GenerationTask]) -> StaticSizes:
        longest = max(task.n_prompt + task.most_response_tokens for task in tasks)
        return StaticSizes(self._width, max(self._most_tokens, longest))

    def _replayed(self, task: GenerationTask) -> Decoded:
        assert task.response_ids is not None
        row = replay_scores(self._model, task.prompt.token_ids, task.response_ids, self._bank, self._steering(task))
        self._on_tokens(len(task.response_ids))
        return row

    def _steering(self, task: GenerationTask) -> Steering | None:
        return steering_of(task.dose, self._vectors)

    def _outcome(self, task: GenerationTask, row: Decoded, seconds: float) -> Outcome:
        assert row.trace is not None
        n_positions = task.n_prompt + len(row.response_ids)
        if row.trace.n_positions != n_positions:
            return _failed(task, f"{row.trace.n_positions} positions were captured instead of {n_positions}", seconds)
        if problem := self._not_finite(row):
            return _failed(task, problem, seconds)
        try:
            internals = self._internals(task, row.response_ids)
        except Exception as error:
            return _failed(task, f"its layers could not be opened: {one_line_of(error)}", seconds)
        return Outcome(
            generation=task.id,
            status="ok",
            prompt_tokens=task.n_prompt,
            seed=task.seed,
            seconds=seconds,
            captured=Captured(
                tokens=self._describer.rows(task.prompt, row.response_ids),
                logprobs=row.logprobs,
                trace=row.trace,
                response=self._describer.response_text(row.response_ids),
                internals=internals,
            ),
            traits=task.traits,
            checkpoints=task.checkpoints,
        )

    def _internals(self, task: GenerationTask, response_ids: Sequence[int]) -> dict[str, torch.Tensor]:
        """The kept tensors of the layers that are opened, on the CPU, by ``<layer>/<tensor>``."""
        kept: dict[str, torch.Tensor] = {}
        if task.opened is None:
            return kept
        dtype = torch.float32 if task.opened.float32 else self._model.dtype

        def keep(internals: LayerInternals) -> None:
            for name, tensor in internals.kept().items():
                if not torch.isfinite(tensor).all():
                    raise RuntimeError(f"{name} of layer {internals.layer} is not finite")
                to = dtype if tensor.is_floating_point() else tensor.dtype
                kept[f"{internals.layer}/{name}"] = tensor.to("cpu", to, copy=True).contiguous()

        token_ids = [*task.prompt.token_ids, *response_ids]
        _ = self._model.blocks  # found by a pass of its own, which is not to be pushed
        with steered(self._model, self._steering(task), task.n_prompt, len(token_ids)):
            open_layers(self._model, token_ids, task.opened.tensors, keep)
        return kept

    def _not_finite(self, row: Decoded) -> str | None:
        assert row.trace is not None
        wrong_scores = ~np.isfinite(row.trace.scores) & self._covered[:, None, :]
        bad = ~np.isfinite(row.trace.norms) | wrong_scores.any(axis=-1)
        if bad.any():
            checkpoint, position = np.argwhere(bad)[0]
            name = self._model.anatomy.checkpoints[checkpoint].name
            return f"the state at {name}, position {position}, is not finite; try dtype float32 or bfloat16"
        if not np.isfinite(row.logprobs).all():
            return f"the logits at response token {int(np.argmin(np.isfinite(row.logprobs)))} are not finite"
        return None


def even_width(n_rows: int, width: int) -> int:
    """The least width at which ``n_rows`` take no more turns than at ``width``, if all are equally long."""
    return math.ceil(n_rows / math.ceil(n_rows / width))


def _failed(task: GenerationTask, error: str, seconds: float) -> Outcome:
    return Outcome(task.id, "failed", task.n_prompt, task.seed, seconds, error=error)
