"""Random trait vectors: they cost what fitted ones cost, need no fitting, and mean nothing."""

from __future__ import annotations

from pathlib import Path

import torch

from traitscope.model.loading import LanguageModel
from traitscope.traits.vectors import REGIONS, Calibration, TraitVectors, VectorOrigin, save_vectors


def write_random_vectors(model: LanguageModel, n_traits: int, folder: Path) -> list[Path]:
    """Write ``random0.safetensors``, ``random1.safetensors``, … to ``folder``; returns their absolute paths."""
    paths = [(folder / f"random{number}.safetensors").absolute() for number in range(n_traits)]
    for number, path in enumerate(paths):
        save_vectors(random_vectors(model, path.stem, seed=number), path)
    return paths


def random_vectors(model: LanguageModel, trait: str, *, seed: int) -> TraitVectors:
    """Random unit vectors at every checkpoint of ``model``, with a neutral calibration and the readout midway."""
    names = tuple(checkpoint.name for checkpoint in model.anatomy.checkpoints)
    generator = torch.Generator().manual_seed(seed)
    reader = torch.nn.functional.normalize(torch.randn(len(names), model.anatomy.d_model, generator=generator), dim=-1)
    return TraitVectors(
        trait=trait,
        description="random unit vectors; only time is measured with them",
        poles=("one way", "the other"),
        checkpoints=names,
        readout=len(names) // 2,
        reader=reader,
        steerer=reader.clone(),
        calibration=Calibration(
            mean={region: torch.zeros(len(names)) for region in REGIONS},
            std={region: torch.ones(len(names)) for region in REGIONS},
            norm=torch.ones(len(names)),
            write=torch.zeros(len(names)),
            trajectory=torch.zeros(1, 1),
        ),
        origin=VectorOrigin(
            model=model.name,
            fingerprint=model.fingerprint.short,
            scenarios="",
            neutral="",
            method={"name": "random", "seed": seed},
            versions={},
            dtype=str(model.dtype).removeprefix("torch."),
            base_template=None,
        ),
    )
