"""traitscope's own decode loop: scores at every checkpoint, and with them norms and the writes at a readout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from serving import Row, Session, serve
from workload import Workload

from traitscope.model.capture import ReaderBank
from traitscope.model.decode import decode
from traitscope.model.embedded import EMBEDDED_NAME
from traitscope.model.loading import load_model
from traitscope.model.sampling import Sampling


def load(workload: Workload) -> Session:
    model = replace(load_model(EMBEDDED_NAME, device="cpu", dtype="float32"), eos_token_ids=frozenset())
    n_traits, n_checkpoints, _ = workload.readers.shape
    bank = ReaderBank(
        traits=tuple(f"trait{number}" for number in range(n_traits)),
        readers=torch.from_numpy(workload.readers),
        readouts=(n_checkpoints // 2,) * n_traits,
    )

    def generate(prompts: Sequence[Sequence[int]]) -> list[Row]:
        rows = decode(
            model,
            prompts,
            max_new_tokens=workload.max_new_tokens,
            sampling=Sampling(),
            seeds=[0] * len(prompts),
            bank=bank,
        )
        return [Row(row.response_ids, row.trace.scores, row.trace.norms) for row in rows]

    return Session(generate, range(n_checkpoints), ("traitscope", "torch", "transformers"))


if __name__ == "__main__":
    serve(load)
