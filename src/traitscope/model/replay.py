"""One teacher-forced pass over token ids that exist already: unpadded, uncached."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from traitscope.model.capture import ReaderBank, Trace, capturing
from traitscope.model.decode import Decoded
from traitscope.model.loading import LanguageModel
from traitscope.model.watch import watch


def replay(model: LanguageModel, token_ids: Sequence[int], *, logits_from: int | None = None) -> np.ndarray:
    """Run the model once over ``token_ids``; hooks that are in place see every position.

    Returns the log-probabilities ``[len(token_ids) - logits_from]`` float32 of the tokens from position
    ``logits_from`` on, each given those before it (an empty array for None).
    """
    n_logits = 0 if logits_from is None else len(token_ids) - logits_from
    input_ids = torch.tensor([list(token_ids)], dtype=torch.long, device=model.device)
    with torch.inference_mode():
        output = model.forward(input_ids=input_ids, use_cache=False, logits_to_keep=n_logits + 1)
        if n_logits == 0:
            return np.zeros(0, dtype=np.float32)
        logits = output.logits[0, -n_logits - 1 : -1].float()
        chosen = logits.gather(-1, input_ids[0, logits_from:, None])[:, 0]
        return (chosen - logits.logsumexp(dim=-1)).cpu().numpy()


def replay_scores(
    model: LanguageModel, prompt_ids: Sequence[int], response_ids: Sequence[int], bank: ReaderBank
) -> Decoded:
    """What ``decode`` would have captured, had it generated ``response_ids``."""
    with capturing(model.module, model.anatomy, bank, model.device) as capture:
        logprobs = replay(model, [*prompt_ids, *response_ids], logits_from=len(prompt_ids))
        trace = Trace.from_columns(capture.take().cpu().numpy())
    return Decoded(list(response_ids), logprobs, trace)


def replay_pooled(model: LanguageModel, token_ids: Sequence[int], keep: np.ndarray) -> torch.Tensor:
    """The mean state over the positions where ``keep`` ``[seq]`` is true: ``[n_checkpoints, d_model]`` float32.

    Raises:
        ValueError: ``keep`` is nowhere true.
    """
    if not keep.any():
        raise ValueError("no position to pool over")
    positions = torch.from_numpy(np.flatnonzero(keep)).to(model.device)
    means: list[torch.Tensor] = []

    def observe(_checkpoint: int, state: torch.Tensor) -> None:
        means.append(state[positions].float().mean(dim=0).cpu())

    with watch(model.module, model.anatomy, observe):
        replay(model, token_ids)
    return torch.stack(means)
