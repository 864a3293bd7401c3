"""Choosing the next token: greedily, or by inverse-CDF sampling with randomness that belongs to the row."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Sampling:
    """How next tokens are chosen. ``temperature`` 0 is greedy; ``top_p`` 1 and ``top_k`` 0 keep all tokens."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


def row_seed(suite_seed: int, prompt_token_ids: Sequence[int], sample: int) -> int:
    """The 64-bit seed of one row: it depends on nothing but its prompt, its sample number and the suite's seed."""
    message = f"{suite_seed}|{sample}|{','.join(map(str, prompt_token_ids))}"
    return int.from_bytes(hashlib.sha256(message.encode()).digest()[:8], "little")


def row_uniforms(seed: int, n_steps: int) -> np.ndarray:
    """``[n_steps]`` float64 in [0, 1): one number per step; a longer draw begins with the shorter one."""
    return np.random.Generator(np.random.Philox(seed)).random(n_steps)


class TokenChooser:
    """Next tokens for a batch of rows, and their log-probabilities before any processing."""

    def __init__(self, sampling: Sampling, seeds: Sequence[int], n_steps: int, device: torch.device) -> None:
        self._sampling = sampling
        self._processors = _processors(sampling)
        self._uniforms = None
        if not sampling.greedy:
            uniforms = np.stack([row_uniforms(seed, n_steps) for seed in seeds])
            self._uniforms = torch.from_numpy(uniforms).to(device, _cdf_dtype(device))

    def choose(
        self, logits: torch.Tensor, rows: torch.Tensor, steps: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens ``[batch]`` int64 and log-probabilities ``[batch]`` float32 from logits ``[batch, vocab]``.

        ``rows`` ``[batch]`` int64 says which of the chooser's rows each logit row belongs to, ``steps`` ``[batch]``
        int64 how many tokens were chosen for it before. The log-probability is that of the unprocessed logits at
        temperature 1.
        """
        logits = logits.float()
        if self._uniforms is None:
            chosen, tokens = logits.max(dim=-1)  # the first of equal ones, as argmax, in a third of its time on a CPU
        else:
            within = steps.clamp_max(self._uniforms.shape[1] - 1)  # a row that has ended may be chosen for once more
            tokens = inverse_cdf(self._process(logits), self._uniforms[rows, within])
            chosen = logits.gather(-1, tokens[:, None])[:, 0]
        return tokens, chosen - logits.logsumexp(dim=-1)

    def _process(self, logits: torch.Tensor) -> torch.Tensor:
        no_ids = torch.empty((logits.shape[0], 0), dtype=torch.long, device=logits.device)
        for processor in self._processors:
            logits = processor(no_ids, logits)
        return logits


def _processors(sampling: Sampling) -> list:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    if sampling.greedy:
        return []
    processors: list = [TemperatureLogitsWarper(float(sampling.temperature))]
    if sampling.top_k > 0:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(float(sampling.top_p)))
    return processors


def _cdf_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # mps has no float64


def inverse_cdf(logits: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Sample tokens ``[batch]`` from logits ``[batch, vocab]`` by inverting the CDF in order of token id.

    ``uniforms`` is ``[batch]`` in [0, 1). A token of probability zero is never chosen.
    """
    cdf = logits.softmax(dim=-1).to(uniforms.dtype).cumsum(dim=-1)
    total = cdf[:, -1:]
    below_total = torch.nextafter(total, torch.zeros_like(total))
    targets = torch.minimum(uniforms[:, None] * total, below_total)
    return torch.searchsorted(cdf, targets, right=True)[:, 0]
