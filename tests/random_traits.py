"""Random unit readers whose readouts differ: what is tested does not ask what a direction means."""

from __future__ import annotations

from dataclasses import replace

from traitscope.bench import vectors
from traitscope.model.loading import LanguageModel
from traitscope.traits.vectors import TraitVectors


def random_vectors(model: LanguageModel, number: int) -> TraitVectors:
    """Trait ``random<number>`` of ``model``; the higher its number, the earlier its readout."""
    made = vectors.random_vectors(model, f"random{number}", seed=number)
    return replace(made, readout=max(1, len(made.checkpoints) - 1 - number))
