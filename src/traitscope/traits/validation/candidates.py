"""From what a person names to what is validated: a trait's vectors and the scenario set that they are held against."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from traitscope.errors import InputError
from traitscope.model.loading import LanguageModel
from traitscope.suite.file import BASE_TEMPLATE
from traitscope.traits.counting import OnProgress, no_progress
from traitscope.traits.scenarios import ScenarioSet, library_names, library_scenarios, load_scenarios
from traitscope.traits.store import TraitReference, vector_path, vectors_for
from traitscope.traits.validation.laboratory import Candidate
from traitscope.traits.validation.validate import check_scenarios, validate_traits
from traitscope.traits.vectors import TraitVectors, save_vectors


def scenarios_of(reference: TraitReference, given: Path | None = None) -> ScenarioSet:
    """The scenario set of a reference: its own, the one ``given`` for a vector file, or the library's of that name.

    Raises:
        InputError: a vector file of a trait that has none, or a set that cannot be validated on.
    """
    scenarios = _scenarios_of(reference, given)
    check_scenarios(scenarios)
    return scenarios


def validate_references(
    model: LanguageModel,
    references: Sequence[TraitReference],
    scenario_sets: Sequence[ScenarioSet],
    *,
    base_template: str = BASE_TEMPLATE,
    on_progress: OnProgress = no_progress,
) -> list[TraitVectors]:
    """Find or fit the vectors of every reference, validate them together, and keep each card in its vector file as
    soon as it is there.

    Raises:
        InputError: a vector file belongs to another model: its card would not be about it.
    """
    found = vectors_for(model, references, base_template=base_template, on_progress=on_progress)
    candidates = [Candidate(vectors, scenarios) for vectors, scenarios in zip(found, scenario_sets, strict=True)]
    cards = validate_traits(model, candidates, base_template=base_template, on_progress=on_progress)
    validated = []
    for reference, vectors in zip(references, cards, strict=True):
        save_vectors(vectors, vector_path(model, reference, base_template))
        validated.append(vectors)
    return validated


def _scenarios_of(reference: TraitReference, given: Path | None) -> ScenarioSet:
    if reference.kind == "scenarios":
        return load_scenarios(reference.path)
    if given is not None:
        return load_scenarios(given)
    if reference.name in library_names():
        return library_scenarios(reference.name)
    raise InputError(
        f"vector file {reference.path}: there is no scenario set for trait {reference.name}; give one with --scenarios"
    )
