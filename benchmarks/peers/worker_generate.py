"""The unit: transformers' batched ``generate`` with its defaults, nothing captured."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from batch import left_padded, load_transformers, rows_without_scores
from serving import Row, Session, serve
from workload import Workload


def load(workload: Workload) -> Session:
    model = load_transformers(workload)

    def generate(prompts: Sequence[Sequence[int]]) -> list[Row]:
        with torch.inference_mode():
            sequences = model.generate(**left_padded(prompts), max_new_tokens=workload.max_new_tokens, do_sample=False)
        return rows_without_scores(prompts, sequences, workload.max_new_tokens)

    return Session(generate, (), ("torch", "transformers"))


if __name__ == "__main__":
    serve(load)
