"""What steering does to text: yardsticks over α, beside the same doses of random directions. Writes JSON.

For each of four traits, the model answers the prompts of the dev split greedily while the state at R is pushed by
α times the median neutral norm there, along the steerer or along one of several random directions, at response
positions. ``python benchmarks/steering_text.py --out FILE``; ``traits_page.py`` makes a page of it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from traitscope.bench.machine import describe_machine
from traitscope.model.decode import decode
from traitscope.model.loading import LanguageModel, load_model
from traitscope.model.sampling import Sampling
from traitscope.model.steering import Steering
from traitscope.suite.file import BASE_TEMPLATE
from traitscope.suite.rendering import PromptStyle, render
from traitscope.suite.tokens import TokenDescriber
from traitscope.traits.scenarios import ScenarioSet, library_scenarios
from traitscope.traits.store import find_trait, vectors_for
from traitscope.traits.validation.baselines import measured, words_of
from traitscope.traits.vectors import TraitVectors

TRAITS = ("refusal", "uncertainty_calibration", "sycophancy", "cognitive_load")
ALPHAS = (-0.30, -0.15, 0.0, 0.15, 0.30)
N_RANDOM = 5
N_TOKENS = 50
BATCH = 48


@dataclass(frozen=True)
class Job:
    """One response to be written: the prompt, and what it is pushed along by how much."""

    prompt: str
    direction: str
    alpha: float
    steering: Steering | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    arguments = parser.parse_args()
    started = time.perf_counter()
    model = load_model(arguments.model)
    vectors = vectors_for(model, [find_trait(name, Path()) for name in TRAITS])
    study = {
        "machine": describe_machine(model),
        "model": model.name,
        "alphas": list(ALPHAS),
        "random_directions": N_RANDOM,
        "tokens": N_TOKENS,
        "traits": {trait.trait: studied(model, trait, library_scenarios(trait.trait)) for trait in vectors},
    }
    study["seconds"] = round(time.perf_counter() - started, 1)
    arguments.out.write_text(json.dumps(study, indent=1, ensure_ascii=False))


def studied(model: LanguageModel, vectors: TraitVectors, scenarios: ScenarioSet) -> dict[str, Any]:
    """The yardstick by direction and dose, and one example text a dose."""
    assert scenarios.yardstick is not None
    jobs = list(jobs_of(model, vectors, scenarios))
    texts = written(model, jobs)
    found: dict[str, Any] = {
        "yardstick": scenarios.yardstick.name,
        "rises": scenarios.yardstick.rises,
        "readout": vectors.readout_name,
        "prompts": len(scenarios.splits.dev),
    }
    for direction in ("steerer", "random"):
        found[direction] = {}
        for alpha in ALPHAS:
            chosen = [
                t for j, t in zip(jobs, texts, strict=True) if j.alpha == alpha and j.direction in (direction, "")
            ]
            values = [measured(scenarios.yardstick, text) for text in chosen if words_of(text)]
            found[direction][f"{alpha:+.2f}"] = {
                "texts": len(chosen),
                "empty": len(chosen) - len(values),
                "mean": round(float(np.mean(values)), 3) if values else None,
                "distinct_words": round(float(np.mean([variety(text) for text in chosen if words_of(text)])), 3),
                "prompt": jobs[0].prompt,
                "example": chosen[0],
            }
    return found


def variety(text: str) -> float:
    """Distinct words over words: falls when a text repeats itself."""
    words = words_of(text)
    return len(set(words)) / len(words)


def jobs_of(model: LanguageModel, vectors: TraitVectors, scenarios: ScenarioSet) -> Iterator[Job]:
    """Every prompt of the dev split under every dose; the dose 0 stands for all directions."""
    norm = float(vectors.calibration.norm[vectors.readout])
    directions = torch.randn(N_RANDOM, model.anatomy.d_model, generator=torch.Generator().manual_seed(1))
    directions /= directions.norm(dim=-1, keepdim=True)
    named = [("steerer", vectors.steerer[vectors.readout]), *(("random", direction) for direction in directions)]
    for pair in scenarios.splits.dev:
        for alpha in ALPHAS:
            if alpha == 0:
                yield Job(pair.prompt, "", 0.0, None)
                continue
            for name, direction in named:
                push = {vectors.readout_layer: alpha * norm * direction}
                yield Job(pair.prompt, name, alpha, Steering(push, "response"))


def written(model: LanguageModel, jobs: Sequence[Job]) -> list[str]:
    """Greedy responses."""
    style = PromptStyle(None, {}, BASE_TEMPLATE)
    describer = TokenDescriber(model.tokenizer)
    texts = []
    for start in range(0, len(jobs), BATCH):
        batch = jobs[start : start + BATCH]
        prompts = [render(model.tokenizer, [{"role": "user", "content": job.prompt}], style) for job in batch]
        rows = decode(
            model,
            [prompt.token_ids for prompt in prompts],
            max_new_tokens=N_TOKENS,
            sampling=Sampling(),
            seeds=[0] * len(batch),
            steering=[job.steering for job in batch],
        )
        texts += [describer.response_text(row.response_ids) for row in rows]
        print(f"{len(texts)} of {len(jobs)} texts", flush=True)
    return texts


if __name__ == "__main__":
    main()
