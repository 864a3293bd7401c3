"""What narrower numbers cost and save: time of decoding and error of scores, on the reference night's prompts.

``precision.py [--rounds N] [--precisions ...] [--tokens N] [--errors-only | --times-only] [--write]``

Time: every precision decodes the twenty prompts with capture, and transformers' ``generate`` in the same precision
beside it, in turn; ratios are paired by round. Error: the tokens that float32 generated are replayed in every precision
and scored with the same vectors, those that were fitted in float32, so nothing but the states differs. ``--write`` puts
the tables into docs/performance.md between their marks.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from traitscope.bench.contenders import Grouping, batched_generate, ours
from traitscope.bench.statistics import Spread, ratios_by_round, spread_of
from traitscope.bench.workload import load_workload
from traitscope.model.capture import ReaderBank
from traitscope.model.decode import decode
from traitscope.model.facts import facts_of_module
from traitscope.model.loading import LanguageModel, load_model
from traitscope.model.replay import replay_scores
from traitscope.model.sampling import Sampling
from traitscope.run.engine import GenerationTask
from traitscope.run.frozen import provisional_tasks
from traitscope.run.prepare import prepare
from traitscope.traits.store import bank_of, find_trait, vectors_for
from traitscope.traits.vectors import TraitVectors

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
TRAITS = ("uncertainty_calibration", "commitment_strength", "cognitive_load", "sycophancy")
PRECISIONS = {
    "float32": ("float32", None),
    "bfloat16": ("bfloat16", None),
    "torchao-int8": ("float32", "torchao-int8"),
    "bnb-8bit": ("float32", "bnb-8bit"),
    "bnb-4bit": ("float32", "bnb-4bit"),
}
"""Dtype and kind of quantised weights. What is quantised computes in float32, as ``auto`` does on a CPU."""


@dataclass(frozen=True)
class Texts:
    """What float32 generated: token ids of prompts and responses, and its trace at every trait's R."""

    prompts: list[list[int]]
    responses: list[list[int]]
    z: np.ndarray
    """``[n_traits, response tokens of all texts]``."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--tokens", type=int, default=50)
    arguments.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    arguments.add_argument("--errors-only", action="store_true")
    arguments.add_argument("--times-only", action="store_true")
    arguments.add_argument("--write", action="store_true", help="Put the tables into docs/performance.md.")
    given = arguments.parse_args()
    names = ["float32", *(name for name in given.precisions if name != "float32")]
    models = {name: load_model(device="cpu", dtype=PRECISIONS[name][0], quantize=PRECISIONS[name][1]) for name in names}
    tasks = _tasks(given.tokens)
    vectors = vectors_for(models["float32"], [find_trait(name, Path()) for name in TRAITS])
    if not given.times_only:
        _publish("precision-errors", _error_table(models, tasks, vectors), given.write)
    if not given.errors_only:
        _publish("precision-times", _time_table(models, tasks, bank_of(vectors), given.rounds), given.write)


def _tasks(n_tokens: int) -> list[GenerationTask]:
    loaded = load_workload("reference").with_overrides(model=None, max_new_tokens=n_tokens)
    return provisional_tasks(prepare(loaded, device="cpu").plan, n_layers=30)


def _error_table(
    models: dict[str, LanguageModel], tasks: Sequence[GenerationTask], vectors: Sequence[TraitVectors]
) -> str:
    texts = _generated(models["float32"], tasks, vectors)
    lines = [
        "| | trait | median | 95 % | 99 % | worst | along the response, r | tokens that would change |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, model in models.items():
        if name == "float32":
            continue
        z = _z(model, texts.prompts, texts.responses, vectors)
        changed = _changed_choices(model, texts)
        for trait, found, true in zip(vectors, z, texts.z, strict=True):
            off = np.abs(found - true)
            figures = " | ".join(f"{value:.3f}" for value in (*np.quantile(off, [0.5, 0.95, 0.99]), off.max()))
            along = np.median(_correlations(found, true, [len(response) for response in texts.responses]))
            lines.append(f"| {name} | {trait.trait} | {figures} | {along:.4f} | {changed:.1%} |")
    n_tokens = texts.z.shape[1]
    spread = ", ".join(f"{t.trait} {true.std():.2f}" for t, true in zip(vectors, texts.z, strict=True))
    lines.append(
        f"\n|Δz| at R of {n_tokens} response tokens of {len(texts.prompts)} texts. Spread of z over them: {spread}."
    )
    return "\n".join(lines)


def _generated(model: LanguageModel, tasks: Sequence[GenerationTask], vectors: Sequence[TraitVectors]) -> Texts:
    prompts = [list(task.prompt.token_ids) for task in tasks]
    rows = decode(
        model, prompts, max_new_tokens=tasks[0].max_new_tokens, sampling=Sampling(), seeds=[0] * len(tasks), bank=None
    )
    responses = [list(row.response_ids) for row in rows]
    return Texts(prompts, responses, _z(model, prompts, responses, vectors))


def _z(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    vectors: Sequence[TraitVectors],
) -> np.ndarray:
    """z of every response token at each trait's R: ``[n_traits, tokens]``."""
    found = []
    for prompt, response in zip(prompts, responses, strict=True):
        scores = replay_scores(model, prompt, response, bank_of(vectors)).trace.scores[:, len(prompt) :]
        found.append([_standardised(vector, scores[vector.readout, :, n]) for n, vector in enumerate(vectors)])
    return np.concatenate([np.stack(each) for each in found], axis=1)


