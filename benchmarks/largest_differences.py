"""Prints the table of docs/accuracy.md: how far captured numbers are from independent passes, per architecture.

``largest_differences.py MODEL ARCHITECTURE`` prints the row of one more model, e.g. ``./gemma.gguf gemma3``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from independent import independent_logprobs, independent_states
from tiny_models import CONFIGS, VOCAB, tiny_model, tiny_tokenizer
from traitscope.model.capture import ReaderBank
from traitscope.model.decode import Decoded, decode
from traitscope.model.loading import LanguageModel, load_model
from traitscope.model.sampling import Sampling
from traitscope.suite.file import BASE_TEMPLATE
from traitscope.suite.rendering import PromptStyle, render

WIDTHS = (1, 3, 8)
LENGTHS = (1, 17, 4, 9, 2, 13, 8, 6)
TEXTS = (
    "What is the capital of France?",
    "Hi",
    "Name three rivers and say where each of them ends.",
    "What is 127 + 384?",
    "Write a poem about the sea.",
    "Why?",
    "Tell me definitively: is the earth round or flat?",
    "How does gravity work?",
)


def main() -> None:
    if len(sys.argv) == 3:
        print(real_row(sys.argv[1], sys.argv[2]))
        return
    print("| model | tokens equal | score | norm | writes | logprob |\n|---|---|---|---|---|---|")
    random = np.random.default_rng(0)
    prompts = [random.integers(45, VOCAB, size=length).tolist() for length in LENGTHS]
    for architecture in CONFIGS:
        model = load_model(tiny_model(architecture), tiny_tokenizer())
        print(row(f"tiny {architecture}", architecture, ending_early(model, prompts), prompts, 12), flush=True)
    print(real_row("smollm2-135m", "llama"))


def real_row(name: str, architecture: str) -> str:
    model = load_model(name, device="cpu", dtype="float32")
    style = PromptStyle(None, {}, BASE_TEMPLATE)
    prompts = [render(model.tokenizer, [{"role": "user", "content": text}], style).token_ids for text in TEXTS]
    return row(Path(name).name, architecture, model, prompts, 50)


def ending_early(model: LanguageModel, prompts: Sequence[Sequence[int]]) -> LanguageModel:
    """The model with end-of-sequence ids that some of its responses meet."""
    endless = replace(model, eos_token_ids=frozenset())
    rows = decode(endless, prompts, max_new_tokens=12, sampling=Sampling(), seeds=[0] * len(prompts))
    ids = {row.response_ids[step] for row, step in zip(rows[::3], (2, 5, 8), strict=True)}
    return replace(model, eos_token_ids=frozenset(ids))


def row(name: str, architecture: str, model: LanguageModel, prompts: Sequence[Sequence[int]], n_tokens: int) -> str:
    bank = random_bank(model)
    expected = [generated(model, prompt, n_tokens) for prompt in prompts]
    n_equal, worst = 0, np.zeros(4)
    for width in WIDTHS:
        for start in range(0, len(prompts), width):
            batch = prompts[start : start + width]
            rows = decode(model, batch, max_new_tokens=n_tokens, sampling=Sampling(), seeds=[0] * len(batch), bank=bank)
            for number, (prompt, found) in enumerate(zip(batch, rows, strict=True), start=start):
                n_equal += found.response_ids == expected[number]
                worst = np.fmax(worst, differences(model, architecture, prompt, found, bank))
    figures = " | ".join(f"{value:.1e}" for value in worst)
    return f"| {name} | {n_equal} of {len(WIDTHS) * len(prompts)} | {figures} |"


def random_bank(model: LanguageModel, n_traits: int = 4) -> ReaderBank:
    n_checkpoints = len(model.anatomy.checkpoints)
    generator = torch.Generator().manual_seed(0)
    readers = torch.randn(n_traits, n_checkpoints, model.anatomy.d_model, generator=generator)
    readouts = tuple(max(1, n_checkpoints - 1 - trait) for trait in range(n_traits))
    names = tuple(f"trait{trait}" for trait in range(n_traits))
    return ReaderBank(names, torch.nn.functional.normalize(readers, dim=-1), readouts)


def generated(model: LanguageModel, prompt: Sequence[int], n_tokens: int) -> list[int]:
    ids = torch.tensor([list(prompt)])
    output = model.module.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=n_tokens,
        eos_token_id=sorted(model.eos_token_ids),
        pad_token_id=0,
    )
    return output[0, len(prompt) :].tolist()


def differences(
    model: LanguageModel, architecture: str, prompt: Sequence[int], found: Decoded, bank: ReaderBank
) -> np.ndarray:
    """Largest differences of scores, norms, writes and log-probabilities of one generation."""
    trace = found.trace
    assert trace is not None
    ids = [*prompt, *found.response_ids]
    score = norm = 0.0
    for checkpoint, state in enumerate(independent_states(model.module, architecture, ids).values()):
        true_norms = state.double().norm(dim=-1).numpy()
        norms = np.fmax(true_norms, 1e-30)  # a padding token's embedding is zero
        expected = (state.double() @ bank.readers[:, checkpoint].double().T).numpy()
        score = max(score, float((np.abs(trace.scores[checkpoint] - expected) / norms[:, None]).max()))
        norm = max(norm, float((np.abs(trace.norms[checkpoint] - true_norms) / norms).max()))
    writes = trace.writes().astype(np.float64)
    gaps = []
    for trait, readout in enumerate(bank.readouts):
        upto = writes[: readout + 1, :, trait]
        sizes = np.fmax(np.abs(upto).sum(axis=0), 1e-30)
        gaps.append((np.abs(upto.sum(axis=0) - trace.scores[readout, :, trait]) / sizes).max())
    logprobs = independent_logprobs(model.module, ids, len(prompt)).numpy()
    return np.array([score, norm, max(gaps), np.abs(found.logprobs - logprobs).max()])


if __name__ == "__main__":
    main()
