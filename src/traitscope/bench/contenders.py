"""The contenders, each a function that does some of the workload and says what it took.

All generate exactly ``max_new_tokens`` a response: end-of-sequence tokens are switched off on every side.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch.nn.utils.rnn import pad_sequence

from traitscope.bench.children import Child, run_child
from traitscope.bench.workload import Workload, post_indices, share_of_prompts
from traitscope.captures.reading import open_run
from traitscope.errors import RunError
from traitscope.model.capture import ReaderBank
from traitscope.model.decode import RunPrefix, decode
from traitscope.model.embedded import embedded_directory, embedded_weights_directory
from traitscope.model.loading import LanguageModel
from traitscope.model.source import ModelSource
from traitscope.run.batching import make_batches, run_prefix
from traitscope.run.engine import GenerationTask, even_width
from traitscope.suite.file import LoadedSuite


@dataclass(frozen=True)
class Piece:
    """Work that was timed as a whole.

    Attributes:
        seconds: wall time.
        share: how much of the contender's whole workload it was; below 1, the whole is extrapolated.
        tokens: response tokens that were generated.
        units: how many processes or prompts it was.
        parts: seconds by kind of work, where they are known.
        peak_bytes: the most memory of the process, where it had one of its own.
    """

    seconds: float
    share: float
    tokens: int
    units: int
    parts: Mapping[str, float] = field(default_factory=dict)
    peak_bytes: int | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Grouping:
    """How prompts are put into batches for ``generate``: in the file's order, or by length."""

    width: int
    by_length: bool

    def batches(self, tasks: Sequence[GenerationTask]) -> list[tuple[GenerationTask, ...]]:
        rows = sorted(tasks, key=lambda task: -task.n_prompt) if self.by_length else list(tasks)
        return [tuple(rows[start : start + self.width]) for start in range(0, len(rows), self.width)]

    def __str__(self) -> str:
        return f"width {self.width}, {'sorted by length' if self.by_length else 'unsorted'}"


def old_way(model: LanguageModel, workload: Workload, task: GenerationTask, folder: Path) -> Piece:
    """(a) One process and one load for one prompt and one trait; no KV cache; everything copied out."""
    source = workload.prepared.source
    weights, tokenizer = _model_files(source)
    readout = workload.bank.readouts[0]
    checkpoint = model.anatomy.checkpoints[readout]
    job = {
        "weights": weights,
        "tokenizer": tokenizer,
        "arguments": source.pretrained_arguments(),
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "prompt_ids": list(task.prompt.token_ids),
        "max_new_tokens": task.max_new_tokens,
        "layer": checkpoint.layer,
        "vector": workload.bank.readers[0, readout].tolist(),
    }
    report, seconds = run_child("old_way", job, folder)
    _check_lengths("the old way", [report["response_tokens"]], task.max_new_tokens)
    parts = {part: report[part] for part in ("import", "load", "compute")}
    return Piece(seconds, 1 / workload.n_captures, task.max_new_tokens, 1, parts, report["peak_bytes"])


def uncached(model: LanguageModel, workload: Workload, tasks: Sequence[GenerationTask]) -> Piece:
    """(b) One load; one prompt and one trait at a time; the context recomputed for each token; hidden states."""
    readout = workload.bank.readouts[0]
    layer = model.anatomy.checkpoints[readout].layer
    vector = workload.bank.readers[0, readout].numpy()

    def respond(task: GenerationTask) -> int:
        token_ids = list(task.prompt.token_ids)
        for _ in range(task.max_new_tokens):
            output = model.module(
                input_ids=torch.tensor([token_ids], device=model.device), use_cache=False, output_hidden_states=True
            )
            output.hidden_states[layer + 1][0].float().cpu().numpy() @ vector
            token_ids.append(int(output.logits[0, -1].argmax()))
        return len(token_ids) - task.n_prompt

    with torch.inference_mode():
        return _one_by_one(model, tasks, respond, n_whole=workload.n_captures, who="generation without a cache")


