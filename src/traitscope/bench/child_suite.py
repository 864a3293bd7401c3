"""The suite that a process of the bench was given in its job."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from traitscope.run.prepare import Prepared, prepare
from traitscope.suite.file import LoadedSuite, Suite


def prepared_of(job: Mapping[str, Any]) -> Prepared:
    """Read, check and render what the job asks for.

    Raises:
        InputError: as ``prepare``.
    """
    loaded = LoadedSuite(Suite.model_validate(job["suite"]), Path(job["folder"]), "bench")
    return prepare(loaded, device=job["device"], dtype=job["dtype"], trust_remote_code=job["trust_remote_code"])
