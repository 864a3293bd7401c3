"""transformers with ``output_hidden_states``: generate, keep all hidden states, project them afterwards.

It has no states between attention and MLP, and its last hidden states are those after the final norm: 30 of
the 61 checkpoints of the reference night. One token more than asked for is generated, so that the last one
asked for is read as well.
"""

from __future__ import annotations

from functools import partial

import torch
from batch import Batch, in_batches, load_transformers, reader_matrices, rows_with_scores
from serving import Row, Session, serve
from workload import Workload


def load(workload: Workload) -> Session:
    model = load_transformers(workload)
    checkpoints = range(0, len(workload.checkpoints) - 1, 2)
    readers = reader_matrices(workload)[checkpoints.start : checkpoints.stop : checkpoints.step]

    def generate(batch: Batch) -> list[Row]:
        with torch.inference_mode():
            output = model.generate(
                **batch.left_padded(),
                max_new_tokens=batch.longest_response + 1,
                do_sample=False,
                output_hidden_states=True,
                return_dict_in_generate=True,
            )
            layers = list(zip(*output.hidden_states, strict=True))[:-1]
            scores = torch.stack([torch.cat(steps, dim=1) @ r for steps, r in zip(layers, readers, strict=True)])
        return rows_with_scores(batch, output.sequences, scores)

    return Session(partial(in_batches, generate), list(checkpoints), ("torch", "transformers"))


if __name__ == "__main__":
    serve(load)
