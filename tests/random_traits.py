"""Random unit readers: what is tested or timed does not ask what a direction means."""

from __future__ import annotations

import torch

from traitscope.model.loading import LanguageModel
from traitscope.traits.vectors import REGIONS, Calibration, TraitVectors, VectorOrigin


def random_vectors(model: LanguageModel, number: int) -> TraitVectors:
    """Trait ``random<number>`` of ``model``; the higher its number, the earlier its readout."""
    names = tuple(checkpoint.name for checkpoint in model.anatomy.checkpoints)
    generator = torch.Generator().manual_seed(number)
    reader = torch.nn.functional.normalize(torch.randn(len(names), model.anatomy.d_model, generator=generator), dim=-1)
    return TraitVectors(
        trait=f"random{number}",
        description="a random direction",
        poles=("up", "down"),
        checkpoints=names,
        readout=max(1, len(names) - 1 - number),
        reader=reader,
        steerer=reader.clone(),
        calibration=Calibration(
            mean={region: torch.zeros(len(names)) for region in REGIONS},
            std={region: torch.ones(len(names)) for region in REGIONS},
            norm=torch.ones(len(names)),
            write=torch.zeros(len(names)),
        ),
        origin=VectorOrigin(model.name, model.fingerprint.short, "", "", {}, {}, "", None),
    )
