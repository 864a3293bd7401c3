"""Finding what a trait reference means, and its vectors: in a file, in the cache, or fitted now."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from traitscope.cache import cache_directory
from traitscope.errors import InputError, near_names
from traitscope.model.capture import ReaderBank
from traitscope.model.loading import LanguageModel
from traitscope.suite.file import BASE_TEMPLATE
from traitscope.suite.rendering import PromptStyle
from traitscope.traits.calibration import calibrate
from traitscope.traits.counting import OnProgress, no_progress
from traitscope.traits.direction_files import DIRECTION_SUFFIXES
from traitscope.traits.fitting import fit_traits
from traitscope.traits.options import DEFAULTS, FitOptions
from traitscope.traits.scenarios import (
    ScenarioSet,
    library_folder,
    library_names,
    load_neutral,
    load_scenarios,
)
from traitscope.traits.vectors import TraitVectors, is_current, load_vectors, readers_of, save_vectors, vector_metadata


@dataclass(frozen=True)
class TraitReference:
    """A trait as a suite names it, and the file that it means."""

    name: str
    kind: Literal["scenarios", "vectors"]
    path: Path


def find_trait(reference: str, folder: Path) -> TraitReference:
    """What ``reference`` means: a name in the library, a scenario file or a vector file.

    Raises:
        InputError: unknown trait (near names are offered), missing or wrong file.
    """
    path = folder / Path(reference).expanduser()
    if path.suffix == ".safetensors":
        return TraitReference(vector_metadata(path)["trait"], "vectors", path.resolve())
    if path.suffix in (".yaml", ".yml"):
        return TraitReference(load_scenarios(path).name, "scenarios", path.resolve())
    if reference in library_names():
        return TraitReference(reference, "scenarios", library_folder() / f"{reference}.yaml")
    if path.suffix in DIRECTION_SUFFIXES:
        raise InputError(
            f"trait {reference}: {path.suffix} files hold directions without a calibration; make a vector file of it: "
            f"traitscope traits import {reference}"
        )
    raise InputError(f"trait {reference!r} is unknown; {near_names(reference, library_names())}")


def refuse_foreign(reference: TraitReference, fingerprint: str) -> None:
    """Refuse a vector file of another model.

    Raises:
        InputError: the file's vectors were fitted on a model with another fingerprint.
    """
    origin = json.loads(vector_metadata(reference.path)["origin"])
    if origin["fingerprint"] != fingerprint:
        raise InputError(
            f"vector file {reference.path}: fitted on {origin['model']} (fingerprint {origin['fingerprint']}), "
            f"but this model's is {fingerprint}; fit it on this model, or use --allow-foreign"
        )


def vectors_for(
    model: LanguageModel,
    references: Sequence[TraitReference],
    *,
    options: FitOptions = DEFAULTS,
    allow_foreign: bool = False,
    base_template: str = BASE_TEMPLATE,
    on_progress: OnProgress = no_progress,
) -> list[TraitVectors]:
    """The vectors of every reference on ``model``: from their file, from the cache, or fitted together now.

    ``options`` are those of a fit; a vector file is taken as it is.

    Raises:
        InputError: a vector file belongs to another model and ``allow_foreign`` is not set, or cannot fit it.
    """
    found: dict[str, TraitVectors] = {}
    to_fit: list[tuple[Path, ScenarioSet]] = []
    for reference in references:
        if reference.kind == "vectors":
            found[reference.name] = _vectors_from_file(model, reference, allow_foreign, base_template)
            continue
        scenarios = load_scenarios(reference.path)
        cached = _cache_path(model, scenarios, options, base_template)
        if cached.is_file():
            found[reference.name] = load_vectors(cached)
        else:
            to_fit.append((cached, scenarios))
    if to_fit:
        sets = [scenarios for _, scenarios in to_fit]
        fitted = fit_traits(model, sets, options=options, base_template=base_template, on_progress=on_progress)
        for (cached, _), vectors in zip(to_fit, fitted, strict=True):
            save_vectors(vectors, cached)
            found[vectors.trait] = vectors
    return [found[reference.name] for reference in references]


def cached_vectors(scenarios: ScenarioSet) -> list[Path]:
    """Vector files in the user's cache that were fitted from this scenario set and the neutral prompts as they are now,
    on whatever model; files in an older version's format are passed over."""
    current = (scenarios.digest(), load_neutral().digest())
    files = sorted((cache_directory() / "vectors").glob(f"{scenarios.name}-*.safetensors"))
    found = [path for path in files if is_current(path)]
    origins = [json.loads(vector_metadata(path)["origin"]) for path in found]
    return [path for path, o in zip(found, origins, strict=True) if (o["scenarios"], o["neutral"]) == current]


def vector_path(model: LanguageModel, reference: TraitReference, base_template: str = BASE_TEMPLATE) -> Path:
    """Where the vectors of ``reference`` on ``model`` are kept: their own file, or one in the user's cache."""
    if reference.kind == "vectors":
        return reference.path
    return _cache_path(model, load_scenarios(reference.path), DEFAULTS, base_template)


def bank_of(vectors: Sequence[TraitVectors]) -> ReaderBank:
    """The readers of several traits as the forward pass needs them."""
    return ReaderBank(
        tuple(vector.trait for vector in vectors),
        readers_of(vectors),
        tuple(vector.readout for vector in vectors),
    )


def _cache_path(model: LanguageModel, scenarios: ScenarioSet, options: FitOptions, base_template: str) -> Path:
    described = [
        model.fingerprint.short,
        scenarios.digest(),
        load_neutral().digest(),
        options.record(),
        str(model.dtype),
        base_template,
        [checkpoint.name for checkpoint in model.anatomy.checkpoints],
    ]
    key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
    return cache_directory() / "vectors" / f"{scenarios.name}-{key}.safetensors"


def _vectors_from_file(
    model: LanguageModel, reference: TraitReference, allow_foreign: bool, base_template: str
) -> TraitVectors:
    vectors = load_vectors(reference.path)
    names = tuple(checkpoint.name for checkpoint in model.anatomy.checkpoints)
    if vectors.checkpoints != names or vectors.reader.shape[1] != model.anatomy.d_model:
        raise InputError(
            f"vector file {reference.path}: its {len(vectors.checkpoints)} checkpoints of width "
            f"{vectors.reader.shape[1]} do not fit this model's {len(names)} of {model.anatomy.d_model}"
        )
    if vectors.origin.fingerprint == model.fingerprint.short:
        return vectors
    if not allow_foreign:
        refuse_foreign(reference, model.fingerprint.short)
    bank = ReaderBank((vectors.trait,), torch.stack([vectors.reader]), (vectors.readout,))
    style = PromptStyle(system=None, template={}, base_template=base_template)
    return vectors.transferred(calibrate(model, bank, load_neutral(), style)[0])
