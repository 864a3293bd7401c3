"""Batched generation with a KV cache, projecting the residual stream during the same forward passes.

Of a queue of prompts some are in flight, each in a slot of the batch. Where a cache of plain keys and values allows it,
the slots of finished rows are given to waiting prompts: they are read in a pass of their own and join the others in the
cache, all rows ending in the same slot of it, padded on the left.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from transformers import DynamicCache

from traitscope.errors import one_line_of
from traitscope.model.capture import PassRoom, ReaderBank, ScoreCapture, Trace, capturing
from traitscope.model.kv_cache import (
    KeysAndValues,
    begin_rows,
    can_share,
    drop_front,
    grow,
    keys_and_values,
    new_cache,
    put_rows,
)
from traitscope.model.loading import LanguageModel
from traitscope.model.sampling import Sampling, TokenChooser
from traitscope.model.sharing import Sharing, nothing_shared, shared_by
from traitscope.model.static_step import StaticSizes, StaticStep, refuse_different
from traitscope.model.steering import Pushes, Steering, pushing, steers_prompt

_JOINING_SHARE = {"cpu": 1 / 16}
_JOINING_SHARE_ELSEWHERE = 1 / 3
"""Of the slots: so many are free before waiting rows join, since joining costs a pass, which takes as long as about one
step on a CPU and as several compiled ones on an accelerator."""
_LEAVING_SHARE = 1 / 6
"""Of the slots: so many are free before the batch narrows, since narrowing copies the cache."""
_SPARE_SLOTS = 64
"""How many steps the cache has room for beyond the longest row, before what no row needs is dropped from its front."""
_WORTH_DROPPING = 32
_PREFILL_TOKENS = 8192
"""Tokens that one pass over prompts reads at most, padding included; longer ones are read in chunks."""
_LEAST_CHUNK = 64
_STEPS_BETWEEN_LOOKS = 8


@dataclass(frozen=True)
class Decoded:
    """One generated row.

    Attributes:
        response_ids: the generated token ids, the stopping token included.
        logprobs: ``[response]`` float32, of the unprocessed logits at temperature 1.
        trace: scores of every prompt and response position, or None without a capture.
    """

    response_ids: list[int]
    logprobs: np.ndarray
    trace: Trace | None


@dataclass(frozen=True)
class ReadPrefix:
    """What reading a prefix left behind.

    ``columns`` is ``[n_checkpoints, prefix, 2 * n_traits + 1]`` float32, None without a capture.
    """

    states: KeysAndValues
    columns: np.ndarray | None


class RunPrefix:
    """The tokens that all prompts of a run begin with; read in its first batch, kept for the others.

    A run has one, so that what a batch computes does not depend on the batches before it.
    """

    def __init__(self, token_ids: Sequence[int] = ()) -> None:
        self.token_ids = tuple(token_ids)
        self.read: ReadPrefix | None = None


def decode(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int],
    sampling: Sampling,
    seeds: Sequence[int],
    bank: ReaderBank | None = None,
    width: int | None = None,
    static_sizes: StaticSizes | None = None,
    on_step: Callable[[int], None] | None = None,
    on_row: Callable[[int, Decoded], None] | None = None,
    run_prefix: RunPrefix | None = None,
    steering: Sequence[Steering | None] | None = None,
) -> list[Decoded]:
    """Generate from ``prompts``, some at a time, those with the longest prompts first.

    What prompts begin with together is read once, and so is a prompt that several rows continue. Every
    generated token, the last one included, is fed back once, so that the trace has a row for the state that
    has read it: rows = prompt + response tokens.

    Args:
        prompts: token ids of each row, not padded.
        max_new_tokens: where a row stops that meets no end-of-sequence token; one for all, or one a row.
        seeds: one 64-bit seed a row (``row_seed``); not read when sampling is greedy.
        bank: the traits to project on; None generates without hooks.
        width: how many rows are in flight at most; None for all.
        static_sizes: what a compiled step is made for; at least what these rows need, which is what None takes.
        on_step: told how many tokens were generated since it was last told.
        on_row: told each row's number and what became of it, as soon as it has ended; rows that it was told of are
            safe when a later one fails.
        run_prefix: kept by the caller from queue to queue of one run.
        steering: what each row is pushed by; where prompts are pushed, nothing is shared between rows.
    """
    watching = capturing(model.module, model.anatomy, bank, model.device) if bank is not None else nullcontext(None)
    # A compiler lays weights out itself, and knows none that are packed already.
    packed = nullcontext() if model.static_steps.wanted else model.linears.in_use()
    steering = steering or [None] * len(prompts)
    with (
        pushing(model.module, model.anatomy, steering, model.device) as pushes,
        watching as capture,
        packed,
    ):
        loop = DecodeLoop(
            model,
            prompts,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            seeds=seeds,
            width=width,
            static_sizes=static_sizes,
            capture=capture,
            on_step=on_step,
            on_row=on_row,
            run_prefix=run_prefix,
            pushes=pushes,
            shares=not steers_prompt(steering),
        )
        while loop.step():
            pass
        return loop.results()


@dataclass
class _Row:
    """One prompt of the queue and what came of it so far."""

    prompt: tuple[int, ...]
    limit: int
    response: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    columns: list[np.ndarray] = field(default_factory=list)
    ended: bool = False

    @property
    def n_tokens(self) -> int:
        return len(self.prompt) + len(self.response)

    @property
    def n_left(self) -> int:
        return self.limit - len(self.response)

    def append(self, tokens: Sequence[int], logprobs: Sequence[float], eos_token_ids: frozenset[int]) -> int:
        """Take in newly chosen tokens up to the one that ends the row; returns how many those were."""
        before = len(self.response)
        for token, logprob in zip(tokens, logprobs, strict=True):
            if self.ended:
                break
            self.response.append(token)
            self.logprobs.append(logprob)
            self.ended = token in eos_token_ids or self.n_left <= 0
        return len(self.response) - before

    def decoded(self) -> Decoded:
        trace = Trace.from_columns(np.concatenate(self.columns, axis=1)) if self.columns else None
        self.columns.clear()
        return Decoded(self.response, np.array(self.logprobs, dtype=np.float32), trace)


@dataclass
class _Flight:
    """The rows that are in flight together.

    Attributes:
        rows: which row of the queue is in each slot of the batch; one that has ended, and None, leave a slot free.
        cache: keys and values of ``length`` tokens in each slot, the last ones of all rows side by side.
        mask: ``[batch, capacity]`` int64, 1 where the cache holds a token of the row.
        positions: ``[batch]`` int64, of the next token of each row.
        logits: ``[batch, vocab]``, what the next token of each row is chosen from.
        numbers, chosen: ``[batch]`` int64, ``rows`` and how many tokens were chosen for each.
        static: the step of fixed sizes whose tensors these are, if there is one.
    """

    rows: list[int | None]
    cache: DynamicCache
    mask: torch.Tensor
    length: int
    positions: torch.Tensor
    logits: torch.Tensor
    numbers: torch.Tensor
    chosen: torch.Tensor
    static: StaticStep | None = None

    @property
    def capacity(self) -> int:
        return self.mask.shape[1]

    def grown(self, capacity: int) -> _Flight:
        """The same rows with room for more tokens."""
        grow(self.cache, capacity)
        more = self.mask.new_zeros(len(self.mask), capacity - self.capacity)
        return replace(self, mask=torch.cat([self.mask, more], dim=1))

    def select(self, slots: Sequence[int]) -> None:
        """Keep these slots of the batch, any of them more than once."""
        kept = torch.tensor(list(slots), device=self.mask.device)
        self.cache.batch_select_indices(kept)
        self.rows = [self.rows[slot] for slot in slots]
        self.mask, self.positions, self.logits = self.mask[kept], self.positions[kept], self.logits[kept]
        self.numbers, self.chosen = self.numbers[kept], self.chosen[kept]

    def drop_front(self, n_slots: int) -> None:
        """Forget what the first ``n_slots`` slots of the cache hold, which no row that goes on still needs."""
        drop_front(self.cache, n_slots, self.length)
        self.length -= n_slots
        self.mask[:, : self.length] = self.mask[:, n_slots : n_slots + self.length].clone()
        self.mask[:, self.length :] = 0

    def put(self, slots: Sequence[int], joining: _Flight) -> None:
        """Give ``slots`` to the rows of another flight, whose cache is no longer than this one's."""
        where = torch.tensor(list(slots), device=self.mask.device)
        put_rows(self.cache, where, joining.cache, self.length)
        self.mask[where] = 0
        self.mask[where, self.length - joining.length : self.length] = joining.mask[:, : joining.length]
        for slot, row in zip(slots, joining.rows, strict=True):
            self.rows[slot] = row
        for own, given in (
            (self.positions, joining.positions),
            (self.logits, joining.logits),
            (self.numbers, joining.numbers),
            (self.chosen, joining.chosen),
        ):
            own[where] = given


