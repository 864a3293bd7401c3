"""Loading the model that a run was made with once more."""

from __future__ import annotations

from pathlib import Path

import torch

from traitscope.captures.files import read_frozen_plan
from traitscope.errors import InputError
from traitscope.model.loading import LanguageModel, load_source
from traitscope.model.source import ModelSource


def model_of_run(run_dir: Path, device: torch.device | None = None) -> LanguageModel:
    """The model that a run was made with, in its dtype, on the (first) device of its plan or on ``device``.

    Raises:
        InputError: not a run directory, or the model is not there or is another one now.
    """
    plan = read_frozen_plan(run_dir)
    described = plan["model"]
    source = ModelSource(**{name: described[name] for name in ModelSource.__dataclass_fields__})
    model = load_source(source, device=plan["devices"][0] if device is None else str(device), dtype=plan["dtype"])
    if model.fingerprint.short != described["fingerprint"]:
        raise InputError(
            f"run {run_dir}: was made with {source.name} of fingerprint {described['fingerprint']}, which is now "
            f"{model.fingerprint.short}; bring that model back, or start a new run"
        )
    return model