def _standardised(vector: TraitVectors, scores: np.ndarray) -> np.ndarray:
    calibration, at = vector.calibration, vector.readout
    return (scores - float(calibration.mean["response_token"][at])) / float(calibration.std["response_token"][at])


def _correlations(found: np.ndarray, true: np.ndarray, lengths: Sequence[int]) -> list[float]:
    """Of each response of more than two tokens."""
    ends = np.cumsum(lengths)
    parts = [slice(end - n, end) for end, n in zip(ends, lengths, strict=True) if n > 2]
    return [float(np.corrcoef(found[part], true[part])[0, 1]) for part in parts]


def _changed_choices(model: LanguageModel, texts: Texts) -> float:
    """The share of greedy choices that would be others, each given float32's tokens before it."""
    changed = [
        token != best
        for prompt, response in zip(texts.prompts, texts.responses, strict=True)
        for token, best in zip(response, _best_tokens(model, [*prompt, *response], len(prompt)), strict=True)
    ]
    return float(np.mean(changed))


def _best_tokens(model: LanguageModel, token_ids: Sequence[int], n_prompt: int) -> list[int]:
    ids = torch.tensor([list(token_ids)], device=model.device)
    with torch.inference_mode():
        logits = model.forward(input_ids=ids, use_cache=False, logits_to_keep=len(token_ids) - n_prompt + 1).logits
    return logits[0, -(len(token_ids) - n_prompt) - 1 : -1].argmax(dim=-1).tolist()


def _time_table(
    models: dict[str, LanguageModel], tasks: Sequence[GenerationTask], bank: ReaderBank, rounds: int
) -> str:
    ours_seconds: dict[str, list[float]] = {name: [] for name in models}
    plain_seconds: dict[str, list[float]] = {name: [] for name in models}
    for number in range(rounds + 1):
        order = list(models) if number % 2 else list(reversed(models))
        for name in order:
            mine = ours(models[name], tasks, len(tasks), bank=bank, n_whole=len(tasks)).seconds
            plain = batched_generate(models[name], tasks, Grouping(len(tasks), False), n_whole=len(tasks)).seconds
            if number:  # the first round warms up
                ours_seconds[name].append(mine)
                plain_seconds[name].append(plain)
    lines = [
        "| | weights | seconds | float32 = 1 | `generate` in the same precision = 1 |",
        "|---|---|---|---|---|",
    ]
    for name, model in models.items():
        mine = ours_seconds[name]
        n_bytes = facts_of_module(model.module).weight_bytes(model.dtype.itemsize)
        to_float32 = _shown(ratios_by_round(mine, ours_seconds["float32"]))
        to_plain = _shown(ratios_by_round(mine, plain_seconds[name]))
        lines.append(f"| {name} | {n_bytes / 1e6:.0f} MB | {spread_of(mine).median:.2f} | {to_float32} | {to_plain} |")
    n_tokens, n_threads = tasks[0].max_new_tokens, torch.get_num_threads()
    lines.append(
        f"\nDecoding with capture of {len(bank.traits)} traits, {len(tasks)} prompts × {n_tokens} tokens in one batch, "
        f"{n_threads} thread{'s' * (n_threads > 1)}; medians of {rounds} rounds in turn, smallest and largest in "
        "brackets."
    )
    return "\n".join(lines)


def _shown(spread: Spread) -> str:
    return f"{spread.median:.2f} ({spread.low:.2f} to {spread.high:.2f})"


def _publish(name: str, table: str, write: bool) -> None:
    print(table, flush=True)
    if not write:
        return
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = PAGE.read_text().partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{PAGE}: no marks {begin} and {end}")
    PAGE.write_text(f"{before}{begin}\n{table}\n{end}{after}")


if __name__ == "__main__":
    main()
