"""nnsight: one trace around ``generate``, projecting at every checkpoint of every step inside it.

One token more than asked for is generated, so that the last one asked for is read as well.
"""

from __future__ import annotations

from functools import partial

import nnsight
import torch
from batch import Batch, in_batches, load_transformers, reader_matrices, rows_with_scores
from nnsight import TransformersModel
from serving import Row, Session, serve
from transformers import AutoTokenizer
from workload import Workload


def load(workload: Workload) -> Session:
    tokenizer = AutoTokenizer.from_pretrained(workload.tokenizer)
    model = TransformersModel(load_transformers(workload), tokenizer=tokenizer, task="text-generation")
    readers = list(reader_matrices(workload))

    def generate(batch: Batch) -> list[Row]:
        layers = model.model.layers
        n_steps = batch.longest_response + 1
        with (
            torch.inference_mode(),
            model.generate(batch.left_padded(), max_new_tokens=n_steps, do_sample=False) as tracer,
        ):
            steps = nnsight.save([])
            for _ in tracer.iter[:n_steps]:
                scores = [layers[0].input @ readers[0]]
                for number, layer in enumerate(layers):
                    scores.append(layer.post_attention_layernorm.input @ readers[2 * number + 1])
                    scores.append(layer.output @ readers[2 * number + 2])
                steps.append(torch.stack(scores))
            sequences = nnsight.save(tracer.result)
        return rows_with_scores(batch, sequences, torch.cat(steps, dim=2))

    return Session(partial(in_batches, generate), range(len(readers)), ("nnsight", "torch", "transformers"))


if __name__ == "__main__":
    serve(load)
