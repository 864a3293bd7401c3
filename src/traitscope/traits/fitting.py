"""Fitting the vectors of several traits on one model."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from traitscope.analysis.effect_size import auroc
from traitscope.errors import RunError
from traitscope.model.capture import ReaderBank
from traitscope.model.loading import LanguageModel
from traitscope.suite.file import BASE_TEMPLATE
from traitscope.suite.rendering import PromptStyle, has_chat_template
from traitscope.traits.calibration import calibrate
from traitscope.traits.counting import Counter, OnProgress, no_progress
from traitscope.traits.methods import METHODS, Method, energy_of_two, without
from traitscope.traits.options import DEFAULTS, FitOptions
from traitscope.traits.pooling import PooledPairs, pool_pairs
from traitscope.traits.readout import choose_readout
from traitscope.traits.scenarios import NeutralPrompts, ScenarioSet, load_neutral
from traitscope.traits.vectors import Calibration, TraitVectors, VectorOrigin


def fit_traits(
    model: LanguageModel,
    scenario_sets: Sequence[ScenarioSet],
    *,
    options: FitOptions = DEFAULTS,
    neutral: NeutralPrompts | None = None,
    base_template: str = BASE_TEMPLATE,
    on_progress: OnProgress = no_progress,
) -> list[TraitVectors]:
    """Fit reader, steerer, readout and calibration of each trait.

    Readers and steerers are fitted on the train split, at every checkpoint. The readout is chosen by the linear
    discriminant whatever the reader's method, so that methods are compared at one place. The dev split is scored once
    for the record; the test split is not read.

    Raises:
        RunError: states are not finite, or the two poles of a trait cannot be told apart.
    """
    neutral = neutral or load_neutral()
    style = PromptStyle(system=None, template={}, base_template=base_template)
    n_texts = sum(2 * (len(s.splits.train) + len(s.splits.dev)) for s in scenario_sets)
    count = Counter(on_progress, "fitting vectors", n_texts + len(neutral.prompts))
    drafts = [_draft(model, scenarios, options, style, count) for scenarios in scenario_sets]
    bank = ReaderBank(
        tuple(scenarios.name for scenarios in scenario_sets),
        torch.stack([draft.reader for draft in drafts]),
        tuple(draft.readout for draft in drafts),
    )
    calibrations = calibrate(model, bank, neutral, style, count)
    return [
        _finished(model, scenarios, options, neutral, base_template, draft, calibration)
        for scenarios, draft, calibration in zip(scenario_sets, drafts, calibrations, strict=True)
    ]


class _Draft:
    """A trait's directions before calibration."""

    def __init__(self, reader: np.ndarray, steerer: np.ndarray, readout: int, card: dict[str, Any]) -> None:
        self.reader = torch.from_numpy(reader.astype(np.float32))
        self.steerer = torch.from_numpy(steerer.astype(np.float32))
        self.readout = readout
        self.card = card


def _draft(
    model: LanguageModel, scenarios: ScenarioSet, options: FitOptions, style: PromptStyle, count: Callable[[], None]
) -> _Draft:
    train = pool_pairs(model, scenarios.splits.train, style, count, options.pooling)
    checkpoints = model.anatomy.checkpoints
    try:
        reader = _at_each_checkpoint(METHODS[options.reader], train)
        steerer = _at_each_checkpoint(METHODS[options.steerer], train)
        if options.avoided:
            reader = without(reader, np.stack([vectors.reader.numpy() for vectors in options.avoided]))
            steerer = without(steerer, np.stack([vectors.steerer.numpy() for vectors in options.avoided]))
    except ValueError as error:
        raise RunError(f"trait {scenarios.name} cannot be fitted: {error}") from None
    readout, d_of_candidates = choose_readout(checkpoints, train)
    names = [checkpoint.name for checkpoint in checkpoints]
    card: dict[str, Any] = {
        "train_cross_validated_d": d_of_candidates,
        "energy_top2": {
            "reader": _concentration(reader, names, readout),
            "steerer": _concentration(steerer, names, readout),
        },
    }
    if scenarios.splits.dev:
        dev = pool_pairs(model, scenarios.splits.dev, style, count, options.pooling)
        card["dev"] = {
            "reader": _held_out_evidence(reader[readout], dev, readout),
            "steerer": _held_out_evidence(steerer[readout], dev, readout),
        }
    return _Draft(reader, steerer, readout, card)


def _at_each_checkpoint(method: Method, pairs: PooledPairs) -> np.ndarray:
    n_checkpoints = pairs.positive.shape[1]
    return np.stack([method(pairs.positive[:, c], pairs.negative[:, c]) for c in range(n_checkpoints)])


def _concentration(directions: np.ndarray, names: Sequence[str], readout: int) -> dict[str, Any]:
    """The share of energy in two dimensions, at R and where it is largest."""
    shares = energy_of_two(directions)
    worst = int(shares.argmax())
    return {
        "readout": round(float(shares[readout]), 4),
        "largest": round(float(shares[worst]), 4),
        "largest_at": names[worst],
    }


def _held_out_evidence(direction: np.ndarray, pairs: PooledPairs, checkpoint: int) -> dict[str, Any]:
    ups, downs = pairs.positive[:, checkpoint] @ direction, pairs.negative[:, checkpoint] @ direction
    evidence: dict[str, Any] = {"pairs": len(ups), "auroc": round(auroc(ups, downs), 4)}
    evidence["paired_accuracy"] = round(float((ups > downs).mean()), 4)
    if pairs.crossed.any():
        evidence["style_crossed_pairs"] = int(pairs.crossed.sum())
        evidence["style_crossed_auroc"] = round(auroc(ups[pairs.crossed], downs[pairs.crossed]), 4)
    return evidence


def _finished(
    model: LanguageModel,
    scenarios: ScenarioSet,
    options: FitOptions,
    neutral: NeutralPrompts,
    base_template: str,
    draft: _Draft,
    calibration: Calibration,
) -> TraitVectors:
    origin = VectorOrigin(
        model=model.name,
        fingerprint=model.fingerprint.short,
        scenarios=scenarios.digest(),
        neutral=neutral.digest(),
        method=options.record(),
        versions=library_versions(),
        dtype=str(model.dtype).removeprefix("torch."),
        base_template=None if has_chat_template(model.tokenizer) else base_template,
        card=draft.card,
    )
    return TraitVectors(
        trait=scenarios.name,
        description=scenarios.description,
        poles=(scenarios.positive.name, scenarios.negative.name),
        checkpoints=tuple(checkpoint.name for checkpoint in model.anatomy.checkpoints),
        readout=draft.readout,
        reader=draft.reader,
        steerer=draft.steerer,
        calibration=calibration,
        origin=origin,
    )


def library_versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    packages = ("traitscope", "torch", "transformers", "numpy", "scikit-learn")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
