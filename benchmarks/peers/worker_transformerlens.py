"""TransformerLens: its bridge around the transformers model, a hook that projects at every checkpoint.

``hf_generate`` is the faster of the bridge's two batched ways to generate: ``generate`` computes the logits of
all prompt positions. One token more than asked for is generated, so that the last one asked for is read as
well.
"""

from __future__ import annotations

from functools import partial

import torch
from batch import Batch, in_batches, load_transformers, reader_matrices, rows_with_scores
from serving import Row, Session, serve
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer
from workload import Workload

_OFFICIAL_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"  # only names the model; nothing is downloaded


def load(workload: Workload) -> Session:
    bridge = TransformerBridge.boot_transformers(
        _OFFICIAL_NAME,
        hf_model=load_transformers(workload),
        tokenizer=AutoTokenizer.from_pretrained(workload.tokenizer),
        device="cpu",
        dtype=torch.float32,
    )
    readers = list(reader_matrices(workload))
    hook_names = [_hook_name(checkpoint) for checkpoint in workload.checkpoints]

    def generate(batch: Batch) -> list[Row]:
        scores: list[torch.Tensor] = []

        def project(state: torch.Tensor, hook: object, reader: torch.Tensor) -> None:
            scores.append(state @ reader)

        hooks = [(name, partial(project, reader=reader)) for name, reader in zip(hook_names, readers, strict=True)]
        padded = batch.left_padded()
        with torch.inference_mode(), bridge.hooks(fwd_hooks=hooks):
            sequences = bridge.hf_generate(
                padded["input_ids"],
                attention_mask=padded["attention_mask"],
                max_new_tokens=batch.longest_response + 1,
                stop_at_eos=False,
                do_sample=False,
                return_type="tokens",
            )
        of_checkpoint = [torch.cat(scores[index :: len(readers)], dim=1) for index in range(len(readers))]
        return rows_with_scores(batch, sequences, torch.stack(of_checkpoint))

    return Session(partial(in_batches, generate), range(len(readers)), ("transformer-lens", "torch", "transformers"))


def _hook_name(checkpoint: str) -> str:
    site, layer = checkpoint.split(".")
    return f"blocks.{layer}.hook_{site}"


if __name__ == "__main__":
    serve(load)
