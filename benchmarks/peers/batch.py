"""What the contenders on top of transformers' ``generate`` share: the model, padded batches, their rows.

A batch runs until its longest response is there, as it would if end-of-sequence tokens ended the rows: a row that is
done keeps its place until then, and what it generates meanwhile is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from serving import Row
from ways import Way
from workload import Workload


@dataclass(frozen=True)
class Batch:
    """Prompts as token ids, and the length of each one's response."""

    prompts: Sequence[Sequence[int]]
    lengths: Sequence[int]

    @property
    def longest_prompt(self) -> int:
        return max(map(len, self.prompts))

    @property
    def longest_response(self) -> int:
        return max(self.lengths)

    def left_padded(self) -> dict[str, torch.Tensor]:
        """``input_ids`` and ``attention_mask``, both ``[batch, longest prompt]`` int64."""
        ids = torch.zeros(len(self.prompts), self.longest_prompt, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(self.prompts):
            ids[row, self.longest_prompt - len(prompt) :] = torch.tensor(prompt)
            mask[row, self.longest_prompt - len(prompt) :] = 1
        return {"input_ids": ids, "attention_mask": mask}


def load_transformers(workload: Workload) -> Any:
    """The transformers model in float32, without tokens that end a response."""
    from transformers import AutoModelForCausalLM

    return without_end(AutoModelForCausalLM.from_pretrained(workload.model, dtype=torch.float32).eval())


def without_end(model: Any) -> Any:
    """The same model, in which ``generate`` ends at a length only."""
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def reader_matrices(workload: Workload) -> torch.Tensor:
    """``[n_checkpoints, d_model, n_traits]`` float32."""
    return torch.from_numpy(workload.readers).permute(1, 2, 0).contiguous()


def in_batches(generate: Callable[[Batch], list[Row]], workload: Workload, way: Way) -> list[Row]:
    """The rows of the workload in its own order, generated batch by batch."""
    rows: dict[int, Row] = {}
    for numbers in way.batches(workload.prompts):
        batch = Batch([workload.prompts[n] for n in numbers], [workload.lengths[n] for n in numbers])
        rows |= zip(numbers, generate(batch), strict=True)
    return [rows[number] for number in range(len(workload.prompts))]


def plainly_generated(model: Any, workload: Workload, way: Way) -> list[Row]:
    """The unit: ``generate`` with its defaults, nothing captured."""

    def generate(batch: Batch) -> list[Row]:
        with torch.inference_mode():
            sequences = model.generate(**batch.left_padded(), max_new_tokens=batch.longest_response, do_sample=False)
        return rows_without_scores(batch, sequences)

    return in_batches(generate, workload, way)


def rows_without_scores(batch: Batch, sequences: torch.Tensor) -> list[Row]:
    """Each row's own part of ``sequences``, ``[batch, longest prompt + new tokens]``."""
    responses = sequences[:, batch.longest_prompt :].tolist()
    return [Row(response[:length]) for response, length in zip(responses, batch.lengths, strict=True)]


def rows_with_scores(batch: Batch, sequences: torch.Tensor, scores: torch.Tensor) -> list[Row]:
    """Each row's own part of ``scores``, ``[checkpoints, batch, longest prompt + longest response, n_traits]``.

    Raises:
        ValueError: a position of the prompts or of the responses has no score.
    """
    longest = batch.longest_prompt
    if scores.shape[2] != longest + batch.longest_response:
        raise ValueError(f"scores of {scores.shape[2]} positions, not of {longest + batch.longest_response}")
    host = scores.numpy()
    rows = rows_without_scores(batch, sequences)
    return [
        Row(row.response_ids, host[:, number, longest - len(prompt) : longest + length])
        for number, (row, prompt, length) in enumerate(zip(rows, batch.prompts, batch.lengths, strict=True))
    ]
