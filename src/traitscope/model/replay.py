"""One teacher-forced pass over token ids that exist already: unpadded, uncached."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
import torch

from traitscope.model.capture import ReaderBank, Trace, capturing
from traitscope.model.decode import Decoded
from traitscope.model.kv_cache import KeysAndValues, begin_branches, can_share, keys_and_values, new_cache
from traitscope.model.loading import LanguageModel
from traitscope.model.steering import Pushes, Steering, pushing, steered_pass, steers_prompt
from traitscope.model.watch import watch

_MOST_LOGITS = 64_000_000
"""Logits held at once, so that they stay below 256 MB in float32."""


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


def steered(
    model: LanguageModel, steering: Steering | None, n_prompt: int, n_tokens: int
) -> AbstractContextManager[None]:
    """Replays of one text inside the block are pushed as its generation was; enter it before anything that reads."""
    return steered_pass(model.module, model.anatomy, steering, model.device, n_prompt=n_prompt, n_tokens=n_tokens)


def replay_scores(
    model: LanguageModel,
    prompt_ids: Sequence[int],
    response_ids: Sequence[int],
    bank: ReaderBank,
    steering: Steering | None = None,
) -> Decoded:
    """What ``decode`` would have captured, had it generated ``response_ids``."""
    token_ids = [*prompt_ids, *response_ids]
    with (
        steered(model, steering, len(prompt_ids), len(token_ids)),
        capturing(model.module, model.anatomy, bank, model.device) as capture,
    ):
        logprobs = replay(model, token_ids, logits_from=len(prompt_ids))
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


def replay_steered_logprobs(
    model: LanguageModel,
    prompt_ids: Sequence[int],
    response_ids: Sequence[int],
    steerings: Sequence[Steering | None],
) -> np.ndarray:
    """Log-probabilities of the same response under several steerings ``[n_steerings, n_response]`` float32.

    Where only responses are pushed, the prompt is read once for all, and so are the layers in front of the first push.
    """
    rows = []
    width = max(1, _MOST_LOGITS // (len(response_ids) * int(model.module.config.get_text_config().vocab_size)))
    with torch.inference_mode(), model.linears.in_use():
        prompt = None
        if can_share(model) and not steers_prompt(steerings):
            prompt = _read_prompt(model, prompt_ids)
        for start in range(0, len(steerings), width):
            chunk = steerings[start : start + width]
            with pushing(model.module, model.anatomy, chunk, model.device) as pushes:
                logits = _response_logits(model, prompt_ids, response_ids, len(chunk), pushes, prompt)
            chosen = torch.tensor(list(response_ids), device=model.device)
            logprobs = logits.gather(-1, chosen.expand(len(chunk), -1)[..., None])[..., 0] - logits.logsumexp(dim=-1)
            rows.append(logprobs.cpu().numpy())
    return np.concatenate(rows)


class _ReadPrompt(NamedTuple):
    states: KeysAndValues
    last_logits: torch.Tensor


def _read_prompt(model: LanguageModel, prompt_ids: Sequence[int]) -> _ReadPrompt:
    cache = new_cache(model, len(prompt_ids))
    input_ids = torch.tensor([list(prompt_ids)], dtype=torch.long, device=model.device)
    output = model.forward(input_ids=input_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return _ReadPrompt(keys_and_values(cache), output.logits[:, -1].float())


def _response_logits(
    model: LanguageModel,
    prompt_ids: Sequence[int],
    response_ids: Sequence[int],
    n_rows: int,
    pushes: Pushes | None,
    prompt: _ReadPrompt | None,
) -> torch.Tensor:
    """``[n_rows, n_response, vocab]`` float32: what the model expects at each response token."""
    n_prompt, n_response = len(prompt_ids), len(response_ids)
    if prompt is None:
        input_ids = torch.tensor([[*prompt_ids, *response_ids]], device=model.device).expand(n_rows, -1)
        if pushes is not None:
            pushes.whole(n_prompt, n_prompt + n_response)
        output = model.forward(input_ids=input_ids, use_cache=False, logits_to_keep=n_response + 1)
        return output.logits[:, :-1].float()
    first = prompt.last_logits.expand(n_rows, -1)[:, None]
    if n_response == 1:
        return first
    n_fed, last_common = n_rows, -1
    if pushes is not None:
        pushes.responses(range(n_rows), n_response - 1)
        if _broadcasts(model):
            n_fed, last_common = 1, pushes.layers[0]
    cache = new_cache(model, n_prompt + n_response)
    begin_branches(cache, prompt.states, n_rows, last_common)
    input_ids = torch.tensor([list(response_ids[:-1])], device=model.device).expand(n_fed, -1)
    positions = torch.arange(n_prompt, n_prompt + n_response - 1, device=model.device)
    output = model.forward(
        input_ids=input_ids,
        attention_mask=torch.ones(n_fed, n_prompt + n_response - 1, dtype=torch.long, device=model.device),
        position_ids=positions.expand(n_fed, -1),
        past_key_values=cache,
        use_cache=True,
    )
    return torch.cat([first, output.logits.float()], dim=1)


def _broadcasts(model: LanguageModel) -> bool:
    """Whether one row may become several between two layers: torch's own attention broadcasts masks and positions."""
    return getattr(model.module.config.get_text_config(), "_attn_implementation", None) == "sdpa"
