"""traitscope's side: the embedded model without tokens that end a response, and its decode loop on a workload."""

from __future__ import annotations

from dataclasses import replace

import torch
from workload import Workload

from traitscope.model.capture import ReaderBank
from traitscope.model.decode import Decoded, decode
from traitscope.model.embedded import EMBEDDED_NAME
from traitscope.model.loading import LanguageModel, load_model
from traitscope.model.sampling import Sampling


def load_own(dtype: str = "float32") -> LanguageModel:
    """The embedded model on the CPU."""
    return replace(load_model(EMBEDDED_NAME, device="cpu", dtype=dtype), eos_token_ids=frozenset())


def bank_of(workload: Workload) -> ReaderBank:
    """The workload's readers, with a readout in the middle."""
    n_traits, n_checkpoints, _ = workload.readers.shape
    return ReaderBank(
        traits=tuple(f"trait{number}" for number in range(n_traits)),
        readers=torch.from_numpy(workload.readers),
        readouts=(n_checkpoints // 2,) * n_traits,
    )


def decoded(model: LanguageModel, workload: Workload, width: int, bank: ReaderBank | None) -> list[Decoded]:
    """The rows of the workload, ``width`` of them in flight; without a bank nothing is captured."""
    return decode(
        model,
        workload.prompts,
        max_new_tokens=workload.lengths,
        sampling=Sampling(),
        seeds=[0] * len(workload.prompts),
        bank=bank,
        width=width,
    )