def cached(model: LanguageModel, workload: Workload, tasks: Sequence[GenerationTask]) -> Piece:
    """(c) One load; one prompt at a time; ``generate`` with its KV cache and hidden states; all traits projected."""
    posts = post_indices(model.anatomy.checkpoints)
    readers = workload.bank.readers[:, posts].permute(1, 2, 0).contiguous().to(model.device)  # [layers, d, traits]

    def respond(task: GenerationTask) -> int:
        output = model.module.generate(
            **_padded([task], model.device),
            **_generate_arguments(task),
            output_hidden_states=True,
            return_dict_in_generate=True,
        )
        for step in output.hidden_states:
            (torch.stack([state[0] for state in step]).float() @ readers).cpu().numpy()
        return output.sequences.shape[1] - task.n_prompt

    with torch.inference_mode(), _without_eos(model.module):
        return _one_by_one(model, tasks, respond, n_whole=len(workload.tasks), who="generate, one at a time")


def ours(
    model: LanguageModel, tasks: Sequence[GenerationTask], width: int, *, bank: ReaderBank | None, n_whole: int
) -> Piece:
    """(d) Our batched decode with all traits captured; (e) the same without a bank. Batches as a run makes them."""
    endless = replace(model, eos_token_ids=frozenset())
    synchronise(model.device)
    started = time.perf_counter()
    prefix = RunPrefix(run_prefix(tasks))
    lengths: list[int] = []
    for batch in make_batches(tasks):
        rows = decode(
            endless,
            [task.prompt.token_ids for task in batch],
            max_new_tokens=[task.max_new_tokens for task in batch],
            sampling=batch[0].sampling,
            seeds=[task.seed or 0 for task in batch],
            bank=bank,
            width=even_width(len(batch), width),
            run_prefix=prefix,
        )
        lengths += [len(row.response_ids) for row in rows]
    synchronise(model.device)
    seconds = time.perf_counter() - started
    _check_lengths("our decode", lengths, tasks[0].max_new_tokens)
    return Piece(seconds, len(tasks) / n_whole, sum(lengths), len(tasks))


def batched_generate(
    model: LanguageModel, tasks: Sequence[GenerationTask], grouping: Grouping, *, n_whole: int
) -> Piece:
    """(f) ``generate`` on left-padded batches, nothing captured."""
    lengths: list[int] = []
    with torch.inference_mode(), _without_eos(model.module):
        synchronise(model.device)
        started = time.perf_counter()
        for batch in grouping.batches(tasks):
            inputs = _padded(batch, model.device)
            sequences = model.module.generate(**inputs, **_generate_arguments(batch[0]))
            lengths += [sequences.shape[1] - inputs["input_ids"].shape[1]] * len(batch)
        synchronise(model.device)
        seconds = time.perf_counter() - started
    _check_lengths("generate", lengths, tasks[0].max_new_tokens)
    return Piece(seconds, len(tasks) / n_whole, sum(lengths), len(tasks))


def whole_program(workload: Workload, folder: Path, *, batch_size: int | None) -> Piece:
    """traitscope as one process: import, load, plan, timing, generating, writing, all that a run does."""
    report, seconds = run_child("ours", program_job(workload.prepared.loaded, workload, batch_size), folder)
    tokens = _run_tokens(report, workload.max_new_tokens)
    details = {"batch_width": report["batch_width"]}
    return Piece(seconds, 1.0, tokens, 1, report["seconds"], report["peak_bytes"], details)


def first_run(workload: Workload, folder: Path, *, threads: int | None = None) -> None:
    """An ordinary run, not timed, in which the program remembers the model's pace with this number of threads."""
    job = program_job(workload.prepared.loaded, workload, batch_size=None)
    run_child("ours", {**job, "equal_lengths": False}, folder, threads=threads)


