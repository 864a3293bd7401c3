"""What the contenders on top of transformers' ``generate`` share: the model, the padded batch, its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from serving import Row
from workload import Workload


def load_transformers(workload: Workload) -> Any:
    """The transformers model in float32, without tokens that end a response."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(workload.model, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def reader_matrices(workload: Workload) -> torch.Tensor:
    """``[n_checkpoints, d_model, n_traits]`` float32."""
    return torch.from_numpy(workload.readers).permute(1, 2, 0).contiguous()


def left_padded(prompts: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    """``input_ids`` and ``attention_mask``, both ``[batch, longest]`` int64."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return {"input_ids": ids, "attention_mask": mask}


def rows_without_scores(prompts: Sequence[Sequence[int]], sequences: torch.Tensor, n_response: int) -> list[Row]:
    """The responses in ``sequences``, ``[batch, longest + new tokens]``."""
    longest = max(len(prompt) for prompt in prompts)
    return [Row(ids) for ids in sequences[:, longest : longest + n_response].tolist()]


def rows_with_scores(
    prompts: Sequence[Sequence[int]], sequences: torch.Tensor, scores: torch.Tensor, n_response: int
) -> list[Row]:
    """Each row's own part of ``scores``, ``[checkpoints, batch, longest + response, n_traits]``.

    Raises:
        ValueError: a position of the prompts or of the responses has no score.
    """
    longest = max(len(prompt) for prompt in prompts)
    if scores.shape[2] != longest + n_response:
        raise ValueError(f"scores of {scores.shape[2]} positions, not of {longest + n_response}")
    host = scores.numpy()
    rows = rows_without_scores(prompts, sequences, n_response)
    return [
        Row(row.response_ids, host[:, number, longest - len(prompt) :])
        for number, (row, prompt) in enumerate(zip(rows, prompts, strict=True))
    ]
