"""What the page says of each trait: its card and its cosine to the others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from traitscope.analysis.superposition import RandomCosine
from traitscope.report.card import GATE_NAMES, leading_figure
from traitscope.report.page.prompts import visible


def described_traits(run_dir: Path, traits: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry a trait of the run's summary: poles, readout, verdict, and the gates of its validation if there are."""
    return [_described(name, trait, _vector_file(run_dir, name)) for name, trait in traits.items()]


def _described(name: str, trait: Mapping[str, Any], path: Path) -> dict[str, Any]:
    poles = [visible(pole) for pole in trait["poles"]]
    return {"name": name, **trait, "poles": poles, **_card(path), "gates": _gates(path)}


def _vector_file(run_dir: Path, trait: str) -> Path:
    return run_dir / "vectors" / f"{trait}.safetensors"


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return dict(file.metadata())


def _card(path: Path) -> dict[str, Any]:
    metadata = _metadata(path)
    origin = json.loads(metadata["origin"])
    dev = origin["card"].get("dev", {}).get("reader")
    return {"description": visible(metadata["description"]), "model": origin["model"], "dev": dev}


def _gates(path: Path) -> list[dict[str, Any]]:
    validation = json.loads(_metadata(path)["origin"])["card"].get("validation")
    if validation is None:
        return []
    return [
        {
            "name": f"{name}: {GATE_NAMES[name]}",
            "needs": gate["needs"],
            "passed": gate["passed"],
            "figure": leading_figure(name, gate),
        }
        for name, gate in validation["gates"].items()
    ]


def reader_cosines(run_dir: Path, traits: Sequence[str]) -> dict[str, Any]:
    """Cosine of every two traits' readers at the row's readout, beside what random directions have."""
    readers, readouts = [], []
    for trait in traits:
        reader, readout = _reader(_vector_file(run_dir, trait))
        readers.append(reader)
        readouts.append(readout)
    if not readers:
        return {"cosines": [], "deviation": None, "marked_beyond": None}
    matrix = [[float(readers[a][row] @ readers[b][row]) for b in range(len(readers))] for a, row in enumerate(readouts)]
    random = RandomCosine(readers[0].shape[1])
    return {
        "cosines": [[None if np.isnan(value) else round(value, 4) for value in row] for row in matrix],
        "deviation": random.deviation,
        "marked_beyond": random.marked_beyond,
    }


def _reader(path: Path) -> tuple[np.ndarray, int]:
    """``[n_checkpoints, d_model]`` float32 and the row of the readout."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
        return file.get_tensor("reader"), json.loads(metadata["checkpoints"]).index(metadata["readout"])