def threads_each(n_instances: int) -> int:
    """The share of this process's threads that each of several instances gets."""
    return max(1, torch.get_num_threads() // n_instances)


def side_by_side(workload: Workload, folder: Path, n_instances: int, *, batch_size: int | None) -> Piece:
    """``n_instances`` of the whole program at once, each on its share of prompts and of this machine's threads."""
    threads = threads_each(n_instances)
    started = time.perf_counter()
    children: list[Child] = []
    try:
        for part in range(n_instances):
            loaded = share_of_prompts(workload.prepared.loaded, part, n_instances)
            children.append(Child("ours", program_job(loaded, workload, batch_size), folder, threads=threads))
        reports = [child.finish() for child in children]
    finally:
        for child in children:
            child.stop()
    seconds = time.perf_counter() - started
    tokens = sum(_run_tokens(report, workload.max_new_tokens) for report in reports)
    peak = sum(report["peak_bytes"] for report in reports)
    return Piece(seconds, 1.0, tokens, n_instances, {}, peak, {"threads_each": threads})


def program_job(loaded: LoadedSuite, workload: Workload, batch_size: int | None) -> dict[str, Any]:
    """What a process of its own needs to run a suite as this one would."""
    prepared = workload.prepared
    return {
        "suite": loaded.suite.model_dump(mode="json", exclude_unset=True),
        "folder": str(loaded.folder.absolute()),
        "device": str(prepared.device),
        "dtype": "auto" if prepared.dtype is None else str(prepared.dtype).removeprefix("torch."),
        "trust_remote_code": prepared.source.trust_remote_code,
        "batch_size": batch_size,
        "equal_lengths": True,
    }


def synchronise(device: torch.device) -> None:
    """Wait for what the device still computes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _model_files(source: ModelSource) -> tuple[str, str]:
    """Where weights and tokenizer lie, as ``from_pretrained`` takes it."""
    if source.kind == "embedded":
        return str(embedded_weights_directory()), str(embedded_directory())
    return source.location, source.location


def _one_by_one(
    model: LanguageModel,
    tasks: Sequence[GenerationTask],
    respond: Callable[[GenerationTask], int],
    *,
    n_whole: int,
    who: str,
) -> Piece:
    """Time ``respond``, which returns the length of its response, on each task."""
    synchronise(model.device)
    started = time.perf_counter()
    lengths = [respond(task) for task in tasks]
    synchronise(model.device)
    seconds = time.perf_counter() - started
    _check_lengths(who, lengths, tasks[0].max_new_tokens)
    return Piece(seconds, len(tasks) / n_whole, sum(lengths), len(tasks))


def _padded(tasks: Sequence[GenerationTask], device: torch.device) -> dict[str, torch.Tensor]:
    """``input_ids`` and ``attention_mask``, both ``[batch, longest]`` int64, padded on the left."""
    rows = [torch.tensor(task.prompt.token_ids) for task in tasks]
    ids = pad_sequence(rows, batch_first=True, padding_side="left")
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def _generate_arguments(task: GenerationTask) -> dict[str, Any]:
    sampling = task.sampling
    arguments: dict[str, Any] = {"max_new_tokens": task.max_new_tokens, "do_sample": not sampling.greedy}
    if not sampling.greedy:
        arguments |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
    return arguments


@contextmanager
def _without_eos(module: Any) -> Iterator[None]:
    """Nothing but the length ends a response of ``generate`` inside the block."""
    from transformers import GenerationConfig

    own = module.generation_config
    module.generation_config = GenerationConfig(pad_token_id=0)
    try:
        yield
    finally:
        module.generation_config = own


def _run_tokens(report: Mapping[str, Any], max_new_tokens: int) -> int:
    """Response tokens of a run, which must be all there and equally long."""
    generations = open_run(report["run"]).generations.select("status", "response_tokens").collect()
    if failed := generations.filter(pl.col("status") != "ok").height:
        raise RunError(f"bench: {failed} generations of the whole program failed; see {report['run']}")
    lengths = generations["response_tokens"].to_list()
    _check_lengths("the whole program", lengths, max_new_tokens)
    return sum(lengths)


def _check_lengths(who: str, lengths: Sequence[int], expected: int) -> None:
    if unequal := sorted(set(lengths) - {expected}):
        raise RunError(f"bench: {who} generated {unequal[0]} tokens instead of {expected}; the times do not compare")