class DecodeLoop:
    """A queue of prompts on its way through the model, a step at a time; ``decode`` runs it to its end.

    The hooks of ``capture`` (``capturing``) and the packed layers (``model.linears.in_use``) are the caller's to put
    in place around ``prefill`` and ``step``.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int | Sequence[int],
        sampling: Sampling,
        seeds: Sequence[int],
        width: int | None = None,
        static_sizes: StaticSizes | None = None,
        capture: ScoreCapture | None = None,
        on_step: Callable[[int], None] | None = None,
        on_row: Callable[[int, Decoded], None] | None = None,
        run_prefix: RunPrefix | None = None,
        pushes: Pushes | None = None,
        shares: bool = True,
    ) -> None:
        limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
        self._model = model
        self._rows = [_Row(tuple(prompt), limit) for prompt, limit in zip(prompts, limits, strict=True)]
        self._waiting = deque(sorted(range(len(prompts)), key=lambda row: -len(prompts[row])))
        self._width = width or len(prompts)
        longest = max((len(row.prompt) + row.limit for row in self._rows), default=0)
        self._static_sizes = static_sizes or StaticSizes(self._width, longest)
        self._chooser = TokenChooser(sampling, seeds, max(limits, default=0), model.device)
        self._on_step, self._on_row = on_step, on_row
        self._run_prefix = run_prefix or RunPrefix()
        self._pushes, self._shares = pushes, shares
        self._plain_cache = can_share(model)
        self._joining_share = _JOINING_SHARE.get(model.device.type, _JOINING_SHARE_ELSEWHERE)
        self._flight: _Flight | None = None
        self._unseen = _Unseen(capture, _steps_between_looks(model.device))
        self._capture = capture
        self._until_look = 1
        self._pushed: list[int | None] = []
        self._decoded: dict[int, Decoded] = {}

    @torch.inference_mode()
    def prefill(self) -> None:
        """Read the first of the waiting prompts, as many as may be in flight."""
        rows = [self._waiting.popleft() for _ in range(min(self._width, len(self._waiting)))]
        capacity = self._capacity([self._rows[row] for row in [*rows, *self._waiting]])
        compiles = self._model.static_steps.wanted and self._plain_cache and self._pushes is None
        longest = max(len(self._rows[row].prompt) for row in rows)
        flight = self._read(rows, longest + 1 if compiles else capacity)
        if compiles:
            flight = self._in_static_step(flight) or flight.grown(capacity)
        self._flight = flight
        self._settled(flight)

    @torch.inference_mode()
    def step(self) -> bool:
        """Choose a token for every row in flight and feed it; False when no row has a token left to generate."""
        if self._flight is None:
            self.prefill()
        flight = self._flight
        assert flight is not None
        tokens, logprobs = self._chooser.choose(flight.logits, flight.numbers, flight.chosen)
        self._feed(flight, tokens)
        self._unseen.add(tokens, logprobs)
        if self._unseen.n_steps == self._until_look:
            self._look(flight)
            self._reseat(flight)
        return self._flight is not None or bool(self._waiting)

    def results(self) -> list[Decoded]:
        """What was generated, in the order of the prompts."""
        return [self._decoded[row] for row in range(len(self._rows))]

    def _capacity(self, rows: Sequence[_Row]) -> int:
        """How many slots a cache needs for rows that are in flight now or later."""
        if not self._plain_cache:
            return max(len(row.prompt) for row in rows) + max(row.limit for row in rows)
        longest = max(len(row.prompt) + row.limit for row in rows)
        spare = longest + _SPARE_SLOTS
        # Some models keep a causal mask of their own, no wider than their context.
        return max(longest, min(spare, self._model.context_length or spare))

    def _feed(self, flight: _Flight, tokens: torch.Tensor) -> None:
        """Move every row on by the token that was chosen for it."""
        flight.mask[:, flight.length] = 1
        room = None if self._capture is None else self._unseen.room(len(flight.rows))
        if flight.static is not None:
            flight.logits, columns = flight.static(tokens, flight.length, self._capture)
            if room is not None and columns is not None:
                room.columns.copy_(columns)
        else:
            flight.logits = self._forward_into(room, flight, tokens)
        flight.length += 1
        flight.positions += 1
        if self._model.context_length is not None:
            flight.positions.clamp_max_(self._model.context_length - 1)  # of rows that have ended
        flight.chosen += 1

    def _forward_into(self, room: PassRoom | None, flight: _Flight, tokens: torch.Tensor) -> torch.Tensor:
        if self._capture is not None and room is not None:
            self._capture.into(room)
        mask = flight.mask[:, : flight.length + 1]
        logits = self._forward(flight.cache, tokens[:, None], mask, flight.positions[:, None])
        if self._capture is not None:
            self._capture.take()
        return logits

    def _look(self, flight: _Flight) -> None:
        """See what was generated since the last look: which tokens, which rows have ended."""
        rows = [None if number is None else self._rows[number] for number in flight.rows]
        n_new = self._unseen.hand_out(rows, self._model.eos_token_ids)
        if self._on_step is not None:
            self._on_step(n_new)
        for number, row in zip(flight.rows, rows, strict=True):
            if number is not None and row is not None and row.ended and number not in self._decoded:
                self._decoded[number] = row.decoded()
                if self._on_row is not None:
                    self._on_row(number, self._decoded[number])

    def _reseat(self, flight: _Flight) -> None:
        """Give the slots of rows that have ended to waiting ones, or take them out, once there are enough of them."""
        free = [slot for slot, row in enumerate(flight.rows) if row is None or self._rows[row].ended]
        if len(free) == len(flight.rows):
            self._flight = None
            return
        n_running = len(flight.rows) - len(free)
        room = free[: max(0, min(self._width, len(flight.rows)) - n_running)]
        if self._waiting and self._plain_cache:
            if len(room) >= min(math.ceil(self._joining_share * (n_running + len(room))), len(self._waiting)):
                self._join(flight, room)
        elif flight.static is None and len(free) >= _LEAVING_SHARE * len(flight.rows):
            flight.select([slot for slot in range(len(flight.rows)) if slot not in free])
        self._settled(flight)

    def _join(self, flight: _Flight, free: Sequence[int]) -> None:
        rows = [self._waiting.popleft() for _ in range(min(len(free), len(self._waiting)))]
        joining = self._read(rows, capacity=0)
        spare = flight.length - self._needed(flight, rows)
        if spare >= _WORTH_DROPPING:
            flight.drop_front(spare)
        flight.put(free[: len(rows)], joining)

    def _needed(self, flight: _Flight, joining: Sequence[int] = ()) -> int:
        """The slots of the cache that rows still need: those in flight, those that join and those that wait."""
        running = [row.n_tokens for row in self._running(flight)]
        return max([*running, *(len(self._rows[row].prompt) for row in [*joining, *list(self._waiting)[:1]])])

    def _running(self, flight: _Flight) -> list[_Row]:
        rows = [self._rows[number] for number in flight.rows if number is not None]
        return [row for row in rows if not row.ended]

    def _settled(self, flight: _Flight) -> None:
        """What holds until the next look, now that it is known which rows are in flight."""
        needed = self._needed(flight)
        least_left = min(row.n_left for row in self._running(flight))
        self._until_look = min(self._unseen.most_steps, flight.capacity - needed, least_left)
        if flight.length + self._until_look > flight.capacity:
            flight.drop_front(flight.length - needed)
        if self._pushes is not None and self._pushed != flight.rows:
            self._pushes.responses([row for row in flight.rows if row is not None])
            self._pushed = list(flight.rows)

    def _read(self, rows: Sequence[int], capacity: int) -> _Flight:
        """Read prompts: (1) what they begin with, once; (2) the rest of each; (3) a slot for each row."""
        prompts = [self._rows[row].prompt for row in rows]
        if self._pushes is not None:
            self._pushes.nothing()
            self._pushed = []
        sharing = (
            shared_by(prompts, self._run_prefix.token_ids)
            if self._plain_cache and self._shares
            else nothing_shared(prompts)
        )
        prefix = self._read_prefix(sharing) if sharing.n_prefix else None
        input_ids, read = _left_padded(sharing.distinct, self._model.device)
        length = input_ids.shape[1]
        cache = new_cache(self._model, max(capacity, length))
        if prefix is not None:
            begin_rows(cache, prefix.states, sharing.shifts)
        logits, columns = self._read_on(cache, input_ids, read, sharing.n_prefix, rows)
        if columns is not None:
            self._keep_prompts(rows, sharing, None if prefix is None else prefix.columns, columns)
        mask = read.new_zeros(len(read), max(capacity, length))
        mask[:, :length] = read
        flight = _Flight(
            rows=list(range(len(sharing.distinct))),
            cache=cache,
            mask=mask,
            length=length,
            positions=read.sum(dim=1),
            logits=logits,
            numbers=read.new_zeros(len(read)),
            chosen=read.new_zeros(len(read)),
        )
        if len(sharing.distinct) < len(rows):
            flight.select(sharing.source)
        flight.rows = list(rows)
        flight.numbers = torch.tensor(list(rows), device=self._model.device)
        return flight

    def _in_static_step(self, flight: _Flight) -> _Flight | None:
        """The same rows in the tensors of a static step; None where the model's steps cannot be compiled."""
        steps = self._model.static_steps
        try:
            step = steps.fitting(self._model, flight.cache, self._static_sizes, self._capture)
            n_slots = step.sizes.width
            moved = _Flight(
                rows=[None] * n_slots,
                cache=step.cache,
                mask=step.mask,
                length=flight.length,
                positions=step.positions,
                logits=flight.logits.new_zeros(n_slots, flight.logits.shape[1]),
                numbers=flight.numbers.new_zeros(n_slots),
                chosen=flight.chosen.new_zeros(n_slots),
                static=step,
            )
            step.clear()
            moved.put(range(len(flight.rows)), flight)
            if not step.is_built:
                self._build(step, moved, flight)
        except torch.OutOfMemoryError:
            steps.drop()
            raise
        except Exception as error:  # whatever a compiler says; a model that cannot run at all says it again without
            steps.give_up(one_line_of(error))
            return None
        return moved

    def _build(self, step: StaticStep, moved: _Flight, flight: _Flight) -> None:
        """Compile a step, and refuse it where it does not give what the ordinary one gives.

        Both are given the token that each row begins with; neither flight has moved on afterwards.
        """
        tokens = moved.logits.argmax(dim=-1)
        n_rows = len(flight.rows)
        room = None if self._capture is None else self._capture.room(n_rows)
        for one in (moved, flight):
            one.mask[:, one.length] = 1
        expected = self._forward_into(room, flight, tokens[:n_rows])
        flight.cache.crop(-1)
        step.build(self._capture, tokens, moved.length)
        found, columns = step(tokens, moved.length, self._capture)
        refuse_different(found[:n_rows], expected, self._model.dtype, "logits")
        if room is not None and columns is not None:
            refuse_different(columns[:, :n_rows], room.columns, self._model.dtype, "scores")
        for one in (moved, flight):
            one.mask[:, one.length] = 0

    def _read_prefix(self, sharing: Sharing) -> ReadPrefix:
        token_ids = sharing.distinct[0][: sharing.n_prefix]
        if token_ids != self._run_prefix.token_ids:
            return self._forward_prefix(token_ids)
        if self._run_prefix.read is None:
            self._run_prefix.read = self._forward_prefix(token_ids)
        return self._run_prefix.read

    def _forward_prefix(self, token_ids: Sequence[int]) -> ReadPrefix:
        input_ids, mask = _left_padded([token_ids], self._model.device)
        cache = new_cache(self._model, len(token_ids))
        _, columns = self._read_on(cache, input_ids, mask, 0, ())
        return ReadPrefix(keys_and_values(cache), None if columns is None else columns[:, 0])

    def _read_on(
        self, cache: DynamicCache, input_ids: torch.Tensor, mask: torch.Tensor, start: int, pushed: Sequence[int]
    ) -> tuple[torch.Tensor, np.ndarray | None]:
        """Read ``input_ids`` ``[batch, seq]`` from ``start`` on, in chunks where they are long.

        Returns the last logits ``[batch, vocab]`` and the columns ``[n_checkpoints, batch, seq - start, columns]``.
        """
        position_ids = (mask.cumsum(dim=1) - 1).clamp_min(0)
        length = input_ids.shape[1]
        chunk = max(_LEAST_CHUNK, _PREFILL_TOKENS // len(input_ids)) if self._plain_cache else length
        columns = []
        for first in range(start, length, chunk):
            stop = min(first + chunk, length)
            here = slice(first, stop)
            if self._pushes is not None and not self._shares:
                self._pushes.prompts(pushed, position_ids[:, here], mask[:, here])
            logits = self._forward(cache, input_ids[:, here], mask[:, :stop], position_ids[:, here])
            if self._capture is not None:
                taken = self._capture.take()
                columns.append(taken.unflatten(1, (len(input_ids), -1)).cpu().numpy())
        return logits, np.concatenate(columns, axis=2) if columns else None

    def _keep_prompts(
        self, rows: Sequence[int], sharing: Sharing, of_prefix: np.ndarray | None, fed: np.ndarray
    ) -> None:
        """Give every row the columns of its prompt: of the prefix, then of what came after it."""
        for row, source in zip(rows, sharing.source, strict=True):
            n_own = len(sharing.distinct[source]) - sharing.n_prefix
            if of_prefix is not None:
                self._rows[row].columns.append(of_prefix)
            self._rows[row].columns.append(fed[:, source, sharing.n_fed - n_own :])

    def _forward(
        self, cache: DynamicCache, input_ids: torch.Tensor, mask: torch.Tensor, position_ids: torch.Tensor
    ) -> torch.Tensor:
        output = self._model.forward(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]


class _Unseen:
    """What the steps since the last look gave, still on the device."""

    def __init__(self, capture: ScoreCapture | None, most_steps: int) -> None:
        self.most_steps = most_steps
        self._capture = capture
        self._tokens: list[torch.Tensor] = []
        self._logprobs: list[torch.Tensor] = []
        self._rooms: list[PassRoom] = []

    @property
    def n_steps(self) -> int:
        return len(self._tokens)

    def room(self, n_rows: int) -> PassRoom:
        """Where the next step's columns go; they stay there until the next look."""
        assert self._capture is not None
        if not self._rooms or self._rooms[0].n_tokens != n_rows:
            self._rooms = [self._capture.room(n_rows) for _ in range(self.most_steps)]
        return self._rooms[self.n_steps]

    def add(self, tokens: torch.Tensor, logprobs: torch.Tensor) -> None:
        """One step's ``[batch]`` tokens and log-probabilities."""
        self._tokens.append(tokens)
        self._logprobs.append(logprobs)

    def hand_out(self, rows: Sequence[_Row | None], eos_token_ids: frozenset[int]) -> int:
        """Give every row what is its own, up to where it ends; returns how many tokens those were."""
        tokens = torch.stack(self._tokens, dim=1).tolist()
        logprobs = torch.stack(self._logprobs, dim=1).tolist()
        columns = [room.columns for room in self._rooms[: self.n_steps]]
        host = torch.stack(columns, dim=2).cpu().numpy() if columns else None  # [n_checkpoints, batch, steps, columns]
        n_new = 0
        for slot, row in enumerate(rows):
            if row is None:
                continue
            n_own = row.append(tokens[slot], logprobs[slot], eos_token_ids)
            if n_own and host is not None:
                row.columns.append(host[:, slot, :n_own].copy())  # not to keep the other rows' alive
            n_new += n_own
        self._tokens.clear()
        self._logprobs.clear()
        return n_new


def _steps_between_looks(device: torch.device) -> int:
    """Steps between two looks at what was generated: each look waits for an accelerator."""
    return 1 if device.type == "cpu" else _STEPS_BETWEEN_LOOKS


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, both ``[batch, longest]`` int64; the padding's id is never read."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(list(prompt), dtype=torch.long)
        mask[row, longest - len(prompt) :] = 1
    return ids.to(device), mask.to(device)
