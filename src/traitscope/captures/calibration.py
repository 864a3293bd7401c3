"""What reading a run needs of its trait vectors: readouts and neutral statistics, without torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from traitscope.errors import InputError


@dataclass(frozen=True)
class TraitCalibration:
    """Readout and neutral statistics of one trait.

    ``mean`` and ``std`` hold ``[n_checkpoints]`` float32 per region (``prompt_last``, ``response_token``,
    ``response_mean``). ``neutral_trajectory`` holds ``[n_replies, most_tokens]`` float32: raw scores at R of the
    content tokens of each neutral reply in order, NaN after its last one; ``[0, 0]`` where the vector file is older
    than it.
    """

    trait: str
    poles: tuple[str, str]
    verdict: str
    checkpoints: tuple[str, ...]
    readout: str
    mean: dict[str, np.ndarray]
    std: dict[str, np.ndarray]
    neutral_trajectory: np.ndarray

    def z(self, scores: np.ndarray, checkpoint: str, region: str = "response_token") -> np.ndarray:
        """Scores of one checkpoint, centred and scaled by the neutral replies of ``region``."""
        row = self.checkpoints.index(checkpoint)
        return (scores - self.mean[region][row]) / self.std[region][row]

    def raw(self, z: np.ndarray, checkpoint: str, region: str = "response_token") -> np.ndarray:
        """Scores that ``z`` was made of."""
        row = self.checkpoints.index(checkpoint)
        return z * self.std[region][row] + self.mean[region][row]


def read_calibration(path: Path) -> TraitCalibration:
    """Read the calibration of a vector file.

    Raises:
        InputError: it is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata()
            names = list(file.keys())
            statistics = {name: file.get_tensor(name) for name in names if name.startswith("neutral_")}
    except (OSError, SafetensorError) as error:
        raise InputError(f"vector file {path}: missing or damaged: {error}") from None
    positive, negative = json.loads(metadata["poles"])
    return TraitCalibration(
        trait=metadata["trait"],
        poles=(positive, negative),
        verdict=json.loads(metadata["origin"])["verdict"],
        checkpoints=tuple(json.loads(metadata["checkpoints"])),
        readout=metadata["readout"],
        mean=_by_region(statistics, "neutral_mean."),
        std=_by_region(statistics, "neutral_std."),
        neutral_trajectory=statistics.get("neutral_trajectory", np.zeros((0, 0), dtype=np.float32)),
    )


def _by_region(statistics: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in statistics.items() if name.startswith(prefix)}
